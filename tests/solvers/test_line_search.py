"""The strong-Wolfe search: what it accepts, how soon, and that a stack decides as each problem would alone."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.solvers.line_search import StrongWolfe

RULE = StrongWolfe(1e-4, 0.1, 1e-6, 60)


def run(phi, slope, step, rule=RULE, f0=1.0):
    """Search along φ (a function of α with derivative `slope`); α, trials, whether accepted, and all trials."""
    search = rule.begin(f0, slope(0.0), step, 2.2e-16)
    tried = []
    while True:
        tried.append(search.step)
        accepted, failed = rule.learn(search, phi(search.step) - phi(0.0), slope(search.step))
        if accepted or failed:
            return tried[-1], tried, accepted


# φ of Moré & Thuente's first three test functions, and their tables' first trial steps.
def first(a, b=2.0):
    return -a / (a * a + b), (a * a - b) / (a * a + b) ** 2


def second(a, b=0.004):
    return (a + b) ** 5 - 2 * (a + b) ** 4, 5 * (a + b) ** 4 - 8 * (a + b) ** 3


def third(a, b=0.01, n=39):
    if a <= 1 - b:
        start, slope = 1 - a, -1.0
    elif a >= 1 + b:
        start, slope = a - 1, 1.0
    else:
        start, slope = (a - 1) ** 2 / (2 * b) + b / 2, (a - 1) / b
    wave = 2 * (1 - b) / (n * math.pi) * math.sin(n * math.pi / 2 * a)
    return start + wave, slope + (1 - b) * math.cos(n * math.pi / 2 * a)


PUBLISHED = [
    # function, c1, c2, first trial, evaluations and α in Moré & Thuente (1994), tables I-III
    (first, 1e-3, 0.1, 1e-3, 6, 1.4),
    (first, 1e-3, 0.1, 1e-1, 3, 1.4),
    (first, 1e-3, 0.1, 1e1, 1, 10),
    (first, 1e-3, 0.1, 1e3, 4, 37),
    (second, 0.1, 0.1, 1e-3, 12, 1.6),
    (second, 0.1, 0.1, 1e-1, 8, 1.6),
    (second, 0.1, 0.1, 1e1, 8, 1.6),
    (second, 0.1, 0.1, 1e3, 11, 1.6),
    (third, 0.1, 0.1, 1e-3, 12, 1.0),
    (third, 0.1, 0.1, 1e-1, 12, 1.0),
    (third, 0.1, 0.1, 1e1, 10, 1.0),
    (third, 0.1, 0.1, 1e3, 13, 1.0),
]


@pytest.mark.parametrize(("function", "c1", "c2", "step", "evaluations", "found"), PUBLISHED)
def test_the_published_searches(function, c1, c2, step, evaluations, found):
    alpha, tried, accepted = run(
        lambda a: function(a)[0], lambda a: function(a)[1], step, StrongWolfe(c1, c2, 1e-10, 60)
    )
    assert accepted
    assert alpha == pytest.approx(found, abs=0.05 if found < 10 else 0.5)  # two digits are printed
    assert len(tried) == evaluations


@settings(deadline=None, max_examples=200)
@given(
    st.floats(-3, 3),
    st.floats(0.05, 3),
    st.floats(-2, 2),
    st.floats(0.3, 6),
    st.floats(-3, 3),
    st.floats(1e-3, 0.9),
)
def test_what_is_accepted_is_a_strong_wolfe_point(shift, curvature, height, frequency, log_step, c2):
    """φ = a quadratic plus a sine: bounded below, so a strong Wolfe step exists."""

    def phi(a):
        return 0.5 * curvature * (a - shift) ** 2 + height * math.sin(frequency * a)

    def slope(a):
        return curvature * (a - shift) + height * frequency * math.cos(frequency * a)

    if slope(0.0) >= -1e-3:
        return
    rule = StrongWolfe(1e-4, max(c2, 2e-4), 1e-12, 100)
    alpha, tried, accepted = run(phi, slope, 10**log_step, rule, f0=phi(0.0))
    assert accepted
    assert alpha > 0
    assert phi(alpha) <= phi(0.0) + rule.c1 * alpha * slope(0.0) + 1e-14
    assert abs(slope(alpha)) <= rule.c2 * abs(slope(0.0)) * (1 + 1e-12)
    assert len(tried) <= 40


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0.1, 3), st.floats(0.05, 3), st.floats(-3, 3)), min_size=1, max_size=6))
def test_a_stack_decides_as_each_alone(rows):
    shift, curvature, log_step = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)
    )

    def phi(a, s, c):
        return 0.5 * c * (a - s) * (a - s) - 0.1 * (a - s) * (a - s) * (a - s) / (1 + a * a)

    def slope(a, s, c):
        cube, below = (a - s) * (a - s) * (a - s), 1 + a * a
        return c * (a - s) - 0.1 * (3 * (a - s) * (a - s) / below - cube * 2 * a / (below * below))

    usable = [slope(0.0, s, c) < 0 for s, c, _ in rows]
    if not all(usable):
        return
    zero, steps = torch.zeros_like(shift), 10**log_step
    search = RULE.begin(zero + 1, slope(zero, shift, curvature), steps, 2.2e-16)
    over = torch.zeros(len(rows), dtype=torch.bool)
    final, ending, count = zero.clone(), over.clone(), 0
    while not over.all():
        tried = search.step
        accepted, failed = RULE.learn(
            search, phi(tried, shift, curvature) - phi(zero, shift, curvature), slope(tried, shift, curvature)
        )
        news = (accepted | failed) & ~over
        final, ending, over = (
            torch.where(news, tried, final),
            torch.where(news, accepted, ending),
            over | news,
        )
        count += 1
        assert count <= RULE.trials + 1
    for i, (s, c, _) in enumerate(rows):
        alone, _, accepted = run(partial(phi, s=s, c=c), partial(slope, s=s, c=c), float(steps[i]))
        assert final[i].item() == pytest.approx(alone, rel=1e-9)
        assert bool(ending[i]) == accepted


def test_a_trial_that_is_not_finite_is_too_far():
    def phi(a):
        return math.nan if a > 0.3 else (a - 0.2) ** 2

    alpha, tried, accepted = run(phi, lambda a: math.nan if a > 0.3 else 2 * (a - 0.2), 1e3)
    assert accepted
    assert alpha == pytest.approx(0.2, rel=0.11)
    assert len(tried) <= 12


def test_round_off_is_replaced_by_the_trapezoidal_rule():
    """Near a minimiser f is flat to round-off, and its noise must not decide: the gradients do."""
    noise = {0.0: 1.0}

    def phi(a):
        return 1.0 + (2.2e-16 if a not in noise else 0.0)  # a rise by one unit in the last place

    alpha, tried, accepted = run(phi, lambda a: 1e-9 * (a - 1), 1.0)
    assert accepted
    assert alpha == 1.0
    assert len(tried) == 1


def test_a_direction_that_only_rises_fails_soon():
    _, tried, accepted = run(lambda a: a, lambda a: -1.0, 1.0, StrongWolfe(1e-4, 0.9, 0.1, 20))
    assert not accepted
    assert len(tried) <= 20


def test_a_line_that_falls_forever_is_followed_to_the_last_trial():
    alpha, tried, accepted = run(lambda a: -a, lambda a: -1.0, 1.0, StrongWolfe(1e-4, 0.9, 0.1, 20))
    assert accepted
    assert len(tried) == 20
    assert alpha > 1e6
