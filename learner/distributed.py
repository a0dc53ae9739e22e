"""Several processes that share the steps of one run, as `torchrun` starts them."""

from __future__ import annotations

import atexit
import datetime as dt
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
PATIENCE = dt.timedelta(days=7)  # the others wait while the first consolidates and measures


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that share the steps of a run; alone unless `join` says otherwise.

    Attributes:
        rank: its number, from 0; the first one writes.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            dist.barrier()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The first process runs the block, then the others do and find what it made."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    def told(self, value: T) -> T:
        """What the first process gives, to all."""
        box: list[Any] = [value]
        if self.world > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the ranks; one that a rank lacks counts as zero there."""
        if self.world == 1:
            return
        parameters = list(parameters)
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, grad in zip(parameters, (flat / self.world).split([p.numel() for p in parameters]), strict=True):
            p.grad = grad.view_as(p)

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all ranks, ``[B, ...]`` -> ``[sum of B, ...]``; gradients flow back to where rows come from."""
        if self.world == 1:
            return x
        sizes = torch.zeros(self.world, dtype=torch.int64, device=x.device)
        sizes[self.rank] = len(x)
        dist.all_reduce(sizes)
        gathered: Tensor = _Gather.apply(x, self.rank, sizes.tolist())
        return gathered


class _Gather(torch.autograd.Function):
    """Every rank puts its rows where they belong among zeros; the sum over the ranks holds all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int, sizes: list[int]) -> Tensor:  # noqa: D102
        ctx.rank, ctx.sizes = rank, sizes
        parts = [x if i == rank else x.new_zeros(size, *x.shape[1:]) for i, size in enumerate(sizes)]
        whole = torch.cat(parts)
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # noqa: D102
        whole = grads[0].contiguous()
        dist.all_reduce(whole)
        return whole.split(ctx.sizes)[ctx.rank], None, None


def join() -> Ranks:
    """The processes that `torchrun` started, or this one alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)  # gloo's threads abort a process that ends beside them
    return Ranks(dist.get_rank(), world)
