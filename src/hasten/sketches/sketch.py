"""What every random sketch offers.

A *sketch* is a family of random d×r matrices P, scaled so that E[P Pᵀ] = I. A *draw* is one of them, known by its
(seed, step, block): it is regenerated wherever it is needed, never stored, never dense where a structure will do.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import ClassVar

import torch
from torch import Tensor

from hasten.sketches.counters import key_of
from hasten.sketches.curvature import Curvature


class Draw(abc.ABC):
    """One matrix P of shape (dimension, rank), regenerated from its keys; no autograd graph passes through it.

    Entries may be of any real floating dtype, on any device, and in any memory layout (what is not contiguous is
    copied). Complex and integer tensors are refused with a TypeError, wrong sizes with a ValueError.
    """

    dimension: int
    rank: int
    short_step: float | None = None
    """Length of the descent step x⁺ = y − short_step · P s where the family fixes it; None: 1/ℓ."""

    def project(self, g: Tensor) -> Tensor:
        """Pᵀg, shape (rank,), of a tensor of any shape with `dimension` entries.

        Sums are taken in at least float32; the result is float64 for float64, otherwise float32.
        """
        flat = _flat("project", "g", g, self.dimension)
        return self._project(flat, torch.float64 if g.dtype is torch.float64 else torch.float32)

    def lift(self, s: Tensor, out: Tensor | None = None) -> Tensor:
        """P s, shape (dimension,), of a vector of shape (rank,); written into `out` (any shape) if it is given."""
        small = _flat("lift", "s", s, self.rank)
        if small.dtype not in (torch.float32, torch.float64):
            small = small.float()
        if out is None:
            target = torch.empty(self.dimension, dtype=s.dtype, device=s.device)
            self._lift(small, target)
            return target
        target = _flat("lift", "out", out, self.dimension)
        if out.device != s.device:
            raise ValueError(f"lift: s is on {s.device} and out on {out.device}; they must be on one device")
        self._lift(small, target)
        if target.data_ptr() != out.data_ptr():
            out.detach().copy_(target.view(out.shape))
        return out

    def columns(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Columns start … stop−1 of P as the rows of a tensor of shape (stop − start, dimension)."""
        last = self.rank if stop is None else stop
        if not 0 <= start <= last <= self.rank:
            raise ValueError(
                f"columns: start = {start}, stop = {last} is not allowed; 0 ≤ start ≤ stop ≤ {self.rank} must hold"
            )
        if not dtype.is_floating_point:
            raise TypeError(f"columns: dtype = {dtype} is not allowed; it must be a real floating dtype")
        return self._columns(start, last, dtype, torch.device(device))

    @abc.abstractmethod
    def _project(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        """Pᵀg of a contiguous vector, in float32 or float64."""

    @abc.abstractmethod
    def _lift(self, s: Tensor, out: Tensor) -> None:
        """Write P s, for s in float32 or float64, into a contiguous vector of any dtype."""

    @abc.abstractmethod
    def _columns(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Columns as rows, for arguments that have been checked."""


def _flat(method: str, name: str, tensor: Tensor, entries: int) -> Tensor:
    if not tensor.dtype.is_floating_point:
        raise TypeError(
            f"{method}: {name} of dtype {tensor.dtype} is not allowed; it must be a real floating dtype"
        )
    if tensor.numel() != entries:
        raise ValueError(
            f"{method}: {name} of shape {tuple(tensor.shape)} is not allowed; it must have {entries} entries"
        )
    if tensor.dim() == 1 and tensor.is_contiguous() and not tensor.requires_grad:  # the usual case, quickly
        return tensor
    return tensor.detach().reshape(-1).contiguous()


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
        if self.ratio is not None and not (
            isinstance(self.ratio, int | float) and 1 <= self.ratio < math.inf
        ):
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

    def divided(self, shapes: Sequence[Sequence[int]]) -> list[Sketch]:
        """The same for each of several parameters by itself.

        A `ratio` holds for every parameter; a `rank` is divided in proportion to their sizes, at least 1 each.

        Example:
            >>> from hasten.sketches import CountSketch
            >>> CountSketch(rank=4).divided([(2, 4), (8, 3)])
            [CountSketch(rank=1, ratio=None), CountSketch(rank=3, ratio=None)]
        """
        sizes = [math.prod(shape) for shape in shapes]
        if self.rank is None:
            return [replace(self, rank=self.rank_in(n), ratio=None) for n in sizes]
        # Whole parts of the shares of the running total, so that they sum to the rank.
        total = sum(sizes)
        ends = [0, *(min(self.rank, total) * end // total for end in accumulate(sizes))]
        return [replace(self, rank=max(1, after - before), ratio=None) for before, after in pairwise(ends)]

    def draw(self, dimension: int, *, seed: int = 0, step: int = 0, block: int = 0) -> Draw:
        """The matrix of these keys: the same on every machine and every device.

        Raises:
            ValueError: the dimension is not a positive integer, or below the rank.
        """
        if not isinstance(dimension, int) or dimension < 1:
            raise ValueError(
                f"{type(self).__name__}: dimension = {dimension!r} is not allowed; it must be an integer of at least 1"
            )
        return self._draw(dimension, key_of(seed, step, block))

    @abc.abstractmethod
    def _draw(self, dimension: int, key: int) -> Draw:
        """The matrix of a 64-bit key."""

    @abc.abstractmethod
    def smoothed(self, L: Tensor) -> Tensor:
        """E[W L W] with W = PPᵀ, float64: shape (d, d) for a matrix L, and (d,) for the diagonal of a diagonal L.

        Every family maps diagonal matrices to diagonal matrices; E[W²] is the image of the identity.
        """

    @abc.abstractmethod
    def smoothness_bound(self, curvature: Curvature, minus: float = 0.0) -> float:
        """A bound on λ_max(E[W L W] − minus · L), 0 ≤ minus ≤ 1, from λ_max, the trace and, if known, the diagonal."""

    def nu(self, dimension: int) -> float:
        """ν = λ_max(E[(PPᵀ)²]), the inflation of the second moment."""
        return float(self.smoothed(torch.ones(dimension, dtype=torch.float64)).max())

    def expected_smoothness(self, smoothness: Tensor | Curvature) -> float:
        """ℓ = λ_max(E[PPᵀ L PPᵀ]): exact from a matrix or a diagonal L, a bound from λ_max and the trace.

        Args:
            smoothness: L of shape (d, d), a diagonal of shape (d,), or what is known of it.
        """
        curvature = Curvature.of(smoothness)
        if curvature.matrix is not None:
            return float(torch.linalg.eigvalsh(self.smoothed(curvature.matrix))[-1])
        if curvature.is_diagonal and curvature.diagonal is not None:
            return float(self.smoothed(curvature.diagonal).max())
        return self.smoothness_bound(curvature)

    def rate_constant(self, smoothness: Tensor | Curvature) -> float:
        """C, the only constant in the accelerated rate: ν ℓ unless the family does better (importance sampling)."""
        curvature = Curvature.of(smoothness)
        return self.nu(curvature.dimension) * self.expected_smoothness(curvature)

    def cost(self, dimension: int) -> float:
        """Expected numbers learnt a step (r)."""
        return float(self.rank_in(dimension))


@dataclass(frozen=True)
class ExchangeableSketch(Sketch):
    """A family in which no coordinate and no sign is preferred: E[W L W] = α L + β tr(L) I + γ diag(L)."""

    @abc.abstractmethod
    def coefficients(self, dimension: int) -> tuple[float, float, float]:
        """α, β, γ."""

    def nu(self, dimension: int) -> float:
        """ν = α + β d + γ, the moment formula at the identity."""
        alpha, beta, gamma = self.coefficients(dimension)
        return alpha + beta * dimension + gamma

    def smoothed(self, L: Tensor) -> Tensor:
        """α L + β tr(L) I + γ diag(L)."""
        L = L.double()
        alpha, beta, gamma = self.coefficients(L.shape[0])
        if L.dim() == 1:
            return (alpha + gamma) * L + beta * L.sum()
        diagonal = L.diagonal()
        return alpha * L + torch.diag(beta * diagonal.sum() + gamma * diagonal)

    def smoothness_bound(self, curvature: Curvature, minus: float = 0.0) -> float:
        """α λ_max + β tr + γ max diag; for γ < 0 the least diagonal entry, 0 where it is not known."""
        alpha, beta, gamma = self.coefficients(curvature.dimension)
        diagonal = curvature.diagonal
        if gamma > 0:
            entry = curvature.largest if diagonal is None else float(diagonal.max())
        else:
            entry = 0.0 if diagonal is None else float(diagonal.min())
        return max(alpha - minus, 0.0) * curvature.largest + beta * curvature.trace + gamma * entry
