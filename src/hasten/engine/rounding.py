"""Stochastic rounding from float32 to bfloat16, with random bits that need no generator.

Entry ``i`` of a tensor with 64-bit noise key ``k`` always draws the same 16 bits,

    (low, high) = the two halves of splitmix64(k)
    bits        = fmix32(fmix32(lo32(i) ^ low) ^ high ^ hi32(i)) >> 16,

so the result does not depend on the device, on the tiling, or on which tensors are stepped
together, and a resumed run repeats it.  ``fmix32`` is MurmurHash3's finaliser (Appleby, 2011) and
``splitmix64`` the output function of Steele, Lea and Flood, "Fast splittable pseudorandom number
generators" (OOPSLA 2014).

The rounding adds the 16 bits below the half that is kept: a value at fraction f between two
neighbouring bfloat16 numbers goes to the one further from zero with probability f (to a multiple
of 2^-16, exact), so its expectation is the value itself.  Representable values stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF


def words(key: int) -> tuple[int, int]:
    """Mix a 64-bit noise key (splitmix64) and return its low and high 32 bits.

    Example:
        >>> words(0)
        (2065550767, 3793791033)
    """
    z = (key + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    z ^= z >> 31
    return z & _MASK32, z >> 32


def _times(x: Tensor, factor: int) -> Tensor:
    """``x * factor`` modulo 2^32, in halves because int64 has no unsigned product."""
    return ((x & 0xFFFF) * factor + (((x >> 16) * factor & 0xFFFF) << 16)) & _MASK32


def _fmix32(x: Tensor) -> Tensor:
    x = _times(x ^ (x >> 16), 0x85EBCA6B)
    x = _times(x ^ (x >> 13), 0xC2B2AE35)
    return x ^ (x >> 16)


def random_bits(low: int | Tensor, high: int | Tensor, index: Tensor) -> Tensor:
    """16 random bits (as int64) for each ``index`` (int64), from a key's two ``words``.

    Example:
        >>> random_bits(*words(7), torch.arange(3)).shape
        torch.Size([3])
    """
    return _fmix32(_fmix32((index & _MASK32) ^ low) ^ high ^ (index >> 32)) >> 16


def round_stochastically(x: Tensor, bits: Tensor) -> Tensor:
    """Round float32 ``x`` to bfloat16 with the 16 random ``bits`` of each entry.

    Infinities and NaN are converted as torch does.  A finite value beyond the largest bfloat16
    may become infinite, as it would when rounded to nearest.

    Example:
        >>> x = torch.tensor([1.0, 1.0 + 2**-8])
        >>> round_stochastically(x, random_bits(*words(1), torch.arange(2)))[0].item()
        1.0
    """
    pattern = (x.view(torch.int32).to(torch.int64) & _MASK32) + bits
    # Only the high half is kept: as a signed 16-bit pattern it is a bfloat16.
    half = pattern >> 16
    half = torch.where(half >= 0x8000, half - 0x10000, half).to(torch.int16)
    return torch.where(torch.isfinite(x), half.view(torch.bfloat16), x.to(torch.bfloat16))
