"""How well codes or a network's own predictions suit new classes: LogME, H-score, LEEP, NCE, Fréchet distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

ITERATIONS = 10_000
"""Number of iterations at most in which the evidence of LogME is maximised."""

TOLERANCE = 1e-12
"""The iterations stop when the evidence per image changes by less."""

TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Spectrum:
    """The nonzero singular values of codes X, squared (k,) float64, and their left singular vectors (n, k) float64."""

    squares: np.ndarray
    left: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray) -> Spectrum:
        """Decompose (n, d) codes through the smaller of X Xᵀ and Xᵀ X."""
        X = np.asarray(X, np.float64)
        wide = X.shape[0] <= X.shape[1]
        squares, vectors = eigh(X @ X.T if wide else X.T @ X)
        nonzero = squares > max(X.shape) * np.finfo(np.float64).eps * max(squares[-1], 0)
        squares, vectors = squares[nonzero], vectors[:, nonzero]
        return cls(squares, vectors if wide else X @ vectors / np.sqrt(squares))


def log_me(X: np.ndarray, y: np.ndarray) -> float:
    """Return the log of the maximum evidence per image, averaged over the classes; higher is better.

    You et al., "LogME: practical assessment of pre-trained models for transfer learning" (ICML 2021). Each class's
    indicator is regressed on the codes with prior w ~ N(0, 1/α) and noise N(0, 1/β), and α, β maximise the evidence;
    the fixed point is that of the longer paper, "Ranking and tuning pre-trained models" (JMLR 2022). Where n < d, the
    first version's determinant lacks the d - n eigenvalues that equal α; here they cancel against the prior's α^d.

    X: (n, d) codes, not centred; y: (n,) labels.
    """
    spectrum = Spectrum.of(X)
    indicators = one_hot(y)
    explained = (spectrum.left.T @ indicators) ** 2
    unexplained = np.maximum(indicators.sum(0) - explained.sum(0), 0)
    ratio = np.ones(len(unexplained))
    evidence = _evidence(ratio, spectrum.squares, explained, unexplained, len(y))
    for _ in range(ITERATIONS):
        ratio = _next_ratio(ratio, spectrum.squares, explained, unexplained, len(y))
        before, evidence = evidence, _evidence(ratio, spectrum.squares, explained, unexplained, len(y))
        if np.abs(evidence - before).max() < TOLERANCE:
            break
    return float(evidence.mean())


def _next_ratio(
    ratio: np.ndarray, squares: np.ndarray, explained: np.ndarray, unexplained: np.ndarray, n: int
) -> np.ndarray:
    """Return α/β after one step: α = γ / |m|², β = (n - γ) / |Xm - y|², γ the effective number of parameters."""
    regularised = squares[:, None] + ratio
    gamma = (squares[:, None] / regularised).sum(0)
    length = (squares[:, None] * explained / regularised**2).sum(0)
    residual = (explained * (ratio / regularised) ** 2).sum(0) + unexplained
    step = gamma * residual / np.maximum(length * (n - gamma), TINY)
    return np.clip(step, 1e-12 * squares.max(initial=1), 1e12 * squares.max(initial=1))


def _evidence(
    ratio: np.ndarray, squares: np.ndarray, explained: np.ndarray, unexplained: np.ndarray, n: int
) -> np.ndarray:
    """Return the log evidence per image at α/β = ratio and the best β for it, n / (|Xm - y|² + ratio |m|²)."""
    shares = ratio / (squares[:, None] + ratio)
    misfit = np.maximum((explained * shares).sum(0) + unexplained, TINY)
    return (np.log(n / misfit / (2 * np.pi)) - 1) / 2 + np.log(shares).sum(0) / (2 * n)


def h_score(X: np.ndarray, y: np.ndarray) -> float:
    """Return tr(cov(X)⁺ cov(E[X|y])); higher is better.

    Bao et al., "An information-theoretic approach to transferability in task transfer learning" (ICIP 2019). Where
    n <= d it equals the number of classes minus one for any codes: use `shrunk_h_score` there.

    X: (n, d) codes; y: (n,) labels.
    """
    X = np.asarray(X, np.float64)
    spectrum = Spectrum.of(X - X.mean(0))
    return float(_between(spectrum, y).sum())


def shrunk_h_score(X: np.ndarray, y: np.ndarray) -> float:
    """Return the H-score with Ledoit and Wolf's shrunk covariance; that of the class means is shrunk as well.

    Ibrahim et al., "Newer is not always better: rethinking transferability metrics" (ECML 2022): tr(Σ_a⁻¹ (1-a) Σ_z),
    Σ_a = (1-a) Σ + a tr(Σ)/d I. X: (n, d) codes; y: (n,) labels.
    """
    X = np.asarray(X, np.float64)
    X = X - X.mean(0)
    n, d = X.shape
    spectrum = Spectrum.of(X)
    a = shrinkage(spectrum.squares, np.einsum("ij,ij->i", X, X), d)
    variances = spectrum.squares / n
    shares = (1 - a) * variances / np.maximum((1 - a) * variances + a * variances.sum() / d, TINY)
    return float(shares @ _between(spectrum, y))


def shrinkage(squares: np.ndarray, lengths: np.ndarray, d: int) -> float:
    """Return the weight in [0, 1] of a multiple of I in the covariance of n centred rows.

    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (JMVA 88, 2004).

    squares: squared singular values of the rows; lengths: (n,) squared lengths of the rows; d: their width.
    """
    n = len(lengths)
    total = (squares**2).sum() / n**2
    distance = total - (squares.sum() / n) ** 2 / d
    error = ((lengths**2).sum() / n - total) / n
    return float(min(error, distance) / distance) if distance > 0 else 0.0


def _between(spectrum: Spectrum, y: np.ndarray) -> np.ndarray:
    """Return the share (k,) of each principal direction's variance that lies between the class means."""
    indicators = one_hot(y)
    return ((spectrum.left.T @ (indicators / np.sqrt(indicators.sum(0)))) ** 2).sum(1)


def leep(probabilities: np.ndarray, y: np.ndarray) -> float:
    """Return the mean log of the expected empirical prediction, <= 0; higher is better.

    Nguyen et al., "LEEP: a new measure to evaluate transferability of learned representations" (ICML 2020): an image's
    class is drawn from P(y|z), z from the network's own prediction of its source classes.

    probabilities: (n, n_source_classes) predicted; y: (n,) labels.
    """
    _, labels = np.unique(y, return_inverse=True)
    joint = one_hot(y).T @ np.asarray(probabilities, np.float64)
    conditional = joint / np.maximum(joint.sum(0), TINY)
    return float(np.log((conditional[labels] * probabilities).sum(1)).mean())


def nce(probabilities: np.ndarray, y: np.ndarray) -> float:
    """Return the negative conditional entropy of the labels, given the network's predicted classes, in nats, <= 0.

    Higher is better. Tran et al., "Transferability and hardness of supervised classification tasks" (ICCV 2019).

    probabilities: (n, n_source_classes) predicted; y: (n,) labels.
    """
    predicted = one_hot(probabilities.argmax(1))
    joint = one_hot(y).T @ predicted / len(y)
    conditional = joint / joint.sum(0)
    return float((joint * np.log(np.where(joint > 0, conditional, 1))).sum())


def frechet(mean: np.ndarray, cov: np.ndarray, other_mean: np.ndarray, other_cov: np.ndarray) -> float:
    """Return the squared Fréchet distance between two normal distributions, >= 0.

    Heusel et al., "GANs trained by a two time-scale update rule" (NeurIPS 2017), call it FID.

    mean, other_mean: (d,); cov, other_cov: (d, d).
    """
    root = _root(other_cov)
    cross = np.sqrt(np.maximum(eigh(root @ cov @ root, eigvals_only=True), 0)).sum()
    return float(max(((mean - other_mean) ** 2).sum() + np.trace(cov) + np.trace(other_cov) - 2 * cross, 0))


def _root(cov: np.ndarray) -> np.ndarray:
    """Return the symmetric square root of a covariance matrix."""
    values, vectors = eigh(np.asarray(cov, np.float64))
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def one_hot(y: np.ndarray) -> np.ndarray:
    """Return (n, n_classes) float64, 1 at each row's class; classes that do not occur have no column."""
    return (np.unique(y) == np.asarray(y)[:, None]).astype(np.float64)
