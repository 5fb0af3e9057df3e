"""The backbones: names of layers, weights from every source, and the errors when they do not fit."""

from __future__ import annotations

import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights, VGG16_Weights, Weights, WeightsEnum

from pipeline import errors
from pipeline.networks import backbones, efficientnet_lite0, layer_nodes, weights
from pipeline.networks.origins import TorchvisionWeights


def layers(name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    return layer_nodes.layer_shapes(backbones.get(name))


def test_friendly_names_map_to_nodes_after_the_relu() -> None:
    vgg = layers("vgg16")
    assert vgg["fc6"] == ("classifier.1", (4096,)) and vgg["fc7"] == ("classifier.4", (4096,))
    assert vgg["pool5"] == ("features.30", (512, 7, 7)) and vgg["conv3"] == ("features.15", (256, 56, 56))
    alexnet = layers("alexnet")
    assert alexnet["fc6"][0] == "classifier.2" and alexnet["fc7"][0] == "classifier.5"
    assert alexnet["conv5"][0] == "features.11" and alexnet["pool5"] == ("features.12", (256, 6, 6))
    assert list(alexnet) == ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5", "fc6", "fc7"]
    resnet = layers("resnet50")
    assert resnet["layer3"] == ("layer3.5.relu_2", (1024, 14, 14)) and resnet["avgpool"] == ("flatten", (2048,))
    assert layers("resnet18")["layer3"][0] == "layer3.1.relu_1"


FAMILIES = ("vgg", "resnet", "resnext", "wide_resnet", "alexnet", "tinyvgg")
NAMED = [name for name in backbones.registry() if name.startswith(FAMILIES)]


@pytest.mark.parametrize("name", NAMED)
def test_every_backbone_of_the_named_families_has_layers_that_exist(name: str) -> None:
    found = layers(name)
    expected = {"layer1", "layer4", "avgpool", "stem"} if "res" in name else {"conv1", "pool1", "fc6", "fc7"}
    assert expected <= found.keys()
    for node, _ in found.values():
        assert "relu" in node or node.split(".")[0] in ("features", "classifier", "maxpool", "flatten")


DERIVED = {
    "squeezenet1_1": {"stage1": "features.1", "stage4": "features.12.cat"},
    "mobilenet_v2": {"stage1": "features.2.conv.0", "stage5": "features.18", "avgpool": "flatten"},
    "mobilenet_v3_small": {"avgpool": "flatten", "pre_logits": "classifier.1"},
    "densenet121": {"stage2": "features.transition1.relu", "stage5": "relu", "avgpool": "flatten"},
    "convnext_tiny": {"stage4": "features.7.2.add", "avgpool": "classifier.1"},
    "efficientnet_b0": {"stage5": "features.8", "avgpool": "flatten"},
    "googlenet": {"stage3": "inception3b.cat", "stage5": "inception5b.cat", "avgpool": "flatten"},
    "inception_v3": {"stage7": "Mixed_7c.cat_2", "avgpool": "flatten"},
    "mnasnet0_5": {"stage5": "layers.16", "avgpool": "mean"},
    "shufflenet_v2_x0_5": {"stage5": "conv5.2", "avgpool": "mean"},
    "regnet_x_400mf": {"stage1": "stem", "stage5": "trunk_output.block4.block4-11.activation", "avgpool": "flatten"},
    "swin_t": {"stage1": "features.1.1.add_1", "stage4": "permute", "avgpool": "flatten"},
    "vit_b_32": {"block12": "encoder.layers.encoder_layer_11.add_1", "norm": "encoder.ln", "pre_logits": "getitem_5"},
    "maxvit_t": {"stage5": "blocks.3.layers.1.layers.grid_attention.departition_op.reshape_1"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DERIVED)
def test_the_layers_of_any_other_network_are_derived_from_its_graph(name: str) -> None:
    found = {layer: node for layer, (node, _) in layers(name).items()}
    assert found | DERIVED[name] == found
    numbered = [layer for layer in found if layer[-1].isdigit()]
    word = numbered[0].rstrip("0123456789")
    assert numbered == [f"{word}{number}" for number in range(1, len(numbered) + 1)]


def test_all_of_torchvisions_classification_models_are_there() -> None:
    assert set(torchvision.models.list_models(module=torchvision.models)) < backbones.registry().keys()


def test_the_layers_of_efficientnet_lite0_end_in_a_relu6() -> None:
    named = layers("efficientnet_lite0")
    assert list(named) == ["stem", *(f"stage{number}" for number in range(1, 8)), "head", "avgpool"]
    assert named["stage5"] == ("blocks.5.0.bn1", (672, 14, 14)) and named["stage6"] == ("blocks.6.0.bn1", (1152, 7, 7))
    assert named["head"] == ("bn2", (1280, 7, 7)) and named["avgpool"] == ("global_pool.flatten", (1280,))
    with torch.device("meta"):
        model = backbones.EFFICIENTNET_LITE0.build()
    for layer, (node, _) in named.items():
        assert layer == "avgpool" or isinstance(model.get_submodule(node).act, torch.nn.ReLU6)


def test_every_tensor_of_the_package_has_its_place_in_timms_network() -> None:
    state = weights.read_state(efficientnet_lite0.find_weights(), efficientnet_lite0.SHA256)
    renamed = efficientnet_lite0.rename(state)
    with torch.device("meta"):
        expected = backbones.EFFICIENTNET_LITE0.build().state_dict()
    assert {name: value.shape for name, value in renamed.items()} == {n: v.shape for n, v in expected.items()}
    assert len(state) == len(renamed) == 296
    assert efficientnet_lite0.rename(renamed) == renamed


def test_an_unknown_backbone_lists_the_nearest_first() -> None:
    with pytest.raises(errors.PipelineError, match=r"Unknown backbone 'resnet5O'. Choose from: resnet50,"):
        backbones.get("resnet5O")


def test_an_unknown_layer_lists_the_choices() -> None:
    with pytest.raises(
        errors.PipelineError, match=r"Unknown layer 'fc9' for vgg16. Choose from: fc[67], fc[67], .*conv1"
    ):
        layer_nodes.find_nodes(backbones.get("vgg16"), ["fc9"])


def test_random_weights_follow_their_seed_and_leave_torchs_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    hashes = [
        weights.state_sha256(backbones.load(backbones.get("resnet18"), w)[0])
        for w in ("random", "random:0", "random:1")
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.rand(1) == expected


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A ResNet-18 for two classes, as a fine-tuning tutorial leaves it."""
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=2).state_dict()


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {f"module.{n}": v for n, v in s.items()}]
)
def test_a_local_state_dict_with_other_classes_loads(state: dict, wrap: object, tmp_path: Path) -> None:
    torch.save(wrap(state), tmp_path / "net.pth")  # type: ignore[operator]
    model, transform = backbones.load(backbones.get("resnet18"), str(tmp_path / "net.pth"))
    torch.testing.assert_close(model.state_dict()["fc.weight"], state["fc.weight"])
    assert (transform.resize, transform.crop) == (256, 224)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("vgg11", "classifier.6"),
        ("tinyvgg", "classifier.6"),
        ("squeezenet1_1", "classifier.1"),
        ("densenet121", "classifier"),
        ("googlenet", "fc"),
        ("vit_b_16", "heads.head"),
        ("swin_t", "head"),
        ("maxvit_t", "classifier.5"),
    ],
)
def test_the_head_is_the_last_module_with_a_score_for_each_class(name: str, head: str) -> None:
    assert backbones.head_module(backbones.get(name)) == head


def test_a_network_without_a_head_is_refused() -> None:
    headless = replace(backbones.get("resnet18"), name="headless", build=lambda num_classes=0: torch.nn.Conv2d(3, 8, 3))
    with pytest.raises(errors.PipelineError, match="headless has no classifier"):
        backbones.head_module(headless)


def test_a_head_that_is_a_convolution_may_have_other_classes(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "net.pth")
    model, _ = backbones.load(backbones.get("squeezenet1_1"), str(tmp_path / "net.pth"))
    assert model.get_submodule("classifier.1").out_channels == 3


def test_the_same_weights_have_the_same_hash_in_any_file(state: dict, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "net.pth")
    save_file(state, tmp_path / "net.safetensors")
    hashes = {
        weights.state_sha256(backbones.load(backbones.get("resnet18"), str(tmp_path / name))[0])
        for name in ("net.pth", "net.safetensors")
    }
    assert len(hashes) == 1


class Evil:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_hostile_weights_file_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    torch.save({"fc.weight": Evil(tmp_path / "owned")}, tmp_path / "evil.pth")
    with pytest.raises(errors.PipelineError, match="read safely"):
        weights.read_state(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"junk", "read safely"), (None, "No weights file"), ([1, 2], "no state dict"), ({"a": 1}, "no state dict")],
)
def test_a_file_that_is_no_state_dict(content: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(errors.PipelineError, match=words):
        weights.read_state(path)


def test_weights_of_another_network_are_refused(state: dict, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(errors.PipelineError, match=r"do not fit resnet34: \d+ of its tensors"):
        backbones.load(backbones.get("resnet34"), str(tmp_path / "net.pth"))


def test_unknown_weights_list_the_choices() -> None:
    with pytest.raises(
        errors.PipelineError, match=r"Unknown weights 'IMAGENET1K_V3' for resnet50. Choose from: IMAGENET1K_V"
    ):
        backbones.load(backbones.get("resnet50"), "IMAGENET1K_V3")


def test_damaged_embedded_weights_are_found(tmp_path: Path) -> None:
    from pipeline.networks import tinyvgg

    data = bytearray(tinyvgg.WEIGHTS.read_bytes())
    data[1_000_000] ^= 1
    (tmp_path / "tinyvgg.safetensors").write_bytes(data)
    with pytest.raises(errors.PipelineError, match="damaged"):
        weights.read_state(tmp_path / "tinyvgg.safetensors", tinyvgg.SHA256)


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "VGG16_Weights.IMAGENET1K_V1", "IMAGENET1K_FEATURES", "default"])
def test_torchvisions_names_of_weights_bring_their_transform(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []
    backbone = backbones.get("vgg16")
    monkeypatch.setattr(weights, "fetch", lambda url: requested.append(url) or Path("nowhere"))
    with torch.device("meta"):  # no memory for two networks of half a gigabyte
        state = backbone.build().state_dict()
        monkeypatch.setattr(weights, "read_state", lambda path, sha256: requested.append(sha256) or state)
        _, transform = backbones.load(backbone, name)
    member = VGG16_Weights.IMAGENET1K_FEATURES if "FEATURES" in name else VGG16_Weights.IMAGENET1K_V1
    assert requested == [member.url, member.url.rsplit("-", 1)[1].split(".")[0]]
    assert transform.mean == tuple(member.transforms().mean)


# Downloads, from a server on this machine


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SimpleNamespace]:
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{running.server_port}")
        running.shutdown()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch" / "hub" / "checkpoints"


def serve(state: dict, server: SimpleNamespace, digest: str = "") -> tuple[str, backbones.Backbone]:
    """Put a state dict on the server under torchvision's name for it; return the name, and a resnet18 with it."""
    torch.save(state, server.folder / "net.pth")
    digest = digest or hashlib.sha256((server.folder / "net.pth").read_bytes()).hexdigest()
    name = f"resnet18-{digest[:8]}.pth"
    (server.folder / "net.pth").rename(server.folder / name)
    served = Weights(f"{server.url}/{name}", ResNet18_Weights.DEFAULT.transforms, {})
    choices = WeightsEnum("Served", {"IMAGENET1K_V1": served, "DEFAULT": served})
    return name, replace(backbones.get("resnet18"), pretrained=TorchvisionWeights("resnet18", choices))


def test_weights_are_downloaded_once_and_checked_each_time(state: dict, server: SimpleNamespace, hub: Path) -> None:
    name, backbone = serve(state, server)
    model, _ = backbones.load(backbone, "default")
    torch.testing.assert_close(model.state_dict()["fc.weight"], state["fc.weight"])
    (server.folder / name).unlink()
    backbones.load(backbone, "default")
    data = bytearray((hub / name).read_bytes())
    data[-1] ^= 1
    (hub / name).write_bytes(data)
    with pytest.raises(errors.PipelineError, match="damaged"):
        backbones.load(backbone, "default")


def test_a_download_with_the_wrong_hash_is_refused_and_not_kept(
    state: dict, server: SimpleNamespace, hub: Path
) -> None:
    _, backbone = serve(state, server, digest="00000000")
    with pytest.raises(errors.PipelineError, match=r"The download of .* is damaged"):
        backbones.load(backbone, "default")
    assert not list(hub.iterdir())


def test_offline_the_place_for_the_file_is_named(hub: Path, server: SimpleNamespace) -> None:
    expected = r"Cannot download .*resnet18-f37072fd.pth .* by hand, .*efficientnet_lite0"
    for url in ("http://127.0.0.1:9/resnet18-f37072fd.pth", f"{server.url}/resnet18-f37072fd.pth"):
        with pytest.raises(errors.PipelineError, match=expected) as error:
            weights.fetch(url)
        assert str(hub / "resnet18-f37072fd.pth") in str(error.value)
