"""A network that can be trained: a backbone up to a layer, frozen up to another, and a head on its codes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TypedDict

import torch
import torch.fx
from torch import nn

from pipeline import errors
from pipeline.codes.spec import CodesSpec, extract_settings, spec_differences
from pipeline.finetuning import recipes
from pipeline.finetuning.head import Head
from pipeline.images.transforms import Transform
from pipeline.networks import backbones, layer_nodes, pooling
from pipeline.networks.frozen import PRECISIONS
from pipeline.networks.graph import channels_last, cut_graph, fold_batch_norms, keep_nodes

BatchNorm = nn.modules.batchnorm._BatchNorm


HEADS = HEAD, SOURCE_HEAD = ("head", "source head")
"""The names of the optimiser's groups that are trained in the phase of the head too."""


class ParameterGroup(TypedDict):
    """A group of the optimiser: parameters with one learning rate and one weight decay.

    name: one of `HEADS`, or the layer; lr: the current rate; initial_lr: the rate before the schedule.
    """

    name: str
    params: list[nn.Parameter]
    lr: float
    initial_lr: float
    weight_decay: float


class TunableNetwork(nn.Module):
    """A network that maps images to logits; its backbone is trained from the layer `unfreeze` on, or not at all.

    transform: what its images go through; frozen: names of the tensors and modules of the backbone that never change;
    layers: {layer: names of the tensors and modules that it needs and no layer before it does}, from the input on.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: CodesSpec, head: Head, unfreeze: str, origin: str = "") -> None:
        super().__init__()
        backbone = backbones.get(spec.backbone)
        model, native = backbones.load(backbone, origin or spec.weights, {spec.node})
        self.transform = replace(native, max_value=spec.transform.max_value)
        validate_transform(spec, self.transform)
        self.loaded_state = {name: value.clone() for name, value in model.state_dict().items()}
        nodes = layers_until(backbone, spec.layer)
        start = {} if unfreeze in ("none", "all") else layer_nodes.find_nodes(backbone, [unfreeze])
        validate_unfreeze(backbone, unfreeze, spec.layer)
        graph = cut_graph(model, {*nodes.values(), *start.values()})
        self.layout = layer_nodes.node_layouts(backbone, layer_nodes.node_shapes(backbone, [spec.node]))[spec.node]
        self.node, self.pool, self.precision = spec.node, spec.pool, spec.precision
        self.graph = channels_last(keep_nodes(graph, {spec.node}))  # faster on all devices
        self.layers = dict(_names_by_layer(graph, nodes))
        self.frozen = _names_before(graph, nodes, unfreeze, start)
        self.head = head
        self.register_buffer("mean", torch.tensor(self.transform.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(self.transform.std).view(1, 3, 1, 1))
        if unfreeze != "none" and not self.trainable():
            raise errors.PipelineError(
                f"There is nothing to train from {unfreeze} to {spec.layer}. Take an earlier layer."
            )
        self.train_backbone(False)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the backbone's parameters that are not frozen, by name."""
        return {name: value for name, value in self.graph.named_parameters() if name not in self.frozen}

    def train_backbone(self, enabled: bool) -> None:
        """Train the trainable part of the backbone together with the head, or the head alone."""
        self.backbone_enabled = enabled
        self.graph.requires_grad_(False)
        for value in self.trainable().values():
            value.requires_grad_(enabled)

    def set_mode(self, training: bool, batch_norm: str) -> None:
        """Switch dropout on in all that is trained, and batch norm to the statistics of the batch if it is "trained".

        All that is frozen works as in evaluation, in contrast to `train()`, which would reach the whole network.
        """
        self.head.train(training)
        for name, module in self.graph.named_modules():
            fixed = name in self.frozen or (batch_norm == "frozen" and isinstance(module, BatchNorm))
            module.training = training and self.backbone_enabled and not fixed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, classes) logits of (n, 3, side, side) uint8 images on the network's device."""
        return self._logits(self.graph, images)

    def codes(self, images: torch.Tensor) -> torch.Tensor:
        """Return the (n, width) codes that the head reads, of images as `forward` takes them."""
        return self._codes(self.graph, images)

    def evaluator(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return `forward` with the current weights, in the precision of the codes.

        Its logits are those that the head gives for codes extracted now.
        """
        if self.precision == "fp32":
            return self
        dtype = PRECISIONS[self.precision]
        graph = channels_last(fold_batch_norms(copy.deepcopy(self.graph).eval())).to(dtype)
        return partial(self._logits, graph, dtype=dtype)

    def _logits(
        self, graph: torch.fx.GraphModule, images: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        return self.head(self._codes(graph, images, dtype))

    def _codes(
        self, graph: torch.fx.GraphModule, images: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        normalised = (images.contiguous(memory_format=torch.channels_last) / 255 - self.mean) / self.std
        output = graph(normalised.to(dtype))[self.node]
        values = output if dtype == torch.float32 else output.float()
        return pooling.pool_output(values, self.pool, self.layout)

    def parameter_groups(self, recipe: recipes.Recipe) -> list[ParameterGroup]:
        """Return the optimiser's groups of parameters with their rates: the head, then the layers from the last on."""
        groups = groups_of_head(HEAD, self.head, recipe)
        trainable, rate = self.trainable(), recipe.lr_backbone
        for layer, names in reversed(self.layers.items()):
            parameters = {name: value for name, value in trainable.items() if name in names}
            groups += _split_by_decay(layer, parameters, rate, recipe)
            rate *= recipe.lr_decay if parameters else 1
        return groups

    def mutable_state(self) -> dict[str, torch.Tensor]:
        """Return the tensors, buffers included, that training may change."""
        backbone = {
            f"graph.{name}": value for name, value in self.graph.state_dict().items() if name not in self.frozen
        }
        return backbone | {f"head.{name}": value for name, value in self.head.state_dict().items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy the values of an earlier `mutable_state` into the network."""
        with torch.no_grad():
            for name, value in self.mutable_state().items():
                value.copy_(state[name])

    def backbone_state(self) -> dict[str, torch.Tensor]:
        """Return the state dict of the whole backbone; what follows the layer is as it was loaded."""
        state = {name: value.detach().cpu() for name, value in self.graph.state_dict().items()}
        return self.loaded_state | {name: value for name, value in state.items() if name in self.loaded_state}


class SourceNetwork(nn.Module):
    """The trunk of the target's network under the head of the source."""

    def __init__(self, trunk: TunableNetwork, head: Head) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, k) logits of (n, 3, side, side) uint8 images."""
        logits: torch.Tensor = self.head(self.trunk.codes(images))
        return logits


TUNED_ON = "Fine-tuning uses the transform of the weights, one view, and the output of the ReLU"
"""What fine-tuning knows no other way of."""


def validate_transform(spec: CodesSpec, transform: Transform) -> None:
    """Refuse codes of images that were transformed in another way than the weights expect, or from before the ReLU."""
    usual = usual_spec(spec, transform)
    if differences := spec_differences(spec, usual.to_dict()):
        raise errors.PipelineError(
            f"{TUNED_ON}, but in the codes {'; '.join(differences)}. Extract and classify without these options first.",
            fix=[errors.Fix("extract", extract_settings(usual.to_dict())), errors.Fix("classify")],
        )


def usual_spec(spec: CodesSpec, transform: Transform) -> CodesSpec:
    """Return the spec of codes that fine-tuning can start from, of the same network; transform: of its weights."""
    return replace(spec, transform=replace(transform, decoder=spec.transform.decoder), relu="post")


def layers_until(backbone: backbones.Backbone, layer: str) -> dict[str, str]:
    """Return {layer: node} of a backbone's named layers from the input to `layer`, which may be a node."""
    nodes = layer_nodes.named_layers(backbone) | layer_nodes.find_nodes(backbone, [layer])
    order = layer_nodes.sort_layers(backbone, nodes)
    return {name: nodes[name] for name in order[: order.index(layer) + 1]}


def validate_unfreeze(backbone: backbones.Backbone, unfreeze: str, layer: str) -> None:
    """Refuse to train from a layer on that comes after the layer whose codes the head reads."""
    if unfreeze not in ("none", "all") and layer_nodes.sort_layers(backbone, [unfreeze, layer])[0] == layer != unfreeze:
        raise errors.PipelineError(
            f"{unfreeze} comes after {layer}, whose codes the head reads. Choose one before it, or a later --layer."
        )


def _names_by_layer(graph: torch.fx.GraphModule, nodes: Mapping[str, str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield each layer with the names of the tensors and modules that it needs and no layer before it does."""
    earlier: frozenset[str] = frozenset()
    for layer, node in nodes.items():
        needed = _names_needed(graph, node)
        yield layer, needed - earlier
        earlier |= needed


def _names_before(
    graph: torch.fx.GraphModule, nodes: Mapping[str, str], unfreeze: str, start: Mapping[str, str]
) -> frozenset[str]:
    """Return the names of all that comes before a layer: what the layer before it needs, or what its node reads."""
    if not start:
        return frozenset() if unfreeze == "all" else _names_needed(graph, [*nodes.values()][-1])
    if unfreeze in nodes and unfreeze != start[unfreeze]:
        place = [*nodes].index(unfreeze)
        return _names_needed(graph, [*nodes.values()][place - 1]) if place else frozenset()
    module = re.sub(r"_\d+$", "", start[unfreeze])
    return frozenset(name for name in _names_needed(graph, start[unfreeze]) if not f"{name}.".startswith(f"{module}."))


def _names_needed(graph: torch.fx.GraphModule, node: str) -> frozenset[str]:
    """Return the names of the tensors and modules that a node's output depends on."""
    kept = keep_nodes(graph, {node})
    return frozenset(kept.state_dict()) | {name for name, _ in kept.named_modules() if name}


def groups_of_head(name: str, head: Head, recipe: recipes.Recipe) -> list[ParameterGroup]:
    """Return the optimiser's groups of a head's parameters; name: one of `HEADS`."""
    return _split_by_decay(name, dict(head.named_parameters()), recipe.lr_head, recipe)


def _split_by_decay(
    name: str, parameters: Mapping[str, nn.Parameter], rate: float, recipe: recipes.Recipe
) -> list[ParameterGroup]:
    """Return one or two groups: the weights, and, unless all parameters decay, the biases and norms without decay."""
    weights = [value for value in parameters.values() if recipe.decay_all or value.ndim >= 2]
    others = [value for value in parameters.values() if not recipe.decay_all and value.ndim < 2]
    return [
        {"name": name, "params": values, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for values, decay in ((weights, recipe.weight_decay), (others, 0.0))
        if values
    ]
