"""Sums and gathers over ranks, by torch.distributed: gloo on CPUs, NCCL on CUDA GPUs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

#: Longest wait for another rank in one operation. A worker ends an engine that stands still earlier
#: (`engine_stall_s`); without a worker this ends it.
TIMEOUT = timedelta(seconds=300)
LOOPBACK = "127.0.0.1"


class Collectives:
    """The operations of one rank with the others; implements `models.split_layers.Ranks`.

    It has process groups of its own, not torch's global one: several engines of one process, and
    other users of torch.distributed, do not disturb each other.
    """

    def __init__(self, rank: int, num_ranks: int, device: torch.device) -> None:
        """Remember who takes part; `connect` before the first operation."""
        self.rank = rank
        self.num_ranks = num_ranks
        self._device = device
        self._group: Any = None

    def connect(self, store: Store) -> None:
        """Connect all ranks; every one must call it.

        Args:
            store: Where ranks find each other, see `rendezvous.py`.

        Raises:
            RuntimeError: a rank did not come within `TIMEOUT`.
        """
        if self._device.type == "cuda":
            group: Any = dist.ProcessGroupNCCL
            options = group.Options()
        else:
            group = dist.ProcessGroupGloo
            options = group._Options()
            options._devices = [group.create_device(hostname=LOOPBACK)]
        options._timeout = TIMEOUT
        self._group = group(store, self.rank, self.num_ranks, options)

    def sum(self, x: Tensor) -> Tensor:
        """Add the tensors of all ranks, in place; return the sum, which is the same on each."""
        self._connected.allreduce([x]).wait()
        return x

    def gather(self, part: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks on rank 0, and an empty list on the others."""
        parts = [torch.empty_like(part) for _ in range(self.num_ranks)] if self.rank == 0 else []
        self._connected.gather([parts] if parts else [], [part]).wait()
        return parts

    def broadcast(self, x: Tensor) -> None:
        """Copy a tensor of rank 0 into those of the others."""
        self._connected.broadcast([x]).wait()

    @property
    def _connected(self) -> Any:  # torch declares no type with these operations
        assert self._group is not None, "ranks connect before they compute"
        return self._group
