"""Fit classifiers to rows that stay on disk, in few passes: Newton's steps by a sample's Hessian, corrected by L-BFGS.

A sample of the rows that fits into memory is solved first. At its solution its Hessian is taken, and factored; in the
variables in which that Hessian is the identity, the objective of all rows is nearly a round bowl, which L-BFGS descends
in few steps (Byrd et al., "On the use of stochastic Hessian information in optimization methods for machine learning",
2011). A pass reads each row once, and keeps no scores: those of a million rows and a thousand classes have 4 GB.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from scipy import linalg

from pipeline.classifiers.solvers.descent import Objective, Solution, Spectrum, Tolerance, solve_path
from pipeline.classifiers.solvers.design import Design

logger = logging.getLogger(__name__)

MEMORY = 1 << 30
"""Bytes for the sample and the factors, if none are given."""

SAMPLE_TOLERANCE = 1e-3
"""How exactly the sample is solved, which is only where the passes start."""

ROWS_PER_COLUMN = 16
"""Rows of the sample, for each column of the codes, that a Hessian is taken of."""

SHRINKAGE = 0.1
"""How much of a Hessian comes from the mean Gram matrix where it is of no rows; less, the more rows it is of.

1 took fewer passes, but hid what was left to gain in the directions that no row of the Hessian has.
"""

LEAST_OF_CLASS = 64
"""Rows of each class in the sample, at least, where there are so many."""

FIRST_ROUND = 5
"""Passes with the Hessian of the sample's own solution; then one is taken where the passes have led.

Each further round is twice as long.
"""

HISTORY = 10
"""Steps that L-BFGS remembers."""

NOISE = 1e-7
"""What an objective may increase by, relative to itself, without being taken for an increase: float32 has no more."""

SAFETY = 4
"""By how much what is left to gain must be below the tolerance."""


def is_for(design: Design, n_columns: int, memory: int | None) -> bool:
    """Whether rows are solved here: more are on disk than the sample holds, or their scores would need far more memory.

    n_columns: of the scores; memory: as in `minimise`.
    """
    itemsize, sampled = design.X.dtype.itemsize, sample_rows(design, n_columns, memory or MEMORY)
    if not isinstance(design.X, np.ndarray):
        return design.n > sampled
    return 4 * design.n * n_columns * itemsize > 2 * max(design.X.nbytes, MEMORY) and design.n > sampled


def sample_rows(design: Design, n_columns: int, memory: int) -> int:
    """Return the rows of a sample: half of the memory holds them, and four rows of scores beside each."""
    return max(1, memory // 2 // (design.X.dtype.itemsize * (design.width + 4 * n_columns)))


def minimise(objective: Objective, C: float, tolerance: Tolerance, memory: int | None) -> Solution:
    """Return the minimum, without scores; the rows are read once to draw the sample, and then once in each pass.

    memory: bytes for the sample and the factors of its Hessians; iterations: the number of passes. A unit is solved
    when a quarter of the tolerance is more than its last step gained, and more than half the squared gradient in the
    variables of the sample's Hessian, by which Newton's method expects the objective to be above its minimum. (In
    measurements it was up to five times further above: the sample has another Hessian.)
    """
    design, n_columns, memory = objective.design, objective.loss.units * objective.loss.columns, memory or MEMORY
    sample = draw_sample(objective, sample_rows(design, n_columns, memory))
    spectrum = Spectrum.estimate(sample.design, sample.loss.weights.mean(1))
    roughly = replace(tolerance, tol=max(tolerance.tol, SAMPLE_TOLERANCE))
    solution = next(solve_path(sample, spectrum, [C], roughly))
    n_factors = min(n_columns, max(1, memory // 4 // (design.X.dtype.itemsize * design.width**2)))
    solution = Solution(solution.W, solution.Z[:0], solution.iterations * 0, solution.iterations > tolerance.max_iter)
    descent = _Descent(objective, C, tolerance.tol / SAFETY, solution, np.arange(objective.loss.units))
    mean, length, passes = mean_gram(sample), FIRST_ROUND, 0
    while passes < tolerance.max_iter and len(descent.units):
        last = min(passes + length, tolerance.max_iter)
        factors = HessianFactors.of(sample, mean, C, solution.W, descent.units, n_factors)
        descent.run(factors, range(passes + 1, last + 1))
        passes, length = last, 2 * length
    return solution


def draw_sample(objective: Objective, n_rows: int) -> Objective:
    """Return the objective of some of the rows, in memory, which stand for all.

    Rows are drawn by class, and those of rare classes more often, for which weights make up.
    """
    design, loss = objective.design, objective.loss
    strata = np.zeros(design.n, int) if loss.labels.ndim == 2 else loss.labels
    rows, factors = _draw_rows(strata, n_rows, np.random.default_rng(0))
    weights = (loss.weights[rows] * factors[:, None]).astype(loss.weights.dtype)
    row_scale = None if design.row_scale is None else design.row_scale[rows]
    part = replace(design, X=_gather(design, rows), row_scale=row_scale)
    return replace(objective, design=part, loss=replace(loss, labels=loss.labels[rows], weights=weights))


def _draw_rows(strata: np.ndarray, n_rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return increasing row numbers (m,), and how many rows each of them stands for; strata: (n,) int64."""
    counts = np.bincount(strata)
    least = min(LEAST_OF_CLASS, max(1, n_rows // (2 * len(counts))))
    taken = np.minimum(counts, np.maximum(least, n_rows * counts // len(strata)))
    order = rng.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    starts = np.cumsum(counts) - counts
    rows = np.sort(np.concatenate([order[first : first + m] for first, m in zip(starts, taken, strict=True)]))
    return rows, (counts / np.maximum(taken, 1))[strata[rows]]


def _gather(design: Design, rows: np.ndarray) -> np.ndarray:
    """Return some rows of the codes, (m, d), read block by block; rows: increasing row numbers."""
    bounds = [np.searchsorted(rows, (block.start, block.stop)) for block in design.blocks]
    found = np.empty((len(rows), design.X.shape[1]), design.X.dtype)
    for block, (first, last) in zip(design.blocks, bounds, strict=True):
        if first < last:
            found[first:last] = design.X[block][rows[first:last] - block.start]
    return found


@dataclass(frozen=True)
class HessianFactors:
    """Cholesky factors of Hessians: L of L Lᵀ = 1 + C Σ cᵢ xᵢ xᵢᵀ, c being the curvature of the loss at a row.

    factors: lower triangles (width, width); columns: for each factor the columns of coefficients that it is for, whose
    mean curvature it has.
    """

    factors: list[np.ndarray]
    columns: list[np.ndarray]

    @classmethod
    def of(
        cls, sample: Objective, mean: np.ndarray, C: float, W: np.ndarray, units: np.ndarray, n_factors: int
    ) -> HessianFactors:
        """Return the factors of some units at coefficients; columns of like curvature share one, if there are fewer.

        The fewer rows a Hessian is of, the more it is drawn towards the `mean_gram` of the whole sample.
        """
        rng, design, loss = np.random.default_rng(0), sample.design, sample.loss
        own = sample.columns(units)
        curvatures = loss.curvatures(slice(None), sample.forward(W[:, own], units), units)
        columns = np.array_split(np.argsort(curvatures.sum(0), kind="stable"), min(n_factors, len(own)))
        factors = []
        for group in columns:
            rows, weights = _important(curvatures[:, group].mean(1), ROWS_PER_COLUMN * design.width, rng)
            share = SHRINKAGE * design.width / (design.width + len(rows))
            hessian = C * ((1 - share) * _gram(design, rows, weights) + share * weights.sum() * mean)
            factors.append(_cholesky(hessian.astype(np.float64)).astype(hessian.dtype))
        return cls(factors, [own[group] for group in columns])

    def variables(self, W: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the variables, in which the Hessian is the identity, of the coefficients of some columns."""
        return self._each(W, columns, lambda factor, part: factor.T @ part)

    def coefficients(self, U: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the coefficients of variables."""
        return self._each(U, columns, partial(linalg.solve_triangular, trans="T", lower=True, check_finite=False))

    def gradient(self, G: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the gradient by the variables, from that by the coefficients."""
        return self._each(G, columns, partial(linalg.solve_triangular, lower=True, check_finite=False))

    def _each(
        self, values: np.ndarray, columns: np.ndarray, change: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        changed = np.empty_like(values)
        for factor, group in zip(self.factors, self.columns, strict=True):
            places = np.flatnonzero(np.isin(columns, group))
            if len(places):
                changed[:, places] = change(factor, values[:, places])
        return changed


def mean_gram(sample: Objective) -> np.ndarray:
    """Return the mean of the Gram matrices (width, width) of all rows of a sample, by their weights."""
    weights = sample.loss.weights.mean(1)
    mean: np.ndarray = sum(_gram(sample.design, rows, weights[rows]) for rows in sample.design.blocks) / weights.sum()
    return mean


def _gram(design: Design, rows: slice | np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the Gram matrix (width, width) of some rows' columns; weights: (m,) of the rows."""
    codes = design.normalised(rows)
    if design.intercept:
        codes = np.hstack([codes, np.ones((len(codes), 1), codes.dtype)])
    codes *= np.sqrt(weights)[:, None].astype(codes.dtype)
    gram: np.ndarray = codes.T @ codes
    return gram


def _cholesky(hessian: np.ndarray) -> np.ndarray:
    """Return the factor of a Hessian (width, width) float64 plus that of the penalty, which is 1; it is overwritten.

    Its sums are of float32: what these may be wrong by is added, or it might have no factor where C is large.
    """
    hessian[np.diag_indices_from(hessian)] += 1 + np.finfo(np.float32).eps * np.trace(hessian)
    factor: np.ndarray = linalg.cholesky(hessian, lower=True, overwrite_a=True, check_finite=False)
    return factor


def _important(curvature: np.ndarray, n_rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and their weights, whose weighted Gram matrix is that of all rows by their curvature, or is near it.

    curvature: (n,) >= 0. If more than `n_rows` have any, so many are drawn in proportion to it.
    """
    rows, total = np.flatnonzero(curvature), float(curvature.sum(dtype=np.float64))
    if len(rows) <= n_rows:
        return rows, curvature[rows]
    drawn = rng.choice(len(curvature), n_rows, p=curvature.astype(np.float64) / total)
    return drawn, np.full(n_rows, total / n_rows, curvature.dtype)


@dataclass
class _Point:
    """Variables U (width, n_columns) with the objective (n_units,) float64 there, and its gradient.

    slopes: the gradient by the coefficients, which outlives the variables; gained: (n_units,) what the last step took
    off the objective, relative to it; infinity before a good step.
    """

    U: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    slopes: np.ndarray
    gained: np.ndarray

    def take(self, kept: np.ndarray, columns: np.ndarray) -> _Point:
        """Return some units of the point, and their columns."""
        U, gradient, slopes = (array[:, columns] for array in (self.U, self.gradient, self.slopes))
        return _Point(U, self.value[kept], gradient, slopes, self.gained[kept])

    def update(self, other: _Point, moved: np.ndarray, columns: np.ndarray) -> None:
        """Move some units, and their columns, to another point."""
        self.gained = np.where(moved, self.value / other.value - 1, np.inf)
        self.value[moved] = other.value[moved]
        for mine, theirs in ((self.U, other.U), (self.gradient, other.gradient), (self.slopes, other.slopes)):
            mine[:, columns] = theirs[:, columns]


@dataclass
class _Step:
    """A step of t times a direction (width, n_columns); the best t lies between low and high, (n_units,) each."""

    direction: np.ndarray
    t: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def along(cls, direction: np.ndarray, n_units: int) -> _Step:
        """Return a step of length 1, which is Newton's."""
        return cls(direction, np.ones(n_units), np.zeros(n_units), np.full(n_units, np.inf))

    def take(self, kept: np.ndarray, columns: np.ndarray) -> _Step:
        """Return the steps of some units."""
        return _Step(self.direction[:, columns], self.t[kept], self.low[kept], self.high[kept])

    def search(self, first: np.ndarray, slope: np.ndarray, good: np.ndarray) -> None:
        """Choose the next t: 1 after a good step, otherwise where the slope would be 0 if it were a straight line.

        first, slope: (n_units,) of the objective at 0 and at t.
        """
        self.low, self.high = np.where(slope < 0, self.t, self.low), np.where(slope < 0, self.high, self.t)
        steeper = np.maximum(slope - first, np.finfo(float).tiny)
        t = np.clip(-self.t * first / steeper, 0.1 * self.t, 10 * self.t)
        middle = np.where(np.isfinite(self.high), (self.low + np.minimum(self.high, 1e300)) / 2, 2 * self.low)
        t = np.where((t > self.low) & (t < self.high), t, middle)
        self.t = np.where(good, 1, t)
        self.low, self.high = np.where(good, 0, self.low), np.where(good, np.inf, self.high)


@dataclass
class _Descent:
    """L-BFGS for each unit, all of them in the same passes; a unit has steps of its own, and ends when it is solved.

    limit: of the decrease that is left, relative to the objective; solution: where it starts, and what it changes;
    units: those that are not solved; factors: of their Hessians, in whose variables are `here`, where the units are
    once a pass has been made, and history: the last steps (width, n_columns), how the gradient changed with them, and
    (n_units,) the inverse of their products, 0 where there is none.
    """

    objective: Objective
    C: float
    limit: float
    solution: Solution
    units: np.ndarray
    factors: HessianFactors = field(init=False)
    here: _Point | None = None
    history: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def run(self, factors: HessianFactors, passes: range) -> None:
        """Take some passes, fewer if all units are solved, in the variables of factors; passes: their numbers."""
        self.factors, self.history, last = factors, [], passes[-1]
        columns = self.objective.columns(self.units)
        U = factors.variables(self.solution.W[:, columns], columns)
        if self.here is None:
            here, passes = self.evaluate(U, passes[0]), passes[1:]
        else:  # no pass is needed to know what the last one has shown
            here = replace(self.here, U=U, gradient=factors.gradient(self.here.slopes, columns))
        step = _Step.along(-here.gradient, len(self.units))
        for number in passes:
            here, step = self.drop_solved(here, step, number - 1)
            if not len(self.units):
                return
            there = self.evaluate(here.U + self.objective.per_column(step.t, here.U) * step.direction, number)
            step = self.move(here, there, step)
        self.here, _ = self.drop_solved(here, step, last)

    def evaluate(self, U: np.ndarray, number: int) -> _Point:
        """Return the point of variables, by one pass over the rows; number: of the pass, which is said."""
        objective, columns = self.objective, self.objective.columns(self.units)
        W = self.factors.coefficients(U, columns)
        scores = objective.design.scorer(W, objective.problems(self.units))
        value, gradient = objective.value_and_gradient(self.C, W, scores, self.units)
        point = _Point(U, value, self.factors.gradient(gradient, columns), gradient, np.full(len(value), np.inf))
        left, what = float(self.left(point).max()), "Pass %d over the codes: %.1g of the objective is left to gain"
        logger.info(f"{what}, and %.1g will do.", number, left, self.limit)
        return point

    def left(self, point: _Point) -> np.ndarray:
        """Return how far each unit's objective will still decrease, relative to itself, as Newton's method expects."""
        left: np.ndarray = 0.5 * self.objective.dot(point.gradient, point.gradient) / point.value
        return left

    def drop_solved(self, point: _Point, step: _Step, passes: int) -> tuple[_Point, _Step]:
        """Write a point to the solution, and return it and its step without the units that it solves."""
        columns, solved = self.objective.columns(self.units), np.maximum(self.left(point), point.gained) <= self.limit
        self.solution.W[:, columns] = self.factors.coefficients(point.U, columns)
        self.solution.converged[self.units], self.solution.iterations[self.units] = solved, passes
        kept, own = ~solved, self.objective.per_column(~solved, point.U) > 0
        self.units = self.units[kept]
        self.history = [(s[:, own], y[:, own], inverse[kept]) for s, y, inverse in self.history]
        return point.take(kept, own), step.take(kept, own)

    def direction(self, gradient: np.ndarray) -> np.ndarray:
        """Return the directions of descent: Newton's, corrected by what the last steps have shown of the Hessian.

        The two loops of Nocedal, "Updating quasi-Newton matrices with limited storage" (1980).
        """
        dot, spread = self.objective.dot, partial(self.objective.per_column, like=gradient)
        direction, shares = -gradient, []
        for s, y, inverse in reversed(self.history):
            shares.append(inverse * dot(s, direction))
            direction -= spread(shares[-1]) * y
        for s, y, inverse in self.history:
            direction += spread(shares.pop() - inverse * dot(y, direction)) * s
        uphill = spread(dot(direction, gradient) >= 0) > 0
        direction[:, uphill] = -gradient[:, uphill]
        return direction

    def move(self, here: _Point, there: _Point, step: _Step) -> _Step:
        """Move the units whose step was good, in place, and return the next step of each unit.

        Good is a step that decreases the objective and flattens the slope (Wolfe's conditions). A unit whose step was
        not good tries another one on the same line.
        """
        first, slope = (self.objective.dot(step.direction, point.gradient) for point in (here, there))
        allowed = here.value + 1e-4 * step.t * first + NOISE * here.value
        good = (there.value <= allowed) & (abs(slope) <= 0.9 * abs(first))
        columns = self.objective.per_column(good, here.U) > 0
        s, y = self.objective.per_column(step.t, here.U) * step.direction, there.gradient - here.gradient
        products = self.objective.dot(s, y)
        inverse = np.where(good & (products > 0), 1 / np.where(products > 0, products, 1), 0)
        self.history = [*self.history[1 - HISTORY :], (s, y, inverse)]
        here.update(there, good, columns)
        step.search(first, slope, good)
        step.direction[:, columns] = self.direction(here.gradient)[:, columns]
        return step
