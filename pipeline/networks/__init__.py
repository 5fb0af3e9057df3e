"""Pretrained networks: which there are, their weights, and how one is cut into a frozen network."""
