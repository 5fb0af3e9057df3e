"""Four words address an experiment: dataset, backbone, layer, model; their defaults stand in params.yaml."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from pipeline import errors

PARAMS = "params.yaml"
HELP = {
    "dataset": "a prepared dataset: its name under data/, or its folder",
    "backbone": "the pretrained network",
    "layer": "the layer whose codes are used; fc6+fc7 joins those of several",
    "model": "the linear classifier",
}


def params() -> dict[str, Any]:
    """Return params.yaml of the working folder over the defaults that come with the program."""
    here = Path(__file__).parent
    packaged = here / PARAMS if (here / PARAMS).exists() else here.parent / PARAMS
    return _read(packaged) | (_read(Path(PARAMS)) if Path(PARAMS).exists() else {})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise errors.PipelineError(
            f"{path} is not valid YAML ({' '.join(str(error).split())}). Mend it, then run again."
        ) from error
    if not isinstance(content, dict):
        raise errors.PipelineError(f"{path} must hold `name: value` lines. Mend it, then run again.")
    return content


def section(name: str) -> dict[str, Any]:
    """Return one command's or model's part of params.yaml, its keys as argparse names them."""
    content = params().get(name) or {}
    return {key.replace("-", "_"): value for key, value in content.items()}


def command(stage: str, doc: str, example: str, words: tuple[str, ...]) -> argparse.ArgumentParser:
    """Return the parser of a command: the address's flags in `words`, and defaults from params.yaml in the help."""
    parser = argparse.ArgumentParser(
        prog=f"python -m pipeline.{stage}",
        description=doc,
        epilog=f"example:\n  {example}",
        formatter_class=_Formatter,
    )
    defaults = {
        "dataset": params()["dataset"],
        "backbone": params()["backbone"],
        "layer": section("extract")["layer"][-1],
        "model": params()["models"][0],
    }
    for word in words:
        parser.add_argument(f"--{word}", default=defaults[word], help=HELP[word])
    return parser


def validate_minimum(options: argparse.Namespace, **least: float) -> None:
    """Refuse options below the least that makes sense."""
    for name, bound in least.items():
        if getattr(options, name) < bound:
            raise errors.PipelineError(f"--{name.replace('_', '-')} must be {bound} or more.")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the example; show each default, where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)
