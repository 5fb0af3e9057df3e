"""Several processes that train one network together, as torchrun starts them; or just this one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """Which of how many this process is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def total(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes, all of a kind in one message."""
        kinds: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
        for tensor in tensors if self.count > 1 else ():
            kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        for some in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in some])
            dist.all_reduce(flat)
            for tensor, part in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def agree(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every process the first one's values."""
        for tensor in tensors if self.count > 1 else ():
            dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, str]]:
    """Join the processes that torchrun started, if it did; yield them, and the device that is this one's."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(), device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
