"""The frozen network: a backbone cut after its deepest asked layer, pictures in, codes out."""

from __future__ import annotations

import copy
import operator
from collections import Counter

import torch
import torch.fx
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import create_feature_extractor

from pipeline import errors

OUT_OF_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}


def cut_graph(model: nn.Module, nodes: set[str], relu: str = "post") -> torch.fx.GraphModule:
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
        _take_relu_inputs(graph)
    graph.recompile()
    return graph


def _take_relu_inputs(module: torch.fx.GraphModule) -> None:
    """Let a cut network give what goes into its ReLUs, instead of what comes out of them."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    for name, node in output.args[0].items():
        if not is_relu(module, node):
            raise errors.PipelineError(
                f"{name} is no ReLU, so there is nothing before it. Leave --relu pre out, or the layer."
            )
    output.args = ({name: node.args[0] for name, node in output.args[0].items()},)
    module.graph.eliminate_dead_code()


def is_relu(module: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), (nn.ReLU, nn.ReLU6))
    return node.target in (torch.relu, nn.functional.relu, "relu")


def fold_batch_norms(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
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


def keep_nodes(module: torch.fx.GraphModule, nodes: set[str]) -> torch.fx.GraphModule:
    """Return a copy of a cut network that gives some of its nodes and computes no more than they need."""
    graph = copy.deepcopy(module.graph)
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ({node: value for node, value in output.args[0].items() if node in nodes},)
    kept = torch.fx.GraphModule(module, graph)
    kept.graph.eliminate_dead_code()
    kept.recompile()
    kept.delete_all_unused_submodules()
    return kept.eval()
