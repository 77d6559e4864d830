"""S X + X S = G: solved to rounding whatever the condition, and differentiable without end."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from positive_definite import lyapunov_reference, matrices, relative

from hasten.linalg.lyapunov import by_sign, lyapunov


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 7), condition=st.floats(1, 100), seed=st.integers(0, 10**6))
def test_it_solves_the_equation(n: int, condition: float, seed: int) -> None:
    s, g = matrices(n, condition, seed=seed), draw(n, n, seed=seed)
    assert relative(lyapunov(s, g), lyapunov_reference(s, g)) < 1e-12 * condition
    known = torch.linalg.eigh(s)
    assert relative(lyapunov(s, g, (known[0], known[1])), lyapunov_reference(s, g)) < 1e-12 * condition


@pytest.mark.parametrize(
    ("condition", "eight", "twelve", "sixteen"),
    [(10, 1e-6, 1e-13, 1e-13), (1e2, 0.1, 1e-13, 1e-13), (1e3, 1, 1e-2, 1e-13), (1e4, 1, 1, 1e-6)],
)
def test_steps_that_a_condition_needs(condition: float, eight: float, twelve: float, sixteen: float) -> None:
    """Errors after a fixed number of steps, for A = S² of the condition; eight are not enough from 100 on."""
    s, g = matrices(64, condition**0.5), draw(64, 64)
    values, v = torch.linalg.eigh(s)
    exact = v @ ((v.mT @ (g + g.mT) @ v) / 2 / (values[:, None] + values)) @ v.mT
    for steps, bound in ((8, eight), (12, twelve), (16, sixteen)):
        found, settled = by_sign(s, (g + g.mT) / 2, steps)
        assert bound / 1e3 < relative(found, exact) < bound or relative(found, exact) < 1e-13
        assert bool(settled) == (relative(found, exact) < 1e-10)
    assert relative(lyapunov(s, g), exact) < 1e-13


def test_what_the_iteration_does_not_settle_is_still_solved() -> None:
    s, g = matrices(5, 1e7, (2,)), draw(2, 5, 5)
    s[0] = matrices(5, 2.0)
    assert by_sign(s, (g + g.mT) / 2)[1].flatten().tolist() == [True, False]
    for found, one, right in zip(lyapunov(s, g), s, g, strict=True):
        assert relative(found, lyapunov_reference(one, right)) < 1e-7


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale_in_float32(scale: float) -> None:
    s, g = matrices(6, 10.0), draw(6, 6)
    found = lyapunov((s * scale).float(), (g * scale).float())
    assert relative(found, lyapunov_reference(s, g)) < 1e-5


@pytest.mark.parametrize("eigen", [False, True])
def test_derivatives(eigen: bool) -> None:
    s, g = matrices(4, 5.0, (2,)).requires_grad_(), draw(2, 4, 4).requires_grad_()

    def solve(s: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        s = (s + s.mT) / 2
        known = torch.linalg.eigh(s.detach()) if eigen else None
        return lyapunov(s, g, None if known is None else (known[0], known[1]))

    assert torch.autograd.gradcheck(solve, (s, g), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solve, (s, g))
