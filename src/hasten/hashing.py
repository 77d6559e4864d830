"""Random bits without a generator: a hash of a key and a position.

Entry ``i`` under the 64-bit key ``k`` always has the same 32 bits,

    (low, high) = the two halves of splitmix64(k)
    bits        = fmix32(fmix32(lo32(i) ^ low) ^ high ^ hi32(i)),

whatever the device and whatever is computed beside it. ``fmix32`` is MurmurHash3's finaliser (Appleby, 2011) and
``splitmix64`` the output function of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA
2014). Tensors have it here, compiled kernels by :data:`FMIX32`; tests hold both bitwise equal.
"""

from __future__ import annotations

from torch import Tensor

MASK32 = 0xFFFFFFFF
MASK64 = 0xFFFFFFFFFFFFFFFF

FMIX32 = """\
#include <stdint.h>
static inline uint32_t fmix32(uint32_t h) {
    h ^= h >> 16; h *= 0x85ebca6bu; h ^= h >> 13; h *= 0xc2b2ae35u; return h ^ (h >> 16);
}
"""
"""``fmix32`` in C."""


def words(key: int) -> tuple[int, int]:
    """Mix a 64-bit key (splitmix64) and return its low and high 32 bits.

    Example:
        >>> words(0)
        (2065550767, 3793791033)
    """
    z = (key + 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    z ^= z >> 31
    return z & MASK32, z >> 32


def hashed(low: int | Tensor, high: int | Tensor, position: Tensor) -> Tensor:
    """32 random bits (as int64) for each position (int64, not negative), from the two :func:`words` of a key.

    Example:
        >>> import torch
        >>> hashed(*words(7), torch.arange(3)).shape
        torch.Size([3])
    """
    return _fmix32(_fmix32((position & MASK32) ^ low) ^ high ^ (position >> 32))


def _fmix32(x: Tensor) -> Tensor:
    x = _times(x ^ (x >> 16), 0x85EBCA6B)
    x = _times(x ^ (x >> 13), 0xC2B2AE35)
    return x ^ (x >> 16)


def _times(x: Tensor, factor: int) -> Tensor:
    """``x · factor`` modulo 2³², for x below 2³²: int64 has no unsigned product, so in halves."""
    return ((x & 0xFFFF) * factor + (((x >> 16) * factor & 0xFFFF) << 16)) & MASK32
