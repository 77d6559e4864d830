"""The orthogonal polar factor: exact, and by iterations; against plain statements of both."""

from __future__ import annotations

import gc
import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hasten.linalg import polar
from hasten.linalg.coefficients import MUON_PLUS, NS5, Quintic, polar_express, range_of
from hasten.linalg.newton_schulz import FAST, FEW, Norm, newton_schulz
from hasten.linalg.polar import BACKENDS, ITERATIONS, orthogonalize
from hasten.linalg.products import gram, symmetric_product

TRAINING = polar_express(5, safety=1.02, cushion=0.02)
F64 = torch.float64


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(gaussian(columns, rows, seed=seed)).Q.mT


def with_values(values: Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    return (orthonormal(len(values), rows, seed).mT * values) @ orthonormal(len(values), columns, seed + 1)


def exact(x: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return u @ v


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.to(F64) - wanted).norm() / wanted.norm())


def textbook(x: Tensor, quintics: Sequence[Quintic]) -> Tensor:
    """Of a matrix whose norm is at most one."""
    x = x.mT if x.shape[0] > x.shape[1] else x
    for a, b, c in quintics:
        g = x @ x.mT
        x = a * x + (b * g + c * g @ g) @ x
    return x


def stated(x: Tensor, quintics: Sequence[Quintic], norm: Norm, margin: float) -> Tensor:
    """The iteration as in the papers, with the norm computed from singular values or entries."""
    wide = x.mT if x.shape[0] > x.shape[1] else x
    if norm == "rows":
        wide = wide / (wide @ wide.mT).abs().sum(1, keepdim=True).sqrt()
    elif norm == "schatten8":
        wide = wide / torch.linalg.svdvals(wide).pow(8).sum() ** 0.125
    else:
        wide = wide / wide.norm()
    found = textbook(wide / margin, quintics)
    return found.mT if x.shape[0] > x.shape[1] else found


SHAPES = [(5, 5), (4, 7), (7, 4), (5, 20), (1, 6), (6, 1), (90, 300), (270, 280), (256, 400), (400, 256)]


@pytest.mark.parametrize("method", list(ITERATIONS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_iterations_are_the_papers(method: str, shape: tuple[int, int]) -> None:
    """One matrix at a time and in stacks, one step at a time and two, by halves and whole."""
    own = ITERATIONS[method]
    x = torch.stack([gaussian(*shape, seed=s) * scale for s, scale in enumerate((1.0, 1e-5, 3e4))])
    for steps in (1, 2, own.steps):
        quintics = own.quintics(steps)
        found = newton_schulz(x, quintics, own.norm, margin=own.margin)
        for one, wanted in zip(found, x, strict=True):
            wanted = stated(wanted, quintics, own.norm, own.margin)
            torch.testing.assert_close(one, wanted, rtol=1e-9, atol=1e-10)


def test_large_matrices_by_halves() -> None:
    x = gaussian(400, 440)
    wanted = stated(x, TRAINING, "schatten8", 1.02)
    torch.testing.assert_close(
        newton_schulz(x[None], TRAINING, "schatten8", margin=1.02)[0], wanted, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("shape", [(12, 12), (8, 12), (12, 30), (60, 24)], ids=str)
@pytest.mark.parametrize("norm", ["frobenius", "schatten8", "rows"])
def test_a_traced_iteration_is_the_same(shape: tuple[int, int], norm: Norm) -> None:
    """Where numbers cannot be read, matrices are scaled in place of the quintic."""
    x = gaussian(3, *shape, seed=1) * 1e-3
    one_by_one = torch.cat([newton_schulz(m[None], TRAINING, norm, eps=1e-2) for m in x])
    torch.testing.assert_close(newton_schulz(x, TRAINING, norm, eps=1e-2), one_by_one, rtol=1e-11, atol=1e-12)


def test_compiles_in_one_piece() -> None:
    x = gaussian(2, 160, 200)
    compiled = torch.compile(orthogonalize, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, "polar_express"), orthogonalize(x, "polar_express"))


# What the specification lists


def test_singular_values_of_ns5_lie_in_their_band() -> None:
    x = gaussian(256, 1024)
    found = orthogonalize(x.float()[None], "ns5")[0].to(F64)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.65
    assert values.max() < 1.21
    assert torch.cosine_similarity(found.flatten(), exact(x).flatten(), dim=0) > 0.975


@pytest.mark.parametrize("method", BACKENDS)
def test_transposed_and_scaled(method: str) -> None:
    x = gaussian(2, 40, 90)
    f = orthogonalize(x, method)
    torch.testing.assert_close(orthogonalize(x.mT.contiguous(), method).mT, f, rtol=0, atol=1e-11)
    torch.testing.assert_close(orthogonalize(x.mT, method).mT, f, rtol=0, atol=1e-11)
    torch.testing.assert_close(orthogonalize(7.3 * x, method), f, rtol=0, atol=1e-11)
    torch.testing.assert_close(orthogonalize(-x, method), -f, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", BACKENDS)
@pytest.mark.parametrize("shape", [(24, 40), (150, 160), (160, 400)], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e30])
def test_any_scale_in_float32(method: str, shape: tuple[int, int], scale: float) -> None:
    x = gaussian(1, *shape)
    wanted = orthogonalize(x, method, low_precision=False)
    found = orthogonalize((x * scale).float(), method, low_precision=False)
    assert error(found, wanted) < 1e-4
    low = orthogonalize((x * scale).float(), method)
    assert error(low, orthogonalize(x.float(), method).to(F64)) < 0.05


def test_rotated() -> None:
    """Rows rescaled single out a basis on the left; all others do not."""
    x, p, q = gaussian(1, 40, 90), orthonormal(40, 40, 3), orthonormal(90, 90, 4)
    for method in BACKENDS:
        turned = orthogonalize(x @ q, method) - orthogonalize(x, method) @ q
        assert turned.abs().max() < 1e-10, method
        both = orthogonalize(p @ x @ q, method) - p @ orthogonalize(x, method) @ q
        assert (both.norm() / 40**0.5 < 1e-10) == (method != "turbo"), method


@pytest.mark.parametrize("method", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (130, 140), (140, 400)], ids=str)
def test_zero_rank_one_orthonormal_and_nan(method: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    m, n = shape
    zero = torch.zeros(shape, dtype=F64)
    single = zero.clone()
    single[2, 3] = -4.0
    line = gaussian(m, 1) @ gaussian(1, n, seed=1)
    frame = orthonormal(min(m, n), max(m, n))
    frame = frame.mT if m > n else frame
    broken = gaussian(m, n)
    broken[0, 1] = torch.nan
    endless = gaussian(m, n)
    endless[-1, -1] = -torch.inf
    rows = gaussian(m, n)
    rows[1] = 0.0
    given = torch.stack([zero, single, line, frame, rows, broken, endless]).to(dtype)
    kept = given.clone()
    found = orthogonalize(given, method)
    assert torch.equal(given.nan_to_num(), kept.nan_to_num()), "the input is not changed"
    assert found.dtype is dtype
    assert found[0].eq(0).all()
    assert found[:5].isfinite().all()
    assert found[5:].isnan().all()
    assert torch.linalg.matrix_norm(found[:5].to(F64), 2).max() < 1.25
    assert found[4][1].abs().max() < 1e-2
    inner = found[1].clone()
    assert inner[2, 3] == pytest.approx(-1.0, abs=0.35)
    inner[2, 3] = 0
    assert inner.abs().max() < 1e-2
    # Orthonormal input comes back as a multiple of itself.
    along = float((found[3].to(F64) * frame).sum() / min(m, n))
    # All singular values are equal, so what differs is bfloat16's rounding, 2⁻⁹ an entry, raised some ten times.
    assert error(found[3] / along, frame) < (0.045 if dtype is torch.float32 else 1e-6)


@pytest.mark.parametrize(("rows", "published"), [(8, 1.118), (32, 1.068), (256, 0.997), (1024, 0.998)])
def test_an_orthonormal_matrix_is_stretched_as_published(rows: int, published: float) -> None:
    low, high = range_of(TRAINING, rows**-0.5 / 1.02, rows**-0.5 / 1.02)
    assert low == high == pytest.approx(published, abs=6e-4)
    assert 1.018 <= range_of([NS5] * 5, rows**-0.5, rows**-0.5)[0] <= 1.135
    assert range_of(polar_express(8), rows**-0.5, rows**-0.5)[0] == pytest.approx(1.0, abs=1e-9)
    if rows <= 256:
        found = newton_schulz(orthonormal(rows, 2 * rows)[None], TRAINING, margin=1.02)[0]
        torch.testing.assert_close(found, low * orthonormal(rows, 2 * rows), rtol=0, atol=1e-10)
        turbo = orthogonalize(torch.eye(rows, 2 * rows, dtype=F64)[None], "turbo")[0]
        assert turbo[0, 0].item() == pytest.approx(0.994, abs=6e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(-3, 0),
    st.integers(0, 2**31),
    st.sampled_from(["frobenius", "schatten8", "rows"]),
)
def test_norms_bound_singular_values(m: int, n: int, decay: float, seed: int, norm: Norm) -> None:
    """Seen through one step X ← X, of badly conditioned matrices; rank one is where the bound is attained."""
    r = min(m, n)
    x = with_values(torch.logspace(0, decay * 2, r, dtype=F64), m, n, seed)
    (normalised,) = newton_schulz(x[None], [(1.0, 0.0, 0.0)], norm)
    largest = torch.linalg.matrix_norm(normalised, 2).item()
    assert largest <= 1 + 1e-12
    line = gaussian(m, 1, seed=seed) @ gaussian(1, n, seed=seed + 1)
    (normalised,) = newton_schulz(line[None], [(1.0, 0.0, 0.0)], norm)
    assert torch.linalg.matrix_norm(normalised, 2).item() == pytest.approx(1.0, abs=1e-9)
    if norm == "schatten8":
        frobenius = newton_schulz(x[None], [(1.0, 0.0, 0.0)])
        assert largest >= torch.linalg.matrix_norm(frobenius[0], 2).item() - 1e-12


def test_rescaled_rows_save_a_step() -> None:
    x = gaussian(256, 256)
    wanted = exact(x)
    with_rows = error(orthogonalize(x[None], "turbo")[0], wanted)
    without = error(newton_schulz(x[None], MUON_PLUS[-4:])[0], wanted)
    longer = error(orthogonalize(x[None], "muon_plus")[0], wanted)
    assert with_rows < 0.6 * without
    assert with_rows < 1.1 * longer


def test_four_steps_of_polar_express_do_better_than_five_of_ns5() -> None:
    """What the default rests on: the spectra of the specification, in bfloat16, but those that fall as 1/k²."""
    k = torch.arange(1, 257, dtype=F64)
    given = [
        gaussian(256, 256),
        gaussian(256, 512),
        with_values(1 / k, 256, 256),
        gaussian(256, 256) * torch.logspace(0, -2, 256, dtype=F64)[:, None],
        gaussian(256, 20) @ gaussian(20, 256, seed=1) + 0.3 * gaussian(256, 256, seed=2),
    ]
    for x in given:
        ours = error(orthogonalize(x.float()[None])[0], exact(x))
        assert ours < 0.9 * error(orthogonalize(x.float()[None], "ns5")[0], exact(x))


def rounded_up(x: Tensor) -> float:
    """How much larger the norm of a matrix counts in low precision: it is one of `FEW` numbers an octave there."""
    low = x / x.norm()
    low = low.float().bfloat16().to(F64)
    a = low @ low.mT if x.shape[0] <= x.shape[1] else low.mT @ low
    ratio = float(torch.linalg.vector_norm(a @ a)) ** 0.25 / float(a.trace()) ** 0.5
    return float(2 ** (math.ceil(FEW * math.log2(ratio)) / FEW) / ratio)


@pytest.mark.parametrize("method", list(ITERATIONS))
@pytest.mark.parametrize("shape", [(128, 128), (128, 512), (256, 256), (256, 512), (512, 256)], ids=str)
def test_bfloat16_stays_near_float64(method: str, shape: tuple[int, int]) -> None:
    """For singular values from 1 to 1/100; nearer than the textbook's form, or about as near, where fast."""
    own = ITERATIONS[method]
    quintics = own.quintics(own.steps)
    for seed in range(2):
        x = with_values(torch.logspace(0, -2, min(shape), dtype=F64), *shape, seed=seed)
        margin = own.margin * (rounded_up(x) if own.norm == "schatten8" else 1.0)
        reference = newton_schulz(x[None], quintics, own.norm, margin=margin)[0]
        found = orthogonalize(x.float()[None], method)[0].to(F64)
        (normalised,) = newton_schulz(x[None], [(1.0, 0.0, 0.0)], own.norm, margin=margin)
        plain = textbook(normalised.bfloat16(), quintics)
        assert error(found, reference) < 0.035
        plain = plain.mT if shape[0] > shape[1] else plain
        assert error(found, reference) < (1.3 if min(shape) >= FAST else 1.0) * error(plain, reference)
        assert error(found, exact(x)) < error(plain, exact(x)) + 0.01
        assert torch.linalg.matrix_norm(found, 2) < 1.03 * torch.linalg.matrix_norm(reference, 2)


@pytest.mark.parametrize("steps", [4, 5, 6, 8])
def test_bfloat16_does_not_blow_up(steps: int) -> None:
    """Small eigenvalues of the Gram matrix are rounded below zero here: long runs on it alone end at 1e10."""
    k = torch.arange(1, 257, dtype=F64)
    for exponent in (0.25, 0.5, 1.0, 2.0):
        x = with_values(k**-exponent, 256, 512).float()
        low = gaussian(256, 5) @ gaussian(5, 512, seed=1)
        for matrix in (x, x.mT.contiguous(), low.float()):
            found = orthogonalize(matrix[None], "polar_express", steps)[0]
            assert torch.linalg.matrix_norm(found, 2) < 1.25


def test_small_norms_shrink_where_asked_for() -> None:
    x = gaussian(1, 8, 12)
    x = x / x.norm()
    for method in ITERATIONS:
        whole = orthogonalize(x, method, eps=0.5)
        torch.testing.assert_close(whole, orthogonalize(x, method), rtol=0, atol=1e-12)
    shrunk = newton_schulz(1e-9 * x, [NS5], eps=1e-7)
    torch.testing.assert_close(shrunk, textbook(1e-2 * x[0], [NS5])[None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("method", BACKENDS)
def test_empty(method: str, shape: tuple[int, ...]) -> None:
    assert orthogonalize(torch.zeros(shape), method).shape == shape
    assert polar(torch.zeros(shape), method).shape == shape


class Peak(TorchDispatchMode):
    """The most bytes alive at once in what was made since the start."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given, self.alive = given.untyped_storage().data_ptr(), dict[int, int]()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for t in made if isinstance(made, tuple | list) else (made,):
            if not isinstance(t, Tensor):
                continue
            storage = t.untyped_storage()
            key = storage.data_ptr()
            if key != self.given and key not in self.alive:
                self.alive[key] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, key, None)
        self.most = max(self.most, sum(self.alive.values()))
        return made


@pytest.mark.parametrize("shape", [(256, 256), (256, 1024), (1024, 256)], ids=str)
@pytest.mark.parametrize("method", list(ITERATIONS))
def test_memory(method: str, shape: tuple[int, int]) -> None:
    """Besides the result, never more than a copy of one matrix and five of the smaller square in bfloat16."""
    x = gaussian(4, *shape, dtype=torch.float32)
    gc.collect()
    with Peak(x) as peak:
        orthogonalize(x, method)
    copy, square = 4 * x[0].numel(), 2 * min(shape) ** 2
    assert peak.most <= 4 * copy + copy + 5 * square


# Products


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_symmetric_products_by_halves(dtype: torch.dtype) -> None:
    x = gaussian(2, 390, 401, dtype=dtype)
    found = gram(x)
    torch.testing.assert_close(found, x @ x.mT)
    torch.testing.assert_close(found, found.mT, rtol=1e-5, atol=1e-4)
    assert torch.equal(found[0, 100:, :50], found[0, :50, 100:].mT), "mirrored"
    torch.testing.assert_close(gram(x.mT), found)
    torch.testing.assert_close(symmetric_product(found[1], found[1]), found[1] @ found[1])


def test_symmetric_products_by_halves_in_bfloat16() -> None:
    x = gaussian(768, 1536, dtype=torch.float32).bfloat16()
    torch.testing.assert_close(gram(x).float(), (x.float() @ x.float().mT), rtol=1e-2, atol=1.0)
    assert torch.equal(gram(x)[-1, :192], gram(x)[:192, -1])


# The public function


@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (6, 4), (2, 3, 5), (1, 4), (4, 1)], ids=str)
def test_gradients(shape: tuple[int, ...]) -> None:
    x = gaussian(*shape, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(polar, (x,))
    (wanted,) = torch.autograd.grad(polar(x).pow(3).sum(), x)
    (found,) = torch.autograd.grad(polar(x, "polar_express", 12).pow(3).sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_repeated_singular_values_have_a_derivative() -> None:
    """Unlike through the decomposition itself."""
    x = torch.eye(3, dtype=F64).requires_grad_()
    weight = gaussian(3, 3)
    (found,) = torch.autograd.grad((polar(x) * weight).sum(), x)
    torch.testing.assert_close(found, (weight - weight.mT) / 2)


def test_the_factor_of_deficient_rank() -> None:
    """The partial isometry: what the others tend to as well."""
    x = gaussian(6, 2) @ gaussian(2, 9, seed=1)
    found = polar(x)
    torch.testing.assert_close(found @ found.mT @ found, found)
    assert torch.linalg.matrix_rank(found) == 2
    torch.testing.assert_close(found, polar(x, "polar_express", 12), rtol=0, atol=1e-6)
    assert polar(torch.zeros(2, 3)).eq(0).all()


def test_batches_of_any_dimension_and_dtypes() -> None:
    x = gaussian(2, 3, 4, 6)
    torch.testing.assert_close(polar(x)[1, 2], exact(x[1, 2]))
    assert polar(x[0, 0], "ns5").shape == (4, 6)
    low = polar(x.float(), "ns5", dtype=torch.bfloat16)
    assert low.dtype is torch.float32
    assert 1e-4 < error(low, polar(x, "ns5")) < 0.03


def test_more_steps_are_more_exact() -> None:
    x = gaussian(1, 30, 60)
    errors = [error(polar(x, "polar_express", steps), exact(x)) for steps in (1, 2, 6, 7)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "qr"}, "method = 'qr' is not allowed"),
        ({"method": "svd", "steps": 3}, "steps = 3 is not allowed with 'svd'"),
        ({"method": "ns5", "steps": 0}, "steps = 0 is not allowed; it must be a whole number, at least 1"),
        ({"method": "ns5", "steps": 2, "coefficients": [NS5]}, "steps = 2 is not allowed with coefficients"),
        ({"method": "svd", "coefficients": [NS5]}, "coefficients = .* is not allowed with 'svd'"),
        ({"method": "ns5", "coefficients": []}, "coefficients = .* must be .a, b, c. for each step"),
        (
            {"method": "ns5", "coefficients": [(1.0, 2.0)]},
            "coefficients = .* must be .a, b, c. for each step",
        ),
        ({"method": "svd", "dtype": torch.bfloat16}, "dtype = torch.bfloat16 is not allowed"),
        ({"method": "ns5", "dtype": torch.int32}, "dtype = torch.int32 is not allowed"),
    ],
)
def test_what_is_not_allowed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        polar(torch.eye(3), **arguments)


def test_which_tensors_are_not_allowed() -> None:
    for tensor, shown in (
        (torch.ones(3), r"\(3,\)"),
        (torch.eye(3).bfloat16(), "bfloat16"),
        ([[1.0]], "list"),
    ):
        with pytest.raises(ValueError, match=shown):
            polar(tensor)  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_matrices_met() -> None:
    """A factor of the matrix's own among the coefficients would be a new program for every matrix."""

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def meet(count: int) -> None:
        for _ in range(count):
            x = torch.randn(160, 160)
            for method in ITERATIONS:
                orthogonalize(x[None], method)
            orthogonalize((x / (x.norm() + 1e-7))[None], "ns5", eps=1.0)

    meet(3)
    before = resident()
    meet(60)
    assert resident() - before < 30
