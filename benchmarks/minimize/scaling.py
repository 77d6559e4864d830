"""Seconds as the number of variables grows, ours against SciPy's L-BFGS-B, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.minimize.contenders import OURS, REFERENCE, Contender, all_contenders
from benchmarks.minimize.counting import Counted
from benchmarks.minimize.tasks import Task
from hasten.problems.more_garbow_hillstrom import MORE_GARBOW_HILLSTROM

DIMENSIONS = (10**3, 10**4, 10**5, 10**6)
CONDITION = 1e3
FROM = 10**5  # the dimension from which ours is to be faster
MEMORY = 10  # steps remembered, SciPy's default and ours


@dataclass
class Timing:
    """What one contender took on one task: all rounds, and the ratios to the reference of the same round."""

    task: str
    dimension: int
    contender: str
    evaluations: int = 0
    value: float = float("nan")
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median of the ratios to the reference."""
        return statistics.median(self.ratios)


def logarithmic_spectrum(d: int) -> Callable[[Tensor], Tensor]:
    """A quadratic whose curvatures are spread evenly in the logarithm, minimum 0 at ones."""
    curvatures = torch.logspace(0, -torch.tensor(CONDITION).log10().item(), d, dtype=torch.float64)
    return lambda x: 0.5 * (curvatures * (x - 1).square()).sum()


def tasks(d: int) -> Iterator[Task]:
    """Functions that cost a few passes over the variables, so that the method itself shows."""
    rosenbrock = MORE_GARBOW_HILLSTROM["extended-rosenbrock"].with_dimension(d)
    yield Task("extended Rosenbrock", "scaling", rosenbrock.value, rosenbrock.start, (0.0,))
    start = torch.zeros(d, dtype=torch.float64)
    yield Task(f"quadratic, condition {CONDITION:g}", "scaling", logarithmic_spectrum(d), start, (0.0,))


def once(task: Task, contender: Contender) -> tuple[float, int, float]:
    """Seconds, evaluations and value of one run; the same stopping as everywhere."""
    gtol = task.gradient_tolerance
    counted = Counted(task)
    begun = time.perf_counter()
    point = contender.run(counted, gtol)
    return time.perf_counter() - begun, counted.evaluations, float(task.value(point))


def measure(dimensions: tuple[int, ...], rounds: int, done: Callable[[str], None]) -> list[Timing]:
    """All timings: in every round each contender runs once, in rotated order, after one unmeasured round."""
    found: list[Timing] = []
    for d in dimensions:
        contenders = taking_part(d)
        for task in tasks(d):
            timings = {c.name: Timing(task.name, d, c.name) for c in contenders}
            for number in range(rounds + 1):
                turn = number % len(contenders)
                seconds = {}
                for contender in contenders[turn:] + contenders[:turn]:
                    timing = timings[contender.name]
                    seconds[contender.name], timing.evaluations, timing.value = once(task, contender)
                if number:
                    for name, timing in timings.items():
                        timing.seconds.append(seconds[name])
                        timing.ratios.append(seconds[name] / seconds[REFERENCE])
            found += timings.values()
            done(f"{task.name}, d = {d:,}")
    return found


def taking_part(d: int) -> list[Contender]:
    """Ours and the reference; the other library's up to `FROM`, its hundred pairs of vectors are too many beyond."""
    names = [OURS, REFERENCE, *(["torchmin l-bfgs"] if d <= FROM else [])]
    return [c for c in all_contenders() if c.name in names]
