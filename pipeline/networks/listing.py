"""What `extract --list` shows: the backbones, those of timm's that fit a pattern, or the layers of one."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from pipeline import errors
from pipeline.networks import backbones, layer_names, layer_nodes, pooling, timm_models, timm_weights
from pipeline.networks.backbones import Backbone
from pipeline.networks.origins import DEFAULT
from pipeline.networks.timm_models import PREFIX
from pipeline.paths import LOGITS

LISTED = 20
"""Number of networks of timm's that are shown at most."""

UNKNOWN = "–"

SEARCH_TIMM = "timm's networks are searched by a pattern: --list 'timm/*resnet*50*'."
WHAT_TOP1_IS = (
    "top-1: of the default weights on ImageNet's validation images, as torchvision publishes it; tinyvgg's is on those "
    f"of Tiny-ImageNet; {UNKNOWN} where none is published."
)


def listing(name: str) -> str:
    """Return all backbones for "", those that fit a pattern with a *, or one backbone with its layers."""
    if name == PREFIX.rstrip("/") or (name.startswith(PREFIX) and "*" in name):
        return search_timm(name.removeprefix(PREFIX.rstrip("/")).removeprefix("/"))
    return list_backbones(name or "*") if not name or "*" in name else "\n".join(_describe(backbones.get(name)))


def list_backbones(pattern: str) -> str:
    """Return a table of the backbones that are no timm's and fit a pattern."""
    fitting = [backbone for name, backbone in backbones.registry().items() if fnmatchcase(name, pattern)]
    if not fitting:
        raise errors.PipelineError(f"No backbone fits {pattern!r}. See all with --list. {SEARCH_TIMM}")
    lines = [f"{'backbone':<24} {'million':>8} {'pixels':>9} {'top-1':>6}  layer"]
    for backbone in fitting:
        published = backbone.pretrained.published()
        top1, size = _percent(published.top1.get(DEFAULT)), _by(backbones.transform_of(backbone, DEFAULT).size)
        n_parameters = published.n_parameters or count_parameters(backbone)
        layer = layer_names.last_layer(backbone.name)
        lines.append(f"{backbone.name:<24} {n_parameters / 1e6:>8.1f} {size:>9} {top1:>6}  {layer}")
    explanations = ["", "million: parameters; layer: the one to begin with.", WHAT_TOP1_IS, SEARCH_TIMM]
    return "\n".join([*lines, *explanations])


def search_timm(pattern: str) -> str:
    """Return a table of timm's networks with weights that fit a pattern like *resnet*50*, cut to some rows."""
    fitting = timm_models.names(pattern)
    if not fitting:
        raise errors.PipelineError(
            f"No network of timm's fits {PREFIX + pattern!r}. Try another pattern, as 'timm/*resnet*50*'."
        )
    lines = [f"{'backbone':<56} {'million':>8} {'pixels':>9}  weights"]
    for name in fitting[:LISTED]:
        backbone = backbones.get(name)
        size = _by(backbones.transform_of(backbone, DEFAULT).size)
        lines.append(f"{name:<56} {count_parameters(backbone) / 1e6:>8.1f} {size:>9}  {_place_of_weights(name)}")
    if (more := len(fitting) - LISTED) > 0:
        lines.append(f"… and {more} more. {SEARCH_TIMM}")
    return "\n".join(lines)


def _describe(backbone: Backbone) -> Iterator[str]:
    """Yield a backbone's facts, then the table of its layers."""
    published = backbone.pretrained.published()
    size, test_size = (backbones.transform_of(backbone, DEFAULT, test).size for test in (False, True))
    tested = f" ({_by(test_size)} with --size test)" if test_size != size else ""
    layers = layer_nodes.layer_shapes(backbone)
    n_parameters = f"{count_parameters(backbone) / 1e6:.1f} million parameters"
    yield f"{backbone.name}: {n_parameters}, images of {_by(size)} pixels{tested}"
    yield f"layer to begin with: {list(layers)[-1]}"
    if head := layer_nodes.head_node(backbone):
        layers |= {LOGITS: (head, layer_nodes.node_shapes(backbone, [head])[head])}
    if backbone.name.startswith(PREFIX):
        yield f"weights: {DEFAULT}, {_place_of_weights(backbone.name)}; their top-1 is not published with timm"
    else:
        named = (f"{name} {_percent(top1)}" for name, top1 in published.top1.items())
        yield f"weights, with their published top-1: {', '.join(named)}"
    yield ""
    yield f"{'layer':<28} {'node':<28} {'output':<14} width by --pool"
    layouts = layer_nodes.node_layouts(backbone, dict(layers.values()))
    for layer, (node, shape) in layers.items():
        if layout := layouts.get(node):
            pools = pooling.examples(layout)
            widths = ", ".join(f"{pool} {pooling.pooled_width(shape, pool, layout)}" for pool in pools)
            yield f"{layer:<28} {node:<28} {_by(shape):<14} {widths}"


def count_parameters(backbone: Backbone) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in backbones.build_on_meta(backbone).parameters())


def _place_of_weights(name: str) -> str:
    return "here" if timm_weights.has_weights(name.removeprefix(PREFIX)) else "to download"


def _by(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share:.3f}"
