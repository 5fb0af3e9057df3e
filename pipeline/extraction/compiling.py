"""Faster forms of a frozen network: compiled by torch, or run by ONNX Runtime, which is made for CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from pipeline.networks.frozen import FrozenNetwork

from pipeline import errors
from pipeline.networks import onnx

Forward = Callable[[torch.Tensor], dict[str, torch.Tensor]]
"""Maps a batch on the device to {layer: (n, width)} on the device."""

TORCH, ONNX_RUNTIME = "torch", "onnxruntime"


def candidates(network: FrozenNetwork, asked: str) -> list[str]:
    """Return the compilers to try, in their order; asked: a name, "auto", or "no".

    Raise PipelineError if one is asked for that cannot run the network here.
    """
    if asked == "no":
        return []
    obstacle = obstacle_of_onnx_runtime(network)
    if asked == "auto":
        return [TORCH] if obstacle else [ONNX_RUNTIME, TORCH]
    if asked == ONNX_RUNTIME and obstacle:
        raise errors.PipelineError(f"ONNX Runtime cannot run the network: {obstacle}. Take --compile auto.")
    return [asked]


def obstacle_of_onnx_runtime(network: FrozenNetwork) -> str:
    """Return why ONNX Runtime cannot run a network here, or "" if it may."""
    if network.mean.device.type != "cpu":
        return "it is used on CPUs alone"
    if network.precision != "fp32":
        return f"it computes in fp32, not in {network.precision}"
    if missing := errors.missing_packages(onnx.PACKAGES):
        return f"{' and '.join(missing)} must be installed (pip install {onnx.EXTRA})"
    return "" if onnx.fits(network) else "it has more parameters than the 2 GB that ONNX holds"


def by_torch(network: FrozenNetwork, batch: torch.Tensor) -> Forward:
    """Return the network compiled by torch for batches of this size."""
    from torch._inductor import config

    compiled: Forward = torch.compile(network, dynamic=False)
    with config.patch(freezing=True):  # as an option of torch.compile it has no effect
        compiled(batch)
    return compiled


class _Listed(torch.nn.Module):
    """A network that gives its codes in the order of its layers, without their names, as an ONNX program does."""

    def __init__(self, network: FrozenNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the codes of each layer."""
        return list(self.network(images).values())


def by_onnx_runtime(network: FrozenNetwork, batch: torch.Tensor) -> Forward:
    """Return the network run by ONNX Runtime, on as many threads as torch uses.

    They do not spin while they wait, for the threads that decode images need the cores.
    """
    import onnxruntime  # of an extra

    with torch.inference_mode(False):
        example = torch.zeros((max(2, len(batch)), *batch.shape[1:]), dtype=batch.dtype)
        program = onnx.translate(_Listed(network), example, list(network.nodes))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    file = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def forward(images: torch.Tensor) -> dict[str, torch.Tensor]:
        values = session.run(None, {"images": images.numpy()})
        return {layer: torch.from_numpy(codes) for layer, codes in zip(network.nodes, values, strict=True)}

    return forward


class Compiler(NamedTuple):
    """A way to make a network faster.

    title: what notes call it; least_seconds: what a run must be expected to take before it is tried; build: a function
    from a network and a batch to its faster form.
    """

    title: str
    least_seconds: float
    build: Callable[[FrozenNetwork, torch.Tensor], Forward]


COMPILERS = {
    TORCH: Compiler("torch", 240, by_torch),  # it compiles for half a minute or more
    ONNX_RUNTIME: Compiler("ONNX Runtime", 40, by_onnx_runtime),  # it needs some seconds
}
"""The compilers by the value of --compile."""
