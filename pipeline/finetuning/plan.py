"""All that determines the weights that a run ends with, and how it is described in the files that it writes."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import numpy as np

from pipeline.codes.spec import flatten
from pipeline.data.manifest import Manifest
from pipeline.finetuning.initialization import InitialState, TrainValSplit
from pipeline.finetuning.recipes import Recipe
from pipeline.finetuning.sampling import Sampling
from pipeline.finetuning.source import Source
from pipeline.images import decoding


@dataclass(frozen=True)
class LearnedSettings:
    """How weights of source classes are learned.

    reward: a key of `REWARDS`; bins: number of values that a weight may have; rate, entropy: as `Policy` takes them.
    """

    reward: str
    bins: int
    rate: float
    entropy: float


@dataclass(frozen=True)
class JointPlan:
    """A source that is trained with the target.

    weights: (k,) float64 of its classes, or how they are learned; alpha: factor of its loss, the highest one where
    weights are learned; pool: how many of its images are drawn for each one that is kept.
    """

    source: Source
    weights: np.ndarray | LearnedSettings
    alpha: float
    pool: int

    def facts(self) -> dict[str, object]:
        """Return what makes two runs the same, and what the metadata of the files say."""
        manifest, rows, weights = self.source.manifest, self.source.rows, self.weights
        learned = isinstance(weights, LearnedSettings)
        return {
            "source": manifest.root.name,
            "source_images": digest_of_images(manifest, rows),
            "n_source": len(rows),
            "source_weights": asdict(weights) if isinstance(weights, LearnedSettings) else weights.tolist(),
            "max_alpha" if learned else "alpha": self.alpha,
            "source_pool": self.pool,
        }


@dataclass(frozen=True)
class Plan:
    """All that determines the tuned weights, apart from rounding.

    recipe_name: the preset that the recipe was made from; unfreeze: the layer from which the backbone is trained, "all"
    or "none"; seed: of order, augmentation, dropout, held-out validation images and random head; sampling: which
    training images an epoch draws; joint: the source that is trained with them, if there is one.
    """

    start: InitialState
    data: TrainValSplit
    recipe_name: str
    recipe: Recipe
    unfreeze: str
    seed: int
    sampling: Sampling
    joint: JointPlan | None = None


def digest_of_images(manifest: Manifest, rows: np.ndarray) -> str:
    """Return a digest of the paths and labels of some images; rows: (n,) int64."""
    labelled = [(manifest.paths[row], int(manifest.labels[row])) for row in rows]
    return decoding.digest(repr((len(rows), labelled)).encode())[:12]


def identify_run(plan: Plan, precision: str) -> dict[str, object]:
    """Return the facts that make two runs the same, so that one can resume where the other stopped."""
    data, state = plan.data, plan.start.head.state_dict()
    rows = (*data.train, *data.val, *data.reward)
    labelled = [(data.manifest.paths[row], int(data.manifest.labels[row])) for row in rows]
    images = decoding.digest(repr((len(data.train), labelled)).encode())
    head = hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values()))
    return {
        **flatten(plan.start.spec.to_dict()),
        "images": images[:12],
        "head": head.hexdigest()[:12],
        "unfreeze": plan.unfreeze,
        "seed": plan.seed,
        "sampling": describe_sampling(plan.sampling),
        "precision": precision,
        **asdict(plan.recipe),
        **(plan.joint.facts() if plan.joint else {}),
    }


def describe_sampling(sampling: Sampling) -> dict[str, object]:
    """Return how training images are drawn, for the metadata of the files; {} where all are drawn once."""
    drawn: dict[str, object] = {"draws": sampling.draws} if sampling.draws else {}
    if sampling.weights is None:
        return drawn
    return {**drawn, "method": sampling.method, "class_weights": sampling.weights.tolist()}
