"""The measures equal slow computations from their papers' formulas, for many images and for few."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.optimize import minimize
from sklearn.covariance import ledoit_wolf

from pipeline.analysis import transferability

SHAPES = [(60, 8, 3), (40, 39, 2), (30, 30, 4), (25, 60, 3), (12, 100, 5), (70, 5, 6)]
"""Images, width of the codes, classes: more images than numbers per code, equally many, and fewer."""


def draw(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return codes as after a ReLU, whose means differ by class, and labels."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    centres = rng.normal(size=(classes, d))
    return np.maximum(rng.normal(size=(n, d)) + centres[y], 0), y


def draw_probabilities(n: int, sources: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(sources, 0.3), n)


def evidence_by_weights(X: np.ndarray, target: np.ndarray, alpha: float, beta: float) -> float:
    """Return the log evidence as the paper writes it, with the mean m of the weights and the whole d × d matrix A."""
    n, d = X.shape
    A = alpha * np.eye(d) + beta * X.T @ X
    m = beta * np.linalg.solve(A, X.T @ target)
    logs = n * np.log(beta) + d * np.log(alpha) - n * np.log(2 * np.pi) - np.linalg.slogdet(A)[1]
    return float((logs - beta * ((X @ m - target) ** 2).sum() - alpha * (m**2).sum()) / 2)


def evidence(X: np.ndarray, target: np.ndarray, alpha: float, beta: float) -> float:
    """Return the log evidence from its definition, p(y | X, α, β), which stays exact as the noise goes to zero."""
    covariance = np.eye(len(X)) / beta + X @ X.T / alpha
    return float(-(np.linalg.slogdet(2 * np.pi * covariance)[1] + target @ np.linalg.solve(covariance, target)) / 2)


def highest_evidence(X: np.ndarray, target: np.ndarray) -> float:
    """Return the highest log evidence over α and β, by a numerical search."""
    options = {"xatol": 1e-7, "fatol": 1e-10, "maxfev": 5_000}

    def cost(point: np.ndarray) -> float:
        return -evidence(X, target, *np.exp(np.minimum(point, 40)))

    starts = [(-2.0, 0.0), (2.0, 3.0), (6.0, 12.0)]
    return -min(minimize(cost, start, method="Nelder-Mead", options=options).fun for start in starts)


def slow_log_me(X: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([highest_evidence(X, (y == label).astype(float)) / len(y) for label in np.unique(y)]))


def slow_h_score(X: np.ndarray, y: np.ndarray) -> float:
    means = np.stack([X[y == label].mean(0) for label in y])
    return float(np.trace(np.linalg.pinv(np.cov(X.T, bias=True), rcond=1e-10) @ np.cov(means.T, bias=True)))


def slow_shrunk_h_score(X: np.ndarray, y: np.ndarray) -> float:
    means = np.stack([X[y == label].mean(0) for label in y])
    covariance, share = ledoit_wolf(X)
    return float(np.trace(np.linalg.inv(covariance) @ ((1 - share) * np.cov(means.T, bias=True))))


def slow_leep(probabilities: np.ndarray, y: np.ndarray) -> float:
    n, total = len(y), 0.0
    for row, label in enumerate(y):
        expected = 0.0
        for z in range(probabilities.shape[1]):
            both = sum(probabilities[i, z] for i in range(n) if y[i] == label) / n
            expected += both / (probabilities[:, z].sum() / n) * probabilities[row, z]
        total += np.log(expected)
    return total / n


def slow_nce(probabilities: np.ndarray, y: np.ndarray) -> float:
    predicted, total = probabilities.argmax(1), 0.0
    for label in set(y.tolist()):
        for z in set(predicted.tolist()):
            both, one = ((y == label) & (predicted == z)).mean(), (predicted == z).mean()
            total += both * np.log(both / one) if both else 0.0
    return total


@pytest.mark.parametrize(("n", "d", "classes"), SHAPES)
@pytest.mark.parametrize(
    ("fast", "slow"),
    [
        (transferability.log_me, slow_log_me),
        (transferability.h_score, slow_h_score),
        (transferability.shrunk_h_score, slow_shrunk_h_score),
    ],
    ids=["LogME", "H-score", "shrunk H-score"],
)
def test_measures_of_codes_equal_the_papers_formulas(
    fast: Callable[..., float], slow: Callable[..., float], n: int, d: int, classes: int
) -> None:
    for seed in range(3):
        X, y = draw(n, d, classes, seed)
        assert fast(X, y) == pytest.approx(slow(X, y), abs=1e-6)


@pytest.mark.parametrize(("n", "sources", "classes"), [(40, 7, 3), (10, 50, 5), (100, 2, 10)])
def test_measures_of_predictions_equal_the_papers_formulas(n: int, sources: int, classes: int) -> None:
    for seed in range(3):
        probabilities, y = draw_probabilities(n, sources, seed), draw(n, 1, classes, seed)[1]
        assert transferability.leep(probabilities, y) == pytest.approx(slow_leep(probabilities, y), abs=1e-6)
        assert transferability.nce(probabilities, y) == pytest.approx(slow_nce(probabilities, y), abs=1e-6)


@pytest.mark.parametrize(("n", "d", "classes"), SHAPES)
def test_both_formulas_of_the_evidence_agree(n: int, d: int, classes: int) -> None:
    X, y = draw(n, d, classes)
    for alpha, beta in ((1, 1), (0.1, 30), (50, 2)):
        target = (y == 0).astype(float)
        assert evidence(X, target, alpha, beta) == pytest.approx(evidence_by_weights(X, target, alpha, beta), abs=1e-8)


def test_log_me_does_not_change_when_the_codes_are_padded_with_zeros() -> None:
    """Zeros carry no information; the first version of LogME changes with them once n < d."""
    X, y = draw(25, 60, 3)
    wider = np.hstack([X, np.zeros((25, 500))])
    assert transferability.log_me(wider, y) == pytest.approx(transferability.log_me(X, y), abs=1e-9)


def test_the_plain_h_score_cannot_rank_codes_of_more_numbers_than_images() -> None:
    """For any codes it is the number of classes minus one; the shrunk H-score separates signal from noise."""
    X, y = draw(20, 50, 3)
    noise = np.random.default_rng(1).normal(size=X.shape)
    assert transferability.h_score(X, y) == pytest.approx(2) == transferability.h_score(noise, y)
    assert transferability.shrunk_h_score(X, y) > transferability.shrunk_h_score(noise, y) + 0.1


@pytest.mark.parametrize("measure", [transferability.log_me, transferability.h_score, transferability.shrunk_h_score])
def test_constant_codes_are_measured_too(measure: Callable[..., float]) -> None:
    y = np.arange(20) % 2
    separated = np.eye(2)[y] + 0.01 * np.random.default_rng(0).normal(size=(20, 2))
    for constant in (np.zeros((20, 4)), np.full((20, 4), 3.0)):
        result = measure(constant, y)
        assert np.isfinite(result) and result < measure(separated, y)


def test_certain_predictions_of_the_labels_themselves_are_best() -> None:
    y = np.arange(30) % 3
    assert transferability.leep(np.eye(3)[y], y) == transferability.nce(np.eye(3)[y], y) == 0
    assert transferability.leep(np.full((30, 3), 1 / 3), y) == pytest.approx(-np.log(3))


def test_the_frechet_distance_equals_its_formula() -> None:
    rng = np.random.default_rng(0)
    (a, b), (m, s) = rng.normal(size=(2, 30, 6)), rng.normal(size=(2, 6))
    C, D = np.cov(a.T), np.cov((b @ rng.normal(size=(6, 6))).T)
    expected = ((m - s) ** 2).sum() + np.trace(C + D - 2 * np.real(sqrtm(C @ D)))
    assert transferability.frechet(m, C, s, D) == pytest.approx(expected, abs=1e-8)
    assert transferability.frechet(m, C, m, C) == pytest.approx(0, abs=1e-8)
