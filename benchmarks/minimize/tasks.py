"""What is minimised: the Moré-Garbow-Hillstrom collection, and regularised regressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.problems.more_garbow_hillstrom import MORE_GARBOW_HILLSTROM

ACCURACY = 1e-7  # of the value, for a task to count as solved
STATIONARITY = 1e-6  # of the gradient, for a method to stop
WIDE = 100  # variables of the wide copies; those whose minima are published for every dimension
WIDENED = (
    "extended-rosenbrock",
    "extended-powell",
    "penalty-1",
    "variably-dimensioned",
    "discrete-boundary-value",
    "discrete-integral-equation",
    "broyden-tridiagonal",
    "broyden-banded",
    "linear-full-rank",
)
SIMPLE = ("rosenbrock", "beale", "wood", "brown-dennis", "linear-full-rank", "variably-dimensioned")


@dataclass(frozen=True)
class Task:
    """A function, a start, and the values at which a method may rightly end."""

    name: str
    group: str
    value: Callable[[Tensor], Tensor]
    start: Tensor
    targets: tuple[float, ...]

    def tolerance(self, target: float, first: float) -> float:
        """How near the value must come: relative to the way to go and to the target, whichever is less."""
        return ACCURACY * min(max(first - target, 0.0), max(1.0, abs(target)))

    def reached(self, value: float, first: float) -> bool:
        """Whether a value is one of the targets."""
        return any(abs(value - target) <= self.tolerance(target, first) for target in self.targets)

    def first(self) -> tuple[float, Tensor]:
        """Value and gradient at the start."""
        x = self.start.clone().requires_grad_()
        value = self.value(x)
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient

    @property
    def gradient_tolerance(self) -> float:
        """The largest entry of the gradient at which every method is told to stop."""
        return STATIONARITY * min(1.0, float(self.first()[1].abs().max()))


def collection(quick: bool = False) -> Iterator[Task]:
    """The 35 problems from their start, and from 10 and 100 times as far out where that is defined."""
    for name, problem in MORE_GARBOW_HILLSTROM.items():
        if quick and name not in SIMPLE:
            continue
        targets = (problem.minimum, *problem.other_values)
        for factor in (1,) if quick else (1, 10, 100):
            suffix = "" if factor == 1 else f" ×{factor}"
            task = Task(name + suffix, "collection", problem.value, problem.start_scaled(factor), targets)
            value, gradient = task.first()
            # Ten times the start of gulf is its solution.
            if gradient.isfinite().all() and min(targets) + ACCURACY < value < math.inf:
                yield task
    if not quick:
        for name in WIDENED:
            problem = MORE_GARBOW_HILLSTROM[name].with_dimension(WIDE)
            yield Task(f"{name}, n = {WIDE}", "collection", problem.value, problem.start, (problem.minimum,))


def regressions(quick: bool = False) -> Iterator[Task]:
    """Logistic and softmax regression with a ridge, on scikit-learn's data."""
    from hasten.problems.ridge import RidgeLogistic, RidgeSoftmax

    for ridge in (1e-2,) if quick else (1e-2, 1e-4, 1e-6):
        problem = RidgeLogistic.breast_cancer(ridge)
        yield Task(
            f"logistic, ridge {ridge:g}", "regression", problem.value, problem.start, (problem.minimum,)
        )
    for ridge in () if quick else (1e-2, 1e-3, 1e-4):
        softmax = RidgeSoftmax.digits(ridge)
        yield Task(
            f"softmax, ridge {ridge:g}", "regression", softmax.value, softmax.start, (softmax.minimum,)
        )
