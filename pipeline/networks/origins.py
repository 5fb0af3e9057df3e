"""Where the weights of a backbone come from: a package, torchvision's server; and the transform that goes with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torchvision.models import Weights, WeightsEnum

from pipeline import errors
from pipeline.images.transforms import Transform
from pipeline.networks import weights

DEFAULT = "default"
OTHER_WEIGHTS = ("random", "random:SEED", "a .pth or .safetensors file")
"""What --weights takes for every backbone, beside the names of its pretrained weights."""

State = dict[str, torch.Tensor]


class PretrainedWeights(Protocol):
    """The pretrained weights of one backbone, by name."""

    def transform(self) -> Transform:
        """Return the transform that goes with random or unknown weights."""
        ...

    def read(self, name: str) -> tuple[State, Transform]:
        """Return the state dict of that name and its transform; raise PipelineError for an unknown name."""
        ...


@dataclass(frozen=True)
class PackagedWeights:
    """Weights in a file that is installed with the program; their only name is "default".

    find: returns the file; sha256: of the file, in hex; own_transform: that of the weights.
    """

    backbone: str
    find: Callable[[], Path]
    sha256: str
    own_transform: Transform

    def transform(self) -> Transform:
        """Return the transform of the weights."""
        return self.own_transform

    def read(self, name: str) -> tuple[State, Transform]:
        """Return the state dict of the file and its transform."""
        if name != DEFAULT:
            raise errors.unknown("weights", name, [DEFAULT, *OTHER_WEIGHTS], where=self.backbone)
        return weights.read_state(self.find(), self.sha256), self.own_transform


@dataclass(frozen=True)
class TorchvisionWeights:
    """The weights that torchvision names, downloaded when they are first read; choices: torchvision's enum of them."""

    backbone: str
    choices: type[WeightsEnum]

    def transform(self) -> Transform:
        """Return the transform of the first weights for ImageNet."""
        return _transform_of(self.choices.__members__.get("IMAGENET1K_V1", self.choices.DEFAULT).value)

    def read(self, name: str) -> tuple[State, Transform]:
        """Return weights by torchvision's name, as IMAGENET1K_V1 or VGG16_Weights.IMAGENET1K_V1, or "default"."""
        members = {DEFAULT: self.choices.DEFAULT} | dict(self.choices.__members__)
        short = name.split(".")[-1]
        if short not in members:
            raise errors.unknown("weights", name, [*members, *OTHER_WEIGHTS], where=self.backbone)
        chosen: Weights = members[short].value
        state = weights.read_state(weights.fetch(chosen.url), weights.hash_in_name(chosen.url))
        return state, _transform_of(chosen)


def _transform_of(chosen: Weights) -> Transform:
    preset = chosen.transforms()
    resize, crop, interpolation = preset.resize_size[0], preset.crop_size[0], preset.interpolation.value
    return Transform(resize, crop, interpolation, tuple(preset.mean), tuple(preset.std))
