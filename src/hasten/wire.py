"""Collectives of a process group whose bytes are counted, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")


class WorkerLost(RuntimeError):
    """A collective failed: another worker died, hung past the group's timeout, or left.

    What fails within ``backward`` reaches the caller through torch's engine, as a RuntimeError with this in its text.
    """


@dataclass
class Traffic:
    """What one worker handed to the collectives of one part, and what went over its link for it.

    Attributes:
        calls: how many collectives.
        payload: bytes handed over.
        sent: bytes this worker sends: for a payload of n bytes and W workers 2n(W−1)/W in an all-reduce and n(W−1) in
            an all-gather, as ring algorithms do, which no algorithm undercuts.
        received: bytes this worker receives.

    Example:
        >>> Traffic(1, 8, 8.0, 8.0) + Traffic(1, 8, 8.0, 8.0)
        Traffic(calls=2, payload=16, sent=16.0, received=16.0)
    """

    calls: int = 0
    payload: int = 0
    sent: float = 0.0
    received: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.calls + other.calls,
            self.payload + other.payload,
            self.sent + other.sent,
            self.received + other.received,
        )


@dataclass
class Communication:
    """The traffic of every part, by its name; prints as a table of bytes.

    Example:
        >>> report = Communication({"gradients": Traffic(2, 4096, 4096.0, 4096.0), "loss": Traffic(2, 16, 16.0, 16.0)})
        >>> report.total.sent
        4112.0
        >>> print(report)
        part       calls  payload   sent  received
        gradients      2    4,096  4,096     4,096
        loss           2       16     16        16
        total          4    4,112  4,112     4,112
    """

    parts: dict[str, Traffic] = field(default_factory=dict)

    @property
    def total(self) -> Traffic:
        """All parts together."""
        return sum(self.parts.values(), Traffic())

    def __add__(self, other: Communication) -> Communication:
        names = (*self.parts, *(name for name in other.parts if name not in self.parts))
        return Communication({n: self.parts.get(n, Traffic()) + other.parts.get(n, Traffic()) for n in names})

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("part", "calls", "payload", "sent", "received")]
        for name, t in (*self.parts.items(), ("total", self.total)):
            rows.append((name, *(f"{n:,.0f}" for n in (t.calls, t.payload, t.sent, t.received))))
        first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
        return "\n".join(
            "  ".join([name.ljust(first), *map(str.rjust, numbers, widths)]) for name, *numbers in rows
        )


class Wire:
    """The collectives of one process group; every call names the part it serves, and is counted there.

    Args:
        group: a process group; None for the default one.

    Raises:
        RuntimeError: torch.distributed is not initialised.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> wire = Wire()
        >>> wire.sum(torch.ones(3), "gradients").wait()
        tensor([1., 1., 1.])
        >>> wire.communication.parts["gradients"].payload
        12
        >>> dist.destroy_process_group()
    """

    def __init__(self, group: Any = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "torch.distributed is not initialised: call torch.distributed.init_process_group first, "
                "or start the script with torchrun"
            )
        self.group: Any = dist.group.WORLD if group is None else group
        self.rank: int = dist.get_rank(self.group)
        self.world: int = dist.get_world_size(self.group)
        self.communication = Communication()

    def sum(self, tensor: Tensor, part: str) -> Future[Tensor]:
        """The sum over all workers, written into `tensor`."""
        size = tensor.nbytes
        self._count(part, size, 2 * size * (self.world - 1) / self.world)
        return self._started(
            part,
            lambda: dist.all_reduce(tensor, group=self.group, async_op=True),
            lambda: tensor,
        )

    def gather(self, tensor: Tensor, part: str) -> Future[list[Tensor]]:
        """Every worker's tensor, by rank; all have one shape and one dtype."""
        found = [torch.empty_like(tensor) for _ in range(self.world)]
        self._count(part, tensor.nbytes, float(tensor.nbytes * (self.world - 1)))
        return self._started(
            part,
            lambda: dist.all_gather(found, tensor, group=self.group, async_op=True),
            lambda: found,
        )

    def exchange(
        self, outgoing: Tensor, to: Sequence[int], incoming: Sequence[int], part: str
    ) -> Future[Tensor]:
        """Hand ``to[r]`` entries of a flat tensor to each worker r, and get ``incoming[r]`` entries from each."""
        found = outgoing.new_empty(sum(incoming))
        size = outgoing.element_size()
        self.count(
            part,
            outgoing.nbytes,
            float(outgoing.nbytes - to[self.rank] * size),
            float(found.nbytes - incoming[self.rank] * size),
        )
        return self._started(
            part,
            lambda: dist.all_to_all_single(
                found, outgoing, list(incoming), list(to), group=self.group, async_op=True
            ),
            lambda: found,
        )

    def objects(self, value: T) -> list[T]:
        """Every worker's small picklable object, by rank; for set-up, and not counted."""
        found: list[Any] = [None] * self.world
        with losing("agreement"):
            dist.all_gather_object(found, value, group=self.group)
        return found

    def count(self, part: str, payload: int, sent: float, received: float) -> None:
        """Enter what was moved by other means."""
        known = self.communication.parts.get(part, Traffic())
        self.communication.parts[part] = known + Traffic(1, payload, sent, received)

    def _count(self, part: str, payload: int, moved: float) -> None:
        self.count(part, payload, moved, moved)

    def _started(self, part: str, start: Callable[[], Any], result: Callable[[], T]) -> Future[T]:
        with losing(part):
            future = start().get_future()

        def arrived(done: Future[Any]) -> T:
            with losing(part):
                done.value()
            return result()

        following: Future[T] = future.then(arrived)
        return following


class losing:  # reads as a statement
    """Turns what a backend raises when a worker is gone into `WorkerLost`, which says so.

    Example:
        >>> try:
        ...     with losing("gradients"):
        ...         raise RuntimeError("Connection closed by peer")
        ... except WorkerLost as lost:
        ...     str(lost)[:38]
        'the exchange of the gradients failed: '
    """

    def __init__(self, part: str) -> None:
        self.part = part

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RuntimeError) and not isinstance(error, WorkerLost):
            raise WorkerLost(
                f"the exchange of the {self.part} failed: a worker has died or stopped answering, so this one cannot "
                f"go on; start all workers again from the last checkpoint. The network said: {error}"
            ) from error


_wires: MutableMapping[Tensor, list[Wire]] = WeakTensorKeyDictionary()
"""Which wires serve a parameter."""


def wait(future: Future[T]) -> T:
    """A future's value; what `WorkerLost` was raised on its way is raised again.

    Callbacks of futures pass on what they raise as the text of a RuntimeError, at most.

    Example:
        >>> future = Future()
        >>> following = future.then(lambda done: (_ for _ in ()).throw(WorkerLost("a worker has died")))
        >>> future.set_result(None)
        >>> wait(following)
        Traceback (most recent call last):
        hasten.wire.WorkerLost: a worker has died
    """
    try:
        return future.wait()
    except WorkerLost:
        raise
    except RuntimeError as error:
        said = str(error).partition("WorkerLost: ")[2].partition("\n\nAt:")[0]
        if not said:
            raise
        raise WorkerLost(said) from error


def serve(params: Iterable[Tensor], wire: Wire) -> None:
    """Note that what goes over the wire is on account of these parameters."""
    for p in params:
        known = _wires.setdefault(p, [])
        if not any(wire is other for other in known):
            known.append(wire)


def serving(p: Tensor, group: Any) -> Wire | None:
    """The wire of this process group that serves a parameter, if there is one."""
    return next((wire for wire in _wires.get(p, []) if wire.group is group), None)


def communication(params: Iterable[Tensor]) -> Communication:
    """What was sent and received on account of these parameters, by part.

    Example:
        >>> communication([torch.zeros(2)])
        Communication(parts={})
    """
    found = {id(wire): wire for p in params for wire in _wires.get(p, [])}
    return sum((wire.communication for wire in found.values()), Communication())
