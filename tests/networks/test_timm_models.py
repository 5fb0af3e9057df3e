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
from pipeline.networks import backbones, timm_models
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
    layers = backbones.friendly_layers(backbones.get(ours))
    assert backbones.friendly_layers(backbones.get(timms)) == layers
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


def test_an_image_that_timm_squashes_is_resized_whole() -> None:
    config = {"input_size": (3, 224, 224), "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"}
    assert timm_models.transform_of(config).fit == "whole"


def test_layers_go_by_timms_stages_blocks_and_ends() -> None:
    def layers(name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        return backbones.layer_shapes(backbones.get(f"timm/{name}"))

    assert layers("efficientnet_b0")["head"] == ("bn2", (1280, 7, 7))
    assert list(layers("regnety_002")) == [*(f"stage{number}" for number in range(1, 6)), "avgpool"]
    assert layers("test_vit")["block6"] == ("blocks.5.add_1", (101, 64))
    assert list(layers("test_vit"))[-2:] == ["norm", "pre_logits"]


def test_a_network_without_a_head_is_built_without_one_and_predicts_no_classes(tmp_path: Path) -> None:
    assert backbones.head_node(backbones.get("timm/vit_small_patch14_dinov2")) is None
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


def test_a_network_that_cannot_be_traced_is_refused_in_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    backbone = backbones.get("timm/hiera_tiny_224")
    with pytest.raises(errors.PipelineError, match=r"cannot be cut, because torch.fx cannot trace it. Choose another"):
        backbones.layer_shapes(backbone)
    assert capfd.readouterr().err == ""


def test_weights_of_a_folder_bring_their_transform(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 96, 96], "crop_pct": 1.0}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model, transform = backbones.load(backbones.get("timm/test_resnet"), f"local-dir:{tmp_path}")
    assert model.get_submodule("fc").out_features == 5 and transform.size == (96, 96) and transform.resize == 96
    with pytest.raises(errors.PipelineError, match=r"has no model.safetensors or pytorch_model.bin"):
        backbones.load(backbones.get("timm/test_resnet"), f"local-dir:{tmp_path / 'none'}")


def test_the_listing_searches_and_is_never_long() -> None:
    table = timm_models.listing("timm/*resnet18.a*")
    assert "timm/resnet18.a1_in1k" in table and "11.7" in table and "224×224" in table
    assert len(timm_models.listing("timm").splitlines()) <= 25
    with pytest.raises(errors.PipelineError, match="No network of timm's fits"):
        timm_models.listing("timm/*nothing*")


FAMILIES = [
    *(name for name in timm.list_models("test_*")),
    "regnety_002",
    "mobilenetv3_small_050",
    "densenet121",
    "mixer_s32_224",
    "ghostnet_050",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b0",
    "repvgg_a0",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_codes_of_two_layers_equal_timms_own_forward_pass(name: str) -> None:
    backbone = backbones.get(f"timm/{name}")
    named = list(backbones.named_layers(backbone))
    stages = [layer for layer in named if layer.rstrip("0123456789") in ("stage", "block", "layer")]
    layers = [stages[-1], named[-1]]
    network = FrozenNetwork(backbone.name, layers, "random", "mean")
    x = noise_images(7, size=network.transform.crop)
    codes = network.codes(x)
    model, transform = backbones.load(backbone, "random")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (transform.mean, transform.std))
    with torch.no_grad():
        final, intermediates = model.forward_intermediates((torch.from_numpy(x) / 255 - mean) / std)
        pooled = model.forward_head(final, pre_logits=True)
    assert_close(codes[layers[0]], intermediates[-1].mean((2, 3)).numpy())
    assert_close(codes[layers[1]], pooled.numpy())
    for row in range(2):
        alone = network.codes(x[row : row + 1])
        for layer in layers:
            assert_close(alone[layer], codes[layer][row : row + 1])
