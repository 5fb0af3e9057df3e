"""Augmentation: random crops, shifts and mirror images that depend on the seed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.images import augmentation, transforms

SMALL = transforms.Transform(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def write_gradient(path: Path, width: int = 300, height: int = 200) -> Path:
    """Write a JPEG whose red is proportional to the column and whose green is proportional to the row."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    Image.fromarray(np.stack([x, y, 0 * y], 2).astype(np.uint8)).save(path, quality=95)
    return path


@pytest.mark.parametrize("augment", augmentation.AUGMENTATIONS)
def test_augmentation_depends_on_its_seed_alone(tmp_path: Path, augment: str) -> None:
    path = write_gradient(tmp_path / "a.jpg")
    images = [augmentation.load_augmented(path, SMALL, augment, 0.5, 48, (0, epoch, 7)) for epoch in (1, 1, 2, 3, 4)]
    assert all(image.shape == (3, 48, 48) and image.dtype == np.uint8 for image in images)
    np.testing.assert_array_equal(images[0], images[1])
    assert len({image.tobytes() for image in images}) == (4 if augment != "none" else 2)


def test_no_augmentation_gives_what_evaluation_sees(tmp_path: Path) -> None:
    path = write_gradient(tmp_path / "a.jpg")
    np.testing.assert_array_equal(
        augmentation.load_augmented(path, SMALL, "none", 0, 64, (0, 0)), transforms.load_image(path, SMALL)
    )


@pytest.mark.parametrize(("augment", "min_area"), [("crop", 0.08), ("gentle", 0.35)])
def test_a_random_crop_has_at_least_its_smallest_area_and_stays_sharp(
    tmp_path: Path, augment: str, min_area: float
) -> None:
    path, areas = write_gradient(tmp_path / "a.jpg", 1500, 1000), []
    for seed in range(200):
        red, green, _ = augmentation.load_augmented(path, SMALL, augment, 0, 64, (seed,)).astype(float)
        areas.append((np.ptp(red) / 255) * (np.ptp(green) / 255))
        assert (np.diff(red.mean(0)) >= -0.5).all() and (np.diff(green.mean(1)) >= -0.5).all()
    assert min_area * 0.9 < min(areas) < min_area + 0.1 and max(areas) > 0.85


def test_flip_gives_the_mirror_image(tmp_path: Path) -> None:
    path = write_gradient(tmp_path / "a.jpg")
    plain, mirrored = (augmentation.load_augmented(path, SMALL, "none", flip, 64, (0,)) for flip in (0, 1))
    np.testing.assert_array_equal(plain, mirrored[..., ::-1])
