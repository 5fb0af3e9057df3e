"""Paired tests and calibration equal direct computations from their definitions."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from pipeline.analysis import predictions


def test_mcnemar_equals_the_direct_computation() -> None:
    """Of k images that only one of two classifies correctly, b are the first one's: twice the binomial tail."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.random(60) < 0.8, rng.random(60) < 0.7
        b, c = int((one & ~other).sum()), int((~one & other).sum())
        tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
        p = predictions.mcnemar(one, other, np.arange(60))
        assert p == pytest.approx(min(1.0, 2 * tail))
        assert predictions.mcnemar(np.repeat(one, 4), np.repeat(other, 4), np.repeat(np.arange(60), 4)) == p
    assert predictions.mcnemar(one, one, np.arange(60)) == 1.0


def test_several_differences_are_judged_together() -> None:
    assert predictions.significant([0.001, 0.04, 0.03]) == [True, False, False]
    assert predictions.significant([0.04]) == [True] and predictions.significant([]) == []


def test_calibration_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random(500)
    correct = rng.random(500) < probabilities**2
    result = predictions.calibration(probabilities, correct, np.arange(500))
    edges = np.linspace(0, 1, predictions.BINS + 1)
    inside = [(probabilities >= low) & (probabilities < high) for low, high in pairwise(edges)]
    gaps = [m.sum() / 500 * abs(correct[m].mean() - probabilities[m].mean()) for m in inside if m.any()]
    assert result["ece"] == pytest.approx(sum(gaps)) and sum(row["n"] for row in result["bins"]) == 500
    assert predictions.calibration(np.array([1.0, 1.0]), np.array([True, True]), np.arange(2))["ece"] == 0
    twice = predictions.calibration(np.repeat(probabilities, 2), np.repeat(correct, 2), np.repeat(np.arange(500), 2))
    for one, doubled in zip(result["bins"], twice["bins"], strict=True):
        assert doubled["n"] == 2 * one["n"] and (doubled["low"], doubled["high"]) == (one["low"], one["high"])
