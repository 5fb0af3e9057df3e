"""Several processes that train one network together, as torchrun starts them, or a single process."""

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
    """The rank of this process, from 0 on, and the number of processes."""

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def sum_in_place(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes; all tensors of one device and type go in one message.

        DistributedDataParallel does not serve here: it averages gradients as if all processes had equally many images,
        and waits for the same number of backward passes in each. Here a process may have fewer images in a step, or
        none, may split them into more microbatches after it ran out of memory, and trains other parameters in the
        phase of the head than in that of the network.
        """
        groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
        for tensor in tensors if self.count > 1 else ():
            groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        for group in groups.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            for tensor, total in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def wait(self) -> None:
        """Wait until all processes have arrived here."""
        if self.count > 1:
            dist.barrier()


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of a batch whose images are spread over processes.

    torch's SyncBatchNorm does the same on GPUs only; this one works on CPUs as well, and takes statistics in float32.
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return normalised (n, c, h, w) maps; in training, every process must have at least one image."""
        if not self.training:
            return super().forward(maps)
        values, axes = maps.float(), (0, 2, 3)
        count = all_reduce(values.new_tensor(values.numel() / values.shape[1]))
        mean = all_reduce(values.sum(axes)) / count
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().sum(axes)) / count
        self._update_running_statistics(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(maps.dtype)

    def _update_running_statistics(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise TypeError("SharedBatchNorm needs running statistics and a momentum")
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


def share_batch_norms(network: nn.Module) -> None:
    """Replace the batch norms of a network by those that take their statistics over all processes."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            shared = SharedBatchNorm(module.num_features, module.eps, module.momentum)
            shared.to(module.weight.device).load_state_dict(module.state_dict())
            network.set_submodule(name, shared)


@contextmanager
def join_processes(device: str) -> Iterator[tuple[Processes, str]]:
    """Join the processes that torchrun started, if it did; yield them, and the device of this process."""
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
