"""Random low rank: one matrix is multiplied from its longer side."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hasten
from hasten.sketches import Curvature, Haar, Identity, PerLayer, RandomLowRank

SHAPES = [(2, 3), (3, 2), (2, 2), (1, 5), (3, 3)]


def of(shape: tuple[int, ...], **options: object) -> RandomLowRank:
    (sketch,) = RandomLowRank(**options).divided([shape])
    assert isinstance(sketch, RandomLowRank)
    return sketch


def smoothness(d: int) -> torch.Tensor:
    root = torch.randn(d, d + 1, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    return root @ root.mT


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("orthogonal", [True, False])
def test_moments_by_monte_carlo(shape: tuple[int, int], orthogonal: bool) -> None:
    """Every entry of E[W], E[W²] and E[W L W] within five standard errors of 8,000 draws."""
    d, N = math.prod(shape), 8000
    sketch = of(shape, rank=1 if min(shape) == 1 else 2, orthogonal=orthogonal)
    L = smoothness(d)
    P = torch.stack([sketch.draw(d, seed=3, step=k).columns(dtype=torch.float64).mT for k in range(N)])
    W = P @ P.mT
    eye = torch.eye(d, dtype=torch.float64)
    for sample, formula in ((W, eye), (W @ W, sketch.smoothed(eye)), (W @ L @ W, sketch.smoothed(L))):
        error = sample.std(0) / math.sqrt(N)
        assert bool(((sample.mean(0) - formula).abs() <= 5 * error + 1e-9).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_from_those_of_the_factor(shape: tuple[int, int]) -> None:
    """Row by row for L = A ⊗ B: E[W L W] = A ⊗ E[Q Qᵀ B Q Qᵀ], Haar's own formula, with the factors in their places."""
    m, n = shape
    sketch = of(shape, rank=1)
    A, B = smoothness(m), smoothness(n)
    one = Haar(rank=1)
    expected = torch.kron(one.smoothed(A), B) if m > n else torch.kron(A, one.smoothed(B))
    torch.testing.assert_close(sketch.smoothed(torch.kron(A, B)), expected)
    diagonal = torch.rand(m * n, dtype=torch.float64)
    torch.testing.assert_close(torch.diag(sketch.smoothed(diagonal)), sketch.smoothed(torch.diag(diagonal)))
    assert sketch.nu(m * n) == pytest.approx(m * n / sketch.rank_in(m * n))


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 2, 3), (2, 3, 3, 3), (6, 6)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_products_are_those_of_matrices(
    shape: tuple[int, ...], orthogonal: bool, dtype: torch.dtype
) -> None:
    m, n = shape[0], math.prod(shape[1:])
    sketch = of(shape, rank=2, orthogonal=orthogonal)
    G = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    draw = sketch.draw(m * n, seed=5, step=7)
    assert draw.rank == sketch.rank_in(m * n) == sketch.cost(m * n) == 2 * min(m, n)
    wide = torch.promote_types(dtype, torch.float32)
    Q = draw.Q.columns(dtype=torch.float64).mT
    assert Q.shape == (max(m, n), 2)
    if orthogonal:
        torch.testing.assert_close(Q.mT @ Q, max(m, n) / 2 * torch.eye(2, dtype=torch.float64))
    whole = G.double().reshape(m, n)
    s = whole @ Q if m <= n else Q.mT @ whole
    lifted = s @ Q.mT if m <= n else Q @ s
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype is torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(draw.project(G), s.reshape(-1).to(wide), **close)
    out = torch.empty(shape, dtype=torch.float64)
    torch.testing.assert_close(draw.lift(s.reshape(-1), out), lifted.view(shape), rtol=1e-12, atol=1e-12)
    assert torch.linalg.matrix_rank(out.view(m, n)) == min(2, m, n)
    P = draw.columns(dtype=torch.float64).mT
    torch.testing.assert_close(P.mT @ whole.reshape(-1), s.reshape(-1))
    torch.testing.assert_close(P @ s.reshape(-1), lifted.reshape(-1))
    torch.testing.assert_close(draw.columns(1, 3, dtype=torch.float64), P.mT[1:3])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.booleans(), st.integers(0, 100))
def test_exact_constants_lie_below_their_bounds(m: int, n: int, k: int, orthogonal: bool, seed: int) -> None:
    sketch = of((m, n), rank=k, orthogonal=orthogonal)
    root = torch.randn(m * n, 1 + seed % (m * n), generator=torch.Generator().manual_seed(seed)).double()
    L = root @ root.mT
    known = Curvature.of(L)
    two = Curvature(m * n, known.largest, known.trace)
    slack = 1 + 1e-9
    exact = sketch.expected_smoothness(L)
    assert known.largest <= exact * slack
    assert exact <= sketch.expected_smoothness(two) * slack
    excess = float(torch.linalg.eigvalsh(sketch.smoothed(L) - L)[-1])
    assert excess <= sketch.smoothness_bound(two, minus=1.0) + 1e-9 * known.largest
    assert sketch.nu(m * n) == pytest.approx(
        float(torch.linalg.eigvalsh(sketch.smoothed(torch.eye(m * n)))[-1])
    )


def test_layers_have_their_own_matrices() -> None:
    shapes = [(8, 3, 5), (4,), (6, 2), (), (3, 0)]
    sketch = PerLayer(RandomLowRank(rank=2)).bind(shapes)
    found = {block.number: block.sketch for block in sketch.blocks()}
    assert [found[i] for i in (1, 3)] == [Identity(), Identity()]
    assert (found[0].shape, found[0].rank_in(120)) == ((8, 15), 16)
    assert (found[2].shape, found[2].rank_in(12)) == ((6, 2), 4)
    assert sketch.nu(137) == 7.5
    assert PerLayer(RandomLowRank(ratio=5)).bind(shapes).rank_in(137) == 8 * 3 + 4 + 2 * 2 + 1


def test_alone_it_is_haar() -> None:
    g = torch.randn(7)
    mine, haar = RandomLowRank(rank=2), Haar(rank=2)
    torch.testing.assert_close(
        mine.draw(7, seed=1, step=2).project(g), haar.draw(7, seed=1, step=2).project(g)
    )
    assert mine.nu(7) == haar.nu(7)
    L = smoothness(7)
    torch.testing.assert_close(mine.smoothed(L), haar.smoothed(L))
    with pytest.raises(
        ValueError, match=r"dimension = 8 is not allowed; it is for a matrix of shape \(3, 2\)"
    ):
        of((3, 2), rank=1).draw(8)


def test_whole_ranks_are_exact() -> None:
    for shape in SHAPES:
        draw = of(shape, rank=9).draw(math.prod(shape))
        G = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(draw.lift(draw.project(G)).view(shape), G)


def test_it_trains() -> None:
    """Matrix least squares ‖X − X*‖²/2 has L = I, so ℓ = ν = n/k; the guarantee of a rate is met in the mean."""
    target = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    final = []
    for seed in range(10):
        X = torch.zeros(6, 10, dtype=torch.float64, requires_grad=True)
        opt = hasten.SubspaceNesterov(
            [X], sketch=PerLayer(RandomLowRank(rank=2)), smoothness=torch.ones(60), seed=seed
        )
        for _ in range(60):
            opt.step(lambda X=X: ((X - target) ** 2).sum() / 2)
        with opt.evaluating():
            final.append(float(((X.detach() - target) ** 2).sum() / 2))
    C, k = 5.0 * 5.0, 60
    assert opt.oracle_calls == 60 * 12
    assert sum(final) / len(final) <= 2 * C * float((target**2).sum()) / (k + 1) ** 2
    assert sum(final) / len(final) < 1e-2 * float((target**2).sum()) / 2
