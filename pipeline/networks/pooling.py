"""The frozen network: a backbone cut after its deepest asked layer, pictures in, codes out."""

from __future__ import annotations

import re

import torch
import torch.fx
from torch import nn

from pipeline import errors

POOLS = "avg, max, flatten, or avgN and maxN for a grid of N×N cells"


def pool_for(shape: tuple[int, ...], pool: str, layer: str) -> str:
    """Return the pooling that applies to a layer of that shape: "none" for a vector."""
    if not re.fullmatch(r"(avg|max)([1-9]\d?)?|flatten", pool):
        raise errors.PipelineError(f"Unknown pooling {pool!r}. Choose from: {POOLS}.")
    if len(shape) not in (1, 3):
        raise errors.PipelineError(f"Layer {layer} gives neither vectors nor maps (shape {shape}). Choose another.")
    return "none" if len(shape) == 1 else pool


def pool_maps(output: torch.Tensor, pool: str) -> torch.Tensor:
    """Turn (n, c, h, w) maps into (n, c × cells) vectors by a pooling's name; "none" leaves (n, d) vectors alone."""
    if pool in ("none", "flatten"):
        return output.flatten(1)
    kind, cells = pool[:3], int(pool[3:] or 1)
    if max(output.shape[2:]) <= cells:
        return output.flatten(1)
    pooled = nn.functional.adaptive_avg_pool2d if kind == "avg" else nn.functional.adaptive_max_pool2d
    return pooled(output, cells).flatten(1)


def pooled_width(shape: tuple[int, ...], pool: str) -> int:
    """Return how many numbers a pooling makes of one image's output of that shape."""
    return pool_maps(torch.empty(1, *shape, device="meta"), pool if len(shape) == 3 else "none").shape[1]
