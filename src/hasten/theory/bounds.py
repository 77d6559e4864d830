r"""Bounds on E f(x_k) − f* for descent from sketched gradients, as curves and as counts of steps.

C = ν·ℓ is the sketch's rate constant, R = ‖x₀ − x*‖, Δ₀ = f(x₀) − f*, α = √(μ/C). Without a sketch ν = 1 and
C = ℓ = λ_max(L), and each bound is that of the classical method. Expectations are over the sketches.

Sources: the accelerated bounds restate arXiv:2605.00740 with our own constants and proof; coordinate sampling agrees
with Allen-Zhu, Qu, Richtárik and Yuan, arXiv:1512.09103.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice

from hasten.checks import number
from hasten.words import NONNEGATIVE, POSITIVE

__all__ = ["Accelerated", "Bound", "ScheduleC", "ScheduleS", "ScheduleU", "SubspaceDescent"]


@dataclass(frozen=True)
class Bound(abc.ABC):
    """A non-increasing function of the number of steps that E f(x_k) − f* never exceeds.

    Raises:
        ValueError: a constant is not a number, not finite, or out of its range.

    Example:
        >>> bound: Bound = ScheduleC(constant=8.0, distance=1.0)
        >>> bound.curve(3)
        [16.0, 4.0, 1.7777777777777777, 1.0]
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            allowed = NONNEGATIVE if field.name in _MAY_VANISH else POSITIVE
            object.__setattr__(self, field.name, number(self, field.name, getattr(self, field.name), allowed))

    @abc.abstractmethod
    def at(self, step: int) -> float:
        """The bound after so many steps."""

    @abc.abstractmethod
    def _solution(self, accuracy: float) -> float:
        """Where the bound, as a function of a real number of steps, comes down to the accuracy."""

    def iterations(self, accuracy: float) -> int:
        """The fewest steps after which the bound is at most ``accuracy`` (absolute, in units of f)."""
        step = max(0, math.ceil(self._solution(_positive(accuracy))))
        # Round-off may put the solution on the wrong side of a whole number.
        while step and self.at(step - 1) <= accuracy:
            step -= 1
        while self.at(step) > accuracy:
            step += 1
        return step

    def curve(self, steps: int) -> list[float]:
        """The bound after 0, 1, …, ``steps`` steps."""
        return [self.at(step) for step in range(steps + 1)]


_MAY_VANISH = ("strong_convexity", "gap", "distance", "warm_start")


def _positive(accuracy: float) -> float:
    if not (math.isfinite(accuracy) and accuracy > 0):
        raise ValueError(f"accuracy = {accuracy!r} is not allowed; it must be positive and finite")
    return accuracy


@dataclass(frozen=True)
class _Geometric:
    """first · (1−rate)^k, also where 1 − rate rounds to 1."""

    first: float
    rate: float

    def at(self, step: int) -> float:
        return self.first * math.exp(step * self._slope) if step else self.first

    def solution(self, accuracy: float) -> float:
        if self.first <= accuracy:
            return 0.0
        return math.log(accuracy / self.first) / self._slope if self.rate else math.inf

    @property
    def _slope(self) -> float:
        return math.log1p(-self.rate) if self.rate < 1 else -math.inf


def _alpha(strong_convexity: float, constant: float) -> float:
    if strong_convexity > constant * (1 + 1e-9):
        raise ValueError(
            f"strong_convexity = {strong_convexity!r} is not allowed; it must be at most constant = {constant!r}"
        )
    return min(1.0, math.sqrt(strong_convexity / constant))


@dataclass(frozen=True)
class ScheduleC(Bound):
    """Convex, θ_k = 2/(k+2): 2CR²/(k+1)².

    Example:
        >>> ScheduleC(constant=8.0, distance=1.0).at(3)
        1.0
        >>> ScheduleC(constant=8.0, distance=1.0).iterations(0.01)
        39
    """

    constant: float
    distance: float

    def at(self, step: int) -> float:
        """2CR²/(k+1)²."""
        return 2 * self.constant * self.distance**2 / (step + 1) ** 2

    def _solution(self, accuracy: float) -> float:
        return self.distance * math.sqrt(2 * self.constant / accuracy) - 1


@dataclass(frozen=True)
class ScheduleS(Bound):
    """Strongly convex, constant coefficients: (1−α)^k (Δ₀ + μR²/2).

    Example:
        >>> ScheduleS(constant=4.0, distance=2.0, gap=1.0, strong_convexity=1.0).at(1)
        1.5
    """

    constant: float
    distance: float
    gap: float
    strong_convexity: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strong_convexity == 0:
            raise ValueError(
                "ScheduleS: strong_convexity = 0.0 is not allowed; the schedule needs a positive one"
            )
        _alpha(self.strong_convexity, self.constant)

    def at(self, step: int) -> float:
        """(1−α)^k (Δ₀ + μR²/2)."""
        return self._course.at(step)

    def _solution(self, accuracy: float) -> float:
        return self._course.solution(accuracy)

    @property
    def _course(self) -> _Geometric:
        first = self.gap + self.strong_convexity * self.distance**2 / 2
        return _Geometric(first, _alpha(self.strong_convexity, self.constant))


@dataclass(frozen=True)
class Accelerated(Bound):
    """What schedule U guarantees in closed form: the smaller of 2CR²/(k+1)² and (CR²/2)(1−α)^(k−1).

    Never below :class:`ScheduleU`, the same schedule's exact bound.

    Example:
        >>> Accelerated(constant=100.0, distance=1.0, strong_convexity=1.0).iterations(1e-6)
        170
    """

    constant: float
    distance: float
    strong_convexity: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _alpha(self.strong_convexity, self.constant)

    def at(self, step: int) -> float:
        """The smaller of both."""
        convex = self._convex.at(step)
        return convex if step == 0 else min(convex, self._linear.at(step - 1))

    def _solution(self, accuracy: float) -> float:
        return min(self._convex._solution(accuracy), 1 + self._linear.solution(accuracy))

    @property
    def _convex(self) -> ScheduleC:
        return ScheduleC(self.constant, self.distance)

    @property
    def _linear(self) -> _Geometric:
        return _Geometric(self.constant * self.distance**2 / 2, _alpha(self.strong_convexity, self.constant))


@dataclass(frozen=True)
class ScheduleU(Bound):
    """The unified schedule, exactly: (A₀Δ₀ + R²/2)/A_k, where C(A_{k+1} − A_k)² = A_{k+1}(1 + μA_{k+1}).

    Takes as many operations as steps; :class:`Accelerated` is its closed form. The bound is infinite before the
    first step unless the start is warm.

    Args:
        constant: C.
        distance: R.
        strong_convexity: μ.
        gap: Δ₀; counts only with a warm start.
        warm_start: A₀.

    Example:
        >>> bound = ScheduleU(constant=1.0, distance=1.0)
        >>> bound.at(1), bound.iterations(1e-4)
        (0.5, 139)
    """

    constant: float
    distance: float
    strong_convexity: float = 0.0
    gap: float = 0.0
    warm_start: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _alpha(self.strong_convexity, self.constant)

    def at(self, step: int) -> float:
        """(A₀Δ₀ + R²/2)/A_k."""
        return next(islice(self._values(), step, None))

    def _solution(self, accuracy: float) -> float:
        return next(k for k, value in enumerate(self._values()) if value <= accuracy)

    def iterations(self, accuracy: float) -> int:
        """The first k whose A_k is large enough; takes as long as k."""
        return int(self._solution(_positive(accuracy)))

    def curve(self, steps: int) -> list[float]:
        """The bound after 0, 1, …, ``steps`` steps, in one pass."""
        return list(islice(self._values(), steps + 1))

    def weights(self) -> Iterator[float]:
        """A₀, A₁, …, without end."""
        mu, A = self.strong_convexity, self.warm_start
        # C = μ happens without a sketch on a perfectly conditioned function; the root needs C > μ.
        C = max(self.constant, mu * (1 + 1e-9))
        growth = 1 - math.sqrt(mu / C)
        while True:
            yield A
            if mu * A > 1e8:  # the growth is geometric to the last digit, and squares would overflow
                A /= growth
            else:
                B = 1 + mu * A
                b = B + mu * A
                A += (b + math.sqrt(b * b + 4 * (C - mu) * A * B)) / (2 * (C - mu))

    def _values(self) -> Iterator[float]:
        first = self.warm_start * self.gap + self.distance**2 / 2
        return (first / weight if weight else math.inf for weight in self.weights())


@dataclass(frozen=True)
class SubspaceDescent(Bound):
    """x ← x − G/ℓ without momentum: the smaller of (1−μ/ℓ)^k Δ₀ and (ℓR²/2 + νΔ₀)/k.

    Args:
        nu: ν; 1 without a sketch.
        expected_smoothness: ℓ; λ_max(L) without a sketch, when this is plain gradient descent.
        distance: R.
        gap: Δ₀.
        strong_convexity: μ.

    Example:
        >>> SubspaceDescent(nu=1.0, expected_smoothness=1.0, distance=2.0, gap=1.0).at(3)
        1.0
        >>> SubspaceDescent(nu=1.0, expected_smoothness=1.0, distance=2.0, gap=1.0).iterations(1e-3)
        3000
    """

    nu: float
    expected_smoothness: float
    distance: float
    gap: float
    strong_convexity: float = 0.0

    def at(self, step: int) -> float:
        """The smaller of both; Δ₀ at the start."""
        linear = self._linear.at(step)
        return linear if step == 0 else min(linear, self._sublinear / step)

    def _solution(self, accuracy: float) -> float:
        return min(self._linear.solution(accuracy), self._sublinear / accuracy)

    @property
    def _sublinear(self) -> float:
        return self.expected_smoothness * self.distance**2 / 2 + self.nu * self.gap

    @property
    def _linear(self) -> _Geometric:
        return _Geometric(self.gap, min(1.0, self.strong_convexity / self.expected_smoothness))
