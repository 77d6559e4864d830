"""What a sketch will cost before anything is run, and whether it is the better choice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from hasten.checks import check_choice
from hasten.sketches.curvature import Curvature
from hasten.sketches.sketch import Sketch
from hasten.theory.bounds import Accelerated, SubspaceDescent

__all__ = ["Cost", "KnownProblem", "Prediction", "clusters", "predict"]

Cost = Literal["forward", "bytes", "reverse"]
"""What is scarce. ``forward``: directional derivatives (or function values), of which a whole gradient takes d.
``bytes``: floats sent between workers, again d for a whole gradient. ``reverse``: gradients, where reverse mode
gives a whole one for the price of a few losses and a sketched step costs one too."""

FLOAT_BYTES = 4
WORTH_IT = 1.1
"""Speed-ups in the bound below this are not worth more steps and a second method."""
NARROW, FEW = 1.1, 8
"""A spectrum is clustered if this few intervals [λ, 1.1 λ] cover it, each with four eigenvalues on average."""


class KnownProblem(Protocol):
    """Whatever carries these constants, such as :class:`hasten.problems.ConvexProblem`.

    Example:
        >>> import torch
        >>> known: KnownProblem = Known.of(torch.ones(4), distance=2.0)
        >>> known.gap
        2.0
    """

    @property
    def curvature(self) -> Curvature:
        """L, or what is known of it."""
        ...

    @property
    def strong_convexity(self) -> float:
        """μ ≥ 0."""
        ...

    @property
    def distance(self) -> float:
        """R = ‖x₀ − x*‖."""
        ...

    @property
    def gap(self) -> float:
        """Δ₀ = f(x₀) − f*."""
        ...


@dataclass(frozen=True)
class Known:
    """A problem's constants, checked against each other: L, μ, R = ‖x₀ − x*‖ and Δ₀ = f(x₀) − f*.

    Where only curvature is given, R = 1 and Δ₀ = λ_max R²/2, the largest gap there can be: counts of steps then
    depend on the accuracy relative to that alone.

    Example:
        >>> Known.of(Curvature(100, largest=2.0, trace=10.0), strong_convexity=0.2)
        Traceback (most recent call last):
        ...
        ValueError: strong_convexity = 0.2 is not allowed; it must be from 0 to trace/dimension = 0.1
    """

    curvature: Curvature
    strong_convexity: float
    distance: float
    gap: float

    @classmethod
    def of(
        cls,
        problem: KnownProblem | Curvature | Tensor,
        strong_convexity: float | None = None,
        distance: float | None = None,
        gap: float | None = None,
    ) -> Known:
        """From a problem, or from its curvature; what is named overrides what the problem says.

        Raises:
            ValueError: a constant is out of range, or contradicts another one.
        """
        if isinstance(problem, Curvature | Tensor):
            curvature = Curvature.of(problem)
            mu, R, largest_gap = 0.0, 1.0, None
        elif not hasattr(problem, "curvature"):
            raise TypeError(
                f"problem = {problem!r} is not allowed; it must be a problem with known constants, a Curvature, or L "
                "as a tensor"
            )
        else:
            curvature = problem.curvature
            mu, R, largest_gap = problem.strong_convexity, problem.distance, problem.gap
        mu = mu if strong_convexity is None else strong_convexity
        R = R if distance is None else distance
        gap = largest_gap if gap is None else gap
        # λ_min is at most the mean eigenvalue.
        highest = curvature.trace / curvature.dimension
        if not 0 <= mu <= highest * (1 + 1e-9):
            raise ValueError(
                f"strong_convexity = {mu!r} is not allowed; it must be from 0 to trace/dimension = {highest:.6g}"
            )
        if not (math.isfinite(R) and R > 0):
            raise ValueError(f"distance = {R!r} is not allowed; it must be positive and finite")
        lowest, steepest = mu * R**2 / 2, curvature.largest * R**2 / 2
        gap = steepest if gap is None else gap
        if not (gap > 0 and lowest * (1 - 1e-6) <= gap <= steepest * (1 + 1e-6)):
            raise ValueError(
                f"gap = {gap!r} is not allowed; with distance = {R:.6g} it must be positive and from μR²/2 = "
                f"{lowest:.6g} to λ_max R²/2 = {steepest:.6g}"
            )
        return cls(curvature, mu, R, gap)


@dataclass(frozen=True)
class Prediction:
    """The theory's word on one sketch and one problem; ``print`` it to read it.

    All counts come from worst-case bounds in expectation: they are upper limits, and their ratios are what to
    compare. Measured speed-ups follow `speed_up` on scattered spectra and fall short of it on clustered ones.

    Attributes:
        sketch: the family's name; ``full`` for the whole gradient.
        known: the problem's constants.
        rank: r.
        cost_per_step: directional derivatives (or floats) that a step takes on average; r, or fewer for sampling.
        nu: ν.
        constant: C, νℓ unless the family does better.
        accuracy: ε/Δ₀, the part of the initial gap to be left.
        cost: what is scarce.

    Example:
        >>> from hasten.sketches import Haar
        >>> prediction = predict(Curvature(10_000, largest=1.0, trace=10.0), Haar(rank=10), accuracy=1e-2)
        >>> prediction.oracle_calls, prediction.full_oracle_calls
        (9160, 190000)
    """

    sketch: str
    known: Known
    rank: int
    cost_per_step: float
    nu: float
    expected_smoothness: float
    constant: float
    accuracy: float
    cost: Cost

    @property
    def dimension(self) -> int:
        """d."""
        return self.known.curvature.dimension

    @cached_property
    def iterations(self) -> int:
        """Steps of the accelerated method (schedule U, closed form) to the accuracy."""
        return self._accelerated(self.constant)

    @cached_property
    def full_iterations(self) -> int:
        """Steps of Nesterov's method with whole gradients."""
        return self._accelerated(self.known.curvature.largest)

    @cached_property
    def descent_iterations(self) -> int | None:
        """Steps of subspace gradient descent; None where the family's own short step decides."""
        if not math.isclose(self.constant, self.nu * self.expected_smoothness, rel_tol=1e-6):
            return None
        k = self.known
        bound = SubspaceDescent(self.nu, self.expected_smoothness, k.distance, k.gap, k.strong_convexity)
        return bound.iterations(self._epsilon)

    @property
    def oracle_calls(self) -> int:
        """Directional derivatives (or floats sent) in all steps."""
        return math.ceil(self.cost_per_step * self.iterations)

    @property
    def full_oracle_calls(self) -> int:
        """The same for Nesterov's method with whole gradients, d a step."""
        return self.dimension * self.full_iterations

    @property
    def bytes(self) -> int:
        """Bytes that each worker sends in all steps, four for a float."""
        return FLOAT_BYTES * self.oracle_calls

    @property
    def full_bytes(self) -> int:
        """The same with whole gradients."""
        return FLOAT_BYTES * self.full_oracle_calls

    @property
    def inflation(self) -> float:
        """I = √(C/λ_max): how many times more steps than Nesterov's method, in the limit of many."""
        return math.sqrt(self.constant / self.known.curvature.largest)

    @property
    def speed_up(self) -> float:
        """S = d√λ_max/(r√C): how many times fewer oracle calls than Nesterov's method, in the limit of many."""
        return self.dimension / (self.cost_per_step * self.inflation)

    @property
    def gain(self) -> float:
        """How many times less of what is scarce: S, or 1/I where reverse mode gives whole gradients."""
        return 1 / self.inflation if self.cost == "reverse" else self.speed_up

    @cached_property
    def clusters(self) -> int | None:
        """In how many narrow clusters the spectrum falls; None if it is scattered or not known."""
        return clusters(self.known.curvature)

    @property
    def better(self) -> Literal["full", "either", "subspace"]:
        """The better choice; ``either`` where the bounds favour the sketch but cannot be trusted."""
        if self.gain < WORTH_IT:
            return "full"
        return "subspace" if self.clusters is None else "either"

    @property
    def recommendation(self) -> str:
        """The better choice in plain words, with its reason and its price."""
        S, steps = times(self.speed_up), f"{times(self.inflation)} times as many steps"
        rank = f"effective rank {self.known.curvature.effective_rank:.3g} of {self.dimension:,}"
        name = f"{self.sketch} of rank {self.rank}"
        if self.sketch == FULL:
            return "This is the full method: Nesterov's, with whole gradients."
        if self.cost == "reverse":
            return (
                "Use the full method with reverse mode: a gradient costs three or four losses whatever the dimension, "
                f"and {name} would take {steps}. It pays only where reverse mode does not fit into memory."
            )
        if self.better == "full":
            return (
                f"Use the full method: {name} would save next to nothing (a factor of {S}) and take {steps}; "
                f"the curvature has {rank}."
            )
        saved = "bytes sent" if self.cost == "bytes" else "directional derivatives"
        promise = f"about {S} times fewer {saved} than full Nesterov, in {steps}"
        if self.cost == "bytes":
            promise += ", each with a whole gradient to compute"
        if self.clusters is not None:
            narrow = "one narrow cluster" if self.clusters == 1 else f"{self.clusters} narrow clusters"
            return (
                f"Try {name} and the full method: the bounds promise {promise}; but the spectrum falls into {narrow}, "
                "where the full method is much faster than its bound and may win."
            )
        advice = f"Use {name}: {promise}; the curvature has {rank}."
        if self.descent_iterations is not None and self.descent_iterations < self.iterations:
            advice += (
                " At this accuracy plain subspace gradient descent has the better guarantee: "
                f"{self.descent_iterations:,} steps."
            )
        return advice

    def __str__(self) -> str:
        L, descent = self.known.curvature, self.descent_iterations
        lines = [
            f"{self.sketch}, r = {self.rank} of d = {self.dimension:,}, to {self.accuracy:g} of the initial gap",
            f"  λ_max {L.largest:.6g} · effective rank {L.effective_rank:.4g} · μ {self.known.strong_convexity:g}",
            f"  ν {self.nu:.6g} · ℓ {self.expected_smoothness:.6g} · C {self.constant:.6g}",
            f"  steps        {self.iterations:>16,}   full Nesterov {self.full_iterations:>16,}",
            f"  oracle calls {self.oracle_calls:>16,}   full Nesterov {self.full_oracle_calls:>16,}",
            f"  bytes sent   {self.bytes:>16,}   full Nesterov {self.full_bytes:>16,}",
            f"  in the limit {times(self.speed_up)} times fewer oracle calls, {times(self.inflation)} times more steps",
        ]
        if descent is not None:
            lines.append(f"  without momentum {descent:>12,} steps")
        return "\n".join([*lines, f"  {self.recommendation}"])

    @property
    def _epsilon(self) -> float:
        return self.accuracy * self.known.gap

    def _accelerated(self, constant: float) -> int:
        bound = Accelerated(constant, self.known.distance, self.known.strong_convexity)
        return bound.iterations(self._epsilon)


FULL = "full"


def times(factor: float) -> str:
    """A factor, to three digits.

    Example:
        >>> times(3.14159), times(7211.1)
        ('3.14', '7,211')
    """
    return f"{factor:.3g}" if factor < 1000 else f"{factor:,.0f}"


def predict(
    problem: KnownProblem | Curvature | Tensor,
    sketch: Sketch | None,
    accuracy: float,
    *,
    cost: Cost = "forward",
    strong_convexity: float | None = None,
    distance: float | None = None,
    gap: float | None = None,
) -> Prediction:
    """Steps, oracle calls, bytes and speed-up of randomized-subspace Nesterov, before anything is run.

    Args:
        problem: a problem with known constants, or a curvature: a matrix (d, d), a diagonal (d,) or a
            :class:`~hasten.sketches.Curvature` of two numbers.
        sketch: the family and its rank; None for the full method.
        accuracy: ε/Δ₀ in (0, 1), the part of the initial gap to be left.
        cost: what is scarce: ``"forward"``, ``"bytes"`` or ``"reverse"``.
        strong_convexity: μ; the problem's, or 0.
        distance: R = ‖x₀ − x*‖; the problem's, or 1.
        gap: Δ₀ = f(x₀) − f*; the problem's, or λ_max R²/2.

    Raises:
        ValueError: an argument is out of its range or contradicts another, or the rank exceeds the dimension.

    Example:
        >>> import torch
        >>> from hasten.sketches import Haar
        >>> prediction = predict(1 / torch.arange(1, 257.0) ** 2, Haar(rank=16), accuracy=1e-2)
        >>> round(prediction.speed_up, 2), prediction.better
        (3.72, 'subspace')
        >>> predict(torch.ones(256), Haar(rank=16), accuracy=1e-2).better
        'full'
    """
    known = Known.of(problem, strong_convexity, distance, gap)
    if sketch is not None and not isinstance(sketch, Sketch):
        raise TypeError(
            f"sketch = {sketch!r} is not allowed; it must be a sketch, or None for the full method"
        )
    if isinstance(accuracy, str) or not 0 < accuracy < 1:
        raise ValueError(
            f"accuracy = {accuracy!r} is not allowed; it must be between 0 and 1, a part of the initial gap"
        )
    check_choice("predict", "cost", cost, get_args(Cost))
    L = known.curvature
    d = L.dimension
    if sketch is None:
        return Prediction(FULL, known, d, d, 1.0, L.largest, L.largest, accuracy, cost)
    return Prediction(
        sketch=type(sketch).__name__,
        known=known,
        rank=sketch.rank_in(d),
        cost_per_step=sketch.cost(d),
        nu=sketch.nu(d),
        expected_smoothness=sketch.expected_smoothness(L),
        constant=sketch.rate_constant(L),
        accuracy=accuracy,
        cost=cost,
    )


def clusters(curvature: Curvature) -> int | None:
    """In how many narrow intervals [λ, 1.1 λ] the spectrum falls, if they are few; otherwise None.

    On such spectra Nesterov's method is much faster than its bound, so that ratios of bounds say little. Zeros
    count as no cluster. None too where the spectrum is not known.

    Example:
        >>> clusters(Curvature.of(torch.tensor([1.0] * 4 + [0.01] * 60)))
        2
        >>> clusters(Curvature.of(1 / torch.arange(1, 65.0))) is None
        True
    """
    if curvature.matrix is not None:
        eigenvalues: Tensor = torch.linalg.eigvalsh(curvature.matrix)
    elif curvature.is_diagonal and curvature.diagonal is not None:
        eigenvalues = curvature.diagonal.double().sort().values
    else:
        return None
    left = eigenvalues[eigenvalues > 1e-12 * curvature.largest]
    count, positive = 0, left.numel()
    while left.numel():
        count += 1
        if count > FEW or 4 * count > positive:
            return None
        left = left[left > NARROW * left[0]]
    return count
