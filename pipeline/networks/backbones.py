"""The backbones: which networks there are, their layers by name, and how each is built with its weights."""

from __future__ import annotations

import copy
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

from pipeline import errors
from pipeline.images import transforms
from pipeline.networks import tinyvgg, weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A network that can be built with any number of classes, and how its layers are named.

    name_layers: from the module and its graph nodes, in order, to {friendly name: node after the ReLU};
    weights: torchvision's enum of weights, or None for the embedded backbone; head: whether fully connected layers
    follow its maps, which run as convolutions at other sizes than the network's own; pool: what `--pool auto` means.
    """

    name: str
    build: Callable[..., nn.Module]
    name_layers: Callable[[nn.Module, list[str]], dict[str, str]]
    weights: Any = None
    head: bool = False
    pool: str = "avg"


class FullyConvolutional(nn.Module):
    """A VGG or AlexNet whose fully connected layers are convolutions over maps of any size (Sermanet et al.,
    "OverFeat", ICLR 2014): the same weights, reshaped, under the same names.

    The average pool before them becomes one of the fixed window that it has at the native size. A cell is the ordinary
    code of its window of the picture only as far as the convolutions before pad nothing: at the window's edge the
    ordinary network sees zeros, this one the next pixels.
    """

    def __init__(self, model: Any, native: int) -> None:
        super().__init__()
        self.features = model.features
        with torch.device("meta"):
            side = copy.deepcopy(model.features).to("meta").eval()(torch.empty(1, 3, native, native)).shape[-1]
        cells = _side(model.avgpool.output_size)
        self.avgpool = nn.AvgPool2d(side // cells)
        layers, kernel = [], cells
        for module in model.classifier:
            linear = isinstance(module, nn.Linear)
            layers.append(_as_convolution(module, kernel) if linear else module)
            kernel = 1 if linear else kernel
        self.classifier = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, num_classes, h, w) scores of (n, 3, height, width) normalised images."""
        return self.classifier(self.avgpool(self.features(images)))


def _side(size: Any) -> int:
    return size if isinstance(size, int) else size[0]


def _as_convolution(linear: nn.Linear, kernel: int) -> nn.Conv2d:
    """Return a convolution with a linear layer's own weights, each row seen as (channels, kernel, kernel)."""
    with torch.device("meta"):
        convolution = nn.Conv2d(linear.in_features // kernel**2, linear.out_features, kernel)
    convolution.weight = nn.Parameter(linear.weight.detach().view(convolution.weight.shape))
    convolution.bias = linear.bias
    return convolution


def at_size(backbone: Backbone, model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Return a backbone's network as it runs at a (height, width): other than its own, its head as convolutions."""
    native = native_transform(backbone)
    return model if size == native.size or not backbone.head else FullyConvolutional(model, native.crop)


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
    found = {
        "tinyvgg": Backbone("tinyvgg", tinyvgg.TinyVGG, lambda model, nodes: tinyvgg.LAYERS, head=True, pool="avg4")
    }
    for name in models.list_models(module=models):
        family = re.match(r"[a-z]+(_resnet)?", name)
        layers = FAMILIES.get(family.group() if family else "", _no_layers)
        build = partial(models.get_model, name, weights=None, **BUILD_OPTIONS.get(name, {}))
        head = layers in (_vgg_layers, _alexnet_layers)
        found[name] = Backbone(name, build, layers, models.get_model_weights(name), head)
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


def friendly_layers(backbone: Backbone) -> list[str]:
    """Return a backbone's layers that have friendly names, in order."""
    names = _nodes_and_layers(backbone)[1]
    if not names:
        raise errors.PipelineError(
            f"The layers of {backbone.name} have no friendly names. Name graph nodes with --layer."
        )
    return list(names)


def head_node(backbone: Backbone) -> str | None:
    """Return the node that gives the scores of the network's own classes, if there is one such."""
    last = _nodes_and_layers(backbone)[0][-1]
    return last if len(node_shapes(backbone, [last]).get(last, ())) == 1 else None


def sort_layers(backbone: Backbone, layers: Iterable[str]) -> list[str]:
    """Return layers as the network computes them, from the input on; several joined by + count as the last of them."""
    nodes, friendly = _nodes_and_layers(backbone)
    places: dict[str | None, int] = {node: place for place, node in enumerate(nodes)}
    return sorted(layers, key=lambda layer: places[friendly.get(last := layer.split("+")[-1], last)])


def named_layers(backbone: Backbone) -> dict[str, str]:
    """Return {layer: node} of a backbone's friendly names, from the input on; {} where it has none."""
    friendly = _nodes_and_layers(backbone)[1]
    return {layer: friendly[layer] for layer in sort_layers(backbone, friendly)}


def layer_shapes(backbone: Backbone) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return {layer: (node, shape for one image)} of all of a backbone's layers, without making its weights."""
    nodes, friendly = _nodes_and_layers(backbone)
    layers = friendly or {node: node for node in nodes}
    shapes = node_shapes(backbone, layers.values())
    return {layer: (node, shapes[node]) for layer, node in layers.items() if node in shapes}


def node_shapes(
    backbone: Backbone, nodes: Iterable[str], size: tuple[int, int] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shape that each node gives for one image; nodes that give no tensor are left out.

    size: (height, width) of the image, by default the network's own; one that it cannot run at is refused.
    """
    own = native_transform(backbone).size
    asked = size or own
    with torch.device("meta"):
        model = at_size(backbone, backbone.build().eval(), asked)
        graph = create_feature_extractor(model, {node: node for node in nodes})
        outputs = _outputs(graph, asked)
        if outputs is None:
            raise errors.PipelineError(_too_small(backbone.name, graph, asked, own))
    return {node: tuple(output.shape[1:]) for node, output in outputs.items() if isinstance(output, torch.Tensor)}


def _outputs(graph: nn.Module, size: tuple[int, int]) -> dict[str, Any] | None:
    """Return what a network gives for one image of a size on the meta device; None where it cannot run."""
    try:
        outputs = graph(torch.empty(1, 3, *size, device="meta"))
    except (RuntimeError, AssertionError, ValueError):  # a window beyond the map; transformers assert their size
        return None
    empty = any(isinstance(output, torch.Tensor) and not output.numel() for output in outputs.values())
    return None if empty else outputs


def _too_small(name: str, graph: nn.Module, asked: tuple[int, int], own: tuple[int, int]) -> str:
    """Say that a network cannot run at a size, and what the least side is at which it can."""
    least = next((side for side in range(min(asked) + 1, max(own) + 1) if _outputs(graph, (side, side))), max(own))
    height, width = asked
    if min(asked) >= least:
        return f"{name} cannot run at {height}x{width} pixels, only at {own[0]}x{own[1]}. Leave --size out."
    return (
        f"{name} cannot run at {height}x{width} pixels for these layers: the least that works is --size {least}. "
        "Take that or more, or an earlier layer."
    )


def native_transform(backbone: Backbone) -> transforms.Transform:
    """Return what the backbone was made for: the transform of its first ImageNet weights."""
    return _transform(_reference_weights(backbone))


def load(backbone: Backbone, origin: str) -> tuple[nn.Module, transforms.Transform]:
    """Build the network and load its weights; return it in eval mode with the transform that goes with them.

    origin: "default"; the name of one of torchvision's (IMAGENET1K_V2); "random" or "random:SEED"; or a local
    .pth, .pt or .safetensors file with a state dict. A file's number of classes may differ from ImageNet's.
    """
    source = _reference_weights(backbone)
    if re.fullmatch(r"random(:\d+)?", origin):
        return _random_model(backbone, int(origin[7:] or 0)), _transform(source)
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


def _random_model(backbone: Backbone, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return backbone.build().eval()


def _enum_member(backbone: Backbone, origin: str) -> Any:
    choices = {"default": backbone.weights.DEFAULT} | dict(backbone.weights.__members__)
    name = origin.split(".")[-1]
    if name not in choices:
        raise errors.unknown("weights", origin, [*choices, *OTHER_WEIGHTS], where=backbone.name)
    return choices[name]


def _reference_weights(backbone: Backbone) -> Any:
    """Return the weights whose transform goes with random or unknown ones: torchvision's first for ImageNet."""
    if backbone.weights is None:
        return None
    return backbone.weights.__members__.get("IMAGENET1K_V1", backbone.weights.DEFAULT)


def _transform(source: Any) -> transforms.Transform:
    if source is None:
        return transforms.Transform(tinyvgg.SIZE, tinyvgg.SIZE, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    preset = source.transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    return transforms.Transform(preset.resize_size[0], preset.crop_size[0], preset.interpolation.value, mean, std)


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
        raise errors.PipelineError(
            f"The weights {origin} do not fit {backbone.name}: {len(wrong)} of its tensors are missing, unknown or of "
            f"another shape, the first is {wrong[0]!r}. Choose the backbone that they were saved from."
        )
    model.load_state_dict(state, strict=False)
    return model.eval()


def _fits(expected: torch.Tensor | None, given: torch.Tensor | None) -> bool:
    if expected is None or given is None:  # files of old releases lack this counter, which eval mode does not use
        return given is None and expected is not None and expected.dtype == torch.int64
    return expected.shape == given.shape
