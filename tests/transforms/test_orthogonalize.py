"""Orthogonalised geometry: what must hold for every matrix, and how tensors are read as matrices."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hasten
from hasten.transforms import AlignedSecondMoment, NesterovEMA, Orthogonalize

ITERATIONS = ["polar_express", "ns5", "muon_plus", "turbo"]
SHAPES = [(4, 10), (10, 4), (6, 6)]


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def applied(part, d):
    """The part's direction for one matrix or a stack of them, through the engine."""
    matrices = d if d.dim() == 3 else d[None]
    w = torch.zeros_like(matrices, requires_grad=True)
    opt = hasten.Optimizer([{"params": [w], "layout": "stack"}], part, lr=1.0, engine="eager")
    w.grad = matrices.clone()
    opt.step()
    return -w.detach().view_as(d)


def polar(g):
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    return u @ v


def rotation(n, seed):
    return torch.linalg.qr(drawn(n, n, seed=seed)).Q


def test_five_steps_of_the_classic_iteration_end_in_a_band():
    """Singular values in [0.65, 1.21], never one; the direction is the polar factor's."""
    g = drawn(256, 1024, dtype=torch.float32)
    o = applied(Orthogonalize("ns5", scale=None), g)
    values = torch.linalg.svdvals(o)
    assert values.min() > 0.65
    assert values.max() < 1.21
    exact = polar(g)
    assert (o * exact).sum() / o.norm() / exact.norm() > 0.975


@pytest.mark.parametrize("shape", [(4, 10), (10, 4)])
@pytest.mark.parametrize("backend", [*ITERATIONS, "svd"])
def test_transposed_matrices_give_transposed_results(backend, shape):
    g = drawn(*shape)
    part = Orthogonalize(backend, scale=None)
    torch.testing.assert_close(applied(part, g.T.contiguous()), applied(part, g).T, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["polar_express", "ns5", "muon_plus", "svd"])
def test_rotated_matrices_give_rotated_results(backend, shape):
    g, p, q = drawn(*shape), rotation(shape[0], 1), rotation(shape[1], 2)
    part = Orthogonalize(backend)
    torch.testing.assert_close(applied(part, p @ g @ q), p @ applied(part, g) @ q, rtol=1e-9, atol=1e-10)


def test_turbo_turns_with_columns_but_not_with_rows():
    g = drawn(6, 14)
    part = Orthogonalize("turbo", scale=None)
    q, p = rotation(14, 1), rotation(6, 2)
    torch.testing.assert_close(applied(part, g @ q), applied(part, g) @ q, rtol=1e-10, atol=1e-11)
    assert (applied(part, p @ g) - p @ applied(part, g)).norm() > 1e-3


@settings(max_examples=15, deadline=None)
@given(
    power=st.integers(-60, 60), shape=st.sampled_from(SHAPES), backend=st.sampled_from([*ITERATIONS, "svd"])
)
def test_the_size_of_a_matrix_does_not_matter(power, shape, backend):
    g, part = drawn(*shape, dtype=torch.float32), Orthogonalize(backend)
    torch.testing.assert_close(applied(part, g * 2.0**power), applied(part, g), rtol=1e-5, atol=1e-6)


def test_very_small_matrices_shrink_only_with_an_eps():
    g = drawn(4, 6)
    g = 0.5e-7 * g / g.norm()
    kept = applied(Orthogonalize("svd", scale=None), g).norm()
    assert kept == pytest.approx(2.0, rel=1e-9)
    first = (3.4445, -4.7750, 2.0315)

    def expected(x):
        for _ in range(2):
            a = x @ x.T
            x = first[0] * x + (first[1] * a + first[2] * a @ a) @ x
        return x

    two = {"coefficients": (first,) * 2, "scale": None, "eps": 1e-7}
    torch.testing.assert_close(applied(Orthogonalize("ns5", **two), g), expected(g / 1e-7))
    added = applied(Orthogonalize("ns5", eps_on="sum", **two), g)
    torch.testing.assert_close(added, expected(g / 1.5e-7))


@pytest.mark.parametrize("shape", [(12, 12), (12, 30), (48, 12)])
def test_each_convention_fixes_its_own_norm(shape):
    g = drawn(*shape)
    m, n = shape
    matched = applied(Orthogonalize("svd", scale="match_rms_adamw"), g)
    assert matched.square().mean().sqrt().item() == pytest.approx(0.2, rel=1e-12)
    gain = (n / m) ** 0.5  # of a matrix of spectral norm one, from root mean square to root mean square

    def spectral(scale):
        return float(torch.linalg.matrix_norm(applied(Orthogonalize("svd", scale=scale), g), 2))

    assert spectral("rms_to_rms") * gain == pytest.approx(1.0, rel=1e-12)
    assert spectral(None) == pytest.approx(1.0, rel=1e-12)
    assert spectral("original") * gain == pytest.approx(max(1.0, n / m) ** 0.5, rel=1e-12)


def test_it_is_the_step_of_steepest_descent():
    """⟨G, D⟩ + λ/2 ‖D‖₂² is least, −‖G‖_*²/(2λ), along minus the orthogonal factor."""
    g, sharpness = drawn(5, 8), 3.0
    nuclear = torch.linalg.matrix_norm(g, "nuc")

    def objective(d):
        return (g * d).sum() + sharpness / 2 * torch.linalg.matrix_norm(d, 2) ** 2

    best = -nuclear / sharpness * applied(Orthogonalize("svd", scale=None), g)
    assert objective(best).item() == pytest.approx((-(nuclear**2) / (2 * sharpness)).item(), rel=1e-12)
    for seed in range(50):
        assert objective(best + 0.1 * drawn(5, 8, seed=seed)) > objective(best)


@pytest.mark.parametrize("backend", [*ITERATIONS, "svd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_stays_zero_and_nothing_else_becomes_nan(backend, dtype):
    g = drawn(4, 3, 5, dtype=dtype)
    g[1] = 0
    g[2] = torch.outer(g[2, :, 0], g[2, 0])
    for scale in ("original", "match_rms_adamw"):
        o = applied(Orthogonalize(backend, scale=scale), g)
        assert not o[1].any()
        assert o.isfinite().all()
        assert o[2].norm() > 0
    for shape in [(1, 7), (7, 1), (1, 1)]:
        one = drawn(*shape, dtype=dtype)
        o = applied(Orthogonalize(backend, scale=None), one)
        assert (o * one).sum() / o.norm() / one.norm() == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("backend", [*ITERATIONS, "svd"])
def test_nan_stays_in_its_matrix(backend):
    g = drawn(3, 4, 6)
    g[1, 2, 3] = math.nan
    for signs in (False, True):
        o = applied(Orthogonalize(backend, sign_stabilized=signs), g)
        assert o[1].isnan().any()
        assert o[[0, 2]].isfinite().all()
        clean = applied(Orthogonalize(backend, sign_stabilized=signs), g[[0, 2]])
        torch.testing.assert_close(o[[0, 2]], clean, rtol=1e-12, atol=1e-12)


def test_signs_are_another_direction():
    g = drawn(16, 24)
    part = Orthogonalize("svd", sign_stabilized=True, scale=None)
    torch.testing.assert_close(applied(part, g), polar(g.sign()), rtol=1e-12, atol=1e-13)
    cosine = (polar(g.sign()) * polar(g)).sum() / 16
    assert 0.6 < cosine < 0.85


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("backend", "qr", "one of 'polar_express'"),
        ("scale", "rms", "one of 'original'"),
        ("steps", 0, "a whole number"),
        ("steps", True, "a whole number"),
        ("steps", 2.5, "a whole number"),
        ("eps", -1.0, r"a number in \[0, inf\)"),
        ("eps_on", "norm", "one of 'floor', 'sum'"),
        ("coefficients", [(1.0, 2.0)], "three numbers"),
        ("coefficients", [(1.0, 2.0, math.nan)], "three numbers"),
        ("coefficients", [], "three numbers"),
        ("low_precision", "no", "one of False, True"),
        ("sign_stabilized", None, "one of False, True"),
    ],
)
def test_what_is_not_allowed_is_said(argument, value, allowed):
    with pytest.raises(ValueError, match=rf"^Orthogonalize: {argument} = .*{allowed}"):
        Orthogonalize(**{argument: value})


def test_coefficients_say_the_number_of_steps():
    table = [(2.0, -1.5, 0.5)] * 3
    assert Orthogonalize("ns5", coefficients=table) == Orthogonalize("ns5", 3, tuple(table)).__class__(
        "ns5", coefficients=tuple(table)
    )
    with pytest.raises(
        ValueError, match="steps = 4 is not allowed; it must be the number of coefficients, 3"
    ):
        Orthogonalize("ns5", 4, table)
    with pytest.raises(ValueError, match="coefficients is not allowed with backend='svd'"):
        Orthogonalize("svd", coefficients=table)


# -- how tensors are read -----------------------------------------------------------------------------------------


def stepped(tensors, grads, keys):
    params = [t.clone().requires_grad_() for t in tensors]
    opt = hasten.Optimizer(
        [{"params": params, **keys}], NesterovEMA(0.9), Orthogonalize("ns5"), lr=0.1, weight_decay=0.1
    )
    for now in grads:
        for p, g in zip(params, now, strict=True):
            p.grad = g.clone()
        opt.step()
    return [p.detach() for p in params]


WAYS = {
    "a convolution": ((6, 3, 2, 2), {}, lambda x: [x.reshape(6, 12)]),
    "experts": ((3, 4, 5), {"layout": "stack"}, list),
    "equal parts": ((9, 4), {"split": 3}, lambda x: list(x.split(3))),
    "parts of other heights": ((9, 4), {"split": (5, 2, 2)}, lambda x: list(x.split((5, 2, 2)))),
    "groups of a convolution": ((6, 2, 3), {"split": 2}, lambda x: list(x.reshape(6, 6).split(3))),
    "stored transposed": ((4, 9), {"layout": "transposed"}, lambda x: [x.T]),
    "a transposed convolution": (
        (4, 5, 2),
        {"layout": "transposed"},
        lambda x: [x.transpose(0, 1).reshape(5, 8)],
    ),
    "parts stored transposed": ((4, 9), {"layout": "transposed", "split": 3}, lambda x: list(x.T.split(3))),
    "experts of two parts": (
        (2, 6, 5),
        {"layout": "stack", "split": 2},
        lambda x: [p for e in x for p in e.split(3)],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_tensor_moves_as_its_matrices_would(way):
    shape, keys, read = WAYS[way]
    tensors = [drawn(*shape, seed=s) for s in (0, 1)]
    grads = [[drawn(*shape, seed=10 * k + s) for s in (2, 3)] for k in range(3)]
    whole = stepped(tensors, grads, keys)
    apart = stepped(
        [m for t in tensors for m in read(t)], [[m for g in now for m in read(g)] for now in grads], {}
    )
    pieces = [m for t in whole for m in read(t)]
    for a, b in zip(pieces, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_queries_keys_and_values_do_not_mix():
    """Of a fused projection, the rows of one part do not feel the gradient of another."""
    layer = nn.MultiheadAttention(8, 2, bias=False).double()
    moved = []
    for factor in (1.0, 100.0):
        twin = nn.MultiheadAttention(8, 2, bias=False).double()
        twin.load_state_dict(layer.state_dict())
        opt = hasten.Muon(twin, lr=0.1)
        twin.in_proj_weight.grad = (
            drawn(24, 8) * torch.tensor([1.0, factor, 1.0]).repeat_interleave(8)[:, None]
        )
        opt.step()
        moved.append(twin.in_proj_weight.detach())
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-9, atol=1e-10)


# -- AdaMuon's second geometry ------------------------------------------------------------------------------------


def test_the_aligned_second_moment_has_one_size():
    w = torch.zeros(3, 5, 7, dtype=torch.float64, requires_grad=True)
    opt = hasten.Optimizer([{"params": [w], "layout": "stack"}], AlignedSecondMoment(0.9, rms=0.7), lr=1.0)
    path = [w.detach().clone()]
    for k in range(4):
        w.grad = drawn(3, 5, 7, seed=k) * 10.0**k
        w.grad[1] = 0
        opt.step()
        path.append(w.detach().clone())
    for a, b in itertools.pairwise(path):
        size = (b - a).square().mean((1, 2)).sqrt()
        torch.testing.assert_close(
            size, torch.tensor([0.7, 0.0, 0.7], dtype=torch.float64), rtol=1e-10, atol=0
        )
