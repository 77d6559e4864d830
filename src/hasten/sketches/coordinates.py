"""Sketches that look at a few coordinates, or one block of them, as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from hasten.checks import check_choice
from hasten.sketches import native
from hasten.sketches.counters import PIECE, chosen, uniforms
from hasten.sketches.curvature import Curvature
from hasten.sketches.sketch import Draw, ExchangeableSketch, Sketch


class CoordinateDraw(Draw):
    """One P with a single entry in every column: row index[j], value scale[j]."""

    def __init__(
        self,
        dimension: int,
        index: Tensor,
        scale: Tensor | float,
        short_step: float | None = None,
        repeats: bool = False,
    ) -> None:
        self.dimension, self.rank = dimension, index.numel()
        self.index, self.scale, self.short_step = index, scale, short_step
        self._repeats = repeats

    def _scaled(self, values: Tensor) -> Tensor:
        return values * (self.scale if isinstance(self.scale, float) else self.scale.to(values))

    def _project(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        return self._scaled(g[self.index.to(g.device)].to(dtype))

    def _lift(self, s: Tensor, out: Tensor) -> None:
        index, values = self.index.to(s.device), self._scaled(s)
        if self._repeats:
            # Summed before they are rounded to the dtype of `out`.
            index, place = torch.unique(index, return_inverse=True)
            values = torch.zeros(index.numel(), dtype=s.dtype, device=s.device).index_add_(0, place, values)
        out.zero_()[index] = values.to(out.dtype)

    def _columns(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        out = torch.zeros(stop - start, self.dimension, dtype=dtype, device=device)
        ones = torch.ones(self.rank, dtype=torch.float64)
        entries = self._scaled(ones)[start:stop].to(device, dtype)
        return out.scatter_(1, self.index[start:stop, None].to(device), entries[:, None])


@dataclass(frozen=True, eq=False)
class Coordinates(ExchangeableSketch):
    """r coordinates of the gradient, scaled: uniform ones, different or not, or r independent draws from p.

    E[W L W] = (d/r) [((d−r)/(d−1)) diag(L) + ((r−1)/(d−1)) L] without replacement, and
    (1 − 1/r) L + (1/r) diag(L_ii/p_i) with it (p_i = 1/d for uniform draws).

    Args:
        rank: r, or ratio: d/r.
        replace: whether a coordinate may be drawn more than once.
        probabilities: p, shape (d,), positive, summing to one; draws are then independent, with replacement.

    Raises:
        ValueError: probabilities are not positive, do not sum to one, or have another size than the dimension.

    Example:
        >>> Coordinates(rank=2).draw(4, seed=1).project(torch.ones(4))
        tensor([1.4142, 1.4142])
    """

    replace: bool = field(default=False, kw_only=True)
    probabilities: Tensor | None = field(default=None, kw_only=True, repr=False)
    formula: ClassVar[str] = "P[:, j] = e_i √(d/r), or e_i/√(r p_i) for i drawn from p"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("Coordinates", "replace", self.replace, (False, True))
        if self.probabilities is not None:
            p = _weights("Coordinates", "probabilities", self.probabilities)
            if abs(float(p.sum()) - 1) > 1e-6:
                raise ValueError(f"Coordinates: probabilities must sum to one, not to {float(p.sum())!r}")
            object.__setattr__(self, "probabilities", p / p.sum())

    def _p(self, dimension: int) -> Tensor | None:
        if self.probabilities is not None and self.probabilities.numel() != dimension:
            raise ValueError(
                f"Coordinates: {self.probabilities.numel()} probabilities do not fit dimension {dimension}"
            )
        return self.probabilities

    @cached_property
    def _cumulative(self) -> Tensor:
        assert self.probabilities is not None
        return self.probabilities.cumsum(0)

    def _draw(self, dimension: int, key: int) -> CoordinateDraw:
        rank, p = self.rank_in(dimension), self._p(dimension)
        if p is not None:
            at = torch.searchsorted(self._cumulative, uniform(key, 0, rank), right=True)
            index = at.clamp(max=dimension - 1)  # the last sum may be one unit below 1
            return CoordinateDraw(dimension, index, (rank * p[index]).rsqrt(), repeats=True)
        scale = math.sqrt(dimension / rank)
        if self.replace:
            index = (uniform(key, 0, rank) * dimension).long()
            return CoordinateDraw(dimension, index, scale, repeats=True)
        return CoordinateDraw(dimension, distinct(key, dimension, rank), scale)

    def coefficients(self, dimension: int) -> tuple[float, float, float]:
        """α, β, γ of uniform draws."""
        d, r = dimension, self.rank_in(dimension)
        if self.replace:
            return 1 - 1 / r, 0.0, d / r
        if d == 1:
            return 1.0, 0.0, 0.0
        return d * (r - 1) / (r * (d - 1)), 0.0, d * (d - r) / (r * (d - 1))

    def nu(self, dimension: int) -> float:
        """d/r without replacement, (d − 1)/r + 1 with it, and 1 − 1/r + 1/(r min p) for draws from p."""
        p = self._p(dimension)
        if p is None:
            return super().nu(dimension)
        rank = self.rank_in(dimension)
        return 1 - 1 / rank + 1 / (rank * float(p.min()))

    def smoothed(self, L: Tensor) -> Tensor:
        """E[W L W]."""
        p = self._p(L.shape[0])
        if p is None:
            return super().smoothed(L)
        return _independent(L.double(), 1 - 1 / self.rank_in(L.shape[0]), p * self.rank_in(L.shape[0]))

    def smoothness_bound(self, curvature: Curvature, minus: float = 0.0) -> float:
        """For draws from p: max(1 − 1/r − minus, 0) λ_max + max L_ii/(r p_i)."""
        p = self._p(curvature.dimension)
        if p is None:
            return super().smoothness_bound(curvature, minus)
        rank = self.rank_in(curvature.dimension)
        diagonal = curvature.largest if curvature.diagonal is None else curvature.diagonal
        return max(1 - 1 / rank - minus, 0.0) * curvature.largest + float((diagonal / (rank * p)).max())


@dataclass(frozen=True, eq=False)
class IndependentCoordinates(Sketch):
    """Every coordinate takes part by itself with its own probability, so that the rank of a draw varies (from 0).

    E[W L W] = L + diag((1/q_i − 1) L_ii), ν = 1/min q.

    Args:
        rank: expected number of coordinates, q_i = r/d; or ratio: d/r.
        inclusion: q, shape (d,), each in (0, 1], instead of a rank.

    Raises:
        ValueError: an inclusion probability is outside (0, 1], or their number is not the dimension.

    Example:
        >>> sketch = IndependentCoordinates(inclusion=torch.tensor([1.0, 0.5, 0.5]))
        >>> sketch.cost(3), sketch.nu(3)
        (2.0, 2.0)
    """

    inclusion: Tensor | None = field(default=None, kw_only=True, repr=False)
    formula: ClassVar[str] = "e_i/√q_i is a column with probability q_i"

    def __post_init__(self) -> None:
        if self.inclusion is None:
            return super().__post_init__()
        if self.rank is not None or self.ratio is not None:
            raise TypeError("IndependentCoordinates: give one of rank, ratio and inclusion")
        q = _weights("IndependentCoordinates", "inclusion", self.inclusion)
        if float(q.max()) > 1:
            raise ValueError(
                f"IndependentCoordinates: inclusion = {float(q.max())!r} is not allowed; it must be in (0, 1]"
            )
        object.__setattr__(self, "inclusion", q)

    def _q(self, dimension: int) -> Tensor:
        if self.inclusion is None:
            share = super().rank_in(dimension) / dimension
            return torch.full((), share, dtype=torch.float64).expand(dimension)
        if self.inclusion.numel() != dimension:
            raise ValueError(
                f"IndependentCoordinates: {self.inclusion.numel()} inclusion probabilities do not fit "
                f"dimension {dimension}"
            )
        return self.inclusion

    def rank_in(self, dimension: int) -> int:
        """The expected number of coordinates, rounded up."""
        return math.ceil(self.cost(dimension))

    def cost(self, dimension: int) -> float:
        """Σ q_i."""
        return float(self._q(dimension).sum())

    def _draw(self, dimension: int, key: int) -> CoordinateDraw:
        q, found = self._q(dimension), []
        for start in range(0, dimension, PIECE):
            taken = uniform(key, start, min(PIECE, dimension - start)) < q[start : start + PIECE]
            found.append(start + taken.nonzero().squeeze(1))
        index = torch.cat(found)
        return CoordinateDraw(dimension, index, q[index].rsqrt())

    def smoothed(self, L: Tensor) -> Tensor:
        """L + diag((1/q_i − 1) L_ii)."""
        L, q = L.double(), self._q(L.shape[0])
        diagonal = L if L.dim() == 1 else L.diagonal()
        extra = (1 / q - 1) * diagonal
        return L + (extra if L.dim() == 1 else extra.diag())

    def smoothness_bound(self, curvature: Curvature, minus: float = 0.0) -> float:
        """(1 − minus) λ_max + max (1/q_i − 1) L_ii."""
        q = self._q(curvature.dimension)
        diagonal = curvature.largest if curvature.diagonal is None else curvature.diagonal
        return (1 - minus) * curvature.largest + float(((1 / q - 1) * diagonal).max())


def uniform(key: int, start: int, count: int) -> Tensor:
    """Uniform numbers in [0, 1) at `count` positions of a key, by compiled code where there is some."""
    compiled = native.kernels()
    if compiled is None:
        return uniforms(key, 0, torch.arange(start, start + count))
    return compiled.uniforms(key, start, count)


def distinct(key: int, size: int, count: int) -> Tensor:
    """`count` different positions below `size`, by compiled code where there is some."""
    compiled = native.kernels()
    if compiled is None:
        return chosen(key, size, count)
    return compiled.chosen(key, size, math.isqrt(size - 1) + 1, count)


def _independent(L: Tensor, share: float, expected: Tensor) -> Tensor:
    """share · L + diag(L_ii/expected_i)."""
    if L.dim() == 1:
        return share * L + L / expected
    return share * L + (L.diagonal() / expected).diag()


def _weights(owner: str, name: str, values: Tensor) -> Tensor:
    """A vector of positive numbers, float64, on the processor."""
    weights = values.detach().to("cpu", torch.float64)
    if weights.dim() != 1 or weights.numel() == 0:
        raise ValueError(f"{owner}: {name} of shape {tuple(weights.shape)} is not allowed; it must be (d,)")
    if not bool(torch.isfinite(weights).all()) or float(weights.min()) <= 0:
        raise ValueError(f"{owner}: {name} = {float(weights.min())!r} is not allowed; it must be positive")
    return weights
