"""The canonical triple with estimated constants: what the estimates are worth where the constants are known."""

import pytest
import torch

import hasten
from hasten.problems.least_squares import StreamingLeastSquares


def run(problem, steps, seed=0, **constants):
    generator = torch.Generator().manual_seed(seed)
    w = problem.start().requires_grad_()
    opt = hasten.AcceleratedSGD.canonical(
        [w], strong_convexity=problem.strong_convexity, engine="eager", **constants
    )

    def closure():
        residual = a @ w.detach() - y
        w.grad = a.T @ residual / problem.batch
        return float(residual @ residual) / (2 * problem.batch)

    for _ in range(steps):
        a, y = problem.sample(generator)
        opt.step(closure)
    with opt.evaluating():
        return float(problem.excess_risk(w.detach())), opt


@pytest.mark.parametrize(("batch", "reached"), [(1, 1e-2), (8, 1e-10)])
@pytest.mark.parametrize("smoothness", ["known", "estimate"])
def test_estimated_constants_keep_most_of_the_gain(batch, reached, smoothness):
    """Tuned SGD reaches about 0.3 at batch 1 after as many steps."""
    problem = StreamingLeastSquares(batch=batch)
    given = problem.r_squared if smoothness == "known" else "estimate"
    risk, _ = run(problem, 3000, smoothness=given, noise="estimate")
    assert risk < reached


@pytest.mark.parametrize("batch", [8, 64])
def test_the_estimates_are_of_the_right_size(batch):
    problem = StreamingLeastSquares(batch=batch, seed=3)
    _, opt = run(problem, 400, smoothness="estimate", noise="estimate")
    group = opt.param_groups[0]
    growth = group["total"] / group["signal"]
    assert problem.growth / 2 < growth < 4 * problem.growth
    stochastic = group["square"] / group["twice_loss"]
    assert problem.r_squared / 3 < stochastic < 1.5 * problem.r_squared


def test_without_noise_the_growth_is_one():
    """Full gradients: ρ̂ stays near 1, so that the method is Nesterov's."""
    h = torch.logspace(-2, 0, 10, dtype=torch.float64)
    w = torch.ones(10, dtype=torch.float64, requires_grad=True)
    opt = hasten.AcceleratedSGD.canonical([w], smoothness=1.0, strong_convexity=1e-2, noise="estimate")
    for _ in range(300):
        w.grad = h * w.detach()
        opt.step()
    with opt.evaluating():
        assert float((h * w.detach() ** 2).sum()) < 1e-8


def test_an_estimated_smoothness_needs_the_loss():
    w = torch.ones(3, requires_grad=True)
    opt = hasten.AcceleratedSGD.canonical([w], smoothness="estimate", strong_convexity=0.1)
    w.grad = torch.ones(3)
    before = w.detach().clone()
    with pytest.raises(TypeError, match="needs a closure"):
        opt.step()
    assert torch.equal(w.detach(), before)


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="noise = 'guess' is not allowed"):
        hasten.AcceleratedSGD.canonical([torch.ones(3, requires_grad=True)], 1.0, 0.1, noise="guess")
