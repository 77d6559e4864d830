"""`minimize` as its users meet it: structures, gradients, arguments, callbacks, endings."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds

from hasten.solvers import LBFGS, METHODS, OptimizeResult, Status, minimize
from hasten.solvers.structure import Structure

GENERAL = ["gradient-descent", "nesterov", "fista", "l-bfgs", "ncg"]
WEIGHTS = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
TARGET = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def quadratic(x):
    return 0.5 * (WEIGHTS.to(x) * (x - TARGET.to(x)).square()).sum(-1)


def rosenbrock(x):
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(-1)


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


@pytest.mark.parametrize("method", GENERAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_method_solves_a_quadratic_in_the_dtype_of_x0(method, dtype):
    x0 = torch.zeros(3, dtype=dtype)
    result = minimize(quadratic, x0, method, tol=1e-4 if dtype == torch.float32 else 1e-9)
    assert result.success, result
    assert result.status == Status.GRADIENT or result.status == Status.DECREASE
    assert result.x.dtype == dtype
    assert (result.x.double() - TARGET).abs().max() < (1e-3 if dtype == torch.float32 else 1e-8)
    assert result.fun == pytest.approx(float(quadratic(result.x)), abs=1e-12)
    assert torch.allclose(result.jac, WEIGHTS.to(dtype) * (result.x - TARGET.to(dtype)), atol=1e-12)
    assert torch.equal(x0, torch.zeros(3, dtype=dtype))
    assert isinstance(result.nit, int)
    assert isinstance(result.fun, float)


@pytest.mark.parametrize("method", GENERAL)
def test_structures_come_back_as_they_went_in(method):
    x0 = {"a": zeros(2, 1), "b": [zeros(()), (zeros(3),)]}

    def fun(x):
        return (x["a"] - 1).square().sum() + (x["b"][0] - 2).square() + quadratic(x["b"][1][0])

    result = minimize(fun, x0, method, tol=1e-8)
    assert result.success
    assert torch.allclose(result.x["a"], torch.ones(2, 1, dtype=torch.float64), atol=1e-7)
    assert result.x["b"][0].shape == ()
    assert float(result.x["b"][0]) == pytest.approx(2)
    assert torch.allclose(result.x["b"][1][0], TARGET, atol=1e-7)
    assert result.jac["a"].shape == (2, 1)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4),
    st.booleans(),
    st.integers(1, 3),
)
def test_a_structure_is_flattened_and_restored(shapes, batched, size):
    x0 = {
        str(i): torch.randn((*([size] if batched else []), *shape), dtype=torch.float64)
        for i, shape in enumerate(shapes)
    }
    total = sum(leaf.numel() for leaf in x0.values())
    if total == 0:
        with pytest.raises(ValueError, match="x0 is empty"):
            Structure.of(x0, batched)
        return
    structure, flat = Structure.of(x0, batched)
    assert flat.shape == ((size, total // size) if batched else (total,))
    back = structure.copy(flat)
    assert all(torch.equal(back[name], x0[name]) for name in x0)
    assert torch.equal(structure.read(x0, "the gradient"), flat)


def test_gradients_by_function_by_pair_and_by_autograd_agree():
    def gradient(x, *scale):
        return WEIGHTS * (x - TARGET)

    by_autograd = minimize(quadratic, zeros(3))
    with torch.no_grad():
        by_function = minimize(quadratic, zeros(3), jac=gradient)
    by_pair = minimize(lambda x: (quadratic(x), gradient(x)), zeros(3), jac=True)
    by_float = minimize(lambda x: (float(quadratic(x)), gradient(x)), zeros(3), jac=True)
    for other in (by_function, by_pair, by_float):
        assert other.nit == by_autograd.nit
        assert torch.allclose(other.x, by_autograd.x, atol=1e-12)


def test_args_reach_fun_and_jac():
    result = minimize(
        lambda x, a, b: (b * (x - a).square()).sum(),
        zeros(2),
        jac=lambda x, a, b: 2 * b * (x - a),
        args=(3.0, 2.0),
    )
    assert torch.allclose(result.x, torch.full((2,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("method", ["l-bfgs", "ncg", "gradient-descent", "fista"])
@pytest.mark.parametrize("counted", ["nfev", "njev"])
def test_evaluations_are_counted(method, counted):
    calls = {"nfev": 0, "njev": 0}

    def fun(x):
        calls["nfev"] += 1
        return quadratic(x).item()

    def jac(x):
        calls["njev"] += 1
        return WEIGHTS * (x - TARGET)

    result = minimize(fun, zeros(3), method, jac=jac)
    assert result[counted] == calls[counted]


BOUNDS = [
    [(0, 0.5), (-1, None), (None, None)],
    Bounds([0, -1, -math.inf], [0.5, math.inf, math.inf]),
    (torch.tensor([0.0, -1, -math.inf]), torch.tensor([0.5, math.inf, math.inf])),
]


@pytest.mark.parametrize("method", ["gradient-descent", "nesterov", "fista", None])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_bounds_of_every_form_hold(method, bounds):
    outside = []

    def fun(x):
        if x[0] < 0 or x[0] > 0.5 or x[1] < -1:
            outside.append(x)
        return quadratic(x)

    result = minimize(
        fun, torch.tensor([2.0, -3.0, 0.0], dtype=torch.float64), method, bounds=bounds, tol=1e-9
    )
    assert result.success
    assert torch.allclose(result.x, torch.tensor([0.5, -1.0, 0.5], dtype=torch.float64), atol=1e-8)
    if method != "fista":  # whose extrapolated points may be outside
        assert not outside


def test_a_box_over_a_structure():
    x0 = {"a": zeros(2), "b": zeros(1)}
    bounds = ({"a": torch.zeros(2), "b": torch.zeros(1)}, {"a": torch.ones(2), "b": torch.ones(1)})
    result = minimize(lambda x: (x["a"] - 3).square().sum() + (x["b"] + 1).square().sum(), x0, bounds=bounds)
    assert result.x["a"].tolist() == [1, 1]
    assert result.x["b"].tolist() == [0]


def test_callbacks_of_both_signatures_as_in_scipy():
    points, results = [], []
    minimize(rosenbrock, zeros(2), callback=points.append)

    def note(intermediate_result):
        results.append(intermediate_result)

    final = minimize(rosenbrock, zeros(2), callback=note)
    assert len(points) == len(results) == final.nit
    assert [r.nit for r in results] == list(range(1, final.nit + 1))
    assert torch.equal(points[-1], final.x)
    assert results[-1].fun == final.fun
    assert len({tuple(p.tolist()) for p in points}) == len(points)  # copies, not one tensor


def test_stop_iteration_ends_the_run():
    def stop(x):
        raise StopIteration

    result = minimize(rosenbrock, zeros(2), callback=stop)
    assert (result.nit, result.status, result.success) == (1, 99, False)
    assert "StopIteration" in result.message


def test_changing_what_a_callback_gets_changes_nothing():
    assert (
        minimize(rosenbrock, zeros(2), callback=lambda x: x.fill_(7)).nit
        == minimize(rosenbrock, zeros(2)).nit
    )


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"gtol": 1e-1}, Status.GRADIENT),
        ({"maxiter": 3}, Status.MAXITER),
        ({"max_evaluations": 5}, Status.EVALUATIONS),
        ({"maxfun": 5}, Status.EVALUATIONS),
        ({"seconds": 0.0}, Status.SECONDS),
        ({"gtol": 0.0, "ftol": 1e-3}, Status.DECREASE),
        ({"gtol": 0.0, "ftol": 0.0, "xtol": 1e-2}, Status.STEP),
    ],
)
@pytest.mark.parametrize("method", GENERAL)
def test_each_rule_ends_a_run_and_says_so(method, options, status):
    result = minimize(rosenbrock, torch.tensor([-1.2, 1.0], dtype=torch.float64), method, options=options)
    assert result.status == status
    assert result.success == (status in (0, 10, 11))
    assert result.message == Status(status).message
    if "maxiter" in options:
        assert result.nit == 3
    if status == Status.EVALUATIONS:
        assert 5 <= result.nfev <= 8  # a round may take two, and the end two more
    assert result.fun <= 24.2


def test_a_method_may_be_given_with_its_options():
    named = minimize(rosenbrock, zeros(2), "l-bfgs", options={"memory": 2, "maxiter": 9})
    built = minimize(rosenbrock, zeros(2), LBFGS(memory=2), options={"maxiter": 9})
    assert torch.equal(named.x, built.x)
    assert built.nit == 9
    with pytest.raises(ValueError, match="option memory belongs to the method; set it as LBFGS"):
        minimize(rosenbrock, zeros(2), LBFGS(), options={"memory": 2})
    with pytest.raises(ValueError, match="memory = 0 is not allowed"):
        LBFGS(memory=0)


@pytest.mark.parametrize("method", ["l-bfgs", "fista"])
def test_functions_may_change_their_argument(method):
    def fun(x):
        value = float(quadratic(x))
        return value, WEIGHTS * x.sub_(TARGET)

    result = minimize(fun, zeros(3), method, jac=True)
    assert torch.allclose(result.x, TARGET, atol=1e-5)


def test_inside_inference_mode():
    with torch.inference_mode():
        assert minimize(rosenbrock, zeros(2)).success


@pytest.mark.parametrize("method", GENERAL)
@settings(deadline=None, max_examples=10)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=4), st.integers(1, 60))
def test_no_result_is_worse_than_the_start_or_a_point_shown(method, start, evaluations):
    """On a function with a hole that has no value, stopped anywhere."""

    def fun(x):
        return torch.where(x[0] > 2.5, math.nan, (x**4 - 3 * x**2 + x).sum())

    x0 = torch.tensor(start, dtype=torch.float64)
    shown = []
    result = minimize(fun, x0, method, callback=shown.append, options={"max_evaluations": evaluations})
    if result.status == Status.START:
        assert math.isnan(float(fun(x0)))
        return
    assert result.fun == pytest.approx(float(fun(result.x)), rel=1e-12, abs=1e-12)
    assert result.fun <= float(fun(x0)) + 1e-12
    if not result.success:
        assert all(not float(fun(x)) < result.fun - 1e-12 for x in shown)


@pytest.mark.parametrize("method", GENERAL)
def test_no_iterations_return_the_start(method):
    x0 = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    result = minimize(rosenbrock, x0, method, options={"maxiter": 0, "gtol": 0})
    assert (result.nit, result.status) == (0, Status.MAXITER)
    assert result.fun <= float(rosenbrock(x0))


def test_a_start_at_the_minimiser_needs_one_evaluation():
    result = minimize(quadratic, TARGET)
    assert (result.nit, result.nfev, result.success) == (0, 1, True)


@pytest.mark.parametrize("method", GENERAL)
def test_a_start_without_a_value_is_said_and_returned(method):
    result = minimize(lambda x: x.log().sum(), torch.tensor([-1.0, 2.0]), method)
    assert result.status == Status.START
    assert not result.success
    assert result.x.tolist() == [-1.0, 2.0]


@pytest.mark.parametrize("method", ["l-bfgs", "ncg", "gradient-descent", "nesterov", "fista"])
def test_a_domain_with_an_edge_is_respected(method):
    """f = x − log x has nan for x < 0; the minimiser is 1."""
    result = minimize(lambda x: (x - x.log()).sum(), torch.tensor([5.0, 0.01], dtype=torch.float64), method)
    assert result.success
    assert torch.allclose(result.x, torch.ones(2, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("method", GENERAL)
def test_a_line_without_a_minimum_ends(method):
    result = minimize(lambda x: x.sum(), zeros(2), method, options={"maxiter": 200})
    assert not result.success
    assert math.isfinite(result.fun) or result.status == Status.UNBOUNDED


@pytest.mark.parametrize("method", ["l-bfgs", "ncg", "gradient-descent", "nesterov"])
@pytest.mark.parametrize(
    "fun", [lambda x: -x.square().sum(-1), lambda x: -x.exp().sum(-1)], ids=["-x²", "-eˣ"]
)
@pytest.mark.parametrize("batched", [False, True])
def test_what_falls_without_end_is_called_unbounded(method, fun, batched):
    x0 = torch.ones(2, 3, dtype=torch.float64) if batched else torch.ones(3, dtype=torch.float64)
    result = minimize(fun, x0, method, batched=batched)
    statuses = result.status.tolist() if batched else [result.status]
    assert set(statuses) == {Status.UNBOUNDED}
    assert bool(torch.as_tensor(result.fun < -1e30).all())


@pytest.mark.parametrize("method", ["gradient-descent", "nesterov", "fista"])
def test_a_step_that_is_too_long_ends_with_the_best_point(method):
    result = minimize(
        quadratic, torch.tensor([0.9, -1.9, 0.4], dtype=torch.float64), method, options={"smoothness": 0.5}
    )
    assert result.status == Status.DIVERGED
    assert result.fun <= float(quadratic(torch.tensor([0.9, -1.9, 0.4])))


@pytest.mark.parametrize("method", ["l-bfgs", "ncg"])
def test_a_wrong_gradient_is_noticed(method):
    result = minimize(quadratic, zeros(3), method, jac=lambda x: -WEIGHTS * (x - TARGET))
    assert result.status == Status.LINE_SEARCH
    assert result.fun <= float(quadratic(zeros(3)))


@pytest.mark.parametrize("method", ["l-bfgs", "ncg"])
def test_runs_end_where_precision_does(method):
    result = minimize(
        lambda x: 1e8 + quadratic(x).float().double(), zeros(3), method, options={"gtol": 0.0, "ftol": 0.0}
    )
    assert result.status in (Status.LINE_SEARCH, Status.GRADIENT)
    assert result.nfev < 300
    assert (result.x - TARGET).abs().max() < 1e-3


def test_history_on_request():
    assert "history" not in minimize(rosenbrock, zeros(2))
    history = minimize(rosenbrock, zeros(2), options={"history": True}).history
    assert history["nit"][0] == 0
    assert history["nfev"] == list(range(1, len(history["nfev"]) + 1))
    assert history["fun"][0] == 1.0
    assert history["fun"][-1] < 1e-9
    assert all(
        later >= earlier for earlier, later in zip(history["seconds"], history["seconds"][1:], strict=False)
    )


def test_progress_is_shown(capsys):
    minimize(rosenbrock, zeros(2), progress=True)
    assert "l-bfgs" in capsys.readouterr().out


def test_results_read_like_scipys():
    result = minimize(quadratic, zeros(3))
    assert result.x is result["x"]
    assert {"x", "fun", "jac", "nfev", "njev", "nhev", "nit", "nproj", "success", "status", "message"} <= set(
        result
    )
    lines = repr(result).splitlines()
    assert lines[0].strip() == "success: True"
    assert len({line.index(":") for line in lines if not line.startswith("   " * 4)}) == 1
    assert "fun" in dir(result)
    with pytest.raises(AttributeError, match="no 'gradient'; it has success"):
        _ = result.gradient
    result.note = 1
    del result.note
    assert "note" not in result
    assert repr(OptimizeResult()) == ""


def test_errors_of_fun_are_its_own():
    def broken(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        minimize(broken, zeros(2))


def test_a_tensor_that_fun_ignores_has_a_zero_gradient():
    result = minimize(lambda x: quadratic(x[0]), [zeros(3), torch.ones(2, dtype=torch.float64)])
    assert result.jac[1].tolist() == [0, 0]
    assert result.x[1].tolist() == [1, 1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is(name):
    kind = METHODS[name]
    assert kind.__doc__
    assert kind.source
    assert all(option.meaning for option in kind.options())
    assert {"gtol", "maxiter"}.isdisjoint(option.name for option in kind.options())
