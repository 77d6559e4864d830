"""The methods inside SciPy's own `minimize`, on NumPy functions."""

import numpy as np
import pytest
from scipy.optimize import Bounds, OptimizeResult, minimize, rosen, rosen_der

from hasten.solvers import scipy_method

START = [-1.2, 1.0, 0.5]


@pytest.mark.parametrize("name", ["l-bfgs", "ncg"])
def test_a_run_as_scipys_users_write_it(name):
    result = minimize(rosen, START, jac=rosen_der, method=scipy_method(name), tol=1e-8)
    assert isinstance(result, OptimizeResult)
    assert isinstance(result.x, np.ndarray)
    assert result.x.dtype == np.float64
    assert result.success is True
    assert type(result.status) is int
    assert result.status == 0
    assert np.abs(result.jac).max() <= 1e-8
    np.testing.assert_allclose(result.x, 1, atol=1e-7)
    np.testing.assert_allclose(result.jac, rosen_der(result.x), atol=1e-15)


def test_as_many_evaluations_as_scipys_own():
    ours = minimize(rosen, START * 10, jac=rosen_der, method=scipy_method("l-bfgs"), options={"gtol": 1e-6})
    own = minimize(rosen, START * 10, jac=rosen_der, method="L-BFGS-B", options={"gtol": 1e-6, "ftol": 0})
    assert ours.success
    assert ours.nfev <= 1.2 * own.nfev


def test_fun_may_return_the_gradient_too():
    calls = []

    def both(x):
        calls.append(x)
        return rosen(x), rosen_der(x)

    result = minimize(both, START, jac=True, method=scipy_method("l-bfgs"))
    assert result.success
    assert len(calls) == result.nfev


def test_finite_differences_stand_in_for_a_missing_gradient_as_in_scipy():
    calls = []

    def fun(x):
        calls.append(x)
        return rosen(x)

    result = minimize(fun, START, method=scipy_method("l-bfgs"))
    np.testing.assert_allclose(result.x, 1, atol=1e-4)
    assert result.nfev == len(calls)


def test_args_of_both_forms():
    def fun(x, a):
        return float(((x - a) ** 2).sum())

    for args in ((3.0,), 3.0):
        result = minimize(
            fun, [0.0, 0.0], args=args, jac=lambda x, a: 2 * (x - a), method=scipy_method("l-bfgs")
        )
        np.testing.assert_allclose(result.x, 3)


@pytest.mark.parametrize("name", ["gradient-descent", "nesterov", "fista"])
@pytest.mark.parametrize("bounds", [[(0, 1), (None, None)], Bounds([0, -np.inf], [1, np.inf])])
def test_bounds_of_both_forms(name, bounds):
    result = minimize(
        lambda x: ((x - 3) ** 2).sum(),
        [0.0, 0.0],
        jac=lambda x: 2 * (x - 3),
        bounds=bounds,
        method=scipy_method(name),
    )
    np.testing.assert_allclose(result.x, [1, 3], atol=1e-5)


def test_bounds_and_constraints_are_not_dropped_silently():
    with pytest.raises(ValueError, match="does not take bounds; these do"):
        minimize(rosen, START, jac=rosen_der, bounds=[(0, 1)] * 3, method=scipy_method("l-bfgs"))
    with pytest.raises(ValueError, match="no method takes constraints yet"):
        minimize(
            rosen, START, jac=rosen_der, constraints={"type": "eq", "fun": sum}, method=scipy_method("l-bfgs")
        )
    with pytest.warns(RuntimeWarning, match="does not use Hessian information"):
        minimize(rosen, START, jac=rosen_der, hess=np.eye, method=scipy_method("l-bfgs"))


def test_callbacks_of_both_signatures():
    points, results = [], []

    def note(intermediate_result):
        results.append(intermediate_result)

    first = minimize(rosen, START, jac=rosen_der, method=scipy_method("l-bfgs"), callback=points.append)
    minimize(rosen, START, jac=rosen_der, method=scipy_method("l-bfgs"), callback=note)
    assert len(points) == len(results) == first.nit
    assert isinstance(points[0], np.ndarray)
    assert isinstance(results[0], OptimizeResult)
    np.testing.assert_array_equal(results[-1].x, first.x)


def test_stop_iteration():
    def stop(x):
        raise StopIteration

    result = minimize(rosen, START, jac=rosen_der, method=scipy_method("ncg"), callback=stop)
    assert (result.nit, result.status, result.success) == (1, 99, False)


def test_options_of_scipy_win_over_the_methods_own():
    method = scipy_method("l-bfgs", maxiter=4, memory=5)
    assert minimize(rosen, START, jac=rosen_der, method=method).nit == 4
    assert minimize(rosen, START, jac=rosen_der, method=method, options={"maxiter": 2, "maxcor": 3}).nit == 2


def test_mistakes_are_named_at_once():
    with pytest.raises(ValueError, match="did you mean 'l-bfgs'"):
        scipy_method("lbgfs")
    with pytest.raises(ValueError, match=r"scipy_method\('ncg'\): unknown option 'bta'; did you mean 'beta'"):
        scipy_method("ncg", bta="hz")


def test_x0_is_not_changed_and_functions_get_copies():
    x0 = np.array(START)

    def spoil(x):
        value = rosen(x)
        x[:] = 7
        return value

    result = minimize(spoil, x0, jac=rosen_der, method=scipy_method("l-bfgs"))
    np.testing.assert_allclose(result.x, 1, atol=1e-5)
    np.testing.assert_array_equal(x0, START)
