"""The embedded backbone: a small VGG for 64×64 images, trained on Tiny-ImageNet (see pretrained/tinyvgg.md)."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import nn

from pipeline.images.transforms import Transform

WEIGHTS = Path(__file__).parent / "pretrained" / "tinyvgg.safetensors"
SOURCE_STATISTICS = WEIGHTS.with_name("tinyvgg.source.npz")
"""Mean and covariance of the codes of Tiny-ImageNet's validation images; keys: layer, pool, n, mean, cov."""
CLASSES = WEIGHTS.with_name("tinyvgg.classes.tsv")
"""The 200 classes of Tiny-ImageNet in the order of the network's scores; columns: index, wnid, name."""
SHA256 = "7e1a7cb4cfc7e1608e3fa1163e9e48d1e86b1a0a6ae86b0cd39049b7d6bb96dc"
TOP1 = 0.391
"""Share of Tiny-ImageNet's 10,000 validation images that the weights predict correctly."""
SIZE = 64
"""Side of the images in pixels."""
TRANSFORM = Transform(SIZE, SIZE, "bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
MAX_POOL = 0
CONVOLUTIONS = (32, MAX_POOL, 64, MAX_POOL, 128, 128, MAX_POOL, 256, 256, MAX_POOL, 512)
"""Numbers of channels of the convolutions, with the max pools between them."""


def class_names() -> tuple[str, ...]:
    """Return the names of Tiny-ImageNet's classes, in the order of the network's scores."""
    with CLASSES.open(encoding="utf-8", newline="") as file:
        return tuple(row["name"] for row in csv.DictReader(file, delimiter="\t"))


LAYERS = {
    "conv1": "features.2",
    "pool1": "features.3",
    "conv2": "features.6",
    "pool2": "features.7",
    "conv3": "features.10",
    "conv4": "features.13",
    "pool3": "features.14",
    "conv5": "features.17",
    "conv6": "features.20",
    "pool4": "features.21",
    "conv7": "features.24",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
}
"""{friendly name: graph node}; each node of a convolution or linear layer is its ReLU."""


class TinyVGG(nn.Module):
    """Seven 3×3 convolutions with batch norm, four max pools, two hidden layers; named as in torchvision's VGG."""

    def __init__(self, num_classes: int = 200) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in CONVOLUTIONS:
            if width == MAX_POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            *(nn.Linear(4 * channels, 1024), nn.ReLU(), nn.Dropout(0.3)),
            *(nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout(0.3)),
            nn.Linear(1024, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, num_classes) scores of (n, 3, 64, 64) normalised images."""
        maps = self.avgpool(self.features(images))
        scores: torch.Tensor = self.classifier(torch.flatten(maps, 1))
        return scores
