"""Load images for a network: read, decode and transform them while a GPU computes, or alternating with a CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline import errors
from pipeline.images import decoding, parallel, torchcodec
from pipeline.images.transforms import KnownImage, Loaded, LoadedImage, Transform, transform_image

MAX_FILES_AHEAD = 128
"""The most files whose bytes wait to be decoded on a GPU."""

MAX_REFUSALS = 10
"""The number of JPEG files refused by TorchCodec that are named in the log."""

logger = logging.getLogger(__name__)

Content = bytes | Image.Image | np.ndarray
"""The bytes of a file, a PIL image, or uint8 (height, width, 3) or (height, width)."""

Source = str | Path | Content | decoding.BadImage
"""An image: the path of a file, or its content."""


class ImageLoader:
    """Loads images for a network on a device.

    A CPU alternates between decoding and the network, since each of them needs all cores; meanwhile files are read.
    With a GPU, threads decode up to two batches ahead, or TorchCodec decodes batches of JPEG files on the GPU.

    threads: number of decoding threads; batch_size: images per forward pass; copy_stream: the CUDA stream on which
    TorchCodec decodes, so that the GPU computes a batch at the same time; None for the current stream; validate: raises
    `BadImage` for the bytes of a file that must not be used.
    """

    def __init__(
        self,
        transform: Transform,
        device: torch.device,
        threads: int,
        batch_size: int,
        copy_stream: torch.cuda.Stream | None = None,
        validate: Callable[[bytes], None] | None = None,
    ) -> None:
        self.transform, self.device, self.copy_stream = transform, device, copy_stream
        self.threads, self.batch_size, self.validate = threads, batch_size, validate
        self.read_ahead = max(batch_size, 4 * threads)
        self.refusals = 0

    def load(self, sources: Iterable[Source], known: Container[str] = frozenset()) -> Iterator[Loaded]:
        """Yield each image as the network sees it, in order, or `BadImage` with the reason why that is impossible.

        known: digests of images that are not to be decoded, for which `KnownImage` is yielded; several threads ask it.
        """
        if self.device.type == "cpu":
            contents = parallel.ordered_map(partial(self._read), sources, self.threads, self.read_ahead)
            decode = partial(self._decode, known)
            return parallel.alternating_map(decode, contents, self.threads, self.read_ahead)
        if self.transform.decoder == decoding.TORCHCODEC:
            return self.load_batches(sources, known)
        return parallel.ordered_map(partial(self._load, known), sources, self.threads, 2 * self.batch_size)

    def load_batches(self, sources: Iterable[Source], known: Container[str] = frozenset()) -> Iterator[Loaded]:
        """Yield the same as `load`, on the device, where TorchCodec decodes many JPEG files at a time."""
        ahead = min(MAX_FILES_AHEAD, self.read_ahead)
        opened = parallel.ordered_map(partial(self._read_and_open, known), sources, self.threads, ahead)
        for batch in torchcodec.batches(opened, self.batch_size):
            with torch.cuda.stream(self.copy_stream):
                decoded = torchcodec.decode_batch(batch, self.transform, self.device, self._report_refusal)
                images = [self._to_device(image) for image in decoded]
            yield from images

    def _load(self, known: Container[str], source: Source) -> Loaded:
        return self._decode(known, self._read(source))

    def _read_and_open(self, known: Container[str], source: Source) -> torchcodec.OpenedFile:
        return self._open(known, self._read(source))

    def _read(self, source: Source) -> tuple[str, Content]:
        name, content = read_source(source)
        if self.validate and isinstance(content, bytes):
            self.validate(content)
        return name, content

    def _decode(self, known: Container[str], content: tuple[str, Content]) -> Loaded:
        """Return an image that is decoded on the CPU, where TorchCodec gains nothing from several at a time."""
        opened = self._open(known, content)
        if not isinstance(opened, torchcodec.PlainJpeg):
            return opened
        (image,) = torchcodec.decode_batch([opened], self.transform, torch.device("cpu"), self._report_refusal)
        return image

    def _open(self, known: Container[str], content: tuple[str, Content]) -> torchcodec.OpenedFile:
        """Return a JPEG file for TorchCodec, or else the image decoded by Pillow, unless it is known."""
        name, data = content
        digest, decode = identify(data, self.transform)
        if digest in known:
            return KnownImage(digest)
        if self.transform.decoder == decoding.TORCHCODEC and isinstance(data, bytes):
            return torchcodec.open_jpeg(name, data, digest, self.transform)
        image, box = decode()
        transform = replace(self.transform, decoder=decoding.PILLOW)
        return LoadedImage(transform_image(image, transform, digest, box), digest)

    def _to_device(self, image: Loaded) -> Loaded:
        if isinstance(image, LoadedImage):
            return replace(image, pixels=torch.as_tensor(image.pixels).to(self.device))
        return image

    def _report_refusal(self, sentence: str) -> None:
        """Log that TorchCodec refused a JPEG file, the first ten by name."""
        self.refusals += 1
        if self.refusals <= MAX_REFUSALS:
            logger.warning(sentence)
        elif self.refusals == MAX_REFUSALS + 1:
            logger.warning("TorchCodec refuses further JPEG files, which Pillow decodes, too")


def read_source(source: Source) -> tuple[str, Content]:
    """Return the name and the content of an image; raise `BadImage` for a file that cannot be read."""
    if isinstance(source, str | Path):
        return str(source), decoding.read_bytes(Path(source))
    if isinstance(source, decoding.BadImage):
        raise source
    return "", source


def identify(content: Content, transform: Transform) -> tuple[str, Callable[[], tuple[Image.Image, decoding.Box]]]:
    """Return the digest of a file's bytes or of an image's size and pixels, and a function that decodes the image.

    That function returns the image, and the box that it fills.
    """
    if isinstance(content, bytes):
        decode = partial(decoding.decode_with_box, content, transform.min_side, transform.max_value)
        return decoding.digest(content), decode
    if isinstance(content, Image.Image):
        image = decoding.to_upright_rgb(content, transform.max_value)
    else:
        image = image_from_array(content)
    box = (0, 0, *image.size)
    return decoding.digest(repr(image.size).encode() + image.tobytes()), lambda: (image, box)


def image_from_array(pixels: np.ndarray) -> Image.Image:
    """Return a uint8 array of shape (height, width, 3), or (height, width) for grey, as an RGB image."""
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or 0 in pixels.shape or pixels.shape[2:] not in ((), (3,)) or pixels.ndim < 2:
        raise errors.PipelineError(
            "An image must be a path, a PIL image, or uint8 of shape (height, width, 3) or (height, width), "
            f"not {pixels.dtype} of shape {pixels.shape}."
        )
    return Image.fromarray(pixels).convert("RGB")
