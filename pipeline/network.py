"""The frozen network: a backbone cut after its deepest asked layer, pictures in, codes out."""

from __future__ import annotations

import copy
import operator
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, Self

import numpy as np
import torch
import torch.fx
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import create_feature_extractor

from pipeline import backbones, errors, images, views, weights
from pipeline.codes import PLUS, CodesSpec, differences, join_specs
from pipeline.errors import PipelineError
from pipeline.images import Framing

POOLS = "avg, max, flatten, or avgN and maxN for a grid of N×N cells"
AS_TRAINED = Framing()
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What the forward pass computes in, by the name that stands in the spec."""

OUT_OF_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}


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
        framing: Framing = AS_TRAINED,
        relu: str = "post",
    ) -> None:
        super().__init__()
        backbone = backbones.get(name)
        self.nodes = backbones.find_nodes(backbone, layers)
        size = framing.of(backbones.native_transform(backbone)).size
        shapes = backbones.node_shapes(backbone, self.nodes.values(), size)
        self.pools = {layer: pool_for(shapes.get(node, ()), pool, layer) for layer, node in self.nodes.items()}
        self.widths = {layer: width(shapes[node], self.pools[layer]) for layer, node in self.nodes.items()}
        model, native = backbones.load(backbone, origin)
        self.transform, self.relu = framing.of(native), relu
        self.widths = {layer: views.count(framing.views) * width for layer, width in self.widths.items()}
        self.specs = self._specs(name, origin, weights.state_sha256(model))
        self.precision, self.dtype = "fp32", torch.float32
        graph = cut(backbones.at_size(backbone, model, size), set(self.nodes.values()), relu)
        self.graph = fold(graph).to(memory_format=torch.channels_last)
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
                **asdict(self.transform),
            )
            for layer, node in self.nodes.items()
        }

    def only(self, layers: Sequence[str]) -> Self:
        """Return this network, cut once more to give some of its layers; the weights are shared."""
        if list(layers) == list(self.nodes):
            return self
        nodes = {layer: self.nodes[layer] for layer in layers}
        return self._with(keep(self.graph, set(nodes.values())), nodes=nodes)

    def at(self, precision: str = "", dtype: str = "", decoder: str = "") -> Self:
        """Return this network with another precision of its forward pass, type of its codes, or decoder of JPEGs."""
        spec = next(iter(self.specs.values()))
        precision, dtype = precision or spec.precision, dtype or spec.dtype
        transform = replace(self.transform, decoder=decoder or spec.decoder)
        if transform.decoder not in images.DECODERS:
            raise errors.unknown("decoder", transform.decoder, images.DECODERS)
        graph = self.graph
        if precision != self.precision:
            graph = copy.deepcopy(graph).to(PRECISIONS[precision]).eval()  # a copied graph is in training mode
        specs = {
            layer: replace(spec, precision=precision, dtype=dtype, decoder=transform.decoder)
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
        pooled = {layer: pool_maps(outputs[node].float(), self.pools[layer]) for layer, node in self.nodes.items()}
        return {layer: values.to(self.dtype) for layer, values in pooled.items()}

    @torch.inference_mode()
    def codes(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """Return {layer: (n, width)} of (n, 3, crop, crop) uint8 pictures, from and to ordinary memory."""
        outputs = self(torch.from_numpy(pictures).to(self.mean.device))
        return {layer: values.cpu().numpy() for layer, values in outputs.items()}


def cut(model: nn.Module, nodes: set[str], relu: str = "post") -> torch.fx.GraphModule:
    """Return the part of a network that the graph nodes need; it maps a batch to {node: output}.

    relu: "post", or "pre" for what goes into each node, which must be a ReLU. No operation works in place: a ReLU that
    did would change what the node before it returned.
    """
    graph = create_feature_extractor(model.eval(), {node: node for node in nodes}).eval()
    for module in graph.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    for node in graph.graph.nodes:
        if "inplace" in node.kwargs:
            node.kwargs = node.kwargs | {"inplace": False}
        node.target = OUT_OF_PLACE.get(node.target, node.target)
    if relu == "pre":
        _step_before(graph)
    graph.recompile()
    return graph


def _step_before(module: torch.fx.GraphModule) -> None:
    """Let a cut network give what goes into its ReLUs, instead of what comes out of them."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    for name, node in output.args[0].items():
        if not _is_relu(module, node):
            raise PipelineError(
                f"{name} is no ReLU, so there is nothing before it. Leave --relu pre out, or the layer."
            )
    output.args = ({name: node.args[0] for name, node in output.args[0].items()},)
    module.graph.eliminate_dead_code()


def _is_relu(module: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), (nn.ReLU, nn.ReLU6))
    return node.target in (torch.relu, nn.functional.relu, "relu")


def relu_layers(name: str) -> list[str]:
    """Return the friendly names of a backbone's layers that end in a ReLU, in order."""
    backbone = backbones.get(name)
    nodes = {layer: node for layer, (node, _) in backbones.layer_shapes(backbone).items()}
    with torch.device("meta"):
        graph = create_feature_extractor(backbone.build().eval(), {node: node for node in nodes.values()})
    output = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    return [layer for layer, node in nodes.items() if _is_relu(graph, output[node])]


def fold(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Merge each batch norm into the convolution before it, unless that is wanted or used by anything else as well."""
    calls = Counter(node.target for node in module.graph.nodes if node.op == "call_module")
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        before = node.args[0] if node.op == "call_module" else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        (norm, norm_name), (convolution, name) = ((modules[str(it.target)], str(it.target)) for it in (node, before))
        once = calls[name] == calls[norm_name] == 1
        if once and isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d):
            module.set_submodule(name, fuse_conv_bn_eval(convolution, norm))
            module.set_submodule(norm_name, nn.Identity())
    return module


def keep(module: torch.fx.GraphModule, nodes: set[str]) -> torch.fx.GraphModule:
    """Return a copy of a cut network that gives some of its nodes and computes no more than they need."""
    graph = copy.deepcopy(module.graph)
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ({node: value for node, value in output.args[0].items() if node in nodes},)
    kept = torch.fx.GraphModule(module, graph)
    kept.graph.eliminate_dead_code()
    kept.recompile()
    kept.delete_all_unused_submodules()
    return kept.eval()


def pool_for(shape: tuple[int, ...], pool: str, layer: str) -> str:
    """Return the pooling that applies to a layer of that shape: "none" for a vector."""
    if not re.fullmatch(r"(avg|max)([1-9]\d?)?|flatten", pool):
        raise PipelineError(f"Unknown pooling {pool!r}. Choose from: {POOLS}.")
    if len(shape) not in (1, 3):
        raise PipelineError(f"Layer {layer} gives neither vectors nor maps (shape {shape}). Choose another.")
    return "none" if len(shape) == 1 else pool


def pool_maps(output: torch.Tensor, pool: str) -> torch.Tensor:
    """Turn (n, c, h, w) maps into (n, c × cells) vectors by a pooling's name; "none" leaves (n, d) vectors alone."""
    if pool in ("none", "flatten"):
        return output.flatten(1)
    kind, cells = pool[:3], int(pool[3:] or 1)
    if max(output.shape[2:]) <= cells:
        return output.flatten(1)
    pooled = nn.functional.adaptive_avg_pool2d if kind == "avg" else nn.functional.adaptive_max_pool2d
    return pooled(output, cells).flatten(1)


def width(shape: tuple[int, ...], pool: str) -> int:
    """Return how many numbers a pooling makes of one image's output of that shape."""
    return pool_maps(torch.empty(1, *shape, device="meta"), pool if len(shape) == 3 else "none").shape[1]


def choose_device(name: str) -> str:
    """Return the device asked for, if it is there; for "auto" CUDA, else Apple's, else the processor."""
    present = [kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available()] + ["cpu"]
    if name == "auto":
        return present[0]
    if name.split(":")[0] not in present:
        raise PipelineError(f"Device {name!r} is not here. Choose from: auto, {', '.join(present)}.")
    return name


def rebuild(spec: CodesSpec, origin: str = "") -> FrozenNetwork:
    """Return the network that gives codes of that spec; refuse one that differs, whatever its weights are called.

    origin: where its weights are to be had, if not where the spec's came from.
    """
    name = origin or spec.weights
    pool = next((pool for pool in spec.pool.split(PLUS) if pool != "none"), "avg")
    framing = Framing((spec.crop, spec.crop_width or spec.crop), spec.resize, spec.fit, spec.views)
    network = FrozenNetwork(spec.backbone, spec.layer.split(PLUS), name, pool, framing, spec.relu)
    network = network.at(spec.precision, spec.dtype, spec.decoder)
    expected = {key: value for key, value in asdict(spec).items() if key != "weights"}
    if found := differences(join_specs(list(network.specs.values())), expected):
        raise PipelineError(
            f"{spec.backbone} with the weights {name!r} is not the network that gave the codes: {'; '.join(found)}. "
            "Give the weights of then with --weights, or run pipeline.extract and pipeline.classify again."
        )
    return network
