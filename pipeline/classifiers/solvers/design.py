"""The codes as a linear map: scores from coefficients and gradients from residuals, one block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline.classifiers.solvers.arrays import Array, Namespace, eigh

BLOCK_BYTES = 1 << 25
"""Bytes of codes in a block of rows, at most."""

MAX_BLOCK = 4096
"""Rows in a block, at most: few enough for their scores to stay in the CPU's cache, enough for fast products."""

NARROW = 3
"""Codes with this many times more columns than rows are rotated into the space of their rows: n × n for n × d."""


@dataclass(frozen=True)
class Design:
    """The matrix that multiplies the coefficients: normalised codes, and a column of ones for the intercept.

    X: (n, d) codes, an array, or `codes.spec.Rows` on disk where xp is numpy; row_scale: (n,) factors of the rows;
    centre, scale: (n_problems, d), for each problem (a fold) what is subtracted from each column, and the factor of the
    difference; intercept: whether there is a column of ones; xp: numpy or torch. The product of codes and factors is
    never formed, so the codes are not copied.
    """

    X: Array
    row_scale: Array = None
    centre: Array = None
    scale: Array = None
    intercept: bool = True
    xp: Namespace = np

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.X.shape[0])

    @property
    def width(self) -> int:
        """Number of coefficients in a column: d, and 1 for the intercept."""
        return int(self.X.shape[1]) + self.intercept

    @cached_property
    def blocks(self) -> list[slice]:
        """The blocks of rows, as slices."""
        rows = max(64, min(MAX_BLOCK, BLOCK_BYTES // (self.X.shape[1] * self.X.dtype.itemsize)))
        return [slice(start, min(start + rows, self.n)) for start in range(0, self.n, rows)]

    def zeros(self, *shape: int) -> Array:
        """Return zeros of the codes' dtype, on the codes' device."""
        if self.xp is np:
            return np.zeros(shape, self.X.dtype)
        return self.xp.zeros(shape, dtype=self.X.dtype, device=self.X.device)

    def forward(self, W: Array, problems: Array) -> Array:
        """Return the scores (n, n_columns) of coefficients (width, n_columns); problems: the problem of each column."""
        scores_of, scores = self.scorer(W, problems), self.zeros(self.n, W.shape[1])
        for rows in self.blocks:
            scores[rows] = scores_of(rows)
        return scores

    def scorer(self, W: Array, problems: Array) -> Callable[[slice], Array]:
        """Return a function that takes a block of rows and returns their scores; the arguments are as in `forward`."""
        coefficients, bias = self._for_raw_codes(W, problems)
        return lambda rows: self._scores(rows, coefficients, bias)

    def normal(self, W: Array, weights: Array) -> Array:
        """Return the product of the weighted Gram matrix of the columns and W (width, n_columns).

        weights: (n,). The Gram matrix is not formed; its statistics are the mean of those of the problems.
        """
        mean, first = self._mean_problem(), self.xp.arange(W.shape[1]) * 0
        scores_of = mean.scorer(W, first)
        residuals = ((rows, weights[rows, None] * scores_of(rows)) for rows in self.blocks)
        return mean.backward(residuals, first)

    def backward(self, residuals: Iterator[tuple[slice, Array]], problems: Array) -> Array:
        """Return the gradient (width, n_columns) of residuals that come block by block, (rows, n_columns) each."""
        total = self.zeros(self.X.shape[1], len(problems))
        sums = self.zeros(len(problems))
        for rows, block in residuals:
            sums += block.sum(0)
            if self.row_scale is not None:
                block = block * self.row_scale[rows, None]
            total += self.X[rows].T @ block
        return self._from_raw_codes(total, sums, problems)

    def _mean_problem(self) -> Design:
        """Return the design of one problem whose statistics are the means of all problems'."""
        if self.scale is None:
            return self
        return replace(self, centre=self.centre.mean(0)[None], scale=self.scale.mean(0)[None])

    def _scores(self, rows: slice, coefficients: Array, bias: Array) -> Array:
        """Return the scores of a block by coefficients for the raw codes."""
        block = self.X[rows] @ coefficients
        if self.row_scale is not None:
            block *= self.row_scale[rows, None]
        block += bias
        return block

    def _for_raw_codes(self, W: Array, problems: Array) -> tuple[Array, Array]:
        """Return the coefficients for the codes before centring and scaling, and the bias of each column."""
        coefficients, bias = (W[:-1], W[-1]) if self.intercept else (W, self.zeros(W.shape[1]))
        if self.scale is None:
            return coefficients, bias
        coefficients = coefficients * self.scale[problems].T
        return coefficients, bias - (coefficients * self.centre[problems].T).sum(0)

    def _from_raw_codes(self, total: Array, sums: Array, problems: Array) -> Array:
        """Return the gradient by W from the gradient by the coefficients and bias for the raw codes."""
        if self.scale is not None:
            total -= self.centre[problems].T * sums
            total *= self.scale[problems].T
        return self.xp.concatenate([total, sums[None]]) if self.intercept else total

    def of_problems(self, problems: slice) -> Design:
        """Return the design of some of the problems."""
        if self.scale is None:
            return self
        return replace(self, centre=self.centre[problems], scale=self.scale[problems])

    def rotated(self) -> tuple[Design, Callable[[Array], Array]]:
        """Return the design in a basis of its n rows, and a function that takes coefficients back from that basis.

        The penalty is invariant under rotation, so the problem is the same, with n columns instead of d. The rank is
        cut where eigenvalues of the n × n Gram matrix are below its rounding errors.
        """
        values, vectors = eigh(self._gram(), self.xp)
        kept = values > values[-1] * len(values) * self.xp.finfo(self.X.dtype).eps
        vectors, roots = vectors[:, kept], self.xp.sqrt(values[kept])

        def restore(W: Array) -> Array:
            inner = W[:-1] if self.intercept else W
            blocks = ((rows, (vectors[rows] / roots) @ inner) for rows in self.blocks)
            coefficients = replace(self, intercept=False).backward(blocks, self.xp.arange(W.shape[1]) * 0)
            return self.xp.concatenate([coefficients, W[-1:]]) if self.intercept else coefficients

        return Design(vectors * roots, intercept=self.intercept, xp=self.xp), restore

    def _gram(self) -> Array:
        """Return the inner products of the rows, (n, n), with the statistics of the first problem."""
        gram = self.zeros(self.n, self.n)
        for rows in self.blocks:
            left = self.normalised(rows)
            for others in self.blocks:
                if others.start <= rows.start:
                    products = left @ self.normalised(others).T
                    gram[rows, others], gram[others, rows] = products, products.T
        return gram

    def normalised(self, rows: slice | np.ndarray) -> Array:
        """Return some rows of the codes, normalised with the statistics of the first problem."""
        block = self.X[rows] if self.row_scale is None else self.X[rows] * self.row_scale[rows, None]
        return block if self.scale is None else (block - self.centre[0]) * self.scale[0]


def compact(design: Design) -> tuple[Design, Callable[[Array], Array]]:
    """Return the design, rotated if that makes it much narrower, and a function that takes coefficients back."""
    if design.n * NARROW <= design.X.shape[1]:
        return design.rotated()
    return design, lambda W: W
