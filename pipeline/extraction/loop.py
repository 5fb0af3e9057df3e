"""The one loop that runs a network over images: load a batch, compute its codes, give them to the caller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import tee
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from pipeline.extraction.engine import BatchCodes, Engine, ImageInput
    from pipeline.extraction.loading import ImageLoader, Source

from pipeline.images.decoding import BadImage
from pipeline.images.transforms import KnownImage, Loaded, LoadedImage

Key = TypeVar("Key")


@dataclass(frozen=True)
class CodesBatch(Generic[Key]):
    """The codes of n images: their keys and digests, and {layer: (n, width)}, in the same order."""

    keys: list[Key]
    digests: list[str]
    codes: BatchCodes


@dataclass(frozen=True)
class PendingBatch(Generic[Key]):
    """Images whose codes are not computed yet, and copies of them, which are not computed."""

    keys: list[Key] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    images: list[ImageInput] = field(default_factory=list)
    copies: list[tuple[Key, KnownImage]] = field(default_factory=list)

    def results(self, wait: Callable[[], BatchCodes]) -> Iterator[CodesBatch[Key] | tuple[Key, KnownImage]]:
        """Wait for the codes; yield them, and then the copies."""
        yield CodesBatch(self.keys, self.digests, wait())
        yield from self.copies


def compute_codes(
    engine: Engine, items: Iterable[tuple[Key, Source]], threads: int, known: Container[str] | None = None
) -> Iterator[CodesBatch[Key] | tuple[Key, KnownImage | BadImage]]:
    """Yield the codes of images in batches, and (key, reason) for each image without codes, ahead of its batch.

    items: (key, image); threads: number of decoding threads; known: digests of images whose codes the caller has, to
    which it adds those of each batch. For such an image, and for a copy of one in a batch, (key, `KnownImage`) is
    yielded, after the batch. None: each image is computed, copies too. At any time a few batches are in memory: a GPU
    computes one while the next is loaded and the caller works on the one before.
    """
    batch: PendingBatch[Key] = PendingBatch()
    launched: deque[tuple[PendingBatch[Key], Callable[[], BatchCodes]]] = deque()
    copies_of: dict[str, list[tuple[Key, KnownImage]]] = {}  # of the images in `batch` and `launched`
    for key, image in load_with_keys(engine.loader(threads), items, frozenset() if known is None else known):
        if not isinstance(image, LoadedImage):
            yield key, image
        elif known is not None and image.digest in copies_of:
            copies_of[image.digest].append((key, KnownImage(image.digest)))
        elif known is not None and image.digest in known:  # the caller learned of it after the loader looked
            yield key, KnownImage(image.digest)
        else:
            batch.keys.append(key)
            batch.digests.append(image.digest)
            batch.images.append(image.pixels)
            copies_of[image.digest] = batch.copies
        if len(batch.images) >= engine.batch_size:
            launched.append((batch, engine.launch(batch.images)))
            batch = PendingBatch()
            while len(launched) > engine.batches_ahead:
                first, wait = launched.popleft()
                yield from first.results(wait)
                for digest in first.digests:
                    copies_of.pop(digest, None)
    if batch.images:
        launched.append((batch, engine.launch(batch.images)))
    for last, wait in launched:
        yield from last.results(wait)


def load_with_keys(
    loader: ImageLoader, items: Iterable[tuple[Key, Source]], known: Container[str]
) -> Iterator[tuple[Key, Loaded]]:
    """Yield each key with its loaded image."""
    with_keys, with_sources = tee(items)
    images = loader.load((source for _, source in with_sources), known)
    yield from zip((key for key, _ in with_keys), images, strict=True)
