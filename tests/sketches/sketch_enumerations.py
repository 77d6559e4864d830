"""Every matrix P of a discrete family with its probability, written down from the families' definitions alone.

Nothing of the library is used here: the moments computed from these lists are independent of its formulas.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations, permutations, product

import numpy as np

Weighted = Iterator[tuple[float, np.ndarray]]


def signed(d: int) -> Iterable[tuple[int, ...]]:
    return product((1.0, -1.0), repeat=d)


def from_buckets(d: int, r: int, buckets: Iterable[tuple[float, tuple[int, ...]]]) -> Weighted:
    for weight, bucket in buckets:
        for sign in signed(d):
            P = np.zeros((d, r))
            P[range(d), bucket] = sign
            yield weight / 2**d, P


def countsketch(d: int, r: int) -> Weighted:
    return from_buckets(d, r, ((r**-d, b) for b in product(range(r), repeat=d)))


def balanced(d: int, r: int) -> Weighted:
    m = math.ceil(d / r)
    found: dict[tuple[int, ...], int] = defaultdict(int)
    for order in permutations(range(r * m)):
        found[tuple(position // m for position in order[:d])] += 1
    total = math.factorial(r * m)
    return from_buckets(d, r, ((count / total, b) for b, count in found.items()))


def affine(d: int, r: int, q: int) -> Weighted:
    runs = np.array_split(np.arange(q), r)
    bucket_of = {int(v): j for j, run in enumerate(runs) for v in run}
    maps = [(a, b) for a in range(1, q) for b in range(q)]
    return from_buckets(
        d, r, ((1 / len(maps), tuple(bucket_of[(a * i + b) % q] for i in range(d))) for a, b in maps)
    )


def strided(d: int, r: int) -> Weighted:
    return from_buckets(d, r, [(1.0, tuple(i % r for i in range(d)))])


def rademacher(d: int, r: int) -> Weighted:
    for entries in signed(d * r):
        yield 2.0 ** (-d * r), np.reshape(entries, (d, r)) / math.sqrt(r)


def sparse(d: int, r: int, s: int) -> Weighted:
    rows = []
    for places in combinations(range(r), s):
        for sign in signed(s):
            row = np.zeros(r)
            row[list(places)] = np.array(sign) / math.sqrt(s)
            rows.append(row)
    for chosen in product(rows, repeat=d):
        yield len(rows) ** -float(d), np.stack(chosen)


def transformed(d: int, r: int, H: np.ndarray) -> Weighted:
    n = len(H)
    choices = list(permutations(range(n), r))
    for rows in choices:
        for sign in signed(d):
            yield 1 / (len(choices) * 2**d), math.sqrt(n / r) * np.array(sign)[:, None] * H[list(rows), :d].T


def srht(d: int, r: int) -> Weighted:
    H = np.ones((1, 1))
    while len(H) < d:
        H = np.kron(H, np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2))
    return transformed(d, r, H)


def cosine_matrix(n: int) -> np.ndarray:
    k, i = np.mgrid[:n, :n]
    H = np.cos(np.pi * k * (2 * i + 1) / (2 * n))
    return H / np.sqrt((H**2).sum(1, keepdims=True))


def random_sign_dct(d: int, r: int) -> Weighted:
    return transformed(d, r, cosine_matrix(d))


def coordinates(d: int, r: int) -> Weighted:
    choices = list(permutations(range(d), r))
    for index in choices:
        yield 1 / len(choices), math.sqrt(d / r) * np.eye(d)[:, list(index)]


def coordinates_from(p: list[float], r: int) -> Weighted:
    eye = np.eye(len(p))
    for index in product(range(len(p)), repeat=r):
        columns = [eye[i] / math.sqrt(r * p[i]) for i in index]
        yield math.prod(p[i] for i in index), np.stack(columns, axis=1)


def independent(q: list[float]) -> Weighted:
    for taken in product((True, False), repeat=len(q)):
        weight = math.prod(share if t else 1 - share for t, share in zip(taken, q, strict=True))
        index = [i for i, t in enumerate(taken) if t]
        yield weight, np.eye(len(q))[:, index] / np.sqrt(np.array(q)[index])


def one_block(p: list[float], sizes: list[int]) -> Weighted:
    ends = np.cumsum(sizes)
    for share, end, size in zip(p, ends, sizes, strict=True):
        yield share, np.eye(sum(sizes))[:, end - size : end] / math.sqrt(share)


def product_of(*parts: list[tuple[float, np.ndarray]]) -> Weighted:
    for chosen in product(*parts):
        P = np.zeros((sum(len(b) for _, b in chosen), sum(b.shape[1] for _, b in chosen)))
        row = column = 0
        for _, block in chosen:
            P[row : row + len(block), column : column + block.shape[1]] = block
            row, column = row + len(block), column + block.shape[1]
        yield math.prod(weight for weight, _ in chosen), P
