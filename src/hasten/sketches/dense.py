"""Sketches without structure, O(d r) work: for theory, tests and small dimensions."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from hasten.sketches import native
from hasten.sketches.counters import PIECE, SIGNS, normals, signs
from hasten.sketches.hashed import CollisionSketch
from hasten.sketches.sketch import Draw, ExchangeableSketch


class DenseDraw(Draw):
    """One P whose columns are made a few at a time; it is kept where it has no more than 2¹⁸ entries."""

    def __init__(self, dimension: int, rank: int, key: int) -> None:
        self.dimension, self.rank, self.key = dimension, rank, key

    @abc.abstractmethod
    def entries(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Columns start … stop − 1 as the rows of a float64 matrix."""

    @cached_property
    def _whole(self) -> Tensor:
        return self.entries(0, self.rank, torch.device("cpu"))

    def _pieces(self, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[int, int, Tensor]]:
        if self.dimension * self.rank <= PIECE:
            yield 0, self.rank, self._whole.to(device, dtype)
            return
        width = max(1, PIECE // self.dimension)
        for start in range(0, self.rank, width):
            stop = min(start + width, self.rank)
            yield start, stop, self.entries(start, stop, device).to(dtype)

    def _project(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        g = g.to(dtype)
        return torch.cat([columns @ g for _, _, columns in self._pieces(dtype, g.device)])

    def _lift(self, s: Tensor, out: Tensor) -> None:
        total = torch.zeros(self.dimension, dtype=s.dtype, device=s.device)
        for start, stop, columns in self._pieces(s.dtype, s.device):
            total.addmv_(columns.mT, s[start:stop])
        out.copy_(total)

    def _columns(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.dimension * self.rank <= PIECE:
            return self._whole[start:stop].to(device, dtype, copy=True)
        return self.entries(start, stop, device).to(dtype)


class GaussianDraw(DenseDraw):
    """Normal entries of variance 1/r."""

    def entries(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Entry (i, j) of P is number j d + i of the key."""
        first, count = start * self.dimension, (stop - start) * self.dimension
        compiled = native.kernels() if device.type == "cpu" else None
        if compiled is not None:
            z = compiled.normals(self.key, first, count)
        else:
            z = normals(self.key, torch.arange(first, first + count, device=device))
        return z.view(stop - start, self.dimension).mul_(1 / math.sqrt(self.rank))


class RademacherDraw(DenseDraw):
    """Entries ±1/√r."""

    def entries(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Entry (i, j) of P is sign j d + i of the key."""
        first, count = start * self.dimension, (stop - start) * self.dimension
        compiled = native.kernels() if device.type == "cpu" else None
        if compiled is not None:
            sign = compiled.signs(self.key, first, count)
        else:
            sign = signs(self.key, SIGNS, torch.arange(first, first + count, device=device)).double()
        return sign.view(stop - start, self.dimension).mul_(1 / math.sqrt(self.rank))


class HaarDraw(GaussianDraw):
    """Orthogonal columns of length √(d/r), uniform among all such."""

    @cached_property
    def _whole(self) -> Tensor:
        # On the processor and in float64 wherever it is used, so that all devices have the same matrix.
        z = super().entries(0, self.rank, torch.device("cpu"))
        q, r = torch.linalg.qr(z.mT)
        scale = math.sqrt(self.dimension / self.rank)
        # QR alone is not Haar: the signs of R's diagonal carry the convention of the routine.
        columns: Tensor = q * (r.diagonal().sign() * scale)
        return columns.mT.contiguous()

    def entries(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Rows of the stored matrix."""
        return self._whole[start:stop].to(device)


@dataclass(frozen=True)
class Gaussian(ExchangeableSketch):
    """Independent normal entries of variance 1/r. For reference: at r = d it is not exact (ν ≈ 2).

    Example:
        >>> Gaussian(rank=4).nu(8)
        3.25
    """

    formula: ClassVar[str] = "P[i, j] ~ N(0, 1/r)"

    def coefficients(self, dimension: int) -> tuple[float, float, float]:
        """1 + 1/r, 1/r, 0."""
        rank = self.rank_in(dimension)
        return 1 + 1 / rank, 1 / rank, 0.0

    def _draw(self, dimension: int, key: int) -> GaussianDraw:
        return GaussianDraw(dimension, self.rank_in(dimension), key)


@dataclass(frozen=True)
class Haar(ExchangeableSketch):
    """√(d/r) times r columns of a uniformly random orthogonal matrix; O(d r) memory and O(d r²) work.

    Example:
        >>> P = Haar(rank=2).draw(8, seed=3).columns(dtype=torch.float64).mT
        >>> torch.allclose(P.mT @ P, 4 * torch.eye(2, dtype=torch.float64))
        True
    """

    formula: ClassVar[str] = "P = √(d/r) Q,  Q from the QR of a Gaussian matrix"

    def coefficients(self, dimension: int) -> tuple[float, float, float]:
        """(d/r) (rd + d − 2)/((d−1)(d+2)), (d/r) (d − r)/((d−1)(d+2)), 0."""
        d, r = dimension, self.rank_in(dimension)
        if d == 1:
            return 1.0, 0.0, 0.0
        # Whole numbers first, so that r = d gives exactly 1 and 0.
        whole = (d - 1) * (d + 2)
        return d / r * ((r * d + d - 2) / whole), d / r * ((d - r) / whole), 0.0

    def _draw(self, dimension: int, key: int) -> HaarDraw:
        return HaarDraw(dimension, self.rank_in(dimension), key)


@dataclass(frozen=True)
class Rademacher(CollisionSketch):
    """Independent entries ±1/√r. c = 1/r.

    Example:
        >>> Rademacher(rank=4).draw(8).columns().abs().unique()
        tensor([0.5000])
    """

    formula: ClassVar[str] = "P[i, j] = ±1/√r"

    def _draw(self, dimension: int, key: int) -> RademacherDraw:
        return RademacherDraw(dimension, self.rank_in(dimension), key)
