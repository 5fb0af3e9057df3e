"""Images on servers and in buckets: fetched whole and once, from a real server of this machine and fsspec's memory."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import Outcome
from helpers import mistake

from pipeline import addresses, paths
from pipeline.data import remote
from pipeline.data.local import open_images
from pipeline.data.manifest import read_manifest

Run = Callable[..., Outcome]
SECRET = "hunter2"  # noqa: S105
MEMORY = fsspec.filesystem("memory")


class Server:
    """A web server of this machine, with paths that answer with a status, break off, or lead in circles."""

    def __init__(self) -> None:
        site = self
        self.files: dict[str, bytes] = {}
        self.statuses: dict[str, list[int]] = {}
        self.broken: dict[str, int] = {}
        self.asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *words: Any) -> None:
                site.asked.append(self.path)

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                left = site.statuses.get(path, [])
                status = left.pop(0) if left else 200 if path in site.files else 404
                data = site.files.get(path, b"")
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", path)
                    left.append(302)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                cut = site.broken.get(path, 0) > 0
                site.broken[path] = site.broken.get(path, 0) - 1
                self.wfile.write(data[: len(data) // 2] if cut else data)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def put(self, path: str, file: Path) -> str:
        """Offer a file; return its URL."""
        self.files[path] = file.read_bytes()
        return self.url + path

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def bucket(photos: Path) -> Iterator[str]:
    MEMORY.put(str(photos), "/bucket/photos", recursive=True)
    yield "memory://bucket/photos"
    MEMORY.rm("/bucket", recursive=True)


def digests(folder: str) -> list[tuple[str, str, str]]:
    manifest = read_manifest(Path(folder))
    names = ["/".join(Path(path).parts[-2:]) for path in manifest.paths]
    return list(zip(names, manifest.splits, manifest.digests, strict=True))


def test_a_folder_in_a_bucket_becomes_a_dataset_and_is_fetched_once(run: Run, photos: Path, bucket: str) -> None:
    assert run("prepare", "--dataset", photos, "--out", "data/expected").code == 0
    outcome = run("prepare", "--dataset", bucket)
    assert outcome.code == 0 and "36 images, 3 classes" in outcome.out, outcome
    assert digests("data/photos") == digests("data/expected")
    assert json.loads(Path("data/photos/source.json").read_text())["source"] == bucket
    shutil.rmtree("data/photos")  # as `dvc repro` does
    fetched = {path.name: path.stat().st_mtime_ns for path in Path("data/.download/photos").glob("*.png")}
    changed = sorted(fetched)[0]
    Path("data/.download/photos", changed).write_bytes(b"damaged")
    MEMORY.pipe("/bucket/photos/red/00.png", (photos / "red" / "01.png").read_bytes())
    assert run("prepare", "--dataset", bucket).code == 0
    again = {path.name: path.stat().st_mtime_ns for path in Path("data/.download/photos").glob("*.png")}
    new = {name for name in fetched if again[name] != fetched[name]}
    assert changed in new and len(new) == len({changed, *(name for name in new if name.endswith("-00.png"))}) <= 2
    assert len(set(read_manifest(Path("data/photos")).digests)) == 35


def test_names_in_a_bucket_cannot_leave_the_folder(run: Run, bucket: str) -> None:
    MEMORY.store["/bucket/photos/../../x.png"] = MEMORY.store["/bucket/photos/red/00.png"]
    MEMORY.pipe("/bucket/photos/RED/x.png", b"x")
    try:
        mistake(run("prepare", "--dataset", bucket), "memory://bucket/photos holds")
    finally:
        del MEMORY.store["/bucket/photos/../../x.png"]
    assert not Path("data/photos").exists()


@pytest.mark.parametrize("query", ["", f"?X-Amz-Signature={SECRET}"])
def test_an_archive_on_a_server_is_fetched_once_and_secrets_stay_secret(
    run: Run, photos: Path, server: Server, query: str
) -> None:
    url = server.put("/some/photos.zip", Path(shutil.make_archive("photos", "zip", photos)))
    server.statuses["/some/photos.zip"] = [503]
    server.broken["/some/photos.zip"] = 2
    if query:
        url = url.replace("http://", f"http://me:{SECRET}@") + query
    outcome = run("prepare", "--dataset", url)
    assert outcome.code == 0 and "36 images, 3 classes" in outcome.out, outcome
    assert len(server.asked) == 3 and not list(Path("data/.download/photos").glob("*.partial"))
    assert run("prepare", "--dataset", url).code == 0 and len(server.asked) == 3
    mistake(run("prepare", "--dataset", photos), "of another source")
    texts = [outcome.out, outcome.err]
    server.files.clear()
    mistake(failed := run("prepare", "--dataset", url + "x", "--overwrite"), "does not exist (404)")
    texts += [failed.out, failed.err]
    texts += [path.read_text() for path in Path("data").rglob("*") if path.suffix in (".json", ".csv", ".jsonl")]
    assert not any(SECRET in text for text in texts) and any("/some/photos.zip" in text for text in texts)
    assert len(read_manifest(Path("data/photos")).files()) == 36


@pytest.mark.parametrize(
    ("address", "shown", "archive", "name"),
    [
        ("photos.tar.gz/a/list.csv", "photos.tar.gz/a/list.csv", ("photos.tar.gz", "a/list.csv"), "list"),
        ("https://me:pw@h:8/a/p.zip?sig=1", "https://h:8/a/p.zip?…", ("https://me:pw@h:8/a/p.zip?sig=1", ""), "p"),
        ("zip://in::https://me:pw@h/p.zip?sig=1", "zip://in::https://h/p.zip?…", ("", ""), "in"),
        ("s3://b/p.zip/in/a.csv", "s3://b/p.zip/in/a.csv", ("s3://b/p.zip", "in/a.csv"), "a"),
        ("photos/a?b#c.jpg", "photos/a?b#c.jpg", ("", ""), "a?b#c.jpg"),
        ("C:\\p.zip", "C:\\p.zip", ("C:\\p.zip", ""), "C:\\p"),
        ("hf://datasets/me/x@main/data", "hf://datasets/me/x@main/data", ("", ""), "data"),
    ],
)
def test_addresses_are_read_and_shown(address: str, shown: str, archive: tuple[str, str], name: str) -> None:
    assert re.sub("…[0-9a-f]{8}", "…", addresses.without_secrets(address)) == shown
    assert addresses.split_archive(address) == archive and paths.name_of_source(address) == name


@pytest.mark.parametrize(
    ("status", "data", "words"),
    [
        ([403], b"", "access is denied (403)"),
        ([404], b"", "does not exist (404)"),
        ([500] * 9, b"", "the server answers 500"),
        ([302], b"", "redirects in a circle"),
        ([], b"\n<!DOCTYPE html><p>Log in", "a web page instead of a file"),
        ([], b"GIF89a", "neither a folder, a CSV file nor an archive"),
    ],
)
def test_what_a_server_does_not_give_is_one_sentence(
    run: Run, project: Path, server: Server, status: list[int], data: bytes, words: str
) -> None:
    server.files["/set"], server.statuses["/set"] = data, status
    mistake(run("prepare", "--dataset", server.url + "/set"), words, server.url + "/set")
    assert not Path("data/set").exists() and not list(Path("data").rglob("*.partial"))


def test_a_server_that_breaks_off_for_good_is_one_sentence(run: Run, photos: Path, server: Server) -> None:
    url = server.put("/photos.zip", Path(shutil.make_archive("photos", "zip", photos)))
    server.broken["/photos.zip"] = 99
    mistake(run("prepare", "--dataset", url), "after 4 tries", url)
    server.close()
    mistake(run("prepare", "--dataset", url), "cannot be fetched", url)
    mistake(run("prepare", "--dataset", "memory://nothing/here"), "nothing is there")
    for strange in ("nonsense://x/y", "github://x/y", "reference://x"):
        mistake(run("prepare", "--dataset", strange), f"{strange} cannot be read")


def test_a_csv_of_urls_is_a_dataset_whose_dead_links_are_bad_files(run: Run, photos: Path, server: Server) -> None:
    names = [f"{c}/{n:02}.png" for c in ("red", "blue") for n in range(6)]
    lines = [f"{server.put('/' + name, photos / name)},{name.split('/')[0]}" for name in names]
    dead = [
        f"{server.url}/gone.png?key={SECRET},green",
        "http://127.0.0.1:9/dead.png,red",
        f"{photos}/green/00.png,red",
    ]
    Path("web.csv").write_text("\n".join(["path,label", *lines, *dead]))
    outcome = run("prepare", "--dataset", "web.csv")
    assert outcome.code == 0 and "13 images, 2 classes" in outcome.out, outcome
    assert "2  bad files" in outcome.out and "classes lost" in outcome.out and "'green'" in outcome.out
    bad = Path("data/web/bad.csv").read_text()
    assert "does not exist (404)" in bad and "http://127.0.0.1:9/dead.png" in bad and SECRET not in bad
    manifest = read_manifest(Path("data/web"))
    assert all(path.exists() for path in manifest.files()) and f"{server.url}/red/00.png" in manifest.metadata["url"]
    mistake(run("prepare", "--dataset", "web.csv", "--on-bad", "error"), "2 bad files")
    Path("web.csv").write_text("path,label\n" + dead[0])
    mistake(run("prepare", "--dataset", "web.csv"), "None of the 1 files of web.csv can be fetched", "404")
    assert len(read_manifest(Path("data/web")).files()) == 13


def test_a_csv_elsewhere_has_its_images_beside_it(run: Run, photos: Path, server: Server, bucket: str) -> None:
    lines = [f"{c}/{n:02}.png,{c}" for c in ("red", "blue") for n in range(4)]
    (photos / "list.csv").write_text("\n".join(["path,label", *lines]))
    url = server.put("/some/list.csv", photos / "list.csv")
    for line in lines:
        server.put("/some/" + line.split(",")[0], photos / line.split(",")[0])
    MEMORY.put(str(photos / "list.csv"), "/bucket/photos/list.csv")
    MEMORY.put(shutil.make_archive("all", "zip", photos.parent, "photos"), "/bucket/all.zip")
    chain = "zip://photos/list.csv::memory://bucket/all.zip"
    for source in (f"{url}?token=1", f"{bucket}/list.csv", chain):
        outcome = run("prepare", "--dataset", source, "--overwrite")
        assert outcome.code == 0 and "8 images, 2 classes" in outcome.out, outcome


def test_a_packed_or_served_list_names_no_other_files_of_this_disk(run: Run, photos: Path, server: Server) -> None:
    outside = shutil.copytree(photos / "red", Path("data/outside"))
    for place in (outside.absolute(), "../../outside", outside.absolute().as_uri()):
        (photos / "list.csv").write_text("path,label\n" + "".join(f"{place}/{n:02}.png,{n % 2}\n" for n in range(8)))
        archive = shutil.make_archive("all", "zip", photos)
        mistake(run("prepare", "--dataset", f"{archive}/list.csv"), "outside/00.png", "does not come with it")
        assert not Path("data/list").exists()
    (photos / "list.csv").write_text(f"path,label\n{outside.absolute()}/00.png,a")
    mistake(run("prepare", "--dataset", server.put("/list.csv", photos / "list.csv")), "does not come with it")


def test_a_reason_shows_no_secrets() -> None:
    error = ConnectionError(f"GET url='https://me:{SECRET}@host/a?key={SECRET}' failed")
    assert SECRET not in remote.reason_of(error) and "https://host/a" in remote.reason_of(error)


def test_new_images_may_be_elsewhere(photos: Path, server: Server, bucket: str) -> None:
    url = server.put("/one.png", photos / "red" / "00.png")
    with open_images([url, bucket + "/red", server.url + "/none.png", "-"], [bucket + "/blue/01.png\n"]) as images:
        found = list(images)
        assert [image.path.read_bytes() for image in (found[0], found[-1])] == [
            (photos / name).read_bytes() for name in ("red/00.png", "blue/01.png")
        ]
    names = [url, *(f"{bucket}/red/{n:02}.png" for n in range(12)), server.url + "/none.png", bucket + "/blue/01.png"]
    assert [image.name for image in found] == names
    assert [image.reason for image in found if image.reason] == ["it does not exist (404)"]
    assert not any(image.path.exists() for image in found if not image.reason)


def test_a_missing_package_is_named_with_the_line_that_installs_it(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    mistake(run("prepare", "--dataset", "s3://bucket/photos"), "pip install -e '.[s3]'")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    mistake(run("prepare", "--dataset", "https://127.0.0.1/photos.zip"), "pip install -e '.[remote]'")
