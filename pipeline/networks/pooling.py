"""How a layer's output becomes one vector per image; no other module knows the axes of maps and tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from pipeline import errors

AUTO = "auto"
"""Stands for the backbone's own pooling, `Backbone.pool`; of tokens for the class token, or else their mean."""

NONE = "none"
"""The pooling of a layer that gives a vector."""

POOLS = "avg, max, flatten, avgN and maxN for a grid of N×N cells, or auto for what suits the backbone"
PATCH_POOLS = "cls (the class token), mean (of the patches' tokens), cls+mean, or auto for what suits the backbone"

CLS_AND_MEAN = "cls_mean"
"""The pooling cls+mean as it stands in a spec, where + separates layers."""


@dataclass(frozen=True)
class Prefix:
    """The tokens before those of the patches: their number, and whether the first of them is a class token."""

    n_tokens: int = 0
    has_class_token: bool = False


@dataclass(frozen=True)
class Layout:
    """How the output of a layer is laid out for one image.

    kind: "vector" (d,), "maps" (c, h, w), "maps_last" (h, w, c), or "tokens" (n, d); prefix: of tokens.
    """

    kind: Literal["vector", "maps", "maps_last", "tokens"]
    prefix: Prefix = Prefix()


def layout_of(shape: Sequence[int], native: Sequence[int], prefix: Prefix | None) -> Layout | None:
    """Return the layout of a layer's output of a shape for one image; None where it is not known.

    native: the shape for a square image of the network's own size: of maps, the two axes of equal length are height and
    width; prefix: that the network says it has, None where it says nothing. The patches' tokens fill a square.
    """
    if len(shape) == 1:
        return Layout("vector")
    if len(shape) == 3:
        last = len(native) == 3 and native[0] == native[1] != native[2]
        return Layout("maps_last" if last else "maps")
    if len(shape) != 2 or len(native) != 2:
        return None
    candidates = [prefix or Prefix(1, True), Prefix()]
    fitting = [candidate for candidate in candidates if _is_square(native[0] - candidate.n_tokens)]
    return Layout("tokens", (fitting or candidates)[0])


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def pool_for(layout: Layout | None, pool: str, *, layer: str, default: str) -> str:
    """Return the pooling of a layer: "none" where it gives a vector.

    pool: one of `POOLS`, or of `PATCH_POOLS` where the layer gives tokens; layer: its name, for the error; default: the
    pooling of maps that "auto" stands for. Raises PipelineError for an unknown pooling, and for one that does not suit
    the layer.
    """
    pool = pool.replace("cls+mean", CLS_AND_MEAN)
    if not re.fullmatch(r"(avg|max)([1-9]\d?)?|flatten|auto|cls|mean|cls_mean", pool):
        raise errors.PipelineError(f"Unknown pooling {pool!r}. Choose from: {POOLS}; of tokens {PATCH_POOLS}.")
    if layout is None:
        raise errors.PipelineError(f"Layer {layer} gives neither vectors, maps nor tokens. Choose another.")
    if layout.kind == "vector":
        return NONE
    if layout.kind == "tokens":
        return _pool_for_tokens(layout.prefix, pool, layer)
    if pool in ("cls", CLS_AND_MEAN):
        raise errors.PipelineError(f"Layer {layer} gives maps, which have no class token. Choose from: {POOLS}.")
    return {AUTO: default, "mean": "avg"}.get(pool, pool)


def _pool_for_tokens(prefix: Prefix, pool: str, layer: str) -> str:
    if pool == AUTO:
        return "cls" if prefix.has_class_token else "mean"
    pool = "mean" if pool == "avg" else pool
    if pool not in ("cls", "mean", CLS_AND_MEAN):
        raise errors.PipelineError(f"Layer {layer} gives tokens, not maps. Choose from: {PATCH_POOLS}.")
    if pool != "mean" and not prefix.has_class_token:
        raise errors.PipelineError(f"Layer {layer} has no class token. Take --pool mean.")
    return pool


def pool_output(output: torch.Tensor, pool: str, layout: Layout) -> torch.Tensor:
    """Turn the (n, …) output of a layer into (n, d) vectors; pool: as `pool_for` returns it."""
    if layout.kind == "tokens":
        return _pool_tokens(output, pool, layout.prefix)
    if layout.kind == "maps_last":
        output = output.movedim(-1, 1)
    return pool_maps(output, pool)


def _pool_tokens(tokens: torch.Tensor, pool: str, prefix: Prefix) -> torch.Tensor:
    """Turn (n, n_tokens, d) tokens into (n, d) vectors, or (n, 2 × d) of class token and mean."""
    parts = {"cls": tokens[:, 0], "mean": tokens[:, prefix.n_tokens :].mean(1)}
    return torch.cat([parts[name] for name in pool.split("_")], 1)


def pool_maps(output: torch.Tensor, pool: str) -> torch.Tensor:
    """Turn (n, c, h, w) maps into (n, c × cells) vectors; "none" returns (n, d) vectors unchanged.

    Maps that have no more than N×N positions are flattened.
    """
    if pool in (NONE, "flatten"):
        return output.flatten(1)
    kind, cells = pool[:3], int(pool[3:] or 1)
    if max(output.shape[2:]) <= cells:
        return output.flatten(1)
    adaptive_pool = nn.functional.adaptive_avg_pool2d if kind == "avg" else nn.functional.adaptive_max_pool2d
    return adaptive_pool(output, cells).flatten(1)


def examples(layout: Layout) -> tuple[str, ...]:
    """Return some poolings that suit a layout, for a listing."""
    if layout.kind == "vector":
        return (NONE,)
    if layout.kind != "tokens":
        return ("avg", "avg4", "flatten")
    return ("cls", "mean", CLS_AND_MEAN) if layout.prefix.has_class_token else ("mean",)


def pooled_width(shape: Sequence[int], pool: str, layout: Layout) -> int:
    """Return how many numbers a pooling makes of one image's output of that shape."""
    return pool_output(torch.empty(1, *shape, device="meta"), pool, layout).shape[1]
