"""timm's classification networks: their names, how they are built, and how state dicts get their names of tensors."""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

from pipeline import errors
from pipeline.networks.origins import State

PREFIX = "timm/"
"""What stands before timm's name of a network in the name of a backbone."""

HUB, FOLDER = "hf-hub:", "local-dir:"
"""What stands before a repository of Hugging Face's hub, or a folder laid out like one, in --weights."""

LISTED = 20
"""Number of networks that a listing shows at most."""

CONVERTERS = ("checkpoint_filter_fn", "_filter_fn", "pretrained_filter_fn", "_filter_torchvision_pretrained")
"""What timm's modules call the function that converts other programs' state dicts to their own names and shapes."""


RELATIVES = {
    "gemma4_vit": ("qwen3_vit_88m", "vit_base_patch16_siglip_224"),
    "hiera": ("sam2_hiera_tiny", "mvitv2_tiny"),
    "mobilenetv5": ("mobilenetv4_conv_small", "mobilenetv3_large_100"),
}
"""{module of timm's whose networks torch.fx cannot trace: similar networks that it can}."""


def relatives(name: str) -> list[str]:
    """Return traceable backbones that are similar to one that cannot be traced; [] where none is known."""
    from timm.models import is_model_in_modules

    own_name = name.removeprefix(PREFIX).split(".")[0]
    found = [similar for module, similar in RELATIVES.items() if is_model_in_modules(own_name, {module})]
    return [PREFIX + network for similar in found for network in similar]


def names(pattern: str = "") -> list[str]:
    """Return timm's networks with pretrained weights whose name fits a pattern like *resnet*50*, with their tags."""
    import timm

    return [PREFIX + name for name in timm.list_pretrained(pattern.removeprefix(PREFIX))]


@cache
def find_config(name: str) -> PretrainedCfg:
    """Return timm's configuration of a network, NAME or NAME.TAG; raise PipelineError for an unknown name."""
    import timm

    choices = timm.list_pretrained() if "." in name else timm.list_models()
    if name not in choices:
        raise errors.unknown("backbone", PREFIX + name, (PREFIX + choice for choice in choices))
    config = timm.models.get_pretrained_cfg(name)
    if config is None:
        raise errors.PipelineError(f"timm describes no input for {PREFIX}{name}. Choose another backbone.")
    return config


def build(name: str, *, num_classes: int | None = None) -> nn.Module:
    """Build a network of timm's with random weights; by default it has the classes of its pretrained weights.

    VGG's fully connected layers, which timm computes as one step, become a sequence, so that each of them is a layer.
    """
    import timm

    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    if isinstance(model, timm.models.VGG):
        model.set_submodule("pre_logits", nn.Sequential(OrderedDict(model.pre_logits.named_children())))
    return model


def convert(name: str, state: State) -> State:
    """Return a state dict by timm's names and shapes, as timm does when it loads files of other programs."""
    with torch.device("meta"):
        model = build(name)
    module = sys.modules[type(model).__module__]
    convert_state = next((getattr(module, function) for function in CONVERTERS if hasattr(module, function)), None)
    if convert_state is None:
        return state
    takes_model = len(inspect.signature(convert_state).parameters) > 1
    converted: State = convert_state(dict(state), model) if takes_model else convert_state(dict(state))
    return converted
