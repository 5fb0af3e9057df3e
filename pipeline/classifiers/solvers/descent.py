"""Preconditioned nonlinear conjugate gradients for many convex problems together, with one matrix product for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.classifiers.solvers.arrays import Array, Namespace, eigh
from pipeline.classifiers.solvers.design import Design
from pipeline.classifiers.solvers.losses import Derivatives, Loss

RANK = 128
"""Directions of the codes that the preconditioner knows; it treats all others as equally long."""

WINDOW = 4
"""Iterations, at least, over which a decrease of the objective is measured to predict the decrease that remains."""

LOOSE = 5
"""How many times the tolerance the bound of the gradient may be when the predicted decrease is below the tolerance."""

CHUNK = 16
"""Columns whose line search is done together: so many floats fill a line of the CPU's cache."""

MAX_WARM_UPS = 4
"""Number of values of C below the first one, at most, that are solved before it, each ten times the one before."""

TINY = 1e-300
"""Added to denominators that may be 0."""


@dataclass(frozen=True)
class Objective:
    """½ ||w||² + C times the loss, for each unit of the loss; the intercept counts in ||w||² where it is penalised."""

    design: Design
    loss: Loss
    penalised: bool = True

    def columns(self, units: Array) -> Array:
        """Return the columns of the units, side by side."""
        count = self.loss.columns
        return (units[:, None] * count + self.design.xp.arange(count)).reshape(-1)

    def problems(self, units: Array) -> Array:
        """Return the problem of each column of the units."""
        return self.loss.problems[self.columns(units) // self.loss.columns]

    def per_column(self, values: Array, like: Array) -> Array:
        """Return the value of each unit for each of its columns, in the dtype of `like`, (width, n_columns)."""
        xp = self.design.xp
        return xp.asarray(values[xp.arange(like.shape[1]) // self.loss.columns], dtype=like.dtype)

    def dot(self, A: Array, B: Array) -> Array:
        """Return the inner products (n_units,) float64 of coefficients, summed over the columns of a unit."""
        return (A * B).sum(0, dtype=self.design.xp.float64).reshape(-1, self.loss.columns).sum(1)

    def penalised_part(self, W: Array) -> Array:
        """Return a view of the coefficients that are penalised."""
        return W if self.penalised or not self.design.intercept else W[:-1]

    def forward(self, W: Array, units: Array) -> Array:
        """Return the scores of coefficients."""
        return self.design.forward(W, self.problems(units))

    def value_and_gradient(
        self, C: float, W: Array, scores: Callable[[slice], Array], units: Array
    ) -> tuple[Array, Array]:
        """Return the objective (n_units,) float64 and its gradient (width, n_columns) at W.

        scores: takes a block of rows and returns its scores by W, (rows, n_columns).
        """
        losses = []

        def residuals() -> Iterator[tuple[slice, Array]]:
            for rows in self.design.blocks:
                value, residual = self.loss.value(rows, scores(rows), units)
                losses.append(value)
                yield rows, residual

        gradient = self.design.backward(residuals(), self.problems(units))
        gradient *= C
        penalised = self.penalised_part(W)
        self.penalised_part(gradient)[...] += penalised
        return 0.5 * self.dot(penalised, penalised) + C * self._total(losses), gradient

    def along(self, Z: Array, D: Array, units: Array) -> Derivatives:
        """Return a function for the first and second derivative (n_units,) by t of the loss at scores Z + t D."""
        parts = [self.loss.along(rows, Z[rows], D[rows], units) for rows in self.design.blocks]

        def derivatives(t: Array) -> tuple[Array, Array]:
            firsts, seconds = zip(*(part(self.per_column(t, Z)) for part in parts), strict=True)
            return self._total(firsts), self._total(seconds)

        return derivatives

    def chunks(self, units: Array) -> Iterator[tuple[slice, slice]]:
        """Yield slices of a few units, and of their columns, for work that needs no product with the codes."""
        step = max(1, CHUNK // self.loss.columns)
        for first in range(0, len(units), step):
            last = min(first + step, len(units))
            yield slice(first, last), slice(first * self.loss.columns, last * self.loss.columns)

    def curvature(self, Z: Array, units: Array) -> Array:
        """Return the curvature (n_units,) of the loss at scores Z, summed over the rows."""
        return self._total([self.loss.curvature(rows, Z[rows], units) for rows in self.design.blocks])

    def gap_bound(self, C: float, G: Array, curvature: Array) -> Array:
        """Return an upper bound (n_units,) of how far the objective is above its minimum, from the gradient G.

        The penalty makes it 1-strongly convex: ½ ||G||². For an intercept that is not penalised it is twice Newton's
        estimate.
        """
        penalised = self.penalised_part(G)
        gap = 0.5 * self.dot(penalised, penalised)
        if not self.penalised and self.design.intercept:
            gap += self.dot(G[-1:], G[-1:]) / (C * curvature + TINY)
        return gap

    def _total(self, parts: Sequence[Array]) -> Array:
        return sum(self.design.xp.asarray(part, dtype=self.design.xp.float64) for part in parts)


@dataclass(frozen=True)
class Spectrum:
    """The longest directions of the codes: vectors (width, rank), and their mean squares over the rows (rank,).

    Found by subspace iteration from a fixed random start (Halko, Martinsson and Tropp, "Finding structure with
    randomness", 2011); the preconditioner made of them is Nyström's (Frangella, Tropp and Udell, "Randomized Nyström
    preconditioning", 2023). It was as good as the Cholesky factor of the Gram matrix, for a few products.
    """

    vectors: Array
    squares: Array

    @classmethod
    def estimate(cls, design: Design, weights: Array, rank: int = RANK) -> Spectrum:
        """Return the spectrum of the rows of a design; weights: (n,)."""
        xp, exact = design.xp, design.width <= 2 * rank
        start = np.eye(design.width) if exact else np.random.default_rng(0).normal(size=(design.width, rank + 16))
        basis = xp.asarray(start, dtype=design.X.dtype)
        for _ in range(0 if exact else 2):
            basis, _ = xp.linalg.qr(design.normal(basis, weights))
        small = basis.T @ design.normal(basis, weights)
        squares, inner = eigh((small + small.T) / 2, xp)
        kept = slice(-min(rank, len(squares)), None)
        return cls(basis @ inner[:, kept], xp.clip(squares[kept], 0, None) / (weights.sum() + TINY))

    def precondition(self, G: Array, factors: Array) -> Array:
        """Return P⁻¹ G for P = 1 + factor × the codes' Gram matrix, up to a constant; factors: (n_columns,)."""
        floor, along = 1 + factors * self.squares[0], 1 + self.squares[:, None] * factors
        return G + self.vectors @ ((floor / along - 1) * (self.vectors.T @ G))


@dataclass
class Solution:
    """Coefficients W (width, n_columns), their scores Z (n, n_columns), iterations and convergence (n_units,)."""

    W: Array
    Z: Array
    iterations: np.ndarray
    converged: np.ndarray


@dataclass(frozen=True)
class Tolerance:
    """When to stop: tol: distance of the objective to its minimum, relative to itself; max_iter: iterations."""

    tol: float = 2e-5
    max_iter: int = 1000


def zero_solution(objective: Objective) -> Solution:
    """Return the solution for C = 0."""
    design, units = objective.design, objective.loss.units
    n_columns = units * objective.loss.columns
    W, Z = design.zeros(design.width, n_columns), design.zeros(design.n, n_columns)
    return Solution(W, Z, np.zeros(units, int), np.zeros(units, bool))


@dataclass
class _Descent:
    """State of the units that are not solved yet.

    units: (n_units,); W, Z: coefficients and scores of their columns; curvature: (n_units,) of the loss; factors:
    (n_columns,) of the preconditioner; values: the objective after each iteration, (n_units,); gradient, previous: the
    gradients of this iteration and the last one, (width, n_columns); direction: the last direction; norms: (n_units,)
    squared norms of the previous gradient in the preconditioner's metric.
    """

    units: Array
    W: Array
    Z: Array
    curvature: Array
    factors: Array
    values: list[Array] = field(default_factory=list)
    gradient: Array = None
    previous: Array = None
    direction: Array = None
    norms: Array = None

    def keep(self, kept: Array, columns: Array) -> None:
        """Drop the units that are solved; kept: (n_units,) bool, columns: (n_columns,) bool."""
        self.units, self.curvature, self.factors = self.units[kept], self.curvature[kept], self.factors[columns]
        self.values = [value[kept] for value in self.values]
        self.W, self.Z, self.gradient = self.W[:, columns], self.Z[:, columns], self.gradient[:, columns]
        if self.direction is not None:
            self.direction, self.previous = self.direction[:, columns], self.previous[:, columns]
            self.norms = self.norms[kept]


def minimise(objective: Objective, spectrum: Spectrum, C: float, solution: Solution, tolerance: Tolerance) -> Solution:
    """Return the minimum for C, starting at the solution for another C, which is overwritten.

    A unit is solved when its objective is above its minimum by no more than `tol` times itself. Either the bound of the
    gradient shows this, or the decrease over the last iterations predicts it and the bound is at most five times as
    large (in measurements the bound is ten to thirty times too large where C is large). An iteration takes one product
    with the codes and one with their transpose. These are Polak and Ribière's conjugate gradients, which took a third
    of the products of Newton-CG (Keerthi and DeCoste 2005; Lin, Weng and Keerthi 2008): the latter solves for a Hessian
    whose margins have changed before it is done.
    """
    units, max_iter = objective.design.xp.arange(objective.loss.units), tolerance.max_iter
    curvature = objective.curvature(solution.Z, units)
    state = _Descent(units, solution.W, solution.Z, curvature, objective.per_column(C * curvature, solution.W))
    solution = Solution(solution.W, solution.Z, np.full(len(units), max_iter), np.zeros(len(units), bool))
    for iteration in range(max_iter + 1):
        value, state.gradient = objective.value_and_gradient(C, state.W, state.Z.__getitem__, state.units)
        solved = _solved(objective, C, state, value, tolerance.tol)
        if iteration == max_iter or 8 * int(solved.sum()) >= len(solved):
            _store(objective, state, solved, solution, iteration)
            if iteration == max_iter or bool(solved.all()):
                break
            state.keep(~solved, objective.per_column(~solved, state.W) > 0)
        _advance(objective, spectrum, C, state)
    return solution


def _solved(objective: Objective, C: float, state: _Descent, value: Array, tol: float) -> Array:
    """Return for each unit whether its objective is within `tol` of its minimum, (n_units,) bool."""
    state.values.append(value)
    bound = objective.gap_bound(C, state.gradient, state.curvature)
    allowed = tol * value
    remaining = remaining_decrease(state.values, objective.design.xp)
    return (bound <= allowed) | ((bound <= LOOSE * allowed) & (remaining <= 0.5 * allowed))


def remaining_decrease(values: Sequence[Array], xp: Namespace) -> Array:
    """Return how far each objective will still decrease, extrapolated from its decrease over the last iterations.

    values: (n_units,) after each iteration. The decreases over two windows, which are longer the more iterations there
    were, give the rate. A rate better than a quarter is not believed, because the first steps decrease faster than
    those that follow.
    """
    window = max(WINDOW, len(values) // 6)
    if len(values) <= 2 * window:
        return values[-1] + float("inf")
    earlier = values[-1 - 2 * window] - values[-1 - window]
    latest = values[-1 - window] - values[-1]
    slowing = (earlier - latest) * (earlier > latest)
    slows = slowing >= 1e-9 * abs(latest)  # otherwise no end is in sight
    rest = xp.where(slows, latest * latest / xp.where(slows, slowing + TINY, 1.0), float("inf"))
    return xp.maximum(rest, latest / 3)


def _store(objective: Objective, state: _Descent, solved: Array, solution: Solution, iteration: int) -> None:
    """Write the state to the solution, which may share its arrays."""
    if state.W is not solution.W:
        columns = objective.columns(state.units)
        solution.W[:, columns], solution.Z[:, columns] = state.W, state.Z
    units = np.asarray(state.units[solved].tolist(), int)
    solution.iterations[units], solution.converged[units] = iteration, True


def _advance(objective: Objective, spectrum: Spectrum, C: float, state: _Descent) -> None:
    """Take a step of conjugate gradients."""
    steepest = spectrum.precondition(state.gradient, state.factors)
    norms = objective.dot(steepest, state.gradient)
    if state.direction is None:
        state.direction = -steepest
    else:
        change = norms - objective.dot(steepest, state.previous)
        state.direction *= objective.per_column((change * (change > 0)) / (state.norms + TINY), state.W)
        state.direction -= steepest
        uphill = objective.per_column(objective.dot(state.direction, state.gradient) >= 0, state.W) > 0
        state.direction[:, uphill] = -steepest[:, uphill]
    state.previous, state.norms = state.gradient, norms
    scores = objective.forward(state.direction, state.units)
    line_search(objective, C, (state.W, state.Z), (state.direction, scores), state.units)


def line_search(
    objective: Objective, C: float, point: tuple[Array, Array], direction: tuple[Array, Array], units: Array
) -> None:
    """Move a point along a direction to the minimum, in place.

    point, direction: coefficients (width, n_columns) and their scores (n, n_columns). Newton's method within a bracket:
    the derivative along the direction increases, and is piecewise linear for the hinges.
    """
    (W, Z), (D, scores) = point, direction
    first = objective.dot(objective.penalised_part(W), objective.penalised_part(D))
    second = objective.dot(objective.penalised_part(D), objective.penalised_part(D))
    for chunk, columns in objective.chunks(units):
        derivatives = objective.along(Z[:, columns], scores[:, columns], units[chunk])
        t = minimum_along(derivatives, C, first[chunk], second[chunk], objective.design.xp)
        step = objective.per_column(t, D[:, columns])
        W[:, columns] += step * D[:, columns]
        Z[:, columns] += step * scores[:, columns]


def minimum_along(loss: Derivatives, C: float, first: Array, second: Array, xp: Namespace) -> Array:
    """Return t (n_units,) at the minimum of C times a loss and a parabola along a direction.

    loss: derivatives of the loss; first, second: (n_units,) derivatives of the parabola at t = 0.
    """
    t, low, high = xp.zeros_like(first), xp.zeros_like(first), xp.full_like(first, float("inf"))
    limit = None
    for _ in range(12):
        loss_first, loss_second = loss(t)
        derivative, curvature = first + t * second + C * loss_first, second + C * loss_second
        limit = 0.05 * abs(derivative) if limit is None else limit
        low, high = xp.where(derivative < 0, t, low), xp.where(derivative > 0, t, high)
        newton = t - derivative / (curvature + TINY)
        inside = (newton >= low) & (newton <= high)
        t = xp.where(inside, newton, xp.where(high < float("inf"), (low + high) / 2, 2 * low + 1))
        if bool((abs(derivative) <= limit).all()) and bool(inside.all()):
            break
    return t


def solve_path(
    objective: Objective, spectrum: Spectrum, Cs: Sequence[float], tolerance: Tolerance
) -> Iterator[Solution]:
    """Yield the solution for each C, ascending; all of them share the same arrays.

    Each starts at the minimum along the line through the two solutions before it. Where the first C is large, smaller
    values are solved before it: without them it takes three times the iterations.
    """
    units = objective.design.xp.arange(objective.loss.units)
    reach = Cs[0] * float(spectrum.squares.sum())
    warm_ups = [Cs[0] / 10**power for power in range(MAX_WARM_UPS, 0, -1) if reach > 10**power]
    steps = [*warm_ups, *Cs]
    solution, before = zero_solution(objective), None
    for index, C in enumerate(steps):
        now = (solution.W + 0, solution.Z + 0) if 0 < index < len(steps) - 1 else None
        if before is not None:
            W, Z = before
            W -= solution.W
            Z -= solution.Z
            line_search(objective, C, (solution.W, solution.Z), (-W, -Z), units)
        before = now
        solution = minimise(objective, spectrum, C, solution, tolerance)
        if index >= len(warm_ups):
            yield solution
