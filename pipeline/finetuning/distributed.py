"""Several processes that train one network together, as torchrun starts them; or just this one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce


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


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of a batch whose images are spread over processes (gloo or NCCL)."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (n, c, h, w) maps normalised, by what all processes have; each must have some."""
        if not self.training:
            return super().forward(maps)
        values, over = maps.float(), (0, 2, 3)
        count = all_reduce(values.new_tensor(values.numel() / values.shape[1]))
        mean = all_reduce(values.sum(over)) / count
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().sum(over)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(maps.dtype)

    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


def share_batch_norms(network: nn.Module) -> None:
    """Let the batch norms of a network take their statistics over all processes."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            shared = SharedBatchNorm(module.num_features, module.eps, module.momentum)
            shared.to(module.weight.device).load_state_dict(module.state_dict())
            network.set_submodule(name, shared)


@contextmanager
def join_processes(device: str) -> Iterator[tuple[Processes, str]]:
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
