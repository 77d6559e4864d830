"""What is raced, decided once and written down before the first run."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from hasten.race.entrants import Contender, Entrant, settle
from hasten.race.errors import RaceError
from hasten.race.hooks import HookSpec
from hasten.race.task import Task
from hasten.race.tasks import TaskSource
from hasten.race.training import Seeds, StepClock, assemble, blaming, evaluate, oracle_calls
from hasten.race.workers import ALONE, Workers

WARM_UP_STEPS, TIMED_STEPS = 2, 6
EVALUATIONS = 20
REPORT_SECONDS = 10.0
"""Part of the budget kept for drawing the figures and writing the report."""


@dataclass(frozen=True)
class Pace:
    """What a few steps of a contender showed before the race.

    Attributes:
        first_step: seconds of the very first step: compilation, allocation of state.
        step: seconds of a step after that.
        calls: oracle calls of a step, where they are counted.

    Example:
        >>> Pace(first_step=1.0, step=0.02).step
        0.02
    """

    first_step: float
    step: float
    calls: float | None = None


@dataclass(frozen=True)
class Plan:
    """Everything a race is; two machines with the same plan race the same race.

    ``steps`` is the length of every run. Where oracle calls are counted it is that of the contender
    with the dearest steps, and the others' runs are longer: all take the same oracle calls.

    Example:
        >>> Plan("lm", "a language model", "", (), (0, 1), 100).steps
        100
    """

    task: str
    title: str
    command: str
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]
    steps: int
    evaluations: int = EVALUATIONS
    trials: int = 0
    search: str = "random"
    target: float | None = None
    unit: str = "loss"
    log_scale: bool = False
    parameters: int = 0
    data: str = ""
    threads: int = 0
    budget: float | None = None
    paces: dict[str, Pace] = field(default_factory=dict)
    sentences: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    bounds: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """What the theory guarantees, by label, at the steps of the evaluations."""
    world: int = 1
    hooks: tuple[str, ...] = ()
    """The ways to exchange between several workers, as text."""

    def steps_of(self, label: str) -> int:
        """The length of a contender's runs."""
        pace = self.paces.get(label)
        calls = None if pace is None else pace.calls
        return self.steps if calls is None else round(self.steps * dearest(self.paces.values()) / calls)

    @property
    def counted(self) -> bool:
        """Whether oracle calls are counted."""
        return any(pace.calls is not None for pace in self.paces.values())

    @property
    def gradient_bytes(self) -> float:
        """What one worker sends for one all-reduce of the gradient in float32."""
        return 4 * self.parameters * 2 * (self.world - 1) / self.world

    @property
    def length(self) -> str:
        """How long a run is, in words."""
        if not self.counted:
            return f"{self.steps} steps"
        return f"{self.steps * dearest(self.paces.values()):,.0f} oracle calls"

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Plan:
        """The plan that `to_json` made; JSON's lists become tuples again."""
        try:
            contenders = tuple(_contender(c) for c in values["contenders"])
            paces = {label: Pace(**pace) for label, pace in values["paces"].items()}
            bounds = {label: tuple(bound) for label, bound in values.get("bounds", {}).items()}
            rest = {**values, "contenders": contenders, "paces": paces, "bounds": bounds}
            hooks = tuple(values.get("hooks", ()))
            return cls(**{**rest, "seeds": tuple(values["seeds"]), "hooks": hooks})
        except (KeyError, TypeError) as error:
            raise RaceError(f"the race's plan was written by another version of hasten ({error})") from error


def _contender(values: dict[str, Any]) -> Contender:
    options = {k: _tuples(v) for k, v in values["options"].items()}
    hook = values.get("hook")
    return Contender(**{**values, "options": options, "hook": None if hook is None else HookSpec(**hook)})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def dearest(paces: Iterable[Pace]) -> float:
    """The oracle calls of the dearest step; 1 where they are not counted.

    Example:
        >>> dearest([Pace(0.1, 0.1, calls=16), Pace(0.1, 0.1, calls=256)])
        256
    """
    return max((pace.calls for pace in paces if pace.calls is not None), default=1.0)


def parse_duration(text: str | float) -> float:
    """Seconds of ``"3m"``, ``"90s"``, ``"1h30m"``, or a plain number of seconds.

    Example:
        >>> parse_duration("2m30s")
        150.0
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        seconds = float(text)
    else:
        match = re.fullmatch(r"(?:(\d+\.?\d*)h)?(?:(\d+\.?\d*)m)?(?:(\d+\.?\d*)s?)?", str(text).strip())
        parts = match.groups(default="0") if match and str(text).strip() else None
        if parts is None:
            raise RaceError(f"budget={text!r} cannot be read: write 3m, 90s or 1h30m")
        seconds = 3600 * float(parts[0]) + 60 * float(parts[1]) + float(parts[2])
    if not 0 < seconds < 1e9:
        raise RaceError(f"budget={text!r} must be longer than nothing")
    return seconds


def settle_all(
    entrants: list[Entrant], source: TaskSource, task: Task, steps: int, hooks: Sequence[HookSpec] = ()
) -> list[Contender]:
    """Settle every entrant for runs of a given length; over every hook, where there are hooks.

    Example:
        >>> from hasten.race.entrants import parse_entrants
        >>> from hasten.race.tasks import find_task
        >>> source = find_task("valley")
        >>> [c.name for c in settle_all(parse_entrants("torch.SGD"), source, source.build(0), 10)]
        ['torch.SGD']
    """
    alone = [settle(entrant, source.family, steps, task.constants, task.problem) for entrant in entrants]
    return [contender.over(hook) for contender in alone for hook in hooks] if hooks else alone


def measure_pace(source: TaskSource, contender: Contender, workers: Workers = ALONE) -> tuple[Pace, float]:
    """Take a few steps: the pace of a contender, and the seconds of one evaluation.

    Example:
        >>> from hasten.race.entrants import parse_entrants, settle
        >>> from hasten.race.tasks import find_task
        >>> contender = settle(parse_entrants("torch.SGD(lr=0.01)")[0], "surface", 50)
        >>> pace, evaluation = measure_pace(find_task("valley"), contender)
        >>> pace.step < pace.first_step + 1
        True
    """
    seeds = Seeds.of(source.name, "pace", contender.label)
    with torch.random.fork_rng(devices=[]):
        batches = torch.Generator().manual_seed(seeds.batches)
        clock = StepClock()
        with blaming(source, f"training with {contender.label}"):
            rig = assemble(source, contender, 1000, seeds, workers)
            task, optimizer = rig.task, rig.optimizer
            taken = WARM_UP_STEPS + TIMED_STEPS
            for _ in range(taken):
                clock.step(task, optimizer, batches)
            calls = oracle_calls(task, optimizer, taken)
            evaluation = min(_seconds(lambda: evaluate(task, optimizer)) for _ in range(2))
    step = clock.median_ms(clock.whole[WARM_UP_STEPS:]) / 1e3
    return Pace(clock.whole[0], step, None if calls is None else calls / taken), evaluation


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def steps_within(
    seconds: float, paces: list[Pace], evaluation: float, runs_each: int, evaluations: int
) -> tuple[int, int]:
    """How many steps every run may take, and how often to evaluate, so that all fits in ``seconds``.

    Where oracle calls are counted, the steps are those of the contender whose steps are dearest.
    Evaluations become fewer, down to four, where they would take more than a third of the time.
    Steps are rounded down to two digits; at least ten.

    Example:
        >>> steps_within(100.0, [Pace(1.0, 0.01)] * 5, 0.1, runs_each=2, evaluations=10)
        (890, 10)
        >>> steps_within(100.0, [Pace(1.0, 0.01)] * 5, 1.0, runs_each=2, evaluations=10)
        (500, 4)
    """
    each = seconds / runs_each
    once = len(paces) * evaluation
    affordable = int(each / 3 / once) - 1 if once else evaluations
    evaluations = min(evaluations, max(4, affordable))
    left = each - once * (evaluations + 1)
    most = dearest(paces)
    steps = int(left / sum(pace.step * most / (pace.calls or most) for pace in paces))
    unit = max(1, 10 ** (len(str(steps)) - 2)) if steps > 0 else 1
    return max(10, steps // unit * unit), evaluations


def environment() -> dict[str, str]:
    """The machine and the versions, for the report.

    Example:
        >>> "torch" in environment()
        True
    """
    try:
        own = version("hasten")
    except PackageNotFoundError:
        own = "not installed"
    return {
        "hasten": own,
        "torch": str(torch.__version__),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
