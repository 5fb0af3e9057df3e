"""The friendly names of layers: which graph node of a network each name stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import nn

NameLayers = Callable[[nn.Module, list[str]], dict[str, str]]
"""From a network and its graph nodes, in order, to {friendly name: node after the ReLU}."""


def name_vgg_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
    """Name the ends of VGG's five blocks: conv1…conv5 (last ReLU), pool1…pool5 (max pool), then fc6 and fc7."""
    layers: dict[str, str] = {}
    features = dict(model.get_submodule("features").named_children())
    max_pools = [int(index) for index, module in features.items() if isinstance(module, nn.MaxPool2d)]
    for block, index in enumerate(max_pools, start=1):
        layers |= {f"conv{block}": f"features.{index - 1}", f"pool{block}": f"features.{index}"}
    return layers | {"fc6": "classifier.1", "fc7": "classifier.4"}


def name_alexnet_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
    """Name AlexNet's layers as its paper counts them: a pool has the number of the convolution before it."""
    layers: dict[str, str] = {}
    convolution = 0
    for index, module in model.get_submodule("features").named_children():
        if isinstance(module, nn.ReLU):
            convolution += 1
            layers[f"conv{convolution}"] = f"features.{index}"
        elif isinstance(module, nn.MaxPool2d):
            layers[f"pool{convolution}"] = f"features.{index}"
    return layers | {"fc6": "classifier.2", "fc7": "classifier.5"}


def name_resnet_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
    """Name the stem (after its max pool), the last ReLU of each stage, and the flattened average pool."""
    last = {node.split(".")[0]: node for node in nodes if re.match(r"layer\d\.", node)}
    return {"stem": "maxpool"} | last | {"avgpool": "flatten"}


def name_no_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
    """Name no layers: they go by their graph nodes."""
    return {}


def name_fixed_layers(layers: Mapping[str, str]) -> NameLayers:
    """Return a function that gives the same layers, {friendly name: node}, of every network."""

    def name_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
        return dict(layers)

    return name_layers


FAMILIES: dict[str, NameLayers] = {
    "alexnet": name_alexnet_layers,
    "vgg": name_vgg_layers,
    "resnet": name_resnet_layers,
    "resnext": name_resnet_layers,
    "wide_resnet": name_resnet_layers,
}
"""How layers get friendly names, by the prefix of torchvision's name of the network."""
