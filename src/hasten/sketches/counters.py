"""Random numbers without a generator: a hash of (seed, step, block) and a position.

A draw is known by a 64-bit key. Each of its streams t has a key of its own, under which the hash of
:mod:`hasten.hashing` gives position x the number h_t(x). Nothing is stored, and every position is reached at once.
``kernels/numbers.c`` states the same functions in C; tests hold the two bitwise equal.

A random permutation of a grid of A × B positions needs no memory either: the position (a, b) passes through
alternating rounds b ← b + h(a) mod B, a ← a + h(b) mod A, each invertible whatever h is (a Feistel network over two
moduli, after Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). For ideal h, the chance that two
given positions end with equal a differs after k double rounds by a factor n⁻ᵏ, n = A B, from that of a uniform
permutation, (B−1)/(n−1): equal a's meet again with probability 1/A, others with (1 − 1/B)/A, so 1/n is the second
eigenvalue. `double_rounds` takes k so that the difference is below 2⁻³², and never fewer than two.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hasten import hashing
from hasten.hashing import MASK64, words

_GOLDEN = 0x9E3779B97F4A7C15

SIGNS = 0
"""The stream of the first signs; further ones (SparseSign) follow in steps of two."""
PLACES = 1
"""The stream of the first places; rounds of a permutation and further places follow in steps of two."""

PIECE = 1 << 18
"""Entries that tensor code treats at once, so that temporaries stay small."""


def key_of(seed: int, step: int, block: int) -> int:
    """The 64-bit key of a draw.

    Example:
        >>> key_of(0, 0, 0) != key_of(0, 1, 0) != key_of(0, 0, 1)
        True
    """
    key = 0
    for part in (seed, step, block):
        low, high = words((key + part) & MASK64)
        key = low | high << 32
    return key


def stream(key: int, number: int) -> tuple[int, int]:
    """The two 32-bit words of one stream of a key."""
    return words((key + number * _GOLDEN) & MASK64)


def hashed(key: int, number: int, position: Tensor) -> Tensor:
    """32 random bits (as int64) for each position (int64, not negative) of a stream."""
    return hashing.hashed(*stream(key, number), position)


def below(bound: int, bits: Tensor) -> Tensor:
    """From 32 random bits an integer in [0, bound), bound ≤ 2³¹; each has its probability to within 2⁻³²."""
    return (bits * bound) >> 32


def signs(key: int, number: int, position: Tensor) -> Tensor:
    """±1 (as int64) for each position: one bit of the hash of position // 32."""
    return 1 - 2 * ((hashed(key, number, position >> 5) >> (position & 31)) & 1)


def uniforms(key: int, number: int, position: Tensor) -> Tensor:
    """Multiples of 2⁻⁵³ in [0, 1), float64, from the streams `number` and `number` + 1."""
    high, low = hashed(key, number, position), hashed(key, number + 1, position)
    return ((high >> 5) * (1 << 26) + (low >> 6)).double() * 2.0**-53


def normals(key: int, position: Tensor) -> Tensor:
    """Standard normal numbers, float64: √(−2 ln u) cos 2πv with 32 random bits in u and v each (Box and Muller, 1958).

    The largest is √(64 ln 2) ≈ 6.66. Logarithm and cosine leave them equal to round-off between devices.
    """
    u = (hashed(key, 0, position) + 1).double() * 2.0**-32
    v = hashed(key, 1, position).double() * 2.0**-32
    return torch.sqrt(-2.0 * torch.log(u)) * torch.cos(2.0 * math.pi * v)


def double_rounds(size: int) -> int:
    """How many double rounds a permutation of `size` positions takes.

    Example:
        >>> double_rounds(4), double_rounds(256), double_rounds(1 << 24)
        (16, 4, 2)
    """
    return max(2, math.ceil(32 / math.log2(size))) if size > 1 else 2


def permuted(key: int, shape: tuple[int, int], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Where the positions (a, b) of a grid of this shape go; a < shape[0], b < shape[1]."""
    rows, columns = shape
    for t in range(double_rounds(rows * columns)):
        b = (b + below(columns, hashed(key, PLACES + 4 * t, a))) % columns
        a = (a + below(rows, hashed(key, PLACES + 4 * t + 2, b))) % rows
    return a, b


def chosen(key: int, size: int, count: int) -> Tensor:
    """`count` different positions of [0, size), uniform and in random order, int64.

    The first of a permutation of a grid that is hardly larger; positions outside walk on until they are inside.
    """
    rows = math.isqrt(size - 1) + 1
    shape = (rows, -(-size // rows))
    position = torch.arange(count)
    outside = torch.ones(count, dtype=torch.bool)
    while bool(outside.any()):
        a, b = permuted(key, shape, position[outside] % rows, position[outside] // rows)
        position[outside] = a + rows * b
        outside = position >= size
    return position
