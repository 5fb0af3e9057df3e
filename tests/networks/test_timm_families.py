"""timm's families: codes equal timm's own forward pass, in any batch, with folded batch norms, and as ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_close, noise_images
from safetensors.torch import save_file
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from torch import nn

from pipeline.classifiers.persistence import SavedClassifier
from pipeline.codes.spec import join_codes, join_specs
from pipeline.exporting import onnx_file
from pipeline.networks import backbones, layer_nodes
from pipeline.networks.frozen import FrozenNetwork

FAMILIES = (
    *("test_byobnet", "test_coatnet", "test_convnext", "test_efficientnet", "test_mambaout", "test_nfnet"),
    *("test_resnet", "test_vit", "test_vit_relpos", "densenet121", "dla46x_c", "edgenext_xx_small", "fasternet_t0"),
    *("ghostnet_050", "hgnetv2_b0", "inception_next_atto", "mixer_s32_224", "mobilenetv3_small_050", "mobilevit_xxs"),
    *(
        "pvt_v2_b0",
        "regnetx_002",
        "repvit_m0_9",
        "starnet_s050",
        "swin_tiny_patch4_window7_224",
        "xcit_nano_12_p16_224",
    ),
)
"""25 networks, each of another module of timm's."""


def random_weights(name: str, path: Path) -> str:
    """Write random weights whose batch norms do something; return where they lie."""
    model, _ = backbones.load(backbones.get(name), "random")
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    save_file(model.state_dict(), path / "net.safetensors")
    return str(path / "net.safetensors")


def last_stage_and_end(name: str) -> list[str]:
    named = list(layer_nodes.named_layers(backbones.get(name)))
    stages = [layer for layer in named if layer.rstrip("0123456789") in ("stage", "block", "layer")]
    return list(dict.fromkeys([stages[-1], named[-1]]))


def check_codes(name: str, path: Path) -> None:
    """See that the codes of two layers are those of timm's own forward pass, which folds nothing; in any batch."""
    weights, layers = random_weights(name, path), last_stage_and_end(name)
    network = FrozenNetwork(name, layers, weights, "mean")
    x = noise_images(7, size=network.transform.crop)
    codes = network.codes(x)
    model, transform = backbones.load(backbones.get(name), weights)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (transform.mean, transform.std))
    with torch.no_grad():
        final, intermediates = model.forward_intermediates((torch.from_numpy(x) / 255 - mean) / std)  # type: ignore[operator]
        pooled = model.forward_head(final, pre_logits=True)  # type: ignore[operator]
    assert_close(codes[layers[0]], intermediates[-1].mean((2, 3)).numpy())
    assert_close(codes[layers[-1]], pooled.numpy())
    alone = [network.codes(x[row : row + 1]) for row in range(2)]
    for layer in layers:
        assert_close(np.concatenate([part[layer] for part in alone]), codes[layer][:2])


def check_onnx(name: str, path: Path) -> float:
    """Return by how much a classifier's margins as ONNX differ from ours, relative to the largest."""
    weights, layers = random_weights(name, path), last_stage_and_end(name)
    network = FrozenNetwork(name, layers, weights, "mean")
    spec = join_specs(list(network.specs.values()))
    codes = network.codes(noise_images(6, size=network.transform.crop))
    X = join_codes([codes[layer] for layer in layers], spec)
    pipeline = make_pipeline(Normalizer(), RidgeClassifier()).fit(X, np.arange(6) % 3)
    classifier = SavedClassifier(pipeline, spec, ("ant", "bee", "fly"))
    return onnx_file.check(onnx_file.export(classifier, network), classifier, network)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_codes_of_two_layers_equal_timms_own_forward_pass(name: str, tmp_path: Path) -> None:
    check_codes(f"timm/{name}", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_efficientnet"])
def test_the_onnx_file_gives_our_margins(name: str, tmp_path: Path) -> None:
    assert check_onnx(f"timm/{name}", tmp_path) < 1e-4
