"""Preconditioned nonlinear conjugate gradients on many convex problems side by side, one matrix product for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.classifiers.solvers.design import Design, eigh
from pipeline.classifiers.solvers.losses import Loss

RANK = 128
"""Directions of the codes that the preconditioner knows; the others it takes for equally long."""

WINDOW = 4
"""Iterations, at least, over which the decrease of the objective is taken, to tell how much of it is left."""

LOOSE = 5
"""How far the bound of the gradient may be above the tolerance when the decrease tells that it is reached."""

CHUNK = 16
"""Columns whose line search is done at once: so many floats fill a line of the cache."""

MAX_RUNGS = 4
"""Powers of ten below the first C, at most, from which it is led to."""

TINY = 1e-300


@dataclass(frozen=True)
class Objective:
    """½ ||w||² + C times the loss, for each unit of the loss; the intercept counts in ||w||² where it is penalised."""

    design: Design
    loss: Loss
    penalised: bool = True

    def columns(self, units: Any) -> Any:
        """Return the columns of the units, side by side."""
        each = self.loss.columns
        return (units[:, None] * each + self.design.xp.arange(each)).reshape(-1)

    def problems(self, units: Any) -> Any:
        """Return the problem of each column of the units."""
        return self.loss.problems[self.columns(units) // self.loss.columns]

    def spread(self, values: Any, like: Any) -> Any:
        """Return the value of each unit for each of its columns, in the dtype of `like`."""
        xp = self.design.xp
        return xp.asarray(values[xp.arange(like.shape[1]) // self.loss.columns], dtype=like.dtype)

    def dot(self, A: Any, B: Any) -> Any:
        """Return the inner products (n_units,) float64 of coefficients, over the columns of a unit."""
        return (A * B).sum(0, dtype=self.design.xp.float64).reshape(-1, self.loss.columns).sum(1)

    def penalty(self, W: Any) -> Any:
        """Return the part of the coefficients that is penalised."""
        return W if self.penalised or not self.design.intercept else W[:-1]

    def forward(self, W: Any, units: Any) -> Any:
        """Return the scores of coefficients."""
        return self.design.forward(W, self.problems(units))

    def at(self, C: float, W: Any, Z: Any, units: Any) -> tuple[Any, Any]:
        """Return the objective (n_units,) float64 and its gradient (width, n_columns) at W, whose scores are Z."""
        losses = []

        def residuals() -> Iterator[tuple[slice, Any]]:
            for rows in self.design.blocks:
                value, residual = self.loss.value(rows, Z[rows], units)
                losses.append(value)
                yield rows, residual

        gradient = self.design.backward(residuals(), self.problems(units))
        gradient *= C
        self.penalty(gradient)[...] += self.penalty(W)
        return 0.5 * self.dot(self.penalty(W), self.penalty(W)) + C * self._total(losses), gradient

    def along(self, Z: Any, D: Any, units: Any) -> Callable[[Any], tuple[Any, Any]]:
        """Return what gives first and second derivative (n_units,) of the loss along scores D, at Z + t D."""
        parts = [self.loss.along(rows, Z[rows], D[rows], units) for rows in self.design.blocks]

        def slopes(t: Any) -> tuple[Any, Any]:
            firsts, seconds = zip(*(part(self.spread(t, Z)) for part in parts), strict=True)
            return self._total(firsts), self._total(seconds)

        return slopes

    def chunks(self, units: Any) -> Iterator[tuple[slice, slice]]:
        """Yield some units at a time, with their columns, for what is done to each on its own."""
        step = max(1, CHUNK // self.loss.columns)
        for first in range(0, len(units), step):
            last = min(first + step, len(units))
            yield slice(first, last), slice(first * self.loss.columns, last * self.loss.columns)

    def curvature(self, Z: Any, units: Any) -> Any:
        """Return the curvature (n_units,) of the loss at scores Z, summed over the rows."""
        return self._total([self.loss.curvature(rows, Z[rows], units) for rows in self.design.blocks])

    def gap(self, C: float, G: Any, bend: Any) -> Any:
        """Return what the objective is above its minimum at most (n_units,), by the gradient G.

        The penalty makes it 1-strongly convex: ½ ||G||². For an intercept not penalised, twice Newton's estimate.
        """
        gap = 0.5 * self.dot(self.penalty(G), self.penalty(G))
        if not self.penalised and self.design.intercept:
            gap += self.dot(G[-1:], G[-1:]) / (C * bend + TINY)
        return gap

    def _total(self, parts: Sequence[Any]) -> Any:
        return sum(self.design.xp.asarray(part, dtype=self.design.xp.float64) for part in parts)


@dataclass(frozen=True)
class Spectrum:
    """The longest directions of the codes: vectors (width, rank), and their mean squares over the rows (rank,).

    Found by subspace iteration from a fixed random start (Halko, Martinsson and Tropp, "Finding structure with
    randomness", 2011); the preconditioner made of them is Nyström's (Frangella, Tropp and Udell, "Randomized Nyström
    preconditioning", 2023). It was as good as the Cholesky factor of the Gram matrix, for a few products.
    """

    vectors: Any
    squares: Any

    @classmethod
    def of(cls, design: Design, weights: Any, rank: int = RANK) -> Spectrum:
        """Return the spectrum of the rows of a design; weights: (n,)."""
        xp, whole = design.xp, design.width <= 2 * rank
        start = np.eye(design.width) if whole else np.random.default_rng(0).normal(size=(design.width, rank + 16))
        basis = xp.asarray(start, dtype=design.X.dtype)
        for _ in range(0 if whole else 2):
            basis, _ = xp.linalg.qr(design.normal(basis, weights))
        small = basis.T @ design.normal(basis, weights)
        squares, inner = eigh((small + small.T) / 2, xp)
        kept = slice(-min(rank, len(squares)), None)
        return cls(basis @ inner[:, kept], xp.clip(squares[kept], 0, None) / (weights.sum() + TINY))

    def precondition(self, G: Any, stiffness: Any) -> Any:
        """Return P⁻¹ G for P = 1 + stiffness × the codes' Gram matrix, up to a factor; stiffness: (n_columns,)."""
        floor, along = 1 + stiffness * self.squares[0], 1 + self.squares[:, None] * stiffness
        return G + self.vectors @ ((floor / along - 1) * (self.vectors.T @ G))


@dataclass
class Solution:
    """Coefficients W (width, n_columns), their scores Z (n, n_columns), iterations and convergence (n_units,)."""

    W: Any
    Z: Any
    iterations: np.ndarray
    converged: np.ndarray


def zero_solution(objective: Objective) -> Solution:
    """Return the solution of C = 0."""
    design, units = objective.design, objective.loss.units
    n_columns = units * objective.loss.columns
    W, Z = design.zeros(design.width, n_columns), design.zeros(design.n, n_columns)
    return Solution(W, Z, np.zeros(units, int), np.zeros(units, bool))


@dataclass
class _Live:
    """What is still being solved: its units, and the state of the descent over their columns."""

    units: Any
    W: Any
    Z: Any
    bend: Any
    stiffness: Any
    values: list[Any] = field(default_factory=list)
    gradient: Any = None
    previous: Any = None
    direction: Any = None
    fall: Any = None

    def keep(self, kept: Any, columns: Any) -> None:
        """Go on with some of the units; kept: (n_units,) bool, columns: (n_columns,) bool."""
        self.units, self.bend, self.stiffness = self.units[kept], self.bend[kept], self.stiffness[columns]
        self.values = [value[kept] for value in self.values]
        self.W, self.Z, self.gradient = self.W[:, columns], self.Z[:, columns], self.gradient[:, columns]
        if self.direction is not None:
            self.direction, self.previous = self.direction[:, columns], self.previous[:, columns]
            self.fall = self.fall[kept]


def minimise(
    objective: Objective, spectrum: Spectrum, C: float, solution: Solution, tol: float, max_iter: int
) -> Solution:
    """Return the minimum for C, from the solution of another C, which is overwritten.

    A unit is done when its objective is above its minimum by no more than `tol` times itself: by the bound of the
    gradient; or as its decrease over the last iterations foretells, where that bound allows five times as much (in
    measurements it is ten to thirty times too careful for large C). An iteration takes one product with the codes
    and one with their transpose. These are Polak and Ribière's conjugate gradients, which took a third of the
    products of Newton-CG (Keerthi and DeCoste 2005; Lin, Weng and Keerthi 2008): no Hessian is solved for whose
    margins change before it is.
    """
    units = objective.design.xp.arange(objective.loss.units)
    bend = objective.curvature(solution.Z, units)
    live = _Live(units, solution.W, solution.Z, bend, objective.spread(C * bend, solution.W))
    solution = Solution(solution.W, solution.Z, np.full(len(units), max_iter), np.zeros(len(units), bool))
    for iteration in range(max_iter + 1):
        value, live.gradient = objective.at(C, live.W, live.Z, live.units)
        done = _done(objective, C, live, value, tol)
        if iteration == max_iter or 8 * int(done.sum()) >= len(done):
            _write(objective, live, done, solution, iteration)
            if iteration == max_iter or bool(done.all()):
                break
            live.keep(~done, objective.spread(~done, live.W) > 0)
        _advance(objective, spectrum, C, live)
    return solution


def _done(objective: Objective, C: float, live: _Live, value: Any, tol: float) -> Any:
    """Say of each unit whether its objective is within `tol` of its minimum, (n_units,) bool."""
    live.values.append(value)
    bound = objective.gap(C, live.gradient, live.bend)
    allowed = tol * value
    remaining = _remaining(live.values, objective.design.xp)
    return (bound <= allowed) | ((bound <= LOOSE * allowed) & (remaining <= 0.5 * allowed))


def _remaining(values: list[Any], xp: Any) -> Any:
    """Return how far each objective still is to fall, if it goes on falling as it did over the last iterations.

    The decreases over two windows, the longer the more iterations there were, give the rate. One better than a
    quarter is not believed, since the first steps from afar fall faster than those that follow.
    """
    window = max(WINDOW, len(values) // 6)
    if len(values) <= 2 * window:
        return values[-1] + float("inf")
    earlier = values[-1 - 2 * window] - values[-1 - window]
    lately = values[-1 - window] - values[-1]
    slowing = (earlier - lately) * (earlier > lately)
    slows = slowing >= 1e-9 * abs(lately)  # else there is no end in sight
    rest = xp.where(slows, lately * lately / xp.where(slows, slowing + TINY, 1.0), float("inf"))
    return xp.maximum(rest, lately / 3)


def _write(objective: Objective, live: _Live, done: Any, solution: Solution, iteration: int) -> None:
    """Write what is live to the solution, which it may be already."""
    if live.W is not solution.W:
        columns = objective.columns(live.units)
        solution.W[:, columns], solution.Z[:, columns] = live.W, live.Z
    ended = np.asarray(live.units[done].tolist(), int)
    solution.iterations[ended], solution.converged[ended] = iteration, True


def _advance(objective: Objective, spectrum: Spectrum, C: float, live: _Live) -> None:
    """Take a step of conjugate gradients."""
    steepest = spectrum.precondition(live.gradient, live.stiffness)
    fall = objective.dot(steepest, live.gradient)
    if live.direction is None:
        live.direction = -steepest
    else:
        turned = fall - objective.dot(steepest, live.previous)
        live.direction *= objective.spread((turned * (turned > 0)) / (live.fall + TINY), live.W)
        live.direction -= steepest
        uphill = objective.spread(objective.dot(live.direction, live.gradient) >= 0, live.W) > 0
        live.direction[:, uphill] = -steepest[:, uphill]
    live.previous, live.fall = live.gradient, fall
    line_search(
        objective, C, (live.W, live.Z), live.direction, objective.forward(live.direction, live.units), live.units
    )


def line_search(objective: Objective, C: float, at: tuple[Any, Any], D: Any, scores: Any, units: Any) -> None:
    """Move coefficients and their scores, in place, to the minimum along D (width, n_columns), which has `scores`.

    By Newton's method within a bracket: the derivative along D rises, and is piecewise linear for the hinges.
    """
    W, Z = at
    first = objective.dot(objective.penalty(W), objective.penalty(D))
    second = objective.dot(objective.penalty(D), objective.penalty(D))
    for some, columns in objective.chunks(units):
        slopes = objective.along(Z[:, columns], scores[:, columns], units[some])
        t = minimum_along(slopes, C, first[some], second[some], objective.design.xp)
        step = objective.spread(t, D[:, columns])
        W[:, columns] += step * D[:, columns]
        Z[:, columns] += step * scores[:, columns]


def minimum_along(slopes: Callable[[Any], tuple[Any, Any]], C: float, first: Any, second: Any, xp: Any) -> Any:
    """Return where C times the loss of those slopes and a parabola, of that derivatives at 0, are lowest together."""
    t, low, high = first * 0, first * 0, first * 0 + float("inf")
    limit = None
    for _ in range(12):
        loss_slope, loss_bend = slopes(t)
        slope, bend = first + t * second + C * loss_slope, second + C * loss_bend
        limit = 0.05 * abs(slope) if limit is None else limit
        low, high = xp.where(slope < 0, t, low), xp.where(slope > 0, t, high)
        newton = t - slope / (bend + TINY)
        inside = (newton >= low) & (newton <= high)
        t = xp.where(inside, newton, xp.where(high < float("inf"), (low + high) / 2, 2 * low + 1))
        if bool((abs(slope) <= limit).all()) and bool(inside.all()):
            break
    return t


def solve_path(
    objective: Objective, spectrum: Spectrum, Cs: Sequence[float], tol: float, max_iter: int
) -> Iterator[Solution]:
    """Yield the solution for each C, ascending: the same arrays again and again.

    Each starts where the line through the two before it lies lowest. A large first C from nothing takes three times
    the iterations of a path that leads there, so smaller ones do.
    """
    units = objective.design.xp.arange(objective.loss.units)
    reach = Cs[0] * float(spectrum.squares.sum())
    rungs = [Cs[0] / 10**power for power in range(MAX_RUNGS, 0, -1) if reach > 10**power]
    steps = [*rungs, *Cs]
    solution, before = zero_solution(objective), None
    for index, C in enumerate(steps):
        now = (solution.W + 0, solution.Z + 0) if 0 < index < len(steps) - 1 else None
        if before is not None:
            W, Z = before
            W -= solution.W
            Z -= solution.Z
            line_search(objective, C, (solution.W, solution.Z), -W, -Z, units)
        before = now
        solution = minimise(objective, spectrum, C, solution, tol, max_iter)
        if index >= len(rungs):
            yield solution
