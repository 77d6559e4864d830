"""Sketches over several parameters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.sketches import (
    BalancedCountSketch,
    Curvature,
    Haar,
    Identity,
    ImportanceCoordinates,
    PerLayer,
    SparseSign,
    blocks,
)

SHAPES = [(3, 4), (4,), (0, 7), (4, 2), (), (2, 2, 2)]
SIZES = [12, 4, 0, 8, 1, 8]


def test_a_plain_sketch_has_one_block() -> None:
    sketch = BalancedCountSketch(rank=5)
    (block,) = blocks(sketch, SHAPES)
    assert (block.number, block.members, block.dimension, block.sketch) == (0, (0, 1, 3, 4, 5), 33, sketch)
    g = torch.randn(33)
    assert torch.equal(block.draw(seed=4, step=2).project(g), sketch.draw(33, seed=4, step=2).project(g))
    assert blocks(sketch, []) == blocks(sketch, [(0, 3)]) == []


def test_every_layer_is_a_block_and_vectors_are_whole() -> None:
    sketch = PerLayer(BalancedCountSketch(ratio=4))
    found = blocks(sketch, SHAPES)
    assert [block.members for block in found] == [(0,), (1,), (3,), (4,), (5,)]
    assert [block.number for block in found] == [0, 1, 3, 4, 5]
    assert [block.dimension for block in found] == [12, 4, 8, 1, 8]
    assert [block.sketch for block in found] == [
        BalancedCountSketch(rank=3),
        Identity(),
        BalancedCountSketch(rank=2),
        Identity(),
        BalancedCountSketch(rank=2),
    ]
    everything = blocks(PerLayer(BalancedCountSketch(ratio=4), exact=lambda shape: False), SHAPES)
    assert Identity() not in [block.sketch for block in everything]


def test_one_draw_of_all_is_the_draws_of_the_blocks() -> None:
    sketch = PerLayer(Haar(ratio=2)).bind(SHAPES)
    d = sum(SIZES)
    whole, g = sketch.draw(d, seed=3, step=9), torch.randn(d, dtype=torch.float64)
    parts = [block.draw(seed=3, step=9) for block in sketch.blocks()]
    pieces = torch.split(g, [n for n in SIZES if n])
    s = torch.cat([part.project(piece) for part, piece in zip(parts, pieces, strict=True)])
    assert torch.equal(whole.project(g), s)
    smalls = torch.split(s, [part.rank for part in parts])
    lifted = torch.cat([part.lift(small) for part, small in zip(parts, smalls, strict=True)])
    assert torch.equal(whole.lift(s), lifted)
    dense = torch.block_diag(*[part.columns(dtype=torch.float64) for part in parts])
    assert torch.equal(whole.columns(dtype=torch.float64), dense)
    assert torch.equal(whole.columns(3, 11, dtype=torch.float64), dense[3:11])
    assert whole.rank == sketch.rank_in(d) == sketch.cost(d)
    other = sketch.draw(d, seed=3, step=9, block=1)
    assert not torch.equal(other.project(g), s)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_a_rank_is_divided_in_proportion(rank: int, shapes: list[tuple[int, int]]) -> None:
    sizes = [math.prod(shape) for shape in shapes if math.prod(shape)]
    found = blocks(PerLayer(BalancedCountSketch(rank=rank)), shapes)
    ranks = [block.sketch.rank for block in found]
    assert [block.dimension for block in found] == sizes
    total = sum(sizes)
    for r, n in zip(ranks, sizes, strict=True):
        assert r is not None
        assert 1 <= r <= n
        share = min(rank, total) * n / total
        assert abs(r - share) <= 1 or r == 1
    assert sum(r or 0 for r in ranks) >= min(rank, total)
    assert sum(r or 0 for r in ranks) <= min(rank, total) + len(ranks)


def test_nu_is_the_largest_of_the_layers() -> None:
    sketch = PerLayer(BalancedCountSketch(ratio=8)).bind([(16, 4), (16,), (3, 3)])
    assert sketch.nu(89) == pytest.approx(8)
    assert PerLayer(BalancedCountSketch(ratio=8)).bind([(5,), (3,)]).nu(8) == 1


def test_smoothness_of_a_coupled_matrix() -> None:
    shapes, d = [(3, 2), (2,), (2, 2)], 12
    sketch = PerLayer(BalancedCountSketch(ratio=2)).bind(shapes)
    root = torch.randn(d, d, dtype=torch.float64)
    L = root @ root.mT
    found = sketch.smoothed(L)
    for block, low in zip(sketch.blocks(), (0, 6, 8), strict=True):
        part = slice(low, low + block.dimension)
        torch.testing.assert_close(found[part, part], block.sketch.smoothed(L[part, part]))
    torch.testing.assert_close(found[:6, 6:], L[:6, 6:])
    exact = Curvature.of(L)
    known = Curvature(d, exact.largest, exact.trace)
    assert sketch.expected_smoothness(L) <= sketch.expected_smoothness(known)


def test_binding_is_asked_for_by_name() -> None:
    sketch = PerLayer(BalancedCountSketch(ratio=2))
    for ask in (lambda: sketch.nu(4), lambda: sketch.draw(4), lambda: sketch.rank_in(4), sketch.blocks):
        with pytest.raises(TypeError, match=r"call bind\(shapes\) first"):
            ask()
    with pytest.raises(ValueError, match="dimension = 5 is not allowed; it is bound to 4 entries"):
        sketch.bind([(2, 2)]).nu(5)
    for wrong in (sketch, "balanced", None, Identity(), ImportanceCoordinates(torch.ones(4))):
        with pytest.raises(TypeError, match=r"PerLayer: sketch = .* is not allowed"):
            PerLayer(wrong)
    with pytest.raises(TypeError, match="PerLayer: exact = 3 is not allowed"):
        PerLayer(BalancedCountSketch(ratio=2), exact=3)  # type: ignore[arg-type]  # that it is refused is the test
    with pytest.raises(ValueError, match="sparsity = 8 is not allowed"):
        PerLayer(SparseSign(ratio=2)).bind([(2, 2)]).draw(4)


def test_identity_keeps_everything_and_copies() -> None:
    draw, g = Identity().draw(4), torch.arange(4.0)
    s = draw.project(g)
    assert torch.equal(s, g)
    assert s.data_ptr() != g.data_ptr()
    assert torch.equal(draw.columns(1, 3), torch.eye(4)[1:3])
    assert Identity().rank_in(9) == 9
    assert Identity().expected_smoothness(Curvature(9, 2.0, 3.0)) == 2
