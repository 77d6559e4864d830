"""The hash, the permutation made of it, and their equality in C and in tensors, bit for bit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import sketches
from hasten.sketches import counters, native
from hasten.sketches.coordinates import distinct, uniform

compiled = pytest.mark.skipif(native.kernels() is None, reason="there is no C compiler")
KEYS = st.integers(0, 2**64 - 1)


def test_key_is_splitmix_chained() -> None:
    """Against a plain statement of splitmix64, whose first output from state 0 is published."""

    def splitmix(state: int) -> int:
        z = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    assert splitmix(0) == 0xE220A8397B1DCDAF
    assert counters.key_of(3, 5, 7) == splitmix(splitmix(splitmix(3) + 5) + 7)
    low, high = counters.stream(12345, 2)
    assert low | high << 32 == splitmix((12345 + 2 * 0x9E3779B97F4A7C15) % 2**64)


def test_hash_is_murmurs_finaliser_twice() -> None:
    def fmix(h: int) -> int:
        h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
        return h ^ h >> 16

    positions = [0, 1, 31, 2**31, 2**32 - 1, 2**32, 2**40 + 17]
    low, high = counters.stream(99, 4)
    expected = [fmix(fmix(x % 2**32 ^ low) ^ high ^ x >> 32) for x in positions]
    assert counters.hashed(99, 4, torch.tensor(positions)).tolist() == expected


@compiled
@settings(max_examples=60, deadline=None)
@given(KEYS, st.integers(0, 2**45), st.integers(1, 3000))
def test_numbers_in_c_are_those_of_tensors(key: int, start: int, count: int) -> None:
    kernels = native.kernels()
    assert kernels is not None
    positions = torch.arange(start, start + count)
    assert torch.equal(kernels.uniforms(key, start, count), counters.uniforms(key, 0, positions))
    assert torch.equal(
        kernels.signs(key, start, count).long(), counters.signs(key, counters.SIGNS, positions)
    )
    torch.testing.assert_close(
        kernels.normals(key, start, count), counters.normals(key, positions), rtol=1e-12, atol=1e-12
    )


@compiled
@settings(max_examples=100, deadline=None)
@given(KEYS, st.integers(1, 5000), st.integers(1, 5000))
def test_choices_in_c_are_those_of_tensors(key: int, size: int, count: int) -> None:
    count = min(size, count)
    found = distinct(key, size, count)
    assert torch.equal(found, counters.chosen(key, size, count))
    assert len(set(found.tolist())) == count
    assert 0 <= int(found.min()) <= int(found.max()) < size


@compiled
@pytest.mark.parametrize("d", [2**31 - 1, 2**33 + 5])
@pytest.mark.parametrize(
    "family", ["CountSketch", "BalancedCountSketch", "StridedSigns", "AffineCountSketch"]
)
def test_places_far_out(family: str, d: int) -> None:
    """Single rows of vectors far too long to hold: places are in range, and signs and places vary."""
    if family == "AffineCountSketch" and d >= 2**31:
        pytest.skip("refused")
    r = 2**20 + 7
    draw = getattr(sketches, family)(rank=r).draw(d, seed=3)
    ((place, sign),) = draw.places(d - 1000, d)
    assert 0 <= int(place.min()) <= int(place.max()) < r
    assert place.unique().numel() > 950
    assert abs(int(sign.sum())) < 200


@settings(max_examples=80, deadline=None)
@given(KEYS, st.integers(1, 40), st.integers(1, 40))
def test_permutation_is_one(key: int, rows: int, columns: int) -> None:
    a, b = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    a, b = counters.permuted(key, (rows, columns), a.flatten(), b.flatten())
    assert (a * columns + b).sort().values.tolist() == list(range(rows * columns))


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 2), (2, 3)])
def test_one_double_round_mixes_pairs_as_stated(rows: int, columns: int) -> None:
    """Over all round functions, exhaustively: equal a's meet again with 1/A, different ones with (1 − 1/B)/A."""
    grid = list(itertools.product(range(rows), range(columns)))
    meets = dict.fromkeys(itertools.combinations(grid, 2), 0)
    of_rows = itertools.product(range(columns), repeat=rows)
    of_columns = itertools.product(range(rows), repeat=columns)
    functions = list(itertools.product(of_rows, of_columns))
    for f, h in functions:
        end = {(a, b): (a + h[(b + f[a]) % columns]) % rows for a, b in grid}
        for p, q in meets:
            meets[p, q] += end[p] == end[q]
    for (p, q), count in meets.items():
        expected = 1 / rows if p[0] == q[0] else (1 - 1 / columns) / rows
        assert count / len(functions) == pytest.approx(expected, rel=1e-12)


def test_pairs_of_rows_meet_as_under_uniform_permutations() -> None:
    """Over 6,000 keys, each of the 66 pairs of 12 rows within 4.5 standard errors of (n − r)/(r (n − 1))."""
    d, r, N = 12, 3, 6000
    sketch = sketches.BalancedCountSketch(rank=r)
    place = torch.stack([sketch.draw(d, step=k).columns().abs().argmax(0) for k in range(N)])
    assert torch.equal(torch.nn.functional.one_hot(place, r).sum(1), torch.full((N, r), d // r))
    meet = (place[:, :, None] == place[:, None, :]).double().mean(0)
    c = (d - r) / (r * (d - 1))
    pairs = meet[tuple(torch.triu_indices(d, d, 1))]
    assert float((pairs - c).abs().max()) < 4.5 * math.sqrt(c * (1 - c) / N)


def test_four_signs_are_independent() -> None:
    """Means of all products of up to four of ten signs over 6,000 keys, within 4.7 standard errors of zero."""
    N = 6000
    sketch = sketches.StridedSigns(rank=1)
    sign = torch.cat([sketch.draw(10, step=k).columns(dtype=torch.float64) for k in range(N)])
    for size in (1, 2, 3, 4):
        for members in itertools.combinations(range(10), size):
            assert abs(float(sign[:, members].prod(1).mean())) < 4.7 / math.sqrt(N)


def test_neighbouring_keys_and_positions_share_nothing() -> None:
    """Correlations between the signs of 40 neighbouring draws over 4,096 rows, within 4.7 standard errors."""
    d = 4096
    sign = torch.stack(
        [
            sketches.StridedSigns(rank=1).draw(d, seed=s, step=k, block=b).columns()[0]
            for s in (0, 1)
            for k in range(10)
            for b in (0, 1)
        ]
    )
    correlation = sign @ sign.mT / d - torch.eye(40)
    assert float(correlation.abs().max()) < 4.7 / math.sqrt(d)
    for lag in (1, 2, 31, 32, 33):
        assert float((sign[:, lag:] * sign[:, :-lag]).mean(1).abs().max()) < 4.7 / math.sqrt(d - lag)


def test_uniform_numbers_are_uniform() -> None:
    u = uniform(counters.key_of(1, 2, 3), 0, 1 << 16)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    # Kolmogorov's statistic: above 1.95/√n with probability 0.001.
    n = u.numel()
    steps = torch.arange(n, dtype=torch.float64) / n
    assert float((u.sort().values - steps).abs().max()) < 1.95 / math.sqrt(n)
