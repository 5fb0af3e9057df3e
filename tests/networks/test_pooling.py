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


VECTOR, MAPS = pooling.Layout("vector"), pooling.Layout("maps")
TOKENS = pooling.Layout("tokens", pooling.Prefix(2, True))


@pytest.mark.parametrize(
    ("layout", "pool", "resolved"),
    [
        (MAPS, "auto", "avg4"),
        (MAPS, "max", "max"),
        (MAPS, "mean", "avg"),
        (VECTOR, "auto", "none"),
        (VECTOR, "avg", "none"),
        (TOKENS, "auto", "cls"),
        (TOKENS, "cls+mean", "cls_mean"),
        (TOKENS, "avg", "mean"),
        (pooling.Layout("tokens"), "auto", "mean"),
    ],
)
def test_auto_is_what_suits_the_layer(layout: pooling.Layout, pool: str, resolved: str) -> None:
    assert pooling.pool_for(layout, pool, layer="layer", default="avg4") == resolved


@pytest.mark.parametrize(
    ("layout", "pool", "words"),
    [
        (None, "auto", "encoder gives neither vectors, maps nor tokens"),
        (MAPS, "cls", "gives maps, which have no class token. Choose from: avg"),
        (TOKENS, "max", "gives tokens, not maps. Choose from: cls"),
        (pooling.Layout("tokens"), "cls", "has no class token. Take --pool mean"),
        (MAPS, "median", "Unknown pooling 'median'"),
    ],
)
def test_what_does_not_suit_the_layer_is_refused(layout: pooling.Layout | None, pool: str, words: str) -> None:
    with pytest.raises(errors.PipelineError, match=words):
        pooling.pool_for(layout, pool, layer="encoder", default="avg")


@pytest.mark.parametrize(
    ("native", "prefix", "layout"),
    [
        ((768, 7, 7), None, pooling.Layout("maps")),
        ((7, 7, 768), None, pooling.Layout("maps_last")),
        ((197, 64), None, pooling.Layout("tokens", pooling.Prefix(1, True))),
        ((196, 64), None, pooling.Layout("tokens")),
        ((201, 64), pooling.Prefix(5, True), pooling.Layout("tokens", pooling.Prefix(5, True))),
        ((196, 64), pooling.Prefix(1, True), pooling.Layout("tokens")),
        ((4, 2, 3, 5), None, None),
    ],
)
def test_axes_are_told_apart_at_the_networks_own_size(
    native: tuple[int, ...], prefix: pooling.Prefix | None, layout: pooling.Layout | None
) -> None:
    assert pooling.layout_of(native, native, prefix) == layout


def test_the_axes_of_images_that_are_not_square_are_those_at_the_networks_own_size() -> None:
    assert pooling.layout_of((7, 5, 96), (7, 7, 96), None) == pooling.Layout("maps_last")
    assert pooling.layout_of((96, 7, 5), (96, 7, 7), None) == pooling.Layout("maps")


def test_tokens_are_pooled_without_the_prefix() -> None:
    tokens = torch.arange(2 * 6 * 3.0).reshape(2, 6, 3)
    expected = torch.cat([tokens[:, 0], tokens[:, 2:].mean(1)], 1)
    torch.testing.assert_close(pooling.pool_output(tokens, "cls_mean", TOKENS), expected)


def test_maps_whose_channels_are_last_are_pooled_over_height_and_width() -> None:
    maps = torch.rand(2, 5, 4, 3)
    torch.testing.assert_close(pooling.pool_output(maps, "avg", pooling.Layout("maps_last")), maps.mean((1, 2)))
