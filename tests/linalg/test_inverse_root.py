"""Inverse p-th roots: values, shifts, what happens to matrices that have none, and derivatives."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from positive_definite import log_uniform, matrices, power, relative, with_spectrum
from torch import Tensor

from hasten.linalg import inv_root, inv_sqrtm, symmetric
from hasten.linalg.inverse_root import divided_differences, newton

METHODS = ("eigh", "newton")


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 8),
    stack=st.sampled_from([(), (3,), (2, 2)]),
    p=st.integers(1, 8),
    condition=st.floats(1, 1e4),
    seed=st.integers(0, 10**6),
)
def test_powers_are_what_they_should_be(
    method: str, n: int, stack: tuple[int, ...], p: int, condition: float, seed: int
) -> None:
    a = matrices(n, condition, stack, seed)
    before = a.clone()
    root = inv_root(a, p, method=method)
    one = torch.eye(n, dtype=torch.float64).expand_as(a)
    assert relative(torch.linalg.matrix_power(root, p) @ a, one) < 1e-12 * condition
    assert torch.equal(root, root.mT)
    assert torch.equal(a, before)


def test_p_need_not_be_an_integer() -> None:
    a = matrices(6, 50.0)
    root = inv_root(a, 2.5)
    assert relative(torch.linalg.matrix_power(root, 5) @ a @ a, torch.eye(6, dtype=torch.float64)) < 1e-11


@pytest.mark.parametrize(
    ("condition", "eigh", "iteration", "wide"),
    [(1e2, 3e-6, 2e-6, 2e-7), (1e4, 5e-4, 3e-5, 1e-5), (1e6, 6e-2, 2e-3, 4e-4), (1e8, 0.6, 0.2, 2e-2)],
)
def test_accuracy_of_the_inverse_fourth_root_in_float32(
    condition: float, eigh: float, iteration: float, wide: float
) -> None:
    """By eigh, by Newton, and by eigh in float64 of the same float32 matrix; in float64 all of them agree.

    Decompositions in float32 now and then miss small eigenvalues by 3e-6 λ_max, ten times the usual: three of the
    four matrices of condition 1e4 come out at 2e-5, the fourth at 3e-4.
    """
    values = log_uniform(64, condition, (4,))
    a, v = with_spectrum(values)
    exact = power(values, v, -0.25)
    found = [
        inv_root(a.float(), 4),
        inv_root(a.float(), 4, method="newton"),
        inv_root(a.float(), 4, dtype=torch.float64),
    ]
    for root, bound in zip(found, (eigh, iteration, wide), strict=True):
        assert root.dtype == torch.float32
        assert bound / 20 < relative(root, exact) < bound
    for method in METHODS:
        assert relative(inv_root(a, 4, method=method), exact) < 1e-16 * condition + 1e-13


def test_both_methods_agree_beside_ill_conditioned_neighbours() -> None:
    a = torch.stack([matrices(8, 10.0), matrices(8, 1e9, seed=1), 1e-5 * matrices(8, 2.0, seed=2)])
    by_newton = newton(a, 4)
    assert by_newton.isfinite().all()
    for one, found in zip(a, by_newton, strict=True):
        assert torch.equal(newton(one, 4), found)
        assert relative(inv_root(one, 4), found) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_shifts(method: str) -> None:
    values = torch.tensor([[0.0, 1.0, 2.0, 10.0], [1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    a, v = with_spectrum(values)
    assert relative(inv_root(a, 4, 0.5, method=method), power(values + 0.5, v, -0.25)) < 1e-13
    lifted = values + 0.1 * values[:, -1:] + 1e-3
    assert relative(inv_root(a, 4, 1e-3, 0.1, method=method), power(lifted, v, -0.25)) < (
        1e-13 if method == "eigh" else 1e-3  # λ_max by power iteration, 32 steps
    )


@pytest.mark.parametrize("method", METHODS)
def test_negative_eigenvalues_are_lifted_to_eps(method: str) -> None:
    values = torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64)
    a, v = with_spectrum(values)
    assert relative(inv_root(a, 2, 0.25, method=method), power(values + 1.25, v, -0.5)) < 1e-13


@pytest.mark.parametrize("method", METHODS)
def test_one_bad_matrix_does_not_disturb_the_others(method: str) -> None:
    good = matrices(3, 5.0).float()
    bad = good.clone()
    bad[0, 1] = torch.nan
    endless = good.clone()
    endless[1, 1] = torch.inf
    stack = torch.stack([good, bad, torch.zeros(3, 3), endless])
    found = inv_root(stack, 4, method=method)
    assert relative(found[0], inv_root(good, 4, method=method).double()) < 1e-6
    assert found[1:].isnan().all()
    before = draw(4, 3, 3).float()
    kept = inv_root(stack, 4, fallback=before, method=method)
    assert torch.equal(kept[0], found[0])
    assert torch.equal(kept[1:], before[1:])
    assert torch.equal(inv_root(stack, 4, fallback=torch.eye(3), method=method)[2], torch.eye(3))


def test_zero_matrices_have_roots_with_eps() -> None:
    nothing = torch.zeros(2, 3, 3)
    assert torch.allclose(inv_root(nothing, 4, 1e-12), 1e3 * torch.eye(3).expand(2, 3, 3))
    assert inv_root(nothing, 4, relative_eps=1e-6).isnan().all()


def test_what_fails_in_float32_is_taken_again_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    decompose, tried = torch.linalg.eigh, []

    def refuses_float32(a: Tensor) -> tuple[Tensor, Tensor]:
        tried.append((a.dtype, a.ndim))
        if a.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return decompose(a)

    a = matrices(4, 10.0, (2,)).float().requires_grad_()
    expected = inv_root(a, 4)
    (gradient,) = torch.autograd.grad(expected.sum(), a)
    monkeypatch.setattr(torch.linalg, "eigh", refuses_float32)
    found = inv_root(a, 4)
    assert [dtype for dtype, _ in tried] == [torch.float32] * 3 + [
        torch.float64
    ]  # the stack, each, the stack
    assert relative(found, expected.double()) < 1e-6
    assert relative(torch.autograd.grad(found.sum(), a)[0], gradient.double()) < 1e-5


def test_where_float64_fails_too_the_fallback_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    decompose = torch.linalg.eigh
    a = matrices(4, 10.0, (3,)).float()

    def refuses_the_second(x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim == 3 or torch.equal(x.float(), (a[1] + a[1].mT) / 2):
            raise torch.linalg.LinAlgError("did not converge")
        return decompose(x)

    expected = inv_root(a, 4)
    monkeypatch.setattr(torch.linalg, "eigh", refuses_the_second)
    found = inv_root(a, 4, fallback=torch.zeros(4, 4))
    assert torch.equal(found[1], torch.zeros(4, 4))
    assert relative(found[[0, 2]], expected[[0, 2]].double()) < 1e-6
    values, _ = symmetric.eigh(a)
    assert values.isnan().all(-1).tolist() == [False, True, False]


def test_other_failures_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(a: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.linalg, "eigh", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        inv_root(torch.eye(2), 2)


@pytest.mark.parametrize(
    ("method", "eps", "relative_eps"),
    [("eigh", 0, 0), ("eigh", 0.1, 0.2), ("newton", 0, 0), ("newton", 0.1, 0)],
)
def test_gradcheck(method: str, eps: float, relative_eps: float) -> None:
    a = matrices(4, 30.0, (2,)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: inv_root(a, 3, eps, relative_eps, method=method), (a,), check_forward_ad=True
    )


def test_gradcheck_with_a_negative_eigenvalue() -> None:
    a = with_spectrum(torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64))[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda a: inv_root(a, 2.5, 0.25, 0.1), (a,), check_forward_ad=True)


@pytest.mark.parametrize("method", METHODS)
def test_the_square_root_is_the_special_case(method: str) -> None:
    a, weights = matrices(6, 30.0).requires_grad_(), draw(6, 6)
    found, reference = inv_root(a, 2, method=method), inv_sqrtm(a)
    assert relative(found, reference.detach()) < 1e-12
    gradients = [torch.autograd.grad((root * weights).sum(), a)[0] for root in (found, reference)]
    assert relative(*gradients) < 1e-11


@pytest.mark.parametrize("method", METHODS)
def test_equal_eigenvalues_have_gradients(method: str) -> None:
    a, weights = (16 * torch.eye(3, dtype=torch.float64)).requires_grad_(), draw(3, 3)
    (found,) = torch.autograd.grad((inv_root(a, 4, method=method) * weights).sum(), a)
    assert relative(found, -(weights + weights.mT) / 2 / 4 / 32) < 1e-13


def test_matrices_without_a_root_have_no_gradient() -> None:
    a = torch.stack([torch.zeros(2, 2), torch.full((2, 2), torch.nan), torch.eye(2)]).requires_grad_()
    (found,) = torch.autograd.grad(inv_root(a, 2, fallback=torch.eye(2)).sum(), a)
    assert torch.equal(found[:2], torch.zeros(2, 2, 2))
    assert torch.allclose(found[2], torch.full((2, 2), -0.5))


@pytest.mark.parametrize("method", METHODS)
def test_function_transforms(method: str) -> None:
    a = matrices(3, 5.0, (4,))
    assert torch.equal(
        torch.func.vmap(lambda a: inv_root(a, 3, method=method))(a), inv_root(a, 3, method=method)
    )
    forward, reverse = (
        transform(lambda a: inv_root(a, 3, 0.1, 0.1))(a[0]).reshape(9, 9)
        for transform in (torch.func.jacfwd, torch.func.jacrev)
    )
    assert relative(forward, reverse) < 1e-12


def test_a_second_derivative_is_refused() -> None:
    """In every order of the modes, and not silently zero."""
    a = matrices(3, 5.0).requires_grad_()
    (gradient,) = torch.autograd.grad(inv_root(a, 4).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="inv_root has no second derivative"):
        (gradient.sum() + a.sum()).backward()
    for outer in (torch.func.jacfwd, torch.func.jacrev):
        for inner in (torch.func.jacfwd, torch.func.jacrev):
            with pytest.raises(RuntimeError, match="inv_root has no second derivative"):
                outer(inner(lambda a: inv_root(a, 4).sum()))(a.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 1e-15, 1e-7, 1e-3, 1.0, 1e6])
def test_divided_differences_do_not_cancel(gap: float, dtype: torch.dtype) -> None:
    values = torch.tensor([3.0, 3.0 * (1 + gap)], dtype=dtype)
    found = divided_differences(values, 4)[0, 1].double()
    with localcontext() as context:
        context.prec = 60
        a, b = (Decimal(float(x)) for x in values)
        power = Decimal(-1) / 4
        exact = power * a ** (power - 1) if a == b else (a**power - b**power) / (a - b)
    assert float(found) == pytest.approx(float(exact), rel=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 0)])
def test_nothing_to_do(method: str, shape: tuple[int, ...]) -> None:
    a = torch.zeros(shape, requires_grad=True)
    inv_root(a, 2, 1e-6, 1e-6, method=method).sum().backward()
    assert a.grad is not None
    assert a.grad.shape == shape


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(2, 3), 2), {}, r"a of shape \(2, 3\) is not allowed"),
        ((torch.eye(2).half(), 2), {}, "float16.* must be in torch.float32 or torch.float64"),
        ((torch.eye(2), 0), {}, r"p = 0 is not allowed; it must be a number in \(0, inf\)"),
        ((torch.eye(2), True), {}, "p = True"),
        ((torch.eye(2), 2, -1e-3), {}, "eps = -0.001 is not allowed"),
        ((torch.eye(2), 2, float("nan")), {}, "eps = nan"),
        ((torch.eye(2), 2, 0.0, -1.0), {}, "relative_eps = -1.0"),
        ((torch.eye(2), 2.5), {"method": "newton"}, "p = 2.5 is not allowed with method='newton'"),
        ((torch.eye(2), 2), {"method": "qr"}, "method = 'qr' is not allowed; it must be one of"),
        ((torch.eye(2), 2), {"dtype": torch.bfloat16}, "dtype = torch.bfloat16 is not allowed"),
    ],
)
def test_mistakes_are_named(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"inv_root: .*{message}"):
        inv_root(*arguments, **options)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_does_not_reach_inside(method: str) -> None:
    a = matrices(6, 10.0).float()
    with torch.autocast("cpu", torch.bfloat16):
        among = inv_root(a, 4, method=method)
    assert torch.equal(among, inv_root(a, 4, method=method))
