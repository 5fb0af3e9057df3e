"""The friendly names of layers: which graph node of a network each name stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx
from torch import nn

from pipeline.networks.graph import ACTIVATIONS, cut_vertices, follows, outputs_of, trace

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


def name_fixed_layers(layers: Mapping[str, str]) -> NameLayers:
    """Return a function that gives the same layers, {friendly name: node}, of every network."""

    def name_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
        return dict(layers)

    return name_layers


def derive_layers(size: tuple[int, int], model: nn.Module, nodes: list[str]) -> dict[str, str]:
    """Name the layers of a network by its graph: stages where maps shrink, blocks of tokens, norm, avgpool, pre_logits.

    A layer is a node that all data flow passes through: of the maps of one size the last that an activation ends,
    or else the last. size: height and width of the images.
    """
    graph = trace(model.eval(), nodes[: _place_of_head(model, nodes)])
    outputs = graph(torch.empty(1, 3, *size, device="meta"))
    returned = {node: name for name, node in outputs_of(graph).items()}
    values = {node: outputs[returned[node]] for node in cut_vertices(graph.graph) if node in returned}
    shapes = {
        node: tuple(value.shape[1:])
        for node, value in values.items()
        if isinstance(value, torch.Tensor) and not _does_nothing(graph, node)
    }
    names = _name_stages_of_maps(graph, {node: shape for node, shape in shapes.items() if len(shape) == 3}, size)
    names |= _name_blocks_of_tokens({node: returned[node] for node, shape in shapes.items() if len(shape) == 2})
    vectors = [node for node, shape in shapes.items() if len(shape) == 1]
    names |= {"pre_logits": vectors[-1]} if vectors else {}
    names |= {"avgpool": vectors[0]} if vectors and "norm" not in names else {}
    if names.get("pre_logits") is names.get("avgpool"):
        names.pop("pre_logits", None)
    order = list(graph.graph.nodes)
    return {name: returned[node] for name, node in sorted(names.items(), key=lambda item: order.index(item[1]))}


def _name_stages_of_maps(
    graph: torch.fx.GraphModule, shapes: Mapping[torch.fx.Node, tuple[int, ...]], size: tuple[int, int]
) -> dict[str, torch.fx.Node]:
    """Name the last node of each size of maps, the last that an activation ends where there is one; shapes: of maps."""
    by_side: dict[int, list[torch.fx.Node]] = {}
    for node, shape in shapes.items():
        side = shape[1]  # of both (c, h, w) and (h, w, c)
        square = side in (shape[0], shape[2])
        if square and 1 < side < size[0] and side <= min(by_side, default=side):
            by_side.setdefault(side, []).append(node)
    ends = []
    for nodes in by_side.values():
        activated = [node for node in nodes if follows(graph, node, ACTIVATIONS)]
        ends.append((activated or nodes)[-1])
    return {f"stage{number}": node for number, node in enumerate(ends, start=1)}


def _name_blocks_of_tokens(names: Mapping[torch.fx.Node, str]) -> dict[str, torch.fx.Node]:
    """Name the last node of each numbered module, and the last of all `norm`; names: of nodes that give tokens."""
    by_module: dict[str, torch.fx.Node] = {}
    for node, name in names.items():
        if numbered := re.match(r".*?\d+(?=\.)", name):
            by_module[numbered.group()] = node
    blocks = {f"block{number}": node for number, node in enumerate(by_module.values(), start=1)}
    return blocks | ({"norm": list(names)[-1]} if blocks else {})


def _place_of_head(model: nn.Module, nodes: list[str]) -> int:
    """Return the place of the last linear layer or 1×1 convolution among the nodes: that of the head."""
    modules = dict(model.named_modules())

    def is_linear(module: nn.Module | None) -> bool:
        return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))

    return max((place for place, node in enumerate(nodes) if is_linear(modules.get(node))), default=len(nodes) - 1)


def _does_nothing(graph: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Return whether a node's output is its input in eval mode."""
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), (nn.Dropout, nn.Identity))


def name_timm_layers(model: nn.Module, nodes: list[str]) -> dict[str, str]:
    """Name the layers of timm's networks: those of VGG and ResNet as torchvision's, all others by timm's stages."""
    kind = type(model).__name__
    if kind == "VGG":
        return name_vgg_layers(model, nodes) | {"fc6": "pre_logits.act1", "fc7": "pre_logits.act2"}
    pooled = _last_of(nodes, "global_pool", "head.global_pool")
    if kind == "ResNet":
        return name_resnet_layers(model, nodes) | {"avgpool": pooled}
    head = _last_of(nodes, "conv_head", "bn2", "norm_head", "act2", "act") if hasattr(model, "conv_head") else ""
    ends = {"head": head, "norm": _last_of(nodes, "norm"), "avgpool": pooled, "pre_logits": _before_head(model, nodes)}
    named = _name_stages(model, nodes) | {name: node for name, node in ends.items() if node}
    last = list(named.values())
    return {name: node for number, (name, node) in enumerate(named.items()) if node not in last[:number]}


def _name_stages(model: nn.Module, nodes: list[str]) -> dict[str, str]:
    """Name the stages that timm lists: stage1… where maps shrink from one to the next, block1… where they do not."""
    stages: list[dict[str, Any]] = list(getattr(model, "feature_info", []))
    same_size = len(stages) > 1 and len({stage["reduction"] for stage in stages}) == 1
    word = "block" if same_size else "stage"
    named = {f"{word}{number}": _last_of(nodes, stage["module"]) for number, stage in enumerate(stages, start=1)}
    return {name: node for name, node in named.items() if node}


def _last_of(nodes: list[str], *modules: str) -> str:
    """Return the last node of some modules, the modules themselves included; "" where there is none."""
    inside = [node for node in nodes if any(node == module or node.startswith(f"{module}.") for module in modules)]
    return inside[-1] if inside else ""


def _before_head(model: nn.Module, nodes: list[str]) -> str:
    """Return the node whose output the head takes; "" where the last node is no head."""
    modules = dict(model.named_modules())
    if not isinstance(modules.get(nodes[-1]), nn.Linear):
        return ""
    before = [node for node in nodes[:-1] if not isinstance(modules.get(node), (nn.Dropout, nn.Identity))]
    return before[-1]


FAMILIES: dict[str, NameLayers] = {
    "alexnet": name_alexnet_layers,
    "vgg": name_vgg_layers,
    "resnet": name_resnet_layers,
    "resnext": name_resnet_layers,
    "wide_resnet": name_resnet_layers,
}
"""How layers get friendly names, by the prefix of torchvision's name of the network."""

LAST_LAYERS = {
    **dict.fromkeys(("tinyvgg", "alexnet", "vgg"), "fc7"),
    **dict.fromkeys(("maxvit", "mobilenet_v3", "vit"), "pre_logits"),
    "squeezenet": "stage4",
}
"""The last named layer, by the start of a backbone's name, where it is not `avgpool`."""


def last_layer(backbone: str) -> str:
    """Return the last named layer of a backbone that is no timm's, by its name alone: tracing all takes minutes."""
    return next((layer for start, layer in LAST_LAYERS.items() if backbone.startswith(start)), "avgpool")
