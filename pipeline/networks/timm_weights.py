"""The weights of timm's networks: from Hugging Face's hub or a folder like it, with transform and names of classes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

from pipeline import errors, files
from pipeline.images.transforms import RESAMPLING, Transform
from pipeline.networks import timm_models, weights
from pipeline.networks.origins import DEFAULT, OTHER_WEIGHTS, Published, State, imagenet_classes
from pipeline.networks.timm_models import PREFIX

HUB, FOLDER = "hf-hub:", "local-dir:"
"""What stands before a repository of Hugging Face's hub, or a folder laid out like one, in --weights."""

FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in a repository of the hub, the one to prefer first."""

CONFIG = "config.json"
"""The file in which a repository describes its weights."""

MAX_SIDE = 4096
"""Largest side of the images, in pixels, that a configuration may ask for."""

Config = Mapping[str, Any]


@dataclass(frozen=True)
class TimmWeights:
    """The weights of a network of timm's: those of its configuration, of a repository of the hub, or of a folder.

    name: of the network, as NAME or NAME.TAG. The names of its weights are "default", "hf-hub:OWNER/NAME" and
    "local-dir:FOLDER".
    """

    name: str

    def transform(self, name: str = DEFAULT, *, test_size: bool = False) -> Transform:
        """Return the transform of some weights; test_size: at the size at which timm tests them, often a larger one."""
        try:
            return transform_of(self._config(name), test_size)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a damaged or hostile config.json
            raise errors.PipelineError(
                f"{name} does not say how images are prepared ({errors.first_line(error)}). Take --weights FILE."
            ) from error

    def class_names(self, name: str) -> tuple[str, ...]:
        """Return the names that a repository or folder gives its classes, or else those of ImageNet's 1,000 classes."""
        config, n_classes = self._config(name), self.n_classes(name)
        listed = config.get("label_names")
        if isinstance(listed, list) and len(listed) == n_classes:
            return tuple(map(str, listed))
        return imagenet_classes() if n_classes == 1000 and "in1k" in str(config.get("tag")) else ()

    def n_classes(self, name: str) -> int:
        """Return the number of classes that a configuration names; 0 for one of a network without a head."""
        count = self._config(name).get("num_classes")
        return count if isinstance(count, int) else 0

    def published(self) -> Published:
        """Return nothing: timm's results are no part of its package."""
        return Published({DEFAULT: None})

    def read(self, name: str) -> State:
        """Return the state dict of some weights."""
        if name == DEFAULT:
            return self._read_default()
        self._validate(name)
        file = find(name, FILES)
        if file is None:
            raise errors.PipelineError(f"{name.removeprefix(FOLDER)} has no {' or '.join(FILES)}. Take --weights FILE.")
        return weights.read_state(file)

    def _read_default(self) -> State:
        config = timm_models.find_config(self.name)
        if config.hf_hub_id:
            return weights.read_state(fetch(config.hf_hub_id, _file_names(config)))
        if not config.url:
            raise errors.PipelineError(
                f"timm has no weights for {PREFIX}{self.name}. Take --weights FILE, or {self._with_weights()}."
            )
        url = str(config.url)
        return weights.read_state(weights.fetch(url), weights.hash_in_name(url))

    def _with_weights(self) -> str:
        """Name some networks that have weights, the most similar first."""
        similar = timm_models.names(f"{self.name[:4]}*") or timm_models.names()
        return " or ".join(errors.nearest(PREFIX + self.name, similar)[:3])

    def _config(self, name: str) -> Config:
        """Return the configuration of some weights; what config.json leaves out is as for the network's own weights."""
        own: Config = timm_models.find_config(self.name).to_dict()
        if name == DEFAULT:
            return own
        self._validate(name)
        file = find(name, (CONFIG,))
        return {**own, **read_config(file)} if file else own

    def _validate(self, name: str) -> None:
        if name != DEFAULT and not name.startswith((HUB, FOLDER)):
            raise errors.unknown("weights", name, [DEFAULT, HUB, FOLDER, *OTHER_WEIGHTS], where=PREFIX + self.name)


def transform_of(config: Config, test_size: bool = False) -> Transform:
    """Return the transform for which timm's configuration of weights was made; test_size: as `TimmWeights` takes it."""
    from timm.data import resolve_data_config

    data = resolve_data_config(pretrained_cfg=dict(config), use_test_size=test_size)
    if data["interpolation"] not in RESAMPLING:
        raise errors.unknown("interpolation", str(data["interpolation"]), RESAMPLING)
    _, height, width = map(int, data["input_size"])
    if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise ValueError(f"images of {height}×{width} pixels")
    squashed = data["crop_mode"] == "squash"
    return Transform(
        resize=min(height, width) if squashed else math.floor(min(height, width) / data["crop_pct"]),
        crop=height,
        interpolation=data["interpolation"],
        mean=_per_channel(data["mean"]),
        std=_per_channel(data["std"]),
        crop_width=0 if height == width else width,
        fit="whole" if squashed else "crop",
    )


def _per_channel(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def read_config(path: Path) -> Config:
    """Return what a repository's config.json says of its weights; raise PipelineError if it is damaged."""
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        return {**content, **content.get("pretrained_cfg", {})}
    except (TypeError, ValueError) as error:
        raise errors.PipelineError(
            f"{path} does not describe weights of timm's ({errors.first_line(error)}). Take --weights FILE."
        ) from error


def find(name: str, file_names: tuple[str, ...]) -> Path | None:
    """Return the first of some files that a repository or a folder has; None if the folder has none of them.

    name: as --weights has it. Raises PipelineError if the repository has none.
    """
    if name.startswith(HUB):
        return fetch(name.removeprefix(HUB), file_names)
    folder = Path(name.removeprefix(FOLDER)).expanduser()
    return next((folder / file_name for file_name in file_names if (folder / file_name).exists()), None)


def _file_names(config: PretrainedCfg) -> tuple[str, ...]:
    """Return the files of a network's own repository that may hold its weights, the one to prefer first."""
    return (config.hf_hub_filename,) if config.hf_hub_filename else FILES


def has_weights(name: str) -> bool:
    """Return whether the weights of a network are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    config = timm_models.find_config(name)
    if not config.hf_hub_id:
        return bool(config.url) and weights.hub_path(str(config.url)).exists()
    cached = [try_to_load_from_cache(config.hf_hub_id, file_name) for file_name in _file_names(config)]
    return any(isinstance(path, str) for path in cached) or place_by_hand(config.hf_hub_id, FILES[0]).exists()


def place_by_hand(repository: str, file_name: str) -> Path:
    """Return where a file of a repository may be put by hand, for machines without internet."""
    suffix = ".json" if file_name == CONFIG else ".safetensors"
    return weights.hub_path(repository.split("/")[-1] + suffix)


def fetch(repository: str, file_names: tuple[str, ...]) -> Path:
    """Return the first of some files that a repository of Hugging Face's hub has, from its cache or by download.

    The hub names files in its cache by their SHA-256, which is checked each time. Raises PipelineError if there is no
    such file, or if it is damaged.
    """
    by_hand = place_by_hand(repository, file_names[0])
    if by_hand.exists():
        return by_hand
    from huggingface_hub.errors import LocalEntryNotFoundError

    reasons, reachable = [], True
    for file_name in file_names:
        try:
            return _verified(Path(_download(repository, file_name, reachable)))
        except (OSError, ValueError) as error:  # no network, file or right to write; no name
            reasons.append(error)
            reachable = reachable and not isinstance(error, LocalEntryNotFoundError)
    url = f"https://huggingface.co/{repository}/resolve/main/{file_names[0]}"
    raise errors.PipelineError(
        f"Cannot fetch {url} ({errors.first_line(reasons[0]).rstrip('.')}). Put the file at {by_hand} by hand, take "
        f"--weights FILE, or {weights.INSTALLED}."
    ) from reasons[0]


def _download(repository: str, file_name: str, reachable: bool) -> str:
    """Return the path of a file in the cache; a hub that is not reachable is not tried again, for half a minute."""
    from huggingface_hub import hf_hub_download

    name, _, revision = repository.partition("@")
    download = cast(Callable[..., str], hf_hub_download)
    return download(name, file_name, revision=revision or None, local_files_only=not reachable)


def _verified(path: Path) -> Path:
    """Return a file of the hub's cache; raise PipelineError if its name there is not the SHA-256 of its content."""
    digest = path.resolve().name
    if len(digest) == 64 and files.sha256_of(path) != digest:
        raise errors.PipelineError(f"{path} is damaged: its SHA-256 is not {digest}. Delete {path.resolve()}.")
    return path
