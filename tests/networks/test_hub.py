"""Weights of timm's networks by the name of a repository, from a server on this machine laid out as Hugging Face's."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save

from pipeline import errors
from pipeline.networks import backbones, timm_weights

REPOSITORY = "timm/test_resnet.r160_in1k"
NAME = REPOSITORY


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A hub with one repository; `files` are its contents, `digests` the SHA-256 that it names where they differ."""
    files: dict[str, bytes] = {}
    digests: dict[str, str] = {}
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:  # the name that http.server calls
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            name = self.path.removeprefix(f"/{REPOSITORY}/resolve/main/")
            requests.append(name)
            content = files.get(name)
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("ETag", f'"{digests.get(name, hashlib.sha256(content).hexdigest())}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        set_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        yield SimpleNamespace(files=files, digests=digests, requests=requests, cache=tmp_path / "cache")
        server.shutdown()


def set_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Let huggingface_hub ask another server, and use another cache."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def weights_of(classes: int = 1000) -> bytes:
    torch.manual_seed(0)
    content: bytes = save(timm.create_model("test_resnet", num_classes=classes).state_dict())
    return content


def load() -> torch.nn.Module:
    return backbones.load(backbones.get(NAME), "default")[0]


def test_weights_are_fetched_once_and_are_there_without_a_network(
    hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files["model.safetensors"] = weights_of()
    model = load()
    torch.manual_seed(0)
    expected = timm.create_model("test_resnet").state_dict()
    torch.testing.assert_close(model.state_dict()["fc.weight"], expected["fc.weight"])
    set_hub(monkeypatch, "http://127.0.0.1:9", hub.cache)
    load()


def test_a_file_of_the_cache_that_was_damaged_is_found(hub: SimpleNamespace) -> None:
    hub.files["model.safetensors"] = weights_of()
    load()
    (file,) = hub.cache.glob("*/blobs/*")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(errors.PipelineError, match="is damaged: its SHA-256 is not"):
        load()


def test_a_file_of_another_hash_than_the_hub_names_is_refused(hub: SimpleNamespace) -> None:
    hub.files["model.safetensors"] = weights_of()
    hub.digests["model.safetensors"] = "0" * 64
    with pytest.raises(errors.PipelineError, match="is damaged: its SHA-256 is not 0000"):
        load()


def test_a_repository_without_safetensors_gives_its_other_file(hub: SimpleNamespace, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "net.bin")
    hub.files["pytorch_model.bin"] = (tmp_path / "net.bin").read_bytes()
    assert load().get_submodule("fc").out_features == 3


def test_another_repository_brings_its_own_transform(hub: SimpleNamespace) -> None:
    hub.files["model.safetensors"] = weights_of(7)
    hub.files["config.json"] = b'{"pretrained_cfg": {"input_size": [3, 96, 96], "crop_pct": 0.75}}'
    model, transform = backbones.load(backbones.get(NAME), f"hf-hub:{REPOSITORY}")
    assert model.get_submodule("fc").out_features == 7 and (transform.crop, transform.resize) == (96, 128)


def test_without_a_network_the_file_may_be_put_by_hand(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    set_hub(monkeypatch, "http://127.0.0.1:9", hub.cache)
    place = timm_weights.place_by_hand(REPOSITORY, "model.safetensors")
    with pytest.raises(errors.PipelineError, match=r"Cannot fetch .*model.safetensors .*Put the file at") as error:
        load()
    assert str(place) in str(error.value)
    place.parent.mkdir(parents=True)
    place.write_bytes(weights_of())
    load()


def test_a_cache_that_cannot_be_written_is_a_mistake_of_one_sentence(
    hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.files["model.safetensors"] = weights_of()
    (tmp_path / "file").write_text("a file where the cache's folder should be")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(errors.PipelineError, match="Cannot fetch") as error:
        load()
    assert len(str(error.value).splitlines()) == 1
