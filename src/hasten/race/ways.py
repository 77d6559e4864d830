"""Ways to exchange what workers know, put to work on a task."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.futures import Future

from hasten.optimizers import Nesterov
from hasten.oracles.subspace import SubspaceOracle
from hasten.race.task import Task
from hasten.sketches import Sketch
from hasten.wire import Wire, communication, serve

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

    from hasten.distributed import Exchange, Hook

PART = "gradients"


@dataclass
class Attached:
    """A task at work under a way to exchange.

    Attributes:
        task: with a loss whose gradients are exchanged.
        oracle: the one of the gradients that arrived in random subspaces; None where whole ones arrive.
        wrap: what makes an optimizer exchange by itself.
        memory: bytes that the exchange keeps on this worker.
        finish: exchanges what has not been, on all workers, when training ends.
    """

    task: Task
    oracle: SubspaceOracle | None = None
    wrap: Callable[[Any], Any] = lambda optimizer: optimizer
    memory: Callable[[], int] = lambda: 0
    finish: Callable[[], None] = lambda: None

    def sent(self) -> float:
        """Bytes this worker has sent on account of the parameters."""
        return communication(self.task.model.parameters()).total.sent


class Way(abc.ABC):
    """A way to exchange."""

    random_subspaces = False
    """Whether gradients arrive in random subspaces."""

    @abc.abstractmethod
    def attach(self, task: Task, seed: int) -> Attached:
        """Put it to work on a task, on every worker alike."""


class TaskLoss(nn.Module):
    """A task's loss as a module, which is what DistributedDataParallel wraps.

    Example:
        >>> from hasten.race.tasks import find_task
        >>> task = find_task("valley").build(0)
        >>> TaskLoss(task)(None).shape
        torch.Size([])
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.loss = task.loss

    def forward(self, batch: Any) -> Tensor:
        """The loss of one batch."""
        return self.loss(batch)


def _distributed(task: Task, **more: Any) -> DistributedDataParallel:
    from torch.nn.parallel import DistributedDataParallel

    # Buffers stay each worker's own: rank 0's are evaluated, and nothing is sent that is not counted.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    newer = "forward_sync_buffers" in known  # what torch calls it from 2.13 on
    options: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False, **more}
    return DistributedDataParallel(TaskLoss(task), **options)


def _trained(task: Task) -> list[nn.Parameter]:
    return [p for p in task.model.parameters() if p.requires_grad]


class AllReduce(Way):
    """DistributedDataParallel's own: one all-reduce of every bucket as it is."""

    def attach(self, task: Task, seed: int) -> Attached:
        """The sum is formed in the bucket itself."""
        wire = Wire()

        def averaged(bucket: Any) -> Future[Tensor]:
            return wire.sum(bucket.buffer().div_(wire.world), PART)

        model = _distributed(task)
        model.register_comm_hook(None, lambda state, bucket: averaged(bucket))  # torch reads these names
        serve(_trained(task), wire)
        return Attached(replace(task, loss=model))


class Averaged(Way):
    """Gradients averaged by a hook of the library, made from a seed."""

    def __init__(self, hook: Callable[[int], Hook]) -> None:
        hook(0)  # refuses wrong arguments
        self.hook = hook

    def attach(self, task: Task, seed: int) -> Attached:
        """The hook is registered with DistributedDataParallel."""
        model = _distributed(task)
        hook = self.hook(seed).register(model)
        return Attached(replace(task, loss=model), memory=lambda: _size(hook.state_dict()))


class InSubspace(Way):
    """Gradients that arrive in random subspaces; subspace methods are told."""

    random_subspaces = True

    def __init__(self, sketch: Sketch) -> None:
        self.sketch = sketch

    def attach(self, task: Task, seed: int) -> Attached:
        """The hook is registered with DistributedDataParallel."""
        from hasten.distributed import SubspaceHook

        model = _distributed(task)
        hook = SubspaceHook(self.sketch, seed=seed).register(model)
        return Attached(replace(task, loss=model), oracle=hook.oracle)


def _size(state: Any) -> int:
    """Bytes of the tensors in a state dict."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(map(_size, state.values()))
    return sum(map(_size, state)) if isinstance(state, list | tuple) else 0


class PowerSGD(Way):
    """torch's own ``powerSGD_hook``, with error feedback and warm start, its bytes counted by formula.

    Of an n×m matrix with 2k(n + m) < nm it sends n k and m k numbers, of all else everything; before step `start`
    everything. It must be at least 2.
    """

    def __init__(self, rank: int, start: int) -> None:
        for name, value, least in (("rank", rank, 1), ("start", start, 2)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} = {value!r} is not allowed; it must be an integer of at least {least}"
                )
        self.rank = rank
        self.start = start

    def attach(self, task: Task, seed: int) -> Attached:
        """The numbers are counted as the hook is called."""
        from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

        wire = Wire()
        state = PowerSGDState(
            wire.group,
            matrix_approximation_rank=self.rank,
            start_powerSGD_iter=self.start,
            random_seed=seed % 2**32,
        )

        def averaged(bucket: Any) -> Any:
            whole = state.iter < state.start_powerSGD_iter
            count = sum(g.numel() if whole else numbers_sent(g.shape, self.rank) for g in bucket.gradients())
            payload = count * bucket.buffer().element_size()
            moved = 2 * payload * (wire.world - 1) / wire.world
            wire.count(PART, payload, moved, moved)
            return powerSGD_hook(state, bucket)

        # One bucket: of several, torch's hook makes its follow-up calls in an order that varies among workers.
        size = sum(p.nbytes for p in task.model.parameters())
        model = _distributed(task, bucket_cap_mb=size / 2**20 + 1)
        model.register_comm_hook(state, lambda state, bucket: averaged(bucket))
        serve(_trained(task), wire)
        kept = (state.error_dict, state.p_memory_dict, state.q_memory_dict)
        return Attached(replace(task, loss=model), memory=lambda: sum(map(_size, kept)))


def numbers_sent(shape: Iterable[int], rank: int) -> int:
    """What torch's PowerSGD sends of one gradient.

    Example:
        >>> numbers_sent((100, 50), rank=2), numbers_sent((100,), rank=2)
        (300, 100)
    """
    n, *others = shape
    m = 1
    for size in others:
        m *= size
    k = min(n, m, rank)
    return (n + m) * k if 2 * k * (n + m) < n * m else n * m


class Local(Way):
    """No exchange but after so many steps of every worker for itself.

    Args:
        every: how many.
        exchange: made from a seed; None for the exact mean.
        outer: of :class:`~hasten.distributed.LocalSteps`; None for its default.
    """

    def __init__(
        self,
        every: int,
        exchange: Callable[[int], Exchange | None],
        outer: Callable[[list[Tensor]], Nesterov] | None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every = {every!r} is not allowed; it must be a positive integer")
        exchange(0)
        if outer is not None:
            outer([torch.zeros(1)])
        self.every = every
        self.exchange = exchange
        self.outer = outer

    def attach(self, task: Task, seed: int) -> Attached:
        """The optimizer exchanges, last of all when training ends."""
        from hasten.distributed import LocalSteps

        made: list[LocalSteps] = []

        def local(inner: Any) -> LocalSteps:
            made.append(LocalSteps(inner, self.outer, self.every, self.exchange(seed)))
            return made[0]

        def memory() -> int:
            state = made[0].state_dict()
            return _size([state["anchor"], state["exchange"]])

        return Attached(task, wrap=local, memory=memory, finish=lambda: made[0].sync())
