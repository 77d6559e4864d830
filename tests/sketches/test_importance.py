"""Coordinates and blocks drawn by their curvature, and coordinates with probabilities."""

from __future__ import annotations

import math

import pytest
import torch

from hasten.sketches import (
    AffineCountSketch,
    Coordinates,
    Curvature,
    ImportanceBlocks,
    ImportanceCoordinates,
    IndependentCoordinates,
    SparseSign,
)

L = torch.tensor([[4.0, 1.0, 0.0], [1.0, 1.0, 0.25], [0.0, 0.25, 0.25]], dtype=torch.float64)


def test_coordinates_of_a_known_example() -> None:
    sketch = ImportanceCoordinates(L)
    torch.testing.assert_close(sketch.probabilities * 7, torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
    assert sketch.rate_constant(L) == pytest.approx(12.25, rel=1e-12)
    assert sketch.rate_constant(L) == pytest.approx(float(L.diagonal().sqrt().sum()) ** 2, rel=1e-12)
    for step in range(20):
        draw = sketch.draw(3, step=step)
        (i,) = draw.columns()[0].nonzero().flatten().tolist()
        p, g = float(sketch.probabilities[i]), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        lifted = draw.lift(draw.project(g))
        assert lifted[i] == pytest.approx(float(g[i]) / p)
        # The descent step is the coordinate's own: ∂_i f / L_ii.
        assert draw.short_step is not None
        assert draw.short_step * lifted[i] == pytest.approx(float(g[i] / L[i, i]))
    assert sketch.cost(3) == 1


def test_rate_constant_is_the_least_that_holds() -> None:
    """E[W²] ⪯ C · E[2 P S Pᵀ − P S Pᵀ L P S Pᵀ], with the expectations written out."""
    sketch = ImportanceBlocks(L, [1, 2])
    for other in (L, 0.5 * L, 1.5 * L):
        V, D = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
        for b, part in enumerate((slice(0, 1), slice(1, 3))):
            p, own = float(sketch.probabilities[b]), float(torch.linalg.eigvalsh(L[part, part])[-1])
            P = torch.eye(3, dtype=torch.float64)[:, part] / math.sqrt(p)
            W, step = P @ P.mT, p / own
            V += p * W @ W
            D += p * (2 * step * W - step**2 * W @ other @ W)
        inverse_root = torch.linalg.inv(torch.linalg.cholesky(D))
        least = float(torch.linalg.eigvalsh(inverse_root @ V @ inverse_root.mT)[-1])
        # λ_max(L_bb) stands for the whole block, so C is exact only where the largest eigenvector decides.
        assert sketch.rate_constant(other) >= least * (1 - 1e-12)
    exact = sum(math.sqrt(float(torch.linalg.eigvalsh(L[p, p])[-1])) for p in (slice(0, 1), slice(1, 3)))
    assert sketch.rate_constant(L) == pytest.approx(exact**2, rel=1e-12)
    assert sketch.rate_constant(3 * L) == math.inf


def test_blocks_cost_what_they_hold() -> None:
    sketch = ImportanceBlocks(torch.tensor([4.0, 4.0, 1.0]), [2, 1])
    seen = [sketch.draw(3, step=k).rank for k in range(3000)]
    assert sketch.cost(3) == pytest.approx(5 / 3)
    # 4.5 standard errors of the mean of 1 + Bernoulli(2/3)
    assert abs(sum(seen) / 3000 - 5 / 3) < 4.5 * math.sqrt(2 / 9 / 3000)
    assert sketch.rank_in(3) == 2


def test_independent_coordinates_may_be_none_at_all() -> None:
    sketch = IndependentCoordinates(inclusion=torch.full((2,), 0.1))
    draws = [sketch.draw(2, step=k) for k in range(50)]
    empty = next(draw for draw in draws if draw.rank == 0)
    s = empty.project(torch.ones(2))
    assert s.shape == (0,)
    assert torch.equal(empty.lift(s), torch.zeros(2))
    assert empty.columns().shape == (0, 2)
    assert IndependentCoordinates(rank=2).cost(8) == 2


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"a curvature of 0\.0 is not allowed; it must be positive"):
        ImportanceCoordinates(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="give the matrix or the diagonal"):
        ImportanceCoordinates(Curvature(3, 1.0, 2.0))
    with pytest.raises(ValueError, match="give the matrix or the diagonal"):
        ImportanceBlocks(Curvature(3, 1.0, 2.0, torch.ones(3)), [2, 1])
    for sizes in ([1, 1], [3, 0], [4, -1]):
        with pytest.raises(ValueError, match="sizes = "):
            ImportanceBlocks(L, sizes)
    with pytest.raises(ValueError, match="dimension = 4 is not allowed"):
        ImportanceCoordinates(L).nu(4)
    with pytest.raises(ValueError, match="probabilities must sum to one"):
        Coordinates(rank=1, probabilities=torch.tensor([0.5, 0.4]))
    with pytest.raises(ValueError, match=r"probabilities = -0\.5 is not allowed; it must be positive"):
        Coordinates(rank=1, probabilities=torch.tensor([1.5, -0.5]))
    with pytest.raises(ValueError, match="2 probabilities do not fit dimension 3"):
        Coordinates(rank=1, probabilities=torch.tensor([0.5, 0.5])).draw(3)
    with pytest.raises(ValueError, match="replace = 2 is not allowed"):
        Coordinates(rank=1, replace=2)
    with pytest.raises(ValueError, match=r"inclusion = 1\.5 is not allowed"):
        IndependentCoordinates(inclusion=torch.tensor([1.5, 0.5]))
    with pytest.raises(ValueError, match="2 inclusion probabilities do not fit dimension 3"):
        IndependentCoordinates(inclusion=torch.tensor([0.5, 0.5])).nu(3)
    with pytest.raises(TypeError, match="one of rank, ratio and inclusion"):
        IndependentCoordinates(rank=1, inclusion=torch.tensor([0.5]))
    with pytest.raises(ValueError, match="below 2\\^31"):
        AffineCountSketch(rank=2).draw(2**31)
    for sparsity in (0, 5, 1.5):
        with pytest.raises(ValueError, match="sparsity = "):
            SparseSign(rank=4, sparsity=sparsity)
