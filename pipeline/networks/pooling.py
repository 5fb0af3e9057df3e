"""How a layer's output becomes one vector per image; no other module knows the axes of maps."""

from __future__ import annotations

import re

import torch
from torch import nn

from pipeline import errors

AUTO = "auto"
"""Stands for the backbone's own pooling, `Backbone.pool`."""

POOLS = "avg, max, flatten, avgN and maxN for a grid of N×N cells, or auto for what suits the backbone"


def gives_codes(shape: tuple[int, ...]) -> bool:
    """Return whether an output of that shape for one image is a vector, (d,), or maps, (c, h, w)."""
    return len(shape) in (1, 3)


def pool_for(shape: tuple[int, ...], pool: str, *, layer: str, default: str) -> str:
    """Return the pooling of a layer: "none" where it gives a vector.

    shape: of the layer's output for one image; pool: one of `POOLS`; layer: its name, for the error; default: the
    pooling that "auto" stands for. Raises PipelineError for an unknown pooling, and for other shapes.
    """
    if not re.fullmatch(r"(avg|max)([1-9]\d?)?|flatten|auto", pool):
        raise errors.PipelineError(f"Unknown pooling {pool!r}. Choose from: {POOLS}.")
    if not gives_codes(shape):
        raise errors.PipelineError(f"Layer {layer} gives neither vectors nor maps (shape {shape}). Choose another.")
    if len(shape) == 1:
        return "none"
    return default if pool == AUTO else pool


def pool_maps(output: torch.Tensor, pool: str) -> torch.Tensor:
    """Turn (n, c, h, w) maps into (n, c × cells) vectors; "none" returns (n, d) vectors unchanged.

    pool: as `pool_for` returns it. Maps that have no more than N×N positions are flattened.
    """
    if pool in ("none", "flatten"):
        return output.flatten(1)
    kind, cells = pool[:3], int(pool[3:] or 1)
    if max(output.shape[2:]) <= cells:
        return output.flatten(1)
    adaptive_pool = nn.functional.adaptive_avg_pool2d if kind == "avg" else nn.functional.adaptive_max_pool2d
    return adaptive_pool(output, cells).flatten(1)


def pooled_width(shape: tuple[int, ...], pool: str) -> int:
    """Return how many numbers a pooling makes of one image's output of that shape."""
    return pool_maps(torch.empty(1, *shape, device="meta"), pool if len(shape) == 3 else "none").shape[1]
