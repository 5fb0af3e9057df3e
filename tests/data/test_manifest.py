"""The manifest: written and read back, refused when it is old or damaged, and one digest for all that it says."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import errors
from pipeline.data import manifest as manifests
from pipeline.data.manifest import ListedImage, dataset_digest, read_manifest, write_manifest
from pipeline.texts import Texts

IMAGES = [
    ListedImage(Path("data/b.png"), "dog", "train", metadata={"who": "p1"}, digest="bb"),
    ListedImage(Path("data/a.png"), "cat", "test", metadata={"who": ""}, digest="aa"),
    ListedImage(Path("data/c.png"), "cat", "train", metadata={"who": "p2"}, digest="cc"),
]


def test_a_manifest_is_read_as_it_was_written(project: Path) -> None:
    write_manifest(Path("data"), IMAGES)
    manifest = read_manifest(Path("data"))
    assert manifest.paths == ("c.png", "b.png", "a.png") and manifest.digests == ("cc", "bb", "aa")
    assert manifest.labels.tolist() == [0, 1, 0] and manifest.splits == ("train", "train", "test")
    assert manifest.metadata == {"who": ("p2", "p1", "")}
    part = manifest.take(np.array([1]))
    assert (part.paths, part.digests, part.metadata) == (("b.png",), ("bb",), {"who": ("p1",)})
    assert part.classes == ("cat", "dog") and part.groups("who") == ("p1",)
    assert part.listed(np.array([0])) == [replace(IMAGES[0], split=None)]
    with pytest.raises(errors.PipelineError, match=r"no value in the column 'who' for a\.png"):
        manifest.groups("who")


def test_the_digest_changes_with_everything_that_codes_depend_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(Path("data"), IMAGES)
    manifest = read_manifest(Path("data"))
    changed = [
        replace(manifest, paths=Texts.of(["d.png", *manifest.paths[1:]])),
        replace(manifest, labels=1 - manifest.labels),
        replace(manifest, splits=Texts.of(["val", *manifest.splits[1:]])),
        replace(manifest, classes=("cat", "cow")),
        replace(manifest, digests=Texts.of(["dd", *manifest.digests[1:]])),
    ]
    digests = {manifest.digest, *(other.digest for other in changed)}
    assert len(digests) == 6 and read_manifest(Path("data")).digest == manifest.digest
    assert replace(manifest, metadata={}).digest == manifest.digest
    same = (manifest.paths, manifest.labels.astype(np.int32), manifest.splits, manifest.classes, manifest.digests)
    assert dataset_digest(*same) == manifest.digest
    content = [["c.png", "b.png", "a.png"], [0, 1, 0], ["train", "train", "test"], ["cat", "dog"], ["cc", "bb", "aa"]]
    for block in (1, 2, 3):
        monkeypatch.setattr(manifests, "BLOCK", block)
        assert manifest.digest == hashlib.sha256(json.dumps(content).encode()).hexdigest(), "classifiers carry it"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column 'path'"),
        ("path,label,split\na.png,x,train\n", "no column 'digest'"),
        ("path,label,split,digest\n", "has no images"),
        ("path,label,split,digest\na.png,x,train\n", "row 2"),
        ("path,label,split,digest\na.png,x,train,aa,bb\n", "row 2"),
        ("path,label,split,digest\na.png,x,training,aa\n", "row 2"),
        ("path,label,split,digest\na.png,x,train,\n", "row 2"),
    ],
)
def test_an_old_or_damaged_manifest_is_refused_with_the_command(project: Path, text: str, words: str) -> None:
    Path("manifest.csv").write_text(text)
    with pytest.raises(
        errors.PipelineError, match=r"Prepare the dataset again. Run:\n  python -m pipeline\."
    ) as refused:
        read_manifest(Path())
    assert words in str(refused.value)
