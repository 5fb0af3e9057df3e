"""The one loop that runs a network over images: load a batch, compute its codes, give them to the caller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import numpy as np

    from pipeline.extraction.engine import Engine, ImageInput
    from pipeline.extraction.loading import ImageLoader, Source

from pipeline.images.decoding import BadImage
from pipeline.images.transforms import KnownImage, Loaded, LoadedImage

Key = TypeVar("Key")


@dataclass(frozen=True)
class CodesBatch(Generic[Key]):
    """The codes of some images.

    keys, digests: one per image, in the order of the images; codes: {layer: (n, width)} in the same order.
    """

    keys: list[Key]
    digests: list[str]
    codes: dict[str, np.ndarray]


class PendingBatch(Generic[Key]):
    """Images on their way through the network; images with the same digest share one row of its batch."""

    def __init__(self) -> None:
        self.images: list[ImageInput] = []
        self.keys: list[Key] = []
        self.digests: list[str] = []
        self.rows: list[int] = []
        self.row_of: dict[str, int] = {}

    def add(self, key: Key, image: LoadedImage) -> None:
        """Add an image that is to be computed."""
        self.row_of[image.digest] = len(self.images)
        self.images.append(image.pixels)
        self.add_copy(key, image.digest)

    def add_copy(self, key: Key, digest: str) -> None:
        """Add an image with the digest of one that was added before."""
        self.keys.append(key)
        self.digests.append(digest)
        self.rows.append(self.row_of[digest])

    def launch(self, engine: Engine) -> Callable[[], CodesBatch[Key]]:
        """Start to compute the codes; return a function that waits for them. Copies can be added until it is called."""
        wait = engine.launch(self.images)
        self.images = []

        def finish() -> CodesBatch[Key]:
            codes = wait()
            if self.rows != list(range(len(self.rows))):
                codes = {layer: values[self.rows] for layer, values in codes.items()}
            return CodesBatch(self.keys, self.digests, codes)

        return finish


def compute_codes(
    engine: Engine, items: Iterable[tuple[Key, Source]], threads: int, known: Container[str] | None = None
) -> Iterator[CodesBatch[Key] | tuple[Key, KnownImage | BadImage]]:
    """Yield the codes of images in batches, and (key, reason) for each image without codes, ahead of its batch.

    items: (key, image); threads: number of decoding threads; known: digests of images whose codes the caller has, for
    which (key, `KnownImage`) is yielded. Where it is given, images with the same digest are computed once: the caller
    adds the digests of each batch to `known`. None: each image is computed. At any time a few batches are in memory: a
    GPU computes one while the next is loaded and the caller works on the one before.
    """
    batch: PendingBatch[Key] = PendingBatch()
    launched: deque[tuple[PendingBatch[Key], Callable[[], CodesBatch[Key]]]] = deque()
    for key, image in load_with_keys(engine.loader(threads), items, frozenset() if known is None else known):
        if not isinstance(image, LoadedImage):
            yield key, image
            continue
        pending = (batch, *(earlier for earlier, _ in launched))
        if known is None:
            batch.add(key, image)
        elif same := next((other for other in pending if image.digest in other.row_of), None):
            same.add_copy(key, image.digest)
        elif image.digest in known:  # it was computed after the loader looked
            yield key, KnownImage(image.digest)
        else:
            batch.add(key, image)
        if len(batch.images) >= engine.batch_size:
            launched.append((batch, batch.launch(engine)))
            batch = PendingBatch()
            while len(launched) > engine.batches_ahead:
                yield launched.popleft()[1]()
    if batch.images:
        launched.append((batch, batch.launch(engine)))
    for _, finish in launched:
        yield finish()


def load_with_keys(
    loader: ImageLoader, items: Iterable[tuple[Key, Source]], known: Container[str]
) -> Iterator[tuple[Key, Loaded]]:
    """Yield each key with its loaded image."""
    with_keys, with_sources = tee(items)
    images = loader.load((source for _, source in with_sources), known)
    yield from zip((key for key, _ in with_keys), images, strict=True)
