"""What every draw obeys: adjointness, regeneration, one answer by both kinds of code and any number of threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sketch_families import FAMILIES

from hasten import sketches
from hasten.sketches import native

DTYPES = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
DIMENSIONS = st.one_of(st.integers(1, 12), st.sampled_from([33, 64, 100, 1024, 1025, 3000]))
SIZES = DIMENSIONS.flatmap(lambda d: st.tuples(st.just(d), st.integers(1, min(d, 40))))


@pytest.fixture(params=["compiled", "tensors"])
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "tensors":
        monkeypatch.setattr(native, "kernels", lambda: None)
    elif native.kernels() is None:
        pytest.skip("there is no C compiler")
    return request.param


def random(size: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def around(P: torch.Tensor, x: torch.Tensor) -> float:
    """The largest sum of absolute terms: what round-off is relative to."""
    return float((P.abs() @ x).max()) + 1e-30 if P.numel() else 0.0


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(FAMILIES)),
    SIZES,
    st.sampled_from(sorted(DTYPES, key=str)),
    st.integers(0, 2**64),
    st.booleans(),
)
def test_project_lift_and_columns_are_one_matrix(
    family: str, sizes: tuple[int, int], dtype: torch.dtype, seed: int, compiled: bool
) -> None:
    (d, r), tolerance = sizes, DTYPES[dtype]
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(native, "kernels", lambda: None)
        draw = FAMILIES[family](d, r).draw(d, seed=seed, step=3, block=1)
        g, s = random(d, 1, dtype), random(draw.rank, 2, torch.float64)
        P = draw.columns(dtype=torch.float64)
        small, large = draw.project(g), draw.lift(s, out=torch.empty(d, dtype=dtype))
    assert P.shape == (draw.rank, d)
    assert small.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    exact = P @ g.double()
    # Sums are taken in single precision for halves, too; only what is lifted is rounded to them.
    assert bool(((small.double() - exact).abs() <= min(tolerance, 1e-5) * around(P, g.abs().double())).all())
    assert bool(((large.double() - s @ P).abs() <= tolerance * around(P.mT, s.abs())).all())
    if dtype is torch.float64 and draw.rank:
        # ⟨Pᵀg, s⟩ = ⟨g, P s⟩
        bound = float(g.abs() @ P.abs().mT @ s.abs())
        assert abs(float(small @ s - g @ large)) <= 1e-13 * bound


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FAMILIES)), SIZES, st.integers(0, 2**63), st.integers(0, 40), st.integers(0, 40)
)
def test_some_columns_are_columns(
    family: str, sizes: tuple[int, int], seed: int, low: int, more: int
) -> None:
    d, r = sizes
    draw = FAMILIES[family](d, r).draw(d, seed=seed)
    start = min(low, draw.rank)
    stop = min(start + more, draw.rank)
    torch.testing.assert_close(draw.columns(start, stop), draw.columns()[start:stop])


@pytest.mark.parametrize("family", FAMILIES)
def test_regenerated_from_keys_and_different_for_different_ones(family: str, code: str) -> None:
    d, r = 96, 12
    sketch = FAMILIES[family](d, r)
    keys = [(s, k, b) for s in (0, 1, 2**40, -1) for k in range(6) for b in (0, 1)]
    drawn = [sketch.draw(d, seed=s, step=k, block=b).columns() for s, k, b in keys]
    again = [FAMILIES[family](d, r).draw(d, seed=s, step=k, block=b).columns() for s, k, b in keys]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    different = {(P.shape, P.numpy().tobytes()) for P in drawn}
    expected = {"Identity": 1, "ImportanceBlocks": 2, "ImportanceCoordinates": 15}
    assert len(different) >= expected.get(family, len(keys))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("d", "r"), [(1, 1), (2, 1), (7, 3), (1000, 7), (5000, 1250), (4099, 4099)])
def test_compiled_code_has_the_same_matrix(
    family: str, d: int, r: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native.kernels() is None:
        pytest.skip("there is no C compiler")
    dense = ("Haar", "Gaussian", "RandomLowRank", "Rademacher", "SparseSign", "SRHT", "RandomSignDCT")
    if d * r > 2**21 and family in dense:
        r = 3
    draws = [FAMILIES[family](d, r).draw(d, seed=9, step=4) for _ in range(2)]
    g, s = random(d, 1, torch.float64), random(draws[0].rank, 2, torch.float64)
    picked = [c for c in (0, draws[0].rank // 2, draws[0].rank - 1) if 0 <= c < draws[0].rank]
    compiled = (
        draws[0].project(g),
        draws[0].lift(s),
        [draws[0].columns(c, c + 1, dtype=torch.float64) for c in picked],
    )
    monkeypatch.setattr(native, "kernels", lambda: None)
    plain = (
        draws[1].project(g),
        draws[1].lift(s),
        [draws[1].columns(c, c + 1, dtype=torch.float64) for c in picked],
    )
    torch.testing.assert_close(compiled[0], plain[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(compiled[1], plain[1], rtol=1e-11, atol=1e-11)
    rounded = family in ("Haar", "Gaussian", "RandomLowRank", "RandomSignDCT", "SRHT")
    for a, b in zip(compiled[2], plain[2], strict=True):
        assert torch.allclose(a, b, atol=1e-12) if rounded else torch.equal(a, b)


@pytest.mark.parametrize(
    "sketch",
    [
        sketches.BalancedCountSketch(ratio=256),
        sketches.BalancedCountSketch(ratio=2),
        sketches.StridedSigns(rank=3),
        sketches.CountSketch(rank=1),
        sketches.AffineCountSketch(ratio=64),
        sketches.SparseSign(ratio=64, sparsity=4),
        sketches.SRHT(ratio=256),
    ],
    ids=str,
)
def test_threads_change_nothing(sketch: sketches.Sketch) -> None:
    d = 300_000
    # In double precision, where the order of a sum shows.
    draw, g = sketch.draw(d, seed=1), random(d, 3, torch.float64)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            s = draw.project(g)
            results.append((s, draw.lift(s), draw.columns(0, 1)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("family", ["BalancedCountSketch", "StridedSigns", "SRHT", "Gaussian", "Coordinates"])
def test_any_shape_and_memory_layout(family: str, code: str) -> None:
    draw = FAMILIES[family](24, 5).draw(24, seed=2)
    flat = random(24, 0, torch.float32)
    s = draw.project(flat)
    for g in (flat.view(2, 3, 4), flat.view(6, 4).mT.contiguous().mT, flat.repeat_interleave(2)[::2]):
        assert torch.equal(draw.project(g), s)
    parameter = torch.nn.Parameter(flat.clone().view(4, 6))
    assert not draw.project(parameter).requires_grad
    expected = draw.lift(s)
    assert expected.shape == (24,)
    for out in (
        torch.empty(4, 6),
        torch.empty(6, 4).mT,
        torch.empty(48)[::2],
        torch.empty(8, 6)[::2],
        parameter,
    ):
        assert draw.lift(s, out=out) is out
        assert torch.equal(out.detach().reshape(-1), expected)
    assert draw.lift(s.bfloat16()).dtype is torch.bfloat16
    assert torch.equal(draw.lift(torch.stack([s, s], 1)[:, 0]), expected)


def test_half_precision_is_summed_in_single(code: str) -> None:
    """Thousands of ones in bfloat16: a sum kept in bfloat16 would stop at 256."""
    draw = sketches.StridedSigns(rank=1).draw(4096, seed=0)
    signs = draw.columns(dtype=torch.bfloat16)[0]
    assert draw.project(signs).item() == 4096
    repeated = sketches.Coordinates(rank=4096, replace=True)
    draw = repeated.draw(4096, seed=0)
    lifted = draw.lift(torch.ones(4096), out=torch.empty(4096, dtype=torch.float16))
    torch.testing.assert_close(lifted.double(), draw.columns(dtype=torch.float64).sum(0), rtol=1e-3, atol=0)


def test_no_half_of_a_pair_is_lost_without_a_compiler_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = native.kernels()
    if compiled is None:
        pytest.skip("there is no C compiler")
    monkeypatch.delitem(compiled._types, torch.float16, raising=False)
    draw = sketches.BalancedCountSketch(rank=2).draw(8, seed=0)
    g = torch.arange(8, dtype=torch.float16)
    torch.testing.assert_close(draw.project(g), draw.project(g.float()))


def test_infinities_and_nan_pass_through(code: str) -> None:
    draw = sketches.BalancedCountSketch(rank=2).draw(4, seed=0)
    g = torch.tensor([1.0, float("nan"), 1.0, 1.0])
    assert draw.project(g).isnan().sum() == 1
    assert draw.lift(torch.tensor([float("inf"), 1.0])).isinf().sum() == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_mistakes_are_named(family: str) -> None:
    sketch = FAMILIES[family](6, 2)
    draw = sketch.draw(6)
    r = draw.rank
    with pytest.raises(ValueError, match=r"g of shape \(5,\) is not allowed; it must have 6 entries"):
        draw.project(torch.zeros(5))
    with pytest.raises(ValueError, match=f"s of shape .* is not allowed; it must have {r} entries"):
        draw.lift(torch.zeros(r + 1))
    with pytest.raises(ValueError, match=r"out of shape .* is not allowed; it must have 6 entries"):
        draw.lift(torch.zeros(r), out=torch.zeros(7))
    with pytest.raises(TypeError, match=r"g of dtype torch.complex64 is not allowed"):
        draw.project(torch.zeros(6, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"s of dtype torch.int64 is not allowed"):
        draw.lift(torch.zeros(r, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"dtype = torch.int32 is not allowed"):
        draw.columns(dtype=torch.int32)
    with pytest.raises(ValueError, match=f"stop = {r + 1} is not allowed"):
        draw.columns(0, r + 1)
    for dimension in (0, -1, 2.5):
        with pytest.raises(ValueError, match="dimension"):
            sketch.draw(dimension)


@pytest.mark.parametrize("family", ["Haar", "BalancedCountSketch", "StridedSigns", "Coordinates", "SRHT"])
def test_ranks_and_ratios(family: str) -> None:
    cls = getattr(sketches, family)
    with pytest.raises(ValueError, match="rank = 5 is not allowed in dimension 4"):
        cls(rank=5).draw(4)
    with pytest.raises(TypeError, match="either rank"):
        cls()
    with pytest.raises(TypeError, match="either rank"):
        cls(rank=2, ratio=2)
    for rank in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="rank"):
            cls(rank=rank)
    for ratio in (0.5, float("nan"), float("inf"), "8"):
        with pytest.raises(ValueError, match="ratio"):
            cls(ratio=ratio)
    assert [cls(ratio=4).rank_in(d) for d in (1, 4, 5, 100)] == [1, 1, 2, 25]
