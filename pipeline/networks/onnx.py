"""Networks as ONNX programs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

MAX_BYTES = 2**31 - 2**20
"""ONNX files are protocol buffers, which hold 2 GiB; the parameters may take this much of it."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""Packages that nothing else needs."""

EXTRA = "-e '.[export]'"
"""What pip is given to install them."""


def fits(model: torch.nn.Module) -> bool:
    """Return whether an ONNX file can hold the parameters of a module."""
    size: int = sum(value.nbytes for value in model.state_dict().values())
    return size <= MAX_BYTES


def translate(model: torch.nn.Module, example: torch.Tensor, outputs: Sequence[str]) -> torch.onnx.ONNXProgram:
    """Return a module as an ONNX program that takes any number of images.

    example: some images; outputs: the names of its outputs.
    """
    graph = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
    graph = graph.run_decompositions({torch.ops.aten.adaptive_max_pool2d.default: _adaptive_max_pool})
    program = torch.onnx.export(graph, input_names=["images"], output_names=list(outputs), verbose=False)
    if program is None:
        raise RuntimeError("no program was made")
    return program


def _adaptive_max_pool(maps: torch.Tensor, cells: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return adaptive max pooling, which ONNX lacks, of maps of a fixed size; the places of the maxima are all 0."""
    values = maps
    for axis, (size, count) in enumerate(zip(maps.shape[2:], cells, strict=True), start=2):
        bounds = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        values = torch.cat([values.narrow(axis, low, high - low).amax(axis, True) for low, high in bounds], axis)
    return values, torch.zeros_like(values, dtype=torch.int64)
