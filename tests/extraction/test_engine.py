"""The engine: whatever makes it fast, precision, compilation, smaller batches, leaves the codes right, and is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome
from sklearn.datasets import load_digits
from torch._dynamo.utils import counters
from torch._inductor import config

from pipeline import errors
from pipeline.codes import reader
from pipeline.extraction import autotune
from pipeline.extraction.engine import Engine, lowest_cosine
from pipeline.networks.frozen import FrozenNetwork

Run = Callable[..., Outcome]
FC7 = Path("features/photos/tinyvgg/fc7.h5")


@pytest.fixture(scope="module")
def network() -> FrozenNetwork:
    return FrozenNetwork("tinyvgg", ["pool3", "fc7"], "default", "avg4")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Ten digits, as 64×64 pictures."""
    digits = (load_digits().images[:10] * 15.9).astype(np.uint8)
    return [np.repeat(np.kron(digit, np.ones((8, 8), np.uint8))[None], 3, axis=0) for digit in digits]


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for layer, values in expected.items():
        np.testing.assert_allclose(found[layer], values, rtol=1e-4, atol=1e-5 * values.max())


def tensors(found: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {layer: torch.from_numpy(values) for layer, values in found.items()}


def test_codes_are_the_networks(network: FrozenNetwork, pictures: list[np.ndarray]) -> None:
    whole = network.codes(np.stack(pictures))
    for batch_size in (1, 3, 10, 32):
        assert_same(Engine(network, batch_size).codes(pictures), whole)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_gives_nearly_the_same_codes(
    network: FrozenNetwork, pictures: list[np.ndarray], precision: str
) -> None:
    lower = network.at(precision=precision)
    assert {spec.precision for spec in lower.specs.values()} == {precision}
    assert {spec.precision for spec in network.specs.values()} == {"fp32"}
    found, exact = Engine(lower).codes(pictures), Engine(network).codes(pictures)
    assert all(values.dtype == np.float32 for values in found.values())
    assert 0.999 <= lowest_cosine(tensors(found), tensors(exact)) < 1


def test_the_lowest_cosine_is_over_images_and_layers() -> None:
    exact = {"a": torch.tensor([[1.0, 0.0], [0.0, 2.0]]), "b": torch.tensor([[3.0], [1.0]])}
    assert lowest_cosine(exact, exact) == pytest.approx(1)
    assert lowest_cosine(exact | {"a": torch.tensor([[1.0, 0.0], [2.0, 2.0]])}, exact) == pytest.approx(0.5**0.5)
    assert lowest_cosine(exact | {"b": torch.tensor([[3.0], [torch.nan]])}, exact) == -1
    assert lowest_cosine(exact | {"b": torch.tensor([[torch.inf], [1.0]])}, exact) == -1


class Lower:
    """Stands in for a device that computes bf16 faster than float32, and perhaps wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, network: FrozenNetwork, gain: float, wrong: float = 0) -> None:
        self.network, self.wrong = network, wrong
        monkeypatch.setattr(autotune, "matmul_speedup", lambda device, kind: 2.0)
        monkeypatch.setattr(autotune, "time_forward", lambda run, batch: 1 / gain if run is self else 1.0)
        monkeypatch.setattr(FrozenNetwork, "at", lambda network, precision: self)

    def __call__(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {layer: values.clone() for layer, values in self.network(batch).items()}
        outputs["fc7"][-1] += self.wrong * torch.arange(len(outputs["fc7"][-1]))
        return outputs


@pytest.mark.parametrize(
    ("gain", "wrong", "choice"), [(1.5, 0, "bf16"), (1.1, 0, "fp32"), (1.5, 1, "fp32"), (1.5, torch.nan, "fp32")]
)
def test_auto_takes_bf16_only_where_it_is_right_and_faster(
    network: FrozenNetwork,
    pictures: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    gain: float,
    wrong: float,
    choice: str,
) -> None:
    Lower(monkeypatch, network, gain, wrong)
    found, why = autotune.choose_precision(network, pictures)
    assert found == choice and "cosine" in why


def test_auto_does_not_try_what_the_processor_is_slow_at(
    network: FrozenNetwork, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "matmul_speedup", lambda device, kind: 0.3)
    assert autotune.choose_precision(network, pictures) == ("fp32", "bf16 multiplies matrices 0.30 times as fast here")


def test_compiled_codes_are_the_same(network: FrozenNetwork, pictures: list[np.ndarray]) -> None:
    compiling = Engine(network, 4, compiling="yes")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        with pytest.raises(errors.PipelineError, match="cannot be compiled"):
            compiling.codes(pictures)
        return
    counters["inductor"].clear()
    with config.patch(force_disable_caches=True):
        assert_same(compiling.codes(pictures), network.codes(np.stack(pictures)))
    assert compiling.run is not network and "Compiled" in compiling.notes[0]
    if torch.backends.mkldnn.is_available():  # its weights were frozen, and so laid out for the processor
        assert counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"] > 0


def test_compiling_is_considered_only_where_it_is_repaid(
    network: FrozenNetwork, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    for count, compiling, notes in ((20, "auto", 0), (10**9, "auto", 1), (10**9, "no", 0), (20, "yes", 1)):
        runner = Engine(network, 2, count, compiling)
        assert_same(runner.codes(pictures), network.codes(np.stack(pictures)))
        assert len(runner.notes) == notes


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_a_compiler_that_fails_is_not_used(
    network: FrozenNetwork, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def broken(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if fault == "raises":
            raise RuntimeError("no compiler for this\nand a long story")
        return {layer: values.flip(1) for layer, values in network(batch).items()}

    monkeypatch.setattr(torch, "compile", lambda network, **options: broken)
    runner = Engine(network, 2, 10**9)
    assert_same(runner.codes(pictures), network.codes(np.stack(pictures)))
    assert "Not compiled" in runner.notes[0] and "story" not in runner.notes[0]


def limited(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let a device have memory for no more than so many images."""
    forward = FrozenNetwork.forward

    def bounded(self: FrozenNetwork, batch: torch.Tensor) -> Any:
        if len(batch) > most:
            raise torch.OutOfMemoryError
        return forward(self, batch)

    monkeypatch.setattr(FrozenNetwork, "forward", bounded)


def test_out_of_memory_halves_the_batch_and_goes_on(
    network: FrozenNetwork, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = network.codes(np.stack(pictures))
    limited(monkeypatch, 3)
    runner = Engine(network, 8)
    for _ in range(2):
        assert_same(runner.codes(pictures), expected)
    assert runner.batch_size == 2 and len(runner.notes) == 2 and "Out of memory" in runner.notes[0]


def test_no_memory_for_one_image_is_an_error(
    network: FrozenNetwork, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 0)
    with pytest.raises(errors.PipelineError, match="does not suffice for one image"):
        Engine(network, 8).codes(pictures)


def test_the_precision_stands_in_the_file_and_auto_stays_with_it(run: Run, photos: Path) -> None:
    address = ("--dataset", "photos", "--layer", "fc7")
    run("prepare", "--dataset", photos)
    assert "Precision bf16: as asked" in run("extract", *address, "--precision", "bf16").out
    lower = reader.read(FC7, {"precision": "bf16"}).values
    again = run("extract", *address, "--precision", "auto")
    assert "Precision bf16: as in an earlier run" in again.out and "\n0 images went" in again.out
    assert "Precision fp32: as asked" in run("extract", *address, "--precision", "fp32").out
    exact = reader.read(FC7, {"precision": "fp32"}).values
    assert 0 < np.abs(exact - lower).max() < 0.05 * exact.max()


def test_new_images_are_predicted_in_the_precision_of_the_codes(run: Run, photos: Path) -> None:
    address = ("--dataset", "photos", "--layer", "fc7")
    run("prepare", "--dataset", photos)
    run("extract", *address, "--precision", "bf16")
    assert run("classify", *address, "--model", "svm", "--folds", 2, "--grid", "{l2: {C: [1]}}").code == 0
    assert run("evaluate", *address, "--model", "svm").code == 0
    outcome = run("predict", *address, "--model", "svm", photos)
    assert outcome.code == 0 and "bf16" in Path("models/photos/tinyvgg/fc7-svm.json").read_text()
