"""How several workers exchange what they know: the text ``"none,subspace(ratio=64)"`` read, and put to work."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.futures import Future

from hasten.optimizers import Nesterov
from hasten.oracles.subspace import SubspaceOracle
from hasten.race.errors import RaceError, one_line
from hasten.race.known import sized_sketch
from hasten.race.reading import read_calls
from hasten.race.task import Task
from hasten.sketches import BalancedCountSketch, Sketch
from hasten.wire import Wire, communication, serve

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

    from hasten.distributed import Compressor, Exchange, Hook

PLAIN = "none"
"""The way that labels do not mention."""
EXAMPLE = "none,subspace(ratio=64)"
PART = "gradients"


@dataclass(frozen=True)
class HookSpec:
    """A way to exchange, as it was asked for.

    Attributes:
        label: the text it was asked for with.
        name: which of `WAYS`.
        options: its arguments.

    Example:
        >>> parse_hooks("subspace(ratio=16)")[0].options
        {'ratio': 16}
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def way(self) -> Way:
        """What it is."""
        return WAYS[self.name](**self.options)


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


def _none() -> Way:
    return AllReduce()


def _bf16() -> Way:
    from hasten.distributed import AllReduce as Mean
    from hasten.distributed import Hook

    return Averaged(lambda seed: Hook(Mean(torch.bfloat16)))


def _subspace(
    *,
    ratio: float | None = None,
    rank: int | None = None,
    sketch: str = "BalancedCountSketch",
    feedback: bool = False,
) -> Way:
    from hasten.distributed import Sketched
    from hasten.distributed.linear import RATIO

    family = sized_sketch(sketch, rank, RATIO if rank is None and ratio is None else ratio)
    return _fed_back(lambda seed: Sketched(family, seed=seed)) if feedback else InSubspace(family)


def _fed_back(compressor: Callable[[int], Compressor]) -> Way:
    from hasten.distributed import ErrorFeedback, Hook

    return Averaged(lambda seed: Hook(ErrorFeedback(compressor(seed))))


def _lowrank(*, rank: int = 2) -> Way:
    from hasten.distributed import LowRank

    return _fed_back(lambda seed: LowRank(rank, seed=seed))


def _topk(*, ratio: float = 100) -> Way:
    from hasten.distributed import TopK

    return _fed_back(lambda seed: TopK(ratio))


def _dct(*, rank: int = 4) -> Way:
    from hasten.distributed import DCTColumns

    return _fed_back(lambda seed: DCTColumns(rank))


def _sign() -> Way:
    from hasten.distributed import Sign

    return _fed_back(lambda seed: Sign())


def _local(
    *,
    every: int = 32,
    ratio: float | None = None,
    feedback: bool = False,
    lr: float | None = None,
    momentum: float = 0.0,
) -> Way:
    from hasten.distributed import ErrorFeedback, Sketched, Subspace

    def exchange(seed: int) -> Exchange | None:
        if ratio is None:
            return None
        family = BalancedCountSketch(ratio=ratio)
        return ErrorFeedback(Sketched(family, seed=seed)) if feedback else Subspace(family, seed=seed)

    if feedback and ratio is None:
        raise ValueError("feedback=True needs a ratio: what is exchanged whole leaves nothing to feed back")
    if lr is None and momentum:
        raise ValueError(f"momentum = {momentum!r} needs an lr: both are of the outer step")
    return Local(every, exchange, None if lr is None else partial(Nesterov, lr=lr, momentum=momentum))


def _powersgd(*, rank: int = 1, start: int = 2) -> Way:
    return PowerSGD(rank, start)


WAYS: dict[str, Callable[..., Way]] = {
    PLAIN: _none,
    "bf16": _bf16,
    "subspace": _subspace,
    "lowrank": _lowrank,
    "topk": _topk,
    "dct": _dct,
    "sign": _sign,
    "local": _local,
    "powersgd": _powersgd,
}
"""All ways by name: all-reduce in float32 and in bfloat16; a random subspace; with error feedback low rank, the
largest entries, columns of a cosine transform, and signs; local steps, in DiLoCo's form; torch's PowerSGD."""


def parse_hooks(text: str | Iterable[str]) -> list[HookSpec]:
    """Read ``"none, subspace(ratio=64)"``, and try every one.

    Raises:
        RaceError: there is no such way, or it refuses an argument.

    Example:
        >>> parse_hooks("subspce")
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: unknown hook 'subspce': did you mean 'subspace'?
    """
    found = [HookSpec(*called) for called in read_calls(text, "hook", EXAMPLE, WAYS)]
    for spec in found:
        accepted = list(inspect.signature(WAYS[spec.name]).parameters)
        for option in spec.options:
            if option not in accepted:
                takes = f"takes {', '.join(accepted)}" if accepted else "takes no arguments"
                raise RaceError(f"hook {spec.label}: {option} is not allowed; {spec.name} {takes}")
        try:
            spec.way()
        except (TypeError, ValueError) as error:
            raise RaceError(f"hook {spec.label}: {one_line(error)}") from error
    return found
