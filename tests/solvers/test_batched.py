"""A stack of problems is solved as each would be alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.solvers import L1, Status, minimize

METHODS = [
    ("gradient-descent", {}),
    ("gradient-descent", {"smoothness": 6.0}),
    ("nesterov", {}),
    ("nesterov", {"smoothness": 6.0, "strong_convexity": 0.5}),
    ("nesterov", {"restart": "function"}),
    ("fista", {}),
    ("fista", {"restart": "none"}),
    ("l-bfgs", {}),
    ("l-bfgs", {"memory": 2}),
    ("ncg", {"beta": "hs+"}),
    ("ncg", {"beta": "hz"}),
    ("ncg", {"beta": "fr"}),
]


def stack(seed, size, d):
    """Smooth, strongly convex problems of very different difficulty: softplus regressions with a ridge."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(size, 3 * d, d, generator=generator, dtype=torch.float64)
    data = data * torch.logspace(0, -2, size, dtype=torch.float64)[:, None, None]
    target = torch.randn(size, 3 * d, generator=generator, dtype=torch.float64)

    def fun(x, rows=slice(None)):
        inner = (data[rows] @ x.unsqueeze(-1)).squeeze(-1)
        return (torch.nn.functional.softplus(inner) - target[rows] * inner).mean(-1) + 0.5 * x.square().sum(
            -1
        )

    return fun, torch.randn(size, d, generator=generator, dtype=torch.float64)


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6))
@pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda v: str(v))
def test_batched_equals_alone(method, options, seed, size, d):
    fun, x0 = stack(seed, size, d)
    together = minimize(fun, x0, method, batched=True, options=options)
    for i in range(size):
        alone = minimize(fun, x0[i], method, args=(i,), options=options)
        assert together.nit[i] == alone.nit
        assert together.nfev[i] == alone.nfev
        assert together.njev[i] == alone.njev
        assert together.status[i] == alone.status
        assert together.message[i] == alone.message
        assert bool(together.success[i]) == alone.success
        assert torch.allclose(together.x[i], alone.x, rtol=1e-7, atol=1e-9)
        assert together.fun[i].item() == pytest.approx(alone.fun, rel=1e-10)


@pytest.mark.parametrize("method", ["gradient-descent", "nesterov", "fista"])
def test_prox_and_bounds_of_a_stack(method):
    fun, x0 = stack(3, 4, 5)
    for extra in ({"prox": L1(0.02)}, {"bounds": (torch.full((5,), -0.1), torch.full((5,), 0.2))}):
        together = minimize(fun, x0, method, batched=True, **extra)
        for i in range(4):
            alone = minimize(fun, x0[i], method, args=(i,), **extra)
            assert together.nit[i] == alone.nit
            assert torch.allclose(together.x[i], alone.x, atol=1e-9)
            assert together.fun[i].item() == pytest.approx(alone.fun, rel=1e-10)


def test_a_users_prox_gets_a_step_that_broadcasts():
    fun, x0 = stack(4, 3, 4)

    def shrink(v, step):
        return v.sign() * (v.abs() - 0.02 * step).clamp(min=0)

    ours = minimize(fun, x0, "fista", batched=True, prox=L1(0.02))
    users = minimize(fun, x0, "fista", batched=True, prox=shrink)
    assert torch.equal(ours.x, users.x)


@pytest.mark.parametrize("method", ["l-bfgs", "ncg", "nesterov", "gradient-descent"])
def test_one_failure_does_not_touch_the_others(method):
    """Row 0 starts without a value, row 1 falls into a hole without one, row 2 is well."""

    def fun(x):
        holes = torch.tensor([float("nan"), 1.0, 1.0], dtype=torch.float64)
        return x.square().sum(-1) * holes + torch.where(
            x[:, 0] < 1, holes.new_tensor([0, float("nan"), 0]), 0
        )

    x0 = torch.tensor([[3.0, 1.0]] * 3, dtype=torch.float64)
    result = minimize(fun, x0, method, batched=True, options={"maxiter": 200})
    assert result.status[0] == Status.START
    assert torch.equal(result.x[0], x0[0])
    assert result.status[1] != Status.GRADIENT
    assert result.fun[1] <= 10
    assert result.success[2]
    assert result.x[2].abs().max() < 1e-4


def test_problems_that_have_ended_are_left_alone():
    fun, x0 = stack(5, 4, 3)
    result = minimize(fun, x0, batched=True, options={"history": True, "max_evaluations": 6})
    again = minimize(fun, result.x, batched=True, options={"maxiter": 0})
    assert (again.nit == 0).all()
    assert (again.nfev == 1).all()
    assert torch.equal(again.fun, result.fun)
    assert (result.nfev <= 6).all()
    assert len(result.history["fun"]) <= 7
    assert result.history["fun"][0].shape == (4,)
    ended = result.success
    assert ended.any()
    assert torch.equal(result.history["fun"][-1][ended], result.fun[ended])
    assert torch.equal(result.history["nit"][-1].long(), result.nit)


def test_a_structure_is_batched_leaf_by_leaf():
    x0 = {"a": torch.zeros(3, 2, 2, dtype=torch.float64), "b": torch.zeros(3, dtype=torch.float64)}
    goal = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def fun(x):
        return (x["a"] - goal[:, None, None]).square().sum((1, 2)) + (x["b"] + goal).square()

    result = minimize(fun, x0, batched=True)
    assert torch.allclose(result.x["a"], goal[:, None, None].expand(3, 2, 2), atol=1e-5)
    assert torch.allclose(result.x["b"], -goal, atol=1e-5)
    assert result.jac["a"].shape == (3, 2, 2)


def test_float32_stacks_stay_float32():
    result = minimize(lambda x: (x - 2).square().sum(-1), torch.zeros(3, 2), batched=True)
    assert result.x.dtype == torch.float32
    assert result.success.all()


def test_a_callback_sees_the_whole_stack():
    fun, x0 = stack(6, 3, 2)
    seen = []
    minimize(fun, x0, batched=True, callback=lambda intermediate_result: seen.append(intermediate_result))
    assert seen[0].x.shape == (3, 2)
    assert seen[0].fun.shape == (3,)
