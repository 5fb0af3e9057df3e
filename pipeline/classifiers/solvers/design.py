"""The codes as a linear map: scores from coefficients and gradients from residuals, one block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import linalg

BLOCK_BYTES = 1 << 25
MAX_BLOCK = 4096
"""Rows of a block: few enough for its scores to stay in the cache, enough for a matrix product to run at speed."""

NARROW = 3
"""Codes this many times as wide as they are many are rotated into the space their rows span: n × n for n × d."""


@dataclass(frozen=True)
class Design:
    """What multiplies the coefficients: each row times its `row_scale`, each column less its centre, times its scale.

    X: (n, d) codes, an array or whatever gives rows for a slice; row_scale: (n,); centre, scale: (n_problems, d), the
    statistics that each problem (a fold) has of its own; intercept: append a column of ones; xp: numpy, or torch.
    None of these is ever multiplied out, so the codes are not copied.
    """

    X: Any
    row_scale: Any = None
    centre: Any = None
    scale: Any = None
    intercept: bool = True
    xp: Any = np

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.X.shape[0])

    @property
    def width(self) -> int:
        """Number of coefficients of a column: d, and 1 for the intercept."""
        return int(self.X.shape[1]) + self.intercept

    @cached_property
    def blocks(self) -> list[slice]:
        """The slices of rows that a pass goes through."""
        rows = max(64, min(MAX_BLOCK, BLOCK_BYTES // (self.X.shape[1] * self.X.dtype.itemsize)))
        return [slice(start, min(start + rows, self.n)) for start in range(0, self.n, rows)]

    def zeros(self, *shape: int) -> Any:
        """Return zeros of the codes' dtype, where the codes are."""
        if self.xp is np:
            return np.zeros(shape, self.X.dtype)
        return self.xp.zeros(shape, dtype=self.X.dtype, device=self.X.device)

    def forward(self, W: Any, problems: Any) -> Any:
        """Return the scores (n, n_columns) of coefficients (width, n_columns); problems: the problem of each column."""
        unfolded = self._unfold(W, problems)
        scores = self.zeros(self.n, W.shape[1])
        for rows in self.blocks:
            scores[rows] = self._scores(rows, *unfolded)
        return scores

    def normal(self, W: Any, weights: Any) -> Any:
        """Return what the weighted Gram matrix of the columns makes of W (width, n_columns), without making it.

        weights: (n,). Of the problems' statistics it takes the mean.
        """
        pooled, first = self._pooled(), self.xp.arange(W.shape[1]) * 0
        unfolded = pooled._unfold(W, first)
        return pooled.backward(
            ((rows, weights[rows, None] * pooled._scores(rows, *unfolded)) for rows in self.blocks), first
        )

    def backward(self, residuals: Iterator[tuple[slice, Any]], problems: Any) -> Any:
        """Return the gradient (width, n_columns) of residuals that come block by block, (rows, n_columns) each."""
        total = self.zeros(self.X.shape[1], len(problems))
        sums = self.zeros(len(problems))
        for rows, block in residuals:
            sums += block.sum(0)
            if self.row_scale is not None:
                block = block * self.row_scale[rows, None]
            total += self.X[rows].T @ block
        return self._fold(total, sums, problems)

    def _pooled(self) -> Design:
        if self.scale is None:
            return self
        return replace(self, centre=self.centre.mean(0)[None], scale=self.scale.mean(0)[None])

    def _scores(self, rows: slice, slopes: Any, bias: Any) -> Any:
        block = self.X[rows] @ slopes
        if self.row_scale is not None:
            block *= self.row_scale[rows, None]
        block += bias
        return block

    def _unfold(self, W: Any, problems: Any) -> tuple[Any, Any]:
        """Return the coefficients of the codes as they are, and what is added to the scores."""
        slopes, bias = (W[:-1], W[-1]) if self.intercept else (W, self.zeros(W.shape[1]))
        if self.scale is None:
            return slopes, bias
        slopes = slopes * self.scale[problems].T
        return slopes, bias - (slopes * self.centre[problems].T).sum(0)

    def _fold(self, total: Any, sums: Any, problems: Any) -> Any:
        """Return the gradient in the coefficients from the one in those of the codes as they are."""
        if self.scale is not None:
            total -= self.centre[problems].T * sums
            total *= self.scale[problems].T
        return self.xp.concatenate([total, sums[None]]) if self.intercept else total

    def on(self, xp: Any) -> Design:
        """Return the design in another namespace, on its default device."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        arrays = {name: xp.asarray(value) for name, value in given.items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays, xp=xp)

    def of(self, problems: slice) -> Design:
        """Return the design with the statistics of some of the problems."""
        if self.scale is None:
            return self
        return replace(self, centre=self.centre[problems], scale=self.scale[problems])

    def rotated(self) -> tuple[Design, Callable[[Any], Any]]:
        """Return the design in the basis its n rows span, and what takes coefficients back from there.

        The penalty does not see a rotation, so the problem is the same, with n columns where there were d. Rank is
        cut where the eigenvalues of the n × n Gram matrix drown in its rounding.
        """
        gram = self._gram()
        values, vectors = eigh(gram, self.xp)
        kept = values > values[-1] * len(values) * self.xp.finfo(self.X.dtype).eps
        vectors, roots = vectors[:, kept], self.xp.sqrt(values[kept])

        def restore(W: Any) -> Any:
            inner = W[:-1] if self.intercept else W
            blocks = ((rows, (vectors[rows] / roots) @ inner) for rows in self.blocks)
            slopes = replace(self, intercept=False).backward(blocks, self.xp.arange(W.shape[1]) * 0)
            return self.xp.concatenate([slopes, W[-1:]]) if self.intercept else slopes

        return Design(vectors * roots, intercept=self.intercept, xp=self.xp), restore

    def _gram(self) -> Any:
        """Return the inner products of the rows (n, n), with the statistics of the first problem."""
        gram = self.zeros(self.n, self.n)
        for rows in self.blocks:
            left = self._rows(rows)
            for others in self.blocks:
                if others.start <= rows.start:
                    products = left @ self._rows(others).T
                    gram[rows, others], gram[others, rows] = products, products.T
        return gram

    def _rows(self, rows: slice) -> Any:
        block = self.X[rows] if self.row_scale is None else self.X[rows] * self.row_scale[rows, None]
        return block if self.scale is None else (block - self.centre[0]) * self.scale[0]


def compact(design: Design) -> tuple[Design, Callable[[Any], Any]]:
    """Return the design, rotated if that makes it much narrower, and what takes coefficients back from there."""
    if design.n * NARROW <= design.X.shape[1]:
        return design.rotated()
    return design, lambda W: W


def eigh(matrix: Any, xp: Any) -> tuple[Any, Any]:
    """Return eigenvalues, ascending, and eigenvectors of a symmetric matrix, which may be overwritten."""
    if xp is np:
        return linalg.eigh(matrix, driver="evd", overwrite_a=True, check_finite=False)
    values, vectors = xp.linalg.eigh(matrix)
    return values, vectors
