"""timm's classification networks: their names, how they are built, and where their weights come from."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

from pipeline import errors
from pipeline.images.transforms import RESAMPLING, Transform
from pipeline.networks import weights
from pipeline.networks.origins import DEFAULT, OTHER_WEIGHTS, State

PREFIX = "timm/"
"""What stands before timm's name of a network in the name of a backbone."""

HUB, FOLDER = "hf-hub:", "local-dir:"
"""What stands before a repository of Hugging Face's hub, or a folder laid out like one, in --weights."""

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in a repository of the hub, the one to prefer first."""

LISTED = 20
"""Number of networks that a listing shows at most."""

CONVERTERS = ("checkpoint_filter_fn", "_filter_fn", "pretrained_filter_fn", "_filter_torchvision_pretrained")
"""What timm's modules call the function that converts other programs' state dicts to their own names and shapes."""


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


def transform_of(config: Mapping[str, Any]) -> Transform:
    """Return the transform for which timm's configuration of weights was made."""
    from timm.data import resolve_data_config

    data = resolve_data_config(pretrained_cfg=dict(config))
    if data["interpolation"] not in RESAMPLING:
        raise errors.unknown("interpolation", data["interpolation"], RESAMPLING)
    _, height, width = data["input_size"]
    squashed = data["crop_mode"] == "squash"
    return Transform(
        resize=min(height, width) if squashed else math.floor(min(height, width) / data["crop_pct"]),
        crop=height,
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        crop_width=0 if height == width else width,
        fit="whole" if squashed else "crop",
    )


@dataclass(frozen=True)
class TimmWeights:
    """The weights of a network of timm's: those of its configuration, of a repository of the hub, or of a folder.

    name: of the network, as NAME or NAME.TAG.
    """

    name: str

    def transform(self) -> Transform:
        """Return the transform of the network's own weights."""
        return transform_of(find_config(self.name).to_dict())

    def read(self, name: str) -> tuple[State, Transform]:
        """Return the state dict and the transform of "default", "hf-hub:OWNER/NAME" or "local-dir:FOLDER"."""
        if name.startswith(HUB):
            repository = name.removeprefix(HUB)
            config = json.loads(fetch(repository, ("config.json",)).read_text(encoding="utf-8"))
            return weights.read_state(fetch(repository, WEIGHTS_FILES)), self._transform_in(config)
        if name.startswith(FOLDER):
            return self._read_folder(Path(name.removeprefix(FOLDER)).expanduser())
        if name != DEFAULT:
            raise errors.unknown("weights", name, [DEFAULT, HUB, FOLDER, *OTHER_WEIGHTS], where=PREFIX + self.name)
        return self._read_default(), self.transform()

    def _read_default(self) -> State:
        config = find_config(self.name)
        if config.hf_hub_id:
            file_names = (config.hf_hub_filename,) if config.hf_hub_filename else WEIGHTS_FILES
            return weights.read_state(fetch(config.hf_hub_id, file_names))
        if not config.url:
            raise errors.PipelineError(
                f"timm has no weights for {PREFIX}{self.name}. Take --weights FILE, or {self._with_weights()}."
            )
        url = str(config.url)
        return weights.read_state(weights.fetch(url), weights.hash_in_name(url))

    def _with_weights(self) -> str:
        """Name some networks that have weights, the most similar first."""
        return " or ".join(errors.nearest(PREFIX + self.name, names(f"{self.name[:4]}*") or names())[:3])

    def _read_folder(self, folder: Path) -> tuple[State, Transform]:
        found = [folder / name for name in WEIGHTS_FILES if (folder / name).exists()]
        if not found:
            listed = " or ".join(WEIGHTS_FILES)
            raise errors.PipelineError(f"{folder} has no {listed}. Take --weights FILE.")
        config = folder / "config.json"
        content = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        return weights.read_state(found[0]), self._transform_in(content)

    def _transform_in(self, config: Mapping[str, Any]) -> Transform:
        """Return the transform of a repository's config.json; what it leaves out is as for the network's weights."""
        return transform_of(find_config(self.name).to_dict() | config.get("pretrained_cfg", {}))


def describe(name: str) -> str:
    """Return one line about a network with weights: name, parameters, size of the images, whether weights are here."""
    own_name = name.removeprefix(PREFIX)
    with torch.device("meta"):
        n_parameters = sum(parameter.numel() for parameter in build(own_name).parameters())
    size = "×".join(map(str, find_config(own_name).input_size[1:]))
    return f"{name:<56} {n_parameters / 1e6:>8.1f} {size:>9}  {'here' if has_weights(own_name) else 'to download'}"


def has_weights(name: str) -> bool:
    """Return whether the weights of a network are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    config = find_config(name)
    if not config.hf_hub_id:
        return bool(config.url) and weights.hub_path(str(config.url)).exists()
    files = (config.hf_hub_filename,) if config.hf_hub_filename else WEIGHTS_FILES
    cached = any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files)
    return cached or place_by_hand(config.hf_hub_id).exists()


def listing(pattern: str) -> str:
    """Return a table of timm's networks that fit a pattern like timm/*resnet*50*, cut to some rows; "timm" fits all."""
    fitting = names("" if pattern == PREFIX.rstrip("/") else pattern)
    if not fitting:
        raise errors.PipelineError(
            f"No network of timm's fits {pattern!r}. Try another pattern, as 'timm/*resnet*50*'."
        )
    shown = fitting[:LISTED]
    lines = [f"{'backbone':<56} {'million':>8} {'pixels':>9}  weights", *map(describe, shown)]
    if more := len(fitting) - len(shown):
        lines.append(f"… and {more} more. Narrow them by a pattern: --list 'timm/*resnet*50*'.")
    return "\n".join(lines)


def place_by_hand(repository: str) -> Path:
    """Return where a file of weights may be put by hand, for machines without internet."""
    return weights.hub_path(f"{repository.split('/')[-1]}.safetensors")


def fetch(repository: str, file_names: tuple[str, ...]) -> Path:
    """Return the first of some files that a repository of Hugging Face's hub has, from its cache or by download.

    The hub names files in its cache by their SHA-256, which is checked each time. Raises PipelineError if there is no
    such file, or if it is damaged.
    """
    by_hand = place_by_hand(repository)
    if by_hand.exists() and "config.json" not in file_names:
        return by_hand
    reasons = []
    for file_name in file_names:
        try:
            return _verified(Path(_download(repository, file_name)))
        except OSError as error:  # the hub's errors are all of this kind: no network, no such file, read-only cache
            reasons.append(error)
    url = f"https://huggingface.co/{repository}/resolve/main/{file_names[0]}"
    raise errors.PipelineError(
        f"Cannot fetch {url} ({errors.first_line(reasons[0])}). Put the file at {by_hand} by hand, or take "
        "--weights FILE."
    ) from reasons[0]


def _download(repository: str, file_name: str) -> str:
    from huggingface_hub import hf_hub_download

    name, _, revision = repository.partition("@")
    return cast(Callable[..., str], hf_hub_download)(name, file_name, revision=revision or None)


def _verified(path: Path) -> Path:
    """Return a file of the hub's cache; raise PipelineError if its name there is not the SHA-256 of its content."""
    digest = path.resolve().name
    if len(digest) == 64 and weights.sha256_of(path) != digest:
        raise errors.PipelineError(f"{path} is damaged: its SHA-256 is not {digest}. Delete {path.resolve()}.")
    return path
