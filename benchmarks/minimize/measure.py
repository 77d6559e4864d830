"""One run of one contender on one task, and all of them."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from benchmarks.minimize.contenders import Contender
from benchmarks.minimize.counting import Counted, Exhausted
from benchmarks.minimize.tasks import Task

MOST_EVALUATIONS = 5000
MOST_SECONDS = 30.0


@dataclass
class Row:
    """What a contender did on a task.

    Attributes:
        value: at the point that was returned; `nan` if there was none.
        excess: of the value over the nearest target.
        evaluations: of the function with its gradient, until the method ended by itself.
        to_target: evaluations until a target was first reached.
        products: Hessian-vector products that the contender asked for.
        seconds: of the whole run, the median of the repeats.
        failure: why there is no point.
    """

    task: str
    group: str
    contender: str
    solved: bool = False
    value: float = math.nan
    excess: float = math.nan
    evaluations: int = 0
    to_target: int | None = None
    products: int = 0
    seconds: float = math.nan
    failure: str = ""
    all_seconds: list[float] = field(default_factory=list)


def attempt(task: Task, contender: Contender) -> tuple[Counted, Tensor | None, float, str]:
    """Run once: the counter, the point, the seconds, and the failure in words."""
    gtol = task.gradient_tolerance
    counted = Counted(task, MOST_EVALUATIONS, MOST_SECONDS)
    point, failure = None, ""
    begun = time.perf_counter()
    # A contender's failure, whatever it is, is a result.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            point = contender.run(counted, gtol)
    except Exhausted as spent:
        failure = str(spent)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}".splitlines()[0][:100]
    return counted, point, time.perf_counter() - begun, failure


def measured(task: Task, contender: Contender, repeats: int) -> Row:
    """The row of a contender on a task; counts are the same in every repeat, seconds are not."""
    row = Row(task.name, task.group, contender.name)
    for _ in range(repeats):
        counted, point, seconds, row.failure = attempt(task, contender)
        row.all_seconds.append(seconds)
    row.seconds = statistics.median(row.all_seconds)
    row.evaluations, row.products = counted.evaluations, counted.products
    row.to_target = counted.evaluations_to_target()
    if point is not None:
        row.value = float(task.value(point))
        row.excess = min((row.value - target for target in task.targets), key=abs)
        row.solved = task.reached(row.value, counted.values[0])
    return row


def everything(
    tasks: Iterable[Task],
    contenders: list[Contender],
    repeats: int,
    done: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """All rows; contenders take turns on a task."""
    rows = []
    for task in tasks:
        rows += [measured(task, contender, repeats) for contender in contenders]
        done(task.name)
    return rows
