"""Sketches that mix all coordinates by a fast orthogonal transform and then look at a few of them."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from hasten.sketches import native
from hasten.sketches.coordinates import distinct
from hasten.sketches.counters import PIECE, SIGNS, signs
from hasten.sketches.curvature import Curvature
from hasten.sketches.hashed import CollisionSketch, balanced_collision
from hasten.sketches.sketch import Draw, Sketch


class TransformedDraw(Draw):
    """P = √(n/r) D Hᵀ R: random signs D, an orthonormal transform H of size n ≥ d, r of its rows R."""

    def __init__(self, dimension: int, size: int, rank: int, key: int) -> None:
        self.dimension, self.size, self.rank, self.key = dimension, size, rank, key

    @cached_property
    def rows(self) -> Tensor:
        """The rows of H that are kept, int64."""
        return distinct(self.key, self.size, self.rank)

    @abc.abstractmethod
    def row(self, k: int, position: Tensor) -> Tensor:
        """H[k, position], float64."""

    @property
    def _scale(self) -> float:
        return math.sqrt(self.size / self.rank)

    def _sign(self, x: Tensor, out: Tensor, factor: float) -> None:
        """Write factor · D x into out, for the entries of the shorter of them."""
        compiled = native.kernels()
        if compiled is not None and compiled.takes(x, out):
            compiled.apply_signs(self.key, x, out, factor)
            return
        for start in range(0, self.dimension, PIECE):
            stop = min(start + PIECE, self.dimension)
            sign = signs(self.key, SIGNS, torch.arange(start, stop, device=x.device))
            wide = torch.promote_types(torch.promote_types(x.dtype, out.dtype), torch.float32)
            out[start:stop] = x[start:stop].to(wide) * sign * factor

    def _columns(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        out = torch.empty(stop - start, self.dimension, dtype=dtype, device=device)
        for low in range(0, self.dimension, PIECE):
            position = torch.arange(low, min(low + PIECE, self.dimension), device=device)
            signed = signs(self.key, SIGNS, position).double() * self._scale
            for column, k in zip(out, self.rows[start:stop].tolist(), strict=True):
                column[low : low + PIECE] = self.row(k, position) * signed
        return out


class HadamardDraw(TransformedDraw):
    """H the Walsh–Hadamard matrix of order 2ᵖ ≥ d, H[k, i] = (−1)^(ones in the binary k AND i)/√n."""

    def row(self, k: int, position: Tensor) -> Tensor:
        """From the parity of k AND i."""
        parity = position & k
        for shift in (32, 16, 8, 4, 2, 1):
            parity = parity ^ (parity >> shift)
        return (1 - 2 * (parity & 1)).double() / math.sqrt(self.size)

    def _project(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        compiled = native.kernels()
        if compiled is not None and compiled.takes(g):
            x = compiled.empty(self.size, dtype)
            compiled.spread(self.key, g, x)
        else:
            x = torch.empty(self.size, dtype=dtype, device=g.device)
            x[self.dimension :] = 0
            self._sign(g, x, 1.0)
            _hadamard(x)
        return x[self.rows.to(g.device)].mul_(self.rank**-0.5)

    def _lift(self, s: Tensor, out: Tensor) -> None:
        compiled = native.kernels()
        if compiled is not None and compiled.takes(s, out):
            x = compiled.empty(self.size, s.dtype).zero_()
            x[self.rows] = s
            compiled.gathered(self.key, x, out, self.rank**-0.5)
        else:
            x = torch.zeros(self.size, dtype=s.dtype, device=s.device)
            x[self.rows.to(s.device)] = s
            self._sign(_hadamard(x), out, self.rank**-0.5)


def _hadamard(x: Tensor) -> Tensor:
    """In place, without the factor 1/√n."""
    h = 1
    while h < x.numel():
        pairs = x.view(-1, 2, h)
        first, second = pairs[:, 0], pairs[:, 1]
        difference = first - second
        first += second
        second.copy_(difference)
        h *= 2
    return x


class CosineDraw(TransformedDraw):
    """H the orthonormal DCT-II, H[k, i] = √(2/n) cos(π k (2i + 1)/(2n)), its first row 1/√n.

    By one real FFT of length n (Makhoul, 1980): with v the even entries followed by the odd ones backwards, V its
    transform and z_k = V_k exp(−iπk/(2n)), the sums are Re z_k, and −Im z_{n−k} beyond n/2.
    """

    def _twiddle(self, k: Tensor, dtype: torch.dtype) -> Tensor:
        angle = k.double() * (-math.pi / (2 * self.size))
        return torch.complex(torch.cos(angle).to(dtype), torch.sin(angle).to(dtype))

    def _norm(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        norm = torch.full(rows.shape, math.sqrt(2 / self.size), dtype=dtype, device=rows.device)
        return norm.masked_fill_(rows == 0, math.sqrt(1 / self.size))

    def row(self, k: int, position: Tensor) -> Tensor:
        """The cosine, of an angle that is first reduced in whole numbers."""
        angle = (k * (2 * position + 1)) % (4 * self.size)
        norm = math.sqrt((1 if k == 0 else 2) / self.size)
        return torch.cos(angle.double() * (math.pi / (2 * self.size))) * norm

    def _project(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        x = torch.empty(self.size, dtype=dtype, device=g.device)
        self._sign(g, x, self._scale)
        rows = self.rows.to(g.device)
        spectrum = torch.fft.rfft(torch.cat([x[::2], x[1::2].flip(0)]))
        # Only the rows are turned out of the spectrum.
        k = torch.minimum(rows, self.size - rows)
        z = spectrum[k] * self._twiddle(k, x.dtype)
        return torch.where(rows == k, z.real, -z.imag) * self._norm(rows, x.dtype)

    def _lift(self, s: Tensor, out: Tensor) -> None:
        """The spectrum z_k = X_k − i X_{n−k} of the vector whose sums X are s at the rows and zero elsewhere."""
        rows = self.rows.to(s.device)
        value = s * self._norm(rows, s.dtype) * (self.size / 2)
        value = torch.where(rows == 0, 2 * value, value)
        k = torch.minimum(rows, self.size - rows)
        zero = torch.zeros_like(value)
        # The middle row is its own partner n − k.
        real = torch.where(2 * rows <= self.size, value, zero)
        imaginary = torch.where(2 * rows >= self.size, -value, zero)
        z = torch.complex(real, imaginary) * self._twiddle(k, s.dtype).conj()
        spectrum = torch.zeros(self.size // 2 + 1, dtype=z.dtype, device=s.device).index_add_(0, k, z)
        v = torch.fft.irfft(spectrum, n=self.size)
        x = torch.empty_like(v)
        half = (self.size + 1) // 2
        x[::2], x[1::2] = v[:half], v[half:].flip(0)
        self._sign(x, out, self._scale)


@dataclass(frozen=True)
class SRHT(CollisionSketch):
    """r rows of a randomly signed Walsh–Hadamard transform of order n = 2ᵖ ≥ d (Ailon and Chazelle, 2006; Tropp, 2011).

    c = (n − r)/(r (n − 1)), as for the balanced CountSketch, but a single draw concentrates as a Gaussian one does.
    O(n log n) work in a buffer of n ≤ 2d entries. Exact at r = d where d is a power of two.

    Example:
        >>> SRHT(rank=4).nu(16)
        4.0
    """

    formula: ClassVar[str] = "P = √(n/r) D Hᵀ R,  H Walsh–Hadamard of order n = 2ᵖ"

    def collision(self, dimension: int) -> float:
        """δ(n, r)."""
        return balanced_collision(_power_of_two(dimension), self.rank_in(dimension))

    def _draw(self, dimension: int, key: int) -> HadamardDraw:
        return HadamardDraw(dimension, _power_of_two(dimension), self.rank_in(dimension), key)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


@dataclass(frozen=True)
class RandomSignDCT(Sketch):
    """r rows of a randomly signed discrete cosine transform of length d, of any length. ν = d/r; exact at r = d.

    With K = (H∘H)ᵀ(H∘H), which for the DCT-II is ((d−1)/d²) 11ᵀ + (I + J)/(2d) with J the reversal,
    p₁ = r/d, p₂ = r(r−1)/(d(d−1)) and κ = (d/r)², E[W L W] has the entries κ [2(p₁−p₂) K_ij + p₂] L_ij off the
    diagonal and κ [(p₁−p₂) Σ_k K_ik L_kk + p₂ L_ii] on it. O(d log d) work, in a few buffers of the vector's
    size.

    Example:
        >>> draw = RandomSignDCT(rank=2).draw(5)
        >>> columns = draw.columns(dtype=torch.float64)
        >>> torch.allclose(columns @ columns.mT, 2.5 * torch.eye(2, dtype=torch.float64))
        True
    """

    formula: ClassVar[str] = "P = √(d/r) D Hᵀ R,  H the orthonormal DCT-II"

    def _draw(self, dimension: int, key: int) -> CosineDraw:
        return CosineDraw(dimension, dimension, self.rank_in(dimension), key)

    def _weights(self, d: int) -> tuple[float, float]:
        """κ p₂ and κ (p₁ − p₂)."""
        r = self.rank_in(d)
        if d == 1:
            return 1.0, 0.0
        together = d * (r - 1) / (r * (d - 1))
        return together, d / r - together

    def nu(self, dimension: int) -> float:
        """d/r: the rows of K sum to one."""
        return dimension / self.rank_in(dimension)

    def smoothed(self, L: Tensor) -> Tensor:
        """E[W L W]."""
        L, d = L.double(), L.shape[0]
        together, apart = self._weights(d)
        diagonal = L if L.dim() == 1 else L.diagonal()
        spread = (d - 1) / d**2 * diagonal.sum() + (diagonal + diagonal.flip(0)) / (2 * d)
        on = apart * spread + together * diagonal
        if L.dim() == 1:
            return on
        eye = torch.eye(d, dtype=torch.float64)
        K = (d - 1) / d**2 + (eye + eye.flip(0)) / (2 * d)
        off = (2 * apart * K + together) * L
        return off - off.diagonal().diag() + on.diag()

    def smoothness_bound(self, curvature: Curvature, minus: float = 0.0) -> float:
        """max(κp₂ + 2q a − minus, 0) λ_max + q (λ_max/d + a tr) with q = κ(p₁−p₂) and a = (d−1)/d².

        The reversal pairs i with d−1−i; the 2×2 blocks of L on the pairs add at most λ_max/d.
        """
        d = curvature.dimension
        together, apart = self._weights(d)
        a = (d - 1) / d**2
        share = max(together + 2 * apart * a - minus, 0.0)
        return share * curvature.largest + apart * (curvature.largest / d + a * curvature.trace)
