"""The bounds: their recursion, their counts of steps, and runs that they must not fall below."""

from __future__ import annotations

import math
from itertools import islice, pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hasten.problems import Quadratic, RidgeLogistic
from hasten.problems.convex import ConvexProblem
from hasten.theory import (
    Accelerated,
    Bound,
    ScheduleC,
    ScheduleS,
    ScheduleU,
    SubspaceDescent,
    fixed_restart_interval,
    importance_constant,
    noisy_bound,
    noisy_smoothness,
)

positive = st.floats(1e-3, 1e3)


@st.composite
def bounds(draw: st.DrawFn, kind: type[Bound] | None = None) -> Bound:
    kind = kind or draw(st.sampled_from([ScheduleC, ScheduleS, ScheduleU, Accelerated, SubspaceDescent]))
    constant, distance = draw(positive), draw(st.floats(0.1, 10.0))
    mu = constant * draw(st.floats(1e-4, 1.0))
    gap = draw(st.floats(0.01, 0.5)) * constant * distance**2
    if kind is ScheduleC:
        return ScheduleC(constant, distance)
    if kind is ScheduleS:
        return ScheduleS(constant, distance, gap, mu)
    mu = draw(st.sampled_from([0.0, mu]))
    if kind is SubspaceDescent:
        return SubspaceDescent(draw(st.floats(1.0, 50.0)), constant, distance, gap, mu)
    return kind(constant, distance, mu)  # type: ignore[call-arg]  # the two that are left take these


@given(bound=bounds(), share=st.floats(-4.0, 1.0))
@settings(max_examples=300, deadline=None)
@example(bound=ScheduleC(2.0, 1.0), share=0.0)
@example(bound=ScheduleS(1.0, 1.0, 0.5, 1.0), share=-3.0)
@example(bound=SubspaceDescent(1.0, 1.0, 1.0, 0.5, 1.0), share=-3.0)
def test_the_count_of_steps_is_the_smallest_that_suffices(bound: Bound, share: float) -> None:
    first = next(value for value in bound.curve(1) if math.isfinite(value))
    accuracy = first * 10**share if first else 1e-3
    steps = bound.iterations(accuracy)
    assert bound.at(steps) <= accuracy
    assert steps == 0 or bound.at(steps - 1) > accuracy


@given(bound=bounds())
@settings(max_examples=100, deadline=None)
def test_bounds_never_rise(bound: Bound) -> None:
    values = bound.curve(60)
    assert len(values) == 61
    assert values == [bound.at(k) for k in range(61)]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(values))


@given(constant=positive, conditioning=st.floats(1e-8, 1.0), warm=st.floats(0.0, 10.0))
@settings(max_examples=100, deadline=None)
def test_the_weights_solve_the_schedules_equation(constant: float, conditioning: float, warm: float) -> None:
    """C a² = (A + a)(B + μa) with B = 1 + μA, whatever the formula of the root."""
    mu = constant * conditioning * (1 - 1e-6)
    weights = list(islice(ScheduleU(constant, 1.0, mu, 1.0, warm).weights(), 60))
    for before, after in pairwise(weights):
        if math.isinf(after):  # a bound of zero
            break
        if mu * before > 1e8:
            assert after / before == pytest.approx(1 / (1 - math.sqrt(mu / constant)), rel=1e-12)
        else:
            assert constant * (after - before) ** 2 == pytest.approx(after * (1 + mu * after), rel=1e-9)


@given(
    constant=positive, conditioning=st.one_of(st.just(0.0), st.floats(1e-6, 0.9)), steps=st.integers(1, 400)
)
@settings(max_examples=100, deadline=None)
def test_the_closed_form_is_above_the_exact_one(constant: float, conditioning: float, steps: int) -> None:
    mu = constant * conditioning
    exact, closed = ScheduleU(constant, 2.0, mu), Accelerated(constant, 2.0, mu)
    assert exact.at(steps) <= closed.at(steps) * (1 + 1e-9)
    if mu == 0:  # and not far above: A_k ≈ (k + 1)²/(4C)
        assert closed.at(steps) <= 2.5 * exact.at(steps)


def test_nearly_a_billion_steps_are_counted_at_once() -> None:
    assert ScheduleC(1e6, 1.0).iterations(1e-11) == pytest.approx(math.sqrt(2e17), abs=2)
    slow = ScheduleS(1e12, 1.0, 1e11, 1e-6)
    assert slow.iterations(1e-3) == pytest.approx(1e9 * math.log(1e14), rel=1e-6)


def three_sequences(problem: ConvexProblem, schedule: str, steps: int) -> list[float]:
    """f(x_k) − f* of the method with whole gradients, written straight from its definition."""
    C, mu = problem.smoothness, problem.strong_convexity
    x = z = problem.start
    A, gaps = 0.0, []
    for k in range(steps + 1):
        gaps.append(float(problem.value(x)) - problem.minimum)
        if schedule == "C":
            theta, beta = 2 / (k + 2), 0.0
            gamma = 1 / (theta * C)
        elif schedule == "S":
            alpha = math.sqrt(mu / C)
            theta, gamma, beta = alpha / (1 + alpha), alpha / mu, alpha
        else:
            B = 1 + mu * A
            b = B + mu * A
            a = (b + math.sqrt(b * b + 4 * (C - mu) * A * B)) / (2 * (C - mu))
            theta, gamma = a * B / (a * B + A * (B + mu * a)), a / (B + mu * a)
            A, beta = A + a, mu * gamma
        y = (1 - theta) * x + theta * z
        gradient = problem.gradient(y)
        x, z = y - gradient / C, (1 - beta) * z + beta * y - gamma * gradient
    return gaps


@pytest.mark.parametrize("schedule", ["C", "S", "U"])
@pytest.mark.parametrize("name", ["inverse-square", "logspace", "clustered"])
def test_nesterov_stays_below_its_bounds(schedule: str, name: str) -> None:
    problem = Quadratic.named(name, 64)
    C, R, mu = problem.smoothness, problem.distance, problem.strong_convexity
    bound = {"C": ScheduleC(C, R), "S": ScheduleS(C, R, problem.gap, mu), "U": ScheduleU(C, R, mu)}[schedule]
    gaps = three_sequences(problem, schedule, 500)
    ratios = [gap / limit for gap, limit in zip(gaps, bound.curve(500), strict=True) if gap > 1e-14]
    assert max(ratios) <= 1
    assert max(ratios) > 0.01  # a bound far above every run would test nothing


def test_gradient_descent_stays_below_its_bound() -> None:
    pytest.importorskip("sklearn", reason="the data are scikit-learn's")
    problem = RidgeLogistic.breast_cancer()
    bound = SubspaceDescent(1.0, problem.smoothness, problem.distance, problem.gap, problem.strong_convexity)
    x = problem.start
    for limit in bound.curve(300):
        assert float(problem.value(x)) - problem.minimum <= limit * (1 + 1e-12)
        x = x - problem.gradient(x) / problem.smoothness


def test_values_by_hand() -> None:
    assert SubspaceDescent(3.0, 2.0, 1.0, 0.25).at(8) == pytest.approx((2 / 2 + 3 * 0.25) / 8)
    assert SubspaceDescent(3.0, 2.0, 1.0, 0.25, 0.5).at(8) == pytest.approx(0.25 * 0.75**8)
    assert ScheduleC(5.0, 3.0).at(1) == pytest.approx(2 * 5 * 9 / 4)
    assert ScheduleS(8.0, 3.0, 2.0, 0.5).at(4) == pytest.approx(0.75**4 * (2 + 0.5 * 9 / 2))
    assert Accelerated(8.0, 3.0, 0.5).at(50) == pytest.approx(8 * 9 / 2 * 0.75**49)
    # a₀ = 1/(C − μ) from A₀ = 0, since C a² = a (1 + μ a).
    assert ScheduleU(4.0, 3.0, 0.5).at(1) == pytest.approx(9 / 2 * 3.5)
    assert ScheduleU(4.0, 3.0, 0.0, gap=2.0, warm_start=5.0).at(0) == pytest.approx((5 * 2 + 9 / 2) / 5)


def test_the_mean_of_sketched_descents_stays_below_its_bound() -> None:
    """Haar sketches, 400 runs at once; the bound must hold for the mean and be met within a small factor."""
    problem = Quadratic.named("inverse-square", 8)
    d, r, runs = 8, 2, 400
    trace = problem.curvature.trace
    smoothness = (d / r) * ((r * d + d - 2) + (d - r) * trace) / ((d - 1) * (d + 2))
    bound = SubspaceDescent(d / r, smoothness, problem.distance, problem.gap, problem.strong_convexity)
    generator = torch.Generator().manual_seed(0)
    x, ratios = problem.start.expand(runs, d), []
    for limit in bound.curve(200):
        ratios.append((float(problem.value(x).mean()) - problem.minimum) / limit)
        P = torch.linalg.qr(torch.randn(runs, d, r, generator=generator, dtype=torch.float64)).Q
        s = P.mT @ problem.gradient(x).unsqueeze(-1)
        x = x - (d / r) / smoothness * (P @ s).squeeze(-1)
    assert 0.05 < max(ratios[1:]) <= 1


def test_importance_sampling_by_hand() -> None:
    assert importance_constant(torch.tensor([4.0, 1.0, 0.25])) == 12.25
    assert importance_constant(torch.full((10,), 2.0)) == pytest.approx(200.0)


@given(values=st.lists(st.floats(0.0, 1e3), min_size=1, max_size=5).filter(any), seed=st.integers(0, 999))
def test_importance_probabilities_are_the_best(values: list[float], seed: int) -> None:
    """(Σ√λ)² is the least that max_i λ_i/p_i² can be, over all probabilities p."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(len(values), generator=generator, dtype=torch.float64) + 1e-3
    p = p / p.sum()
    curvature = torch.tensor(values, dtype=torch.float64)
    assert importance_constant(curvature) <= float((curvature / p**2).max()) * (1 + 1e-9)


@given(constant=st.floats(1.0, 1e4), conditioning=st.floats(1e-6, 1.0))
def test_a_restart_cycle_divides_the_gap_by_e(constant: float, conditioning: float) -> None:
    """From Δ₀, R² ≤ 2Δ₀/μ: schedule U with μ = 0 brings the bound down to Δ₀/e."""
    mu = constant * conditioning
    interval = fixed_restart_interval(constant, mu)
    assert Accelerated(constant, math.sqrt(2 / mu)).at(interval) <= 1 / math.e
    assert (interval - 1) ** 2 < 4 * math.e / conditioning <= interval**2 * (1 + 1e-9)


@given(
    smoothness=st.floats(0.1, 10.0),
    nu=st.floats(1.0, 64.0),
    noise=st.floats(0.01, 10.0),
    distance=st.floats(0.1, 10.0),
    steps=st.integers(200, 5000),
)
def test_the_step_under_noise_is_the_best(
    smoothness: float, nu: float, noise: float, distance: float, steps: int
) -> None:
    problem = {"noise": noise, "distance": distance, "steps": steps}
    chosen = noisy_smoothness(smoothness, nu, **problem)  # type: ignore[arg-type]  # steps is an int
    best = noisy_bound(chosen, nu, **problem)  # type: ignore[arg-type]
    assert chosen >= smoothness
    for factor in (0.5, 0.8, 1.25, 2.0):
        if chosen * factor >= smoothness:
            other = noisy_bound(chosen * factor, nu, **problem)  # type: ignore[arg-type]
            assert best <= other * 1.001


def test_noise_by_hand() -> None:
    # K = 2: 2νR²/(9η) + ησ²(4 + 9)/9
    assert noisy_bound(4.0, 3.0, noise=2.0, distance=5.0, steps=2) == pytest.approx(600 / 9 + 13 / 9)
    assert noisy_smoothness(1.0, 6.0, noise=6.0, distance=2.0, steps=4) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScheduleC(0.0, 1.0), r"ScheduleC: constant = 0.0 is not allowed"),
        (lambda: ScheduleC(1.0, float("inf")), r"ScheduleC: distance = inf"),
        (lambda: ScheduleS(1.0, 1.0, 1.0, 0.0), "ScheduleS: strong_convexity = 0.0"),
        (lambda: ScheduleU(1.0, 1.0, 2.0), "strong_convexity = 2.0 is not allowed; it must be at most"),
        (lambda: Accelerated("x", 1.0), "Accelerated: constant = 'x'"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: SubspaceDescent(1.0, 1.0, 1.0, -1.0), "SubspaceDescent: gap = -1.0"),
        (lambda: ScheduleC(1.0, 1.0).iterations(0.0), "accuracy = 0.0"),
        (lambda: ScheduleU(1.0, 1.0).iterations(-1.0), "accuracy = -1.0"),
        (lambda: fixed_restart_interval(1.0, 0.0), "fixed_restart_interval: strong_convexity = 0.0"),
        (lambda: noisy_smoothness(1.0, 1.0, noise=-1.0, distance=1.0, steps=5), "noise = -1.0"),
        (lambda: noisy_smoothness(1.0, 1.0, noise=1.0, distance=1.0, steps=0), "steps = 0"),
        (lambda: importance_constant(torch.tensor([-1.0])), "importance_constant: smoothness"),
        (lambda: importance_constant(torch.ones(2, 2)), r"shape \(2, 2\)"),
    ],
)
def test_mistakes_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]  # a function of no arguments
