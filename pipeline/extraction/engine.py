"""The engine: a frozen network run as fast as its device allows, in the precision that proves right, batch by batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from pipeline.networks.frozen import FrozenNetwork

from pipeline import errors
from pipeline.extraction import memory
from pipeline.images import decoding, parallel, torchcodec, transforms

MIN_COSINE = 0.999
"""What each image's code must reach for a lower precision, a compiled network or another decoder to be taken."""

COMPILE_SECONDS = 240
"""Seconds that a run must be expected to last before compiling is tried, which takes half a minute or more."""

BATCH_SIZES = {"cpu": 32, "cuda": 256, "mps": 64}
"""Images of 224×224 pixels a forward pass, by kind of device."""

READ_AHEAD = 128
"""Files, at most, whose bytes wait to be decoded on a GPU."""

MAX_REFUSALS = 10
"""JPEGs that TorchCodec refuses of which each is named."""

Item = TypeVar("Item")
Result = TypeVar("Result")

ImageInput = np.ndarray | torch.Tensor
"""(3, height, width) uint8, or (n_views, 3, height, width): what the network is to see of one image."""

BatchCodes = dict[str, np.ndarray]
"""{layer: (n, width) of the dtype that the network's specs name}."""

Forward = Callable[[torch.Tensor], dict[str, torch.Tensor]]


class Engine:
    """Runs a frozen network on pictures, from and to ordinary memory.

    batch_size: images a forward pass; it halves when a GPU's memory is exceeded. count: how many images are to be
    expected; if they take long enough to repay it, the network is compiled. notes: what was decided, and why. From
    there on the program keeps up to a gigabyte of freed memory (`memory.keep`).
    """

    def __init__(self, network: FrozenNetwork, batch_size: int = 0, count: int = 0, compiling: str = "auto") -> None:
        self.network, self.count, self.compiling = network, count, compiling
        self.device = network.mean.device
        self.batch_size = batch_size or batch_size_for(self.device, network.transform.size)
        if network.transform.decoder == decoding.TORCHCODEC:
            torchcodec.validate_usable(network.transform, self.device)
        memory.keep_freed()
        self.run: Forward = network
        self.copying = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.seconds: list[float] = []
        self.notes: list[str] = []
        self.refusals = 0

    def pictures(self, files: Iterable[Path], threads: int) -> Iterator[tuple[ImageInput, str] | decoding.BadImage]:
        """Yield what the network is to see of some files, and the digests of their bytes, in order; or why not.

        A processor decodes and computes in turns, and has the files' bytes read meanwhile.
        """
        transform, turn = self.network.transform, self._turn(threads)
        if self.device.type != "cpu":
            if transform.decoder == decoding.TORCHCODEC:
                return self._in_lots(files, threads)
            return self.each(partial(transforms.read_image, transform=transform), files, threads)
        if transform.decoder == decoding.TORCHCODEC:
            show = partial(torchcodec.read_one, transform=transform, note=self._note_refusal)
            return self.each(show, parallel.ordered_map(torchcodec.load_file, files, threads, turn), threads)
        contents = parallel.ordered_map(decoding.read_bytes, files, threads, turn)
        return self.each(partial(transforms.transform_bytes, transform=transform), contents, threads)

    def each(
        self, read: Callable[[Item], Result], items: Iterable[Item | decoding.BadImage], threads: int
    ) -> Iterator[Result | decoding.BadImage]:
        """Yield what `read` gives of each item: read ahead beside a GPU, in turns with the network on its processor."""
        if self.device.type == "cpu":
            return parallel.alternating_map(read, items, threads, self._turn(threads))
        return parallel.ordered_map(read, items, threads, 2 * self.batch_size)

    def _in_lots(self, files: Iterable[Path], threads: int) -> Iterator[tuple[ImageInput, str] | decoding.BadImage]:
        """Yield pictures that are on the device; a GPU decodes many of them while it computes the batch before."""
        transform = self.network.transform
        read = partial(torchcodec.open_file, transform=transform)
        opened = parallel.ordered_map(read, files, threads, min(READ_AHEAD, self._turn(threads)))
        for lot in torchcodec.batches(opened, self.batch_size):
            with self._aside():
                found = torchcodec.decode_batch(lot, transform, self.device, self._note_refusal)
            yield from found

    def _note_refusal(self, line: str) -> None:
        """Note what became of a JPEG, of the first ten by name."""
        self.refusals += 1
        if self.refusals <= MAX_REFUSALS:
            self.notes.append(line)
        elif self.refusals == MAX_REFUSALS + 1:
            self.notes.append("Further JPEGs that TorchCodec refuses were decoded by Pillow, too")

    def _aside(self) -> AbstractContextManager[object]:
        """Return a context in which a GPU works beside the network."""
        return torch.cuda.stream(self.copying) if self.copying else nullcontext()

    def _turn(self, threads: int) -> int:
        return max(self.batch_size, 4 * threads)

    def codes(self, pictures: Sequence[ImageInput]) -> BatchCodes:
        """Return the codes of some pictures."""
        return self.launch(pictures)()

    @torch.inference_mode()
    def launch(self, pictures: Sequence[ImageInput]) -> Callable[[], BatchCodes]:
        """Start to compute the codes of some pictures; return what waits for them. On the CPU they are done by then."""
        waiting: list[Callable[[], BatchCodes]] = []
        start = 0
        while start < len(pictures):
            part = pictures[start : start + self.batch_size]
            try:
                waiting.append(self._fetch(self._forward(self._carry(part))))
                start += len(part)
            except torch.OutOfMemoryError:
                self._halve()
        return lambda: concatenate([wait() for wait in waiting])

    def _carry(self, pictures: Sequence[ImageInput]) -> torch.Tensor:
        """Return the pictures as one batch on the device; a GPU receives them while it computes the batch before."""
        rows = [torch.as_tensor(picture) for picture in pictures]
        if self.copying is None:
            return torch.stack(rows).to(self.device)
        with self._aside():
            batch = torch.stack(rows) if rows[0].is_cuda else pinned_batch(rows).to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.copying)
        batch.record_stream(computing)
        return batch

    def _forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run a batch; the second full one shows how long one takes, the next is where compiling is considered."""
        if len(batch) < self.batch_size:
            return self.network(batch)
        expected = self.seconds[-1] * self.count / len(batch) if len(self.seconds) == 2 else 0
        if self.compiling == "yes" or (self.compiling == "auto" and expected > COMPILE_SECONDS):
            self._compile(batch)
        if self.compiling == "no" or len(self.seconds) == 2:
            return self.run(batch)
        start = time.perf_counter()
        outputs = self.run(batch)
        synchronize(outputs)
        self.seconds.append(time.perf_counter() - start)
        return outputs

    def _fetch(self, outputs: dict[str, torch.Tensor]) -> Callable[[], BatchCodes]:
        """Return what waits until the codes are in ordinary memory; it does not wait for later batches."""
        if self.copying is None:
            codes = {layer: values.cpu().numpy() for layer, values in outputs.items()}
            return lambda: codes
        host = {layer: values.to("cpu", non_blocking=True) for layer, values in outputs.items()}  # pinned
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> BatchCodes:
            done.synchronize()
            return {layer: values.numpy() for layer, values in host.items()}

        return wait

    def _halve(self) -> None:
        if self.batch_size == 1:
            raise errors.PipelineError(
                f"The memory of {self.device} does not suffice for one image. Choose another --device or --backbone."
            )
        self.batch_size //= 2
        self.run, self.compiling = self.network, "no"
        torch.cuda.empty_cache()
        self.notes.append(f"Out of memory on {self.device}: {self.batch_size} images a forward pass from there on")

    def _compile(self, batch: torch.Tensor) -> None:
        """Compile the network for batches of this size, and keep that if its codes are right and come faster."""
        forced, self.compiling = self.compiling == "yes", "no"
        compiled = torch.compile(self.network, dynamic=False)
        try:
            from torch._inductor import config

            start = time.perf_counter()
            with config.patch(freezing=True):  # as an option of torch.compile's it has no effect
                cosine = lowest_cosine(compiled(batch), self.network(batch))
            spent = time.perf_counter() - start
            gain = time_forward(self.network, batch) / time_forward(compiled, batch)
        except Exception as error:  # a compiler has many ways to fail; the network runs without it, and that is said
            if forced:
                raise errors.PipelineError(
                    f"The network cannot be compiled ({errors.first_line(error).rstrip('.')}). Leave out --compile."
                ) from error
            self.notes.append(f"Not compiled: {errors.first_line(error).rstrip('.')}")
            return
        if cosine >= MIN_COSINE and (gain > 1 or forced):
            self.run = compiled
        self.notes.append(
            f"{'Not compiled' if self.run is self.network else 'Compiled'}: it is {gain:.2f} times as fast, "
            f"its codes' cosine ≥ {cosine:.6f}, after {spent:.0f} s"
        )


def batch_size_for(device: torch.device, size: tuple[int, int]) -> int:
    """Return how many images of that size suit a device: about as many pixels whatever it is, up to 4 times as many."""
    usual = BATCH_SIZES[device.type]
    return max(1, min(4 * usual, usual * 224**2 // math.prod(size)))


def pinned_batch(rows: list[torch.Tensor]) -> torch.Tensor:
    """Return one batch in memory that a GPU can copy from by itself."""
    return torch.stack(rows, out=torch.empty((len(rows), *rows[0].shape), dtype=rows[0].dtype, pin_memory=True))


def time_forward(run: Forward, batch: torch.Tensor) -> float:
    """Return the seconds that a forward pass takes, the second of two."""
    for _ in range(2):
        start = time.perf_counter()
        synchronize(run(batch))
        seconds = time.perf_counter() - start
    return seconds


def synchronize(outputs: dict[str, torch.Tensor]) -> None:
    """Wait until the device has computed some outputs."""
    for values in outputs.values():
        values[0, 0].item()


def lowest_cosine(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the lowest cosine between two codes of one image, over images and layers; -1 if any is not finite."""
    cosines = [
        torch.cosine_similarity(found[layer].double(), expected[layer].double(), eps=1e-30) for layer in expected
    ]
    return float(torch.stack(cosines).nan_to_num(-1.0, -1.0, -1.0).min())


def concatenate(parts: Sequence[BatchCodes]) -> BatchCodes:
    """Put the codes of several parts of a batch together."""
    return (
        parts[0] if len(parts) == 1 else {layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]}
    )
