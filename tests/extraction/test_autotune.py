"""Autotune: a lower precision and another decoder are chosen only where they are correct and faster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import digit_images, smooth_image, without_torchcodec, write_jpegs

from pipeline.extraction import autotune
from pipeline.extraction.engine import lowest_cosine
from pipeline.images import torchcodec, transforms
from pipeline.networks.frozen import FrozenNetwork

PILLOW = transforms.Transform(40, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.fixture(scope="module")
def network() -> FrozenNetwork:
    return FrozenNetwork("tinyvgg", ["pool3", "fc7"], "default", "avg4")


# Precision


class LowerPrecision:
    """Stands in for a network in bf16 that is `speedup` times as fast, and whose codes may have an `error`."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, network: FrozenNetwork, speedup: float, error: float = 0
    ) -> None:
        self.network, self.error = network, error
        monkeypatch.setattr(autotune, "matmul_speedup", lambda device, dtype: 2.0)
        monkeypatch.setattr(autotune, "time_forward", lambda forward, batch: 1 / speedup if forward is self else 1.0)
        monkeypatch.setattr(FrozenNetwork, "at", lambda network, precision: self)

    def __call__(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {layer: values.clone() for layer, values in self.network(batch).items()}
        outputs["fc7"][-1] += self.error * torch.arange(len(outputs["fc7"][-1]))
        return outputs


@pytest.mark.parametrize(
    ("speedup", "error", "choice"), [(1.5, 0, "bf16"), (1.1, 0, "fp32"), (1.5, 1, "fp32"), (1.5, torch.nan, "fp32")]
)
def test_bf16_is_chosen_only_where_it_is_correct_and_faster(
    network: FrozenNetwork, monkeypatch: pytest.MonkeyPatch, speedup: float, error: float, choice: str
) -> None:
    LowerPrecision(monkeypatch, network, speedup, error)
    precision, reason = autotune.choose_precision(network, digit_images())
    assert precision == choice and "cosine" in reason


def test_a_precision_whose_matrix_products_are_slow_is_not_tried(
    network: FrozenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "matmul_speedup", lambda device, dtype: 0.3)
    assert autotune.choose_precision(network, digit_images()) == (
        "fp32",
        "bf16 multiplies matrices 0.30 times as fast here",
    )


# Decoder


class NetworkOn:
    """Stands in for a network on a device: what the choice of a decoder needs of one."""

    def __init__(self, device: str, views: str = "one") -> None:
        self.mean = SimpleNamespace(device=torch.device(device))
        self.transform = transforms.Framing(views=views).of(PILLOW)

    def at(self, decoder: str) -> str:
        return decoder


@pytest.fixture
def large(tmp_path: Path) -> list[Path]:
    """A file as many times as makes it worth trying other decoders."""
    smooth_image(160, 180).save(tmp_path / "large.jpg")
    return [tmp_path / "large.jpg"] * autotune.MIN_IMAGES_FOR_DECODER


def choose(network: NetworkOn, files: list[Path]) -> tuple[str, str]:
    return autotune.choose_decoder(network, files, 2)  # type: ignore[arg-type]


def test_pillow_is_chosen_where_others_cannot_pay(large: list[Path], tmp_path: Path) -> None:
    no_gpu = "without a GPU, TorchCodec is taken only if asked for"
    assert choose(NetworkOn("cpu"), large[:20]) == ("pillow", f"20 images are too few to repay trying others; {no_gpu}")
    assert choose(NetworkOn("cpu", "flips"), large) == ("pillow", f"views need all pixels; {no_gpu}")
    smooth_image(159, 180).save(tmp_path / "small.jpg")
    few = "few are large enough to be decoded at a fraction of their size"
    for file in ("small.jpg", "gone.jpg"):
        assert choose(NetworkOn("cpu"), [tmp_path / file] * 200) == ("pillow", f"{few}; {no_gpu}")


@pytest.mark.parametrize(
    ("device", "speedups", "error", "choice"),
    [
        ("cpu", {"pillow-scaled": 1.3}, 0, "pillow-scaled"),
        ("cpu", {"pillow-scaled": 1.1}, 0, "pillow"),
        ("cpu", {"pillow-scaled": 9}, 1, "pillow"),
        ("cpu", {"pillow-scaled": 9}, np.nan, "pillow"),
        ("cuda", {"pillow-scaled": 1.3, "torchcodec": 1.5}, 0, "torchcodec"),
        ("cuda", {"pillow-scaled": 1.6, "torchcodec": 1.5}, 0, "pillow-scaled"),
        ("cuda", {"pillow-scaled": 1.1, "torchcodec": 9}, 1, "pillow"),
    ],
)
def test_another_decoder_is_chosen_only_where_it_is_correct_and_faster(
    monkeypatch: pytest.MonkeyPatch,
    large: list[Path],
    device: str,
    speedups: dict[str, float],
    error: float,
    choice: str,
) -> None:
    code = torch.tensor([[1.0, 0.0]])
    results = {"pillow": (100.0, {"a": {"fc7": code}, "b": {"fc7": code}})}
    for name, speedup in speedups.items():
        wrong = {"fc7": code + error * torch.tensor([[0.0, 1.0]])}
        results[name] = (100 * speedup, {"a": {"fc7": code}, "b": wrong})
    monkeypatch.setattr(autotune, "time_run", lambda network, files, threads: results[network])
    monkeypatch.setattr(torchcodec, "validate_usable", lambda transform, device: None)
    decoder, reason = choose(NetworkOn(device), large)
    assert decoder == choice and "cosine" in reason
    for name, speedup in speedups.items():
        assert f"{name} makes the run {speedup:.2f} times" in reason


def test_pillow_is_chosen_where_torchcodec_cannot_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [Path()] * autotune.MIN_IMAGES_FOR_DECODER
    assert "too few to repay trying TorchCodec" in choose(NetworkOn("cuda"), files[1:])[1]
    decoder, reason = choose(NetworkOn("cuda", "flips"), files)
    assert decoder == "pillow" and "no --views flips" in reason
    without_torchcodec(monkeypatch)
    decoder, reason = choose(NetworkOn("cuda"), files)
    assert decoder == "pillow" and "cannot be loaded" in reason

    def broken(network: object, files: object, threads: int) -> None:
        raise RuntimeError("nvJPEG has gone away\nsomewhere")

    monkeypatch.setattr(torchcodec, "validate_usable", lambda transform, device: None)
    monkeypatch.setattr(autotune, "time_run", broken)
    assert choose(NetworkOn("cuda"), files) == ("pillow", "nvJPEG has gone away")


def test_all_decoders_are_run(tmp_path: Path) -> None:
    network = FrozenNetwork("tinyvgg", ["fc7"], "default", "avg4")
    others = ["pillow-scaled", "torchcodec"]
    assert autotune.compare_decoders(network, others, [tmp_path / "gone.jpg"], 2)[0] == "pillow"
    files = sorted(write_jpegs(tmp_path / "photos", 8).glob("*/*"))
    smooth_image(1000, 800).save(files[0])
    reasons = autotune.compare_decoders(network, others, files, 2)[1].split("; ")
    assert [reason.split()[0] for reason in reasons] == others
    assert all("cosine to pillow's" in reason and float(reason.split()[-1]) > 0.999 for reason in reasons)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_decodes_nearly_the_same(tmp_path: Path) -> None:
    files = sorted(write_jpegs(tmp_path / "photos", 40).glob("*/*"))
    network = FrozenNetwork("tinyvgg", ["fc7"], "default", "avg4").to("cuda")
    fast, slow = (autotune.time_run(network.at(decoder=name), files, 2)[1] for name in ("torchcodec", "pillow"))
    assert fast.keys() == slow.keys()
    assert min(lowest_cosine(fast[file], slow[file]) for file in slow) > 0.99


def test_the_codes_of_a_run_are_given_by_file(network: FrozenNetwork, tmp_path: Path) -> None:
    files = sorted(write_jpegs(tmp_path / "photos", 20).glob("*/*"))
    files.insert(3, tmp_path / "gone.jpg")
    by_torchcodec, by_pillow = (
        autotune.time_run(network.at(decoder=name), files, 2)[1] for name in ("torchcodec", "pillow")
    )
    assert by_torchcodec.keys() == by_pillow.keys() == set(files) - {tmp_path / "gone.jpg"}
    assert min(lowest_cosine(by_torchcodec[file], by_pillow[file]) for file in by_pillow) > 0.999
