"""The protocol of a method of `minimize`, and the register of names.

A method is a frozen dataclass: its fields made by :func:`hasten.solvers.options.option` are its options. It says

    start(objective, x0) -> State      evaluate at x0 and prepare
    step(objective, state) -> State    one *round*

and nothing else: stopping, the best point, counting, history, callbacks, batching and progress belong to the driver
(:mod:`hasten.solvers.driver`). A round is as small as the method can make it, at best one evaluation, so that in a
stack one problem's long line search does not hold up the others.

After `start` and after every round the driver reads from the state

    x, f, g      a point, F = f + h there (:meth:`Objective.whole`), and the gradient of f there, or None if not known
    residual     the number that `gtol` bounds: ‖g‖∞, or the gradient mapping's ‖(x − prox(x − s g))/s‖∞
    iterations   how many iterations are complete
    stepped      a mask: for which problems this round completed an iteration; x, f, g, residual count only there
    failed       a mask: for which problems the method cannot go on (the line search found no point)

Rules. Vectors are flat, numbers are floats or ``(B,)`` tensors, and formulas use `objective.space` and
:mod:`hasten.numbers` for both (see :mod:`hasten.solvers.space`). Evaluate through the objective, which counts. Never
change a tensor in place that the state has shown to the driver: it keeps the best ones. A problem that has ended goes
on being stepped in its stack and may turn into nan; what it turns into is not read. A state may carry anything else.
If the result to report is not among the points shown, `output` names it, and the driver evaluates it once at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hasten.checks import nearest
from hasten.numbers import Number
from hasten.solvers.objective import Objective
from hasten.solvers.options import Option, declared
from hasten.solvers.space import Mask


@dataclass
class State:
    """What a method shows to the driver; methods extend it."""

    x: Tensor
    f: Number
    g: Tensor | None
    residual: Number
    iterations: Number
    stepped: Mask
    failed: Mask


@dataclass(frozen=True)
class Method:
    """A method. Subclasses give `name`, one sentence as docstring, options, `start` and `step`."""

    name: ClassVar[str] = ""
    stopping: ClassVar[dict[str, Any]] = {}
    """Defaults of the stopping options that differ from the general ones."""
    takes_prox: ClassVar[bool] = False
    takes_bounds: ClassVar[bool] = False
    takes_batches: ClassVar[bool] = True
    source: ClassVar[str] = ""
    """Where the method was published."""

    def __post_init__(self) -> None:
        for known in self.options():
            value = known.check(f"minimize(method={self.name!r})", getattr(self, known.name))
            object.__setattr__(self, known.name, value)

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """The declared options."""
        return declared(cls)

    def start(self, objective: Objective, x0: Tensor) -> Any:
        """Evaluate at `x0`; return the first state, with 0 iterations."""
        raise NotImplementedError

    def step(self, objective: Objective, state: Any) -> Any:
        """One round; return the next state, which may be the same object, changed."""
        raise NotImplementedError

    def output(self, state: Any) -> Tensor | None:
        """A point to report if it turns out better than those shown; None if there is none."""
        return None


METHODS: dict[str, type[Method]] = {}
"""The methods by name."""


def register(method: type[Method]) -> type[Method]:
    """Make a method known to `minimize` by its name; a class decorator."""
    if not method.name or method.name in METHODS:
        raise ValueError(f"{method.__name__}: name {method.name!r} is empty or taken")
    METHODS[method.name] = method
    return method


def find(name: str) -> type[Method]:
    """The method of that name; case, ``_`` and ``-`` do not matter, and a few names of other libraries are known.

    Example:
        >>> find("L_BFGS").name, find("CG").name
        ('l-bfgs', 'ncg')
    """
    if not isinstance(name, str):
        raise TypeError(f"minimize: method = {name!r} is not allowed; it must be one of {', '.join(METHODS)}")
    plain = name.lower().replace("_", "-").replace(" ", "-")
    plain = _OTHER_NAMES.get(plain, plain)
    if plain not in METHODS:
        raise ValueError(f"minimize: there is no method {name!r}{nearest(plain, METHODS)}")
    return METHODS[plain]


_OTHER_NAMES = {
    "lbfgs": "l-bfgs",
    "l-bfgs-b": "l-bfgs",
    "cg": "ncg",
    "nonlinear-cg": "ncg",
    "gd": "gradient-descent",
    "nag": "nesterov",
    "proximal-gradient": "gradient-descent",
}
