"""timm's networks: the same codes as torchvision's from the same weights, their transforms, names and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from helpers import assert_close, noise_images
from safetensors.torch import save_file

from pipeline import errors
from pipeline.images.transforms import Framing
from pipeline.networks import backbones, layer_nodes, timm_models, timm_weights
from pipeline.networks.frozen import FrozenNetwork


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "timms"), [("resnet18", "timm/resnet18.tv_in1k"), ("vgg16", "timm/vgg16.tv_in1k")], ids=["resnet", "vgg"]
)
def test_a_state_dict_of_torchvisions_gives_the_same_codes_at_every_named_layer(
    ours: str, timms: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    state = torchvision.models.get_model(ours).state_dict()
    save_file(state, tmp_path / "net.safetensors")
    layers = list(layer_nodes.named_layers(backbones.get(ours)))
    assert list(layer_nodes.named_layers(backbones.get(timms))) == layers
    x = noise_images(2)
    expected, codes = (
        FrozenNetwork(name, layers, str(tmp_path / "net.safetensors")).codes(x) for name in (ours, timms)
    )
    for layer in layers:
        assert_close(codes[layer], expected[layer])


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "vit_base_patch16_clip_224.openai", "convnext_atto.d2_in1k"])
def test_images_are_prepared_as_timm_says(name: str) -> None:
    transform = backbones.native_transform(backbones.get(f"timm/{name}"))
    config = timm.models.get_pretrained_cfg(name)
    assert transform.size == config.input_size[1:] and transform.resize == int(config.input_size[1] / config.crop_pct)
    assert (transform.mean, transform.std, transform.interpolation) == (config.mean, config.std, config.interpolation)


def test_images_that_timm_squashes_are_resized_whole_unless_the_centre_is_asked_for() -> None:
    config = {"input_size": (3, 224, 224), "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bicubic"}
    squashed = timm_weights.transform_of(config)
    assert (squashed.fit, squashed.resize) == ("whole", 224)
    assert Framing().of(squashed) == squashed
    assert Framing(fit="crop").of(squashed).fit == "crop"


def test_the_size_of_tests_is_timms_where_it_names_one() -> None:
    def framed(name: str, size: str) -> tuple[tuple[int, int], int]:
        transform = Framing.sized(size).of(backbones.transform_of(backbones.get(name), "default", size == "test"))
        return transform.size, transform.resize

    assert framed("timm/resnet50.a1_in1k", "") == ((224, 224), 235)
    assert framed("timm/resnet50.a1_in1k", "test") == ((288, 288), 288)
    assert framed("timm/test_resnet.r160_in1k", "test") == framed("timm/test_resnet.r160_in1k", "") == ((160, 160), 168)
    assert framed("resnet50", "test") == framed("resnet50", "") == ((224, 224), 232)


def test_layers_go_by_timms_stages_blocks_and_ends() -> None:
    def layers(name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        return layer_nodes.layer_shapes(backbones.get(f"timm/{name}"))

    assert layers("efficientnet_b0")["head"] == ("bn2", (1280, 7, 7))
    assert list(layers("regnety_002")) == [*(f"stage{number}" for number in range(1, 6)), "avgpool"]
    assert layers("test_vit")["block6"] == ("blocks.5.add_1", (101, 64))
    assert list(layers("test_vit"))[-2:] == ["norm", "pre_logits"]


def test_a_network_without_a_head_is_built_without_one_and_predicts_no_classes(tmp_path: Path) -> None:
    assert layer_nodes.head_node(backbones.get("timm/vit_small_patch14_dinov2")) is None
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "net.pth")
    model, _ = backbones.load(backbones.get("timm/test_resnet"), str(tmp_path / "net.pth"))
    assert isinstance(model.get_submodule("fc"), torch.nn.Identity)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/resnet19", r"Unknown backbone 'timm/resnet19'. Choose from: timm/resnet1.*more\)"),
        ("timm/resnet18.a9_in1k", "Unknown backbone 'timm/resnet18.a9_in1k'. Choose from: timm/resnet18"),
    ],
)
def test_an_unknown_name_lists_the_nearest(name: str, words: str) -> None:
    with pytest.raises(errors.PipelineError, match=words):
        backbones.get(name)


@pytest.mark.parametrize(
    ("name", "similar"), [("hiera_tiny_224", "timm/sam2_hiera_tiny"), ("gemma4_vit_167m", "timm/qwen3_vit_88m")]
)
def test_a_network_that_cannot_be_traced_is_refused_in_one_sentence_that_names_similar_ones(
    name: str, similar: str, capfd: pytest.CaptureFixture[str]
) -> None:
    backbone = backbones.get(f"timm/{name}")
    with pytest.raises(
        errors.PipelineError, match=rf"torch.fx cannot trace it. Choose another .* {similar}, "
    ) as error:
        layer_nodes.layer_shapes(backbone)
    assert len(str(error.value).splitlines()) == 1 and capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for similar in timm_models.RELATIVES.values() for name in similar])
def test_the_similar_networks_can_be_traced(name: str) -> None:
    assert layer_nodes.layer_shapes(backbones.get(f"timm/{name}"))


def test_weights_of_a_folder_bring_their_transform(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 96, 96], "crop_pct": 1.0}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model, transform = backbones.load(backbones.get("timm/test_resnet"), f"local-dir:{tmp_path}")
    assert model.get_submodule("fc").out_features == 5 and transform.size == (96, 96) and transform.resize == 96
    with pytest.raises(errors.PipelineError, match=r"has no model.safetensors or pytorch_model.bin"):
        backbones.load(backbones.get("timm/test_resnet"), f"local-dir:{tmp_path / 'none'}")


@pytest.mark.parametrize(
    "config",
    [
        "junk",
        "[1]",
        '{"pretrained_cfg": 3}',
        '{"pretrained_cfg": {"crop_pct": "a"}}',
        '{"pretrained_cfg": {"input_size": [3, 99999, 99999]}}',
        '{"pretrained_cfg": {"mean": [0.5]}}',
        '{"pretrained_cfg": {"interpolation": ["bicubic"]}}',
    ],
)
def test_a_damaged_or_hostile_configuration_is_a_mistake_of_one_sentence(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(errors.PipelineError, match=r"does not (describe|say).*Take --weights FILE") as error:
        backbones.transform_of(backbones.get("timm/test_resnet"), f"local-dir:{tmp_path}")
    assert len(str(error.value).splitlines()) == 1
