"""The frozen network: a backbone cut after its deepest asked layer, pictures in, codes out."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
import torch.fx
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from pipeline import errors
from pipeline.codes.spec import LAYER_SEPARATOR, CodesSpec, join_specs, spec_differences
from pipeline.images import decoding, transforms, views
from pipeline.networks import backbones, pooling, weights
from pipeline.networks.graph import cut_graph, fold_batch_norms, is_relu, keep_nodes

DEFAULT_FRAMING = transforms.Framing()
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What the forward pass computes in, by the name that stands in the spec."""


class FrozenNetwork(nn.Module):
    """A pretrained network in eval mode that gives the codes of one or several layers in one pass.

    transform: what its pictures must go through; specs: {layer: CodesSpec}; widths: {layer: numbers an image}.
    Its batch norms are folded into the convolutions before them, and its maps lie in memory channels last, which
    changes the codes by no more than rounding.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        name: str,
        layers: Iterable[str],
        origin: str,
        pool: str,
        framing: transforms.Framing = DEFAULT_FRAMING,
        relu: str = "post",
    ) -> None:
        super().__init__()
        backbone = backbones.get(name)
        pool = backbone.pool if pool == "auto" else pool
        self.nodes = backbones.find_nodes(backbone, layers)
        size = framing.of(backbones.native_transform(backbone)).size
        shapes = backbones.node_shapes(backbone, self.nodes.values(), size)
        self.pools = {layer: pooling.pool_for(shapes.get(node, ()), pool, layer) for layer, node in self.nodes.items()}
        self.widths = {
            layer: pooling.pooled_width(shapes[node], self.pools[layer]) for layer, node in self.nodes.items()
        }
        model, native = backbones.load(backbone, origin)
        self.transform, self.relu = framing.of(native), relu
        self.widths = {layer: views.count(framing.views) * width for layer, width in self.widths.items()}
        self.specs = self._specs(name, origin, weights.state_sha256(model))
        self.precision, self.dtype = "fp32", torch.float32
        graph = cut_graph(backbones.at_size(backbone, model, size), set(self.nodes.values()), relu)
        self.graph = fold_batch_norms(graph).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(self.transform.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(self.transform.std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def _specs(self, name: str, origin: str, sha256: str) -> dict[str, CodesSpec]:
        return {
            layer: CodesSpec(
                backbone=name,
                layer=layer,
                node=node,
                weights=origin,
                weights_sha256=sha256,
                pool=self.pools[layer],
                precision="fp32",
                relu=self.relu,
                transform=self.transform,
            )
            for layer, node in self.nodes.items()
        }

    def only(self, layers: Sequence[str]) -> Self:
        """Return this network, cut once more to give some of its layers; the weights are shared."""
        if list(layers) == list(self.nodes):
            return self
        nodes = {layer: self.nodes[layer] for layer in layers}
        return self._with(keep_nodes(self.graph, set(nodes.values())), nodes=nodes)

    def at(self, precision: str = "", dtype: str = "", decoder: str = "") -> Self:
        """Return this network with another precision of its forward pass, type of its codes, or decoder of JPEGs."""
        spec = next(iter(self.specs.values()))
        precision, dtype = precision or spec.precision, dtype or spec.dtype
        transform = replace(self.transform, decoder=decoder or self.transform.decoder)
        if transform.decoder not in decoding.DECODERS:
            raise errors.unknown("decoder", transform.decoder, decoding.DECODERS)
        graph = self.graph
        if precision != self.precision:
            graph = copy.deepcopy(graph).to(PRECISIONS[precision]).eval()  # a copied graph is in training mode
        specs = {
            layer: replace(spec, precision=precision, dtype=dtype, transform=transform)
            for layer, spec in self.specs.items()
        }
        return self._with(graph, specs=specs, transform=transform, precision=precision, dtype=getattr(torch, dtype))

    def _with(self, graph: torch.fx.GraphModule, **changes: Any) -> Self:
        other = copy.copy(self)
        other.__dict__ = self.__dict__ | {"_modules": {**self._modules, "graph": graph}} | changes
        return other

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return {layer: (n, width) codes} of (n, 3, height, width) uint8 pictures on the network's device.

        Of (n, n_views, 3, height, width), one view after the other: {layer: (n, n_views × width)}.
        """
        if pictures.ndim == 5:
            found = [self(view) for view in pictures.unbind(1)]
            return {layer: torch.cat([codes[layer] for codes in found], 1) for layer in self.nodes}
        normalised = (pictures / 255 - self.mean) / self.std
        outputs = self.graph(normalised.to(PRECISIONS[self.precision], memory_format=torch.channels_last))
        pooled = {
            layer: pooling.pool_maps(outputs[node].float(), self.pools[layer]) for layer, node in self.nodes.items()
        }
        return {layer: values.to(self.dtype) for layer, values in pooled.items()}

    @torch.inference_mode()
    def codes(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """Return {layer: (n, width)} of (n, 3, crop, crop) uint8 pictures, from and to ordinary memory."""
        outputs = self(torch.from_numpy(pictures).to(self.mean.device))
        return {layer: values.cpu().numpy() for layer, values in outputs.items()}


def relu_layers(name: str) -> list[str]:
    """Return the friendly names of a backbone's layers that end in a ReLU, in order."""
    backbone = backbones.get(name)
    nodes = {layer: node for layer, (node, _) in backbones.layer_shapes(backbone).items()}
    with torch.device("meta"):
        graph = create_feature_extractor(backbone.build().eval(), {node: node for node in nodes.values()})
    output = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    return [layer for layer, node in nodes.items() if is_relu(graph, output[node])]


def choose_device(name: str) -> str:
    """Return the device asked for, if it is there; for "auto" CUDA, else Apple's, else the processor."""
    present = [kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available()] + ["cpu"]
    if name == "auto":
        return present[0]
    if name.split(":")[0] not in present:
        raise errors.PipelineError(f"Device {name!r} is not here. Choose from: auto, {', '.join(present)}.")
    return name


def rebuild_network(spec: CodesSpec, origin: str = "") -> FrozenNetwork:
    """Return the network that gives codes of that spec; refuse one that differs, whatever its weights are called.

    origin: where its weights are to be had, if not where the spec's came from.
    """
    name = origin or spec.weights
    pool = next((pool for pool in spec.pool.split(LAYER_SEPARATOR) if pool != "none"), "avg")
    transform = spec.transform
    framing = transforms.Framing(transform.size, transform.resize, transform.fit, transform.views)
    network = FrozenNetwork(spec.backbone, spec.layer.split(LAYER_SEPARATOR), name, pool, framing, spec.relu)
    network = network.at(spec.precision, spec.dtype, transform.decoder)
    expected = {key: value for key, value in spec.to_dict().items() if key != "weights"}
    if found := spec_differences(join_specs(list(network.specs.values())), expected):
        raise errors.PipelineError(
            f"{spec.backbone} with the weights {name!r} is not the network that gave the codes: {'; '.join(found)}. "
            "Give the weights of then with --weights, or run pipeline.extract and pipeline.classify again."
        )
    return network
