"""What every random sketch offers.

A *sketch* is a family of random d×r matrices P, scaled so that E[P Pᵀ] = I. A *draw* is one of them, known by its
(seed, step, block): it is regenerated wherever it is needed, never stored, never dense where a structure will do.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hasten.sketches.curvature import Curvature


class Draw(abc.ABC):
    """One matrix P of shape (dimension, rank), regenerated from its keys."""

    dimension: int
    rank: int
    short_step: float | None = None
    """Length of the descent step x⁺ = y − short_step · P s where the family fixes it; None: 1/ℓ."""

    @abc.abstractmethod
    def project(self, g: Tensor) -> Tensor:
        """Pᵀg, shape (rank,), of a tensor of any shape with `dimension` entries.

        Sums are taken in at least float32; the result is float64 for float64, otherwise float32.
        """

    @abc.abstractmethod
    def lift(self, s: Tensor, out: Tensor | None = None) -> Tensor:
        """P s, shape (dimension,), of a vector of shape (rank,); written into `out` (any shape) if it is given."""

    @abc.abstractmethod
    def columns(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Columns start … stop−1 of P as the rows of a tensor of shape (stop − start, dimension)."""


@dataclass(frozen=True)
class Sketch(abc.ABC):
    """A family of random matrices; `rank` = r is given, or `ratio` = d/r.

    Example:
        >>> import torch
        >>> from hasten.sketches import BalancedCountSketch
        >>> sketch = BalancedCountSketch(rank=4)
        >>> draw = sketch.draw(16, seed=0, step=3)
        >>> s = draw.project(torch.ones(16))
        >>> draw.lift(s).shape
        torch.Size([16])
        >>> sketch.nu(16)
        4.0
    """

    rank: int | None = None
    ratio: float | None = None
    formula: ClassVar[str] = ""
    """The construction as in the paper, in plain text."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        if (self.rank is None) == (self.ratio is None):
            raise TypeError(
                f"{name}: give either rank (r) or ratio (d/r), got rank={self.rank!r}, ratio={self.ratio!r}"
            )
        if self.rank is not None and (
            isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1
        ):
            raise ValueError(
                f"{name}: rank = {self.rank!r} is not allowed; it must be an integer of at least 1"
            )
        if self.ratio is not None and not (math.isfinite(self.ratio) and self.ratio >= 1):
            raise ValueError(
                f"{name}: ratio = {self.ratio!r} is not allowed; it must be a number of at least 1"
            )

    def rank_in(self, dimension: int) -> int:
        """r for vectors of this dimension.

        Raises:
            ValueError: the rank exceeds the dimension.
        """
        if self.rank is None:
            assert self.ratio is not None
            return max(1, math.ceil(dimension / self.ratio))
        if self.rank > dimension:
            raise ValueError(
                f"{type(self).__name__}: rank = {self.rank} is not allowed in dimension {dimension}; "
                "it must be at most the dimension"
            )
        return self.rank

    @abc.abstractmethod
    def draw(self, dimension: int, *, seed: int = 0, step: int = 0, block: int = 0) -> Draw:
        """The matrix of these keys: the same on every machine and every device."""

    @abc.abstractmethod
    def nu(self, dimension: int) -> float:
        """ν = λ_max(E[(PPᵀ)²]), the inflation of the second moment."""

    @abc.abstractmethod
    def expected_smoothness(self, smoothness: Tensor | Curvature) -> float:
        """ℓ = λ_max(E[PPᵀ L PPᵀ]): exact from a matrix or a diagonal, the best bound from λ_max and the trace."""

    def rate_constant(self, smoothness: Tensor | Curvature) -> float:
        """C, the only constant in the accelerated rate: ν ℓ unless the family does better (importance sampling)."""
        curvature = Curvature.of(smoothness)
        return self.nu(curvature.dimension) * self.expected_smoothness(curvature)

    def cost(self, dimension: int) -> float:
        """Expected numbers learnt a step (r)."""
        return float(self.rank_in(dimension))
