"""The catalogue against tiny archives in each dataset's official layout, served on this machine only."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets as kinds
import torchvision.datasets.utils
from PIL import Image
from scipy.io import savemat

from pipeline import errors
from pipeline.command_line import run_command
from pipeline.data import checking, downloads, sources
from pipeline.data.manifest import SPLITS, ListedImage, read_manifest

Rows = set[tuple[str, str, "str | None"]]


class Site:
    """A web server of this machine that offers the files put on it, and counts what is fetched."""

    def __init__(self, folder: Path) -> None:
        site = self
        self.folder, self.fetched = folder, list[str]()
        folder.mkdir()

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *words: Any) -> None:
                site.fetched.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def put(self, name: str, data: bytes) -> tuple[str, str]:
        """Offer a file; return its address and MD5."""
        (self.folder / name).write_bytes(data)
        return self.url + name, md5(data)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "www")
    yield site
    site.close()


@pytest.fixture(autouse=True)
def stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test reach another machine, not even through a proxy."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        assert address[0] in ("127.0.0.1", "localhost"), f"a test wants to reach {address}"
        connect(self, address)

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket.socket, "connect", connect_here)


def image_file(seed: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), kind)
    return file.getvalue()


def tarred(files: dict[str, bytes], compression: str = "gz") -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode=f"w:{compression}") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def matlab(**values: list[int]) -> bytes:
    savemat(file := io.BytesIO(), values)
    return file.getvalue()


def lines(*texts: str) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def publish(
    site: Site, patch: pytest.MonkeyPatch, kind: type, attributes: tuple[str, str], name: str, data: bytes
) -> None:
    """Put an archive on the site, and its address and MD5 in two attributes of a torchvision class."""
    for attribute, value in zip(attributes, site.put(name, data), strict=True):
        patch.setattr(kind, attribute, value)


def publish_hymenoptera(site: Site, patch: pytest.MonkeyPatch) -> Rows:
    files = {f"{split}/{label}/{split} {label}.jpg" for split in ("train", "val") for label in ("ants", "bees")}
    tree = {name: image_file(seed) for seed, name in enumerate(sorted(files))}
    url, _ = site.put("hymenoptera_data.zip", zipped({f"hymenoptera_data/{name}": tree[name] for name in tree}))
    digests = "".join(sorted(f"{name} {hashlib.sha256(data).hexdigest()}\n" for name, data in tree.items()))
    patch.setattr(downloads, "HYMENOPTERA_URL", url)
    patch.setattr(downloads, "HYMENOPTERA_SHA256", hashlib.sha256(digests.encode()).hexdigest())
    return {(f"hymenoptera_data/{name}", name.split("/")[1], name.split("/")[0]) for name in files}


def publish_flowers102(site: Site, patch: pytest.MonkeyPatch) -> Rows:
    files = {
        "image": ("102flowers.tgz", tarred({f"jpg/image_{i:05}.jpg": image_file(i) for i in range(1, 7)})),
        "label": ("imagelabels.mat", matlab(labels=[1, 1, 1, 102, 102, 102])),
        "setid": ("setid.mat", matlab(trnid=[4, 1], valid=[2, 5], tstid=[3, 6])),
    }
    table = {key: (name, site.put(name, data)[1]) for key, (name, data) in files.items()}
    patch.setattr(kinds.Flowers102, "_download_url_prefix", site.url)
    patch.setattr(kinds.Flowers102, "_file_dict", table)
    names = dict(enumerate(["pink primrose"] * 3 + ["blackberry lily"] * 3, start=1))
    splits = {1: "train", 2: "val", 3: "test", 4: "train", 5: "val", 6: "test"}
    return {(f"jpg/image_{i:05}.jpg", names[i], splits[i]) for i in names}


def publish_oxford_iiit_pet(site: Site, patch: pytest.MonkeyPatch) -> Rows:
    ids = {"Abyssinian": 1, "saint_bernard": 2}
    images = {f"images/{breed}_{i}.jpg": image_file(10 * ids[breed] + i) for breed in ids for i in (1, 2)}
    notes = {
        "annotations/trainval.txt": lines(*(f"{breed}_1 {ids[breed]} 1 1" for breed in ids)),
        "annotations/test.txt": lines(*(f"{breed}_2 {ids[breed]} 1 1" for breed in ids)),
    }
    resources = site.put("images.tar.gz", tarred(images)), site.put("annotations.tar.gz", tarred(notes))
    patch.setattr(kinds.OxfordIIITPet, "_RESOURCES", resources)
    names, splits = {"Abyssinian": "Abyssinian", "saint_bernard": "Saint Bernard"}, {1: "train", 2: "test"}
    return {(f"images/{breed}_{i}.jpg", names[breed], splits[i]) for breed in ids for i in (1, 2)}


def publish_dtd(site: Site, patch: pytest.MonkeyPatch) -> Rows:
    rows: Rows = {
        (f"{label}/{label}_{n}.jpg", label, split)
        for n, split in enumerate(SPLITS)
        for label in ("banded", "zigzagged")
    }
    tree = {f"dtd/images/{name}": image_file(seed) for seed, (name, *_) in enumerate(sorted(rows, key=str))}
    for split in SPLITS:
        tree[f"dtd/labels/{split}1.txt"] = lines(*(name for name, _, its in rows if its == split))
    publish(site, patch, kinds.DTD, ("_URL", "_MD5"), "dtd-r1.0.1.tar.gz", tarred(tree))
    return {(f"dtd/images/{name}", label, split) for name, label, split in rows}


def publish_food101(site: Site, patch: pytest.MonkeyPatch) -> Rows:
    splits = {"train": {"apple_pie": ["apple_pie/1"], "waffles": ["waffles/1"]}, "test": {"waffles": ["waffles/2"]}}
    rows: Rows = {
        (f"food-101/images/{name}.jpg", label, split)
        for split, labels in splits.items()
        for label, names in labels.items()
        for name in names
    }
    tree = {name: image_file(seed) for seed, (name, *_) in enumerate(sorted(rows, key=str))}
    tree |= {f"food-101/meta/{split}.json": json.dumps(labels).encode() for split, labels in splits.items()}
    publish(site, patch, kinds.Food101, ("_URL", "_MD5"), "food-101.tar.gz", tarred(tree))
    return rows


def redirect(patch: pytest.MonkeyPatch, module: str, address: tuple[str, str]) -> None:
    """Let a torchvision module whose addresses are literals fetch from `address`, by its own means."""
    url, digest = address
    real = torchvision.datasets.utils.download_and_extract_archive

    def fetch_here(_: str, download_root: str, filename: str | None = None, md5: str = "") -> None:
        real(url, download_root, filename=filename, md5=digest)

    patch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", fetch_here)


def publish_caltech101(site: Site, patch: pytest.MonkeyPatch) -> Rows:
    names = [f"{label}/image_000{i}.jpg" for label in ("BACKGROUND_Google", "Faces", "accordion") for i in (1, 2)]
    images = tarred({f"101_ObjectCategories/{name}": image_file(seed) for seed, name in enumerate(names)})
    outer = {
        "caltech-101/101_ObjectCategories.tar.gz": images,
        "caltech-101/Annotations.tar": tarred({}, ""),
        "__MACOSX/caltech-101/._Annotations.tar": b"",
    }
    redirect(patch, "caltech", site.put("caltech-101.zip", zipped(outer)))
    return {(f"101_ObjectCategories/{name}", name.split("/")[0], None) for name in names[2:]}


def publish_eurosat(site: Site, patch: pytest.MonkeyPatch) -> Rows:
    tree = {f"2750/{label}/{label}_{i}.jpg": image_file(i) for label in ("Forest", "SeaLake") for i in (1, 2)}
    redirect(patch, "eurosat", site.put("EuroSAT.zip", zipped(tree)))
    return {(name, name.split("/")[1], None) for name in tree}


def publish_cifar10(site: Site, patch: pytest.MonkeyPatch) -> Rows:
    pixels = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    train = {f"data_batch_{i}": pickle.dumps({"data": pixels + i, "labels": [1, 0]}) for i in (1, 2)}
    test = {"test_batch": pickle.dumps({"data": pixels, "labels": [0, 1]})}
    meta = pickle.dumps({"label_names": ["airplane", "automobile"]})
    files = train | test | {"batches.meta": meta}
    archive = tarred({f"cifar-10-batches-py/{name}": data for name, data in files.items()})
    publish_arrays(site, patch, kinds.CIFAR10, archive, train, test)
    patch.setitem(kinds.CIFAR10.meta, "md5", md5(meta))
    return {
        ("train/automobile/00000.png", "automobile", "train"),
        ("train/airplane/00001.png", "airplane", "train"),
        ("train/automobile/00002.png", "automobile", "train"),
        ("train/airplane/00003.png", "airplane", "train"),
        ("test/airplane/00000.png", "airplane", "test"),
        ("test/automobile/00001.png", "automobile", "test"),
    }


def publish_stl10(site: Site, patch: pytest.MonkeyPatch) -> Rows:
    pixels = {name: bytes([shade]) * 2 * 3 * 96 * 96 for shade, name in enumerate(("train", "test", "unlabeled"))}
    train = {"train_X.bin": pixels["train"], "train_y.bin": bytes([2, 1]), "unlabeled_X.bin": pixels["unlabeled"]}
    test = {"test_X.bin": pixels["test"], "test_y.bin": bytes([1, 2])}
    files = train | test | {"class_names.txt": lines("airplane", "bird")}
    archive = tarred({f"stl10_binary/{name}": data for name, data in files.items()})
    publish_arrays(site, patch, kinds.STL10, archive, train, test)
    return {
        ("train/bird/00000.png", "bird", "train"),
        ("train/airplane/00001.png", "airplane", "train"),
        ("test/airplane/00000.png", "airplane", "test"),
        ("test/bird/00001.png", "bird", "test"),
    }


def publish_arrays(
    site: Site, patch: pytest.MonkeyPatch, kind: Any, archive: bytes, train: dict[str, bytes], test: dict[str, bytes]
) -> None:
    publish(site, patch, kind, ("url", "tgz_md5"), kind.filename, archive)
    patch.setattr(kind, "train_list", [[name, md5(data)] for name, data in train.items()])
    patch.setattr(kind, "test_list", [[name, md5(data)] for name, data in test.items()])


PUBLISH: dict[str, Callable[[Site, pytest.MonkeyPatch], Rows]] = {
    "hymenoptera": publish_hymenoptera,
    "flowers102": publish_flowers102,
    "oxford_iiit_pet": publish_oxford_iiit_pet,
    "caltech101": publish_caltech101,
    "dtd": publish_dtd,
    "food101": publish_food101,
    "cifar10": publish_cifar10,
    "stl10": publish_stl10,
    "eurosat": publish_eurosat,
}
every_dataset = pytest.mark.parametrize("name", downloads.DATASETS)


def rows(listed: list[ListedImage], folder: Path) -> Rows:
    assert len(set(listed)) == len(listed)
    return {(str(image.path.relative_to(folder)), image.label, image.split) for image in listed}


def place_of(name: str, folder: Path) -> Path:
    return folder.parent / ".download" / folder.name / downloads.DATASETS[name].subfolder


@every_dataset
def test_a_dataset_is_downloaded_and_listed(
    name: str, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = PUBLISH[name](site, monkeypatch)
    folder = tmp_path / "data" / name
    listed = downloads.SOURCES[name](folder)
    assert rows(listed, folder) == expected
    for image in listed:
        checking.check(image.path)
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(image.path for image in listed)
    assert [path for path in place_of(name, folder).iterdir() if path.is_dir()] == []


@every_dataset
def test_a_second_run_needs_no_server(name: str, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = PUBLISH[name](site, monkeypatch)
    folder = tmp_path / "data" / name
    place = place_of(name, folder)
    place.mkdir(parents=True)
    for file in downloads.DATASETS[name].files:  # put there by hand
        (place / file).write_bytes((site.folder / file).read_bytes())
    assert rows(downloads.SOURCES[name](folder), folder) == expected
    if name != "caltech101":  # torchvision deletes this archive after use
        assert rows(downloads.SOURCES[name](folder), folder) == expected
    assert site.fetched == []


@every_dataset
def test_without_the_internet_one_sentence_says_what_to_do(
    name: str, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    PUBLISH[name](site, monkeypatch)
    site.close()
    folder = tmp_path / "data" / name
    with pytest.raises(errors.PipelineError, match=f"^Cannot download {name} .*refused") as caught:
        downloads.SOURCES[name](folder)
    place = place_of(name, folder)
    assert str(place) in str(caught.value) and place.is_dir()
    assert all(file in str(caught.value) for file in downloads.DATASETS[name].files)
    assert not folder.exists()


@every_dataset
def test_a_damaged_download_is_refused_and_not_taken_for_complete(
    name: str, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = PUBLISH[name](site, monkeypatch)
    folder = tmp_path / "data" / name
    served = site.folder / downloads.DATASETS[name].files[0]
    right = served.read_bytes()
    served.write_bytes(right[: len(right) // 2])
    with pytest.raises(
        errors.PipelineError, match=f"^The download of {name} is damaged .*Delete {served.name}"
    ) as caught:
        downloads.SOURCES[name](folder)
    assert str(place_of(name, folder)) in str(caught.value)
    assert not folder.exists()
    served.write_bytes(right)
    (place_of(name, folder) / served.name).unlink()
    assert rows(downloads.SOURCES[name](folder), folder) == expected


@every_dataset
def test_what_an_interrupted_run_left_half_unpacked_is_not_used(
    name: str, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = PUBLISH[name](site, monkeypatch)
    folder = tmp_path / "data" / name
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.data.downloads.shutil.move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            downloads.SOURCES[name](folder)
    left = [path for path in place_of(name, folder).rglob("*") if path.suffix in (".jpg", ".png")]
    assert len(left) >= len(expected)
    left[0].unlink()
    assert rows(downloads.SOURCES[name](folder), folder) == expected


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_images_from_arrays_keep_their_pixels(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    publish_cifar10(site, monkeypatch)
    downloads.SOURCES["cifar10"](tmp_path / "cifar10")
    written = np.asarray(Image.open(tmp_path / "cifar10" / "test" / "airplane" / "00000.png"))
    assert (written == np.arange(3072).astype(np.uint8).reshape(3, 32, 32).transpose(1, 2, 0)).all()


def test_a_half_downloaded_zip_is_fetched_again(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = publish_hymenoptera(site, monkeypatch)
    place = place_of("hymenoptera", tmp_path / "ants")
    place.mkdir(parents=True)
    (place / ".hymenoptera_data.zip.partial").write_bytes(b"PK half")
    assert rows(downloads.SOURCES["hymenoptera"](tmp_path / "ants"), tmp_path / "ants") == expected


def test_other_files_in_the_zip_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    publish_hymenoptera(site, monkeypatch)
    site.put("hymenoptera_data.zip", zipped({"hymenoptera_data/train/ants/1.jpg": image_file(1)}))
    with pytest.raises(errors.PipelineError, match="not those of the tutorial"):
        downloads.SOURCES["hymenoptera"](tmp_path / "ants")
    assert not (tmp_path / "ants").exists()


def test_the_content_hash_knows_names_and_bytes_but_no_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"one")
    one = downloads.content_sha256(tmp_path)
    (tmp_path / "a" / ".DS_Store").write_bytes(b"hidden")
    assert downloads.content_sha256(tmp_path) == one
    (tmp_path / "a" / "1.jpg").rename(tmp_path / "a" / "2.jpg")
    assert downloads.content_sha256(tmp_path) != one
    (tmp_path / "a" / "2.jpg").rename(tmp_path / "a" / "1.jpg")
    (tmp_path / "a" / "1.jpg").write_bytes(b"two")
    assert downloads.content_sha256(tmp_path) != one


@pytest.mark.parametrize("evil", ["../evil", "../../../evil", "/evil", "a/../../evil"])
def test_a_zip_member_that_leaves_the_folder_is_refused(
    evil: str, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish_hymenoptera(site, monkeypatch)
    site.put("hymenoptera_data.zip", zipped({"hymenoptera_data/train/ants/1.jpg": image_file(1), evil: b"evil"}))
    with pytest.raises(errors.PipelineError, match="leads out of the folder"):
        downloads.SOURCES["hymenoptera"](tmp_path / "data" / "ants")
    assert not list(tmp_path.rglob("*evil*")) and not Path("/evil").exists()


@pytest.mark.parametrize("member", ["../evil", "dtd/../../evil"])
def test_a_tar_member_that_leaves_the_folder_is_refused(
    member: str, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(site, monkeypatch, kinds.DTD, ("_URL", "_MD5"), "dtd-r1.0.1.tar.gz", tarred({member: b"evil"}))
    with pytest.raises(errors.PipelineError, match="outside the destination"):
        downloads.SOURCES["dtd"](tmp_path / "data" / "dtd")
    assert not list(tmp_path.rglob("*evil*"))


def test_tarfile_is_guarded_even_where_no_filter_is_asked_for(tmp_path: Path) -> None:
    before = vars(tarfile.TarFile)["extraction_filter"]
    (tmp_path / "inside").mkdir()
    archive = tarfile.open(fileobj=io.BytesIO(tarred({"../evil": b"evil"})))  # noqa: SIM115 - memory needs no closing
    with downloads.guard_unpacking(), pytest.raises(tarfile.OutsideDestinationError):
        archive.extractall(tmp_path / "inside")  # noqa: S202
    assert not (tmp_path / "evil").exists()
    assert vars(tarfile.TarFile)["extraction_filter"] is before and socket.getdefaulttimeout() is None


def test_a_file_the_server_lacks_is_a_failed_download(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish_dtd(site, monkeypatch)
    (site.folder / "dtd-r1.0.1.tar.gz").unlink()
    with pytest.raises(errors.PipelineError, match=r"Cannot download dtd \(File not found\)"):
        downloads.SOURCES["dtd"](tmp_path / "dtd")


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(kinds.DTD, "_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/dtd-r1.0.1.tar.gz")
        with pytest.raises(errors.PipelineError, match=r"Cannot download dtd \(timed out\)"):
            downloads.SOURCES["dtd"](tmp_path / "dtd")


def test_an_old_python_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(errors.PipelineError, match=r"needs Python 3\.11\.4"):
        downloads.SOURCES["dtd"](tmp_path / "dtd")


def test_prepare_takes_a_dataset_by_name(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_hymenoptera(site, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert run_command("prepare", ["--dataset", "hymenoptera"]) == 0
    manifest = read_manifest(Path("data", "hymenoptera"))
    assert manifest.classes == ("ants", "bees") and sorted(manifest.splits) == ["test", "test", "train", "train"]
    assert all(file.is_file() for file in manifest.files())
    assert not any(Path(path).is_absolute() for path in manifest.paths)
    assert "4 images, 2 classes (2 train, 2 test)" in capsys.readouterr().out


def test_an_unknown_name_lists_the_choices() -> None:
    unknown = r"Unknown dataset 'flowers'.*Choose from: flowers102, "
    with (
        pytest.raises(errors.PipelineError, match=unknown) as caught,
        sources.list_sources("flowers", "", Path("unused")),
    ):
        pass
    assert all(name in str(caught.value) for name in ("digits", *downloads.DATASETS))


def test_the_catalogue_imports_no_torch() -> None:
    check = "import sys, pipeline.data.downloads; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
