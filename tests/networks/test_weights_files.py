"""Weights as people have them: prefixes of wrappers, checkpoints of training programs, files without a head."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import noise_images
from safetensors.torch import save_file

from pipeline import errors
from pipeline.networks import backbones
from pipeline.networks.frozen import FrozenNetwork


def expected_codes(layer: str = "layer3") -> torch.Tensor:
    return torch.from_numpy(FrozenNetwork("resnet18", [layer], "random:1").codes(noise_images(2, 224))[layer])


def state() -> dict[str, torch.Tensor]:
    return backbones.load(backbones.get("resnet18"), "random:1")[0].state_dict()


def codes_of(path: Path, layer: str = "layer3") -> torch.Tensor:
    return torch.from_numpy(FrozenNetwork("resnet18", [layer], str(path)).codes(noise_images(2, 224))[layer])


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [
        *(
            (prefix, "")
            for prefix in ("", "module._orig_mod.", "model.backbone.", "visual.trunk.", "module.encoder_q.")
        ),
        *(("module.", wrapper) for wrapper in ("state_dict", "model_state_dict", "model", "ema", "params")),
    ],
)
def test_prefixes_and_wrappers(tmp_path: Path, prefix: str, wrapper: str) -> None:
    content = {f"{prefix}{name}": value for name, value in state().items()}
    path = tmp_path / "net.ckpt"
    settings = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.9)}
    torch.save({wrapper: content, **settings} if wrapper else content, path)
    assert torch.equal(codes_of(path), expected_codes())


def test_a_network_saved_whole_is_refused_with_what_to_save(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "net.pth")
    with pytest.raises(errors.PipelineError, match=r"more than tensors, torch.nn.modules.linear.Linear .* state dict"):
        codes_of(tmp_path / "net.pth")


def test_of_a_network_and_its_average_the_average_is_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zeros = {f"model.{name}": torch.zeros_like(value) for name, value in state().items()}
    torch.save(zeros | {f"ema_model.{name}": value for name, value in state().items()}, tmp_path / "net.pth")
    with caplog.at_level("INFO", logger="pipeline"):
        assert torch.equal(codes_of(tmp_path / "net.pth"), expected_codes())
    assert "under 'model.', 'ema_model.': 'ema_model.' is taken" in caplog.text


def test_averaged_weights_are_preferred_and_that_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    zeros = {name: torch.zeros_like(value) for name, value in state().items()}
    torch.save({"state_dict": zeros, "state_dict_ema": state()}, tmp_path / "net.pth")
    with caplog.at_level("INFO", logger="pipeline"):
        assert torch.equal(codes_of(tmp_path / "net.pth"), expected_codes())


@pytest.mark.parametrize("without", [("fc.",), ("fc.", "layer4.")])
def test_what_comes_after_the_layer_may_be_missing_or_of_other_shapes(tmp_path: Path, without: tuple[str, ...]) -> None:
    headless = {name: value for name, value in state().items() if not name.startswith(without)}
    torch.save(headless, tmp_path / "net.pth")
    assert torch.equal(codes_of(tmp_path / "net.pth"), expected_codes())
    torch.save(headless | {"projector.0.weight": torch.ones(3, 3)}, tmp_path / "net.pth")
    assert torch.equal(codes_of(tmp_path / "net.pth"), expected_codes())


def test_what_the_layer_needs_may_not(tmp_path: Path) -> None:
    torch.save({n: v for n, v in state().items() if not n.startswith("layer4.")}, tmp_path / "net.pth")
    with pytest.raises(errors.PipelineError, match=r"do not fit resnet18: .*'layer4.0"):
        codes_of(tmp_path / "net.pth", "avgpool")
    larger = backbones.load(backbones.get("resnet34"), "random:1")[0].state_dict()
    torch.save(larger, tmp_path / "net.pth")
    with pytest.raises(errors.PipelineError, match=r"do not fit resnet18: .*'layer1.2"):
        codes_of(tmp_path / "net.pth")


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"epoch": 1}, {"state_dict": {"a": "text"}}, [1, 2]])
def test_files_without_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(errors.PipelineError, match="holds no state dict"):
        codes_of(tmp_path / "net.pth")


def test_a_network_that_asks_for_the_version_of_its_state_dict(tmp_path: Path) -> None:
    """torchvision's MNASNet refuses a state dict without the versions of modules, which no safetensors file has."""
    random = FrozenNetwork("mnasnet0_5", ["stage2"], "random")
    save_file(backbones.load(backbones.get("mnasnet0_5"), "random")[0].state_dict(), tmp_path / "net.safetensors")
    from_file = FrozenNetwork("mnasnet0_5", ["stage2"], str(tmp_path / "net.safetensors"))
    assert from_file.specs["stage2"].weights_sha256 == random.specs["stage2"].weights_sha256
