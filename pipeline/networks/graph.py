"""The graph of a network: cut it after some nodes, fold its batch norms, keep a part of it."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.fx
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from pipeline import errors

OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
}


def cut_graph(model: nn.Module, nodes: set[str], relu: str = "post") -> torch.fx.GraphModule:
    """Return the part of a network that some graph nodes need; it maps a batch to {node: output}.

    relu: "post" for the nodes' outputs, or "pre" for the inputs of the nodes, which must be ReLUs. No operation works
    in place: an in-place ReLU would change the output of the node before it. Raises PipelineError if relu is "pre" and
    a node is no ReLU.
    """
    graph = trace(model.eval(), nodes).eval()
    for module in graph.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]  # torch declares tensors and modules alone
    for node in graph.graph.nodes:
        if "inplace" in node.kwargs:
            node.kwargs = node.kwargs | {"inplace": False}
        node.target = OUT_OF_PLACE.get(node.target, node.target)
    if relu == "pre":
        _return_relu_inputs(graph)
    graph.recompile()
    return graph


def trace(model: nn.Module, nodes: Iterable[str]) -> torch.fx.GraphModule:
    """Return the part of a network that some graph nodes need, as it was traced; it maps a batch to {node: output}."""
    graph: torch.fx.GraphModule = create_feature_extractor(
        model, {node: node for node in nodes}, tracer_kwargs=_tracer_options(model), suppress_diff_warning=True
    )
    return graph


def node_names(model: nn.Module) -> list[str]:
    """Return the names of a network's graph nodes in eval mode, in the order of computation, without the input."""
    names = get_graph_node_names(model, tracer_kwargs=_tracer_options(model), suppress_diff_warning=True)[1]
    return list(names[1:])


def _tracer_options(model: nn.Module) -> dict[str, list[Any]]:
    """Return which modules and functions become single nodes: those of timm's networks that branch on sizes."""
    if not type(model).__module__.startswith("timm."):
        return {}
    from timm.layers import get_notrace_functions, get_notrace_modules

    return {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}


def outputs_of(module: torch.fx.GraphModule) -> dict[str, torch.fx.Node]:
    """Return the nodes whose outputs a cut network returns, by name."""
    return cast(dict[str, torch.fx.Node], module.graph.output_node().args[0])


def _return_relu_inputs(module: torch.fx.GraphModule) -> None:
    """Let a cut network return the inputs of its ReLUs instead of their outputs."""
    relus = outputs_of(module)
    for name, node in relus.items():
        if not is_relu(module, node):
            raise errors.PipelineError(
                f"{name} is no ReLU, so there is nothing before it. Leave --relu pre out, or the layer."
            )
    module.graph.output_node().args = ({name: node.args[0] for name, node in relus.items()},)
    module.graph.eliminate_dead_code()


def is_relu(module: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Return whether a node of a network is a ReLU or ReLU6, as a module or as a function."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), (nn.ReLU, nn.ReLU6))
    return node.target in (torch.relu, nn.functional.relu, "relu")


KEEP_SIGN_MODULES = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.Dropout, nn.Identity, nn.Flatten),
)
KEEP_SIGN_FUNCTIONS = (
    *(torch.flatten, torch.cat, torch.transpose, operator.add, operator.getitem, nn.functional.dropout),
    *(nn.functional.max_pool2d, nn.functional.avg_pool2d, nn.functional.adaptive_avg_pool2d),
    *("flatten", "mean", "view", "reshape", "transpose", "permute", "contiguous", "squeeze", "chunk"),
)
"""Operations whose output has no negative value where their inputs, the tensors, have none."""


RELUS = (nn.ReLU, nn.ReLU6)
ACTIVATIONS = (*RELUS, nn.Hardswish, nn.SiLU)


def follows(module: torch.fx.GraphModule, node: torch.fx.Node, kinds: tuple[type[nn.Module], ...] = RELUS) -> bool:
    """Return whether all that a node's output is made of went through an activation of some kinds, and nothing more.

    After a ReLU, such an output has no negative value.
    """
    if is_relu(module, node):
        return True
    if node.op == "call_module":
        submodule = module.get_submodule(str(node.target))
        if isinstance(submodule, kinds) or isinstance(_last_step(submodule), kinds):
            return True
        keeps = isinstance(submodule, KEEP_SIGN_MODULES)
    else:
        keeps = node.target in KEEP_SIGN_FUNCTIONS
    inputs = node.all_input_nodes if node.target in (torch.cat, operator.add) else node.all_input_nodes[:1]
    return keeps and all(follows(module, before, kinds) for before in inputs)


def _last_step(module: nn.Module) -> object:
    """Return what a module that is one node ends in: the last of a sequence, the activation of timm's batch norms."""
    return module[-1] if isinstance(module, nn.Sequential) and len(module) else getattr(module, "act", None)


def cut_vertices(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    """Return the nodes that all data flow passes through, in order: the ends of blocks, and all of a plain chain."""
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    place = {node: number for number, node in enumerate(nodes)}
    found, furthest = [], 0
    for number, node in enumerate(nodes):
        if furthest <= number:
            found.append(node)
        furthest = max([furthest, *(place[user] for user in node.users if user in place)])
    return found


def fold_batch_norms(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Merge each batch norm into the convolution before it, in place, and return the network.

    A batch norm stays where another node, or the result, uses the convolution's output, or where one of the two
    modules is called several times. Subclasses stay too: they may do more, as timm's BatchNormAct2d, which contains
    the activation, and ScaledStdConv2d, which normalises its weights.
    """
    calls = Counter(node.target for node in module.graph.nodes if node.op == "call_module")
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        before = node.args[0] if node.op == "call_module" else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        name, norm_name = str(before.target), str(node.target)
        convolution, norm = modules[name], modules[norm_name]
        called_once = calls[name] == calls[norm_name] == 1
        if called_once and type(norm) is nn.BatchNorm2d and type(convolution) is nn.Conv2d:
            module.set_submodule(name, fuse_conv_bn_eval(convolution, norm))
            module.set_submodule(norm_name, nn.Identity())
    return module


def channels_last(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Lay the weights of convolutions out channels last, in place, which is faster; return the network."""
    for submodule in module.modules():
        if isinstance(submodule, nn.Conv2d):  # tensors of five axes, as Swin's masks, have no such layout
            submodule.to(memory_format=torch.channels_last)
    return module


def keep_nodes(module: torch.fx.GraphModule, nodes: set[str]) -> torch.fx.GraphModule:
    """Return a copy of a cut network that returns some of its nodes and computes no more than they need.

    The weights are shared with the network.
    """
    kept = torch.fx.GraphModule(module, copy.deepcopy(module.graph))
    kept.graph.output_node().args = ({name: node for name, node in outputs_of(kept).items() if name in nodes},)
    kept.graph.eliminate_dead_code()
    kept.recompile()
    kept.delete_all_unused_submodules()
    return kept.eval()
