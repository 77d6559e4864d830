"""Sketches whose rows hold a few ±1 at hashed places: O(d) work, no memory, and the default among them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from hasten.sketches import native
from hasten.sketches.counters import PIECE, PLACES, SIGNS, below, hashed, permuted, signs, stream
from hasten.sketches.curvature import Curvature
from hasten.sketches.sketch import Draw, ExchangeableSketch, Sketch

_UNIFORM, _BALANCED, _AFFINE, _STRIDED, _SPARSE = range(5)
_STRETCHES = 16
"""Parts of a vector that are summed apart, at most; fewer where their sums would take more room than the vector."""
_MOST_PER_ROW = 16
"""Entries in a row up to which compiled code serves."""


@dataclass(frozen=True, slots=True)
class HashedDraw(Draw):
    """One P with `per_row` entries ± 1/√per_row in every row, at places hashed from the row's index."""

    kind: int
    dimension: int
    rank: int
    key: int
    per_row: int = 1
    constants: tuple[int, ...] = ()
    """m, then, of the affine family, the number of larger buckets, q, a and b."""

    @property
    def plan(self) -> tuple[int, ...]:
        """What the compiled code is told."""
        constants = self.constants + (0,) * (5 - len(self.constants))
        return (self.kind, self.dimension, self.rank, self.key, self.per_row, *constants)

    def places(
        self, start: int, stop: int, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each entry of a row: its column and its sign (int64), at the rows start … stop − 1."""
        row = torch.arange(start, stop, device=device)
        if self.kind in (_UNIFORM, _SPARSE):
            columns = self._distinct(row)
        elif self.kind == _STRIDED:
            columns = [row % self.rank]
        elif self.kind == _BALANCED:
            shape = (self.rank, self.constants[0])
            columns = [permuted(self.key, shape, row % self.rank, row // self.rank)[0]]
        else:
            m, rest, q, a, b = self.constants
            position = (a * row + b) % q
            # The first `rest` buckets hold m + 1 positions, the others m.
            columns = [torch.maximum(position // (m + 1), (position - rest) // m)]
        for t, column in enumerate(columns):
            yield column, signs(self.key, SIGNS + 2 * t, row)

    def _distinct(self, row: Tensor) -> list[Tensor]:
        """Different columns for each row, every set of them equally likely (Floyd's sampling, 1987)."""
        found: list[Tensor] = []
        for t in range(self.per_row):
            last = self.rank - self.per_row + t
            column = below(last + 1, hashed(self.key, PLACES + 2 * t, row))
            taken = torch.zeros_like(column, dtype=torch.bool)
            for earlier in found:
                taken |= earlier == column
            found.append(torch.where(taken, last, column))
        return found

    def _pieces(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.dimension, PIECE):
            yield start, min(start + PIECE, self.dimension)

    def _project(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        compiled = native.kernels()
        if compiled is not None and self.per_row <= _MOST_PER_ROW and compiled.takes(g):
            s = torch.empty(self.rank, dtype=dtype)
            parts = min(_STRETCHES, self.dimension // (_STRETCHES * self.rank), self.dimension // PIECE + 1)
            compiled.project(self.plan, g, s, parts)
            return s
        total = torch.zeros(self.rank, dtype=dtype, device=g.device)
        for start, stop in self._pieces():
            piece = g[start:stop].to(dtype)
            for column, sign in self.places(start, stop, g.device):
                total.index_add_(0, column, piece * sign.to(dtype))
        return total.mul_(1 / math.sqrt(self.per_row))

    def _lift(self, s: Tensor, out: Tensor) -> None:
        compiled = native.kernels()
        if compiled is not None and self.per_row <= _MOST_PER_ROW and compiled.takes(s, out):
            compiled.lift(self.plan, s, out)
            return
        for start, stop in self._pieces():
            total = torch.zeros(stop - start, dtype=s.dtype, device=s.device)
            for column, sign in self.places(start, stop, s.device):
                total += s[column] * sign.to(s.dtype)
            out[start:stop] = total.mul_(1 / math.sqrt(self.per_row))

    def _columns(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        out = torch.zeros(stop - start, self.dimension, dtype=dtype, device=device)
        compiled = native.kernels()
        if compiled is not None and self.per_row <= _MOST_PER_ROW and compiled.takes(out):
            compiled.columns(self.plan, start, stop, out)
            return out
        for low, high in self._pieces():
            for column, sign in self.places(low, high, device):
                row = torch.arange(low, high, device=device)
                inside = (column >= start) & (column < stop)
                entry = sign[inside].to(torch.float64) / math.sqrt(self.per_row)
                out[column[inside] - start, row[inside]] = entry.to(dtype)
        return out


class CollisionSketch(ExchangeableSketch):
    """The c-family: E[W L W] = (1 + c) L + c tr(L) I − 2c diag(L), where c is the chance that two rows share a column
    (times the share of their entries that meet there)."""

    def collision(self, dimension: int) -> float:
        """c."""
        return 1 / self.rank_in(dimension)

    def coefficients(self, dimension: int) -> tuple[float, float, float]:
        """1 + c, c, −2c."""
        c = self.collision(dimension)
        return 1 + c, c, -2 * c


def balanced_collision(size: int, rank: int) -> float:
    """δ(n, r) = (n − r)/(r (n − 1)): two of n positions in the same one of r equal buckets.

    Example:
        >>> balanced_collision(4, 2)
        0.3333333333333333
    """
    return (size - rank) / (rank * (size - 1)) if size > 1 else 0.0


@dataclass(frozen=True)
class CountSketch(CollisionSketch):
    """One ±1 in every row, in a uniformly random column (Charikar, Chen and Farach-Colton, 2002). c = 1/r.

    Example:
        >>> CountSketch(rank=4).draw(9, seed=1).columns().abs().sum(0).unique()
        tensor([1.])
    """

    formula: ClassVar[str] = "P[i, h(i)] = σ(i),  h(i) uniform"

    def _draw(self, dimension: int, key: int) -> HashedDraw:
        return HashedDraw(_UNIFORM, dimension, self.rank_in(dimension), key)


@dataclass(frozen=True)
class BalancedCountSketch(CollisionSketch):
    """One ±1 in every row; a random permutation of n = r ⌈d/r⌉ positions fills r columns equally. The default.

    c = (n − r)/(r (n − 1)). Exact (PPᵀ = I) at r = d, where the columns are only rotated. The permutation is keyed,
    not stored: see `hasten.sketches.counters` for how near it is to a uniform one.

    Example:
        >>> sketch = BalancedCountSketch(rank=4)
        >>> sketch.draw(16, step=7).columns().abs().sum(1)
        tensor([4., 4., 4., 4.])
        >>> sketch.nu(16)
        4.0
    """

    formula: ClassVar[str] = "P[i, ⌊π(i)/m⌋] = σ(i),  π a random permutation of n = r m positions, m = ⌈d/r⌉"

    def collision(self, dimension: int) -> float:
        """δ(n, r)."""
        rank = self.rank_in(dimension)
        return balanced_collision(rank * math.ceil(dimension / rank), rank)

    def _draw(self, dimension: int, key: int) -> HashedDraw:
        rank = self.rank_in(dimension)
        return HashedDraw(_BALANCED, dimension, rank, key, constants=(math.ceil(dimension / rank),))


@dataclass(frozen=True)
class AffineCountSketch(CollisionSketch):
    """One ±1 in every row; an affine permutation of the integers modulo a prime chooses the column.

    π(i) = (a i + b) mod q, q the least prime ≥ d, 1 ≤ a < q, 0 ≤ b < q; the q positions are cut into r runs, the
    first q mod r of them of ⌊q/r⌋ + 1, the others of ⌊q/r⌋. c = Σ n_b (n_b − 1)/(q (q − 1)): pairs of rows are
    treated exactly as by a uniform permutation, three and more are not.

    Raises:
        ValueError: d is above 2³¹ − 1.

    Example:
        >>> AffineCountSketch(rank=2).collision(5)
        0.4
    """

    formula: ClassVar[str] = "P[i, bucket of (a i + b) mod q] = σ(i),  q prime"

    def collision(self, dimension: int) -> float:
        """Σ n_b (n_b − 1)/(q (q − 1))."""
        rank, q = self.rank_in(dimension), _prime_from(dimension)
        m, rest = divmod(q, rank)
        return (rest * (m + 1) * m + (rank - rest) * m * (m - 1)) / (q * (q - 1))

    def _draw(self, dimension: int, key: int) -> HashedDraw:
        rank, q = self.rank_in(dimension), _prime_from(dimension)
        low, high = stream(key, PLACES)
        multiplier, shift = 1 + low * (q - 1) // 2**32, high * q // 2**32
        constants = (*divmod(q, rank), q, multiplier, shift)
        return HashedDraw(_AFFINE, dimension, rank, key, constants=constants)


@dataclass(frozen=True)
class SparseSign(CollisionSketch):
    """`sparsity` entries ±1/√sparsity in every row, in different random columns (Kane and Nelson, 2014). c = 1/r.

    Args:
        rank: r, or ratio: d/r.
        sparsity: s, the number of entries in a row, at most r. The second moments do not depend on it; single draws
            concentrate better for larger s, and cost s times as much.

    Raises:
        ValueError: sparsity is not an integer between 1 and r.

    Example:
        >>> SparseSign(rank=4, sparsity=2).draw(8).columns().square().sum(0).unique()
        tensor([1.0000])
    """

    sparsity: int = field(default=8, kw_only=True)
    formula: ClassVar[str] = "P[i, ·] has s entries ±1/√s in different columns"

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.sparsity if self.rank is None else self.rank
        if not isinstance(self.sparsity, int) or not 1 <= self.sparsity <= most:
            raise ValueError(
                f"SparseSign: sparsity = {self.sparsity!r} is not allowed; it must be an integer between 1 and the rank"
            )

    def _draw(self, dimension: int, key: int) -> HashedDraw:
        rank = self.rank_in(dimension)
        if self.sparsity > rank:
            raise ValueError(
                f"SparseSign: sparsity = {self.sparsity} is not allowed at rank {rank} (dimension {dimension})"
            )
        return HashedDraw(_SPARSE, dimension, rank, key, self.sparsity)


@dataclass(frozen=True)
class StridedSigns(Sketch):
    """One ±1 in every row, row i in column i mod r: the fastest, for curvature spread evenly over the index.

    Only the signs are random. ν = ⌈d/r⌉; exact at r = d.

    Example:
        >>> StridedSigns(rank=2).expected_smoothness(torch.tensor([4.0, 1.0, 1.0, 1.0]))
        5.0
    """

    formula: ClassVar[str] = "P[i, i mod r] = σ(i)"

    def _draw(self, dimension: int, key: int) -> HashedDraw:
        return HashedDraw(_STRIDED, dimension, self.rank_in(dimension), key)

    def nu(self, dimension: int) -> float:
        """The size of the largest bucket."""
        return float(math.ceil(dimension / self.rank_in(dimension)))

    def smoothed(self, L: Tensor) -> Tensor:
        """Off the diagonal (1 + 1[same bucket]) L_ij; on it the trace of L over the bucket."""
        L = L.double()
        rank = self.rank_in(L.shape[0])
        bucket = torch.arange(L.shape[0]) % rank
        diagonal = L if L.dim() == 1 else L.diagonal()
        traces = torch.zeros(rank, dtype=torch.float64).index_add_(0, bucket, diagonal)[bucket]
        if L.dim() == 1:
            return traces
        twice = L * (1 + (bucket[:, None] == bucket).double())
        return twice - twice.diagonal().diag() + traces.diag()

    def smoothness_bound(self, curvature: Curvature, minus: float = 0.0) -> float:
        """(1 − minus) λ_max + (1 − 2/m) λ_max + the largest trace of a bucket, where m = ⌈d/r⌉ ≥ 2.

        A block B of L, one bucket, becomes 2B − 2 diag(B) + tr(B) I, and diag(B) ⪰ B/m.
        """
        rank, m = self.rank_in(curvature.dimension), self.nu(curvature.dimension)
        rest = (1 - minus) * curvature.largest
        if m == 1:
            return rest
        trace = min(curvature.trace, m * curvature.largest)
        if curvature.diagonal is not None:
            bucket = torch.arange(curvature.dimension) % rank
            traces = torch.zeros(rank, dtype=torch.float64).index_add_(0, bucket, curvature.diagonal)
            trace = float(traces.max())
        return rest + (1 - 2 / m) * curvature.largest + trace


@cache
def _prime_from(least: int) -> int:
    """The smallest prime that is not below `least`."""
    if least >= 2**31:
        raise ValueError(f"AffineCountSketch: dimension = {least} is not allowed; it must be below 2^31")
    candidate = max(least, 2)
    while any(candidate % factor == 0 for factor in range(2, math.isqrt(candidate) + 1)):
        candidate += 1
    return candidate
