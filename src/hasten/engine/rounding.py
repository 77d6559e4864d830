"""Stochastic rounding from float32 to bfloat16, with random bits that need no generator.

Entry ``i`` of a tensor with a 64-bit noise key always draws the same 16 bits, the upper half of its
hash (see :mod:`hasten.hashing`), so the result does not depend on the device, on the tiling, or on
which tensors are stepped together, and a resumed run repeats it.

The rounding adds the 16 bits below the half that is kept: a value at fraction f between two
neighbouring bfloat16 numbers goes to the one further from zero with probability f (to a multiple
of 2^-16, exact), so its expectation is the value itself.  Representable values stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.hashing import MASK32, hashed


def random_bits(low: int | Tensor, high: int | Tensor, index: Tensor) -> Tensor:
    """16 random bits (as int64) for each ``index`` (int64), from a key's two ``words``.

    Example:
        >>> from hasten.hashing import words
        >>> random_bits(*words(7), torch.arange(3)).shape
        torch.Size([3])
    """
    return hashed(low, high, index) >> 16


def round_stochastically(x: Tensor, bits: Tensor) -> Tensor:
    """Round float32 ``x`` to bfloat16 with the 16 random ``bits`` of each entry.

    Infinities and NaN are converted as torch does.  A finite value beyond the largest bfloat16
    may become infinite, as it would when rounded to nearest.

    Example:
        >>> from hasten.hashing import words
        >>> x = torch.tensor([1.0, 1.0 + 2**-8])
        >>> round_stochastically(x, random_bits(*words(1), torch.arange(2)))[0].item()
        1.0
    """
    pattern = (x.view(torch.int32).to(torch.int64) & MASK32) + bits
    # Only the high half is kept: as a signed 16-bit pattern it is a bfloat16.
    half = pattern >> 16
    half = torch.where(half >= 0x8000, half - 0x10000, half).to(torch.int16)
    return torch.where(torch.isfinite(x), half.view(torch.bfloat16), x.to(torch.bfloat16))
