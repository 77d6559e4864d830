"""What all workers do together succeeds on all of them or fails on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from hasten.wire import Wire, WorkerLost

T = TypeVar("T")


class Together:
    """Workers who do something each, and hear how it went with the others; without torch.distributed, one worker.

    Args:
        group: a process group; None for the default one.
        failure: the error raised on every worker if one of them fails.
        loss: what to say if a worker dies meanwhile.

    Example:
        >>> together = Together(None, ValueError, "lost")
        >>> together.all(lambda: together.rank)
        [0]
        >>> together.all(lambda: 1 / 0)
        Traceback (most recent call last):
        ValueError: ZeroDivisionError: division by zero
    """

    def __init__(self, group: Any, failure: type[Exception], loss: str) -> None:
        self.wire = Wire(group) if dist.is_available() and dist.is_initialized() else None
        self.rank = 0 if self.wire is None else self.wire.rank
        self.world = 1 if self.wire is None else self.wire.world
        self.failure, self.loss = failure, loss

    def all(self, act: Callable[[], T]) -> list[T]:
        """What every worker's act returned, by rank; small, for it travels.

        Raises:
            Exception: `failure`, on every worker, naming those that failed.
            WorkerLost: a worker is gone.
        """
        cause: Exception | None = None
        try:
            outcome: tuple[Any, str] = (act(), "")
        except Exception as error:
            cause = error
            plain = isinstance(error, (self.failure, OSError, ValueError, TypeError))
            said = str(error) if plain else f"{type(error).__name__}: {error}"
            outcome = (None, said)
        outcomes = self._told(outcome)
        failed = {rank: said for rank, (_, said) in enumerate(outcomes) if said}
        if len(set(failed.values())) == 1 and len(failed) == self.world:  # the same everywhere
            raise self.failure(next(iter(failed.values()))) from cause
        if failed:
            raise self.failure("; ".join(f"rank {rank}: {said}" for rank, said in failed.items())) from cause
        return [result for result, _ in outcomes]

    def first(self, act: Callable[[], T]) -> T:
        """What rank 0's act returned, on every worker; the others wait for it."""
        results: list[Any] = self.all(lambda: act() if self.rank == 0 else None)
        found: T = results[0]
        return found

    def _told(self, value: T) -> list[T]:
        if self.wire is None:
            return [value]
        try:
            return self.wire.objects(value)
        except WorkerLost as lost:
            raise WorkerLost(f"{self.loss}; {lost}") from lost
