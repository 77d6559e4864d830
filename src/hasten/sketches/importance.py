"""One coordinate or one block at a time, the steeper the likelier, with a step of its own."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from hasten.sketches.coordinates import CoordinateDraw
from hasten.sketches.counters import stream
from hasten.sketches.curvature import Curvature
from hasten.sketches.sketch import Sketch


@dataclass(frozen=True, eq=False, init=False)
class ImportanceBlocks(Sketch):
    """One block of consecutive coordinates, drawn with p_b ∝ √λ_max(L_bb), stepped by 1/λ_max(L_bb).

    P = E_b/√p_b, so the rank is the size of the block drawn. In the accelerated rate C = (Σ_b √λ_max(L_bb))² in the
    place of ν ℓ (after Allen-Zhu, Qu, Richtárik and Yuan, arXiv:1512.09103); expected cost Σ_b p_b |b|.

    Args:
        smoothness: L, as a matrix, a diagonal, or a curvature that holds one of them.
        sizes: numbers of coordinates of the blocks, in order; they sum to the dimension.

    Raises:
        ValueError: sizes do not sum to the dimension, a block has no curvature, or only λ_max and the trace are known.

    Example:
        >>> sketch = ImportanceBlocks(torch.tensor([4.0, 4.0, 1.0]), sizes=[2, 1])
        >>> sketch.rate_constant(torch.tensor([4.0, 4.0, 1.0])), round(sketch.cost(3), 6)
        (9.0, 1.666667)
    """

    rank: int = field(default=1, init=False, repr=False)
    ratio: None = field(default=None, init=False, repr=False)
    curvature: Curvature = field(repr=False)
    sizes: tuple[int, ...]
    formula: ClassVar[str] = "P = E_b/√p_b,  p_b ∝ √λ_max(L_bb)"

    def __init__(self, smoothness: Tensor | Curvature, sizes: Sequence[int]) -> None:
        curvature = Curvature.of(smoothness)
        if any(size < 1 for size in sizes) or sum(sizes) != curvature.dimension:
            raise ValueError(
                f"{type(self).__name__}: sizes = {list(sizes)} are not allowed; they must be positive and sum to the "
                f"dimension {curvature.dimension}"
            )
        for name, value in (("rank", 1), ("ratio", None), ("curvature", curvature), ("sizes", tuple(sizes))):
            object.__setattr__(self, name, value)
        least = float(self.steepness.min())
        if least <= 0:
            raise ValueError(
                f"{type(self).__name__}: a curvature of {least!r} is not allowed; it must be positive, because what "
                "has no curvature is never drawn (see Curvature.plus)"
            )

    @cached_property
    def steepness(self) -> Tensor:
        """λ_max(L_bb) of every block."""
        return self._largest(self.curvature)

    def _largest(self, curvature: Curvature) -> Tensor:
        if curvature.matrix is not None and max(self.sizes) > 1:
            ends = list(accumulate(self.sizes))
            blocks = (curvature.matrix[e - n : e, e - n : e] for e, n in zip(ends, self.sizes, strict=True))
            return torch.stack([torch.linalg.eigvalsh(block)[-1] for block in blocks])
        exact = curvature.is_diagonal or max(self.sizes) == 1
        if curvature.diagonal is None or not exact:
            raise ValueError(
                f"{type(self).__name__}: λ_max and trace are not enough; give the matrix or the diagonal of L"
            )
        return torch.stack([part.max() for part in torch.split(curvature.diagonal, list(self.sizes))])

    @cached_property
    def probabilities(self) -> Tensor:
        """p ∝ √λ_max(L_bb), shape (number of blocks,)."""
        roots = self.steepness.sqrt()
        return roots / roots.sum()

    @cached_property
    def _wheel(self) -> tuple[list[float], list[int], list[float], list[float]]:
        """Cumulative probabilities, starts of the blocks, their probabilities and steepness, as plain numbers."""
        p = self.probabilities.tolist()
        return list(accumulate(p)), [0, *accumulate(self.sizes)], p, self.steepness.tolist()

    def _fits(self, dimension: int) -> None:
        if dimension != self.curvature.dimension:
            raise ValueError(
                f"{type(self).__name__}: dimension = {dimension!r} is not allowed; the curvature given has dimension "
                f"{self.curvature.dimension}"
            )

    def rank_in(self, dimension: int) -> int:
        """The size of the largest block."""
        self._fits(dimension)
        return max(self.sizes)

    def cost(self, dimension: int) -> float:
        """Σ_b p_b |b|."""
        self._fits(dimension)
        return float((self.probabilities * torch.tensor(self.sizes)).sum())

    def _draw(self, dimension: int, key: int) -> CoordinateDraw:
        self._fits(dimension)
        cumulative, starts, p, steepness = self._wheel
        high, low = stream(key, 0)
        at = ((high >> 5) * (1 << 26) + (low >> 6)) * 2.0**-53
        b = min(bisect.bisect_right(cumulative, at * cumulative[-1]), len(p) - 1)
        index = torch.arange(starts[b], starts[b + 1])
        return CoordinateDraw(dimension, index, p[b] ** -0.5, short_step=p[b] / steepness[b])

    def _spread(self) -> Tensor:
        """p of the block that each coordinate is in."""
        return self.probabilities.repeat_interleave(torch.tensor(self.sizes))

    def smoothed(self, L: Tensor) -> Tensor:
        """blockdiag(L_bb/p_b)."""
        self._fits(L.shape[0])
        p = self._spread()
        if L.dim() == 1:
            return L.double() / p
        block = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))
        return L.double() * (block[:, None] == block) / p

    def smoothness_bound(self, curvature: Curvature, minus: float = 0.0) -> float:
        """λ_max/min p."""
        self._fits(curvature.dimension)
        return curvature.largest / float(self.probabilities.min())

    def rate_constant(self, smoothness: Tensor | Curvature) -> float:
        """C, the least number with E[W²] ⪯ C · (expected descent), which is (Σ_b √λ_max(L_bb))² for the sketch's own L.

        For another L the step 1/λ_b of block b descends p_b (2/λ_b − λ_max(L_bb)/λ_b²); C is infinite where that is
        not positive.
        """
        curvature = Curvature.of(smoothness)
        self._fits(curvature.dimension)
        p, own = self.probabilities, self.steepness
        descent = p * (2 / own - self._largest(curvature) / own.square())
        worst = 1 / (p * descent)
        return float("inf") if float(descent.min()) <= 0 else float(worst.max())


class ImportanceCoordinates(ImportanceBlocks):
    """One coordinate, drawn with p_i ∝ √L_ii, stepped by 1/L_ii; C = (Σ √L_ii)².

    Args:
        smoothness: L, as a matrix, a diagonal, or a curvature that knows its diagonal.

    Raises:
        ValueError: the diagonal is not known, or has an entry that is not positive.

    Example:
        >>> L = torch.tensor([4.0, 1.0, 0.25])
        >>> sketch = ImportanceCoordinates(L)
        >>> round(sketch.rate_constant(L), 12), sketch.probabilities * 7
        (12.25, tensor([4., 2., 1.], dtype=torch.float64))
    """

    formula: ClassVar[str] = "P = e_i/√p_i,  p_i ∝ √L_ii"

    def __init__(self, smoothness: Tensor | Curvature) -> None:
        curvature = Curvature.of(smoothness)
        super().__init__(curvature, [1] * curvature.dimension)
