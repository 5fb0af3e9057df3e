"""The backbones: which networks there are, their layers by name, and how each is built with its weights."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import torch
import torchvision
from torch import nn
from torchvision.models import Weights, WeightsEnum
from torchvision.models.feature_extraction import get_graph_node_names

from pipeline import errors
from pipeline.images.transforms import Transform
from pipeline.networks import tinyvgg, weights
from pipeline.networks.fully_convolutional import FullyConvolutional
from pipeline.networks.graph import cut_graph, trace

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NameLayers = Callable[[nn.Module, list[str]], dict[str, str]]
"""From a network and its graph nodes, in order, to {friendly name: node after the ReLU}."""


class Build(Protocol):
    """Build a network with random weights."""

    def __call__(self, *, num_classes: int = ...) -> nn.Module: ...


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backbone:
    """A network that can be built with any number of classes, and how its layers are named.

    weights: torchvision's enum of weights, or None for the embedded backbone; pool: the pooling of its maps that
    --pool auto stands for; convolutional_head: whether it has fully connected layers that become convolutions at other
    sizes than the network's own.
    """

    name: str
    build: Build
    name_layers: NameLayers
    weights: type[WeightsEnum] | None = None
    pool: str = "avg"
    convolutional_head: bool = False


def _name_vgg_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
    """Name the ends of VGG's five blocks: conv1…conv5 (last ReLU), pool1…pool5 (max pool), then fc6 and fc7."""
    layers: dict[str, str] = {}
    features = dict(model.get_submodule("features").named_children())
    max_pools = [int(index) for index, module in features.items() if isinstance(module, nn.MaxPool2d)]
    for block, index in enumerate(max_pools, start=1):
        layers |= {f"conv{block}": f"features.{index - 1}", f"pool{block}": f"features.{index}"}
    return layers | {"fc6": "classifier.1", "fc7": "classifier.4"}


def _name_alexnet_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
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


def _name_resnet_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
    """Name the stem (after its max pool), the last ReLU of each stage, and the flattened average pool."""
    last = {node.split(".")[0]: node for node in nodes if re.match(r"layer\d\.", node)}
    return {"stem": "maxpool"} | last | {"avgpool": "flatten"}


def _name_tinyvgg_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
    return tinyvgg.LAYERS


def _name_no_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
    return {}


UNUSUAL_CLASSES = 1009
"""A number of classes that is the width of no other layer."""

OTHER_WEIGHTS = ("random", "random:SEED", "a .pth or .safetensors file")

FAMILIES: dict[str, NameLayers] = {
    "alexnet": _name_alexnet_layers,
    "vgg": _name_vgg_layers,
    "resnet": _name_resnet_layers,
    "resnext": _name_resnet_layers,
    "wide_resnet": _name_resnet_layers,
}
"""How layers get friendly names, by the prefix of torchvision's name of the network."""

BUILD_OPTIONS: dict[str, dict[str, bool]] = {
    "googlenet": {"transform_input": True, "aux_logits": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "aux_logits": True, "init_weights": False},
}
"""Options with which torchvision builds these networks for its pretrained weights."""


@cache
def registry() -> dict[str, Backbone]:
    """Return all backbones by name: the embedded one and torchvision's classification models."""
    embedded = Backbone("tinyvgg", tinyvgg.TinyVGG, _name_tinyvgg_layers, pool="avg4", convolutional_head=True)
    names = torchvision.models.list_models(module=torchvision.models)
    return {"tinyvgg": embedded} | {name: _torchvision_backbone(name) for name in names}


def _torchvision_backbone(name: str) -> Backbone:
    family = re.match(r"[a-z]+(_resnet)?", name)
    name_layers = FAMILIES.get(family.group() if family else "", _name_no_layers)
    return Backbone(
        name,
        partial(torchvision.models.get_model, name, weights=None, **BUILD_OPTIONS.get(name, {})),
        name_layers,
        torchvision.models.get_model_weights(name),
        convolutional_head=name_layers in (_name_vgg_layers, _name_alexnet_layers),
    )


def get(name: str) -> Backbone:
    """Return the backbone of that name; raise PipelineError that lists the nearest names if there is none."""
    if name not in registry():
        raise errors.unknown("backbone", name, registry())
    return registry()[name]


def at_size(backbone: Backbone, model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Return a backbone's network as it runs at a (height, width); at other sizes its head becomes convolutions."""
    native = native_transform(backbone)
    if size == native.size or not backbone.convolutional_head:
        return model
    return FullyConvolutional(model, native.crop)


def _nodes_and_layers(backbone: Backbone) -> tuple[list[str], dict[str, str]]:
    """Return the graph nodes in the order of computation, and {friendly name: node}."""
    with torch.device("meta"):
        model = backbone.build()
    nodes = get_graph_node_names(model)[1][1:]  # the first is the input
    return nodes, backbone.name_layers(model, nodes)


def find_nodes(backbone: Backbone, layers: Iterable[str]) -> dict[str, str]:
    """Return {layer: graph node} of layers given by friendly names or as nodes; raise PipelineError for others."""
    nodes, friendly = _nodes_and_layers(backbone)
    result = {layer: friendly.get(layer, layer) for layer in layers}
    for layer, node in result.items():
        if node not in nodes:
            raise errors.unknown("layer", layer, friendly or nodes, where=backbone.name)
    return result


def friendly_layers(backbone: Backbone) -> list[str]:
    """Return a backbone's layers that have friendly names, in order; raise PipelineError if it has none."""
    names = _nodes_and_layers(backbone)[1]
    if not names:
        raise errors.PipelineError(
            f"The layers of {backbone.name} have no friendly names. Name graph nodes with --layer."
        )
    return list(names)


def head_node(backbone: Backbone) -> str | None:
    """Return the node that gives the scores of the network's own classes; None if its last node gives no vector."""
    last = _nodes_and_layers(backbone)[0][-1]
    return last if len(node_shapes(backbone, [last]).get(last, ())) == 1 else None


def sort_layers(backbone: Backbone, layers: Iterable[str]) -> list[str]:
    """Return layers in the order of computation; several layers joined by + count as the last of them."""
    nodes, friendly = _nodes_and_layers(backbone)
    order = {node: number for number, node in enumerate(nodes)}
    last_layers = {layer: layer.split("+")[-1] for layer in layers}
    return sorted(last_layers, key=lambda layer: order[friendly.get(last_layers[layer], last_layers[layer])])


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
    """Return the shape of each node's output for one image; nodes that give no tensor are left out.

    size: (height, width) of the image, by default the network's own. Raises PipelineError if the network cannot run at
    that size.
    """
    native = native_transform(backbone).size
    size = size or native
    with torch.device("meta"):
        model = at_size(backbone, backbone.build().eval(), size)
        graph = trace(model, nodes)
        outputs = _outputs(graph, size)
        if outputs is None:
            raise errors.PipelineError(_explain_size(backbone.name, graph, size, native))
    return {node: tuple(output.shape[1:]) for node, output in outputs.items() if isinstance(output, torch.Tensor)}


def _outputs(graph: nn.Module, size: tuple[int, int]) -> dict[str, object] | None:
    """Return a network's outputs for one image of a size on the meta device; None where it cannot run."""
    try:
        outputs: dict[str, object] = graph(torch.empty(1, 3, *size, device="meta"))
    except (RuntimeError, AssertionError, ValueError):  # a window larger than the map; transformers assert their size
        return None
    empty = any(isinstance(output, torch.Tensor) and not output.numel() for output in outputs.values())
    return None if empty else outputs


def _explain_size(name: str, graph: nn.Module, size: tuple[int, int], native: tuple[int, int]) -> str:
    """Say that a network cannot run at a size, and which is the smallest side at which it can."""
    sides = range(min(size) + 1, max(native) + 1)
    smallest = next((side for side in sides if _outputs(graph, (side, side))), max(native))
    height, width = size
    if min(size) >= smallest:
        return f"{name} cannot run at {height}x{width} pixels, only at {native[0]}x{native[1]}. Leave --size out."
    return (
        f"{name} cannot run at {height}x{width} pixels for these layers: the least that works is --size {smallest}. "
        "Take that or more, or an earlier layer."
    )


def native_transform(backbone: Backbone) -> Transform:
    """Return the transform that the backbone was made for: that of its first ImageNet weights."""
    return _transform_of(_reference_weights(backbone))


def load(backbone: Backbone, origin: str, nodes: Collection[str] = ()) -> tuple[nn.Module, Transform]:
    """Build the network and load its weights; return it in eval mode with the transform that goes with them.

    origin: "default"; the name of one of torchvision's (IMAGENET1K_V2); "random" or "random:SEED"; or a local
    .pth, .pt, .ckpt, .bin or .safetensors file with a state dict. A file's number of classes may differ from
    ImageNet's. nodes: the graph nodes that are needed; tensors that these do not need may be missing from a file, and
    are zero then. Without nodes, all tensors are needed.
    Raises PipelineError for unknown weights, and for weights that do not fit.
    """
    reference = _reference_weights(backbone)
    if re.fullmatch(r"random(:\d+)?", origin):
        return _random_model(backbone, int(origin[7:] or 0)), _transform_of(reference)
    if Path(origin).suffix in (".pth", ".pt", ".ckpt", ".bin", ".safetensors"):
        state = weights.read_state(Path(origin).expanduser())
    elif backbone.weights is None:
        if origin != "default":
            raise errors.unknown("weights", origin, ["default", *OTHER_WEIGHTS], where=backbone.name)
        state = weights.read_state(tinyvgg.WEIGHTS, tinyvgg.SHA256)
    else:
        reference = _torchvision_weights(backbone.name, backbone.weights, origin)
        state = weights.read_state(weights.fetch(reference.url), weights.hash_in_name(reference.url))
    return _with_state(backbone, state, origin, nodes), _transform_of(reference)


def _random_model(backbone: Backbone, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return backbone.build().eval()


def _torchvision_weights(backbone: str, choices: type[WeightsEnum], origin: str) -> Weights:
    """Return the weights of that name; torchvision's long form, VGG16_Weights.IMAGENET1K_V1, is a name as well."""
    members = {"default": choices.DEFAULT} | dict(choices.__members__)
    name = origin.split(".")[-1]
    if name not in members:
        raise errors.unknown("weights", origin, [*members, *OTHER_WEIGHTS], where=backbone)
    return members[name].value


def _reference_weights(backbone: Backbone) -> Weights | None:
    """Return the weights whose transform goes with random or unknown ones: torchvision's first for ImageNet."""
    if backbone.weights is None:
        return None
    return backbone.weights.__members__.get("IMAGENET1K_V1", backbone.weights.DEFAULT).value


def _transform_of(reference: Weights | None) -> Transform:
    if reference is None:
        return Transform(tinyvgg.SIZE, tinyvgg.SIZE, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    preset = reference.transforms()
    resize, crop, interpolation = preset.resize_size[0], preset.crop_size[0], preset.interpolation.value
    return Transform(resize, crop, interpolation, tuple(preset.mean), tuple(preset.std))


def _with_state(
    backbone: Backbone, state: dict[str, torch.Tensor], origin: str, nodes: Collection[str] = ()
) -> nn.Module:
    """Build the network with as many classes as the state dict has, and load it; log what of it was not used."""
    n_tensors = len(state)
    state, prefix = weights.without_prefix(state, _tensor_names(backbone.name))
    if backbone.name.startswith("densenet"):  # torchvision's files still use the names of an older release
        state = {re.sub(r"(norm|relu|conv)\.([12])\.", r"\1\2.", name): value for name, value in state.items()}
    model = _build_for(backbone, state)
    expected = model.state_dict()
    needed = _needed_names(model, nodes) if nodes else frozenset(expected)
    parts = {name.split(".")[0] for name in needed}
    strange = {name for name in state.keys() - expected.keys() if not nodes or name.split(".")[0] in parts}
    wrong = sorted(name for name in needed | strange if not _fits(expected.get(name), state.get(name)))
    if wrong:
        raise errors.PipelineError(
            f"The weights {origin} do not fit {backbone.name}: {len(wrong)} of its tensors are missing, unknown or of "
            f"another shape, the first is {wrong[0]!r}. Choose the backbone that they were saved from."
        )
    used = {name: value for name, value in state.items() if name in expected and _fits(expected[name], value)}
    absent = {name: torch.zeros_like(value) for name, value in expected.items() if name not in used}
    model.load_state_dict(used | absent)
    if prefix:
        logger.info("%s: the prefix %r was removed from the names of its tensors.", origin, prefix)
    if n_tensors > len(used):
        logger.info("%s: %d of its %d tensors are not used.", origin, n_tensors - len(used), n_tensors)
    if absent_names := sorted(name for name in absent if expected[name].dtype != torch.int64):
        logger.info("%s lacks %r and others after the layers that are used.", origin, absent_names[0])
    return model.eval()


@cache
def _tensor_names(backbone: str) -> frozenset[str]:
    """Return the names of all of a network's tensors."""
    with torch.device("meta"):
        return frozenset(get(backbone).build().state_dict())


def _needed_names(model: nn.Module, nodes: Collection[str]) -> frozenset[str]:
    """Return the names of the tensors that some graph nodes need."""
    return frozenset(cut_graph(copy.deepcopy(model).to("meta"), set(nodes)).state_dict())


def _build_for(backbone: Backbone, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Build a network with as many classes as its head has in a state dict."""
    weight = state.get(f"{head_module(backbone)}.weight")
    if weight is None or not weight.ndim:
        return backbone.build()
    return backbone.build(num_classes=len(weight))


def head_module(backbone: Backbone) -> str:
    """Return the name of the module that gives the scores of the network's own classes.

    It is the last linear layer or 1×1 convolution with as many outputs as the network was built with classes. Raises
    PipelineError if there is none.
    """
    with torch.device("meta"):
        model = backbone.build(num_classes=UNUSUAL_CLASSES)
    heads: list[str] = [name for name, module in model.named_modules() if _n_scores(module) == UNUSUAL_CLASSES]
    if not heads:
        raise errors.PipelineError(f"{backbone.name} has no classifier. Choose another backbone.")
    return heads[-1]


def _n_scores(module: nn.Module) -> int | None:
    """Return the number of outputs of a module that may be a head, None for all other modules."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
        return module.out_channels
    return None


def _fits(expected: torch.Tensor | None, actual: torch.Tensor | None) -> bool:
    """Return whether a tensor of a state dict has the expected shape.

    Files of old releases lack the integer that counts batches, which eval mode does not use.
    """
    if expected is None or actual is None:
        return actual is None and expected is not None and expected.dtype == torch.int64
    return expected.shape == actual.shape
