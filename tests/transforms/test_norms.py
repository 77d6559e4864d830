"""The table of norms: duality, unit steps, steepest descent, and the norms as what they are said to measure."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hasten
from hasten.linalg.polar import BACKENDS
from hasten.transforms import NORMS, FrobeniusLMO, NormGeometry

ALL = sorted(NORMS)
SIDES = st.integers(1, 7)


def stack(seed: int, k: int, m: int, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(k, m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


# -- what makes a norm, its dual and its LMO --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), m=SIDES, n=SIDES)
def test_the_lmo_is_in_the_ball_and_attains_the_dual_norm(name: str, seed: int, m: int, n: int) -> None:
    norm, g = NORMS[name], stack(seed, 3, m, n)
    t = norm.lmo(g)
    torch.testing.assert_close(norm.norm(t), torch.ones(3, dtype=g.dtype), atol=1e-12, rtol=0)
    torch.testing.assert_close(inner(g, t), norm.dual(g), atol=0, rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), m=SIDES, n=SIDES)
def test_nothing_in_the_ball_goes_further(name: str, seed: int, m: int, n: int) -> None:
    norm, g, x = NORMS[name], stack(seed, 5, m, n), stack(seed + 1, 5, m, n)
    assert (inner(g, x) <= norm.dual(g) * norm.norm(x) * (1 + 1e-12)).all()
    # nearby, too: from the LMO towards any other point of the ball
    towards = norm.lmo(g) + 0.01 * (x / norm.norm(x).view(-1, 1, 1) - norm.lmo(g))
    assert (inner(g, towards) <= norm.dual(g) * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), m=SIDES, n=SIDES, a=st.floats(-1e6, 1e6).filter(lambda a: abs(a) > 1e-6))
def test_it_is_a_norm(name: str, seed: int, m: int, n: int, a: float) -> None:
    norm, x, y = NORMS[name], stack(seed, 3, m, n), stack(seed + 1, 3, m, n)
    assert (norm.norm(x) > 0).all()
    torch.testing.assert_close(norm.norm(a * x), abs(a) * norm.norm(x), atol=0, rtol=1e-12)
    torch.testing.assert_close(norm.dual(a * x), abs(a) * norm.dual(x), atol=0, rtol=1e-12)
    torch.testing.assert_close(norm.lmo(a * x), math.copysign(1, a) * norm.lmo(x), atol=1e-9, rtol=0)
    assert (norm.norm(x + y) <= (norm.norm(x) + norm.norm(y)) * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), m=SIDES, n=SIDES)
def test_sharp_steps_descend_steepest(name: str, seed: int, m: int, n: int) -> None:
    norm, g = NORMS[name], stack(seed, 4, m, n)

    def objective(step: Tensor) -> Tensor:  # at sharpness 1
        return -inner(g, step) + norm.norm(step).square() / 2

    best = norm.sharp(g)
    torch.testing.assert_close(objective(best), -norm.dual(g).square() / 2, atol=0, rtol=1e-11)
    for size in (1e-3, 1.0):
        perturbed = best + size * stack(seed + 1, 4, m, n)
        assert (objective(perturbed) >= objective(best) - 1e-11 * norm.dual(g).square()).all()


@pytest.mark.parametrize("name", ALL)
def test_each_matrix_of_a_stack_by_itself(name: str) -> None:
    norm, g = NORMS[name], stack(0, 4, 5, 3)
    alone = torch.cat([norm.lmo(g[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(norm.lmo(g), alone, atol=1e-12, rtol=0)
    assert norm.norm(g).shape == norm.dual(g).shape == (4,)


# -- what they measure ------------------------------------------------------------------------------------------------


def rms(x: Tensor) -> Tensor:
    return x.square().mean(-1).sqrt()


def largest(x: Tensor) -> Tensor:
    return x.abs().amax(-1)


LENGTHS = {
    "spectral": (lambda x: x.norm(dim=-1), lambda y: y.norm(dim=-1)),
    "rms_to_rms": (rms, rms),
    "column": (lambda x: x.abs().sum(-1), rms),
    "row": (lambda x: x.norm(dim=-1), largest),
    "rms_to_max": (rms, largest),
    "mean_to_max": (lambda x: x.abs().mean(-1), largest),
    "max_entry": (lambda x: x.abs().sum(-1), largest),
}
"""The lengths of inputs and outputs under which these are operator norms."""


@pytest.mark.parametrize("name", sorted(LENGTHS))
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_operator_norms_are_the_largest_gain(name: str, shape: tuple[int, int]) -> None:
    of_input, of_output = LENGTHS[name]
    w = stack(3, 1, *shape)
    found = NORMS[name].norm(w)[0]

    def gain(x: Tensor) -> Tensor:
        return of_output(x @ w[0].T) / of_input(x)

    n = shape[1]
    # The largest gain is at a singular vector, a row of W, a corner of the ℓ1 ball.
    candidates = torch.cat([torch.linalg.svd(w[0]).Vh, w[0], torch.eye(n, dtype=w.dtype)])
    torch.testing.assert_close(gain(candidates).amax(), found, atol=0, rtol=1e-12)
    assert (gain(stack(4, 1, 200, n)[0]) <= found * (1 + 1e-12)).all()


def test_an_embedding_is_a_linear_layer_of_the_transpose() -> None:
    g = stack(5, 2, 9, 4)
    torch.testing.assert_close(NORMS["embedding"].lmo(g), NORMS["column"].lmo(g.mT).mT)
    torch.testing.assert_close(NORMS["embedding"].norm(g), NORMS["column"].norm(g.mT))
    torch.testing.assert_close(rms(NORMS["embedding"].lmo(g)), torch.ones(2, 9, dtype=g.dtype))


def test_the_nuclear_norm_is_dual_to_the_spectral() -> None:
    g = stack(6, 3, 5, 8)
    torch.testing.assert_close(NORMS["nuclear"].dual(g), NORMS["spectral"].norm(g))
    torch.testing.assert_close(NORMS["nuclear"].norm(g), NORMS["spectral"].dual(g))
    assert (torch.linalg.matrix_rank(NORMS["nuclear"].lmo(g)) == 1).all()


def test_linear_layers_move_outputs_equally_at_any_width() -> None:
    for m, n in ((3, 40), (40, 3), (20, 20)):
        t = NORMS["rms_to_rms"].lmo(stack(7, 1, m, n))[0]
        x = torch.linalg.svd(t).Vh[0]
        torch.testing.assert_close(rms(t @ x) / rms(x), torch.ones((), dtype=t.dtype))


# -- inputs that are special ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_zero_gives_zero(name: str) -> None:
    g = stack(8, 3, 4, 5)
    g[1] = 0
    t = NORMS[name].lmo(g)
    assert (t[1] == 0).all()
    assert (NORMS[name].sharp(g)[1] == 0).all()
    torch.testing.assert_close(NORMS[name].norm(t), torch.tensor([1.0, 0.0, 1.0], dtype=g.dtype))


@pytest.mark.parametrize("name", ["column", "row", "embedding", "rms_to_max"])
def test_zero_rows_and_columns_stay(name: str) -> None:
    g = stack(9, 1, 4, 5)
    g[:, 2], g[:, :, 3] = 0, 0
    t = NORMS[name].lmo(g)
    assert (t[:, 2] == 0).all()
    assert (t[:, :, 3] == 0).all()
    assert (t.abs() > 0).sum() == 12


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_at_the_ends_of_float32(name: str, scale: float) -> None:
    g = stack(10, 2, 6, 4, torch.float32)
    torch.testing.assert_close(NORMS[name].lmo(g * scale), NORMS[name].lmo(g), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["column", "row", "embedding", "rms_to_max", "frobenius"])
@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1.0, 1e20, 1e30])
def test_slices_of_sizes_far_apart(name: str, scale: float) -> None:
    g = stack(16, 2, 6, 5, torch.float32) * scale
    g[0, 1] *= 1e-3
    g[1, :, 2] = 0
    t = NORMS[name].lmo(g)
    torch.testing.assert_close(NORMS[name].norm(t), torch.ones(2), atol=1e-5, rtol=0)
    if name == "row":
        torch.testing.assert_close(t.norm(dim=2), torch.ones(2, 6), atol=1e-5, rtol=0)
    if name == "column":
        expected = torch.full((2, 5), 6**0.5)
        expected[1, 2] = 0
        torch.testing.assert_close(t.norm(dim=1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"nuclear"}))
def test_what_is_not_a_number(name: str) -> None:
    geometry = NormGeometry(name)
    g = stack(11, 1, 4, 5, torch.float32)
    g[0, 1, 2] = math.nan
    t = geometry.direction(g, None, None)
    if isinstance(NORMS[name].ball, type(NORMS["max_entry"].ball)):
        assert t[0, 1, 2] == 0  # as torch.sign has it
    else:
        assert t[0, 1, 2].isnan()


@pytest.mark.parametrize("name", [name for name in ALL if not NORMS[name].matrices])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_tensors_of_any_shape(name: str, shape: tuple[int, ...]) -> None:
    g = torch.randn(3, *shape, dtype=torch.float64)
    t = NORMS[name].lmo(g)
    assert t.shape == g.shape
    torch.testing.assert_close(NORMS[name].norm(t), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close((g * t).reshape(3, -1).sum(1), NORMS[name].dual(g))


# -- the part ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_grain_is_the_smallest_that_serves(name: str) -> None:
    lmo, sharp = NormGeometry(name), NormGeometry(name, mode="sharp")
    assert lmo.grain == ("element" if name == "max_entry" else "matrix" if NORMS[name].matrices else "tensor")
    assert sharp.grain == ("matrix" if NORMS[name].matrices else "tensor")


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_are_near_the_exact_step(backend: str) -> None:
    g = stack(12, 2, 24, 96)
    exact, near = (NormGeometry("spectral", backend=b).direction(g, None, None) for b in ("svd", backend))
    cosine = inner(exact, near) / (exact.flatten(1).norm(dim=1) * near.flatten(1).norm(dim=1))
    assert (cosine > 0.975).all()


def test_sharp_is_the_dual_norm_times_the_lmo() -> None:
    g = stack(13, 2, 6, 4)
    sharp = NormGeometry("rms_to_rms", "sharp", "svd").direction(g, None, None)
    lmo = NormGeometry("rms_to_rms", "lmo", "svd").direction(g, None, None)
    torch.testing.assert_close(sharp, NORMS["rms_to_rms"].dual(g).view(-1, 1, 1) * lmo)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "spectre"}, "norm = 'spectre' is not allowed; it must be one of 'max_entry'"),
        ({"mode": "flat"}, "mode = 'flat' is not allowed; it must be one of 'lmo', 'sharp'"),
        ({"backend": "qr"}, "backend = 'qr' is not allowed; it must be one of"),
    ],
)
def test_unknown_options_are_named(options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NormGeometry(**options)


# -- AuON, for what it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (32, 300)])
def test_the_cosh_factor_is_nearly_one(shape: tuple[int, int]) -> None:
    g, gamma = stack(14, 1, *shape), 1.5
    count = g.numel()
    part = FrobeniusLMO(gamma, raw=True)
    n = hasten.numbers.Names(gamma=gamma)
    rho = (g / part.direction(g, None, n)).mean()
    assert abs(rho - math.sqrt(1 + gamma**2 / count)) < 1e-6
    spike = torch.zeros_like(g)
    spike[0, 3, 4] = 7.0
    rho = 7.0 / part.direction(spike, None, n)[0, 3, 4]
    assert abs(rho - math.sqrt(1 + (math.cosh(gamma) ** 2 - 1) / count)) < 1e-12


def test_the_paper_s_form_is_in_the_unit_ball() -> None:
    g = stack(15, 3, 20, 30)
    t = FrobeniusLMO(1.0).direction(g, None, hasten.numbers.Names(gamma=1.0))
    assert (NORMS["frobenius"].norm(t) <= 1).all()
    assert (NORMS["spectral"].norm(t) <= 1).all()
    condition = [torch.linalg.cond(x) for x in (g, t)]
    torch.testing.assert_close(*condition)
    zero = FrobeniusLMO(0.0).direction(g, None, hasten.numbers.Names(gamma=0.0))
    torch.testing.assert_close(zero, NORMS["frobenius"].lmo(g))


def test_the_code_s_form_is_sgd() -> None:
    w, v = (torch.ones(64, 64, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ema = hasten.transforms.EMA(0.95, debias=False)
    auon = hasten.Optimizer([w], ema, FrobeniusLMO(1.5, raw=True), lr=0.24)
    sgd = hasten.Optimizer([v], ema, lr=0.24 / math.sqrt(1 + 1.5**2 / 64**2))
    start = w.detach().clone()
    for k in range(10):
        w.grad = stack(20 + k, 1, 64, 64)[0]
        v.grad = w.grad.clone()
        auon.step()
        sgd.step()
    assert (w - v).norm() < 1e-6 * (w - start).norm()
