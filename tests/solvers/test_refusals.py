"""What `minimize` does not accept, and the one line it says about it."""

import math

import pytest
import torch

from hasten.solvers import minimize


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


REFUSED = [
    ({"fun": 3}, TypeError, "fun = 3"),
    ({"x0": 1.0}, TypeError, "x0 holds a float; it must be a tensor"),
    (
        {"x0": torch.tensor([1, 2])},
        TypeError,
        r"dtype torch.int64; it must be floating point, e.g. x0.double\(\)",
    ),
    ({"x0": torch.zeros(2, dtype=torch.complex64)}, TypeError, "x0 is complex"),
    ({"x0": []}, ValueError, "x0 is empty"),
    ({"x0": torch.zeros(0)}, ValueError, "x0 is empty"),
    ({"x0": [torch.zeros(1), zeros(1)]}, ValueError, "one dtype and device"),
    ({"method": "lbgfs"}, ValueError, "no method 'lbgfs'; did you mean 'l-bfgs'"),
    ({"method": 3}, TypeError, "must be one of gradient-descent"),
    ({"jac": "2-point"}, ValueError, "jac = '2-point'"),
    ({"prox": 3}, ValueError, "prox = 3"),
    ({"hess": lambda x: x}, ValueError, "no method takes hess yet"),
    ({"constraints": {"type": "eq"}}, ValueError, "no method takes constraints yet"),
    (
        {"method": "l-bfgs", "bounds": [(0, 1)] * 3},
        ValueError,
        "'l-bfgs' does not take bounds; these do: .*nesterov",
    ),
    ({"method": "ncg", "prox": lambda v, s: v}, ValueError, "'ncg' does not take prox; these do: .*fista"),
    ({"bounds": [(0, 1)] * 3, "prox": lambda v, s: v}, ValueError, "prox or bounds, not both"),
    ({"bounds": [(0, 1)]}, ValueError, "x0 has 3 entries, found 1 pairs"),
    ({"bounds": [(1, 0)] * 3}, ValueError, "a low above its high"),
    ({"bounds": 3}, ValueError, "bounds must be scipy.optimize.Bounds, a sequence"),
    ({"bounds": (torch.zeros(2), torch.ones(2))}, ValueError, "do not broadcast"),
    ({"options": {"gtoll": 1}}, ValueError, "unknown option 'gtoll'; did you mean 'gtol'"),
    ({"options": {"gtol": -1}}, ValueError, r"gtol = -1 is not allowed; it must be a number in \[0, inf\)"),
    ({"options": {"gtol": math.nan}}, ValueError, "gtol = nan"),
    ({"options": {"gtol": "1"}}, ValueError, "gtol = '1'"),
    ({"options": {"maxiter": 1.5}}, ValueError, "a whole number"),
    ({"options": {"memory": True}}, ValueError, "memory = True"),
    ({"options": {"memory": 3, "maxcor": 4}}, ValueError, "memory is given twice"),
    ({"options": {"history": 1}}, ValueError, "history = 1 is not allowed; it must be False or True"),
    (
        {"method": "ncg", "options": {"beta": "pr"}},
        ValueError,
        "beta = 'pr' is not allowed; it must be 'fr' or 'pr",
    ),
    (
        {"method": "nesterov", "options": {"schedule": "strongly convex"}},
        ValueError,
        "needs strong_convexity > 0",
    ),
    (
        {"method": "nesterov", "options": {"strong_convexity": 3, "smoothness": 2}},
        ValueError,
        "at most the smoothness",
    ),
    ({"tol": -1}, ValueError, "tol sets gtol: option gtol = -1"),
    ({"callback": 3}, TypeError, "callback = 3"),
    ({"batched": True, "x0": zeros(())}, ValueError, "first dimension, the number of problems"),
    ({"batched": True, "x0": [zeros(2, 1), zeros(3, 1)]}, ValueError, r"found \[2, 3\]"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED, ids=lambda v: None)
def test_arguments_are_refused_before_anything_is_called(arguments, error, message):
    def untouched(x):
        raise AssertionError("fun was called")

    with pytest.raises(error, match=message) as caught:
        minimize(**{"fun": untouched, "x0": zeros(3), **arguments})
    assert "\n" not in str(caught.value)


ILL_FUNCTIONS = [
    (lambda x: x, {}, r"must return a scalar; it returned shape \(3,\)"),
    (lambda x: x.sum().item(), {}, "does not depend on x through differentiable"),
    (lambda x: x.detach().sum(), {}, "does not depend on x"),
    (lambda x: x.sum() * 1j, {}, "complex"),
    (lambda x: x.sum(), {"jac": True}, "the pair"),
    (
        lambda x: x.sum(),
        {"jac": lambda x: x[:2]},
        r"the gradient has shapes \(2,\); it must match x0: \(3,\)",
    ),
    (lambda x: x.sum(), {"batched": True, "x0": zeros(2, 3)}, r"a value for each of the 2 problems"),
    (lambda x: x.square().sum(), {"prox": lambda v, s: v[:2]}, "the result of prox has shapes"),
]


@pytest.mark.parametrize(("fun", "arguments", "message"), ILL_FUNCTIONS, ids=lambda v: None)
def test_what_fun_returns_is_checked(fun, arguments, message):
    with pytest.raises(ValueError, match=message):
        minimize(fun, **{"x0": zeros(3), **arguments})
