"""Subspace methods of `minimize`: counted, bounded by theory, and equal to other methods in their limits."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.problems import Quadratic, RidgeLogistic
from hasten.sketches import (
    BalancedCountSketch,
    Curvature,
    Gaussian,
    Haar,
    Identity,
    ImportanceBlocks,
    ImportanceCoordinates,
    StridedSigns,
)
from hasten.solvers import Status, minimize
from hasten.theory import ScheduleC, ScheduleS, ScheduleU, SubspaceDescent, fixed_restart_interval

F64 = torch.float64
NESTEROV, DESCENT, COORDINATES = "subspace-nesterov", "subspace-gradient-descent", "coordinate-descent"


def solve(problem, method=NESTEROV, *, seeds=None, x0=None, jac=True, callback=None, batched=None, **options):
    """A run with the problem's own curvature; with `seeds`, a stack of as many runs from one start."""
    start = problem.start if x0 is None else x0
    if seeds is not None:
        start = start.expand(seeds, -1).contiguous()
    options = {"gtol": 0.0, "smoothness": problem.curvature, **options}
    return minimize(
        problem.value,
        start,
        method=method,
        jac=problem.gradient if jac else None,
        batched=seeds is not None if batched is None else batched,
        callback=callback,
        options={name: value for name, value in options.items() if value is not None},
    )


def averages(problem, method=NESTEROV, *, steps, every=1, seeds=20, until=0.0, **options):
    """(k, mean of f − f* over the seeds) at every so many iterations."""
    found = []

    def note(intermediate_result):
        gap = float(intermediate_result.fun.mean()) - problem.minimum
        found.append((int(intermediate_result.nit[0]), gap))
        if gap <= until:
            raise StopIteration

    solve(problem, method, seeds=seeds, callback=note, maxiter=steps, check_every=every, **options)
    return found


def steps_to(problem, accuracy, method=NESTEROV, *, most, **options):
    """Iterations until the mean gap is at most `accuracy` times its start."""
    every = max(1, most // 300)
    target = accuracy * problem.gap
    step, gap = averages(problem, method, steps=most, every=every, until=target, **options)[-1]
    return step if gap <= target else math.inf


def inverse_square(d=256):
    return Quadratic.named("inverse-square", d)


def biopsies():
    return RidgeLogistic.breast_cancer()


def named(name):
    return lambda: Quadratic.named(name, 256)


@pytest.mark.parametrize(
    ("build", "method", "sketch", "options", "accuracy", "expected"),
    [
        (inverse_square, NESTEROV, Identity(), {"schedule": "convex"}, 1e-3, 603),
        (inverse_square, NESTEROV, BalancedCountSketch(rank=64), {"schedule": "convex"}, 1e-2, 564),
        (named("inverse"), NESTEROV, BalancedCountSketch(rank=16), {"schedule": "convex"}, 1e-3, 388),
        (named("inverse"), DESCENT, BalancedCountSketch(rank=16), {}, 1e-2, 402),
        (named("geometric"), NESTEROV, BalancedCountSketch(rank=16), {"schedule": "convex"}, 1e-3, 334),
        (named("geometric"), DESCENT, BalancedCountSketch(rank=16), {}, 1e-2, 126),
        (named("logspace"), NESTEROV, BalancedCountSketch(rank=8), {"strong_convexity": 1e-4}, 1e-2, 236),
        (named("halves"), NESTEROV, Haar(rank=8), {"strong_convexity": 1e-4}, 1e-2, 99),
        (biopsies, NESTEROV, Haar(rank=4), {"strong_convexity": 1e-3}, 1e-2, 169),
        (biopsies, NESTEROV, BalancedCountSketch(rank=8), {"strong_convexity": 1e-3}, 1e-4, 431),
    ],
)
def test_iteration_counts_of_a_separate_implementation(build, method, sketch, options, accuracy, expected):
    found = steps_to(build(), accuracy, method, most=int(1.3 * expected), seeds=4, sketch=sketch, **options)
    assert found == pytest.approx(expected, rel=0.2)


SKETCHES = [BalancedCountSketch(rank=2), Haar(rank=5), Gaussian(rank=3), StridedSigns(rank=4), Identity()]


@pytest.mark.parametrize("sketch", SKETCHES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("spectrum", ["inverse", "sharply-clustered", "logspace"])
@pytest.mark.parametrize("schedule", ["convex", "unified", "strongly convex", "descent", "warm"])
def test_the_averaged_run_never_exceeds_its_bound(schedule, spectrum, sketch):
    # (With all eigenvalues equal the gap is a product of independent factors: its mean is decided by rare draws.)
    problem = Quadratic.named(spectrum, 16)
    mu, R, gap = problem.strong_convexity, problem.distance, problem.gap
    C, nu = sketch.rate_constant(problem.curvature), sketch.nu(16)
    options = {"sketch": sketch}
    if schedule == "descent":
        method, bound = DESCENT, SubspaceDescent(nu, C / nu, R, gap, mu)
    else:
        method, options["schedule"] = NESTEROV, schedule
        if schedule == "convex":
            bound = ScheduleC(C, R)
        elif schedule == "strongly convex":
            bound, options["strong_convexity"] = ScheduleS(C, R, gap, mu), mu
        elif schedule == "warm":
            bound = ScheduleU(C, R, mu, gap, warm_start=nu**2 / C)
            options |= {"schedule": "unified", "strong_convexity": mu, "warm_start": 1.0}
        else:
            bound, options["strong_convexity"] = ScheduleU(C, R, mu), mu
    course = averages(problem, method, steps=30, every=2, seeds=20, **options)
    curve = bound.curve(30)
    assert len(course) == 15
    assert all(mean <= curve[k] * (1 + 1e-9) for k, mean in course)


def test_importance_sampling_never_exceeds_its_bound():
    problem = Quadratic.named("inverse-square", 16)
    C = float(problem.eigenvalues.sqrt().sum()) ** 2
    course = averages(problem, COORDINATES, steps=90, every=3, seeds=24)
    assert all(mean <= ScheduleC(C, problem.distance).at(k) for k, mean in course)
    # The same as the general method with that sketch: C alone sets its rate.
    other = averages(
        problem,
        steps=90,
        every=3,
        seeds=24,
        sketch=ImportanceCoordinates(problem.curvature),
        schedule="unified",
    )
    for (_, a), (_, b) in zip(course, other, strict=True):
        assert a == pytest.approx(b, rel=1e-9)


def nesterov(problem, steps):
    """x after every step of the two-sequence method, y = x + θ_k(1/θ_{k−1} − 1)(x − x_prev)."""
    x = before = problem.start
    found = []
    for k in range(steps):
        momentum = 2 / (k + 2) * ((k + 1) / 2 - 1) if k else 0.0
        y = x + momentum * (x - before)
        before, x = x, y - problem.gradient(y) / problem.smoothness
        found.append(x)
    return found


@pytest.mark.parametrize("sketch", [Identity(), BalancedCountSketch(rank=12), Haar(rank=12)], ids=repr)
def test_the_full_rank_is_nesterovs_method(sketch):
    problem = Quadratic.named("inverse", 12)
    found = []
    solve(problem, sketch=sketch, schedule="convex", check_every=1, maxiter=500, callback=found.append)
    for ours, theirs in zip(found, nesterov(problem, 500), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", ["convex", "unified"])
def test_forward_mode_learns_what_backpropagation_learns(schedule):
    problem = biopsies()
    options = {"rank": 4, "schedule": schedule, "maxiter": 50, "jac": False}
    back, ahead = (solve(problem, oracle=oracle, **options) for oracle in ("backprop", "forward"))
    torch.testing.assert_close(ahead.x, back.x, rtol=1e-11, atol=1e-13)
    assert ahead.nproj == back.nproj == 200
    assert back.njev == 52
    assert ahead.njev == 2  # at x0, and to report


def test_forward_mode_estimates_what_backpropagation_estimates():
    problem = biopsies()
    options = {"rank": 4, "maxiter": 60, "jac": False, "smoothness": "estimate"}
    back, ahead = (solve(problem, oracle=oracle, **options) for oracle in ("backprop", "forward"))
    torch.testing.assert_close(ahead.x, back.x, rtol=1e-7, atol=1e-9)  # slopes are differenced
    assert ahead.nproj == back.nproj == 6 * 60
    assert ahead.nfev == back.nfev
    assert ahead.fun < 0.3 * math.log(2)


def test_every_evaluation_is_counted():
    problem = Quadratic.named("inverse", 16)
    given = {"sketch": BalancedCountSketch(rank=4), "check_every": 25}
    even = solve(problem, maxiter=100, **given)
    # x0; 100 query points; 4 checks; the gradient at the last one
    assert (even.nit, even.nproj, even.nfev, even.njev) == (100, 400, 106, 102)
    odd = solve(problem, maxiter=110, **given)
    # and the last point
    assert (odd.nit, odd.nproj, odd.nfev, odd.njev) == (110, 440, 117, 113)
    estimated = solve(problem, maxiter=100, smoothness="estimate", **{**given, "sketch": None, "rank": 4})
    assert (estimated.nproj, estimated.nfev, estimated.njev) == (600, 306, 302)


def test_a_stack_counts_the_rank_of_each_problem():
    L = torch.tensor([4.0, 3.0, 1.0, 0.5, 0.5], dtype=F64)
    problem = Quadratic(L, rotate=False)
    found = solve(problem, seeds=4, maxiter=50, sketch=ImportanceBlocks(L, [1, 1, 3]))
    assert all(50 < n < 150 for n in found.nproj.tolist())
    assert len(set(found.nproj.tolist())) > 1
    assert found.nproj[0] == solve(problem, maxiter=50, sketch=ImportanceBlocks(L, [1, 1, 3])).nproj


def test_the_run_ends_where_maxiter_says():
    problem = Quadratic.named("inverse", 16)
    course = []

    def note(intermediate_result):
        course.append(intermediate_result.fun)

    solve(problem, maxiter=37, check_every=1, rank=4, callback=note)
    found = solve(problem, maxiter=37, check_every=25, rank=4)
    assert found.nit == 37
    assert found.status == Status.MAXITER
    assert course[36] < course[24]
    assert found.fun == pytest.approx(course[36], rel=1e-12)
    assert found.fun == pytest.approx(float(problem.value(found.x)), rel=1e-12)
    torch.testing.assert_close(found.jac, problem.gradient(found.x))


def test_it_stops_by_the_gradient():
    problem = Quadratic.named("inverse", 16)
    found = solve(problem, gtol=1e-6, rank=4, strong_convexity=problem.strong_convexity)
    assert found.success
    assert found.nit % 25 == 0
    # A running mean of ‖s‖² estimates ‖∇f‖², and lags behind it while it falls.
    assert float(found.jac.norm()) <= 2e-6


STACKED = {
    "balanced": {"sketch": BalancedCountSketch(rank=3)},
    "Haar": {"sketch": Haar(rank=2), "schedule": "convex"},
    "estimate": {"rank": 3, "smoothness": "estimate"},
    "descent": {"method": DESCENT, "rank": 3},
    "coordinates": {"method": COORDINATES},
    "blocks": {"sketch": ImportanceBlocks(torch.linspace(1.0, 0.1, 10, dtype=F64), [1, 2, 3, 4])},
    "restarts": {"rank": 3, "restart": 10},
    "restarts by value": {"rank": 3, "restart": 5, "restart_by_value": True},
    "strongly convex": {"rank": 3, "schedule": "strongly convex", "strong_convexity": 0.1, "nu": 2.0},
}


@pytest.mark.parametrize("options", STACKED.values(), ids=STACKED.keys())
def test_a_stack_runs_each_problem_by_itself(options):
    """Problem i draws the subspaces of block i, so that the first is as if it were alone."""
    problem = Quadratic(torch.linspace(1.0, 0.1, 10, dtype=F64), rotate=False)
    starts = torch.randn(4, 10, dtype=F64)
    common = {"maxiter": 60, "check_every": 7, **options}
    together = solve(problem, x0=starts, batched=True, **common)
    alone = solve(problem, x0=starts[0], **common)
    torch.testing.assert_close(together.x[0], alone.x, rtol=1e-9, atol=1e-11)
    assert together.fun[0] == pytest.approx(alone.fun, rel=1e-8)
    for count in ("nit", "nfev", "njev", "nproj"):
        assert together[count][0] == alone[count]
    fewer = solve(problem, x0=starts[:2], batched=True, **common)
    torch.testing.assert_close(together.x[:2], fewer.x, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(*solve(problem, x0=starts[:1].repeat(2, 1), batched=True, **common).x)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("options", STACKED.values(), ids=STACKED.keys())
def test_single_precision_stays_single_and_converges(options, batched):
    problem = Quadratic(torch.linspace(1.0, 0.1, 10, dtype=F64), rotate=False)
    x0 = torch.zeros((2, 10) if batched else 10, dtype=torch.float32)
    minimiser, L = problem.minimiser.float(), problem.eigenvalues.float()
    options = {"smoothness": L, "gtol": 0.0, "maxiter": 250, **options}
    found = minimize(
        lambda x: 0.5 * (L * (x - minimiser).square()).sum(-1),
        x0,
        method=options.pop("method", NESTEROV),
        batched=batched,
        options=options,
    )
    assert found.x.dtype == found.jac.dtype == torch.float32
    assert torch.as_tensor(found.fun).max() < 1e-3 * problem.gap


def test_estimating_the_smoothness_is_no_slower_than_knowing_it():
    """5.1 times fewer calls than full Nesterov instead of 3.9."""
    found = steps_to(inverse_square(), 1e-2, most=1150, seeds=4, rank=16, smoothness="estimate")
    assert found == pytest.approx(280 * 16 / 5.1, rel=0.2)


def test_restarts_at_the_safe_interval_divide_the_gap_by_e_each():
    problem = Quadratic.named("logspace", 32)
    problem = Quadratic(problem.eigenvalues.clamp(min=1e-2), rotate=False, minimiser=problem.minimiser)
    sketch = BalancedCountSketch(rank=8)
    interval = fixed_restart_interval(sketch.rate_constant(problem.curvature), problem.strong_convexity)
    course = averages(problem, steps=4 * interval, every=interval, seeds=8, sketch=sketch, restart=interval)
    gaps = [problem.gap, *(gap for _, gap in course)]
    assert len(gaps) == 5
    assert all(after <= before / math.e for before, after in itertools.pairwise(gaps))


def test_restarts_help_where_strong_convexity_is_not_known():
    problem = Quadratic(torch.logspace(0, -3, 32, dtype=F64), rotate=False)
    common = {"most": 2000, "seeds": 1, "rank": 8}
    plain, by_value, known = (
        steps_to(problem, 1e-8, **common, **options)
        for options in (
            {},
            {"restart": 50, "restart_by_value": True},
            {"strong_convexity": problem.strong_convexity},
        )
    )
    assert known < by_value < 0.7 * plain


def test_a_warm_start_is_faster_early():
    problem = Quadratic.named("inverse", 256)
    cold, warm = (
        steps_to(problem, 1e-1, most=250, seeds=4, rank=8, warm_start=value) for value in (0.0, 1.0)
    )
    assert 0.5 < warm / cold < 0.95


def test_half_of_nu_takes_a_quarter_fewer_steps():
    problem = Quadratic.named("inverse-square", 64)
    full, half, own = (
        steps_to(problem, 1e-2, most=400, seeds=8, rank=8, schedule="convex", nu=nu)
        for nu in (8.0, 4.0, None)
    )
    assert full == own
    assert 0.68 < half / full < 0.78


@given(
    scale=st.integers(-5, 5),
    rank=st.integers(1, 6),
    schedule=st.sampled_from(["convex", "unified"]),
    method=st.sampled_from([NESTEROV, DESCENT, COORDINATES]),
    eigenvalues=st.lists(st.floats(1e-3, 1.0), min_size=6, max_size=6),
)
@settings(max_examples=25, deadline=None)
def test_iterates_do_not_depend_on_the_units_of_f(scale, rank, schedule, method, eigenvalues):
    """A power of four leaves every rounding as it is, also of roots."""
    own = {NESTEROV: {"rank": rank, "schedule": schedule}, DESCENT: {"rank": rank}, COORDINATES: {}}[method]
    minimiser = torch.linspace(-1, 1, 6, dtype=F64)
    one, other = (
        solve(
            Quadratic(factor * torch.tensor(eigenvalues, dtype=F64), rotate=False, minimiser=minimiser),
            method,
            maxiter=30,
            **own,
        )
        for factor in (1.0, 4.0**scale)
    )
    assert torch.equal(one.x, other.x)
    assert one.nproj == other.nproj == 30 * (1 if method == COORDINATES else rank)


def test_seeds_choose_the_subspaces():
    problem = Quadratic.named("inverse", 16)
    first, again, other = (solve(problem, rank=2, maxiter=50, seed=seed).x for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("method", [NESTEROV, DESCENT, COORDINATES])
@pytest.mark.parametrize("oracle", ["backprop", "forward"])
def test_one_variable(method, oracle):
    found = minimize(
        lambda x: 2 * (x - 3).square().sum(),
        torch.zeros(1, dtype=F64),
        method=method,
        options={"smoothness": torch.tensor([4.0]), "oracle": oracle, "check_every": 1},
    )
    assert found.success
    torch.testing.assert_close(found.x, torch.tensor([3.0], dtype=F64))


@pytest.mark.parametrize("method", [NESTEROV, DESCENT])
def test_the_default_learns_an_eighth_and_estimates(method):
    problem = Quadratic.named("inverse", 20)
    found = solve(problem, method, smoothness=None, maxiter=800)
    assert found.nproj == 800 * (3 + 2)
    assert found.fun < 1e-3 * problem.gap


def test_the_solution_has_the_structure_of_the_start():
    def f(x):
        return (x["a"] - 1).square().sum() + (x["b"][0] + 2).square().sum()

    x0 = {"a": torch.zeros(2, 3), "b": [torch.zeros(())]}
    found = minimize(f, x0, method=NESTEROV, options={"rank": 7, "smoothness": 2.0})
    assert found.success
    torch.testing.assert_close(found.x, {"a": torch.ones(2, 3), "b": [torch.tensor(-2.0)]})


@pytest.mark.parametrize("method", [NESTEROV, DESCENT, COORDINATES])
def test_a_start_at_the_minimum_needs_no_subspace(method):
    problem = Quadratic.named("inverse", 8)
    found = solve(problem, method, x0=problem.minimiser)
    assert found.success
    assert (found.nit, found.nproj, found.nfev) == (0, 0, 1)


@pytest.mark.parametrize("smoothness", [None, 1.0])
def test_a_gradient_that_vanishes_later_does_no_harm(smoothness):
    """Round-off leaves G = 0 exactly, where the curvature along G is 0/0."""
    L = torch.ones(4, dtype=F64)
    problem = Quadratic(L, rotate=False, minimiser=torch.ones(4, dtype=F64))
    found = solve(problem, sketch=Identity(), smoothness=smoothness, maxiter=200)
    assert torch.equal(found.x, problem.minimiser) or found.fun < 1e-25
    assert found.status == Status.MAXITER or found.success


@pytest.mark.parametrize("method", [NESTEROV, DESCENT])
@pytest.mark.parametrize("seeds", [None, 2])
def test_too_long_steps_end_with_the_best_point(method, seeds):
    problem = Quadratic.named("inverse", 16)
    found = solve(problem, method, smoothness=1e-3, rank=4, seeds=seeds)
    statuses = [found.status] if seeds is None else found.status.tolist()
    assert all(Status(s) in (Status.DIVERGED, Status.NONFINITE) for s in statuses)
    assert not torch.as_tensor(found.success).any()
    # Nothing better than the start was seen
    torch.testing.assert_close(found.x, torch.zeros_like(found.x))


def test_an_objective_that_turns_nan_ends_the_run():
    def f(x):
        return (1 - x.square().sum()).sqrt()

    found = minimize(f, torch.full((3,), 0.4), method=NESTEROV, options={"rank": 2, "smoothness": 1.0})
    assert found.status == Status.NONFINITE
    assert math.isfinite(found.fun)
    nowhere = minimize(lambda x: x.sum().log(), torch.zeros(3) - 1, method=NESTEROV)
    assert nowhere.status == Status.START


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (NESTEROV, {"rank": 9}, "rank = 9 is not allowed in dimension 8"),
        (NESTEROV, {"rank": 0}, "option rank = 0 is not allowed; it must be a whole number"),
        (NESTEROV, {"rank": 2, "sketch": Haar(rank=2)}, "options rank and sketch are not allowed together"),
        (NESTEROV, {"sketch": "haar"}, "option sketch = 'haar' is not allowed; it must be a Sketch"),
        (NESTEROV, {"smoothness": "guess"}, "option smoothness = 'guess' is not allowed"),
        (NESTEROV, {"smoothness": 0.0}, "option smoothness = 0.0 is not allowed"),
        (NESTEROV, {"smoothness": torch.ones(5)}, "smoothness is of 5 variables; x0 has 8"),
        (NESTEROV, {"smoothness": Curvature(5, 1.0, 2.0)}, "smoothness is of 5 variables; x0 has 8"),
        (NESTEROV, {"nu": -1.0}, "option nu = -1.0 is not allowed"),
        (NESTEROV, {"schedule": "C"}, "option schedule = 'C' is not allowed; it must be 'unified' or"),
        (NESTEROV, {"schedule": "strongly convex"}, "without strong_convexity > 0"),
        (NESTEROV, {"strong_convexity": -1.0}, "option strong_convexity = -1.0 is not allowed"),
        (NESTEROV, {"warm_start": 2.0}, "option warm_start = 2.0 is not allowed"),
        (NESTEROV, {"restart": 0}, "option restart = 0 is not allowed"),
        (NESTEROV, {"restart_by_value": True}, "option restart_by_value needs restart"),
        (NESTEROV, {"oracle": "reverse"}, "option oracle = 'reverse' is not allowed; it must be 'backprop'"),
        (NESTEROV, {"check_every": 0}, "option check_every = 0 is not allowed"),
        (NESTEROV, {"seed": -1}, "option seed = -1 is not allowed"),
        (NESTEROV, {"ranks": 2}, "unknown option 'ranks'; did you mean 'rank'?"),
        (DESCENT, {"strong_convexity": 1.0}, "unknown option 'strong_convexity'"),
        (COORDINATES, {}, "method 'coordinate-descent' needs the option smoothness"),
        (COORDINATES, {"smoothness": 2.0}, "option smoothness = 2.0 is not allowed"),
        (COORDINATES, {"smoothness": torch.ones(5)}, "smoothness is of 5 variables; x0 has 8"),
        (COORDINATES, {"smoothness": torch.eye(8)[0]}, "it must be positive"),
    ],
)
def test_what_is_not_allowed_is_said_before_anything_is_evaluated(method, options, message):
    def never(x):
        raise AssertionError("evaluated")

    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        minimize(never, torch.zeros(8), method=method, options=options)
    assert "\n" not in str(caught.value)


def test_forward_mode_takes_no_stack():
    with pytest.raises(ValueError, match="oracle = 'forward' is not allowed with batched=True"):
        solve(Quadratic.named("inverse", 8), seeds=2, oracle="forward")


def test_an_importance_sketch_must_fit_the_curvature():
    problem = Quadratic.named("inverse", 8)
    with pytest.raises(ValueError, match="8"):
        solve(problem, sketch=ImportanceCoordinates(torch.ones(5)))
    with pytest.raises(ValueError, match="too long"):
        solve(problem, sketch=ImportanceCoordinates(problem.eigenvalues / 10))
