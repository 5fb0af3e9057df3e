"""What `extract --list` shows: sizes, published accuracies, the layer to begin with; never a thousand names."""

from __future__ import annotations

import re

import pytest

from pipeline import errors
from pipeline.networks import backbones, layer_names, layer_nodes
from pipeline.networks.listing import LISTED, listing


def test_all_backbones_are_listed_with_parameters_size_top1_and_layer() -> None:
    table = listing("")
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line}
    assert backbones.registry().keys() <= rows.keys()
    assert rows["tinyvgg"] == ["5.7", "64×64", "0.391", "fc7"]
    assert rows["efficientnet_lite0"] == ["4.7", "224×224", "–", "avgpool"]
    assert rows["resnet50"] == ["25.6", "224×224", "0.809", "avgpool"]
    assert rows["vit_b_16"][2:] == ["0.811", "pre_logits"]
    assert "as torchvision publishes it" in table


def test_patterns_choose_rows() -> None:
    assert len(re.findall(r"^resnet\d+ ", listing("resnet*"), re.MULTILINE)) == 5
    with pytest.raises(errors.PipelineError, match="No backbone fits 'nothing"):
        listing("nothing*")


def test_timm_is_searched_and_the_table_is_never_long() -> None:
    table = listing("timm/*resnet18.a*")
    assert re.search(r"timm/resnet18.a1_in1k +11.7 +224×224  (here|to download)", table)
    with pytest.raises(errors.PipelineError, match="No network of timm's fits 'timm/"):
        listing("timm/*nothing*")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm", "timm/*"])
def test_a_thousand_names_are_never_listed(name: str) -> None:
    *rows, last = listing(name).splitlines()
    assert len(rows) == LISTED + 1 and re.fullmatch(r"… and \d{4} more\. timm's networks are searched .*", last)


def test_one_backbone_is_described_with_its_layers() -> None:
    resnet = listing("resnet18").splitlines()
    assert resnet[0] == "resnet18: 11.7 million parameters, images of 224×224 pixels"
    assert resnet[1:3] == [
        "layer to begin with: avgpool",
        "weights, with their published top-1: default 0.698, IMAGENET1K_V1 0.698",
    ]
    assert [line.split()[0] for line in resnet[4:]] == [
        "layer",
        "stem",
        *(f"layer{n}" for n in (1, 2, 3, 4)),
        "avgpool",
        "logits",
    ]
    timms = listing("timm/test_resnet.r160_in1k")
    assert "their top-1 is not published with timm" in timms
    assert "with --size test" not in timms
    with pytest.raises(errors.PipelineError, match="Unknown backbone 'resnet5O'"):
        listing("resnet5O")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*layer_names.LAST_LAYERS, "resnet18", "densenet121", "swin_t", "regnet_x_400mf", "mnasnet0_5"]
)
def test_the_layer_to_begin_with_is_the_last_named_one(name: str) -> None:
    """Of one backbone for each name that a family starts with; the rule saves tracing all of them."""
    backbone = next(each for each in backbones.registry() if each.startswith(name))
    assert layer_names.last_layer(backbone) == list(layer_nodes.named_layers(backbones.get(backbone)))[-1]
