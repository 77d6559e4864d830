"""What follows from a problem's known constants: settings by formula, and the bounds that hold for them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from hasten import sketches
from hasten.optimizers.subspace import RATIO
from hasten.problems import ConvexProblem
from hasten.race.errors import RaceError, unknown
from hasten.sketches import BalancedCountSketch, ImportanceCoordinates, Sketch
from hasten.theory import Bound, ScheduleU, SubspaceDescent

SUBSPACE = frozenset({"SubspaceNesterov", "SubspaceGradientDescent"})


def by_formula(name: str, given: Mapping[str, Any], problem: ConvexProblem) -> dict[str, Any] | None:
    """The settings of a method that has formulas for them; None for the others.

    Example:
        >>> from hasten.problems import Quadratic
        >>> by_formula("Nesterov", {}, Quadratic([4.0, 1.0]))["lr"]
        0.25
        >>> by_formula("AdamW", {}, Quadratic([4.0, 1.0])) is None
        True
    """
    L, mu = problem.smoothness, problem.strong_convexity
    if name in SUBSPACE:
        sketch = named_sketch(given, problem)
        nu = sketch.nu(problem.dimension)
        constants = {"smoothness": sketch.rate_constant(problem.curvature) / nu}
        return constants if name == "SubspaceGradientDescent" else {**constants, "strong_convexity": mu}
    if name in ("SGD", "torch.SGD"):
        return {"lr": 1 / L}
    if name == "Nesterov":
        root = math.sqrt(mu / L)
        return {"lr": 1 / L, "momentum": (1 - root) / (1 + root)}
    return None


def named_sketch(options: Mapping[str, Any], problem: ConvexProblem | None = None) -> Sketch:
    """The sketch that the options ``sketch='Haar'`` and ``rank=4`` ask for; balanced, of an eighth, by default.

    Raises:
        RaceError: no family has that name, or it needs more than a rank.

    Example:
        >>> named_sketch({"sketch": "Haar", "rank": 4}).rank
        4
        >>> named_sketch({"sketch": "Har", "rank": 4})
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: unknown sketch 'Har': did you mean 'Haar'?
    """
    name, rank = str(options.get("sketch", BalancedCountSketch.__name__)), options.get("rank")
    if name == ImportanceCoordinates.__name__:
        if problem is None:
            raise RaceError(f"sketch {name!r} needs a task whose curvature is known")
        return ImportanceCoordinates(problem.curvature)
    return sized_sketch(name, rank, RATIO if rank is None else None)


def sized_sketch(name: str, rank: int | None, ratio: float | None) -> Sketch:
    """A family by name and either rank or ratio.

    Raises:
        RaceError: no family has that name, or that size, or it needs more than a size.

    Example:
        >>> sized_sketch("Haar", None, 16)
        Haar(rank=None, ratio=16)
        >>> sized_sketch("Haar", 4, 16)
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: a sketch has a rank or a ratio, not both: rank=4, ratio=16
    """
    families = {
        n: family
        for n in sketches.__all__
        if isinstance(family := getattr(sketches, n), type)
        and issubclass(family, Sketch)
        and not inspect.isabstract(family)
    }
    if name not in families:
        raise unknown("sketch", name, families)
    if rank is not None and ratio is not None:
        raise RaceError(f"a sketch has a rank or a ratio, not both: rank={rank}, ratio={ratio}")
    size = {"ratio": ratio} if rank is None else {"rank": rank}
    try:
        return families[name]() if name == "Identity" else families[name](**size)
    except (TypeError, ValueError) as error:
        raise RaceError(f"sketch {name!r}: {error}") from error


def bound(name: str, options: Mapping[str, Any], problem: ConvexProblem) -> Bound | None:
    """What the theory guarantees for a contender at exactly these settings; None where it says nothing.

    Example:
        >>> from hasten.problems import Quadratic
        >>> problem = Quadratic([4.0, 1.0])
        >>> bound("SGD", {"lr": 0.25}, problem).at(0) == problem.gap
        True
        >>> bound("SGD", {"lr": 0.5}, problem) is None
        True
    """
    formula = by_formula(name, options, problem)
    chosen = {key: value for key, value in options.items() if key not in ("sketch", "rank", "seed")}
    if formula is None or chosen != formula:
        return None
    R, gap, mu = problem.distance, problem.gap, problem.strong_convexity
    if name in ("SGD", "torch.SGD"):
        return SubspaceDescent(1.0, problem.smoothness, R, gap, mu)
    if name not in SUBSPACE:
        return None
    sketch = named_sketch(options, problem)
    nu = sketch.nu(problem.dimension)
    if name == "SubspaceNesterov":
        return ScheduleU(nu * formula["smoothness"], R, mu)
    expected = sketch.expected_smoothness(problem.curvature)
    if not math.isclose(expected, formula["smoothness"], rel_tol=1e-9):
        return None  # the family takes short steps of its own
    return SubspaceDescent(nu, expected, R, gap, mu)
