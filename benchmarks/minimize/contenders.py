"""Who takes part. Every one gets the same function, start and gradient tolerance, and no other rule."""

from __future__ import annotations

import fnmatch
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.minimize.counting import Counted, tensor

REFERENCE = "scipy L-BFGS-B"
OURS = "hasten l-bfgs"
# Further rules are switched off, so that all stop by the gradient (or when they find no better point).
ITERATIONS = 10**6


@dataclass(frozen=True)
class Contender:
    """A method of a library."""

    library: str
    method: str
    run: Callable[[Counted, float], Tensor] = field(repr=False)
    second_order: bool = False
    title: str = ""

    @property
    def name(self) -> str:
        """Library and method."""
        return f"{self.library} {self.title or self.method}"


def hasten(method: str, title: str = "", **options: Any) -> Contender:
    """A method of `hasten.minimize`."""

    def run(counted: Counted, gtol: float) -> Tensor:
        from hasten.solvers import minimize

        rules = {"gtol": gtol, "ftol": 0.0, "xtol": 0.0, "maxiter": ITERATIONS, "max_evaluations": math.inf}
        settings = {**rules, **options}
        return minimize(counted.value, counted.task.start, method=method, options=settings).x

    return Contender("hasten", method, run, title=title)


def scipy(method: str, second_order: bool = False) -> Contender:
    """A method of `scipy.optimize.minimize`."""

    def run(counted: Counted, gtol: float) -> Tensor:
        from scipy.optimize import minimize

        settings: dict[str, Any] = {"gtol": gtol, "maxiter": ITERATIONS}
        derivatives: dict[str, Any] = {}
        if method == "L-BFGS-B":
            settings |= {"ftol": 0.0, "maxfun": ITERATIONS}
        if method == "Newton-CG":
            # It has no gradient tolerance: it stops by the length of the step.
            settings = {"xtol": gtol, "maxiter": ITERATIONS}
            derivatives["hessp"] = counted.hessian_product
        if method == "trust-exact":
            derivatives["hess"] = counted.hessian
        start = counted.task.start.numpy().copy()
        found = minimize(
            counted.value_and_gradient, start, method=method, jac=True, options=settings, **derivatives
        )
        return tensor(found.x)

    return Contender("scipy", method, run, second_order)


def torchmin(method: str, second_order: bool = False, **options: Any) -> Contender:
    """A method of pytorch-minimize."""

    def run(counted: Counted, gtol: float) -> Tensor:
        from torchmin import minimize

        settings = {"max_iter": ITERATIONS, **options}
        settings["xtol" if method == "newton-cg" else "gtol"] = gtol
        return tensor(minimize(counted.value, counted.task.start.clone(), method=method, options=settings).x)

    return Contender("torchmin", method, run, second_order)


def all_contenders() -> list[Contender]:
    """Ours first; those of libraries that are not installed left out."""
    found = [
        hasten("l-bfgs"),
        *(hasten("ncg", f"ncg {beta}", beta=beta) for beta in ("pr+", "hs+", "dy", "hz")),
        scipy("L-BFGS-B"),
        scipy("CG"),
        scipy("BFGS"),
        scipy("Newton-CG", second_order=True),
        scipy("trust-exact", second_order=True),
        torchmin("l-bfgs", xtol=0.0),
        torchmin("cg"),
        torchmin("bfgs", xtol=0.0),
        # Its trust-exact can go round for ever without evaluating anything, and cannot take part.
        torchmin("newton-cg", second_order=True),
    ]
    return [c for c in found if importlib.util.find_spec(c.library) is not None]


def selected(patterns: list[str]) -> list[Contender]:
    """The contenders that the patterns name, wildcards allowed; all of them for none.

    Raises:
        ValueError: a pattern names nobody.
    """
    everyone = all_contenders()
    if not patterns:
        return everyone
    chosen = []
    for pattern in patterns:
        matches = [c for c in everyone if fnmatch.fnmatch(c.name, pattern)]
        if not matches:
            raise ValueError(
                f"--methods: {pattern!r} names none of {', '.join(repr(c.name) for c in everyone)}"
            )
        chosen += [c for c in matches if c not in chosen]
    return chosen
