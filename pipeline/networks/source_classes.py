"""The classes that a pretrained network was trained on itself: their names, and the node that gives their scores."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pipeline import errors
from pipeline.images.depth import WHITE
from pipeline.images.transforms import Framing
from pipeline.networks import backbones, layer_nodes, weights
from pipeline.networks.backbones import Backbone
from pipeline.networks.frozen import FrozenNetwork
from pipeline.networks.origins import DEFAULT

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceHead:
    """The head with which a network was pretrained.

    node: the graph node that gives the (n, n_classes) scores of its classes; names: of the classes, in the order of the
    scores, () where they are not known.
    """

    node: str
    n_classes: int
    names: tuple[str, ...]


def find_head(backbone: Backbone, origin: str) -> SourceHead | None:
    """Return the head of some weights; None where they have none that fits.

    origin: as `backbones.load` takes it. Random weights know no classes. Those that were fine-tuned still have the head
    of before, which does not fit the layers trained since. A file with as many classes as the default weights is taken
    to have these.
    """
    n_classes = _count_classes(backbone, origin)
    node = layer_nodes.head_node(backbone) if n_classes else None
    if node is None:
        return None
    names = backbone.pretrained.class_names(DEFAULT if backbones.is_file(origin) else origin)
    return SourceHead(node, n_classes, names if len(names) == n_classes else ())


def _count_classes(backbone: Backbone, origin: str) -> int:
    """Return the number of classes of some weights; 0 where they have none."""
    if backbones.is_random(origin):
        return 0
    if not backbones.is_file(origin):
        return backbone.pretrained.n_classes(origin)
    if weights.read_spec(origin):
        return 0
    state, _ = backbones.with_own_names(backbone, weights.read_state(Path(origin).expanduser()))
    head = state.get(f"{backbones.head_module(backbone)}.weight")
    return 0 if head is None else len(head)


def build_network(name: str, origin: str, white: float | None = None) -> tuple[FrozenNetwork, tuple[str, ...]]:
    """Return a network whose only layer gives the scores of its own classes, and their names.

    white: the value that is white in the images, None for 255. Raises what `require_head` raises.
    """
    head = require_head(name, origin)
    return FrozenNetwork(name, [head.node], origin, framing=Framing(max_value=white or WHITE)), head.names


def require_head(name: str, origin: str) -> SourceHead:
    """Return the head of some weights; raise PipelineError where they have none, or its classes have no names."""
    backbone = backbones.get(name)
    head = find_head(backbone, origin)
    if head is None:
        raise errors.PipelineError(
            f"{name} with the weights {origin!r} predicts no classes: random, fine-tuned and headless weights know "
            "none. Take --weights default, or another --backbone."
        )
    if not head.names:
        raise errors.PipelineError(
            f"The names of the {head.n_classes} classes of {name} with the weights {origin!r} are not known. Take "
            "weights that were trained on ImageNet's 1,000 classes."
        )
    if backbones.is_file(origin):
        logger.info("%s is taken to have the classes of %s's default weights, in the same order.", origin, name)
    return head
