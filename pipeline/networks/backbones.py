"""The backbones: which networks there are, their layers by name, and how each is built with its weights."""

from __future__ import annotations

import copy
import io
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Protocol

import torch
import torchvision
from torch import nn

from pipeline import errors
from pipeline.images.transforms import Transform
from pipeline.networks import efficientnet_lite0, layer_names, pooling, timm_models, tinyvgg, weights
from pipeline.networks.fully_convolutional import FullyConvolutional
from pipeline.networks.graph import cut_graph, node_names, trace
from pipeline.networks.layer_names import NameLayers
from pipeline.networks.origins import PackagedWeights, PretrainedWeights, State, TorchvisionWeights


class Build(Protocol):
    """Build a network with random weights."""

    def __call__(self, *, num_classes: int = ...) -> nn.Module: ...


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backbone:
    """A network that can be built with any number of classes, and how its layers are named.

    pretrained: its weights by name; pool: the pooling of its maps that --pool auto stands for; convolutional_head:
    whether it has fully connected layers that become convolutions at other sizes than the network's own; convert: turns
    a state dict with another release's or program's names of tensors into one with the network's; may_lack_head:
    whether it can be built without a head, with 0 classes.
    """

    name: str
    build: Build
    name_layers: NameLayers
    pretrained: PretrainedWeights
    pool: str = "avg"
    convolutional_head: bool = False
    convert: Callable[[State], State] = dict
    may_lack_head: bool = False


UNUSUAL_CLASSES = 1009
"""A number of classes that is the width of no other layer."""

BUILD_OPTIONS: dict[str, dict[str, bool]] = {
    "googlenet": {"transform_input": True, "aux_logits": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "aux_logits": True, "init_weights": False},
}
"""Options with which torchvision builds these networks for its pretrained weights."""


TINYVGG = Backbone(
    "tinyvgg",
    tinyvgg.TinyVGG,
    layer_names.name_fixed_layers(tinyvgg.LAYERS),
    PackagedWeights("tinyvgg", lambda: tinyvgg.WEIGHTS, tinyvgg.SHA256, tinyvgg.TRANSFORM),
    pool="avg4",
    convolutional_head=True,
)

EFFICIENTNET_LITE0 = Backbone(
    efficientnet_lite0.NAME,
    efficientnet_lite0.build,
    layer_names.name_fixed_layers(efficientnet_lite0.LAYERS),
    PackagedWeights(
        efficientnet_lite0.NAME,
        efficientnet_lite0.find_weights,
        efficientnet_lite0.SHA256,
        efficientnet_lite0.TRANSFORM,
    ),
    convert=efficientnet_lite0.rename,
)


@cache
def registry() -> dict[str, Backbone]:
    """Return all backbones by name: the two whose weights are installed, and torchvision's classification models."""
    names = torchvision.models.list_models(module=torchvision.models)
    installed = {backbone.name: backbone for backbone in (TINYVGG, EFFICIENTNET_LITE0)}
    return installed | {name: _torchvision_backbone(name) for name in names}


def _torchvision_backbone(name: str) -> Backbone:
    family = re.match(r"[a-z]+(_resnet)?", name)
    pretrained = TorchvisionWeights(name, torchvision.models.get_model_weights(name))
    name_layers = layer_names.FAMILIES.get(
        family.group() if family else "",
        lambda model, nodes: layer_names.derive_layers(pretrained.transform().size, model, nodes),
    )
    return Backbone(
        name,
        partial(torchvision.models.get_model, name, weights=None, **BUILD_OPTIONS.get(name, {})),
        name_layers,
        pretrained,
        convolutional_head=name_layers in (layer_names.name_vgg_layers, layer_names.name_alexnet_layers),
        convert=_rename_densenet if name.startswith("densenet") else dict,
    )


def _rename_densenet(state: State) -> State:
    """Return a DenseNet's state dict by current names: torchvision's files still use those of an older release."""
    return {re.sub(r"(norm|relu|conv)\.([12])\.", r"\1\2.", name): value for name, value in state.items()}


@cache
def _timm_backbone(name: str) -> Backbone:
    own_name = name.removeprefix(timm_models.PREFIX)
    timm_models.find_config(own_name)
    return Backbone(
        name,
        partial(timm_models.build, own_name),
        layer_names.name_timm_layers,
        timm_models.TimmWeights(own_name),
        convert=partial(timm_models.convert, own_name),
        may_lack_head=True,
    )


def get(name: str) -> Backbone:
    """Return the backbone of that name; raise PipelineError that lists the nearest names if there is none."""
    if name.startswith(timm_models.PREFIX):
        return _timm_backbone(name)
    if name not in registry():
        raise errors.unknown("backbone", name, registry())
    return registry()[name]


def build_on_meta(backbone: Backbone, **classes: int) -> nn.Module:
    """Build a network without memory for its weights."""
    try:
        with torch.device("meta"):
            return backbone.build(**classes)
    except NotImplementedError:  # torchvision's RegNet computes its widths with tensors
        with torch.device("cpu"):
            return backbone.build(**classes).to("meta")


def at_size(backbone: Backbone, model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Return a backbone's network as it runs at a (height, width); at other sizes its head becomes convolutions."""
    native = native_transform(backbone)
    if size == native.size or not backbone.convolutional_head:
        return model
    return FullyConvolutional(model, native.crop)


@lru_cache(maxsize=8)
def _nodes_and_layers(backbone: Backbone) -> tuple[list[str], dict[str, str]]:
    """Return the graph nodes in the order of computation, and {friendly name: node}."""
    model = build_on_meta(backbone)
    try:
        nodes = node_names(model)
    except Exception as error:  # what torch.fx raises depends on the network's own code
        raise _untraceable(backbone.name) from error
    return nodes, backbone.name_layers(model, nodes)


def _untraceable(name: str) -> errors.PipelineError:
    return errors.PipelineError(
        f"The layers of {name} cannot be cut, because torch.fx cannot trace it. Choose another backbone, for instance "
        "efficientnet_lite0, resnet50 or timm/vit_small_patch14_dinov2."
    )


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
    """Return the node that gives the scores of the network's own classes; None if it has none, or gives no vector."""
    last = _nodes_and_layers(backbone)[0][-1]
    model = build_on_meta(backbone)
    if _n_scores(model.get_submodule(head_module(backbone))) is None:  # built without its head
        return None
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
        model = at_size(backbone, build_on_meta(backbone).eval(), size)
        graph = trace(model, nodes)
        outputs = _outputs(graph, size)
        if outputs is None and size == native:
            raise _untraceable(backbone.name)
        if outputs is None:
            raise errors.PipelineError(_explain_size(backbone.name, graph, size, native))
    return {node: tuple(output.shape[1:]) for node, output in outputs.items() if isinstance(output, torch.Tensor)}


def node_layouts(backbone: Backbone, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, pooling.Layout]:
    """Return how the outputs of some graph nodes are laid out, by their shapes at any size; unknown ones are left out.

    The axes are told apart by the shapes at the network's own size, where images are square.
    """
    native = node_shapes(backbone, shapes)
    prefix = prefix_tokens(build_on_meta(backbone))
    layouts = {node: pooling.layout_of(shape, native.get(node, shape), prefix) for node, shape in shapes.items()}
    return {node: layout for node, layout in layouts.items() if layout}


def prefix_tokens(model: nn.Module) -> pooling.Prefix | None:
    """Return the tokens that a transformer puts before those of its patches; None where the network does not say."""
    has_class_token = any(getattr(model, name, None) is not None for name in ("cls_token", "class_token"))
    n_tokens = getattr(model, "num_prefix_tokens", 1 if has_class_token else None)
    return pooling.Prefix(n_tokens, has_class_token) if isinstance(n_tokens, int) else None


def _outputs(graph: nn.Module, size: tuple[int, int]) -> dict[str, object] | None:
    """Return a network's outputs for one image of a size on the meta device; None where it cannot run."""
    try:
        with redirect_stderr(io.StringIO()):  # where torch.fx prints a traceback of its own
            outputs: dict[str, object] = graph(torch.empty(1, 3, *size, device="meta"))
    except (RuntimeError, AssertionError, ValueError):  # a window larger than the map; transformers assert their size
        return None
    except (AttributeError, TypeError):  # a trace that took the wrong branch
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
    return backbone.pretrained.transform()


def load(backbone: Backbone, origin: str, nodes: Collection[str] = ()) -> tuple[nn.Module, Transform]:
    """Build the network and load its weights; return it in eval mode with the transform that goes with them.

    origin: "default"; the name of one of torchvision's (IMAGENET1K_V2); "random" or "random:SEED"; or a local
    .pth, .pt, .ckpt, .bin or .safetensors file with a state dict. A file's number of classes may differ from
    ImageNet's. nodes: the graph nodes that are needed; tensors that these do not need may be missing from a file, and
    are zero then. Without nodes, all tensors are needed.
    Raises PipelineError for unknown weights, and for weights that do not fit.
    """
    transform = native_transform(backbone)
    if re.fullmatch(r"random(:\d+)?", origin):
        return _random_model(backbone, int(origin[7:] or 0)), transform
    if Path(origin).suffix in (".pth", ".pt", ".ckpt", ".bin", ".safetensors"):
        state = weights.read_state(Path(origin).expanduser())
    else:
        state, transform = backbone.pretrained.read(origin)
    return _with_state(backbone, state, origin, nodes), transform


def _random_model(backbone: Backbone, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return backbone.build().eval()


def _with_state(
    backbone: Backbone, state: dict[str, torch.Tensor], origin: str, nodes: Collection[str] = ()
) -> nn.Module:
    """Build the network with as many classes as the state dict has, and load it; log what of it was not used."""
    n_tensors = len(state)
    state, prefix = weights.without_prefix(state, _tensor_names(backbone.name))
    state = backbone.convert(state)
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
    return frozenset(build_on_meta(get(backbone)).state_dict())


def _needed_names(model: nn.Module, nodes: Collection[str]) -> frozenset[str]:
    """Return the names of the tensors that some graph nodes need."""
    return frozenset(cut_graph(copy.deepcopy(model).to("meta"), set(nodes)).state_dict())


def _build_for(backbone: Backbone, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Build a network with as many classes as its head has in a state dict."""
    weight = state.get(f"{head_module(backbone)}.weight")
    if weight is None or not weight.ndim:
        return backbone.build(num_classes=0) if backbone.may_lack_head else backbone.build()
    return backbone.build(num_classes=len(weight))


def head_module(backbone: Backbone) -> str:
    """Return the name of the module that gives the scores of the network's own classes.

    It is the last linear layer or 1×1 convolution with as many outputs as the network was built with classes. Raises
    PipelineError if there is none.
    """
    model = build_on_meta(backbone, num_classes=UNUSUAL_CLASSES)
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
