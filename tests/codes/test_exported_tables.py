"""Codes in the formats of other tools come back bit for bit, with all that the file of codes says of them."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import zarr
from conftest import ROOT, Listing, Outcome, put_codes
from helpers import CODES, mistake, write_listed_codes, write_training
from pyarrow import parquet

from pipeline import read_codes
from pipeline.codes import reader, stored, tables
from pipeline.codes.reader import Codes
from pipeline.errors import PipelineError

Run = Callable[..., Outcome]
OUT = Path("exports/digits/tinyvgg/fc7.parquet")


def test_parquet_holds_the_codes_in_row_groups(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_training()
    codes, spec = read_codes(CODES), reader.read_index(CODES, {}).spec
    monkeypatch.setattr(stored, "BLOCK_BYTES", 4 * 20 * 16)
    outcome = run("export", "--codes", "parquet")
    assert outcome.code == 0 and outcome.out == f"{OUT}: 60 × 16\n" and "model" not in outcome.err, outcome
    file = parquet.ParquetFile(OUT)
    assert file.num_row_groups == 3
    table = file.read()
    assert table["path"].to_pylist() == list(codes.paths) and table["split"].to_pylist() == list(codes.splits)
    assert table["label"].to_pylist() == codes.label_names() and table["digest"].to_pylist() == list(codes.digests)
    values = np.stack(table["codes"].to_numpy())
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values.view(np.uint32), codes.values.view(np.uint32))
    described = json.loads(table.schema.metadata[b"cnn-codes"])
    assert described == {"format": tables.FORMAT, "spec": spec.to_dict(), "classes": ["ant", "bee", "fly"]}


def test_an_array_and_a_csv_hold_the_same(run: Run) -> None:
    write_training()
    codes = read_codes(CODES)
    assert run("export", "--codes", "npy", "--out", "made/array.npy").code == 0
    np.testing.assert_array_equal(np.load("made/array.npy", mmap_mode="r"), codes.values)
    assert run("export", "--codes", "csv", "--out", "made/table.csv").code == 0
    rows, table = pandas.read_csv("made/array-images.csv"), pandas.read_csv("made/table.csv")
    np.testing.assert_array_equal(table.to_numpy()[:, 4:].astype(np.float32), codes.values)
    assert list(table.columns[:5]) == [*tables.COLUMNS, "fc7_0"] and rows.equals(table[list(tables.COLUMNS)])
    assert table["label"].tolist() == codes.label_names() and set(table["split"]) == {"train", "test"}
    specs = [json.loads(Path("made", name).read_text())["spec"] for name in ("array.json", "table.json")]
    assert specs == [codes.spec.to_dict()] * 2


def as_bits(codes: Codes[np.ndarray]) -> tuple[object, ...]:
    """Return all that codes hold, with their values as bits."""
    bits, labels = codes.values.view(np.uint32).tolist(), (codes.labels.dtype, codes.labels.tolist())
    return bits, labels, codes.paths, codes.splits, codes.digests, codes.classes, codes.spec


def test_zarr_comes_back_bit_for_bit_and_is_refused_when_damaged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((5, 4), np.float32)
    values[2:] = [-0.0, 1e-42, 1 / 3, 7]
    names = ["a.png", "bé.png", "c" * 300, "d.png", "e.png"]
    splits, digests = ["train", "unlabelled", "train", "test", "test"], [f"{row:064x}" for row in range(5)]
    listing = Listing(names, [1, -1, 0, 1, 0], splits, digests, ["ant", "bee"])
    put_codes(CODES, values, listing)
    monkeypatch.setattr(stored, "BLOCK_BYTES", 2 * 4 * 4)
    for _ in range(2):
        assert run("export", "--codes", "zarr", "--out", "made/codes.zarr").code == 0
    codes = read_codes(CODES)
    assert as_bits(read_codes("made/codes.zarr")) == as_bits(codes) and np.signbit(codes.values[2, 0])
    assert as_bits(read_codes("made/codes.zarr", "test")) == as_bits(read_codes(CODES, "test"))
    assert [path.name for path in Path("made").iterdir()] == ["codes.zarr"]
    for own in (".", "made"):
        mistake(run("export", "--codes", "zarr", "--out", own), "holds files that this program did not write")
    assert Path("made/codes.zarr").exists()
    chunk = Path("made/codes.zarr/values/c/1/0")
    whole = chunk.read_bytes()
    for damage in (lambda: chunk.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]), chunk.unlink):
        damage()
        with pytest.raises(PipelineError, match=r"codes\.zarr is damaged"):
            read_codes("made/codes.zarr")
    assert run("export", "--codes", "zarr", "--out", "made/codes.zarr").code == 0
    group = zarr.open_group("made/codes.zarr")
    group["labels"].resize((2,))  # type: ignore[union-attr]
    with pytest.raises(PipelineError, match="different numbers of rows"):
        read_codes("made/codes.zarr")
    group.create_group("labels", overwrite=True)
    with pytest.raises(PipelineError, match="labels is no array"):
        read_codes("made/codes.zarr")
    monkeypatch.setitem(sys.modules, "zarr", None)
    mistake(run("export", "--codes", "zarr"), "pip install -e '.[zarr]'")


def test_codes_are_a_pandas_table_and_torch_tensors(project: Path) -> None:
    write_training()
    codes = read_codes(str(CODES), "test")
    table, (values, labels) = codes.to_pandas(), codes.to_torch()
    assert table.index.tolist() == list(codes.paths) and set(table["split"]) == {"test"}
    assert table["label"].tolist() == [codes.classes[label] for label in codes.labels]
    np.testing.assert_array_equal(table[range(16)], codes.values)
    assert np.shares_memory(values.numpy(), codes.values)
    assert labels.tolist() == codes.labels.tolist()


def test_images_without_a_label_have_an_empty_one(project: Path) -> None:
    listing = Listing(["a.png", "b.png"], [-1, 0], ["unlabelled", "train"], ["0" * 64, "1" * 64], ["ant"])
    put_codes(CODES, np.ones((2, 4)), listing)
    assert read_codes(CODES).label_names() == ["", "ant"]


def test_what_parquet_cannot_hold_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_listed_codes(["a.png", "odd \udcff.png"], [0, 1], ["train"] * 2, ["ant", "bee"])
    mistake(run("export", "--codes", "parquet"), "'odd \\udcff.png' is not valid UTF-8", "npy")
    assert not list(OUT.parent.iterdir())
    assert run("export", "--codes", "npy").code == 0
    assert "odd \udcff.png" in OUT.with_name("fc7-images.csv").read_text(errors="surrogateescape")
    mistake(run("export", "--codes", "npy", "--layer", "fc6+fc7"), "names several layers")
    mistake(run("export", "--codes", "npy", "--layer", "fc6"), "no codes at", "pipeline.extract")
    mistake(run("export", "--codes", "zarr"), "'odd \\udcff.png' is not valid UTF-8", "npy")
    assert not OUT.with_suffix(".zarr").exists()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    mistake(run("export", "--codes", "parquet"), "pip install -e '.[parquet]'")


def test_the_files_for_tensorboards_projector_that_the_documentation_makes(project: Path) -> None:
    write_training(Path("features/photos/efficientnet_lite0/avgpool.h5"), layer="avgpool")
    page = (ROOT / "docs" / "other-tools.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"<!-- tested -->\n```python\n(.*?)```", page, re.S)
    Path("program.py").write_text(program)
    runpy.run_path("program.py")
    assert np.loadtxt("codes.tsv", delimiter="\t").shape == (60, 16)
    header, *lines = Path("codes-metadata.tsv").read_text().splitlines()
    assert header == "path\tlabel\tsplit" and len(lines) == 60 and lines[0] == "0.png\tant\ttest"
