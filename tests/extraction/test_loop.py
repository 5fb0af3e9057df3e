"""The loop: every image gives its code or a reason, under its key, and images of the same bytes are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import count_forwards, encode_image, smooth_image

from pipeline.extraction.engine import Engine
from pipeline.extraction.loop import CodesBatch, compute_codes
from pipeline.images import decoding, transforms
from pipeline.images.decoding import BadImage
from pipeline.images.transforms import KnownImage
from pipeline.networks.frozen import FrozenNetwork

FILES = [encode_image(smooth_image(60, 40, seed), "PNG") for seed in range(10)]


@pytest.fixture(scope="module")
def network() -> FrozenNetwork:
    return FrozenNetwork("tinyvgg", ["pool3", "fc7"], "default", "avg")


@pytest.fixture(scope="module")
def expected(network: FrozenNetwork) -> dict[str, np.ndarray]:
    return network.codes(np.stack([transforms.transform_bytes(data, network.transform) for data in FILES]))


class OverlappingEngine(Engine):
    """An engine that is used like one on a GPU: a batch is computed while the caller works on the one before."""

    @property
    def batches_ahead(self) -> int:
        """Number of batches that are computed while the caller works on an earlier one."""
        return 1


@pytest.mark.parametrize("engine_class", [Engine, OverlappingEngine])
@pytest.mark.parametrize("batch_size", [1, 4, 10, 32])
def test_each_key_comes_with_the_codes_of_its_image(
    network: FrozenNetwork, expected: dict[str, np.ndarray], engine_class: type[Engine], batch_size: int
) -> None:
    items = [(f"image {row}", data) for row, data in enumerate(FILES)]
    items.insert(5, ("empty", b""))
    codes: dict[str, dict[str, np.ndarray]] = {}
    for result in compute_codes(engine_class(network, batch_size), items, 2):
        if isinstance(result, CodesBatch):
            assert len(result.keys) == len(result.digests) <= batch_size
            for row, key in enumerate(result.keys):
                codes[key] = {layer: values[row] for layer, values in result.codes.items()}
        else:
            assert result[0] == "empty" and "zero bytes" in str(result[1])
    assert list(codes) == [key for key, _ in items if key != "empty"]
    for row in range(10):
        for layer, values in codes[f"image {row}"].items():
            np.testing.assert_allclose(values, expected[layer][row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine_class", [Engine, OverlappingEngine])
def test_images_of_the_same_bytes_are_computed_once(
    network: FrozenNetwork,
    expected: dict[str, np.ndarray],
    engine_class: type[Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forwards = count_forwards(monkeypatch)
    order = [0, 1, 0, 2, 3, 1, 4, 5, 0, 6, 7, 8, 9, 4, 9]
    digests = [decoding.digest(data) for data in FILES]
    known = {digests[3]}
    codes: dict[int, np.ndarray] = {}
    copies = []
    items = ((place, FILES[row]) for place, row in enumerate(order))
    for result in compute_codes(engine_class(network, 4), items, 2, known):
        match result:
            case CodesBatch():
                assert result.keys == sorted(result.keys)
                codes |= zip(result.keys, result.codes["fc7"], strict=True)
                known.update(result.digests)
            case place, KnownImage(digest):
                copies.append(place)
                assert digest == digests[order[place]]
    assert sum(forwards) == 9 and 4 in copies and sorted([*codes, *copies]) == list(range(len(order)))
    for place, values in codes.items():
        np.testing.assert_allclose(values, expected["fc7"][order[place]], rtol=1e-4, atol=1e-5)


def test_without_known_codes_every_image_is_computed(network: FrozenNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards = count_forwards(monkeypatch)
    (batch,) = compute_codes(Engine(network, 8), [("a", FILES[0])] * 5, 2)
    assert forwards == [5] and isinstance(batch, CodesBatch) and batch.keys == ["a"] * 5
    np.testing.assert_allclose(batch.codes["fc7"], batch.codes["fc7"][[0] * 5], rtol=1e-4, atol=1e-5)


def test_images_are_taken_as_they_are_needed(network: FrozenNetwork) -> None:
    taken = 0

    def items() -> Iterator[tuple[int, Path]]:
        nonlocal taken
        while True:
            taken += 1
            yield taken, Path(f"{taken}.png")

    results = compute_codes(Engine(network, 2), items(), threads=2)
    for number in range(1, 6):
        key, reason = next(results)
        assert key == number and isinstance(reason, BadImage)
    assert taken <= 25
    results.close()  # type: ignore[attr-defined]
