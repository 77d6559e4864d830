"""The tasks that come with the race, and the user's own ``file.py:function``."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hasten.race.errors import RaceError, one_line, unknown
from hasten.race.task import Task
from hasten.race.tasks.convex import convex_builders, title_and_ranks
from hasten.race.tasks.least_squares import least_squares
from hasten.race.tasks.networks import digits_convnet, digits_mlp, language_model, logistic
from hasten.race.tasks.surfaces import surface_builders

NETWORK_ENTRANTS = ("AdamW", "ScheduleFreeAdamW", "AdEMAMix", "SimplifiedAdEMAMix", "Lion", "MARS")
CONVEX_ENTRANTS = ("SGD", "HeavyBall", "Nesterov", "AcceleratedSGD", "ScheduleFreeSGD", "AdamW")
SURFACE_ENTRANTS = ("SGD", "HeavyBall", "Nesterov", "AdamW", "AdEMAMix", "Lion")


def subspace_entrants(small: int, large: int) -> tuple[str, ...]:
    """Full Nesterov, the same from a few numbers a step, and peers without sketches.

    Example:
        >>> subspace_entrants(4, 16)[1]
        'SubspaceNesterov(rank=4)'
    """
    return (
        "SubspaceNesterov(sketch='Identity')",
        f"SubspaceNesterov(rank={small})",
        f"SubspaceNesterov(rank={large})",
        f"SubspaceGradientDescent(rank={large})",
        "AcceleratedSGD",
        "Nesterov",
    )


@dataclass(frozen=True)
class TaskSource:
    """Where tasks of one kind come from.

    Attributes:
        name: how it is asked for.
        title: what it is, for a report's first line.
        family: which column of the recommended settings applies.
        build: ``seed -> Task``.
        entrants: who races when nobody is named.
        steps: length of a run when neither steps nor budget are given; None means that the
            budget decides.
        evaluations: points on every curve; None means the race's own default.

    Example:
        >>> find_task("lm").entrants[0]
        'AdamW'
    """

    name: str
    title: str
    family: str
    build: Callable[[int], Task]
    entrants: tuple[str, ...]
    steps: int | None = None
    evaluations: int | None = None


TASKS: dict[str, TaskSource] = {
    source.name: source
    for source in (
        TaskSource(
            "lm",
            "a 1M-parameter transformer on the text of Python's standard library",
            "lm",
            language_model,
            NETWORK_ENTRANTS,
        ),
        TaskSource(
            "digits",
            "a two-layer network on handwritten digits",
            "digits",
            digits_mlp,
            NETWORK_ENTRANTS,
            600,
        ),
        TaskSource(
            "digits-conv",
            "a small convolutional network on handwritten digits",
            "digits",
            digits_convnet,
            NETWORK_ENTRANTS,
            600,
        ),
        TaskSource(
            "logistic",
            "logistic regression on breast-cancer biopsies",
            "logistic",
            logistic,
            CONVEX_ENTRANTS,
            600,
        ),
        TaskSource(
            "least-squares",
            "streaming least squares, condition number 1000, batches of one",
            "least-squares",
            least_squares,
            CONVEX_ENTRANTS,
            3000,
        ),
        *(
            TaskSource(name, f"the {name} surface", "surface", build, SURFACE_ENTRANTS, 1000)
            for name, build in surface_builders().items()
        ),
        *(
            TaskSource(
                name,
                title_and_ranks(name)[0],
                "logistic",
                build,
                subspace_entrants(*title_and_ranks(name)[1]),
                300,
                200,
            )
            for name, build in convex_builders().items()
        ),
    )
}
"""Built-in tasks by name."""


def find_task(name: str) -> TaskSource:
    """A built-in task by name, or ``path/to/file.py:function`` of your own.

    Example:
        >>> find_task("digit")
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: unknown task 'digit': did you mean 'digits'?
    """
    if name in TASKS:
        return TASKS[name]
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _own_task(Path(path), function)
    if name.endswith(".py"):
        raise RaceError(f"task {name!r}: name the function too, as in {name}:make_task")
    raise unknown("task", name, TASKS)


def _own_task(path: Path, function: str) -> TaskSource:
    if not path.is_file():
        raise RaceError(f"task {path}:{function}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"hasten_race_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RaceError(f"task {path}:{function}: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look a class's module up by name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RaceError(
            f"task {path}:{function}: importing it raised {type(error).__name__}: {one_line(error)}"
        ) from error
    build = getattr(module, function, None)
    if not callable(build):
        own = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == spec.name]
        raise unknown(f"function in {path}", function, own or ["(none defined)"])

    def checked(seed: int) -> Task:
        task = build(seed)
        if not isinstance(task, Task):
            raise RaceError(
                f"task {path}:{function}: it must return a hasten.race.Task, "
                f"but returned {type(task).__name__}"
            )
        return task

    title = (inspect.getdoc(build) or f"{function} of {path.name}").splitlines()[0].rstrip(".")
    return TaskSource(f"{path}:{function}", title, "own", checked, NETWORK_ENTRANTS)
