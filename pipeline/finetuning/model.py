"""A network that can be trained: a backbone up to a layer, its frozen part and the rest, and a head on its codes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.fx
from torch import nn

from pipeline import errors
from pipeline.codes.spec import CodesSpec, spec_differences
from pipeline.finetuning import recipes
from pipeline.finetuning.head import Head
from pipeline.networks import backbones, pooling
from pipeline.networks.frozen import PRECISIONS
from pipeline.networks.graph import cut_graph, fold_batch_norms, keep_nodes

BatchNorm = nn.modules.batchnorm._BatchNorm


class TunableNetwork(nn.Module):
    """Pictures in, scores of the classes out; the backbone is trained from the layer `unfreeze` on, or not at all.

    transform: what its pictures go through; frozen: names of the tensors and modules of the backbone that stay as they
    are; layers: {layer: names of what it needs and no layer before it does}, from the input on.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: CodesSpec, head: Head, unfreeze: str, origin: str = "") -> None:
        super().__init__()
        backbone = backbones.get(spec.backbone)
        model, self.transform = backbones.load(backbone, origin or spec.weights)
        transform = replace(self.transform, decoder=spec.transform.decoder)
        if found := spec_differences(spec, replace(spec, transform=transform, relu="post").to_dict()):
            raise errors.PipelineError(
                f"Fine-tuning shows a network what its weights were made for, one view after the ReLU, but in the "
                f"codes {'; '.join(found)}. Extract and classify without these options first."
            )
        self.whole = {name: value.clone() for name, value in model.state_dict().items()}
        nodes = layers_until(backbone, spec.layer)
        start = {} if unfreeze in ("none", "all") else backbones.find_nodes(backbone, [unfreeze])
        validate_unfreeze(backbone, unfreeze, spec.layer)
        every = cut_graph(model, {*nodes.values(), *start.values()})
        self.node, self.pool, self.precision = spec.node, spec.pool, spec.precision
        self.graph = keep_nodes(every, {spec.node}).to(memory_format=torch.channels_last)  # faster on all devices
        self.layers = dict(_steps(every, nodes))
        self.frozen = _before(every, nodes, unfreeze, start)
        self.head = head
        self.register_buffer("mean", torch.tensor(self.transform.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(self.transform.std).view(1, 3, 1, 1))
        if unfreeze != "none" and not self.thawed():
            raise errors.PipelineError(
                f"There is nothing to train from {unfreeze} to {spec.layer}. Take an earlier layer."
            )
        self.open_backbone(False)

    def thawed(self) -> dict[str, nn.Parameter]:
        """Return the backbone's parameters that are not frozen, by name."""
        return {name: value for name, value in self.graph.named_parameters() if name not in self.frozen}

    def open_backbone(self, opened: bool) -> None:
        """Let the part of the backbone that is not frozen be trained, or the head alone."""
        self.opened = opened
        self.graph.requires_grad_(False)
        for value in self.thawed().values():
            value.requires_grad_(opened)

    def set_mode(self, training: bool, batch_norm: str) -> None:
        """Switch dropout on in what is trained, and batch norm to the statistics of the batch if that is trained.

        What is frozen always works as in evaluation. (`train()` would reach all of it.)
        """
        self.head.train(training)
        for name, module in self.graph.named_modules():
            still = name in self.frozen or (batch_norm == "frozen" and isinstance(module, BatchNorm))
            module.training = training and self.opened and not still

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return (n, classes) scores of (n, 3, side, side) uint8 pictures on the network's device."""
        return self._scores(self.graph, pictures)

    def evaluator(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return `forward` as it stands, in the precision of the codes: what the head gives of codes extracted now."""
        if self.precision == "fp32":
            return self
        kind = PRECISIONS[self.precision]
        graph = fold_batch_norms(copy.deepcopy(self.graph).eval()).to(memory_format=torch.channels_last).to(kind)
        return partial(self._scores, graph, kind=kind)

    def _scores(
        self, graph: torch.fx.GraphModule, pictures: torch.Tensor, kind: torch.dtype = torch.float32
    ) -> torch.Tensor:
        normalised = (pictures.contiguous(memory_format=torch.channels_last) / 255 - self.mean) / self.std
        output = graph(normalised.to(kind))[self.node]
        return self.head(pooling.pool_maps(output if kind == torch.float32 else output.float(), self.pool))

    def groups(self, recipe: recipes.Recipe) -> list[dict[str, Any]]:
        """Return the optimiser's groups of parameters, each with its rate: the head, then layer by layer down."""
        found = _split("head", dict(self.head.named_parameters()), recipe.lr_head, recipe)
        thawed, rate = self.thawed(), recipe.lr_backbone
        for layer, names in reversed(self.layers.items()):
            some = {name: value for name, value in thawed.items() if name in names}
            found += _split(layer, some, rate, recipe)
            rate *= recipe.lr_decay if some else 1
        return found

    def changing(self) -> dict[str, torch.Tensor]:
        """Return the tensors, buffers included, that training may change."""
        backbone = {
            f"graph.{name}": value for name, value in self.graph.state_dict().items() if name not in self.frozen
        }
        return backbone | {f"head.{name}": value for name, value in self.head.state_dict().items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Set the tensors that `changing` returned to what they were then."""
        with torch.no_grad():
            for name, value in self.changing().items():
                value.copy_(state[name])

    def backbone_state(self) -> dict[str, torch.Tensor]:
        """Return the whole backbone's state dict, what follows the layer as it was loaded."""
        return self.whole | {name: value.detach().cpu() for name, value in self.graph.state_dict().items()}


def layers_until(backbone: backbones.Backbone, layer: str) -> dict[str, str]:
    """Return {layer: node} of a backbone's named layers from the input to `layer`, which may be a node."""
    nodes = backbones.named_layers(backbone) | backbones.find_nodes(backbone, [layer])
    order = backbones.sort_layers(backbone, nodes)
    return {name: nodes[name] for name in order[: order.index(layer) + 1]}


def validate_unfreeze(backbone: backbones.Backbone, unfreeze: str, layer: str) -> None:
    """Refuse to train from a layer on that comes after the one whose codes the head reads."""
    if unfreeze not in ("none", "all") and backbones.sort_layers(backbone, [unfreeze, layer])[0] == layer != unfreeze:
        raise errors.PipelineError(
            f"{unfreeze} comes after {layer}, whose codes the head reads. Choose one before it, or a later --layer."
        )


def _steps(every: torch.fx.GraphModule, nodes: dict[str, str]) -> Iterator[tuple[str, frozenset[str]]]:
    known: frozenset[str] = frozenset()
    for layer, node in nodes.items():
        needed = _needs(every, node)
        yield layer, needed - known
        known |= needed


def _before(every: torch.fx.GraphModule, nodes: dict[str, str], unfreeze: str, start: dict[str, str]) -> frozenset[str]:
    """Return the names of what comes before a layer: what the layer before it needs, or what its node reads."""
    if not start:
        return frozenset() if unfreeze == "all" else _needs(every, [*nodes.values()][-1])
    if unfreeze in nodes and unfreeze != start[unfreeze]:
        place = [*nodes].index(unfreeze)
        return _needs(every, [*nodes.values()][place - 1]) if place else frozenset()
    own = re.sub(r"_\d+$", "", start[unfreeze])
    return frozenset(name for name in _needs(every, start[unfreeze]) if not f"{name}.".startswith(f"{own}."))


def _needs(every: torch.fx.GraphModule, node: str) -> frozenset[str]:
    """Return the names of the tensors and modules that a node's output depends on."""
    kept = keep_nodes(every, {node})
    return frozenset(kept.state_dict()) | {name for name, _ in kept.named_modules() if name}


def _split(name: str, some: dict[str, nn.Parameter], rate: float, recipe: recipes.Recipe) -> list[dict[str, Any]]:
    """Return parameters as one or two groups: weights, and what is not to decay (biases and norms) unless all is."""
    flat = [] if recipe.decay_all else [value for value in some.values() if value.ndim < 2]
    rest = [value for value in some.values() if recipe.decay_all or value.ndim >= 2]
    both = ((rest, recipe.weight_decay), (flat, 0.0))
    return [
        {"name": name, "params": values, "lr": rate, "base": rate, "weight_decay": decay}
        for values, decay in both
        if values
    ]
