"""The engine: a frozen network that maps batches of images to codes as fast as its device allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from pipeline.networks.frozen import FrozenNetwork

from pipeline import errors
from pipeline.extraction import compiling
from pipeline.extraction.compiling import Forward
from pipeline.extraction.loading import ImageLoader
from pipeline.images import decoding, torchcodec

MIN_COSINE = 0.999
"""The least cosine between two codes of one image at which a lower precision or another decoder is accepted, which the
spec names; and a network compiled in a lower precision."""

SAME_COSINE = 0.99999
"""The least cosine at which a network compiled in fp32 is accepted: no spec names the compiler, so codes must be the
same but for rounding."""

BATCH_SIZES = {"cpu": 32, "cuda": 256, "mps": 64}
"""Images of 224×224 pixels per forward pass, by type of device."""

ImageInput = np.ndarray | torch.Tensor
"""What the network sees of one image: (3, height, width) uint8, or (n_views, 3, height, width)."""

BatchCodes = dict[str, np.ndarray]
"""{layer: (n, width)}, of the dtype that the network's specs name."""


class Engine:
    """Runs a frozen network on images in CPU memory, or already on the device, and returns codes in CPU memory.

    batch_size: images per forward pass, 0 for what suits the device; it halves when a GPU runs out of memory. count:
    number of images that are expected: with compiler "auto", a network on which they take long enough to repay it is
    compiled; another name of `compiling.COMPILERS` compiles it in any case, "no" never. validate: as in `ImageLoader`.
    whole_batches: whether a smaller batch is filled up with black images, so that an image's codes are the same, bit
    for bit, whichever others are computed with it.

    Attributes: compiled_by: the compiler that is used, or "no"; notes: sentences on what was decided, and why.
    """

    def __init__(
        self,
        network: FrozenNetwork,
        batch_size: int = 0,
        count: int = 0,
        compiler: str = "auto",
        validate: Callable[[bytes], None] | None = None,
        *,
        whole_batches: bool = False,
    ) -> None:
        self.network, self.count, self.validate = network, count, validate
        self.whole_batches = whole_batches
        self.asked, self.compilers = compiler, compiling.candidates(network, compiler)
        self.device = network.mean.device
        self.batch_size = batch_size or batch_size_for(self.device, network.transform.size)
        if network.transform.decoder == decoding.TORCHCODEC:
            torchcodec.validate_usable(network.transform, self.device)
        self.forward: Forward = network
        self.compiled_by = "no"
        self.copy_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.seconds: list[float] = []
        self.notes: list[str] = []

    @property
    def batches_ahead(self) -> int:
        """Number of batches that are computed while the caller works on an earlier one: none on a CPU."""
        return 0 if self.device.type == "cpu" else 1

    def loader(self, threads: int) -> ImageLoader:
        """Return an object that loads images for this network; threads: number of decoding threads."""
        transform, size = self.network.transform, self.batch_size
        return ImageLoader(transform, self.device, threads, size, self.copy_stream, self.validate)

    def codes(self, images: Sequence[ImageInput]) -> BatchCodes:
        """Return the codes of some images."""
        return self.launch(images)()

    @torch.inference_mode()
    def launch(self, images: Sequence[ImageInput]) -> Callable[[], BatchCodes]:
        """Start to compute the codes of some images, and return a function that waits for them and returns them.

        On the CPU they are computed before this returns.
        """
        waits: list[Callable[[], BatchCodes]] = []
        start = 0
        while start < len(images):
            part = images[start : start + self.batch_size]
            try:
                waits.append(self._fetch(self._run_batch(self._to_device(part))))
                start += len(part)
            except torch.OutOfMemoryError:
                self._halve_batch_size()
        return lambda: concatenate([wait() for wait in waits])

    def _to_device(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """Return the images as one batch on the device; a GPU receives it while it computes the batch before."""
        rows = [torch.as_tensor(image) for image in images]
        if self.copy_stream is None:
            return torch.stack(rows).to(self.device)
        with torch.cuda.stream(self.copy_stream):
            batch = torch.stack(rows) if rows[0].is_cuda else pinned_batch(rows).to(self.device, non_blocking=True)
        compute_stream = torch.cuda.current_stream(self.device)
        compute_stream.wait_stream(self.copy_stream)
        batch.record_stream(compute_stream)
        return batch

    def _run_batch(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the network; the second full batch is timed, and before the third, compiling is considered."""
        if len(batch) < self.batch_size and self.whole_batches:
            outputs = self._run_batch(filled_up(batch, self.batch_size))
            return {layer: values[: len(batch)] for layer, values in outputs.items()}
        if len(batch) < self.batch_size:
            return self.network(batch)
        if self.compilers and (self.asked != "auto" or len(self.seconds) == 2):
            self._compile(batch)
        if not self.compilers:
            return self.forward(batch)
        start = time.perf_counter()
        outputs = self.forward(batch)
        synchronize(outputs)
        self.seconds.append(time.perf_counter() - start)
        return outputs

    def _compile(self, batch: torch.Tensor) -> None:
        """Try the compilers that the run repays, until one makes it faster."""
        forced, names, self.compilers = self.asked != "auto", self.compilers, []
        for name in names:
            expected = math.inf if forced else self.seconds[-1] * self.count / len(batch)
            if self.forward is self.network and expected > compiling.COMPILERS[name].least_seconds:
                self._try_compiler(compiling.COMPILERS[name], batch, forced)
                self.compiled_by = "no" if self.forward is self.network else name

    def _fetch(self, outputs: dict[str, torch.Tensor]) -> Callable[[], BatchCodes]:
        """Return a function that waits until the codes are in CPU memory; it does not wait for later batches."""
        if self.copy_stream is None:
            codes = {layer: values.cpu().numpy() for layer, values in outputs.items()}
            return lambda: codes
        host = {layer: values.to("cpu", non_blocking=True) for layer, values in outputs.items()}  # pinned memory
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> BatchCodes:
            done.synchronize()
            return {layer: values.numpy() for layer, values in host.items()}

        return wait

    def _halve_batch_size(self) -> None:
        if self.batch_size == 1:
            raise errors.PipelineError(
                f"The memory of {self.device} does not suffice for one image. Choose another --device or --backbone."
            )
        self.batch_size //= 2
        self.forward, self.compiled_by, self.compilers = self.network, "no", []
        torch.cuda.empty_cache()
        self.notes.append(f"Out of memory on {self.device}: {self.batch_size} images per forward pass from there on")

    def _try_compiler(self, compiler: compiling.Compiler, batch: torch.Tensor, forced: bool) -> None:
        """Compile the network for batches of this size, and use that if its codes are the same and it is faster."""
        start = time.perf_counter()
        try:
            compiled = compiler.build(self.network, batch)
            cosine = lowest_cosine(compiled(batch), self.network(batch))
            spent = time.perf_counter() - start
            speedup = time_forward(self.network, batch) / time_forward(compiled, batch)
        except Exception as error:  # a compiler can fail in many ways; the network runs without it
            reason = errors.first_line(error).rstrip(".")
            if forced:
                raise errors.PipelineError(
                    f"The network cannot be compiled by {compiler.title} ({reason}). Leave out --compile."
                ) from error
            self.notes.append(f"Not compiled by {compiler.title}: {reason}")
            return
        least = SAME_COSINE if self.network.precision == "fp32" else MIN_COSINE
        if forced and cosine < least:
            raise errors.PipelineError(
                f"The network compiled by {compiler.title} gives other codes (lowest cosine {cosine:.6f}). Leave out "
                "--compile."
            )
        if cosine >= least and (speedup > 1 or forced):
            self.forward = compiled
        self.notes.append(
            f"{'Not compiled' if self.forward is self.network else 'Compiled'} by {compiler.title}: it is "
            f"{speedup:.2f} times as fast, its codes' cosine ≥ {cosine:.6f}, after {spent:.0f} s"
        )


def batch_size_for(device: torch.device, size: tuple[int, int]) -> int:
    """Return the number of images of a (height, width) per forward pass that suits a device.

    A batch has about the same number of pixels for every size, and at most 4 times the images of 224×224 pixels.
    """
    usual = BATCH_SIZES[device.type]
    return max(1, min(4 * usual, usual * 224**2 // math.prod(size)))


def filled_up(batch: torch.Tensor, size: int) -> torch.Tensor:
    """Return a batch of `size` images: those given, then black ones."""
    return torch.cat([batch, batch.new_zeros(size - len(batch), *batch.shape[1:])])


def pinned_batch(rows: list[torch.Tensor]) -> torch.Tensor:
    """Return one batch in pinned memory, from which a GPU copies without waiting for the CPU."""
    return torch.stack(rows, out=torch.empty((len(rows), *rows[0].shape), dtype=rows[0].dtype, pin_memory=True))


def time_forward(forward: Forward, batch: torch.Tensor) -> float:
    """Return the seconds of a forward pass: of the second one, since the first may be slower."""
    for _ in range(2):
        start = time.perf_counter()
        synchronize(forward(batch))
        seconds = time.perf_counter() - start
    return seconds


def synchronize(outputs: dict[str, torch.Tensor]) -> None:
    """Wait until the device has computed some outputs."""
    for values in outputs.values():
        values[0, 0].item()


def lowest_cosine(codes: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """Return the lowest cosine between two codes of one image, over images and layers; -1 if any is not finite."""
    cosines = [
        torch.cosine_similarity(codes[layer].double(), reference[layer].double(), eps=1e-30) for layer in reference
    ]
    return float(torch.stack(cosines).nan_to_num(-1.0, -1.0, -1.0).min())


def concatenate(parts: Sequence[BatchCodes]) -> BatchCodes:
    """Return the codes of several parts of a batch as one."""
    return (
        parts[0] if len(parts) == 1 else {layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]}
    )
