"""The backbones: which networks there are, their layers by name, and how each is built with its weights."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import torch
import torchvision
from torch import nn

from pipeline import errors
from pipeline.images.transforms import Transform
from pipeline.networks import efficientnet_lite0, layer_names, timm_models, timm_weights, tinyvgg, weights
from pipeline.networks.graph import cut_graph
from pipeline.networks.layer_names import NameLayers
from pipeline.networks.origins import PackagedWeights, PretrainedWeights, State, TorchvisionWeights, imagenet_classes


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
    PackagedWeights(
        "tinyvgg", lambda: tinyvgg.WEIGHTS, tinyvgg.SHA256, tinyvgg.TRANSFORM, tinyvgg.class_names, tinyvgg.TOP1
    ),
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
        imagenet_classes,
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
        timm_weights.TimmWeights(own_name),
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


def native_transform(backbone: Backbone) -> Transform:
    """Return the transform that the backbone was made for: that of its first ImageNet weights."""
    return backbone.pretrained.transform()


def transform_of(backbone: Backbone, origin: str, test_size: bool = False) -> Transform:
    """Return the transform that goes with some weights, without reading them.

    origin: as `load` takes it; test_size: whether the images have the size at which the weights were tested.
    """
    names = [] if is_random(origin) or is_file(origin) else [origin]
    return backbone.pretrained.transform(*names, test_size=test_size)


def load(backbone: Backbone, origin: str, nodes: Collection[str] = ()) -> tuple[nn.Module, Transform]:
    """Build the network and load its weights; return it in eval mode with the transform that goes with them.

    origin: "default"; the name of one of torchvision's (IMAGENET1K_V2); "random" or "random:SEED"; or a local
    .pth, .pt, .ckpt, .bin or .safetensors file with a state dict. A file's number of classes may differ from
    ImageNet's. nodes: the graph nodes that are needed; tensors that these do not need may be missing from a file, and
    are zero then. Without nodes, all tensors are needed.
    Raises PipelineError for unknown weights, and for weights that do not fit.
    """
    transform = transform_of(backbone, origin)
    if is_random(origin):
        return _random_model(backbone, int(origin[7:] or 0)), transform
    state = weights.read_state(Path(origin).expanduser()) if is_file(origin) else backbone.pretrained.read(origin)
    return _with_state(backbone, state, origin, nodes), transform


def is_random(origin: str) -> bool:
    """Return whether weights are random ones, "random" or "random:SEED"."""
    return re.fullmatch(r"random(:\d+)?", origin) is not None


def is_file(origin: str) -> bool:
    """Return whether weights are those of a local file, by the ending of its name."""
    return Path(origin).suffix in (".pth", ".pt", ".ckpt", ".bin", ".safetensors")


def _random_model(backbone: Backbone, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return backbone.build().eval()


def _with_state(
    backbone: Backbone, state: dict[str, torch.Tensor], origin: str, nodes: Collection[str] = ()
) -> nn.Module:
    """Build the network with as many classes as the state dict has, and load it; log what of it was not used."""
    n_tensors = len(state)
    state, prefix = with_own_names(backbone, state)
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
    expected.update(used | absent)  # keeps the versions of its modules, without which some refuse a state dict
    model.load_state_dict(expected)
    if prefix:
        logger.info("%s: the prefix %r was removed from the names of its tensors.", origin, prefix)
    if n_tensors > len(used):
        logger.info("%s: %d of its %d tensors are not used.", origin, n_tensors - len(used), n_tensors)
    if absent_names := sorted(name for name in absent if expected[name].dtype != torch.int64):
        logger.info("%s lacks %r and others after the layers that are used.", origin, absent_names[0])
    return model.eval()


def with_own_names(backbone: Backbone, state: State) -> tuple[State, str]:
    """Return a state dict by the names of tensors that the network has, and the prefix that was removed for that."""
    own, prefix = weights.without_prefix(state, _tensor_names(backbone.name))
    return backbone.convert(own), prefix


@cache
def _tensor_names(backbone: str) -> frozenset[str]:
    """Return the names of all of a network's tensors."""
    return frozenset(build_on_meta(get(backbone)).state_dict())


def _needed_names(model: nn.Module, nodes: Collection[str]) -> frozenset[str]:
    """Return the names of the tensors that some graph nodes need; a trace adds constants, which no file has."""
    needed = cut_graph(copy.deepcopy(model).to("meta"), set(nodes)).state_dict()
    return frozenset(model.state_dict()) & frozenset(needed)


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
    heads: list[str] = [name for name, module in model.named_modules() if n_scores(module) == UNUSUAL_CLASSES]
    if not heads:
        raise errors.PipelineError(f"{backbone.name} has no classifier. Choose another backbone.")
    return heads[-1]


def n_scores(module: nn.Module) -> int | None:
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
