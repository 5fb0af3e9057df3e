"""The classes that networks were trained on: their names, their order, and which weights have none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from conftest import make_spec
from safetensors.torch import save_file
from timm.data import ImageNetInfo

from pipeline import errors
from pipeline.networks import backbones, origins, source_classes, tinyvgg, weights


def test_torchvision_and_timm_name_imagenets_classes_in_the_same_order() -> None:
    ours, first_words = origins.imagenet_classes(), [text.split(",")[0] for text in ImageNetInfo().label_descriptions()]
    differing = {pair for pair in zip(ours, first_words, strict=True) if pair[0] != pair[1]}
    assert differing == {("crane bird", "crane"), ("maillot tank suit", "maillot")}  # torchvision tells these apart
    assert len(set(ours)) == 1000 and (ours[309], ours[310]) == ("bee", "ant")


def test_every_kind_of_weights_names_its_classes() -> None:
    for backbone, origin in (
        ("efficientnet_lite0", "default"),
        ("resnet50", "IMAGENET1K_V1"),
        ("vit_b_16", "default"),
        ("timm/resnet50.a1_in1k", "default"),
        ("timm/convnext_tiny", "default"),
    ):
        assert backbones.get(backbone).pretrained.class_names(origin) == origins.imagenet_classes()
    head = source_classes.find_head(backbones.TINYVGG, "default")
    assert head and (head.n_classes, head.names[0]) == (200, "goldfish")


@pytest.mark.parametrize(
    ("backbone", "origin"),
    [
        ("resnet18", "random:3"),
        ("vgg16", "IMAGENET1K_FEATURES"),
        ("timm/vit_small_patch14_dinov2", "default"),
    ],
)
def test_weights_without_classes_are_refused(backbone: str, origin: str) -> None:
    assert source_classes.find_head(backbones.get(backbone), origin) is None
    with pytest.raises(errors.PipelineError, match="predicts no classes"):
        source_classes.build_network(backbone, origin)


@pytest.mark.parametrize("name", ["resmlp_12_224.fb_dino", "beit_base_patch16_224.in22k_ft_in22k"])
def test_classes_that_are_not_imagenets_thousand_have_no_names(name: str) -> None:
    pretrained = backbones.get(f"timm/{name}").pretrained
    assert pretrained.n_classes("default") >= 1000 and pretrained.class_names("default") == ()


def test_a_repository_names_its_own_classes(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "model.safetensors")
    config = {"label_names": ["ant", "bee", "fly"], "num_classes": 3, "pretrained_cfg": {"tag": "mine"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    network, found = source_classes.build_network("timm/test_resnet", f"local-dir:{tmp_path}")
    assert found == ("ant", "bee", "fly")
    assert network(torch.zeros(2, 3, *network.transform.size, dtype=torch.uint8))["fc"].shape == (2, 3)


@pytest.mark.parametrize(("classes", "words"), [(5, "The names of the 5 classes"), (0, "predicts no classes")])
def test_a_file_with_another_head_or_none_is_refused(classes: int, words: str, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=classes).state_dict(), tmp_path / "net.pth")
    with pytest.raises(errors.PipelineError, match=words):
        source_classes.build_network("timm/test_resnet", str(tmp_path / "net.pth"))


def test_a_file_of_the_default_weights_has_their_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = backbones.load(backbones.TINYVGG, "default")
    torch.save(model.state_dict(), tmp_path / "net.pth")
    with caplog.at_level("INFO", logger="pipeline"):
        _, found = source_classes.build_network("tinyvgg", str(tmp_path / "net.pth"))
    assert found == tinyvgg.class_names() and "is taken to have the classes of tinyvgg's default weights" in caplog.text


def test_weights_that_were_fine_tuned_have_no_head_that_fits(tmp_path: Path) -> None:
    model, _ = backbones.load(backbones.TINYVGG, "default")
    facts = {"spec": make_spec().to_json()}
    weights.write_state(tmp_path / "tuned.safetensors", model.state_dict(), facts)
    with pytest.raises(errors.PipelineError, match=r"fine-tuned and headless weights know none"):
        source_classes.build_network("tinyvgg", str(tmp_path / "tuned.safetensors"))
