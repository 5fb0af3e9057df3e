"""Pooling: which one applies to a layer, and what it makes of maps."""

from __future__ import annotations

import pytest
import torch

from pipeline import errors
from pipeline.networks import pooling


def test_pooling_by_cells_is_the_mean_of_each_cell() -> None:
    maps = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    cells = maps.reshape(2, 3, 2, 2, 2, 2).mean((3, 5)).flatten(1)
    torch.testing.assert_close(pooling.pool_maps(maps, "avg2"), cells)


@pytest.mark.parametrize(
    ("shape", "pool", "resolved"),
    [((128, 8, 8), "auto", "avg4"), ((128, 8, 8), "max", "max"), ((1024,), "auto", "none"), ((1024,), "avg", "none")],
)
def test_auto_is_the_default_of_the_backbone(shape: tuple[int, ...], pool: str, resolved: str) -> None:
    assert pooling.pool_for(shape, pool, layer="layer", default="avg4") == resolved


def test_other_shapes_are_refused() -> None:
    with pytest.raises(errors.PipelineError, match=r"encoder gives neither vectors nor maps \(shape \(50, 768\)\)"):
        pooling.pool_for((50, 768), "auto", layer="encoder", default="avg")
