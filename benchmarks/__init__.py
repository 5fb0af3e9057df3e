"""Benchmarks that a reader can repeat; none of them is a test."""
