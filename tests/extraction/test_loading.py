"""Loading: images of every form, in order, as the network sees them, and no more of them ahead than allowed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import encode_image, smooth_image, write_jpegs
from PIL import Image

from pipeline.extraction.loading import MAX_REFUSALS, ImageLoader
from pipeline.images import decoding, torchcodec, transforms
from pipeline.images.decoding import BadImage
from pipeline.images.transforms import KnownImage, LoadedImage

CPU = torch.device("cpu")
PILLOW = transforms.Transform(40, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
TORCHCODEC = replace(PILLOW, decoder="torchcodec")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """20 JPEGs, 2 PNGs, and one file that is not there."""
    files = sorted(write_jpegs(tmp_path / "photos", 20).glob("*/*"))
    files.insert(3, tmp_path / "gone.jpg")
    return files


@pytest.mark.parametrize("transform", [PILLOW, TORCHCODEC])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_files_come_in_order_and_bad_ones_with_their_reason(
    files: list[Path], transform: transforms.Transform, batch_size: int
) -> None:
    loaded = list(ImageLoader(transform, CPU, 2, batch_size).load(files))
    assert isinstance(loaded[3], BadImage) and "No such file" in str(loaded[3])
    for path, image in zip(files, loaded, strict=True):
        if isinstance(image, LoadedImage):
            assert image.digest == decoding.read_digest(path)
            expected = transforms.load_image(path, PILLOW).astype(int)
            assert np.abs(np.asarray(image.pixels) - expected).max() <= (0 if transform is PILLOW else 2)


def test_batches_by_torchcodec_are_the_images_one_by_one(files: list[Path]) -> None:
    loader = ImageLoader(TORCHCODEC, CPU, 2, 4)
    for single, batched in zip(loader.load(files), loader.load_batches(files), strict=True):
        if isinstance(single, LoadedImage):
            assert isinstance(batched, LoadedImage) and batched.digest == single.digest
            assert torch.equal(torch.as_tensor(single.pixels), torch.as_tensor(batched.pixels))
        else:
            assert str(batched) == str(single)


@pytest.mark.parametrize("transform", [PILLOW, TORCHCODEC])
def test_known_images_are_not_decoded(
    files: list[Path], transform: transforms.Transform, monkeypatch: pytest.MonkeyPatch
) -> None:
    del files[3]
    known = {decoding.read_digest(path) for path in files}

    def fail(content: object, *arguments: object) -> list[torch.Tensor]:
        assert not content, "it is decoded"
        return []

    monkeypatch.setattr(decoding, "decode", fail)
    monkeypatch.setattr(torchcodec, "decode", fail)
    loader = ImageLoader(transform, CPU, 2, 4)
    for images in (loader.load(files, known), loader.load_batches(files, known)):
        assert all(isinstance(image, KnownImage) and image.digest in known for image in images)


def test_bytes_pil_images_and_arrays_give_the_pixels_of_the_file(tmp_path: Path) -> None:
    image = smooth_image(60, 40)
    path = tmp_path / "a.png"
    image.save(path)
    sources = [path, str(path), path.read_bytes(), Image.open(path), np.asarray(image)]
    for transform in (PILLOW, TORCHCODEC):
        loaded = list(ImageLoader(transform, CPU, 2, 4).load(sources))
        digests = [item.digest for item in loaded if isinstance(item, LoadedImage)]
        assert len(digests) == 5 and len(set(digests[:3])) == 1 and digests[3] == digests[4] != digests[0]
        for item in loaded:
            np.testing.assert_array_equal(np.asarray(item.pixels), transforms.load_image(path, PILLOW))


def test_few_images_are_loaded_ahead() -> None:
    taken = 0

    def sources() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield encode_image(smooth_image(60, 40, taken))

    images = ImageLoader(PILLOW, CPU, 2, 4).load(sources())
    next(images)
    assert taken <= 17
    images.close()  # type: ignore[attr-defined]


def test_only_the_first_files_that_torchcodec_refuses_are_named_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(contents: list[bytes], device: torch.device) -> list[torch.Tensor]:
        if contents:
            raise RuntimeError("not that one")
        return []

    monkeypatch.setattr(torchcodec, "decode", refuse)
    sources = [encode_image(smooth_image(60, 40, seed)) for seed in range(MAX_REFUSALS + 5)]
    with caplog.at_level(logging.WARNING):
        loaded = list(ImageLoader(TORCHCODEC, CPU, 1, 1).load(sources))
    assert all(isinstance(image, LoadedImage) for image in loaded)
    assert len(caplog.messages) == MAX_REFUSALS + 1
    assert (
        "Decoded by Pillow, since TorchCodec refuses it" in caplog.messages[0] and "not that one" in caplog.messages[0]
    )
    assert "further JPEG files" in caplog.messages[-1]
