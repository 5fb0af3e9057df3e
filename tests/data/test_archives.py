"""Archives of images: what is in them is prepared and predicted as if it lay in a folder, and nothing else happens."""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from conftest import Outcome
from helpers import encode_image, mistake, smooth_image

from pipeline import params, prepare
from pipeline.config import Prepare
from pipeline.data import archives
from pipeline.data.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.files import MARK

Run = Callable[..., Outcome]
IMAGE = encode_image(smooth_image(9, 7), "PNG")


def zipped(path: Path, names: Iterable[str | zipfile.ZipInfo], data: bytes = IMAGE) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, data)
    return path


def tarred(path: Path, names: Iterable[str | tarfile.TarInfo], mode: str = "w:gz", data: bytes = IMAGE) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in names:
            entry = tarfile.TarInfo(name) if isinstance(name, str) else name
            entry.size = len(data) if entry.isfile() else 0
            archive.addfile(entry, io.BytesIO(data))
    return path


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "bztar", "xztar"])
def test_an_archive_becomes_the_dataset_of_its_folder(run: Run, photos: Path, kind: str) -> None:
    assert run("prepare", "--dataset", photos).code == 0
    expected = read_manifest(Path("data/photos"))
    archive = Path(shutil.make_archive("photos", kind, photos.parent, "photos"))
    outcome = run("prepare", "--dataset", archive, "--overwrite")
    assert outcome.code == 0 and "36 images, 3 classes" in outcome.out, outcome
    found = read_manifest(Path("data/photos"))
    assert found.digest != expected.digest and found.splits == expected.splits and found.digests == expected.digests
    assert Path(found.paths[0]).parent == Path("images/photos/blue") and found.file(0).exists()


def test_a_table_in_an_archive_and_a_folder_of_it_are_sources(run: Run, photos: Path) -> None:
    (photos / "list.csv").write_text("path,label\n" + "".join(f"red/{n:02}.png,{'ab'[n % 2]}\n" for n in range(8)))
    shutil.make_archive("all", "zip", photos.parent, "photos")
    assert "8 images, 2 classes" in run("prepare", "--dataset", "all.zip/photos/list.csv").out
    assert "3 classes" in run("prepare", "--dataset", "all.zip/photos").out
    assert "36 images, 0 classes" in run("prepare", "--unlabelled", "all.zip").out
    mistake(run("prepare", "--dataset", "all.zip/photo"), "all.zip holds no photo")


LINK = tarfile.TarInfo("a/link.png")
LINK.type, LINK.linkname = tarfile.SYMTYPE, "/etc/passwd"
HARD_LINK = tarfile.TarInfo("a/hard.png")
HARD_LINK.type, HARD_LINK.linkname = tarfile.LNKTYPE, "../../secret"
DEVICE = tarfile.TarInfo("b/null")
DEVICE.type = tarfile.CHRTYPE
ZIP_LINK = zipfile.ZipInfo("a/link.png")
ZIP_LINK.external_attr, ZIP_LINK.create_system = (stat.S_IFLNK | 0o777) << 16, 3


def test_links_devices_and_archives_within_are_left_out_by_name(run: Run, project: Path) -> None:
    names = [f"{c}/{n}.png" for c in "ab" for n in range(4)]
    for archive in (
        tarred(Path("set.tar"), [*names, LINK, HARD_LINK, DEVICE, "a/more.zip"], "w"),
        zipped(Path("set.zip"), [*names, ZIP_LINK, "a/more.tar.gz"]),
    ):
        outcome = run("prepare", "--dataset", archive, "--overwrite")
        assert outcome.code == 0 and "8  images used" in outcome.out, outcome
        assert archives.LINK in outcome.out and archives.NESTED in outcome.out
        assert names_below(Path("data/set/images")) == {MARK, *names}
    assert "a link in the archive" in Path("data/set/skipped.csv").read_text()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/1.png", "../b.png"], "leads out of the folder"),
        (["a/1.png", "a/../../b.png"], "leads out of the folder"),
        (["/tmp/x.png"], "leads out of the folder"),  # noqa: S108
        (["C:\\x.png"], "leads out of the folder"),
        (["a\\..\\..\\x.png"], "leads out of the folder"),
        (["a/1.png", "A/2.png"], "'a' and 'A', which are one name"),
        (["a/é.png", "a/e\u0301.png"], "which are one name"),
        (["a/1.png", "a/1.png"], "two entries of one name"),
        (["a/1.png", "a"], "two entries of one name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_would_do_harm_are_refused(run: Run, project: Path, names: list[str], words: str) -> None:
    for archive in (zipped(Path("set.zip"), names), tarred(Path("set.tar"), names, "w")):
        before = names_below(project)
        mistake(run("prepare", "--dataset", archive), words, str(archive))
        assert names_below(project) == before and not Path("data/set").exists()


def test_what_is_encrypted_cut_off_or_damaged_is_refused_and_nothing_is_lost(run: Run, photos: Path) -> None:
    assert run("prepare", "--dataset", shutil.make_archive("photos", "zip", photos)).code == 0
    before = {name: Path("data", name).read_bytes() for name in names_below(Path("data"))}
    whole = Path(shutil.make_archive("photos", "tar", photos)).read_bytes()
    data = bytearray(Path("photos.zip").read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1  # the flags of the last file
    damaged = bytearray(Path("photos.zip").read_bytes())
    damaged[len(damaged) // 2] ^= 255
    for name, content, word in [
        ("photos.zip", bytes(data), "is encrypted. Unpack it yourself"),
        ("photos.zip", bytes(damaged), "is damaged"),
        ("photos.zip", Path("photos.zip").read_bytes()[:-50], "cut off"),
        ("photos.zip", b"", "cut off"),
        ("photos.zip", b"<!doctype html>", "no zip or tar file"),
        ("photos.tar", whole[: tarfile.BLOCKSIZE * 9], "cut off"),
        ("photos.tar", whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512), "its end is missing"),
    ]:
        Path(name).write_bytes(content)
        mistake(run("prepare", "--dataset", name, "--overwrite"), word, name)
        assert {name: Path("data", name).read_bytes() for name in names_below(Path("data"))} == before, name


def test_bombs_are_refused_before_they_fill_the_disk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 1000)
    bomb = zipped(Path("bomb.zip"), ["a/1.png"], bytes(1_000_000))
    for name, value, words in [
        ("MAX_RATIO", 200, "more than .* bytes, which no archive"),
        ("MAX_FILE_BYTES", 999, "a file of more than 999 bytes"),
        ("MAX_FILES", 0, "more than 0 entries"),
    ]:
        with monkeypatch.context() as patch, pytest.raises(PipelineError, match=words):
            patch.setattr(archives, name, value)
            archives.unpack(bomb, Path(name), "bomb.zip")
        assert sum(path.stat().st_size for path in Path().rglob("*.png")) < 1_000_000
    header = tarfile.TarInfo("x" * 2_000_000)
    with pytest.raises(PipelineError, match="a header of"):
        archives.unpack(tarred(Path("bomb.tar.gz"), ["a/1.png", header]), Path("made"), "bomb")


def test_the_images_stay_even_if_nobody_reads_the_summary(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)

    def print_nothing(*words: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", print_nothing)
    archive = shutil.make_archive("photos", "zip", photos)
    with pytest.raises(BrokenPipeError):
        prepare.run(params.load(Prepare, {"dataset": archive})[0])
    assert all(path.exists() for path in read_manifest(Path("data/photos")).files())


def test_names_are_read_as_their_writers_meant_them(project: Path) -> None:
    """macOS writes UTF-8 into zip files without the flag that says so."""
    entry = zipfile.ZipInfo("caf\u00e9/1.png")
    path = zipped(Path("set.zip"), [entry])
    data = bytearray(path.read_bytes())
    data[7] = data[data.index(b"PK\1\2") + 9] = 0  # the upper byte of the flags
    path.write_bytes(data)
    archives.unpack(path, Path("made"), "set.zip")
    assert names_below(Path("made")) == {"caf\u00e9/1.png"}


def test_an_old_folder_comes_back_after_a_kill(run: Run, photos: Path) -> None:
    shutil.make_archive("photos", "zip", photos)
    assert run("prepare", "--dataset", "photos.zip").code == 0
    Path("data/photos/images").rename("data/photos/.images.before")
    (Path("data/photos/images") / "half").mkdir(parents=True)
    (Path("data/photos/images") / MARK).touch()
    Path("photos.zip").write_bytes(b"PK\3\4")
    mistake(run("prepare", "--dataset", "photos.zip"), "damaged")
    assert len(read_manifest(Path("data/photos")).files()) == 36
    assert all(path.exists() for path in read_manifest(Path("data/photos")).files())
    assert not list(Path("data/photos").glob(".*"))


@pytest.mark.parametrize("kind", ["old", "new"])
def test_sparse_files_whose_maps_may_be_endless_are_refused(run: Run, project: Path, kind: str) -> None:
    entry = tarfile.TarInfo("b/1.png")
    entry.type = tarfile.GNUTYPE_SPARSE if kind == "old" else tarfile.REGTYPE
    if kind == "new":
        entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "0"}
    tarred(Path("set.tar"), ["a/1.png", entry], "w", b"0\n".ljust(tarfile.BLOCKSIZE, b"\0"))
    mistake(run("prepare", "--dataset", "set.tar"), archives.SPARSE)


def test_a_folder_of_the_users_is_never_replaced(run: Run, project: Path) -> None:
    names = [f"{label}/{number}.png" for label in "ab" for number in range(4)]
    archive = zipped(project / "photos.zip", [MARK, *names])
    own = Path("data/photos/images/mine.png")
    own.parent.mkdir(parents=True)
    own.write_bytes(IMAGE)
    mistake(run("prepare", "--dataset", archive, "--overwrite"), "data/photos/images holds files", "--out")
    assert own.read_bytes() == IMAGE
    own.unlink()
    for _ in range(2):
        outcome = run("prepare", "--dataset", archive)
        assert outcome.code == 0 and "8 images, 2 classes" in outcome.out, outcome
