"""Square roots and inverse square roots: values, scale, stacks, and derivatives of every kind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from positive_definite import (
    log_uniform,
    lyapunov_reference,
    matrices,
    power,
    relative,
    with_spectrum,
)
from torch import Tensor

from hasten.linalg import inv_sqrtm, sqrtm
from hasten.linalg.square_root import METHODS

EXACT = ("eigh", "newton_schulz")
ROOTS = [sqrtm, inv_sqrtm]


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("method", EXACT)
@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 8),
    stack=st.sampled_from([(), (3,), (2, 2)]),
    condition=st.floats(1, 1e4),
    seed=st.integers(0, 10**6),
)
def test_squares_are_what_they_should_be(
    method: str, n: int, stack: tuple[int, ...], condition: float, seed: int
) -> None:
    a = matrices(n, condition, stack, seed)
    given_a = a.clone()
    s, r = sqrtm(a, method), inv_sqrtm(a, method)
    one = torch.eye(n, dtype=torch.float64).expand_as(a)
    assert s.shape == r.shape == a.shape
    assert relative(s @ s, a) < 1e-13 * condition**0.5
    assert relative(s @ r, one) < 1e-12 * condition
    assert torch.equal(s, s.mT)
    assert torch.linalg.eigvalsh(s).min() > 0
    assert torch.equal(a, given_a)


ERRORS = [
    # method, steps, condition, error of the root, error of the inverse root (None: to rounding)
    ("pade", None, 10, 2e-6, 6e-6),
    ("pade", None, 1e2, 2e-3, 2e-2),
    ("pade", None, 1e4, 3e-2, 0.6),
    ("mpa", None, 10, 2e-2, 4e-2),
    ("mpa", None, 1e2, 7e-2, 0.3),
    ("mpa", None, 1e3, 0.15, 0.7),
    ("mpa", None, 1e4, 0.22, 0.9),
    ("mtp", None, 10, 9e-2, 0.35),
    ("mtp", None, 1e2, 0.25, 0.7),
    ("mtp", None, 1e4, 0.5, 1.0),
    ("newton_schulz", 5, 10, 3e-2, 0.1),
    ("newton_schulz", 5, 1e4, 0.1, 1.0),
    ("newton_schulz", 10, 1e2, 3e-6, 3e-5),
    ("newton_schulz", 10, 1e4, 1e-2, 0.6),
    ("newton_schulz", 20, 1e4, None, None),
]


@pytest.mark.parametrize(("method", "steps", "condition", "root", "inverse"), ERRORS)
def test_accuracy_is_what_the_table_says(
    method: str, steps: int | None, condition: float, root: float | None, inverse: float | None
) -> None:
    """Within the bound, and at least an eighth of it: the tables in the docstrings are neither better nor worse."""
    values = log_uniform(64, condition, (4,))
    a, v = with_spectrum(values)
    for f, exponent, bound in ((sqrtm, 0.5, root), (inv_sqrtm, -0.5, inverse)):
        found = relative(f(a, method, steps), power(values, v, exponent))
        assert found < 1e-12 if bound is None else bound / 8 < found < bound


@pytest.mark.parametrize("condition", [10, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("method", EXACT)
def test_accuracy_in_float32(method: str, condition: float) -> None:
    values = log_uniform(64, condition, (3,))
    a, v = with_spectrum(values)
    for f, exponent in ((sqrtm, 0.5), (inv_sqrtm, -0.5)):
        found = f(a.float(), method)
        assert found.dtype == torch.float32
        # Eigenvalues move by some 3e-7 λ_max with the rounding of A and of its decomposition.
        assert relative(found, power(values, v, exponent)) < 3e-6 + 3e-7 * condition ** (
            0.5 if f is sqrtm else 1
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("f", ROOTS)
def test_symmetries(f, method: str) -> None:
    a = matrices(6, 20.0, (2,))
    found, q = f(a, method), torch.linalg.qr(draw(6, 6)).Q
    assert relative(f(q @ a @ q.mT, method), q @ found @ q.mT) < 1e-12
    assert relative(f(a.mT, method), found) < 1e-15
    skew = draw(2, 6, 6)
    assert relative(f(a + skew - skew.mT, method), found) < 1e-13


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("f", ROOTS)
@pytest.mark.parametrize(("dtype", "exponents"), [(torch.float32, (-36, 36)), (torch.float64, (-300, 300))])
def test_any_unit(f, method: str, dtype: torch.dtype, exponents: tuple[int, int]) -> None:
    a = matrices(5, 10.0)
    sign = 0.5 if f is sqrtm else -0.5
    for e in exponents:
        x = (a * 10.0**e).to(dtype)
        # 400: the condition of N(A/μ), whose linear system is solved by two of the methods.
        rounding = 400 * torch.finfo(dtype).eps
        assert relative(f(x, method).double() * 10.0 ** (-e * sign), f(a, method)) < rounding


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("f", ROOTS)
def test_neighbours_in_a_stack_do_not_matter(f, method: str) -> None:
    """Neither in the value nor in the gradient; a norm over the whole stack would let them."""
    a = matrices(5, 30.0)
    stack = torch.stack([1e6 * matrices(5, 3.0, seed=1), a, 1e-6 * matrices(5, 100.0, seed=2)])
    weights = draw(5, 5)

    def value_and_gradient(x: Tensor, at: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        root = f(x, method)
        (gradient,) = torch.autograd.grad((root[at] * weights).sum(), x)
        return root.detach()[at], gradient[at]

    for alone, among in zip(value_and_gradient(a, ()), value_and_gradient(stack, (1,)), strict=True):
        assert relative(among, alone) < 1e-12


@pytest.mark.parametrize("method", [method for method in METHODS if method != "pade"])
def test_the_gradient_is_the_lyapunov_solution_at_the_root_that_was_returned(method: str) -> None:
    """For weights that are not symmetric too."""
    a, weights = matrices(6, 15.0).requires_grad_(), draw(6, 6)
    s = sqrtm(a, method)
    (found,) = torch.autograd.grad((s * weights).sum(), a)
    assert relative(found, lyapunov_reference(s.detach(), weights)) < 1e-12
    r = inv_sqrtm(a, method)
    (found,) = torch.autograd.grad((r * weights).sum(), a)
    square = (r @ r).detach()
    assert relative(found, -lyapunov_reference(r.detach(), square @ weights @ square)) < 1e-11


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("exponent", [0.5, -0.5])
def test_the_gradient_is_that_through_eigenvectors(method: str, exponent: float) -> None:
    a, weights = matrices(8, 1e3, (3,)).requires_grad_(), draw(3, 8, 8)
    f = sqrtm if exponent > 0 else inv_sqrtm
    (found,) = torch.autograd.grad((f(a, method) * weights).sum(), a)
    values, v = torch.linalg.eigh((a + a.mT) / 2)
    (reference,) = torch.autograd.grad((power(values, v, exponent) * weights).sum(), a)
    assert relative(found, reference) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_equal_eigenvalues_have_gradients(method: str) -> None:
    """Where that through eigenvectors is not a number."""
    a, weights = (4 * torch.eye(3, dtype=torch.float64)).requires_grad_(), draw(3, 3)
    (found,) = torch.autograd.grad((sqrtm(a, method) * weights).sum(), a)
    bound = 2e-3 if method in ("mpa", "mtp") else 1e-13
    assert relative(found, (weights + weights.mT) / 8) < bound


@pytest.mark.parametrize(
    ("method", "condition"), [("eigh", 30.0), ("newton_schulz", 30.0), ("pade", 30.0), ("pade", 1e4)]
)
@pytest.mark.parametrize("f", ROOTS)
def test_gradcheck(f, method: str, condition: float) -> None:
    a = matrices(6, condition).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: f(a, method), (a,), check_forward_ad=True)
    small = matrices(2, condition, (2,)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a: f(a, method), (small,), check_fwd_over_rev=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("f", ROOTS)
def test_function_transforms(f, method: str) -> None:
    a = matrices(3, 5.0, (4,))
    assert torch.equal(torch.func.vmap(lambda a: f(a, method))(a), f(a, method))
    one = a[0]
    forward, reverse = (
        transform(lambda a: f(a, method))(one) for transform in (torch.func.jacfwd, torch.func.jacrev)
    )
    assert relative(forward.reshape(9, 9), reverse.reshape(9, 9)) < 1e-12
    curvature = torch.func.hessian(lambda a: f(a, method).pow(3).sum())(one).reshape(9, 9)
    assert relative(curvature, curvature.mT) < (1 if method in ("mpa", "mtp") else 1e-10)


@pytest.mark.parametrize(("condition", "bound"), [(10, 1e-4), (1e2, 0.1)])
def test_the_gradient_of_the_pade_approximant_is_near_that_of_the_root(
    condition: float, bound: float
) -> None:
    a, weights = matrices(64, condition, (3,)).requires_grad_(), draw(3, 64, 64)
    for f in ROOTS:
        exact, found = (torch.autograd.grad(f(a, m), a, weights)[0] for m in ("eigh", "pade"))
        assert bound / 10 < relative(found, exact) < bound


def test_what_is_not_positive() -> None:
    nothing, negative = torch.zeros(2, 2), torch.diag(torch.tensor([1.0, -1.0]))
    stack = torch.stack([torch.eye(2), torch.full((2, 2), torch.nan), nothing])
    for method in METHODS:
        found = sqrtm(stack, method)
        assert torch.allclose(found[0], torch.eye(2), atol=2e-3)
        assert found[1].isnan().all()
        assert torch.equal(found[2], nothing)
        assert not inv_sqrtm(stack, method)[2].isfinite().any()
    assert sqrtm(negative).isnan().all()
    # What rounding makes negative counts as zero.
    values = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    a, v = with_spectrum(values)
    assert relative(sqrtm(a), power(values, v, 0.5)) < 1e-7


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 0)])
def test_nothing_to_do(method: str, shape: tuple[int, ...]) -> None:
    for f in ROOTS:
        a = torch.zeros(shape, requires_grad=True)
        f(a, method).sum().backward()
        assert a.grad is not None
        assert a.grad.shape == shape


@pytest.mark.parametrize("method", METHODS)
def test_numbers_as_matrices_of_size_one(method: str) -> None:
    four = torch.tensor([[4.0]], dtype=torch.float64)
    assert float(sqrtm(four, method)) == pytest.approx(2)
    assert float(inv_sqrtm(four, method)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3),), r"a of shape \(2, 3\)"),
        ((torch.ones(3),), r"a of shape \(3,\)"),
        ((torch.eye(2, dtype=torch.bfloat16),), "bfloat16.* must be in torch.float32 or torch.float64"),
        ((torch.eye(2, dtype=torch.complex64),), "complex64"),
        (([[1.0]],), "must be a tensor, not list"),
        ((torch.eye(2), "svd"), "method = 'svd' is not allowed; it must be one of 'eigh', 'pade'"),
        ((torch.eye(2), "mpa", 3), "steps = 3 is not allowed with method='mpa'"),
        ((torch.eye(2), "newton_schulz", 0), "steps = 0 is not allowed; it must be an integer of at least 1"),
        ((torch.eye(2), "newton_schulz", True), "steps = True"),
    ],
)
@pytest.mark.parametrize("f", ROOTS)
def test_mistakes_are_named(f, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=f"{f.__name__}: .*{message}" if "list" not in message else message):
        f(*arguments)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("f", ROOTS)
def test_autocast_does_not_reach_inside(f, method: str) -> None:
    a, weights = matrices(6, 10.0).float().requires_grad_(), draw(6, 6).float()
    with torch.autocast("cpu", torch.bfloat16):
        among = f(a, method)
    assert among.dtype == torch.float32
    assert torch.equal(among, f(a, method))
    (gradient,) = torch.autograd.grad(among, a, weights)
    assert torch.equal(gradient, torch.autograd.grad(f(a, method), a, weights)[0])


@pytest.mark.parametrize("f", ROOTS)
def test_the_pade_approximant_is_traced_whole(f) -> None:
    traced = torch.compile(lambda a: f(a, "pade"), backend="eager", fullgraph=True)
    a, weights = matrices(4, 10.0).requires_grad_(), draw(4, 4)
    assert torch.equal(traced(a), f(a, "pade"))
    gradients = [torch.autograd.grad(root, a, weights)[0] for root in (traced(a), f(a, "pade"))]
    assert torch.equal(*gradients)
