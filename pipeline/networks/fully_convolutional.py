"""VGG and AlexNet at other sizes than their own: their fully connected layers as convolutions."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class FullyConvolutional(nn.Module):
    """A VGG or AlexNet whose fully connected layers are convolutions over maps of any size.

    The weights are the same, reshaped, under the same names (Sermanet et al., "OverFeat", ICLR 2014). The average pool
    before them gets the fixed window that it has at the native size. A cell equals the ordinary code of its window of
    the image only if the convolutions before do not pad: at the window's edge the ordinary network sees zeros, this
    one sees the next pixels.

    model: with the submodules features, avgpool and classifier; native: side in pixels of the square images that it
    was made for.
    """

    def __init__(self, model: Any, native: int) -> None:
        super().__init__()
        self.features = model.features
        with torch.device("meta"):
            side = copy.deepcopy(model.features).to("meta").eval()(torch.empty(1, 3, native, native)).shape[-1]
        cells = _side(model.avgpool.output_size)
        self.avgpool = nn.AvgPool2d(side // cells)
        layers, kernel = [], cells
        for module in model.classifier:
            if isinstance(module, nn.Linear):
                layers.append(_as_convolution(module, kernel))
                kernel = 1
            else:
                layers.append(module)
        self.classifier = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, num_classes, h, w) scores of (n, 3, height, width) normalised images."""
        scores: torch.Tensor = self.classifier(self.avgpool(self.features(images)))
        return scores


def _side(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else size[0]


def _as_convolution(linear: nn.Linear, kernel: int) -> nn.Conv2d:
    """Return a convolution with a linear layer's own weights, each row seen as (channels, kernel, kernel)."""
    with torch.device("meta"):
        convolution = nn.Conv2d(linear.in_features // kernel**2, linear.out_features, kernel)
    convolution.weight = nn.Parameter(linear.weight.detach().view(convolution.weight.shape))
    convolution.bias = linear.bias
    return convolution
