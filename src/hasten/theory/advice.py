"""Which sketch, and which rank: predictions side by side, and the pick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hasten.sketches import (
    BalancedCountSketch,
    Coordinates,
    Gaussian,
    Haar,
    ImportanceCoordinates,
    StridedSigns,
)
from hasten.sketches.curvature import Curvature
from hasten.sketches.sketch import Sketch
from hasten.theory.prediction import Cost, Known, KnownProblem, Prediction, predict, times

__all__ = ["Advice", "advise"]

CLEARLY = 1.05


@dataclass(frozen=True)
class Advice:
    """Predictions side by side, the full method first.

    Attributes:
        predictions: one for each sketch and rank.
        pick: the one to use.
        considered: the best of rank nearest to the effective rank; the pick, unless that is the full method.
        cheapest: the one with the fewest oracle calls, whatever the number of its steps.

    Example:
        >>> import torch
        >>> advise(torch.ones(64), accuracy=1e-3).pick.sketch
        'full'
    """

    predictions: tuple[Prediction, ...]
    pick: Prediction
    considered: Prediction
    cheapest: Prediction

    @property
    def sentence(self) -> str:
        """The pick in plain words."""
        text = self.considered.recommendation
        c = self.cheapest
        if self.pick is self.considered and c.speed_up > CLEARLY * self.pick.speed_up:
            text += (
                f" Cheapest of all is {c.sketch} of rank {c.rank}: {times(c.speed_up)} times fewer, "
                f"in {times(c.inflation)} times as many steps."
            )
        return text


def advise(
    problem: KnownProblem | Curvature | Tensor,
    accuracy: float = 1e-4,
    *,
    sketches: Sequence[Sketch] | None = None,
    cost: Cost = "forward",
    strong_convexity: float | None = None,
    distance: float | None = None,
    gap: float | None = None,
) -> Advice:
    """Compare sketches and ranks on a problem, and pick one.

    The rule is r ≈ ρ, the effective rank: against r = 1 it costs at most a factor of √2 in oracle calls and saves
    a factor of about ρ/√2 in steps. At that rank the first sketch is picked unless a later one is clearly cheaper, and
    the full method where it is the better choice.

    Args:
        problem, accuracy, cost, strong_convexity, distance, gap: as for :func:`predict`.
        sketches: what to compare; by default the balanced sketch at several ranks, and other families at r ≈ ρ.

    Raises:
        ValueError: as for :func:`predict`.

    Example:
        >>> import torch
        >>> advice = advise(1 / torch.arange(1, 257.0), accuracy=1e-3)
        >>> advice.pick.rank
        6
    """
    known = Known.of(problem, strong_convexity, distance, gap)
    options = default_sketches(known.curvature) if sketches is None else sketches
    predictions = tuple(predict(known, sketch, accuracy, cost=cost) for sketch in (None, *options))
    full, *rest = predictions
    if not rest:
        return Advice(predictions, full, full, full)
    rho = known.curvature.effective_rank
    nearest = min((p.rank for p in rest), key=lambda rank: abs(rank - rho))
    # The first unless another is clearly cheaper: dense families cost far more time than these counts show.
    considered, *others = (p for p in rest if p.rank == nearest)
    for other in others:
        if other.speed_up > CLEARLY * considered.speed_up:
            considered = other
    cheapest = min(predictions, key=lambda p: p.oracle_calls)
    pick = full if considered.better == "full" else considered
    return Advice(predictions, pick, considered, cheapest)


def default_sketches(curvature: Curvature) -> list[Sketch]:
    """The balanced sketch at powers of four and at the effective rank, where other families join it."""
    d = curvature.dimension
    rho = min(d, max(1, round(curvature.effective_rank)))
    ladder = {4**k for k in range(16) if 4**k < d and 4**k <= max(256, 4 * rho)}
    options: list[Sketch] = [BalancedCountSketch(rank=r) for r in sorted(ladder | {rho}) if r < d]
    if rho == d:
        return options
    options += [family(rank=rho) for family in (StridedSigns, Haar, Gaussian)]
    if curvature.diagonal is not None:
        options += [Coordinates(rank=rho), ImportanceCoordinates(curvature)]
    return options
