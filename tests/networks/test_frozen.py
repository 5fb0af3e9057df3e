"""The frozen network: codes equal a hand-written forward pass, for any layers together and any batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.fx
from helpers import assert_close, frozen, noise_images, normalised
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torch.nn import functional

from pipeline import errors
from pipeline.codes.spec import join_specs
from pipeline.images.transforms import resize_and_crop
from pipeline.networks import backbones
from pipeline.networks.frozen import FrozenNetwork, rebuild_network
from pipeline.networks.graph import fold_batch_norms


def vgg_by_hand(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    maps = x
    for module in model.features:
        maps = functional.relu(maps) if isinstance(module, nn.ReLU) else module(maps)
    flat = torch.flatten(model.avgpool(maps), 1)
    linear = [module for module in model.classifier if isinstance(module, nn.Linear)]
    fc6 = functional.relu(linear[0](flat))
    return {"pool5": maps.mean((2, 3)), "fc6": fc6, "fc7": functional.relu(linear[1](fc6))}


def resnet_by_hand(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    maps = model.maxpool(functional.relu(model.bn1(model.conv1(x))))
    maps = model.layer3(model.layer2(model.layer1(maps)))
    last = model.layer4(maps)
    return {"layer3": maps.mean((2, 3)), "avgpool": last.mean((2, 3))}


CASES = [
    ("vgg16", ("fc6", "fc7", "pool5"), vgg_by_hand),
    ("alexnet", ("fc7",), vgg_by_hand),
    ("resnet18", ("layer3", "avgpool"), resnet_by_hand),
    ("resnet50", ("layer3", "avgpool"), resnet_by_hand),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers", "by_hand"), CASES, ids=[case[0] for case in CASES])
def test_codes_equal_a_hand_written_forward_pass(
    name: str, layers: tuple[str, ...], by_hand: Callable[[Any, torch.Tensor], dict[str, torch.Tensor]]
) -> None:
    x = noise_images(3)
    codes = frozen(name, *layers).codes(x)
    model, _ = backbones.load(backbones.get(name), "random")
    with torch.no_grad():
        expected = by_hand(model, normalised(x))
    for layer in layers:
        assert codes[layer].dtype == np.float32 and codes[layer].min() >= 0
        assert_close(codes[layer], expected[layer].numpy())


def test_efficientnet_lite0_gives_the_codes_of_timms_own_forward_pass_on_photos() -> None:
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    network = FrozenNetwork("efficientnet_lite0", ["head", "avgpool"])
    codes = network.codes(np.stack([resize_and_crop(photo, network.transform) for photo in photos]))
    model, _ = backbones.load(backbones.EFFICIENTNET_LITE0, "default")
    prepare = create_transform(**resolve_model_data_config(model))
    with torch.no_grad():
        maps = model.forward_features(torch.stack([prepare(photo) for photo in photos]))
        expected = model.global_pool(maps)
    assert network.transform.mean == network.transform.std == (0.5, 0.5, 0.5)
    for layer in ("head", "avgpool"):
        assert codes[layer].min() >= 0 and codes[layer].max() > 1
        assert_close(codes[layer], expected.numpy())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), [case[:2] for case in CASES], ids=[case[0] for case in CASES])
def test_codes_do_not_depend_on_the_batch_size(name: str, layers: tuple[str, ...]) -> None:
    x = noise_images(8)
    whole = frozen(name, *layers).codes(x)
    for size, count in ((1, 2), (3, 6)):
        parts = [frozen(name, *layers).codes(x[start : start + size]) for start in range(0, count, size)]
        for layer in layers:
            assert_close(np.concatenate([part[layer] for part in parts]), whole[layer][:count])


def test_codes_do_not_depend_on_the_number_of_threads() -> None:
    x = noise_images(4)
    default = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(frozen("resnet18", "layer3", "avgpool").codes(x)["avgpool"])
    finally:
        torch.set_num_threads(default)
    assert_close(*found)


def test_vgg16_fc7_gives_4096_numbers() -> None:
    assert frozen("vgg16", "fc6", "fc7", "pool5").widths == {"fc6": 4096, "fc7": 4096, "pool5": 512}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "neighbours"),
    [
        ("alexnet", ("features.0", "features.1", "classifier.4", "classifier.5")),
        ("resnet18", ("bn1", "relu", "layer2.0.add", "layer2.0.relu_1", "layer2.0.bn2")),
        (
            "densenet121",
            ("features.norm5", "relu", "features.denseblock1.denselayer1.norm1", "features.transition1.norm"),
        ),
        ("googlenet", ("conv1.bn", "conv1.relu", "inception3a.branch1.bn", "inception3a.branch1.relu")),
    ],
)
def test_neighbouring_nodes_asked_together_equal_those_asked_alone(name: str, neighbours: tuple[str, ...]) -> None:
    x = noise_images(2)
    together = FrozenNetwork(name, neighbours, "random", "avg2").codes(x)
    for node in neighbours:
        alone = FrozenNetwork(name, [node], "random", "avg2").codes(x)[node]
        assert_close(together[node], alone)
    before, after = together[neighbours[0]], together[neighbours[1]]
    assert before.min() < 0 <= after.min(), "the first of these stands before a ReLU, the second after it"


def test_what_follows_the_layer_is_not_computed() -> None:
    shallow = frozen("resnet50", "layer2")
    names = {name.split(".")[0] for name, _ in shallow.graph.named_parameters()}
    assert names == {"conv1", "layer1", "layer2"}  # bn1 is folded into conv1


def test_batch_norms_are_folded_unless_something_else_needs_their_input() -> None:
    def norms(*nodes: str) -> int:
        return sum(isinstance(module, nn.BatchNorm2d) for module in frozen("resnet18", *nodes).graph.modules())

    assert norms("layer2") == 0
    assert norms("conv1", "layer2") == 1
    assert norms("bn1", "layer2") == 0


class NormWithActivation(nn.BatchNorm2d):
    """A batch norm as timm has them, which contains the ReLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(super().forward(x))


class LeafTracer(torch.fx.Tracer):
    """Traces no module inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def test_subclasses_of_batch_norm_are_not_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), NormWithActivation(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    folded = fold_batch_norms(torch.fx.GraphModule(model, LeafTracer().trace(model)))
    kinds = [type(module) for module in folded.children()]
    assert kinds == [nn.Conv2d, NormWithActivation, nn.Conv2d, nn.Identity]
    assert_close(folded(x).detach().numpy(), model(x).detach().numpy())


def test_two_names_of_one_node_give_the_same_codes() -> None:
    both = FrozenNetwork("alexnet", ["fc7", "classifier.5"], "random", "avg").codes(noise_images(1))
    np.testing.assert_array_equal(both["fc7"], both["classifier.5"])


@pytest.mark.parametrize(
    ("pool", "width"), [("avg", 128), ("max", 128), ("avg4", 2048), ("max2", 512), ("flatten", 8192), ("avg9", 8192)]
)
def test_a_pooling_applies_to_maps_alone(pool: str, width: int) -> None:
    frozen_network = FrozenNetwork("tinyvgg", ["pool3", "fc7"], "default", pool)
    codes = frozen_network.codes(noise_images(2, 64))
    assert codes["pool3"].shape == (2, width) and frozen_network.widths == {"pool3": width, "fc7": 1024}
    assert frozen_network.specs["fc7"].pool == "none" and frozen_network.specs["pool3"].pool == pool


@pytest.mark.parametrize(("name", "layer", "pool"), [("tinyvgg", "pool3", "avg4"), ("resnet18", "layer3", "avg")])
def test_the_default_pooling_is_the_backbones_own_and_stands_in_the_spec(name: str, layer: str, pool: str) -> None:
    network = FrozenNetwork(name, [layer], "random")
    assert network.specs[layer].pool == pool
    assert network.widths == FrozenNetwork(name, [layer], "random", pool).widths
    assert rebuild_network(network.specs[layer]).specs == network.specs


def test_the_spec_tells_weights_apart_by_their_values() -> None:
    hashes = {
        FrozenNetwork("tinyvgg", ["fc7"], origin, "avg").specs["fc7"].weights_sha256
        for origin in ("default", "random", "random:1")
    }
    assert len(hashes) == 3


def test_tinyvgg_equals_its_model_cards_description() -> None:
    x = noise_images(2, 64)
    model, transform = backbones.load(backbones.get("tinyvgg"), "default")
    assert (transform.resize, transform.crop, transform.interpolation) == (64, 64, "bilinear")
    with torch.no_grad():
        flat = torch.flatten(functional.adaptive_avg_pool2d(model.features(normalised(x)), 2), 1)  # type: ignore[operator]
        fc6 = functional.relu(functional.linear(flat, model.classifier[0].weight, model.classifier[0].bias))  # type: ignore[index,union-attr,arg-type]
    assert_close(FrozenNetwork("tinyvgg", ["fc6"], "default", "avg").codes(x)["fc6"], fc6.numpy())


@pytest.mark.parametrize("pool", ["median", "avg0", "flatten2", "avg 2", ""])
def test_an_unknown_pooling_lists_the_choices(pool: str) -> None:
    with pytest.raises(errors.PipelineError, match=r"Choose from: avg, max, flatten, .* auto"):
        FrozenNetwork("tinyvgg", ["fc7"], "default", pool)


def test_a_node_that_gives_no_vector_or_map_is_refused() -> None:
    with pytest.raises(errors.PipelineError, match="neither vectors, maps nor tokens"):
        FrozenNetwork("timm/test_vit", ["blocks.0.attn.reshape"], "random", "avg")


def test_swins_maps_are_pooled_as_by_its_own_head() -> None:
    x = noise_images(2)
    network = FrozenNetwork("swin_t", ["norm", "flatten"], "random")
    codes = network.codes(x)
    assert network.widths == {"norm": 768, "flatten": 768}
    assert_close(codes["norm"], codes["flatten"])
    rebuilt = rebuild_network(network.specs["norm"], "random")
    np.testing.assert_array_equal(rebuilt.codes(x)["norm"], codes["norm"])


@pytest.mark.parametrize(
    ("name", "layer", "n_prefix"),
    [
        ("vit_b_32", "encoder.ln", 1),
        ("timm/vit_small_patch14_reg4_dinov2", "norm", 5),
        ("timm/deit_tiny_distilled_patch16_224", "norm", 2),
    ],
)
def test_class_token_and_mean_are_those_of_the_last_norm(name: str, layer: str, n_prefix: int) -> None:
    model, transform = backbones.load(backbones.get(name), "random")
    x = noise_images(1, size=transform.crop)
    codes = {pool: FrozenNetwork(name, [layer], "random", pool).codes(x)[layer] for pool in ("cls", "mean", "cls+mean")}
    tokens: list[torch.Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: tokens.append(output))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (transform.mean, transform.std))
    with torch.no_grad():
        model((torch.from_numpy(x) / 255 - mean) / std)
    assert_close(codes["cls"], tokens[0][:, 0].numpy())
    assert_close(codes["mean"], tokens[0][:, n_prefix:].mean(1).numpy())
    np.testing.assert_array_equal(codes["cls+mean"], np.concatenate([codes["cls"], codes["mean"]], 1))


@pytest.mark.parametrize(
    ("name", "activations"),
    [
        ("tinyvgg", {"conv3": "relu", "pool4": "relu", "fc7": "relu", "classifier.6": "none"}),
        ("resnet18", {"stem": "relu", "layer4": "relu", "avgpool": "relu", "layer1.0.bn1": "none"}),
        ("squeezenet1_1", {"stage2": "relu", "stage4": "relu"}),
        ("densenet121", {"stage2": "relu", "avgpool": "relu", "features.norm5": "none"}),
        ("efficientnet_lite0", {"stage3": "relu", "head": "relu", "avgpool": "relu", "blocks.3.0.bn3": "none"}),
        ("timm/test_vit", {"block2": "none", "norm": "none"}),
        ("efficientnet_b0", {"avgpool": "none"}),
    ],
)
def test_the_spec_says_whether_the_codes_went_through_a_relu(name: str, activations: dict[str, str]) -> None:
    network = FrozenNetwork(name, activations, "default" if name == "tinyvgg" else "random")
    assert {layer: spec.activation for layer, spec in network.specs.items()} == activations
    codes = network.codes(noise_images(2, size=network.transform.crop))
    for layer, activation in activations.items():
        assert (codes[layer].min() >= 0) == (activation == "relu")


def test_joined_layers_of_several_poolings_are_rebuilt_each_with_its_own() -> None:
    pools = {"patch_embed.proj": "auto", "block3": "cls+mean", "block6": "mean", "norm": "auto", "pre_logits": "auto"}
    network = FrozenNetwork("timm/test_vit", pools, "random", pools)
    joined = join_specs(list(network.specs.values()))
    assert joined.pool == "avg+cls_mean+mean+cls+none"
    x = noise_images(2, size=network.transform.crop)
    for layer, codes in rebuild_network(joined).codes(x).items():
        np.testing.assert_array_equal(codes, network.codes(x)[layer])
