"""Processes that fit together, each with some of the replicates, or of the cells of a mini-batch.

torchrun, or srun, starts the same command several times and sets ``RANK``, ``WORLD_SIZE`` and the
address of the first process. Replicates do not depend on each other, so processes that divide them
exchange only the metrics of an epoch, and the weights for checkpoints and at the end. Processes
that divide the cells exchange gradients in every step.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from topicell.errors import InputError
from topicell.progress import step

if TYPE_CHECKING:
    from torch import Tensor


SECONDS_TO_MEET = 300
"""How long a process waits for the others at the beginning."""
LONGEST_WAIT = timedelta(days=7)
"""How long processes wait for each other later: for the scores of the first one, for example. A
process that ends is noticed at once."""


class ProcessEndedError(RuntimeError):
    """The connection to another process was lost."""


@contextlib.contextmanager
def _connection() -> Iterator[None]:
    """Name the errors of torch.distributed."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ProcessEndedError(
            "another process of this run has ended, and its own message says why; resume=true "
            f"continues from the last checkpoint ({_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:120]


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a fit that a process computes: some replicates, some cells of mini-batches.

    Attributes
    ----------
    n_replicates
        Number of replicates of all processes.
    mine
        The replicates of this process.
    shard, n_shards
        Number of this process among those with the same replicates, and how many these are.
    group
        Those processes, for torch.distributed.
    """

    n_replicates: int
    mine: list[int]
    shard: int = 0
    n_shards: int = 1
    group: Any = None

    def cells(self, part: np.ndarray) -> np.ndarray:
        """Return the cells of a mini-batch that belong to this process."""
        return part[self.shard :: self.n_shards]


@dataclass(slots=True)
class Shards:
    """The processes that divide the cells of each mini-batch."""

    group: Any
    n_batch: int = 0
    """Number of cells of the current mini-batch of all of them."""

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        import torch.distributed as dist

        with _connection():
            dist.all_reduce(value, group=self.group)
        return value

    def add_up(self, values: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over the processes, in one message."""
        import torch

        flat = self.total(torch.cat([value.reshape(-1) for value in values]))
        for value, part in zip(values, flat.split([v.numel() for v in values]), strict=True):
            value.copy_(part.view_as(value))


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a fit; a single one by default."""

    rank: int = 0
    size: int = 1
    group: Any = None
    """All processes, for torch.distributed."""
    _groups: dict[tuple[int, str], list[Any]] = field(default_factory=dict)
    """Groups of the processes with the same replicates, by their size and connection."""

    def share(self, n_replicates: int, per_process: int | None) -> Share:
        """Return the share of this process.

        Replicates are divided first. If there are more processes than that needs, several have the
        same replicates, and divide the cells of each mini-batch.

        Parameters
        ----------
        n_replicates
            R.
        per_process
            ``train.replicates_per_device``; null divides the replicates as far as possible.

        Raises
        ------
        InputError
            The processes cannot be divided equally.
        """
        n_groups = min(n_replicates, self.size)
        if per_process is not None and self.size > 1:
            n_groups = math.ceil(n_replicates / per_process)
        n_shards, left = divmod(self.size, n_groups)
        if left:
            raise InputError(
                f"train.n_replicates = {n_replicates} are divided into {n_groups} groups, over "
                f"which {self.size} processes cannot be divided equally; start a multiple of "
                f"{n_groups} processes, or change train.replicates_per_device"
            )
        number, shard = divmod(self.rank, n_shards)
        mine = np.array_split(np.arange(n_replicates), n_groups)[number].tolist()
        return Share(n_replicates, mine, shard, n_shards)

    def everyone(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with _connection():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def first(self, value: Any) -> Any:
        """Return the value of the first process."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        with _connection():
            dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def joined(self, share: Share, value_R: np.ndarray) -> np.ndarray:
        """Return the values of the replicates of all processes, along the first axis."""
        return np.concatenate(self.everyone(value_R)[:: share.n_shards])

    def connected(self, share: Share, *, own_gpu: bool) -> Share:
        """Return a share with the connection to the processes that have the same replicates.

        Parameters
        ----------
        share
            The share of this process.
        own_gpu
            Whether this process has a GPU of its own: NCCL connects processes that all have one,
            gloo others.
        """
        if share.n_shards == 1:
            return share
        import torch.distributed as dist

        backend = "nccl" if all(self.everyone(own_gpu)) else "gloo"
        key = share.n_shards, backend
        if key not in self._groups:
            with _connection():
                # Every process must take part in making every group.
                self._groups[key] = [
                    dist.new_group([*range(i, i + share.n_shards)], LONGEST_WAIT, backend)
                    for i in range(0, self.size, share.n_shards)
                ]
        return replace(share, group=self._groups[key][self.rank // share.n_shards])

    def union(self, of_replicates: Mapping[int, Any]) -> dict[int, Any]:
        """Return the entries of all processes."""
        return {
            r: value for part in self.everyone(dict(of_replicates)) for r, value in part.items()
        }


def n_processes() -> int:
    """Return how many processes torchrun or srun has started for this run."""
    return _number("WORLD_SIZE", 1)


def is_follower() -> bool:
    """Return whether this process was started to help another one."""
    return n_processes() > 1 and _number("RANK", 0) > 0


def gpu_of_process() -> tuple[int | None, bool]:
    """Return the number of this process's GPU, and whether no other process has the same.

    It is None, the current GPU, for a single process.
    """
    import torch

    if n_processes() == 1:
        return None, True
    n_here, n_gpus = _number("LOCAL_WORLD_SIZE", n_processes()), torch.cuda.device_count()
    return _number("LOCAL_RANK", 0) % n_gpus, n_here <= n_gpus


@contextlib.contextmanager
def together() -> Iterator[Ranks]:
    """Connect to the other processes that torchrun or srun has started, if there are any.

    Raises
    ------
    InputError
        Variables of the environment do not say where the others are, or these do not come.
    """
    if n_processes() == 1:
        yield Ranks()
        return
    import torch.distributed as dist

    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(n)]
    if missing:
        raise InputError(
            f"WORLD_SIZE = {n_processes()}, but {' and '.join(missing)} are not set; start several "
            "processes with torchrun, or unset WORLD_SIZE"
        )
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    with step(f"connection of {n_processes()} processes at {address}"):
        try:
            # Weights and metrics are exchanged on the CPU.
            dist.init_process_group("gloo", timeout=timedelta(seconds=SECONDS_TO_MEET))
            group = dist.new_group(timeout=LONGEST_WAIT, backend="gloo")
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{n_processes()} processes do not meet at MASTER_ADDR:MASTER_PORT = {address} "
                f"({_first_line(error)}); check that all have started, that they reach this "
                "address, and that nothing else uses the port"
            ) from error
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), group)
    finally:
        dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default
