"""The schedules of the randomized-subspace iterate, and the inequality behind their rates."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hasten.iterates.subspace import convex, strongly_convex, unified
from hasten.sketches import BalancedCountSketch

F64 = torch.float64

constants = st.floats(1e-3, 1e6)
ratios = st.floats(1e-9, 1.0)


@given(C=constants, ratio=st.one_of(st.just(0.0), ratios), steps=st.integers(1, 200))
def test_the_unified_schedule_solves_its_equation(C, ratio, steps):
    mu, A = ratio * C, 0.0
    for _ in range(steps):
        found = unified(A, C, mu)
        B1, a = 1 + mu * found.A, found.A - A
        if mu * A > 1e7 or a <= 1e-6 * A or ratio > 1 - 1e-6:
            return  # a is lost in the rounding of A, or there is nothing left to accelerate
        assert C * a * a == pytest.approx(found.A * B1, rel=1e-6)
        assert found.gamma == pytest.approx(a / B1, rel=1e-6)
        assert found.beta == pytest.approx(mu * found.gamma, rel=1e-6)
        # (1 − β)(1 − θ)/θ = γC − 1 cancels f(y) in the proof
        assert (1 - found.beta) * (1 - found.theta) / found.theta == pytest.approx(
            found.gamma * C - 1, rel=1e-4, abs=1e-6
        )
        A = found.A


@given(C=constants, ratio=ratios)
def test_the_unified_schedule_ends_in_the_strongly_convex_one(C, ratio):
    mu = ratio * C
    steady = strongly_convex(C, mu)
    for A in (1e7 / mu, 1e8 / mu, 1e9 / mu, 1e300):
        found = unified(A, C, mu)
        assert found.theta == pytest.approx(steady.theta, rel=1e-6)
        assert found.gamma == pytest.approx(steady.gamma, rel=1e-6)
        assert found.beta == pytest.approx(steady.beta, rel=1e-6)
        assert math.isfinite(found.A)


@given(C=constants, ratio=st.one_of(st.just(0.0), st.floats(1e-9, 0.99)), steps=st.integers(1, 300))
def test_the_unified_schedule_satisfies_both_bounds(C, ratio, steps):
    mu, A = ratio * C, 0.0
    for _ in range(steps):
        A = unified(A, C, mu).A
        if mu * A > 1e8:
            return
    assert (steps + 1) ** 2 / (4 * C) * (1 - 1e-9) <= A
    assert (1 - math.sqrt(ratio)) ** -(steps - 1) / C * (1 - 1e-9) <= A


def test_the_convex_schedule_is_never_faster_than_its_proof_allows():
    for k in range(2, 500):
        before, now = convex(k - 1, 3.0), convex(k, 3.0)
        assert (1 - now.theta) / now.theta**2 <= 1 / before.theta**2
        assert now.gamma == pytest.approx(1 / (now.theta * 3.0), rel=1e-15)


def every_balanced_sketch():
    """W = PPᵀ for each of the 24 permutations and 16 signs at d = 4, r = 2."""
    for order in itertools.permutations(range(4)):
        for signs in itertools.product((1.0, -1.0), repeat=4):
            P = torch.zeros(4, 2, dtype=F64)
            for place, i in enumerate(order):
                P[i, place // 2] = signs[i]
            yield P @ P.T


def quadratic(generator):
    A = torch.randn(4, 4, generator=generator, dtype=F64)
    L = A @ A.T + 0.1 * torch.eye(4, dtype=F64)
    target = torch.randn(4, generator=generator, dtype=F64)

    def value(x):
        r = x - target
        return 0.5 * (r * (r @ L)).sum(-1)

    return value, lambda x: (x - target) @ L, L, float(torch.linalg.eigvalsh(L)[0]), target


def ridge_logistic(generator):
    rows = torch.randn(12, 4, generator=generator, dtype=F64)
    labels = torch.sign(torch.randn(12, generator=generator, dtype=F64))
    ridge = 0.05
    L = rows.T @ rows / 48 + ridge * torch.eye(4, dtype=F64)

    def value(x):
        return torch.nn.functional.softplus(-labels * (x @ rows.T)).mean(-1) + ridge / 2 * (x * x).sum(-1)

    def gradient(x):
        return -(labels * torch.sigmoid(-labels * (x @ rows.T))) @ rows / 12 + ridge * x

    target = torch.zeros(4, dtype=F64)
    for _ in range(50):
        slope = torch.sigmoid(labels * (target @ rows.T))
        H = (rows * (slope * (1 - slope))[:, None]).T @ rows / 12 + ridge * torch.eye(4, dtype=F64)
        target = target - torch.linalg.solve(H, gradient(target))
    assert float(gradient(target).abs().max()) < 1e-12
    return value, gradient, L, ridge, target


def growth(problem, known_convexity, factor, states):
    """Relative change of A(f(x)−f*) + (B/2)‖z−x*‖² in one step, averaged over all 384 sketches; worst state."""
    generator = torch.Generator().manual_seed(11)
    value, gradient, L, mu, target = problem(generator)
    W = torch.stack(list(every_balanced_sketch()))
    assert W.shape[0] == 384
    sketch = BalancedCountSketch(rank=2)
    smoothness = factor * sketch.expected_smoothness(L)
    mu = mu if known_convexity else 0.0
    C, minimum = sketch.nu(4) * smoothness, value(target)
    x = target + 3 * torch.randn(states, 4, generator=generator, dtype=F64)
    z = target + 3 * torch.randn(states, 4, generator=generator, dtype=F64)
    weights = 10 ** (6 * torch.rand(states, generator=generator, dtype=F64) - 3) / C
    weights[:100] = 0.0
    worst = -math.inf
    for A, xi, zi in zip(weights.tolist(), x, z, strict=True):
        now = unified(A, C, mu)
        y = (1 - now.theta) * xi + now.theta * zi
        G = W @ gradient(y)
        after_x, after_z = y - G / smoothness, (1 - now.beta) * zi + now.beta * y - now.gamma * G
        before = A * (value(xi) - minimum) + (1 + mu * A) / 2 * (zi - target).square().sum()
        after = now.A * (value(after_x) - minimum) + (1 + mu * now.A) / 2 * (after_z - target).square().sum(
            -1
        )
        worst = max(worst, float((after.mean() - before) / before))
    return worst


@pytest.mark.parametrize("problem", [quadratic, ridge_logistic])
@pytest.mark.parametrize("known_convexity", [True, False])
def test_the_potential_does_not_grow_in_exact_expectation(problem, known_convexity):
    """Step (v) of the proof; with a quarter of the smoothness it would be violated."""
    assert growth(problem, known_convexity, 1.0, states=3000) <= 1e-12
    assert growth(problem, known_convexity, 0.25, states=300) > 1e-3
