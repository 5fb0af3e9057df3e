"""The images of a source dataset that are trained with a target, and which of them a step sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline import errors
from pipeline.data.manifest import Manifest
from pipeline.texts import Texts


class Chosen(NamedTuple):
    """The source images of a step.

    rows: (n,) int64 of the manifest; weights: (n,) float64, above 0; drawn: (k,) bool, the classes that were drawn.
    """

    rows: np.ndarray
    weights: np.ndarray
    drawn: np.ndarray


@dataclass(frozen=True)
class Source:
    """The labelled training images of a source dataset.

    rows: (n,) int64 of the manifest; left_out: number of training images that are copies of images which the target
    keeps for reward, validation or test.
    """

    manifest: Manifest
    rows: np.ndarray
    left_out: int = 0

    def counts(self) -> np.ndarray:
        """Return the number of images of each class, (k,) int64."""
        return np.bincount(self.manifest.labels[self.rows], minlength=len(self.manifest.classes))

    def choose(self, weights: np.ndarray, keep: int, pool: int, rng: np.random.Generator) -> Chosen:
        """Draw pool · keep images, all of them where there are fewer; return those whose classes weigh most.

        weights: (k,) of the classes; keep: how many at most. Of equal weights those that were drawn first are kept,
        which is by chance. The weights are scaled to the sum `keep`; images of weight 0 are left out, as they add
        nothing to a loss: there may be no image at all.
        """
        rows = rng.choice(self.rows, min(pool * keep, len(self.rows)), replace=False)
        labels = self.manifest.labels[rows]
        drawn = np.bincount(labels, minlength=len(weights)) > 0
        heaviest = np.argsort(-weights[labels], kind="stable")[:keep]
        heaviest = heaviest[weights[labels[heaviest]] > 0]
        kept = weights[labels[heaviest]]
        return Chosen(rows[heaviest], keep * kept / kept.sum() if len(kept) else kept, drawn)


def of_dataset(manifest: Manifest, target: Manifest, trained: np.ndarray) -> Source:
    """Return what of a source dataset may be trained with a target; target: its manifest, trained: (n,) int64 its rows.

    Copies of the target's other images are left out, of which the network would learn what it is judged by. Raise
    PipelineError for the target itself, for several labels per image, and for fewer than two classes.
    """
    if manifest.root.resolve() == target.root.resolve():
        raise errors.PipelineError(f"--source {manifest.root} is the target itself. Take another dataset.")
    if manifest.labels.ndim == 2:
        raise errors.PipelineError(
            f"The images of --source {manifest.root} have several labels each. Take one of them."
        )
    rows = np.flatnonzero(manifest.splits.isin(["train"]))
    others = np.delete(np.arange(len(target.paths)), trained)
    judged = Texts.joined([target.digests.take(others), target.contents.take(others)])
    copies = (judged.rows_of(manifest.digests) >= 0) | (judged.rows_of(manifest.contents) >= 0)
    kept = rows[~copies[rows]]
    if len(np.unique(manifest.labels[kept])) < 2:
        raise errors.PipelineError(
            f"--source {manifest.root} needs training images with a label of two classes or more, to learn from."
        )
    return Source(manifest, kept, len(rows) - len(kept))
