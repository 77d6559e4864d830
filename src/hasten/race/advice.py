"""``hasten advise``: the theory's predictions as a table."""

from __future__ import annotations

import math
from typing import Any, get_args

from rich.table import Table
from rich.text import Text

from hasten.problems import CONVEX_PROBLEMS, ConvexProblem
from hasten.race.errors import RaceError, one_line, require, unknown
from hasten.sketches import Curvature
from hasten.theory import Advice, Cost, Prediction, advise

DATA_SETS = {"breast-cancer": "logistic", "digits": "softmax", "diabetes": "least-squares"}
NEEDS_SKLEARN = frozenset(DATA_SETS.values())


def convex_problem(name: str) -> ConvexProblem:
    """A convex problem by its name, or by that of its data set.

    Example:
        >>> convex_problem("quadratic-inverse").dimension
        256
        >>> convex_problem("digit")
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: unknown problem 'digit': did you mean 'digits'?
    """
    own = DATA_SETS.get(name, name)
    if own not in CONVEX_PROBLEMS:
        raise unknown("problem", name, [*CONVEX_PROBLEMS, *DATA_SETS])
    if own in NEEDS_SKLEARN:
        require("sklearn", purpose=f"problem {name}")
    else:
        require("numpy", purpose=f"problem {name}")
    return CONVEX_PROBLEMS[own]()


def advice(
    problem: str | None,
    accuracy: float,
    cost: str,
    *,
    dimension: float | None = None,
    largest: float | None = None,
    effective_rank: float | None = None,
    **known: float | None,
) -> Advice:
    """Advice on a problem of the library, or on one that is known by a few numbers.

    Raises:
        RaceError: neither or both are given, or a number is out of range.

    Example:
        >>> advice(None, 1e-4, "forward", dimension=1e6, effective_rank=50.0).pick.rank
        50
    """
    if cost not in get_args(Cost):
        raise unknown("cost", cost, get_args(Cost))
    options: dict[str, Any] = {"cost": cost, **known}
    try:
        return advise(_described(problem, dimension, effective_rank, largest), accuracy, **options)
    except RaceError:
        raise
    except ValueError as error:
        raise RaceError(one_line(error)) from error


def _described(
    problem: str | None, dimension: float | None, effective_rank: float | None, largest: float | None
) -> ConvexProblem | Curvature:
    numbers = {"--dimension": dimension, "--effective-rank": effective_rank, "--largest": largest}
    given = [name for name, value in numbers.items() if value is not None]
    if problem is not None:
        if given:
            raise RaceError(f"--problem {problem} knows its curvature: leave out {' and '.join(given)}")
        return convex_problem(problem)
    if dimension is None or effective_rank is None:
        raise RaceError("give --problem, or else --dimension and --effective-rank")
    if not (math.isfinite(dimension) and dimension >= 1 and dimension == int(dimension)):
        raise RaceError(f"--dimension {dimension:g} must be a whole number of at least 1")
    if not 1 <= effective_rank <= dimension:
        raise RaceError(f"--effective-rank {effective_rank:g} must be from 1 to the dimension, {dimension:g}")
    scale = 1.0 if largest is None else largest
    return Curvature(int(dimension), scale, effective_rank * scale)


def heading(found: Advice) -> str:
    """What is known of the problem, on one line.

    Example:
        >>> heading(advice(None, 1e-2, "forward", dimension=100, effective_rank=5.0))
        'd = 100 · λ_max = 1 · effective rank 5 · μ = 0 · to 0.01 of the initial gap'
    """
    first = found.predictions[0]
    L = first.known.curvature
    return (
        f"d = {L.dimension:,} · λ_max = {L.largest:.6g} · effective rank {L.effective_rank:.4g} · "
        f"μ = {first.known.strong_convexity:g} · to {first.accuracy:g} of the initial gap"
    )


def table(found: Advice) -> Table:
    """One line for each sketch and rank; the pick in bold.

    Example:
        >>> table(advice(None, 1e-2, "forward", dimension=100, effective_rank=5.0)).row_count > 5
        True
    """
    calls = "MB sent" if found.pick.cost == "bytes" else "oracle calls"
    made = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("sketch", "r", "steps", calls, "S", "I", ""):
        justify: Any = "left" if column in ("sketch", "") else "right"
        made.add_column(column, justify=justify, no_wrap=True)
    for p in found.predictions:
        marks = [
            mark for mark, marked in (("← pick", found.pick), ("cheapest", found.cheapest)) if marked is p
        ]
        made.add_row(*map(Text, (*_cells(p), ", ".join(marks))), style="bold" if p is found.pick else "")
    return made


LEGEND = (
    "S: times fewer oracle calls than full Nesterov, I: times more steps, both in the limit. "
    "Counts are worst-case bounds."
)


def _cells(p: Prediction) -> tuple[str, ...]:
    calls = f"{p.bytes / 1e6:,.3g}" if p.cost == "bytes" else f"{p.oracle_calls:,}"
    name = "full Nesterov" if p.sketch == "full" else p.sketch
    return name, f"{p.rank:,}", f"{p.iterations:,}", calls, f"{p.speed_up:.3g}", f"{p.inflation:.3g}"
