"""Batches of images and labels on the network's device, read ahead by threads while the network works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
import torch

from pipeline import errors
from pipeline.data.manifest import Manifest
from pipeline.data.origin import prepare_again
from pipeline.finetuning.recipes import Recipe
from pipeline.images import augmentation, decoding, parallel, transforms

KEPT_BYTES = 1 << 28
"""Validation images of up to this total size are kept in memory."""

Draw = tuple[int, int]
"""A row of the manifest, and how often it was drawn before in the epoch."""

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images (n, 3, side, side) uint8 and labels (n,) int64."""


@dataclass
class BatchLoader:
    """Reads the images of a dataset for a network; transform: what its images go through in evaluation."""

    manifest: Manifest
    transform: transforms.Transform
    device: str
    threads: int
    _validation: list[Batch] = field(default_factory=list, init=False)

    def training(
        self, batches: Sequence[np.ndarray], recipe: Recipe, side: int, seed: tuple[int, ...]
    ) -> Iterator[Batch]:
        """Yield augmented images of `side` pixels; each depends on its row, its earlier draws and the seed only.

        batches: (k, 2) each, of which some may be empty: the rows, and how often each was drawn before in the epoch.
        """
        return self._load(batches, partial(self._read_augmented, recipe=recipe, side=side, seed=seed))

    def validation(self, rows: np.ndarray, size: int) -> Iterator[Batch]:
        """Yield images as extraction reads them, `size` per batch; from the second call on from memory if they fit."""
        if self._validation:
            yield from self._validation
            return
        batches: list[Batch] = []
        once = np.stack([rows, np.zeros_like(rows)], 1)
        for batch in self._load([once[start : start + size] for start in range(0, len(rows), size)], self._read):
            yield batch
            if len(rows) * 3 * self.transform.crop**2 <= KEPT_BYTES:
                batches.append(batch)
        self._validation = batches

    def _read_augmented(self, draw: Draw, recipe: Recipe, side: int, seed: tuple[int, ...]) -> np.ndarray:
        row, earlier = draw
        place = (*seed, row, earlier) if earlier else (*seed, row)
        file = self.manifest.file(row)
        return augmentation.load_augmented(file, self.transform, recipe.augment, recipe.flip, side, place)

    def _read(self, draw: Draw) -> np.ndarray:
        return transforms.load_image(self.manifest.file(draw[0]), self.transform)

    def _load(self, batches: Sequence[np.ndarray], read: Callable[[Draw], np.ndarray]) -> Iterator[Batch]:
        rows: list[Draw] = [(int(row), int(earlier)) for batch in batches for row, earlier in batch]
        ahead = 2 * max(map(len, batches), default=0) + self.threads
        images = parallel.ordered_map(read, rows, self.threads, ahead)
        for batch in batches:
            good = [
                self._require_good(row, image)
                for row, image in zip(batch[:, 0], islice(images, len(batch)), strict=True)
            ]
            stacked = np.stack(good) if good else np.empty((0, 3, 1, 1), np.uint8)
            labels = torch.from_numpy(self.manifest.labels[batch[:, 0]])
            yield self._move(torch.from_numpy(stacked)), self._move(labels)

    def _require_good(self, row: int, image: np.ndarray | decoding.BadImage) -> np.ndarray:
        if isinstance(image, decoding.BadImage):
            raise errors.PipelineError(
                f"{self.manifest.paths[row]!r} cannot be read: {image}. Prepare the dataset again.",
                fix=prepare_again(self.manifest.root),
            )
        return image

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.device.startswith("cuda"):
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)
