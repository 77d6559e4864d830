"""Each method against an independent statement of it, its theory, and the counts its specification gives."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes

from hasten.problems import Quadratic
from hasten.solvers import L1, Box, Status, minimize
from hasten.solvers.conjugate_gradient import ConjugateGradient
from hasten.solvers.lbfgs import Pairs
from hasten.solvers.space import Single, Stack


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def points(fun, x0, method, iterations, **arguments):
    """The points shown after each iteration."""
    found = []
    options = {"maxiter": iterations, "gtol": 0.0, "ftol": 0.0, **arguments.pop("options", {})}
    minimize(fun, x0, method, callback=found.append, options=options, **arguments)
    return found


PROBLEM = Quadratic(torch.logspace(0, -3, 12, dtype=torch.float64), seed=3)
START = torch.zeros(12, dtype=torch.float64)


def test_gradient_descent_is_its_formula():
    x = START
    for shown in points(PROBLEM.value, START, "gradient-descent", 30, options={"smoothness": 1.0}):
        x = x - PROBLEM.gradient(x)
        assert torch.allclose(shown, x, rtol=1e-12, atol=1e-13)


def test_nesterov_is_the_two_sequence_method_with_the_familiar_momentum():
    """μ = 0: y = x + (t−1)/t⁺ (x − x_before) with t⁺ = (1+√(1+4t²))/2."""
    options = {"smoothness": 1.0, "restart": "none"}
    x = y = START
    t = 1.0
    for shown in points(PROBLEM.value, START, "nesterov", 200, options=options):
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        new = y - PROBLEM.gradient(y)
        y = new + (t - 1) / following * (new - x)
        x, t = new, following
        assert (shown - y).abs().max() < 1e-12


def test_nesterov_reports_the_point_of_the_theorem_where_that_is_better():
    x = y = START
    t = 1.0
    for k in range(1, 30):
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        new = y - PROBLEM.gradient(y)
        y = new + (t - 1) / following * (new - x)
        x, t = new, following
        options = {"smoothness": 1.0, "restart": "none", "maxiter": k, "gtol": 0.0}
        result = minimize(PROBLEM.value, START, "nesterov", options=options)
        assert result.fun <= float(PROBLEM.value(x)) * (1 + 1e-9)
        assert torch.allclose(result.jac, PROBLEM.gradient(result.x), atol=1e-13)


def test_nesterov_with_known_strong_convexity_is_the_constant_momentum():
    mu = PROBLEM.strong_convexity
    root = math.sqrt(mu)
    options = {"smoothness": 1.0, "strong_convexity": mu, "schedule": "strongly convex", "restart": "none"}
    x = y = START
    for shown in points(PROBLEM.value, START, "nesterov", 200, options=options):
        new = y - PROBLEM.gradient(y)
        y = new + (1 - root) / (1 + root) * (new - x)
        x = new
        assert (shown - y).abs().max() < 1e-12


def test_fista_without_a_term_is_nesterov():
    options = {"smoothness": 1.0, "restart": "none"}
    ys = points(PROBLEM.value, START, "nesterov", 50, options=options)
    xs = points(PROBLEM.value, START, "fista", 50, options=options)
    for y, x in zip(ys, xs[1:], strict=False):
        assert torch.allclose(x, y - PROBLEM.gradient(y), atol=1e-12)


def test_fista_is_beck_and_teboulles():
    lasso, weight, smoothness = diabetes()
    x = y = torch.zeros(10, dtype=torch.float64)
    t, s = 1.0, 1 / smoothness
    options = {"smoothness": smoothness, "restart": "none"}
    for shown in points(lasso, x, "fista", 100, prox=L1(weight), options=options):
        y.requires_grad_()
        (g,) = torch.autograd.grad(lasso(y), y)
        y = y.detach()
        moved = y - s * g
        new = moved.sign() * (moved.abs() - s * weight).clamp(min=0)
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        y = new + (t - 1) / following * (new - x)
        x, t = new, following
        assert (shown - x).abs().max() < 1e-11


def diabetes():
    data, target = (torch.tensor(v) for v in load_diabetes(return_X_y=True))
    data, target = (data - data.mean(0)) / data.std(0), (target - target.mean()) / target.std()
    smoothness = float(torch.linalg.eigvalsh(data.T @ data / len(data)).max())
    return lambda w: (data @ w - target).square().mean() / 2, 0.05, smoothness


@pytest.mark.parametrize("method", ["nesterov", "fista"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("mu", [0.0, 1e-3])
@pytest.mark.parametrize("term", [None, "l1", "box"])
def test_the_potential_bounds_the_error(method, known, mu, term):
    """F(x_k) − F* ≤ R²/(2 A_k) with A_k ≥ (k+1)²/(4L): no run is worse than its theory."""
    weight = 0.01
    extra = {"l1": {"prox": L1(weight)}, "box": {"bounds": (START - 0.2, START + 0.3)}, None: {}}[term]

    def whole(x):
        return float(PROBLEM.value(x)) + (weight * float(x.abs().sum()) if term == "l1" else 0.0)

    best = minimize(PROBLEM.value, START, "fista", tol=1e-12, options={"maxiter": 10**5}, **extra)
    assert best.success
    distance = float((best.x - START).square().sum())
    options = {"strong_convexity": mu, "restart": "none", **({"smoothness": 1.0} if known else {})}
    for k in (1, 3, 10, 30, 100):
        result = minimize(
            PROBLEM.value, START, method, options={**options, "maxiter": k, "gtol": 0.0, "ftol": 0.0}, **extra
        )
        # A backtracked step is at worst half of 1/L.
        assert whole(result.x) - whole(best.x) <= (1 if known else 2) * 2 * distance / (k + 1) ** 2 + 1e-12


@pytest.mark.parametrize("method", ["gradient-descent", "nesterov", "fista"])
def test_a_composite_solution_satisfies_its_optimality_conditions(method):
    lasso, weight, _ = diabetes()
    result = minimize(lasso, torch.zeros(10, dtype=torch.float64), method, prox=L1(weight), tol=1e-9)
    assert result.success
    zero = result.x == 0 if method != "nesterov" else result.x.abs() < 1e-8
    assert zero.any()
    assert not zero.all()
    assert (result.jac[zero].abs() <= weight + 1e-8).all()
    assert torch.allclose(result.jac[~zero], -weight * result.x[~zero].sign(), atol=1e-8)
    assert result.fun == pytest.approx(
        float(lasso(result.x)) + weight * float(result.x.abs().sum()), rel=1e-12
    )


@pytest.mark.parametrize("method", ["gradient-descent", "nesterov", "fista"])
def test_backtracking_works_where_round_off_decides_the_values(method):
    """With 1e6 added to f, differences of f say nothing long before the gradient is small."""
    problem = Quadratic(torch.logspace(0, -2, 12, dtype=torch.float64), seed=3)
    plain, raised = (
        minimize(lambda x, c=offset: problem.value(x) + c, START, method, tol=1e-7) for offset in (0.0, 1e6)
    )
    assert raised.success
    assert raised.nit <= 1.5 * plain.nit


def test_the_first_step_length_is_the_curvature_along_the_gradient():
    """s = ‖g‖/‖Hg‖ on a quadratic, so that no trial is wasted when the spectrum is narrow."""
    g = PROBLEM.gradient(START)
    s = g.norm() / (PROBLEM.hessian @ g).norm()
    shown = points(PROBLEM.value, START, "gradient-descent", 1)[0]
    assert torch.allclose(shown, START - s * g, rtol=1e-6)


def test_restarts_pay():
    """O'Donoghue & Candès: on a strongly convex function of unknown μ, restarting regains the linear rate."""
    counts = {
        restart: minimize(
            PROBLEM.value, START, "nesterov", options={"smoothness": 1.0, "restart": restart, "gtol": 1e-9}
        ).nit
        for restart in ("gradient", "function", "none")
    }
    assert counts["gradient"] < 0.6 * counts["none"]
    assert counts["function"] < 0.6 * counts["none"]


@pytest.mark.parametrize(
    "term", [L1(0.3), Box(torch.tensor(-0.5, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64))]
)
@settings(deadline=None, max_examples=50)
@given(st.floats(-3, 3), st.floats(0.01, 5), st.floats(-3, 3))
def test_a_prox_minimises_what_it_says(term, v, step, other):
    v = torch.tensor([v], dtype=torch.float64)

    def cost(u):
        return float(term.value(u).sum() + (u - v).square().sum() / (2 * step))

    best = term(v, step)
    u = torch.tensor([other], dtype=torch.float64)
    if isinstance(term, Box):
        u = u.clamp(-0.5, 0.7)
    assert cost(best) <= cost(u) + 1e-12


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_the_compact_form_is_the_two_loop_recursion(memory, size, seed):
    """For a stack whose problems take their pairs at different rounds, and for each problem alone."""
    generator = torch.Generator().manual_seed(seed)
    d = 6

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    together = Pairs(Stack(draw(size, d)), draw(size, d), memory)
    alone = [Pairs(Single(draw(d)), draw(d), memory) for _ in range(size)]
    kept = [[] for _ in range(size)]
    for _ in range(2 * memory + 2):
        s, g = draw(size, d), draw(size, d)
        y = s * torch.rand(d, generator=generator, dtype=torch.float64) + 0.05 * draw(size, d)
        rho = (s * y).sum(-1)
        mask = (torch.rand(size, generator=generator) < 0.7) & (rho > 0.05)
        directions = together.advance(mask, s, y, rho, g)
        for i in range(size):
            if mask[i]:
                kept[i] = [*kept[i], (s[i], y[i])][-memory:]
            expected = two_loops(kept[i], g[i])
            own = alone[i].advance(bool(mask[i]), s[i], y[i], rho[i].item(), g[i])
            assert torch.allclose(directions[i], expected, rtol=1e-7, atol=1e-9)
            assert torch.allclose(own, expected, rtol=1e-7, atol=1e-9)
    together.forget(torch.ones(size, dtype=torch.bool))
    g = draw(size, d)
    assert torch.equal(together.advance(torch.zeros(size, dtype=torch.bool), g, g, (g * g).sum(-1), g), -g)


def two_loops(pairs, g):
    """−H g as in Nocedal & Wright, algorithm 7.4."""
    q, saved = g.clone(), []
    for s, y in reversed(pairs):
        saved.append((s @ q) / (s @ y))
        q = q - saved[-1] * y
    if pairs:
        s, y = pairs[-1]
        q = q * (s @ y) / (y @ y)
    for s, y in pairs:
        q = q + s * (saved.pop() - (y @ q) / (s @ y))
    return -q


def test_lbfgs_with_all_pairs_ends_on_a_quadratic_as_conjugate_gradients_do():
    """With exact line searches both find the minimiser of a d-dimensional quadratic in d steps."""
    problem = Quadratic([1.0, 2.0, 3.0, 4.0, 5.0], seed=1)
    exact = {"c1": 1e-4, "c2": 1e-10, "trials": 60, "gtol": 1e-7}
    x0 = torch.zeros(5, dtype=torch.float64)
    assert minimize(problem.value, x0, "l-bfgs", options=exact).nit <= 6
    for beta in ("fr", "pr+", "hs", "hs+", "dy", "hz"):
        assert minimize(problem.value, x0, "ncg", options={**exact, "beta": beta}).nit <= 6


def test_all_conjugate_gradients_agree_on_quadratics_with_exact_steps():
    problem = Quadratic(torch.logspace(0, 1, 10, dtype=torch.float64), seed=2)
    x0 = torch.zeros(10, dtype=torch.float64)
    runs = [
        points(problem.value, x0, "ncg", 6, options={"beta": beta, "c2": 1e-11, "trials": 60})
        for beta in ("hs", "fr", "pr+", "hs+", "dy", "hz")
    ]
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("method", ["l-bfgs", "ncg", "gradient-descent"])
def test_every_step_descends(method):
    values = minimize(
        rosenbrock,
        torch.tensor([-1.2, 1, -0.5], dtype=torch.float64),
        method,
        options={"history": True, "maxiter": 300},
    ).history["fun"]
    assert all(later <= earlier for earlier, later in pairwise(values))


@pytest.mark.parametrize("seed", range(20))
def test_conjugate_directions_are_the_published_formulas(seed):
    generator = torch.Generator().manual_seed(seed)
    before, g, d = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(3))
    y = g - before
    expected = {
        "fr": 0.0 if abs(g @ before) >= 0.2 * (g @ g) else (g @ g) / (before @ before),
        "pr+": max(0.0, (g @ y) / (before @ before)),
        "hs": (g @ y) / (d @ y),
        "hs+": max(0.0, (g @ y) / (d @ y)),
        "dy": (g @ g) / (d @ y),
        "hz": max(
            ((y - 2 * d * (y @ y) / (d @ y)) @ g) / (d @ y), -1 / (d.norm() * min(0.01, float(before.norm())))
        ),
    }
    objective = SimpleNamespace(space=Single(g))
    state = SimpleNamespace(g=before, d=d, search=SimpleNamespace(slope0=float(before @ d)))
    for name, value in expected.items():
        assert ConjugateGradient(beta=name)._beta(objective, state, g, float(g @ d)) == pytest.approx(
            float(value)
        )


@pytest.mark.parametrize("method", ["l-bfgs", "ncg"])
def test_a_run_to_the_last_digit_ends(method):
    """With gtol = 0 nothing but round-off stops it; then values and gradients only jitter."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(60, 12, generator=generator, dtype=torch.float64)

    def fun(x):
        return torch.nn.functional.softplus(data @ x).mean() + 1e-3 * x.square().sum()

    result = minimize(fun, START + 0.5, method, options={"gtol": 0.0})
    assert result.status == Status.LINE_SEARCH
    assert result.jac.abs().max() < 1e-15
    assert result.nfev < 200


def test_a_failed_search_is_tried_again_along_the_gradient():
    """Kinks mislead the pairs: giving up at the first failed search would end at 1.68."""
    weights = torch.arange(1.0, 9, dtype=torch.float64)

    def fun(x):
        return (weights * x.abs()).sum() + 5 * (x.sum() - 1).square()

    assert minimize(fun, torch.linspace(-1, 2, 8, dtype=torch.float64)).fun < 1.2


SPECIFIED = {"hs+": (744, 1491), "hz": (796, 1652), "pr+": (877, 1732), "fr": (844, 2216)}


@pytest.mark.parametrize("beta", SPECIFIED)
def test_rosenbrock_takes_the_measured_number_of_steps(beta):
    """d = 100 from (−1.2, 1, …), to a gradient of 1e-6; independent measurements, within 1.3."""
    x0 = torch.tensor([-1.2, 1.0], dtype=torch.float64).repeat(50)
    result = minimize(rosenbrock, x0, "ncg", options={"beta": beta, "gtol": 1e-6})
    iterations, evaluations = SPECIFIED[beta]
    assert result.success
    assert result.nit <= 1.3 * iterations
    assert result.nfev <= 1.3 * evaluations


def test_the_measured_counts_of_the_others():
    x0 = torch.tensor([-1.2, 1.0], dtype=torch.float64).repeat(50)
    stuck = minimize(rosenbrock, x0, "ncg", options={"beta": "dy", "gtol": 1e-6, "maxiter": 1000})
    assert stuck.status == Status.MAXITER  # without restarts DY crawls
    result = minimize(rosenbrock, x0, options={"gtol": 1e-6})
    assert result.nit <= 1.3 * 530
    assert result.nfev <= 1.3 * 631


@pytest.mark.parametrize(
    ("method", "beta", "counts"),
    [("ncg", "hs+", (99, 225)), ("ncg", "fr", (102, 238)), ("l-bfgs", None, (82, 91))],
)
def test_logistic_regression_takes_the_measured_number_of_steps(method, beta, counts):
    data, labels = (torch.tensor(v) for v in load_breast_cancer(return_X_y=True))
    data, signs = (data - data.mean(0)) / data.std(0), 2.0 * labels - 1

    def fun(w):
        return torch.nn.functional.softplus(-signs * (data @ w)).mean() + 0.5e-4 * w.square().sum()

    options = {"gtol": 1e-6, **({"beta": beta} if beta else {})}
    result = minimize(fun, torch.zeros(30, dtype=torch.float64), method, options=options)
    assert result.success
    assert result.nit <= 1.3 * counts[0]
    assert result.nfev <= 1.3 * counts[1]
