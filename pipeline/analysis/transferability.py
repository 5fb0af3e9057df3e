"""How well codes, or a network's own predictions, promise to tell new classes: LogME, H-score, LEEP, NCE, Fréchet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

ITERATIONS = 10_000
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Spectrum:
    """The singular values and left singular vectors of codes X, those that are not zero.

    squares: (k,) float64, squared singular values; left: (n, k) float64.
    """

    squares: np.ndarray
    left: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray) -> Spectrum:
        """Decompose (n, d) codes by way of the smaller of X Xᵀ and Xᵀ X."""
        X = np.asarray(X, np.float64)
        wide = X.shape[0] <= X.shape[1]
        squares, vectors = eigh(X @ X.T if wide else X.T @ X)
        kept = squares > max(X.shape) * np.finfo(np.float64).eps * max(squares[-1], 0)
        squares, vectors = squares[kept], vectors[:, kept]
        return cls(squares, vectors if wide else X @ vectors / np.sqrt(squares))


def log_me(X: np.ndarray, y: np.ndarray) -> float:
    """Return the log of the maximum evidence per image, the mean over classes; higher promises more.

    You et al., "LogME: practical assessment of pre-trained models for transfer learning" (ICML 2021). Each class's
    indicator is regressed on the codes with prior w ~ N(0, 1/α) and noise N(0, 1/β), and α, β maximise the evidence;
    the fixed point is that of the longer paper, "Ranking and tuning pre-trained models" (JMLR 2022). Where n < d, the
    first version's determinant lacks the d - n eigenvalues that equal α; here they cancel against the prior's α^d.

    X: (n, d) codes, not centred; y: (n,) labels.
    """
    spectrum = Spectrum.of(X)
    indicators = one_hot(y)
    seen = (spectrum.left.T @ indicators) ** 2
    unseen = np.maximum(indicators.sum(0) - seen.sum(0), 0)
    ratio = np.ones(len(unseen))
    evidence = _evidence(ratio, spectrum.squares, seen, unseen, len(y))
    for _ in range(ITERATIONS):
        ratio = _next_ratio(ratio, spectrum.squares, seen, unseen, len(y))
        before, evidence = evidence, _evidence(ratio, spectrum.squares, seen, unseen, len(y))
        if np.abs(evidence - before).max() < TOLERANCE:
            break
    return float(evidence.mean())


def _next_ratio(t: np.ndarray, squares: np.ndarray, seen: np.ndarray, unseen: np.ndarray, n: int) -> np.ndarray:
    """Return α/β after one step: α = γ / |m|², β = (n - γ) / |Xm - y|², γ the effective number of parameters."""
    tiny = np.finfo(np.float64).tiny
    shrunk = squares[:, None] + t
    gamma = (squares[:, None] / shrunk).sum(0)
    length = (squares[:, None] * seen / shrunk**2).sum(0)
    residual = (seen * (t / shrunk) ** 2).sum(0) + unseen
    step = gamma * residual / np.maximum(length * (n - gamma), tiny)
    return np.clip(step, 1e-12 * squares.max(initial=1), 1e12 * squares.max(initial=1))


def _evidence(t: np.ndarray, squares: np.ndarray, seen: np.ndarray, unseen: np.ndarray, n: int) -> np.ndarray:
    """Return the log evidence per image at α/β = t and the best β for it, n / (|Xm - y|² + t |m|²)."""
    shrinkage = t / (squares[:, None] + t)
    misfit = np.maximum((seen * shrinkage).sum(0) + unseen, np.finfo(np.float64).tiny)
    return (np.log(n / misfit / (2 * np.pi)) - 1) / 2 + np.log(shrinkage).sum(0) / (2 * n)


def h_score(X: np.ndarray, y: np.ndarray) -> float:
    """Return tr(cov(X)⁺ cov(E[X|y])); higher promises more.

    Bao et al., "An information-theoretic approach to transferability in task transfer learning" (ICIP 2019). Where
    n <= d it is the number of classes less one for any codes: take `shrunk_h_score` there.

    X: (n, d) codes; y: (n,) labels.
    """
    X = np.asarray(X, np.float64)
    spectrum = Spectrum.of(X - X.mean(0))
    return float(_between(spectrum, y).sum())


def shrunk_h_score(X: np.ndarray, y: np.ndarray) -> float:
    """Return the H-score with Ledoit and Wolf's shrunk covariance, that of the class means shrunk likewise.

    Ibrahim et al., "Newer is not always better: rethinking transferability metrics" (ECML 2022): tr(Σ_a⁻¹ (1-a) Σ_z),
    Σ_a = (1-a) Σ + a tr(Σ)/d I. X: (n, d) codes; y: (n,) labels.
    """
    X = np.asarray(X, np.float64)
    X = X - X.mean(0)
    n, d = X.shape
    spectrum = Spectrum.of(X)
    a = shrinkage(spectrum.squares, np.einsum("ij,ij->i", X, X), d)
    variances = spectrum.squares / n
    kept = (1 - a) * variances / np.maximum((1 - a) * variances + a * variances.sum() / d, np.finfo(np.float64).tiny)
    return float(kept @ _between(spectrum, y))


def shrinkage(squares: np.ndarray, lengths: np.ndarray, d: int) -> float:
    """Return how far the covariance of n centred rows is drawn to a multiple of I (Ledoit and Wolf, JMVA 88, 2004).

    squares: squared singular values of the rows; lengths: (n,) squared lengths of the rows; d: their width.
    """
    n = len(lengths)
    total = (squares**2).sum() / n**2
    distance = total - (squares.sum() / n) ** 2 / d
    spread = ((lengths**2).sum() / n - total) / n
    return float(min(spread, distance) / distance) if distance > 0 else 0.0


def _between(spectrum: Spectrum, y: np.ndarray) -> np.ndarray:
    """Return (k,) the share of each principal direction's variance that lies between the class means."""
    indicators = one_hot(y)
    return ((spectrum.left.T @ (indicators / np.sqrt(indicators.sum(0)))) ** 2).sum(1)


def leep(chances: np.ndarray, y: np.ndarray) -> float:
    """Return the mean log of the expected empirical prediction, <= 0; higher promises more.

    Nguyen et al., "LEEP: a new measure to evaluate transferability of learned representations" (ICML 2020): an image's
    class is drawn from P(y|z), z from the network's own prediction of its source classes.

    chances: (n, n_source_classes) predicted probabilities; y: (n,) labels.
    """
    _, labels = np.unique(y, return_inverse=True)
    joint = one_hot(y).T @ np.asarray(chances, np.float64)
    given = joint / np.maximum(joint.sum(0), np.finfo(np.float64).tiny)
    return float(np.log((given[labels] * chances).sum(1)).mean())


def nce(chances: np.ndarray, y: np.ndarray) -> float:
    """Return the negative conditional entropy of the labels given the network's predicted classes, in nats, <= 0.

    Tran et al., "Transferability and hardness of supervised classification tasks" (ICCV 2019).

    chances: (n, n_source_classes) predicted probabilities; y: (n,) labels.
    """
    predicted = one_hot(chances.argmax(1))
    joint = one_hot(y).T @ predicted / len(y)
    given = joint / joint.sum(0)
    return float((joint * np.log(np.where(joint > 0, given, 1))).sum())


def frechet(mean: np.ndarray, cov: np.ndarray, other_mean: np.ndarray, other_cov: np.ndarray) -> float:
    """Return the squared Fréchet distance of two normal distributions, >= 0.

    As in Heusel et al., "GANs trained by a two time-scale update rule" (NeurIPS 2017), where it is called FID.
    """
    root = _root(other_cov)
    cross = np.sqrt(np.maximum(eigh(root @ cov @ root, eigvals_only=True), 0)).sum()
    return float(max(((mean - other_mean) ** 2).sum() + np.trace(cov) + np.trace(other_cov) - 2 * cross, 0))


def _root(cov: np.ndarray) -> np.ndarray:
    values, vectors = eigh(np.asarray(cov, np.float64))
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def one_hot(y: np.ndarray) -> np.ndarray:
    """Return (n, n_classes) float64, 1 where a row is of a class; classes that do not occur have no column."""
    return (np.unique(y) == np.asarray(y)[:, None]).astype(np.float64)
