"""The layers of a backbone: which graph node each of them is, and the shape and layout of what it gives."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from functools import lru_cache

import torch
from torch import nn

from pipeline import errors
from pipeline.images import views
from pipeline.images.transforms import Transform
from pipeline.networks import pooling, timm_models
from pipeline.networks.backbones import Backbone, build_on_meta, head_module, n_scores, native_transform
from pipeline.networks.fully_convolutional import FullyConvolutional
from pipeline.networks.graph import node_names, trace
from pipeline.paths import LOGITS


def at_size(backbone: Backbone, model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Return a backbone's network as it runs at a (height, width); at other sizes its head becomes convolutions."""
    native = native_transform(backbone)
    if size == native.size or not backbone.convolutional_head:
        return model
    return FullyConvolutional(model, native.crop)


@lru_cache(maxsize=8)
def _nodes_and_layers(backbone: Backbone) -> tuple[list[str], dict[str, str]]:
    """Return the graph nodes, and {friendly name: node}, both in the order of computation."""
    model = build_on_meta(backbone)
    try:
        nodes = node_names(model)
    except Exception as error:  # what torch.fx raises depends on the network's own code
        raise _untraceable(backbone.name) from error
    order = {node: number for number, node in enumerate(nodes)}
    named = backbone.name_layers(model, nodes)
    return nodes, dict(sorted(named.items(), key=lambda layer: order[layer[1]]))


def _untraceable(name: str) -> errors.PipelineError:
    similar = timm_models.relatives(name) or ["resnet50", "timm/vit_small_patch14_dinov2"]
    return errors.PipelineError(
        f"The layers of {name} cannot be cut, because torch.fx cannot trace it. Choose another backbone, for instance "
        f"{', '.join(similar)} or efficientnet_lite0."
    )


def find_nodes(backbone: Backbone, layers: Iterable[str]) -> dict[str, str]:
    """Return {layer: graph node} of layers given by friendly names or as nodes; raise PipelineError for others."""
    nodes, friendly = _nodes_and_layers(backbone)
    result = {layer: _node_of(backbone, layer) for layer in layers}
    for layer, node in result.items():
        if node not in nodes:
            raise errors.unknown("layer", layer, friendly or nodes, where=backbone.name)
    return result


def _node_of(backbone: Backbone, layer: str) -> str:
    """Return the node of a layer; of the network's own scores that of its head, and any other name as it is."""
    friendly = named_layers(backbone).get(layer)
    return friendly or (layer == LOGITS and head_node(backbone)) or layer


def head_node(backbone: Backbone) -> str | None:
    """Return the node that gives the scores of the network's own classes; None if it has none, or gives no vector."""
    last = _nodes_and_layers(backbone)[0][-1]
    model = build_on_meta(backbone)
    if n_scores(model.get_submodule(head_module(backbone))) is None:  # built without its head
        return None
    return last if len(node_shapes(backbone, [last]).get(last, ())) == 1 else None


def sort_layers(backbone: Backbone, layers: Iterable[str]) -> list[str]:
    """Return layers in the order of computation; several layers joined by + count as the last of them."""
    order = {node: number for number, node in enumerate(_nodes_and_layers(backbone)[0])}
    return sorted(layers, key=lambda layer: order[_node_of(backbone, layer.split("+")[-1])])


def named_layers(backbone: Backbone) -> dict[str, str]:
    """Return {layer: node} of a backbone's friendly names, from the input on; {} where it has none."""
    return _nodes_and_layers(backbone)[1]


def layer_shapes(backbone: Backbone) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return {layer: (node, shape for one image)} of all of a backbone's layers, without making its weights."""
    nodes, friendly = _nodes_and_layers(backbone)
    layers = friendly or {node: node for node in nodes}
    shapes = node_shapes(backbone, layers.values())
    return {layer: (node, shapes[node]) for layer, node in layers.items() if node in shapes}


def node_shapes(
    backbone: Backbone, nodes: Iterable[str], size: tuple[int, int] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each node's output for one image; nodes that give no tensor are left out.

    size: (height, width) of the image, by default the network's own. Raises PipelineError if the network cannot run at
    that size.
    """
    size, native = size or native_transform(backbone).size, native_transform(backbone).size
    wanted = tuple(dict.fromkeys(nodes))
    shapes = _shapes_at(backbone, wanted, size)
    if shapes is None and size == native:
        raise _untraceable(backbone.name)
    if shapes is None:
        raise errors.PipelineError(_explain_size(backbone.name, _graph_at(backbone, wanted, size), size, native))
    return dict(shapes)


@lru_cache(maxsize=8)
def _shapes_at(
    backbone: Backbone, nodes: tuple[str, ...], size: tuple[int, int]
) -> Mapping[str, tuple[int, ...]] | None:
    """Return the shapes as `node_shapes` does; None where the network cannot run at that size."""
    outputs = _outputs(_graph_at(backbone, nodes, size), size)
    if outputs is None:
        return None
    return {node: tuple(output.shape[1:]) for node, output in outputs.items() if isinstance(output, torch.Tensor)}


def _graph_at(backbone: Backbone, nodes: Iterable[str], size: tuple[int, int]) -> nn.Module:
    """Return a network without weights, as it runs at a size, that gives the outputs of some nodes."""
    with torch.device("meta"):
        return trace(at_size(backbone, build_on_meta(backbone).eval(), size), nodes)


def unsuitable_layers(
    backbone: Backbone, layers: Sequence[str], transform: Transform, pool: str, widest: int
) -> dict[str, str]:
    """Return the layers whose codes cannot be taken, or are too long, each with the reason.

    transform: of the images; pool: as `pooling.pool_for` takes it; widest: the most numbers per image.
    """
    nodes, (height, width) = find_nodes(backbone, layers), transform.size
    shapes = _shapes_where_it_runs(backbone, list(nodes.values()), transform.size)
    layouts = node_layouts(backbone, shapes) if shapes else {}
    n_views, reasons = views.count(transform.views), {}
    for layer, node in nodes.items():
        if node not in shapes:
            reasons[layer] = f"{backbone.name} cannot run that far at {height}x{width} pixels."
            continue
        try:
            pooled = pooling.pool_for(layouts.get(node), pool, layer=layer, default=backbone.pool)
        except errors.PipelineError as error:
            reasons[layer] = error.message
            continue
        numbers = n_views * pooling.pooled_width(shapes[node], pooled, layouts[node])
        if numbers > widest:
            reasons[layer] = f"Its codes have {numbers:,} numbers per image. Take --pool avg for shorter ones."
    return reasons


def _shapes_where_it_runs(
    backbone: Backbone, nodes: Sequence[str], size: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """Return `node_shapes` without the nodes up to which the network cannot run at a size."""
    shapes = _shapes_at(backbone, tuple(nodes), size) if nodes else {}
    if shapes is not None or len(nodes) == 1:
        return dict(shapes or {})
    middle = len(nodes) // 2
    parts = [_shapes_where_it_runs(backbone, part, size) for part in (nodes[:middle], nodes[middle:])]
    return parts[0] | parts[1]


def node_layouts(backbone: Backbone, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, pooling.Layout]:
    """Return how the outputs of some graph nodes are laid out, by their shapes at any size; unknown ones are left out.

    The axes are told apart by the shapes at the network's own size, where images are square.
    """
    native = node_shapes(backbone, shapes)
    prefix = prefix_tokens(build_on_meta(backbone))
    layouts = {node: pooling.layout_of(shape, native.get(node, shape), prefix) for node, shape in shapes.items()}
    return {node: layout for node, layout in layouts.items() if layout}


def prefix_tokens(model: nn.Module) -> pooling.Prefix | None:
    """Return the tokens that a transformer puts before those of its patches; None where the network does not say."""
    has_class_token = any(getattr(model, name, None) is not None for name in ("cls_token", "class_token"))
    n_tokens = getattr(model, "num_prefix_tokens", 1 if has_class_token else None)
    return pooling.Prefix(n_tokens, has_class_token) if isinstance(n_tokens, int) else None


def _outputs(graph: nn.Module, size: tuple[int, int]) -> dict[str, object] | None:
    """Return a network's outputs for one image of a size on the meta device; None where it cannot run."""
    try:
        with redirect_stderr(io.StringIO()), torch.device("meta"):  # torch.fx prints tracebacks of its own
            outputs: dict[str, object] = graph(torch.empty(1, 3, *size, device="meta"))
    except (RuntimeError, AssertionError, ValueError):  # a window larger than the map; transformers assert their size
        return None
    except (AttributeError, TypeError):  # a trace that took the wrong branch
        return None
    empty = any(isinstance(output, torch.Tensor) and not output.numel() for output in outputs.values())
    return None if empty else outputs


def _explain_size(name: str, graph: nn.Module, size: tuple[int, int], native: tuple[int, int]) -> str:
    """Say that a network cannot run at a size, and which is the smallest side at which it can."""
    sides = range(min(size) + 1, max(native) + 1)
    smallest = next((side for side in sides if _outputs(graph, (side, side))), max(native))
    height, width = size
    if min(size) >= smallest:
        only = f"only at {native[0]}x{native[1]}"
        return f"{name} cannot run at {height}x{width} pixels, {only}. Leave --size out, or take other --weights."
    return (
        f"{name} cannot run at {height}x{width} pixels for these layers: the least that works is --size {smallest}. "
        "Take that or more, or an earlier layer."
    )
