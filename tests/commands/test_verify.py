"""verify and cache: damage and foreign rows are found; codes of earlier runs can be listed and pruned."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import Outcome
from helpers import FC7, mistake
from PIL import Image

from pipeline.cache import cache_folders
from pipeline.codes import reader
from pipeline.finetuning.checkpoint import Checkpoint
from pipeline.images import decoding

Run = Callable[..., Outcome]


@pytest.fixture
def extracted(run: Run, photos: Path) -> Run:
    run("prepare", "--dataset", photos)
    assert run("extract", "--dataset", "photos", "--layer", "fc7").code == 0
    return run


def test_a_sound_file_is_called_sound(extracted: Run) -> None:
    outcome = extracted("verify", FC7)
    assert outcome.code == 0 and "fit the images in data/photos" in outcome.out
    shutil.rmtree("data")
    assert "no prepared dataset" in extracted("verify", FC7).out


@pytest.mark.parametrize("name", ["values", "labels", "digests", "paths"])
def test_verify_finds_100_of_100_flipped_bits(extracted: Run, name: str) -> None:
    with h5py.File(FC7) as file:
        start, size = file[name].id.get_offset(), file[name].id.get_storage_size()
    good, shuffled = FC7.read_bytes(), random.Random(0)
    for _ in range(100):
        place = shuffled.randrange(size * 8)
        damaged = bytearray(good)
        damaged[start + place // 8] ^= 1 << (place % 8)
        FC7.write_bytes(damaged)
        mistake(extracted("verify", FC7), "damaged")


def test_a_row_of_another_image_or_label_is_found(extracted: Run, photos: Path) -> None:
    (photos / "red" / "01.png").write_bytes((photos / "blue" / "01.png").read_bytes())
    mistake(extracted("verify", FC7), "red/01.png", "gone or has changed")
    extracted("prepare", "--dataset", photos, "--seed", 9)
    extracted("extract", "--dataset", "photos", "--layer", "fc7")
    extracted("prepare", "--dataset", photos, "--seed", 1)
    mistake(extracted("verify", FC7), "is in the split", "in the codes and in", "more)")


def test_what_is_no_file_of_codes(run: Run, project: Path) -> None:
    mistake(run("verify", "none.h5"), "no codes at none.h5")
    (project / "x.h5").write_bytes(b"junk")
    mistake(run("verify", "x.h5"), "damaged, or no file of codes")


def test_the_cache_needs_no_space_of_its_own_and_can_be_pruned(extracted: Run) -> None:
    shown = extracted("cache").out
    assert "fc7-" in shown and "1 file, 0.0 MB that nothing else holds" in shown
    extracted("extract", "--dataset", "photos", "--layer", "fc7", "--weights", "random")
    assert "2 files, 0.2 MB that nothing else holds" in extracted("cache").out
    assert "0.2 MB freed" in extracted("cache", "--prune").out
    assert "0 files" in extracted("cache").out
    assert extracted("verify", FC7).code == 0


def test_the_cache_of_advise_is_pruned_too(run: Run, photos: Path) -> None:
    run("prepare", "--dataset", photos)
    assert run("advise", "--dataset", "photos", "--layer", "fc7", "--folds", 2, "--images", 24).code == 0
    folders = cache_folders(Path("features"))
    assert folders and all(list(folder.iterdir()) for folder in folders)
    assert run("cache", "--prune").code == 0
    assert not any(list(folder.iterdir()) for folder in folders)


def test_checkpoints_of_fine_tuning_are_listed_and_pruned_unless_a_run_uses_them(run: Run, project: Path) -> None:
    path = project / "models/photos/timm/resnet18/.cache/fc-finetuned.safetensors.checkpoint"
    Checkpoint(path, {"seed": 1}).save({"weights": torch.zeros(500_000)})
    half = path.with_name(f".{path.name}.partial")
    half.write_bytes(b"x" * 300_000)
    with Checkpoint(path, {}).locked():
        shown = run("cache").out
        assert str(path.relative_to(project)) in shown and half.name in shown and "2 files, 2.3 MB" in shown
        mistake(run("cache", "--prune"), "Another run uses", path.name)
    assert path.exists()
    assert "2.3 MB freed" in run("cache", "--prune").out and not path.exists() and not half.exists()
    assert run("cache").out.startswith("0 files")


def damage(data: bytes, rng: random.Random) -> bytes:
    """Flip some bits, cut off the end, or lie in the header."""
    kind, damaged = rng.randrange(3), bytearray(data)
    if kind == 0:
        return bytes(damaged[: rng.randrange(len(damaged))])
    reach = len(damaged) if kind == 1 else 64
    for _ in range(rng.randint(1, 20)):
        damaged[rng.randrange(min(reach, len(damaged)))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def test_500_damaged_files_among_good_ones(run: Run, photos: Path) -> None:
    """No crash and no hang; each file is either an image, with its code, or named with its reason."""
    run("prepare", "--dataset", photos)
    run("extract", "--dataset", "photos", "--layer", "fc7")
    before = reader.read(FC7, {})
    rng, noise = random.Random(0), Image.effect_noise((120, 90), 60).convert("RGB")
    for number in range(500):
        kind = ("JPEG", "PNG", "GIF", "WEBP")[number % 4]
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        (photos / ("red", "green", "blue")[number % 3] / f"damaged-{number}.{kind.lower()}").write_bytes(
            damage(buffer.getvalue(), rng)
        )
    damaged = sorted(photos.glob("*/damaged-*"))
    bad = set()
    for path in damaged:
        try:
            decoding.decode(path.read_bytes())
        except decoding.BadImage as reason:
            bad.add(str(path))
            assert str(reason)
    assert 200 < len(bad) < 500
    # Extract meets them unprepared: the manifest lists them all.
    manifest = Path("data/photos/manifest.csv")
    lines = [f"{path},{path.parent.name},train,{decoding.read_digest(path)}" for path in damaged]
    manifest.write_text(manifest.read_text() + "\n".join(lines) + "\n")
    outcome = run("extract", "--dataset", "photos", "--layer", "fc7", "--max-bad", 1)
    assert outcome.code == 0 and all(path in outcome.out for path in bad)
    after = reader.read(FC7, {})
    assert len(after.paths) == 36 + 500 - len(bad) and not bad & set(after.paths)
    rows = {path: row for row, path in enumerate(after.paths)}
    np.testing.assert_array_equal(after.values[[rows[path] for path in before.paths]], before.values)
    assert {line.rsplit(": ", 1)[0].split(": ")[0] for line in reader.read_index(FC7, {}).bad} == bad
