"""The commands with --decoder torchcodec."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome
from helpers import encode_image, smooth_image, without_torchcodec, write_jpegs

from pipeline import CNNCodes, errors
from pipeline.codes import reader
from pipeline.images import torchcodec, transforms
from pipeline.networks.frozen import FrozenNetwork

Run = Callable[..., Outcome]
ADDRESS = ("--dataset", "photos", "--layer", "fc7")
TORCHCODEC = transforms.Transform(40, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), decoder="torchcodec")


def test_the_decoder_is_stored_in_the_file_and_used_by_predict(run: Run, tmp_path: Path) -> None:
    folder = write_jpegs(tmp_path / "photos", 24)
    (folder / "light" / "torn.jpg").write_bytes(encode_image(smooth_image(60, 40))[:700])
    assert run("prepare", "--dataset", folder).code == 0
    assert run("extract", *ADDRESS, "--precision", "fp32").code == 0
    exact = reader.read(Path("features/photos/tinyvgg/fc7.h5"), {"transform.decoder": "pillow"})
    outcome = run("extract", *ADDRESS, "--precision", "fp32", "--decoder", "torchcodec")
    assert outcome.code == 0 and "JPEGs by torchcodec: as asked" in outcome.out, outcome
    assert f"{len(exact.paths)} images went" in outcome.out
    found = reader.read(Path("features/photos/tinyvgg/fc7.h5"), {"transform.decoder": "torchcodec"})
    assert found.paths == exact.paths and found.digests == exact.digests
    cosine = (found.values * exact.values).sum(1) / np.linalg.norm(found.values, axis=1)
    assert (cosine / np.linalg.norm(exact.values, axis=1)).min() > 0.999
    assert (found.values != exact.values).any()

    assert run("classify", *ADDRESS, "--folds", 2, "--grid", "{l2: {C: [1]}}").code == 0
    outcome = run("predict", *ADDRESS, folder)
    assert outcome.code == 0 and "26 images, 1 skipped" in outcome.err and "torn.jpg" in outcome.err
    with pytest.raises(errors.PipelineError, match="were decoded by torchcodec, but CNNCodes decodes them by pillow"):
        CNNCodes(codes_folder="features/photos").fit([])
    assert run("finetune", *ADDRESS, "--epochs", 0, "--val", 0.25).code == 0
    assert '"decoder": "pillow"' in Path("models/photos/tinyvgg/fc7-finetuned.json").read_text()
    again = run("extract", *ADDRESS, "--precision", "fp32", "--decoder", "auto")
    assert "\n0 images went" in again.out  # those by Pillow are still there, and come first


def test_large_photos_are_decoded_at_a_fraction_of_their_size(run: Run, tmp_path: Path) -> None:
    folder = write_jpegs(tmp_path / "photos", 24)
    for number, file in enumerate(sorted(folder.glob("*/0*.jpg"))):
        smooth_image(300, 260, number).save(file, quality=90)
    assert run("prepare", "--dataset", folder).code == 0
    outcome = run("extract", *ADDRESS, "--precision", "fp32", "--decoder", "pillow-scaled")
    assert outcome.code == 0 and "JPEGs by pillow-scaled: as asked" in outcome.out, outcome
    stored = reader.read(Path("features/photos/tinyvgg/fc7.h5"), {"transform.decoder": "pillow-scaled"})
    files = [folder / path for path in stored.paths]
    codes = CNNCodes(codes_folder="features/photos").fit([])
    assert codes.spec_ == stored.spec
    np.testing.assert_array_equal(codes.transform(files), stored.values)  # from the file
    codes.codes_folder = None
    np.testing.assert_allclose(codes.transform(files), stored.values, rtol=1e-4, atol=1e-5)
    full = CNNCodes().fit_transform(files)
    assert (full[0] != stored.values[0]).any() and np.corrcoef(full[0], stored.values[0])[0, 1] > 0.999
    assert run("classify", *ADDRESS, "--folds", 2, "--grid", "{l2: {C: [1]}}").code == 0
    assert run("predict", *ADDRESS, folder).code == 0
    outcome = run("extract", *ADDRESS, "--decoder", "pillow-scaled", "--views", "flips")
    assert outcome.code == 2 and "--views flips needs all pixels of an image. Take --decoder pillow." in outcome.err


def test_an_unusable_decoder_is_a_mistake(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("prepare", "--dataset", photos)
    outcome = run("extract", *ADDRESS, "--decoder", "torchcodec", "--views", "ten", "--resize", 80)
    assert outcome.code == 2 and "no --views ten" in outcome.err
    if not torch.cuda.is_available():
        with pytest.raises(errors.PipelineError, match="TorchCodec cannot decode on cuda"):
            torchcodec.validate_usable(TORCHCODEC, torch.device("cuda"))
    with pytest.raises(errors.PipelineError, match="Unknown decoder 'gpu'"):
        FrozenNetwork("tinyvgg", ["fc7"], "default", "avg4").at(decoder="gpu")
    without_torchcodec(monkeypatch)
    outcome = run("extract", *ADDRESS, "--decoder", "torchcodec")
    assert outcome.code == 2 and "pip install 'torchcodec>=0.17'" in outcome.err
    assert run("extract", *ADDRESS).code == 0  # which needs none
