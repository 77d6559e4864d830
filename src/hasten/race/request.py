"""What is asked of a race, checked before anything is begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from hasten.race.entrants import Entrant, parse_entrants
from hasten.race.errors import RaceError
from hasten.race.hooks import PLAIN, HookSpec, parse_hooks
from hasten.race.plan import parse_duration
from hasten.race.tasks import TaskSource, find_task
from hasten.race.tuning import SEARCHES

DEFAULT_BUDGET = "4m"
NOT_OF_THE_CALL = frozenset({"task", "optimizers", "budget", "evaluations", "command", "out"})


@dataclass(frozen=True)
class Request:
    """The arguments of `hasten.race.race`, as plain values.

    Raises:
        RaceError: something asked for does not exist or cannot be.

    Example:
        >>> Request("digits", steps=0)
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: steps=0 must be at least 1
    """

    task: str = "lm"
    optimizers: str | Sequence[str] | None = None
    seeds: int | Sequence[int] = 3
    steps: int | None = None
    budget: str | float | None = None
    trials: int = 0
    search: str = "random"
    target: float | None = None
    evaluations: int | None = None
    threads: int | None = None
    hook: str | Sequence[str] | None = None
    world: int | None = None
    out: str | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        _ = self.source, self.entrants, self.hooks, self.seconds
        if not self.numbers or len(set(self.numbers)) < len(self.numbers):
            raise RaceError(f"seeds={self.seeds!r} must be at least one, all different")
        for name, least in (("steps", 1), ("trials", 0), ("threads", 1), ("evaluations", 1), ("world", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RaceError(f"{name}={value} must be at least {least}")
        if self.search not in SEARCHES:
            raise RaceError(f"search={self.search!r} must be one of {', '.join(SEARCHES)}")

    @property
    def source(self) -> TaskSource:
        """Where the task comes from."""
        return find_task(self.task)

    @property
    def entrants(self) -> list[Entrant]:
        """Who races."""
        return parse_entrants(self.source.entrants if self.optimizers is None else self.optimizers)

    @property
    def hooks(self) -> list[HookSpec]:
        """How several workers exchange; all-reduce where nothing is said."""
        return parse_hooks(PLAIN if self.hook is None else self.hook)

    def hooks_of(self, world: int) -> list[HookSpec]:
        """The hooks of so many workers: none of a worker alone, who has nobody to exchange with.

        Raises:
            RaceError: a worker alone is to exchange.

        Example:
            >>> Request(hook="bf16").hooks_of(1)
            Traceback (most recent call last):
            ...
            hasten.race.errors.RaceError: hook='bf16' is for several workers, and there is one: add --world 2
        """
        if world > 1:
            return self.hooks
        if any(hook.name != PLAIN for hook in self.hooks):
            raise RaceError(f"hook={self.hook!r} is for several workers, and there is one: add --world 2")
        return []

    @property
    def numbers(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(self.seeds)

    @property
    def seconds(self) -> float:
        """The budget."""
        return parse_duration(DEFAULT_BUDGET if self.budget is None else self.budget)

    def call(self, steps: int) -> str:
        """The call that would race the same race again, with the number of steps that was chosen.

        Example:
            >>> Request("valley", "SGD").call(20)
            "hasten.race.race('valley', 'SGD', seeds=3, steps=20, trials=0, search='random')"
        """
        values = {**self.to_json(), "steps": steps}
        given = [
            f"{field.name}={values[field.name]!r}"
            for field in fields(self)
            if field.name not in NOT_OF_THE_CALL and values[field.name] is not None
        ]
        return f"hasten.race.race({', '.join([repr(self.task), repr(self.optimizers), *given])})"

    def to_json(self) -> dict[str, Any]:
        """The arguments by name."""
        return asdict(self)
