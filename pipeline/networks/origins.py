"""Where the weights of a backbone come from: a package, torchvision's server; and the transform that goes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torchvision.models import ResNet18_Weights, Weights, WeightsEnum

from pipeline import errors
from pipeline.images.transforms import Transform
from pipeline.networks import weights

DEFAULT = "default"
OTHER_WEIGHTS = ("random", "random:SEED", "a .pth or .safetensors file")
"""What --weights takes for every backbone, beside the names of its pretrained weights."""

State = dict[str, torch.Tensor]


def imagenet_classes() -> tuple[str, ...]:
    """Return the names of the 1,000 classes of ImageNet's challenge, in the order of every network's scores."""
    return tuple(ResNet18_Weights.DEFAULT.value.meta["categories"])


@dataclass(frozen=True)
class Published:
    """What the publishers of some weights say of them.

    top1: {name of the weights: share of the source's validation images that they predict correctly}, None where it is
    not published; n_parameters: of the network, None where it is not published.
    """

    top1: Mapping[str, float | None]
    n_parameters: int | None = None


class PretrainedWeights(Protocol):
    """The pretrained weights of one backbone, by name; an unknown name raises PipelineError."""

    def transform(self, name: str = ..., /, *, test_size: bool = ...) -> Transform:
        """Return the transform of the weights of that name, by default the one for random or unknown weights.

        test_size: whether images have the size at which the weights were tested, where that is not their usual one.
        """
        ...

    def class_names(self, name: str, /) -> tuple[str, ...]:
        """Return the names of the classes of the weights of that name, in the order of the scores; () if unknown."""
        ...

    def n_classes(self, name: str, /) -> int:
        """Return the number of classes of the weights of that name; 0 if they are for features alone."""
        ...

    def published(self) -> Published:
        """Return what is published of the weights; the first name is that of the default."""
        ...

    def read(self, name: str, /) -> State:
        """Return the state dict of that name."""
        ...


@dataclass(frozen=True)
class PackagedWeights:
    """Weights in a file that is installed with the program; their only name is "default".

    find: returns the file; sha256: of the file, in hex; own_transform: that of the weights; read_classes: returns the
    names of their classes; top1: as in `Published`.
    """

    backbone: str
    find: Callable[[], Path]
    sha256: str
    own_transform: Transform
    read_classes: Callable[[], tuple[str, ...]]
    top1: float | None = None

    def transform(self, name: str = DEFAULT, *, test_size: bool = False) -> Transform:
        """Return the transform of the weights, which have one size."""
        self._validate(name)
        return self.own_transform

    def class_names(self, name: str) -> tuple[str, ...]:
        """Return the names of the classes."""
        self._validate(name)
        return self.read_classes()

    def n_classes(self, name: str) -> int:
        """Return the number of classes."""
        return len(self.class_names(name))

    def published(self) -> Published:
        """Return the accuracy of the only weights."""
        return Published({DEFAULT: self.top1})

    def read(self, name: str) -> State:
        """Return the state dict of the file."""
        self._validate(name)
        return weights.read_state(self.find(), self.sha256)

    def _validate(self, name: str) -> None:
        if name != DEFAULT:
            raise errors.unknown("weights", name, [DEFAULT, *OTHER_WEIGHTS], where=self.backbone)


@dataclass(frozen=True)
class TorchvisionWeights:
    """The weights that torchvision names, downloaded when they are first read; choices: torchvision's enum of them."""

    backbone: str
    choices: type[WeightsEnum]

    def transform(self, name: str = "", *, test_size: bool = False) -> Transform:
        """Return the transform of the weights of that name, by default of the first ones for ImageNet; each has one."""
        first = "IMAGENET1K_V1" if "IMAGENET1K_V1" in self.choices.__members__ else DEFAULT
        preset = self.find(name or first).transforms()
        resize, crop, interpolation = preset.resize_size[0], preset.crop_size[0], preset.interpolation.value
        return Transform(resize, crop, interpolation, tuple(preset.mean), tuple(preset.std))

    def class_names(self, name: str) -> tuple[str, ...]:
        """Return torchvision's names of the classes; () for weights that are for features alone."""
        return tuple(self.find(name).meta["categories"] or ())

    def n_classes(self, name: str) -> int:
        """Return the number of torchvision's names of classes."""
        return len(self.class_names(name))

    def published(self) -> Published:
        """Return what torchvision's metadata say."""
        entries = {DEFAULT: self.find(DEFAULT)} | {member.name: member.value for member in self.choices}
        top1 = {name: entry.meta["_metrics"]["ImageNet-1K"]["acc@1"] for name, entry in entries.items()}
        shares = {name: share / 100 if share else None for name, share in top1.items()}
        return Published(shares, entries[DEFAULT].meta["num_params"])

    def read(self, name: str) -> State:
        """Return the state dict of the weights of that name."""
        url = self.find(name).url
        return weights.read_state(weights.fetch(url), weights.hash_in_name(url))

    def find(self, name: str) -> Weights:
        """Return torchvision's weights of a name like IMAGENET1K_V1 or VGG16_Weights.IMAGENET1K_V1, or "default"."""
        members = {DEFAULT: self.choices.DEFAULT} | dict(self.choices.__members__)
        short = name.split(".")[-1]
        if short not in members:
            raise errors.unknown("weights", name, [*members, *OTHER_WEIGHTS], where=self.backbone)
        chosen: Weights = members[short].value
        return chosen
