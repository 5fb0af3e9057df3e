"""Other image sizes: fully connected layers as convolutions, and codes before the ReLU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome
from helpers import assert_close, frozen, mistake, noise_images, normalised
from torch import nn

from pipeline import errors
from pipeline.codes import reader
from pipeline.images import transforms
from pipeline.networks import backbones, layer_nodes
from pipeline.networks.frozen import FrozenNetwork, rebuild_network, relu_layers
from pipeline.networks.fully_convolutional import FullyConvolutional
from pipeline.networks.graph import cut_graph

Run = Callable[..., Outcome]


def tensor(x: np.ndarray) -> torch.Tensor:
    return normalised(x)


# Fully connected layers as convolutions


def side_of(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else size[0]


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_at_the_native_size_the_convolutions_equal_the_linear_layers(name: str) -> None:
    x = noise_images(2)
    ordinary = frozen(name, "fc7") if name == "alexnet" else frozen(name, "fc6", "fc7", "pool5")
    model, _ = backbones.load(backbones.get(name), "random")
    graph = cut_graph(FullyConvolutional(model, 224), {ordinary.nodes["fc7"]})
    with torch.no_grad():
        maps = graph(tensor(x))[ordinary.nodes["fc7"]]
    assert maps.shape == (2, 4096, 1, 1)
    assert_close(maps.flatten(1).numpy(), ordinary.codes(x)["fc7"])


@pytest.mark.parametrize(("name", "cells"), [("vgg16", 4), ("alexnet", 4)])
def test_at_320_fc7_is_a_map(name: str, cells: int) -> None:
    """Pixels 0 to 319 hold four windows of 224 a side, 32 apart."""
    nodes = layer_nodes.find_nodes(backbones.get(name), ["fc7"])
    assert layer_nodes.node_shapes(backbones.get(name), nodes.values(), (320, 320)) == {
        nodes["fc7"]: (4096, cells, cells)
    }
    if name == "alexnet":
        wide = FrozenNetwork(name, ["fc7"], "random", "avg", transforms.Framing((320, 256)))
        assert wide.codes(np.zeros((1, 3, 320, 256), np.uint8))["fc7"].shape == (1, 4096)
        assert wide.specs["fc7"].pool == "avg" and frozen(name, "fc7").specs["fc7"].pool == "none"


@pytest.mark.parametrize("name", ["alexnet", "tinyvgg"])
def test_each_cell_is_the_ordinary_head_on_its_window_of_the_maps(name: str) -> None:
    """What the convolutions before the head give is theirs to pad; the head itself is equal cell by cell."""
    backbone = backbones.get(name)
    model: Any = backbones.load(backbone, "random")[0]
    native = backbones.native_transform(backbone).crop
    convolved = FullyConvolutional(model, native)
    x = torch.rand(1, 3, native + 64, native + 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = convolved.avgpool(model.features(x))
        found = convolved(x)
        side = side_of(model.avgpool.output_size)
        assert found.shape[2:] == (3, 2)
        for row, column in np.ndindex(3, 2):
            window = features[:, :, row : row + side, column : column + side]
            assert_close(found[:, :, row, column].numpy(), model.classifier(window.flatten(1)).numpy())


def without_padding(name: str) -> tuple[Any, int]:
    """Return a network whose convolutions pad nothing, and the least side at which its head has one cell."""
    model: Any = backbones.load(backbones.get(name), "random")[0]
    for module in model.features:
        if isinstance(module, nn.Conv2d):
            module.padding = (0, 0)
    cells = side_of(model.avgpool.output_size)
    stages = [module for module in model.features if isinstance(module, (nn.Conv2d, nn.MaxPool2d))]
    side = cells
    for stage in reversed(stages):
        kernel, stride = side_of(stage.kernel_size), side_of(stage.stride)
        side = (side - 1) * stride + kernel
    return model, side


@pytest.mark.parametrize("name", ["vgg11", "alexnet"])
def test_each_cell_is_the_code_of_its_window_where_nothing_is_padded(name: str) -> None:
    """Window and image differ at the window's edge, where one sees zeros and the other the next pixels.

    So with padding no cell can be equal: VGG and AlexNet pad every convolution, and what comes from an edge spreads
    with each layer. Without padding, all cells are.
    """
    model, side = without_padding(name)
    convolved = FullyConvolutional(model, side)
    x = torch.rand(1, 3, side + 32, side + 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = convolved(x)
        assert found.shape[2:] == (2, 3)
        for row, column in ((0, 0), (1, 2), (0, 1)):
            window = x[:, :, 32 * row : 32 * row + side, 32 * column : 32 * column + side]
            assert_close(found[:, :, row, column].numpy(), model(window).numpy())


def test_with_padding_the_cells_differ_from_their_windows() -> None:
    x = noise_images(1, 320)
    ordinary = frozen("alexnet", "fc7")
    graph = cut_graph(FullyConvolutional(backbones.load(backbones.get("alexnet"), "random")[0], 224), {"classifier.5"})
    with torch.no_grad():
        corner = graph(tensor(x))["classifier.5"][:, :, 0, 0].numpy()
    window = ordinary.codes(x[:, :, :224, :224])["fc7"]
    assert 1e-5 < np.abs(corner - window).max() / np.abs(window).max() < 0.5


@pytest.mark.parametrize(
    ("name", "layer", "least"), [("vgg16", "fc7", 224), ("alexnet", "pool5", 63), ("tinyvgg", "fc7", 64)]
)
def test_sizes_below_the_minimum_are_refused_with_the_least_that_works(name: str, layer: str, least: int) -> None:
    nodes = layer_nodes.find_nodes(backbones.get(name), [layer]).values()
    with pytest.raises(errors.PipelineError, match=f"least that works is --size {least}"):
        layer_nodes.node_shapes(backbones.get(name), nodes, (least - 1, least - 1))
    assert layer_nodes.node_shapes(backbones.get(name), nodes, (least, least))


def test_networks_of_one_size_say_so() -> None:
    with pytest.raises(errors.PipelineError, match="only at 224x224"):
        layer_nodes.node_shapes(backbones.get("vit_b_32"), ["encoder.ln"], (320, 320))


# Before the ReLU


@pytest.mark.parametrize(
    ("name", "layer", "before"), [("alexnet", "fc7", "classifier.4"), ("resnet18", "layer3", "layer3.1.add")]
)
def test_pre_is_what_goes_into_the_relu(name: str, layer: str, before: str) -> None:
    x = noise_images(2)
    pre = FrozenNetwork(name, [layer], "random", "avg", relu="pre")
    assert pre.specs[layer].relu == "pre" and frozen(name, layer).specs[layer].relu == "post"
    found = pre.codes(x)[layer]
    assert found.min() < 0
    assert_close(found, FrozenNetwork(name, [before], "random", "avg").codes(x)[before])


def test_a_layer_without_a_relu_has_nothing_before_it() -> None:
    with pytest.raises(errors.PipelineError, match="no ReLU"):
        FrozenNetwork("tinyvgg", ["pool3"], "default", "avg", relu="pre")

    def found(name: str) -> list[str]:
        backbone = backbones.get(name)
        return relu_layers(backbone, list(layer_nodes.named_layers(backbone)))

    assert found("resnet18") == ["layer1", "layer2", "layer3", "layer4"]
    assert found("alexnet") == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]


# The commands


def test_sizes_stand_in_the_spec_and_in_what_is_rebuilt_from_it(run: Run, photos: Path) -> None:
    run("prepare", "--dataset", photos)
    flags = ("--dataset", "photos", "--layer", "fc7", "--pool", "max")
    outcome = run("extract", *flags, "--size", "96x128", "--crop", "none", "--relu", "pre")
    assert outcome.code == 0, outcome.err
    path = Path("features/photos/tinyvgg/fc7.h5")
    spec = reader.read(path, {}).spec
    assert (*spec.transform.size, spec.transform.fit, spec.relu, spec.pool) == (96, 128, "whole", "pre", "max")
    assert rebuild_network(spec).specs["fc7"] == spec
    assert run("classify", "--dataset", "photos", "--folds", 2, "--grid", "{l2: {C: [1]}}").code == 0
    mistake(run("extract", *flags, "--size", "32"), "tinyvgg cannot run at 32x32", "--size 64")
    mistake(run("extract", *flags, "--size", "big"), "--size 'big' is no size")
    mistake(run("extract", *flags, "--resize", "40"), "--resize 40", "64 or more")
