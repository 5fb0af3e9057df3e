"""JPEGs by TorchCodec: Pillow's pictures within rounding, whatever it cannot take left to Pillow, nothing unsaid.

TorchCodec runs on the processor here; on a GPU the same call is given another device.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Outcome
from PIL import Image

from pipeline import errors
from pipeline.codes import reader
from pipeline.extraction import autotune, transformer
from pipeline.extraction.engine import Engine, lowest_cosine
from pipeline.images import decoding, parallel, torchcodec, transforms
from pipeline.networks.frozen import FrozenNetwork

Run = Callable[..., Outcome]
CPU = torch.device("cpu")
PILLOW = transforms.Transform(40, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
TORCHCODEC = replace(PILLOW, decoder="torchcodec")
ADDRESS = ("--dataset", "photos", "--layer", "fc7")


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a picture of soft blots, as photos have them."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_jpegs(folder: Path, count: int) -> Path:
    """Write `count` JPEG photos of two classes, and one PNG of each."""
    for number, name in enumerate(("light", "dark")):
        (folder / name).mkdir(parents=True)
        for row in range(count // 2):
            picture = smooth(90, 70, 100 * number + row).point(lambda value, dark=number: value // (1 + 2 * dark))
            picture.save(folder / name / f"{row:02}.jpg", quality=90)
        picture.save(folder / name / "last.png")
    return folder


def show(
    folder: Path, data: bytes, transform: transforms.Transform = TORCHCODEC
) -> tuple[np.ndarray | decoding.BadImage, list[str]]:
    """Return what becomes of one file's bytes, and the notes."""
    notes: list[str] = []
    path = folder / "picture"
    path.write_bytes(data)
    opened = parallel.attempt(partial(torchcodec.open_file, transform=transform), path)
    (item,) = torchcodec.decode_batch([opened], transform, CPU, notes.append)
    return item if isinstance(item, decoding.BadImage) else item[0].numpy(), notes


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("size", [(500, 375), (61, 200), (32, 32), (20, 24)])
def test_pictures_are_pillows_within_rounding(
    tmp_path: Path, options: dict[str, object], size: tuple[int, int]
) -> None:
    data = encode(smooth(*size), **options)
    assert torchcodec.plain_size(data) == size
    for change in (
        {},
        {"interpolation": "bicubic"},
        {"fit": "whole"},
        {"crop_width": 48, "resize": 56},
    ):
        found, notes = show(tmp_path, data, replace(TORCHCODEC, **change))
        exact = transforms.transform_bytes(data, replace(PILLOW, **change))[0]
        assert isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.shape == exact.shape and not notes
        assert np.abs(found.astype(int) - exact).max() <= 2


def test_the_nearest_pixel_is_pillows(tmp_path: Path) -> None:
    data = encode(smooth(120, 96))
    found, _ = show(tmp_path, data, replace(TORCHCODEC, interpolation="nearest", resize=32))
    np.testing.assert_array_equal(
        found, transforms.transform_bytes(data, replace(PILLOW, interpolation="nearest", resize=32))[0]
    )


def test_grey_ones_too(tmp_path: Path) -> None:
    data = encode(smooth(50, 40).convert("L"))
    assert torchcodec.plain_size(data) == (50, 40)
    assert np.abs(show(tmp_path, data)[0].astype(int) - transforms.transform_bytes(data, PILLOW)[0]).max() <= 2


def exif(orientation: int, kind: str = "H") -> bytes:
    """Return an EXIF block, big-endian, whose orientation is a short (H) or a long (I) number."""
    value = struct.pack(f">{kind}", orientation).ljust(4, b"\0")
    entry = struct.pack(">HHI", 0x0112, {"H": 3, "I": 4}[kind], 1) + value
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + bytes(4)


def xmp(orientation: int) -> bytes:
    """Return an XMP block that tells the orientation."""
    rdf = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
    inner = f'<rdf:RDF {rdf}><rdf:Description tiff:Orientation="{orientation}"/></rdf:RDF>'
    return f'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/">{inner}</x:xmpmeta>'.encode()


def with_blocks(data: bytes, *blocks: bytes) -> bytes:
    """Return a JPEG with APP1 blocks at its start."""
    return data[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block for block in blocks) + data[2:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("told", ["exif", "exif, long", "xmp", "xmp, then exif", "exif twice"])
def test_pictures_stand_as_pillow_has_them(tmp_path: Path, orientation: int, told: str) -> None:
    blocks = {
        "exif": [exif(orientation)],
        "exif, long": [exif(orientation, "I")],
        "xmp": [xmp(orientation)],
        "xmp, then exif": [xmp(1), exif(orientation)],
        "exif twice": [exif(1), exif(orientation)],
    }[told]
    data = with_blocks(encode(smooth(60, 40)), *blocks)
    assert np.abs(show(tmp_path, data)[0].astype(int) - transforms.transform_bytes(data, PILLOW)[0]).max() <= 2
    assert orientation > 1 or told == "exif twice" or torchcodec.plain_size(data) == (60, 40)


@pytest.mark.parametrize(
    "data",
    [
        encode(smooth(50, 40), "PNG"),
        encode(smooth(50, 40), "WEBP"),
        encode(smooth(50, 40).convert("CMYK")),
        encode(smooth(50, 40), keep_rgb=True),
        encode(smooth(50, 40)) + bytes(2000),
    ],
    ids=["png", "webp", "cmyk", "rgb", "long tail"],
)
def test_all_but_plain_jpegs_are_left_to_pillow(tmp_path: Path, data: bytes) -> None:
    assert torchcodec.plain_size(data) is None
    found, notes = show(tmp_path, data)
    np.testing.assert_array_equal(found, transforms.transform_bytes(data, PILLOW)[0])
    assert not notes


def test_of_a_header_that_contradicts_itself_nothing_is_believed(tmp_path: Path) -> None:
    data = encode(smooth(60, 40))
    start = data.index(b"\xff\xc0")
    frame = data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")]
    assert torchcodec.plain_size(data[:start] + frame.replace(b"\0\x28\0\x3c", b"\x28\0\x3c\0") + data[start:]) is None


def test_damaged_files_are_bad_for_the_same_reason_as_ever(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = [encode(smooth(100, 80), **options) for options in ({}, {"progressive": True})]
    bad = 0
    for number in range(200):
        data = bytearray(good[number % 2])
        if number % 4 < 2:
            data = data[: rng.integers(len(data))] + (torchcodec.END if number % 3 else b"")
        for place in rng.integers(0, len(data) + 1, number % 5):
            data[place % max(1, len(data)) : place % max(1, len(data)) + 1] = bytes([rng.integers(256)])
        found, notes = show(tmp_path, bytes(data))
        exact = parallel.attempt(lambda content: transforms.transform_bytes(content, PILLOW)[0], bytes(data))
        assert isinstance(found, decoding.BadImage) == isinstance(exact, decoding.BadImage) and not notes
        if isinstance(found, decoding.BadImage):
            bad += 1
            assert str(found) == str(exact)
        else:
            assert np.abs(found.astype(int) - exact).max() <= 2
    assert 50 < bad < 150


def test_too_many_pixels_are_bad_before_they_are_decoded(tmp_path: Path) -> None:
    data = bytearray(encode(smooth(64, 64)))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = (60_000).to_bytes(2, "big") + (60_000).to_bytes(2, "big")
    assert torchcodec.plain_size(bytes(data)) is None
    assert "more pixels than the limit" in str(show(tmp_path, bytes(data))[0])
    found, _ = show(tmp_path, encode(Image.new("RGB", (2, 60_000))), replace(TORCHCODEC, resize=256, crop=224))
    assert "too long and narrow" in str(found)
    turned = with_blocks(encode(Image.new("RGB", (60_000, 3))), exif(6))
    found, _ = show(tmp_path, turned, replace(TORCHCODEC, resize=64, crop=64, crop_width=6))
    exact = transforms.transform_bytes(turned, replace(PILLOW, resize=64, crop=64, crop_width=6))[0]
    np.testing.assert_array_equal(found, exact)


def test_one_that_torchcodec_refuses_is_left_to_pillow_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's decoder may refuse what the processor's takes; here it is told to refuse one file of three."""
    from torchcodec import decoders

    contents = [encode(smooth(60, 40, seed)) for seed in range(3)]
    decode_jpeg, calls = decoders.decode_jpeg, []

    def refusing(sources: list[bytes], **options: object) -> list[torch.Tensor]:
        calls.append(len(sources))
        if contents[1] in sources:
            raise RuntimeError("decode, /src/Decoder.cpp:1, Not so, and not otherwise.\nand where")
        return decode_jpeg(sources, **options)

    monkeypatch.setattr(decoders, "decode_jpeg", refusing)
    names = [decoding.digest(data) for data in contents]
    lot = [torchcodec.Encoded(tmp_path / f"{row}.jpg", names[row], data, 60, 40) for row, data in enumerate(contents)]
    notes: list[str] = []
    found = torchcodec.decode_batch([lot[0], decoding.BadImage("gone"), *lot[1:]], TORCHCODEC, CPU, notes.append)
    assert calls == [3, 1, 2, 1, 1]
    (note,) = notes
    assert note.endswith("1.jpg' (Not so, and not otherwise)") and "Decoded by Pillow" in note
    assert str(found[1]) == "gone" and [item[1] for item in found if not isinstance(item, decoding.BadImage)] == names
    np.testing.assert_array_equal(found[2][0].numpy(), transforms.transform_bytes(contents[1], PILLOW)[0])


def test_a_picture_that_is_not_as_its_header_says_is_not_believed(tmp_path: Path) -> None:
    data = encode(smooth(60, 40))
    notes: list[str] = []
    (found,) = torchcodec.decode_batch(
        [torchcodec.Encoded(tmp_path / "a.jpg", "a", data, 40, 60)], TORCHCODEC, CPU, notes.append
    )
    np.testing.assert_array_equal(found[0].numpy(), transforms.transform_bytes(data, PILLOW)[0])
    assert "the header states 60 × 40" in notes[0]


def test_a_decoder_that_refuses_everything_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(contents: list[bytes], device: torch.device) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("no memory at all")

    monkeypatch.setattr(torchcodec, "decode", broken)
    lot = [torchcodec.Encoded(tmp_path / "a.jpg", "a", encode(smooth(60, 40)), 60, 40)] * torchcodec.SUSPECT
    with pytest.raises(errors.PipelineError, match=r"refuses all of 8 files.*no memory at all"):
        torchcodec.decode_batch(lot, TORCHCODEC, CPU, print)
    notes: list[str] = []
    assert len(torchcodec.decode_batch(lot[1:], TORCHCODEC, CPU, notes.append)) == len(notes) == 7


def test_of_many_refusals_ten_are_named() -> None:
    fast = Engine(FrozenNetwork("tinyvgg", ["fc7"], "default", "avg4"))
    for number in range(20):
        fast._note_refusal(str(number))
    assert fast.notes[:10] == [str(number) for number in range(10)] and len(fast.notes) == 11


def test_lots_are_bounded_in_number_and_in_pixels() -> None:
    def file(name: str, pixels: int) -> torchcodec.Encoded:
        return torchcodec.Encoded(Path(name), name, b"", pixels, 1)

    half = torchcodec.BATCH_PIXELS // 2
    files = [file("a", 1), file("b", 1), file("c", 1), decoding.BadImage("bad"), file("d", half), file("e", half + 2)]
    files += [file("f", 3 * half), (np.zeros((3, 8, 8), np.uint8), "g")]
    found = list(torchcodec.batches(files, 3))
    assert [len(lot) for lot in found] == [3, 2, 1, 1, 1] and [item for lot in found for item in lot] == files


def test_the_engine_yields_files_in_order_and_their_codes(tmp_path: Path) -> None:
    folder = write_jpegs(tmp_path / "photos", 20)
    files = sorted(folder.glob("*/*"))
    files.insert(3, tmp_path / "gone.jpg")
    network = FrozenNetwork("tinyvgg", ["pool3", "fc7"], "default", "avg")
    fast = Engine(network.at(decoder="torchcodec"), 4)
    found = list(fast.pictures(files, 2))
    for one, other in zip(found, fast._in_lots(files, 2), strict=True):  # as beside a GPU
        if isinstance(one, decoding.BadImage):
            assert str(one) == str(other)
        else:
            assert one[1] == other[1] and torch.equal(torch.as_tensor(one[0]), torch.as_tensor(other[0]))
    exact = list(Engine(network, 4).pictures(files, 2))
    assert isinstance(found[3], decoding.BadImage) and str(found[3]) == str(exact[3])
    assert [item[1] for item in found if isinstance(item, tuple)] == [
        item[1] for item in exact if isinstance(item, tuple)
    ]
    quick, slow = (autotune.run_through(network.at(decoder=name), files, 2)[1] for name in ("torchcodec", "pillow"))
    assert quick.keys() == slow.keys() and len(quick) == 22
    assert min(lowest_cosine(quick[digest], slow[digest]) for digest in slow) > 0.999


def test_extract_says_and_keeps_who_decoded_and_predict_does_the_same(run: Run, tmp_path: Path) -> None:
    folder = write_jpegs(tmp_path / "photos", 24)
    (folder / "light" / "torn.jpg").write_bytes(encode(smooth(60, 40))[:700])
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
    assert outcome.code == 0 and "26 images, 1 set aside" in outcome.err and "torn.jpg" in outcome.err
    with pytest.raises(errors.PipelineError, match="were decoded by torchcodec, those of CNNCodes are by pillow"):
        transformer.CNNCodes(store="features/photos").fit([])
    assert run("finetune", *ADDRESS, "--epochs", 0, "--val", 0.25).code == 0
    assert '"decoder": "pillow"' in Path("models/photos/tinyvgg/fc7-finetuned.json").read_text()
    again = run("extract", *ADDRESS, "--precision", "fp32", "--decoder", "auto")
    assert "\n0 images went" in again.out  # those by Pillow are still there, and come first


def without_torchcodec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let importing TorchCodec fail as it does where it is not installed."""
    for name in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, None)


def test_what_is_missing_is_said_in_a_sentence(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_auto_keeps_pillow_where_there_is_no_gpu(tmp_path: Path) -> None:
    network = FrozenNetwork("tinyvgg", ["fc7"], "default", "avg4")
    assert autotune.choose_decoder(network, [], 2) == ("pillow", "without a GPU, TorchCodec is taken only if asked for")


class Beside:
    """Stands in for a network on a GPU, as far as the choice of a decoder asks."""

    def __init__(self, views: str = "one") -> None:
        self.mean = SimpleNamespace(device=torch.device("cuda"))
        self.transform = transforms.Framing(views=views).of(PILLOW)

    def at(self, decoder: str) -> str:
        return decoder


@pytest.mark.parametrize(
    ("gain", "wrong", "choice"), [(1.5, 0, "torchcodec"), (1.1, 0, "pillow"), (1.5, 1, "pillow"), (9, np.nan, "pillow")]
)
def test_auto_takes_torchcodec_only_where_it_is_right_and_faster(
    monkeypatch: pytest.MonkeyPatch, gain: float, wrong: float, choice: str
) -> None:
    code = torch.tensor([[1.0, 0.0]])
    results = {
        "pillow": (100.0, {"a": {"fc7": code}, "b": {"fc7": code}}),
        "torchcodec": (100 * gain, {"a": {"fc7": code}, "b": {"fc7": code + wrong * torch.tensor([[0.0, 1.0]])}}),
    }
    monkeypatch.setattr(autotune, "run_through", lambda network, files, threads: results[network])
    monkeypatch.setattr(torchcodec, "validate_usable", lambda transform, device: None)
    files = [Path()] * autotune.MIN_IMAGES_FOR_DECODER
    found, why = autotune.choose_decoder(Beside(), files, 2)  # type: ignore[arg-type]
    assert found == choice and f"{gain:.2f} times" in why and "cosine" in why
    assert autotune.choose_decoder(Beside(), files[1:], 2)[0] == "pillow"  # type: ignore[arg-type]


def test_auto_takes_pillow_where_torchcodec_cannot_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [Path()] * autotune.MIN_IMAGES_FOR_DECODER
    found, why = autotune.choose_decoder(Beside("flips"), files, 2)  # type: ignore[arg-type]
    assert found == "pillow" and "no --views flips" in why
    without_torchcodec(monkeypatch)
    found, why = autotune.choose_decoder(Beside(), files, 2)  # type: ignore[arg-type]
    assert found == "pillow" and "cannot be loaded" in why

    def broken(network: object, files: object, threads: int) -> None:
        raise RuntimeError("nvJPEG has gone away\nsomewhere")

    monkeypatch.setattr(torchcodec, "validate_usable", lambda transform, device: None)
    monkeypatch.setattr(autotune, "run_through", broken)
    assert autotune.choose_decoder(Beside(), files, 2) == ("pillow", "nvJPEG has gone away")  # type: ignore[arg-type]


def test_a_trial_runs_both(tmp_path: Path) -> None:
    network = FrozenNetwork("tinyvgg", ["fc7"], "default", "avg4")
    assert autotune.compare_decoders(network, [tmp_path / "gone.jpg"], 2)[0] == "pillow"
    files = sorted(write_jpegs(tmp_path / "photos", 8).glob("*/*"))
    why = autotune.compare_decoders(network, files, 2)[1]
    assert "cosine to Pillow's" in why and float(why.split()[-1]) > 0.999


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_decodes_nearly_the_same(tmp_path: Path) -> None:
    files = sorted(write_jpegs(tmp_path / "photos", 40).glob("*/*"))
    network = FrozenNetwork("tinyvgg", ["fc7"], "default", "avg4").to("cuda")
    fast, slow = (autotune.run_through(network.at(decoder=name), files, 2)[1] for name in ("torchcodec", "pillow"))
    assert fast.keys() == slow.keys()
    assert min(lowest_cosine(fast[digest], slow[digest]) for digest in slow) > 0.99
