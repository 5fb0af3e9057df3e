"""The frozen network: a backbone cut after its deepest requested layer; a batch of images in, codes out."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
import torch.fx
from torch import nn

from pipeline import errors
from pipeline.codes.spec import CodesSpec, extract_settings, join_specs, spec_differences
from pipeline.images import decoding
from pipeline.images.transforms import Framing
from pipeline.networks import backbones, layer_nodes, pooling, weights
from pipeline.networks.graph import (
    channels_last,
    cut_graph,
    fold_batch_norms,
    follows,
    is_relu,
    keep_nodes,
    outputs_of,
    trace,
)
from pipeline.paths import LAYER_SEPARATOR

NATIVE_FRAMING = Framing()

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Type in which the forward pass computes, by its name in the spec."""


class FrozenNetwork(nn.Module):
    """A pretrained network in eval mode that gives the codes of one or several layers in one pass.

    name: of the backbone; layers: friendly names or graph nodes; origin: of the weights, as `backbones.load` knows it;
    pool: as `pooling.pool_for` knows it, for all layers or as {layer: pool}; framing: what is seen of an image; relu:
    "post" for the codes after the layers' ReLUs, "pre" for those before.

    Attributes: transform: how images must be prepared; specs: {layer: CodesSpec}; widths: {layer: numbers per image};
    nodes: {layer: graph node}. Batch norms are folded into the convolutions before them, and maps lie in memory
    channels last, which changes the codes by no more than rounding.

    Raises PipelineError for unknown backbones, layers, weights and poolings, and for sizes that the network cannot run
    at.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        name: str,
        layers: Iterable[str],
        origin: str = "default",
        pool: str | Mapping[str, str] = pooling.AUTO,
        framing: Framing = NATIVE_FRAMING,
        relu: str = "post",
    ) -> None:
        super().__init__()
        backbone = backbones.get(name)
        self.nodes = layer_nodes.find_nodes(backbone, layers)
        asked = dict.fromkeys(self.nodes, pool) if isinstance(pool, str) else pool
        self.transform, self.relu = framing.of(backbones.transform_of(backbone, origin, framing.test_size)), relu
        size = self.transform.size
        shapes = layer_nodes.node_shapes(backbone, self.nodes.values(), size)
        known_layouts = layer_nodes.node_layouts(backbone, shapes)
        self.pools = {
            layer: pooling.pool_for(known_layouts.get(node), asked[layer], layer=layer, default=backbone.pool)
            for layer, node in self.nodes.items()
        }
        self.layouts = {layer: known_layouts[node] for layer, node in self.nodes.items()}
        model, _ = backbones.load(backbone, origin, set(self.nodes.values()))
        sha256 = weights.state_sha256(model)
        graph = cut_graph(layer_nodes.at_size(backbone, model, size), set(self.nodes.values()), relu)
        self.specs = self._specs(name, origin, sha256, graph)
        self.widths = {
            layer: spec.n_views * pooling.pooled_width(shapes[spec.node], spec.pool, self.layouts[layer])
            for layer, spec in self.specs.items()
        }
        self.precision, self.dtype = "fp32", torch.float32
        self.graph = channels_last(fold_batch_norms(graph))
        self.register_buffer("mean", torch.tensor(self.transform.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(self.transform.std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def _specs(self, name: str, origin: str, sha256: str, graph: torch.fx.GraphModule) -> dict[str, CodesSpec]:
        outputs = outputs_of(graph)
        return {
            layer: CodesSpec(
                backbone=name,
                layer=layer,
                node=node,
                weights=origin,
                weights_sha256=sha256,
                transform=self.transform,
                pool=self.pools[layer],
                precision="fp32",
                relu=self.relu,
                activation="relu" if follows(graph, outputs[node]) else "none",
            )
            for layer, node in self.nodes.items()
        }

    def only(self, layers: Sequence[str]) -> Self:
        """Return this network, cut once more to give only some of its layers; the weights are shared."""
        if list(layers) == list(self.nodes):
            return self
        nodes = {layer: self.nodes[layer] for layer in layers}
        return self._with(keep_nodes(self.graph, set(nodes.values())), nodes=nodes)

    def at(self, precision: str = "", dtype: str = "", decoder: str = "") -> Self:
        """Return this network with another precision of its forward pass, type of its codes, or decoder of JPEGs.

        An empty value keeps what the network has.
        """
        spec = next(iter(self.specs.values()))
        precision, dtype = precision or spec.precision, dtype or spec.dtype
        transform = replace(self.transform, decoder=decoder or self.transform.decoder)
        if transform.decoder not in decoding.DECODERS:
            raise errors.unknown("decoder", transform.decoder, decoding.DECODERS)
        if transform.decoder == decoding.SCALED and transform.views != "one":
            raise errors.PipelineError(
                f"--views {transform.views} needs all pixels of an image. Take --decoder {decoding.PILLOW}."
            )
        graph = self.graph
        if precision != self.precision:
            graph = copy.deepcopy(graph).to(PRECISIONS[precision]).eval()  # a copied graph is in training mode
        specs = {
            layer: replace(spec, precision=precision, dtype=dtype, transform=transform)
            for layer, spec in self.specs.items()
        }
        return self._with(graph, specs=specs, transform=transform, precision=precision, dtype=getattr(torch, dtype))

    def _with(self, graph: torch.fx.GraphModule, **changes: Any) -> Self:
        """Return a copy with another graph and other attributes; all else is shared."""
        other = copy.copy(self)
        other.__dict__ = self.__dict__ | {"_modules": {**self._modules, "graph": graph}} | changes
        return other

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return {layer: (n, width) codes} of a batch on the network's device.

        batch: (n, 3, height, width) uint8, or (n, n_views, 3, height, width), whose views' codes are concatenated.
        """
        if batch.ndim == 5:
            views = [self(view) for view in batch.unbind(1)]
            return {layer: torch.cat([codes[layer] for codes in views], 1) for layer in self.nodes}
        normalised = (batch / 255 - self.mean) / self.std
        outputs = self.graph(normalised.to(PRECISIONS[self.precision], memory_format=torch.channels_last))
        return {
            layer: pooling.pool_output(outputs[node].float(), self.pools[layer], self.layouts[layer]).to(self.dtype)
            for layer, node in self.nodes.items()
        }

    @torch.inference_mode()
    def codes(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return {layer: (n, width)} in the CPU's memory; batch: as `forward` takes it, in the CPU's memory."""
        outputs = self(torch.from_numpy(batch).to(self.mean.device))
        return {layer: values.cpu().numpy() for layer, values in outputs.items()}


def relu_layers(backbone: backbones.Backbone, layers: Sequence[str]) -> list[str]:
    """Return those of a backbone's layers that end in a ReLU, before which codes can be taken as well."""
    nodes = layer_nodes.find_nodes(backbone, layers)
    with torch.device("meta"):
        graph = trace(backbones.build_on_meta(backbone).eval(), nodes.values())
    outputs = outputs_of(graph)
    return [layer for layer, node in nodes.items() if is_relu(graph, outputs[node])]


def choose_device(name: str) -> str:
    """Return the named device; for "auto" CUDA, else Apple's MPS, else the CPU. Raise PipelineError if it is absent."""
    present = [kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available()] + ["cpu"]
    if name == "auto":
        return present[0]
    if name.split(":")[0] not in present:
        raise errors.PipelineError(f"Device {name!r} is not here. Choose from: auto, {', '.join(present)}.")
    return name


def rebuild_network(spec: CodesSpec, origin: str = "") -> FrozenNetwork:
    """Return the network that gives codes of that spec; raise PipelineError if it differs from the one in the spec.

    origin: where to take the weights from, if not from where the spec says; their values must be the same.
    """
    origin, transform = origin or spec.weights, spec.transform
    layers, pools = (text.split(LAYER_SEPARATOR) for text in (spec.layer, spec.pool))
    pool = {layer: pooling.AUTO if pool == pooling.NONE else pool for layer, pool in zip(layers, pools, strict=True)}
    framing = Framing(transform.size, transform.resize, transform.fit, transform.views, transform.max_value)
    network = FrozenNetwork(spec.backbone, layers, origin, pool, framing, spec.relu)
    network = network.at(spec.precision, spec.dtype, transform.decoder)
    expected = {field: value for field, value in spec.to_dict().items() if field != "weights"}
    if differences := spec_differences(join_specs(list(network.specs.values())), expected):
        raise errors.PipelineError(
            f"{spec.backbone} with the weights {origin!r} is not the network that gave the codes: "
            f"{'; '.join(differences)}. Name the weights of that time with --weights, or extract and train again.",
            fix=[errors.Fix("extract", extract_settings(spec.to_dict())), errors.Fix("classify")],
        )
    return network
