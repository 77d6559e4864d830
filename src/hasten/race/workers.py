"""Those who run a race together: one process, or several that share every batch."""

from __future__ import annotations

import datetime
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from hasten.race.errors import RaceError, one_line
from hasten.race.task import Task, derive_seed
from hasten.wire import Wire, WorkerLost

T = TypeVar("T")

TIMEOUT = datetime.timedelta(minutes=30)
"""How long a worker waits for the others; the slowest evaluation must fit in."""


class Workers:
    """This process, and where it stands among those it races with.

    Rank 0 decides, keeps files and is heard; all take the same steps.

    Args:
        wire: the collectives of the group; None for a process by itself.

    Example:
        >>> ALONE.world, ALONE.decide(lambda: 3), ALONE.mean(2.0)
        (1, 3, 2.0)
    """

    def __init__(self, wire: Wire | None = None) -> None:
        self.wire = wire
        self.rank = 0 if wire is None else wire.rank
        self.world = 1 if wire is None else wire.world

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def decide(self, choose: Callable[[], T]) -> T:
        """What rank 0 finds, on all; a mistake that it finds is raised on all."""
        if self.wire is None:
            return choose()
        found: tuple[Any, str] = (None, "")
        error: Exception | None = None
        if self.first:
            try:
                found = (choose(), "")
            except Exception as raised:
                error, found = raised, (None, one_line(raised))
        value, message = self.wire.objects(found)[0]
        if error is not None:
            raise error
        if message:
            raise RaceError(message)
        chosen: T = value
        return chosen

    def mean(self, value: float) -> float:
        """The mean over all workers; not finite if one's is not."""
        if self.wire is None:
            return value
        together = self.wire.sum(torch.tensor([value], dtype=torch.float64), "race").wait()
        return float(together) / self.world

    def own_seed(self, seed: int) -> int:
        """A seed for what differs from worker to worker, such as dropout; rank 0 keeps the one given.

        Example:
            >>> ALONE.own_seed(5)
            5
        """
        return seed if self.first else derive_seed(seed, self.rank)

    def check_together(self, tensors: Iterable[Tensor], label: str) -> None:
        """Raise a `RaceError` on all unless all have the same tensors to the bit."""
        if self.wire is None:
            return
        sha = hashlib.sha256()
        for tensor in tensors:
            sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        found = self.wire.objects(sha.hexdigest())
        apart = [rank for rank, one in enumerate(found) if one != found[0]]
        if apart:
            raise RaceError(
                f"{label}: rank {apart[0]} ended with other parameters than rank 0: a step depends on what each "
                "worker knows for itself, such as its own loss"
            )

    def sharing(self, task: Task) -> Task:
        """The task as one of the workers has it: its part of every batch, and rank 0's evaluations.

        Raises:
            RaceError: the batches cannot be shared.
        """
        if self.wire is None:
            return task
        return replace(
            task,
            sample=lambda generator: part(task.sample(generator), self.rank, self.world),
            evaluate=lambda: self.decide(lambda: float(task.evaluate())),
        )


ALONE = Workers()


def part(batch: Any, rank: int, world: int) -> Any:
    """A worker's part of a batch: equally many consecutive examples of each tensor (its first dimension).

    Tensors may lie in tuples, lists and dicts. What has no dimension goes to every worker.

    Raises:
        RaceError: there is nothing to share, or it cannot be shared evenly.

    Example:
        >>> part((torch.arange(4), torch.eye(4), 3), rank=1, world=2)[0]
        tensor([2, 3])
        >>> part(torch.arange(4), rank=0, world=3)
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: batches of 4 cannot be shared evenly by 3 workers: take 2 or 4
    """
    counts = sorted({tensor.shape[0] for tensor in _tensors(batch) if tensor.dim()})
    if not counts:
        raise RaceError(f"there are no batches that {world} workers could share")
    if len(counts) > 1:
        raise RaceError(
            f"the tensors of a batch have {' and '.join(map(str, counts))} rows: {world} workers cannot tell what to "
            "share; let the first dimension count the examples"
        )
    count = counts[0]
    if count % world:
        able = [str(n) for n in range(2, min(count, 64) + 1) if count % n == 0]
        hint = f": take {' or '.join(able)}" if able else ""
        raise RaceError(f"batches of {count} cannot be shared evenly by {world} workers{hint}")
    size = count // world
    return _mapped(batch, lambda tensor: tensor[rank * size : (rank + 1) * size] if tensor.dim() else tensor)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from _tensors(value)


def _mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {key: _mapped(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        values = [_mapped(value, change) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch


def started_together() -> int | None:
    """How many workers a launcher such as torchrun started, or the caller joined; None where there is no sign of one.

    Example:
        >>> started_together() is None
        True
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    if all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return int(os.environ["WORLD_SIZE"])
    return None


def world_of(asked: int | None) -> int:
    """How many workers are to race, when `asked` are asked for.

    Raises:
        RaceError: fewer than one, or not as many as were started.

    Example:
        >>> world_of(None), world_of(3)
        (1, 3)
        >>> world_of(0)
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: world=0 must be at least 1
    """
    if asked is not None and asked < 1:
        raise RaceError(f"world={asked} must be at least 1")
    there = started_together()
    if there is None:
        return asked or 1
    if asked is not None and asked != there:
        raise RaceError(f"world={asked} workers are asked for, but {there} were started: leave --world out")
    return there


@contextmanager
def together(meeting: str | None = None, rank: int = 0, world: int = 1) -> Iterator[Workers]:
    """The workers this process belongs to: of the group it is in, of a `meeting`, of a launcher; else it is alone.

    Args:
        meeting: where workers of this machine meet, as the URI of a file that is not there yet.
        rank: this worker's, at the meeting.
        world: how many meet.

    Example:
        >>> with together() as workers:
        ...     workers.world
        1
    """
    import torch.distributed as dist

    joined = dist.is_available() and dist.is_initialized()
    if not joined and meeting is None and started_together() in (None, 1):
        yield ALONE
        return
    if not joined:
        if meeting is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=TIMEOUT)
        else:
            dist.init_process_group("gloo", timeout=TIMEOUT)
    wire = Wire()
    yield Workers(wire if wire.world > 1 else None)
    if not joined:  # after an error the others may be gone: nothing is waited for
        dist.destroy_process_group()


def lost(error: Exception) -> bool:
    """Whether an error says that a worker is gone: in the words of DistributedDataParallel, which knows no types.

    Example:
        >>> lost(RuntimeError("Got the following error when running the callback: WorkerLost: ..."))
        True
        >>> lost(RuntimeError("The size of tensor a (2) must match the size of tensor b (3)"))
        False
    """
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in (WorkerLost.__name__, "/gloo/transport/")
    )
