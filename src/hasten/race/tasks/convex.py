"""Deterministic convex problems with known constants: where bounds can be drawn beside the curves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from hasten.problems import CONVEX_PROBLEMS, ConvexProblem
from hasten.race.errors import require
from hasten.race.task import Task
from hasten.race.tasks.least_squares import Point

DATA = {
    "logistic": ("ridge logistic regression on breast-cancer biopsies", (1, 4)),
    "softmax": ("ridge softmax regression on handwritten digits", (4, 16)),
    "least-squares": ("ridge least squares on diabetes patients", (1, 4)),
}
FLOOR = 1e-16
"""Below this, f − f* is nothing but round-off."""


def convex_builders() -> dict[str, Callable[[int], Task]]:
    """For each convex problem, the function that makes its task.

    Example:
        >>> "convex/logistic" in convex_builders()
        True
    """
    return {f"convex/{name}": partial(descent, name) for name in CONVEX_PROBLEMS}


def title_and_ranks(task: str) -> tuple[str, tuple[int, int]]:
    """What a task is, and two ranks worth racing: below and above the effective rank.

    Example:
        >>> title_and_ranks("convex/quadratic-inverse")
        ('a quadratic in 256 variables, inverse spectrum', (4, 16))
    """
    name = task.removeprefix("convex/")
    if name in DATA:
        return DATA[name]
    return f"a quadratic in 256 variables, {name.removeprefix('quadratic-')} spectrum", (4, 16)


def descent(name: str, seed: int) -> Task:
    """Go down from the problem's start, which is the same for every seed: seeds draw the sketches.

    Example:
        >>> task = descent("quadratic-inverse", 0)
        >>> round(task.evaluate(), 6)
        1.761918
    """
    require("numpy" if name.startswith("quadratic") else "sklearn", purpose=f"task convex/{name}")
    problem = _built(name)
    point = Point(problem.start)
    return Task(
        model=point,
        loss=lambda _: problem.value(point.x),
        evaluate=lambda: max(FLOOR, float(problem.value(point.x.detach())) - problem.minimum),
        unit="f − f*",
        log_scale=True,
        constants={
            "smoothness": problem.smoothness,
            "strong_convexity": problem.strong_convexity,
            "noise": 1.0,
        },
        problem=problem,
    )


@cache
def _built(name: str) -> ConvexProblem:
    # Every run builds its task anew; the minimiser takes a second to find.
    return CONVEX_PROBLEMS[name]()
