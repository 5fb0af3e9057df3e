"""The engine: precision, compilation and smaller batches leave the codes correct, and are reported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome
from helpers import digit_images
from torch._dynamo.utils import counters
from torch._inductor import config

from pipeline import errors
from pipeline.codes import reader
from pipeline.extraction.engine import Engine, lowest_cosine
from pipeline.networks.frozen import FrozenNetwork

Run = Callable[..., Outcome]
FC7 = Path("features/photos/tinyvgg/fc7.h5")


@pytest.fixture(scope="module")
def network() -> FrozenNetwork:
    return FrozenNetwork("tinyvgg", ["pool3", "fc7"], "default", "avg4")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return digit_images()


def assert_same(codes: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for layer, values in expected.items():
        np.testing.assert_allclose(codes[layer], values, rtol=1e-4, atol=1e-5 * values.max())


def tensors(codes: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {layer: torch.from_numpy(values) for layer, values in codes.items()}


def test_codes_are_those_of_the_network(network: FrozenNetwork, images: list[np.ndarray]) -> None:
    whole = network.codes(np.stack(images))
    for batch_size in (1, 3, 10, 32):
        assert_same(Engine(network, batch_size).codes(images), whole)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_gives_nearly_the_same_codes(
    network: FrozenNetwork, images: list[np.ndarray], precision: str
) -> None:
    lower = network.at(precision=precision)
    assert {spec.precision for spec in lower.specs.values()} == {precision}
    assert {spec.precision for spec in network.specs.values()} == {"fp32"}
    codes, exact = Engine(lower).codes(images), Engine(network).codes(images)
    assert all(values.dtype == np.float32 for values in codes.values())
    assert 0.999 <= lowest_cosine(tensors(codes), tensors(exact)) < 1


def test_the_lowest_cosine_is_over_images_and_layers() -> None:
    exact = {"a": torch.tensor([[1.0, 0.0], [0.0, 2.0]]), "b": torch.tensor([[3.0], [1.0]])}
    assert lowest_cosine(exact, exact) == pytest.approx(1)
    assert lowest_cosine(exact | {"a": torch.tensor([[1.0, 0.0], [2.0, 2.0]])}, exact) == pytest.approx(0.5**0.5)
    assert lowest_cosine(exact | {"b": torch.tensor([[3.0], [torch.nan]])}, exact) == -1
    assert lowest_cosine(exact | {"b": torch.tensor([[torch.inf], [1.0]])}, exact) == -1


@pytest.mark.slow
def test_compiled_codes_are_the_same(network: FrozenNetwork, images: list[np.ndarray]) -> None:
    compiling = Engine(network, 4, compiling="yes")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        with pytest.raises(errors.PipelineError, match="cannot be compiled"):
            compiling.codes(images)
        return
    counters["inductor"].clear()
    with config.patch(force_disable_caches=True):
        assert_same(compiling.codes(images), network.codes(np.stack(images)))
    assert compiling.forward is not network and "Compiled" in compiling.notes[0]
    if torch.backends.mkldnn.is_available():  # its weights were frozen, and so laid out for the CPU
        assert counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"] > 0


def test_a_network_is_compiled_only_where_the_run_is_long_enough(
    network: FrozenNetwork, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    for count, compiling, notes in ((20, "auto", 0), (10**9, "auto", 1), (10**9, "no", 0), (20, "yes", 1)):
        engine = Engine(network, 2, count, compiling)
        assert_same(engine.codes(images), network.codes(np.stack(images)))
        assert len(engine.notes) == notes


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_a_compiler_that_fails_is_not_used(
    network: FrozenNetwork, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def broken(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if fault == "raises":
            raise RuntimeError("no compiler for this\nin a long traceback")
        return {layer: values.flip(1) for layer, values in network(batch).items()}

    monkeypatch.setattr(torch, "compile", lambda network, **options: broken)
    engine = Engine(network, 2, 10**9)
    assert_same(engine.codes(images), network.codes(np.stack(images)))
    assert "Not compiled" in engine.notes[0] and "traceback" not in engine.notes[0]


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let the device run out of memory for more than `most` images."""
    forward = FrozenNetwork.forward

    def bounded(self: FrozenNetwork, batch: torch.Tensor) -> Any:
        if len(batch) > most:
            raise torch.OutOfMemoryError
        return forward(self, batch)

    monkeypatch.setattr(FrozenNetwork, "forward", bounded)


def test_out_of_memory_halves_the_batch_size_and_continues(
    network: FrozenNetwork, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = network.codes(np.stack(images))
    limit_memory(monkeypatch, 3)
    engine = Engine(network, 8)
    for _ in range(2):
        assert_same(engine.codes(images), expected)
    assert engine.batch_size == 2 and len(engine.notes) == 2 and "Out of memory" in engine.notes[0]


def test_no_memory_for_one_image_is_an_error(
    network: FrozenNetwork, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 0)
    with pytest.raises(errors.PipelineError, match="does not suffice for one image"):
        Engine(network, 8).codes(images)


def test_the_precision_is_stored_in_the_file_and_auto_keeps_it(run: Run, photos: Path) -> None:
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
