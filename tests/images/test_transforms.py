"""Transforms: torchvision's resize and crop, and other framings than that of the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torchvision.transforms.v2 as tv
from helpers import encode_image, smooth_image
from PIL import Image

from pipeline import errors
from pipeline.images import decoding, transforms

NATIVE = transforms.Transform(256, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def gradient(width: int, height: int) -> Image.Image:
    """Return an image whose red is proportional to the column and whose green is proportional to the row."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns * 255 / width, rows * 255 / height, 0 * rows], 2)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (64, 64), (63, 64), (8, 8), (301, 20), (57, 999)])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (64, 64), (232, 225)])
def test_resize_and_crop_equal_torchvisions(size: tuple[int, int], resize: int, crop: int) -> None:
    image = Image.effect_noise(size, 80).convert("RGB")
    theirs = tv.Compose([tv.Resize(resize), tv.CenterCrop(crop), tv.PILToTensor()])(image)
    transform = transforms.Transform(resize, crop, "bilinear", (0, 0, 0), (1, 1, 1))
    np.testing.assert_array_equal(transforms.resize_and_crop(image, transform), theirs.numpy())


def test_an_image_too_long_and_narrow_to_resize_is_bad() -> None:
    with pytest.raises(decoding.BadImage, match="too long and narrow"):
        transforms.resize_and_crop(
            Image.new("RGB", (1, 60_000)), transforms.Transform(256, 224, "bilinear", (0, 0, 0), (1, 1, 1))
        )


def test_an_image_for_torchcodec_is_not_decoded_by_pillow() -> None:
    transform = transforms.Transform(256, 224, "bilinear", (0, 0, 0), (1, 1, 1), decoder="torchcodec")
    with pytest.raises(ValueError, match="decoded by torchcodec"):
        transforms.resize_and_crop(gradient(300, 300), transform)


def test_only_large_jpegs_are_decoded_at_a_fraction_of_their_size() -> None:
    native = transforms.Transform(40, 32, "bilinear", (0, 0, 0), (1, 1, 1))
    scaled = replace(native, decoder=decoding.SCALED)
    exif = Image.Exif()
    for orientation in range(1, 9):  # 641 × 483 pixels become 161 × 121, of which the image fills 160.25 × 120.75
        exif[0x0112] = orientation
        large = encode_image(smooth_image(641, 483), exif=exif, quality=95)
        whole, reduced = (transforms.transform_bytes(large, one).astype(int) for one in (native, scaled))
        assert (whole != reduced).any() and np.abs(whole - reduced).max() <= 4, orientation
    for data in (encode_image(smooth_image(158, 300)), encode_image(smooth_image(640, 480), "PNG")):
        np.testing.assert_array_equal(*(transforms.transform_bytes(data, one) for one in (native, scaled)))
    wide = replace(scaled, crop_width=64)
    assert (scaled.min_side, wide.min_side, native.min_side) == (80, 160, 0)


@pytest.mark.parametrize(
    ("framing", "size", "resize"),
    [
        (transforms.Framing(), (224, 224), 256),
        (transforms.Framing((320, 320)), (320, 320), 366),
        (transforms.Framing((320, 320), 320), (320, 320), 320),
        (transforms.Framing((448, 336)), (448, 336), 384),
        (transforms.Framing((448, 336), fit="whole"), (448, 336), 336),
    ],
)
def test_other_sizes_keep_the_proportion_of_resize_and_crop(
    framing: transforms.Framing, size: tuple[int, int], resize: int
) -> None:
    transform = framing.of(NATIVE)
    assert (transform.size, transform.resize) == (size, resize)
    for width, height in ((500, 375), (375, 500), (90, 1000), (301, 300)):
        assert transforms.resize_and_crop(gradient(width, height), transform).shape == (3, *size)


def test_the_default_framing_is_that_of_the_weights() -> None:
    assert transforms.Framing().of(NATIVE) == NATIVE == transforms.Framing((224, 224), 256).of(NATIVE)


def test_the_crop_is_central_and_fit_whole_keeps_the_whole_image() -> None:
    image = gradient(400, 200)
    whole = transforms.resize_and_crop(image, transforms.Framing((100, 100), fit="whole").of(NATIVE))
    centre = transforms.resize_and_crop(image, transforms.Framing((100, 100), 100).of(NATIVE))
    wide = transforms.resize_and_crop(image, transforms.Framing((100, 200), 100).of(NATIVE))
    assert whole[0].max() - whole[0].min() > 245 and whole[1].max() - whole[1].min() > 245
    assert abs(int(centre[0].max()) - int(centre[0].min()) - 127) < 5 and centre[1].max() - centre[1].min() > 245
    assert wide.shape == (3, 100, 200) and wide[0].max() - wide[0].min() > 245


@pytest.mark.parametrize("text", ["0", "-3", "320x", "x", "320,400", "3.5", "99999", "320x0"])
def test_invalid_sizes_are_rejected(text: str) -> None:
    with pytest.raises(errors.PipelineError, match="448x336 for height x width"):
        transforms.parse_size(text)
