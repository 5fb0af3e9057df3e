"""The backbones: which networks there are, their layers by name, and how each is built with its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from pipeline import errors, tinyvgg, weights
from pipeline.errors import PipelineError
from pipeline.images import Transform

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A network that can be built with any number of classes, and how its layers are named.

    name_layers: from the module and its graph nodes, in order, to {friendly name: node after the ReLU};
    weights: torchvision's enum of weights, or None for the embedded backbone.
    """

    name: str
    build: Callable[..., nn.Module]
    name_layers: Callable[[nn.Module, list[str]], dict[str, str]]
    weights: Any = None


def _vgg_layers(model: Any, nodes: list[str]) -> dict[str, str]:
    """Name the ends of VGG's five blocks: conv1…conv5 (last ReLU), pool1…pool5 (max pool), then fc6 and fc7."""
    layers: dict[str, str] = {}
    pools = [index for index, module in enumerate(model.features) if isinstance(module, nn.MaxPool2d)]
    for block, pool in enumerate(pools, start=1):
        layers |= {f"conv{block}": f"features.{pool - 1}", f"pool{block}": f"features.{pool}"}
    return layers | {"fc6": "classifier.1", "fc7": "classifier.4"}


def _alexnet_layers(model: Any, nodes: list[str]) -> dict[str, str]:
    """Name AlexNet's layers as its paper counts them: a pool bears the number of the convolution before it."""
    layers: dict[str, str] = {}
    convolution = 0
    for index, module in enumerate(model.features):
        if isinstance(module, nn.ReLU):
            convolution += 1
            layers[f"conv{convolution}"] = f"features.{index}"
        elif isinstance(module, nn.MaxPool2d):
            layers[f"pool{convolution}"] = f"features.{index}"
    return layers | {"fc6": "classifier.2", "fc7": "classifier.5"}


def _resnet_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
    """Name the stem (after its max pool), the last ReLU of each stage, and the flattened average pool."""
    last = {node.split(".")[0]: node for node in nodes if re.match(r"layer\d\.", node)}
    return {"stem": "maxpool"} | last | {"avgpool": "flatten"}


def _no_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
    return {}


OTHER_WEIGHTS = ("random", "random:SEED", "a .pth or .safetensors file")

FAMILIES = {
    "alexnet": _alexnet_layers,
    "vgg": _vgg_layers,
    "resnet": _resnet_layers,
    "resnext": _resnet_layers,
    "wide_resnet": _resnet_layers,
}
"""Prefixes of torchvision's names of networks whose layers bear friendly names."""

BUILD_OPTIONS = {
    "googlenet": {"transform_input": True, "aux_logits": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "aux_logits": True, "init_weights": False},
}
"""What torchvision sets when it builds these for its pretrained weights."""


@cache
def registry() -> dict[str, Backbone]:
    """Return all backbones by name: the embedded one and torchvision's classification models."""
    models = torchvision.models
    found = {"tinyvgg": Backbone("tinyvgg", tinyvgg.TinyVGG, lambda model, nodes: tinyvgg.LAYERS)}
    for name in models.list_models(module=models):
        family = re.match(r"[a-z]+(_resnet)?", name)
        layers = FAMILIES.get(family.group() if family else "", _no_layers)
        build = partial(models.get_model, name, weights=None, **BUILD_OPTIONS.get(name, {}))
        found[name] = Backbone(name, build, layers, models.get_model_weights(name))
    return found


def get(name: str) -> Backbone:
    """Return the backbone of that name."""
    if name not in registry():
        raise errors.unknown("backbone", name, registry())
    return registry()[name]


def _nodes_and_layers(backbone: Backbone) -> tuple[list[str], dict[str, str]]:
    with torch.device("meta"):
        model = backbone.build()
    nodes = get_graph_node_names(model)[1][1:]  # the first is the input
    return nodes, backbone.name_layers(model, nodes)


def find_nodes(backbone: Backbone, layers: Iterable[str]) -> dict[str, str]:
    """Return {layer: graph node} of layers given by their friendly names or as nodes."""
    nodes, friendly = _nodes_and_layers(backbone)
    found = {layer: friendly.get(layer, layer) for layer in layers}
    for layer, node in found.items():
        if node not in nodes:
            raise errors.unknown("layer", layer, friendly or nodes, where=backbone.name)
    return found


def in_order(backbone: Backbone, layers: Iterable[str]) -> list[str]:
    """Return layers as the network computes them, from the input on."""
    nodes, friendly = _nodes_and_layers(backbone)
    places: dict[str | None, int] = {node: place for place, node in enumerate(nodes)}
    return sorted(layers, key=lambda layer: places[friendly.get(layer, layer)])


def layer_shapes(backbone: Backbone) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return {layer: (node, shape for one image)} of all of a backbone's layers, without making its weights."""
    nodes, friendly = _nodes_and_layers(backbone)
    layers = friendly or {node: node for node in nodes}
    shapes = node_shapes(backbone, layers.values())
    return {layer: (node, shapes[node]) for layer, node in layers.items() if node in shapes}


def node_shapes(backbone: Backbone, nodes: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape that each node gives for one image; nodes that give no tensor are left out."""
    crop = native_transform(backbone).crop
    with torch.device("meta"):
        graph = create_feature_extractor(backbone.build().eval(), {node: node for node in nodes})
        outputs = graph(torch.empty(1, 3, crop, crop))
    return {node: tuple(output.shape[1:]) for node, output in outputs.items() if isinstance(output, torch.Tensor)}


def native_transform(backbone: Backbone) -> Transform:
    """Return what the backbone was made for: the transform of its first ImageNet weights."""
    return _transform(_classic(backbone))


def load(backbone: Backbone, origin: str) -> tuple[nn.Module, Transform]:
    """Build the network and load its weights; return it in eval mode with the transform that goes with them.

    origin: "default"; the name of one of torchvision's (IMAGENET1K_V2); "random" or "random:SEED"; or a local
    .pth, .pt or .safetensors file with a state dict. A file's number of classes may differ from ImageNet's.
    """
    source = _classic(backbone)
    if re.fullmatch(r"random(:\d+)?", origin):
        return _random(backbone, int(origin[7:] or 0)), _transform(source)
    if Path(origin).suffix in (".pth", ".pt", ".safetensors"):
        state = weights.read_state(Path(origin).expanduser())
    elif backbone.weights is None:
        if origin != "default":
            raise errors.unknown("weights", origin, ["default", *OTHER_WEIGHTS], where=backbone.name)
        state = weights.read_state(tinyvgg.WEIGHTS, tinyvgg.SHA256)
    else:
        source = _enum_member(backbone, origin)
        state = weights.read_state(weights.fetch(source.url), weights.hash_in_name(source.url))
    return _with_state(backbone, state, origin), _transform(source)


def _random(backbone: Backbone, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return backbone.build().eval()


def _enum_member(backbone: Backbone, origin: str) -> Any:
    choices = {"default": backbone.weights.DEFAULT} | dict(backbone.weights.__members__)
    name = origin.split(".")[-1]
    if name not in choices:
        raise errors.unknown("weights", origin, [*choices, *OTHER_WEIGHTS], where=backbone.name)
    return choices[name]


def _classic(backbone: Backbone) -> Any:
    """Return the weights whose transform goes with random or unknown ones: torchvision's first for ImageNet."""
    if backbone.weights is None:
        return None
    return backbone.weights.__members__.get("IMAGENET1K_V1", backbone.weights.DEFAULT)


def _transform(source: Any) -> Transform:
    if source is None:
        return Transform(tinyvgg.SIZE, tinyvgg.SIZE, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    preset = source.transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    return Transform(preset.resize_size[0], preset.crop_size[0], preset.interpolation.value, mean, std)


def _with_state(backbone: Backbone, state: dict[str, torch.Tensor], origin: str) -> nn.Module:
    """Build the network with as many classes as the state dict has, and load it."""
    if backbone.name.startswith("densenet"):  # torchvision's files still bear the names of an older release
        state = {re.sub(r"(norm|relu|conv)\.([12])\.", r"\1\2.", name): value for name, value in state.items()}
    with torch.device("meta"):
        head, reference = list(backbone.build().state_dict().items())[-1]
    classes = len(state[head]) if head in state and state[head].ndim else len(reference)
    model = backbone.build(num_classes=classes)
    expected = model.state_dict()
    wrong = sorted(name for name in expected.keys() | state.keys() if not _fits(expected.get(name), state.get(name)))
    if wrong:
        raise PipelineError(
            f"The weights {origin} do not fit {backbone.name}: {len(wrong)} of its tensors are missing, unknown or of "
            f"another shape, the first is {wrong[0]!r}. Choose the backbone that they were saved from."
        )
    model.load_state_dict(state, strict=False)
    return model.eval()


def _fits(expected: torch.Tensor | None, given: torch.Tensor | None) -> bool:
    if expected is None or given is None:  # files of old releases lack this counter, which eval mode does not use
        return given is None and expected is not None and expected.dtype == torch.int64
    return expected.shape == given.shape
