"""The engine: precision, compilation and smaller batches leave the codes correct, and are reported."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
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
from pipeline.extraction import compiling
from pipeline.extraction import engine as engine_module
from pipeline.extraction.engine import Engine, lowest_cosine
from pipeline.images.transforms import Framing
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
    engine = Engine(network, 4, compiler="torch")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        with pytest.raises(errors.PipelineError, match="cannot be compiled"):
            engine.codes(images)
        return
    counters["inductor"].clear()
    with config.patch(force_disable_caches=True):
        assert_same(engine.codes(images), network.codes(np.stack(images)))
    assert engine.forward is not network and "Compiled" in engine.notes[0]
    if torch.backends.mkldnn.is_available():  # its weights were frozen, and so laid out for the CPU
        assert counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"] > 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_codes_by_onnx_runtime_are_the_same(network: FrozenNetwork, images: list[np.ndarray], dtype: str) -> None:
    network = network.at(dtype=dtype)
    engine = Engine(network, 4, compiler="onnxruntime")
    codes, expected = engine.codes(images), network.codes(np.stack(images))
    assert engine.forward is not network and "Compiled by ONNX Runtime" in engine.notes[0]
    for layer, values in expected.items():
        assert codes[layer].dtype == values.dtype == dtype
        np.testing.assert_allclose(codes[layer], values, rtol=1e-4 if dtype == "float32" else 2e-3, atol=1e-5)


def test_onnx_runtime_takes_several_views(images: list[np.ndarray]) -> None:
    network = FrozenNetwork("tinyvgg", ["fc7"], "default", "avg4", Framing(views="flips"))
    views = [np.stack([image, image[:, :, ::-1]]) for image in images]
    engine = Engine(network, 5, compiler="onnxruntime")
    assert_same(engine.codes(views), network.codes(np.stack(views)))
    assert engine.forward is not network


def test_onnx_runtime_is_refused_where_it_cannot_compute_the_same(
    network: FrozenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.PipelineError, match="it computes in fp32, not in bf16"):
        Engine(network.at(precision="bf16"), compiler="onnxruntime")
    assert Engine(network.at(precision="bf16")).compilers == ["torch"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(errors.PipelineError, match=re.escape("onnxruntime must be installed (pip install -e '.[exp")):
        Engine(network, compiler="onnxruntime")
    assert Engine(network).compilers == ["torch"]


@pytest.mark.parametrize(
    ("count", "compiler", "speedups", "tried", "used"),
    [
        (20, "auto", {}, [], None),
        (10**9, "no", {}, [], None),
        (20, "torch", {"torch": 0.5}, ["torch"], "torch"),
        (20, "onnxruntime", {"onnxruntime": 0.5}, ["onnxruntime"], "onnxruntime"),
        (10**9, "auto", {"onnxruntime": 2, "torch": 3}, ["onnxruntime"], "onnxruntime"),
        (10**9, "auto", {"onnxruntime": 0.9, "torch": 3}, ["onnxruntime", "torch"], "torch"),
        (10**9, "auto", {"onnxruntime": 0.9, "torch": 0.9}, ["onnxruntime", "torch"], None),
    ],
)
def test_a_network_is_compiled_where_the_run_is_long_enough_and_that_is_faster(
    network: FrozenNetwork,
    images: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    compiler: str,
    speedups: dict[str, float],
    tried: list[str],
    used: str | None,
) -> None:
    builds: list[str] = []

    def build(name: str) -> Any:
        def builder(network: FrozenNetwork, batch: torch.Tensor) -> Any:
            builds.append(name)
            return partial(network.forward)

        return builder

    for name, kind in compiling.COMPILERS.items():
        monkeypatch.setitem(compiling.COMPILERS, name, kind._replace(build=build(name)))
    monkeypatch.setattr(
        engine_module, "time_forward", lambda forward, batch: 1 if forward is network else 1 / speedups[builds[-1]]
    )
    engine = Engine(network, 2, count, compiler)
    assert_same(engine.codes(images), network.codes(np.stack(images)))
    assert builds == tried and len(engine.notes) == len(tried)
    assert (engine.forward is not network) == (used is not None)
    if used:
        assert f"Compiled by {compiling.COMPILERS[used].title}" in engine.notes[-1]


@pytest.mark.parametrize("fault", ["wrong", "inexact", "raises"])
def test_a_compiler_that_fails_is_not_used(
    network: FrozenNetwork, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def broken(network: FrozenNetwork, batch: torch.Tensor) -> Any:
        if fault == "raises":
            raise RuntimeError("no compiler for this\nin a long traceback")
        if fault == "inexact":  # a cosine of some 0.9995, which would do for a precision that the spec names
            return lambda batch: {layer: values + 0.03 * values.flip(1) for layer, values in network(batch).items()}
        return lambda batch: {layer: values.flip(1) for layer, values in network(batch).items()}

    for name, kind in compiling.COMPILERS.items():
        monkeypatch.setitem(compiling.COMPILERS, name, kind._replace(build=broken))
    engine = Engine(network, 2, 10**9)
    assert_same(engine.codes(images), network.codes(np.stack(images)))
    for note, name in zip(engine.notes, ("ONNX Runtime", "torch"), strict=True):
        assert f"Not compiled by {name}" in note and "traceback" not in note
    if fault == "raises":
        with pytest.raises(errors.PipelineError, match="cannot be compiled by torch"):
            Engine(network, 2, compiler="torch").codes(images)


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
