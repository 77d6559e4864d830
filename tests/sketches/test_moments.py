"""Unbiasedness and both second moments: exhaustive where a family is discrete, by Monte Carlo otherwise."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import sketch_enumerations as every
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sketch_families import FAMILIES

from hasten import sketches
from hasten.sketches import Curvature

DISCRETE = {
    "CountSketch": (sketches.CountSketch(rank=2), lambda: every.countsketch(4, 2)),
    "balanced": (sketches.BalancedCountSketch(rank=2), lambda: every.balanced(4, 2)),
    "balanced, three columns": (sketches.BalancedCountSketch(rank=3), lambda: every.balanced(6, 3)),
    "balanced, padded": (sketches.BalancedCountSketch(rank=2), lambda: every.balanced(5, 2)),
    "balanced, full": (sketches.BalancedCountSketch(rank=4), lambda: every.balanced(4, 4)),
    "affine": (sketches.AffineCountSketch(rank=2), lambda: every.affine(4, 2, 5)),
    "affine, three columns": (sketches.AffineCountSketch(rank=3), lambda: every.affine(5, 3, 5)),
    "strided": (sketches.StridedSigns(rank=2), lambda: every.strided(5, 2)),
    "Rademacher": (sketches.Rademacher(rank=2), lambda: every.rademacher(3, 2)),
    "sparse sign": (sketches.SparseSign(rank=3, sparsity=2), lambda: every.sparse(3, 3, 2)),
    "SRHT": (sketches.SRHT(rank=3), lambda: every.srht(4, 3)),
    "SRHT, padded": (sketches.SRHT(rank=2), lambda: every.srht(3, 2)),
    "DCT": (sketches.RandomSignDCT(rank=2), lambda: every.random_sign_dct(4, 2)),
    "DCT, odd": (sketches.RandomSignDCT(rank=3), lambda: every.random_sign_dct(5, 3)),
    "coordinates": (sketches.Coordinates(rank=2), lambda: every.coordinates(5, 2)),
    "coordinates again": (
        sketches.Coordinates(rank=2, replace=True),
        lambda: every.coordinates_from([0.25] * 4, 2),
    ),
    "coordinates from p": (
        sketches.Coordinates(rank=2, probabilities=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)),
        lambda: every.coordinates_from([0.5, 0.3, 0.2], 2),
    ),
    "independent": (
        sketches.IndependentCoordinates(inclusion=torch.tensor([0.25, 1.0, 0.5], dtype=torch.float64)),
        lambda: every.independent([0.25, 1.0, 0.5]),
    ),
    "importance coordinates": (
        sketches.ImportanceCoordinates(torch.tensor([4.0, 1.0, 0.25])),
        lambda: every.one_block([4 / 7, 2 / 7, 1 / 7], [1, 1, 1]),
    ),
    "importance blocks": (
        sketches.ImportanceBlocks(torch.tensor([4.0, 1.0, 1.0]), [1, 2]),
        lambda: every.one_block([2 / 3, 1 / 3], [1, 2]),
    ),
    "per layer": (
        sketches.PerLayer(sketches.BalancedCountSketch(ratio=2)).bind([(2, 1), (1,), (2, 1)]),
        lambda: every.product_of(
            list(every.balanced(2, 1)), list(every.balanced(1, 1))[:1], list(every.balanced(2, 1))
        ),
    ),
}


def random_smoothness(d: int, seed: int = 0) -> np.ndarray:
    root = np.random.default_rng(seed).standard_normal((d, d + 1))
    return root @ root.T


def normalised(pairs):
    pairs = list(pairs)
    total = sum(weight for weight, _ in pairs)
    return [(weight / total, P) for weight, P in pairs]


@pytest.mark.parametrize("name", DISCRETE)
def test_every_matrix_of_a_discrete_family(name: str) -> None:
    sketch, enumeration = DISCRETE[name]
    pairs = normalised(enumeration())
    d = len(pairs[0][1])
    L = random_smoothness(d)
    W = [(weight, P @ P.T) for weight, P in pairs]
    mean = sum(weight * w for weight, w in W)
    second = sum(weight * w @ w for weight, w in W)
    smoothed = sum(weight * w @ L @ w for weight, w in W)
    np.testing.assert_allclose(mean, np.eye(d), atol=1e-12)
    np.testing.assert_allclose(sketch.smoothed(torch.from_numpy(L)), smoothed, atol=1e-12 * np.abs(L).max())
    np.testing.assert_allclose(sketch.smoothed(torch.eye(d)), second, atol=1e-12)
    assert sketch.nu(d) == pytest.approx(np.linalg.eigvalsh(second)[-1], rel=1e-12)
    assert sketch.expected_smoothness(torch.from_numpy(L)) == pytest.approx(
        np.linalg.eigvalsh(smoothed)[-1], rel=1e-12
    )
    diagonal = np.diag(L).copy()
    on = sum(weight * w @ np.diag(diagonal) @ w for weight, w in W)
    np.testing.assert_allclose(on, np.diag(np.diag(on)), atol=1e-12)
    np.testing.assert_allclose(sketch.smoothed(torch.from_numpy(diagonal)), np.diag(on), atol=1e-12)


def test_two_columns_for_four_rows_meet_with_one_third() -> None:
    L = random_smoothness(4)
    smoothed = sum(weight * P @ P.T @ L @ P @ P.T for weight, P in every.balanced(4, 2))
    c = 1 / 3
    stated = (1 + c) * L + c * np.trace(L) * np.eye(4) - 2 * c * np.diag(np.diag(L))
    np.testing.assert_allclose(smoothed, stated, atol=1e-12)
    np.testing.assert_allclose(
        sketches.BalancedCountSketch(rank=2).smoothed(torch.from_numpy(L)), stated, atol=1e-12
    )


def signature(P: np.ndarray) -> bytes:
    return np.round(P, 6).astype(np.float32).__add__(0.0).tobytes()


# At r = d the implementation only rotates the columns: P Pᵀ = I whatever their order.
@pytest.mark.parametrize("name", sorted(DISCRETE.keys() - {"balanced, full"}))
def test_draws_are_the_matrices_of_the_family_in_their_proportions(name: str) -> None:
    sketch, enumeration = DISCRETE[name]
    expected: dict[bytes, float] = defaultdict(float)
    pairs = normalised(enumeration())
    for weight, P in pairs:
        expected[signature(P)] += weight
    d, N = len(pairs[0][1]), 2000
    seen: dict[bytes, int] = defaultdict(int)
    for step in range(N):
        seen[signature(sketch.draw(d, seed=11, step=step).columns(dtype=torch.float64).mT.numpy())] += 1
    assert seen.keys() <= expected.keys()
    # Pearson's statistic over matrices, rare ones put together in groups that are expected 20 times or more.
    groups, group = [], [0.0, 0]
    for key, weight in sorted(expected.items()):
        group = [group[0] + weight * N, group[1] + seen[key]]
        if group[0] >= 20:
            groups.append(group)
            group = [0.0, 0]
    statistic = sum((found - mean) ** 2 / mean for mean, found in groups)
    freedom = max(len(groups) - 1, 1)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("family", ["Haar", "Gaussian", "BalancedCountSketch"])
@pytest.mark.parametrize("rank", [1, 3])
def test_moments_by_monte_carlo(family: str, rank: int) -> None:
    """Every entry within five standard errors of 4,000 draws."""
    d, N = 6, 4000
    sketch = FAMILIES[family](d, rank)
    L = torch.from_numpy(random_smoothness(d))
    P = torch.stack([sketch.draw(d, seed=3, step=k).columns(dtype=torch.float64).mT for k in range(N)])
    W = P @ P.mT
    for sample, formula in (
        (W, torch.eye(d, dtype=torch.float64)),
        (W @ W, sketch.smoothed(torch.eye(d))),
        (W @ L @ W, sketch.smoothed(L)),
    ):
        error = sample.std(0) / math.sqrt(N)
        assert bool(((sample.mean(0) - formula).abs() <= 5 * error + 1e-9).all())


def test_moments_of_normal_entries_to_the_fourth() -> None:
    z = sketches.Gaussian(rank=1).draw(1 << 17, seed=5).columns(dtype=torch.float64)[0]
    n = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 5 * math.sqrt(variance / n)


@pytest.mark.parametrize("family", ["Haar", "BalancedCountSketch", "StridedSigns", "SRHT", "RandomSignDCT"])
def test_full_rank_is_exact(family: str) -> None:
    d = 8
    sketch = FAMILIES[family](d, d)
    P = sketch.draw(d, seed=1).columns(dtype=torch.float64)
    torch.testing.assert_close(P @ P.mT, torch.eye(d, dtype=torch.float64))
    assert sketch.nu(d) == 1
    assert sketch.expected_smoothness(Curvature(d, 2.0, 5.0)) == pytest.approx(2.0)


def test_more_draws_of_one_column_average() -> None:
    """r independent columns: E[W L W] = (1 − 1/r) L + (1/r) E[W₁ L W₁]."""
    L = torch.from_numpy(random_smoothness(5))
    for family in (
        sketches.Gaussian,
        sketches.Rademacher,
        lambda rank: sketches.Coordinates(rank=rank, replace=True),
    ):
        one = family(rank=1).smoothed(L)
        torch.testing.assert_close(family(rank=3).smoothed(L), 2 / 3 * L + one / 3)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.integers(1, 9).flatmap(lambda d: st.tuples(st.just(d), st.integers(1, d))),
    st.integers(0, 100),
    st.integers(0, 3),
)
def test_exact_constants_lie_below_their_bounds(
    family: str, sizes: tuple[int, int], seed: int, zeros: int
) -> None:
    (d, r), generator = sizes, torch.Generator().manual_seed(seed)
    sketch = FAMILIES[family](d, r)
    root = torch.randn(d, max(d - zeros, 1), generator=generator, dtype=torch.float64)
    L = root @ root.mT
    exact = Curvature.of(L)
    two = Curvature(d, exact.largest, exact.trace)
    three = Curvature(d, exact.largest, exact.trace, exact.diagonal)
    ell = sketch.expected_smoothness(L)
    slack = 1 + 1e-9
    assert exact.largest <= ell * slack
    assert sketch.nu(d) >= 1 - 1e-12
    assert ell <= sketch.expected_smoothness(three) * slack
    assert sketch.expected_smoothness(three) <= sketch.expected_smoothness(two) * slack
    excess = float(torch.linalg.eigvalsh(sketch.smoothed(L) - L)[-1])
    for known in (two, three):
        assert excess <= sketch.smoothness_bound(known, minus=1.0) + 1e-9 * exact.largest


def test_bounds_are_those_of_the_theory() -> None:
    known, d, r = Curvature(100, 2.0, 20.0), 100, 5
    c = (100 - 5) / (5 * 99)
    assert sketches.BalancedCountSketch(rank=r).expected_smoothness(known) == pytest.approx(
        (1 + c) * 2 + c * 20
    )
    assert sketches.Gaussian(rank=r).expected_smoothness(known) == pytest.approx((6 * 2 + 20) / 5)
    haar = (d / r) * ((r * d + d - 2) * 2 + (d - r) * 20) / ((d - 1) * (d + 2))
    assert sketches.Haar(rank=r).expected_smoothness(known) == pytest.approx(haar)
    diagonal = torch.ones(100, dtype=torch.float64)
    diagonal[0] = 2
    assert sketches.BalancedCountSketch(rank=r).expected_smoothness(diagonal) == pytest.approx(
        (1 - c) * 2 + c * 101
    )


# For the spectra 1/i and i⁻² at d = 256: (family, rank) and ν, ℓ to three decimals, as tabulated by the theory.
@pytest.mark.parametrize(
    ("power", "family", "rank", "nu", "ell"),
    [
        (1, "Haar", 1, 256, 8.061),
        (1, "BalancedCountSketch", 4, 64, 2.266),
        (1, "BalancedCountSketch", 16, 16, 1.301),
        (2, "Haar", 1, 256, 3.613),
        (2, "Haar", 16, 16, 1.154),
        (2, "BalancedCountSketch", 1, 256, 1.641),
        (2, "BalancedCountSketch", 64, 4, 1.008),
        (2, "StridedSigns", 16, 16, 1.0056),
    ],
)
def test_tabulated_constants(power: int, family: str, rank: int, nu: float, ell: float) -> None:
    spectrum = torch.arange(1, 257, dtype=torch.float64) ** -power
    sketch = FAMILIES[family](256, rank)
    assert sketch.nu(256) == pytest.approx(nu, rel=1e-12)
    assert sketch.expected_smoothness(spectrum) == pytest.approx(ell, abs=6e-4)


def test_rate_constant_is_the_product() -> None:
    L = torch.tensor([3.0, 1.0, 1.0])
    sketch = sketches.Haar(rank=2)
    assert sketch.rate_constant(L) == sketch.nu(3) * sketch.expected_smoothness(L)
