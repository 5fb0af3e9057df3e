"""Weights files: download them, check their hash, and read a state dict without running any code in it."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline import errors, files
from pipeline.codes.spec import CodesSpec

logger = logging.getLogger(__name__)

WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher"),
    *("state_dict", "model_state_dict", "model_state", "model", "net", "student"),
)
"""Names under which training programs keep a state dict in a checkpoint; averaged weights are preferred."""

INSTALLED = "--backbone efficientnet_lite0, whose weights are installed"
"""What can be done without internet."""

SCALAR = np.float64(0).__reduce__()[0]
HARMLESS: tuple[Any, ...] = (
    *(argparse.Namespace, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
    *((SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
)
"""What checkpoints hold besides tensors and cannot run anything: settings of training programs, and numbers."""


def read_state(path: Path, sha256: str = "") -> dict[str, torch.Tensor]:
    """Read a state dict without running any code in the file.

    sha256: start of the file's SHA-256, in hex; "" does not check it. Raises PipelineError for a file that is missing,
    damaged, or holds anything but a state dict.
    """
    if not path.exists():
        raise errors.PipelineError(f"No weights file at {path}. Check the path given to --weights.")
    if not files.sha256_of(path).startswith(sha256):
        raise errors.PipelineError(
            f"{path} is damaged: its SHA-256 does not start with {sha256}. Delete it, then run again."
        )
    try:
        state: object = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except Exception as error:  # a damaged or hostile file may fail in many ways, which all mean the same to the user
        raise errors.PipelineError(_unsafe(path, error)) from error
    state = _unwrapped(state, path)
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise errors.PipelineError(f"{path} holds no state dict. Save one with torch.save(model.state_dict(), …).")
    return {str(name): value for name, value in state.items()}


def _load(path: Path) -> object:
    """Return what torch.save wrote, without running anything."""
    with torch.serialization.safe_globals(list(HARMLESS)):
        return torch.load(path, "cpu", weights_only=True)


def _unsafe(path: Path, error: Exception) -> str:
    """Say why a file cannot be read safely: torch's own message tells how to read it unsafely."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"{path} cannot be read safely: it holds more than tensors, {found[1]} for one, which could run code. Save "
            "the network's state dict alone, with torch.save(model.state_dict(), …)."
        )
    return f"{path} is no file of weights that can be read safely ({errors.first_line(error)})."


def _unwrapped(content: object, path: Path) -> object:
    """Return the state dict within a checkpoint of a training program, and log which one was taken of several."""
    while isinstance(content, dict):
        inside = [name for name in WRAPPERS if isinstance(content.get(name), dict) and content[name]]
        inside = inside or [name for name, value in content.items() if _is_state(value)]
        if not inside:
            break
        if len(inside) > 1:
            logger.info("%s holds %s: %s is taken.", path, " and ".join(map(str, inside)), inside[0])
        content = content[inside[0]]
    return content


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(one, torch.Tensor) for one in value.values())


def without_prefix(state: Mapping[str, torch.Tensor], expected: Collection[str]) -> tuple[dict[str, torch.Tensor], str]:
    """Return a state dict by the names that a network has, and the prefix that was removed for that ("" for none).

    Wrappers of networks put prefixes before the names, such as _orig_mod. (torch.compile), module. (DataParallel) or
    model. (Lightning). The prefix taken is the one with which most tensors get a name that is expected; of several, as
    of a network and its average over training, which is preferred, that is logged.
    """
    counts = Counter({"": 0})
    for name in state:
        parts = name.split(".")
        counts.update(
            "".join(f"{part}." for part in parts[:n]) for n in range(len(parts)) if ".".join(parts[n:]) in expected
        )
    same = [prefix for prefix, count in counts.items() if count == max(counts.values())]
    best = max(same, key=lambda prefix: ("ema" in prefix, prefix))
    if len(same) > 1:
        logger.info("Tensors of the network are there under %s: %r is taken.", ", ".join(map(repr, same)), best)
    return {name.removeprefix(best): value for name, value in state.items() if name.startswith(best)}, best


def write_state(path: Path, state: Mapping[str, torch.Tensor], facts: Mapping[str, str]) -> None:
    """Write a state dict as safetensors with `facts` in its metadata, complete or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with files.replacing(path) as partial:
        save_file(tensors, partial, dict(facts))


def read_spec(origin: str) -> CodesSpec | None:
    """Return the spec of codes that `finetune` wrote into a weights file, None for all other weights."""
    path = Path(origin).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("spec", "")
    try:
        return CodesSpec.from_dict(json.loads(text))
    except ValueError:  # weights of another program may hold anything under this name
        return None


def hub_path(url: str) -> Path:
    """Return where torch.hub stores the file of that URL."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])


def hash_in_name(url: str) -> str:
    """Return the start of the SHA-256 in the name of torchvision's file, "f37072fd" of resnet18-f37072fd.pth, or ""."""
    match = re.search(r"-([0-9a-f]{8,64})\.", url)
    return match.group(1) if match else ""


def fetch(url: str) -> Path:
    """Return torch.hub's copy of a file, after downloading it if it is not there.

    The hash is checked before the file gets its name. Raises PipelineError if the download fails.
    """
    path = hub_path(url)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    logger.info("Downloading %s to %s", url, path)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_in_name(url) or None, progress=sys.stderr.isatty())
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise errors.PipelineError(
            f"Cannot download {url} ({reason}). Put the file at {path} by hand, take --weights FILE, or {INSTALLED}."
        ) from error
    except RuntimeError as error:
        raise errors.PipelineError(f"The download of {url} is damaged ({error}). Run again.") from error
    return path


def state_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of a network's parameters and buffers: names, types, shapes and values."""
    return digest_of(model.state_dict())


def digest_of(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of a state dict: names, types, shapes and values."""
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.contiguous().numpy().data)
    return total.hexdigest()
