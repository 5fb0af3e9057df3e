"""How the computation of a run is done, and in which precision."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from pipeline.finetuning.distributed import Processes


@dataclass(frozen=True)
class RuntimeConfig:
    """How the computation runs; it changes results by rounding at most.

    threads: number of decoding threads; precision: of the training steps, "fp32" or "bf16"; compile: whether the steps
    are compiled; checkpoint_seconds: time between checkpoints within an epoch; processes: those that train together.
    """

    device: str = "cpu"
    threads: int = 1
    precision: str = "fp32"
    compile: bool = False
    checkpoint_seconds: float = 300.0
    processes: Processes = field(default_factory=Processes)


def choose_step_precision(precision: str, device: str) -> str:
    """Return the precision of the steps; "auto" becomes bf16 where the device multiplies in it, and fp32 elsewhere."""
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    units = ("amx_bf16", "avx512_bf16")
    return "bf16" if device == "cpu" and any(torch.cpu.get_capabilities().get(unit) for unit in units) else "fp32"
