"""Arrays of NumPy or torch: the solvers compute in the namespace of either."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from scipy import linalg

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Array = Any
"""numpy.ndarray, or torch.Tensor where `xp` is torch: no type of theirs says what both can do."""

Namespace = Any
"""The module numpy or torch, called `xp` as in Python's array API standard."""

T = TypeVar("T", bound="DataclassInstance")


@contextmanager
def array_namespace(device: str | None) -> Iterator[Namespace]:
    """Yield numpy; or torch, with new tensors on the device."""
    if device is None:
        yield np
        return
    import torch  # imported here, because most users need no device

    with torch.device(device):
        yield torch


def to_namespace(instance: T, xp: Namespace) -> T:
    """Return a dataclass that has a field `xp` with its NumPy arrays in another namespace, on its default device."""
    values = {field.name: getattr(instance, field.name) for field in fields(instance)}
    arrays = {name: xp.asarray(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return replace(instance, **arrays, xp=xp)


def eigh(matrix: Array, xp: Namespace) -> tuple[Array, Array]:
    """Return the eigenvalues, ascending, and eigenvectors of a symmetric matrix, which may be overwritten."""
    if xp is np:
        return linalg.eigh(matrix, driver="evd", overwrite_a=True, check_finite=False)
    values, vectors = xp.linalg.eigh(matrix)
    return values, vectors
