"""Directional derivatives from function values, against backpropagation."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_models import MODELS, backpropagated, flat, observed, problem, same

import hasten
from hasten.oracles import FiniteDifference
from hasten.sketches import BalancedCountSketch, Coordinates, CountSketch, Gaussian, Haar


def expected(sketch, gradients):
    g = flat(gradients)
    draw = sketch.draw(g.numel(), seed=0, step=0)
    return draw.lift(draw.project(g))


@pytest.mark.parametrize(("central", "accuracy", "evaluations"), [(True, 1e-7, 14), (False, 1e-3, 8)])
@pytest.mark.parametrize("name", MODELS)
def test_it_learns_the_projected_gradient(name, central, accuracy, evaluations):
    model, closure = problem(name)
    params = list(model.parameters())
    buffers = {k: b.clone() for k, b in model.named_buffers()}
    gradients, loss, after = backpropagated(closure, params)
    once = {k: b.clone() for k, b in model.named_buffers()}
    for k, b in model.named_buffers():
        b.copy_(buffers[k])
    before = [p.detach().clone() for p in params]
    found, _ = observed(FiniteDifference(rank=7, central=central), model, closure)
    assert same(
        flat(found.gradients[p] for p in params), expected(BalancedCountSketch(rank=7), gradients), accuracy
    )
    assert same(found.loss, loss, 1e-14 if not central else 1e-7)
    assert found.numbers["evaluations"] == evaluations
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert torch.equal(torch.get_rng_state(), after)
    for k, b in model.named_buffers():  # those of one pass, at a point h away
        torch.testing.assert_close(b, once[k], rtol=1e-3, atol=1e-4)
        assert k.endswith("num_batches_tracked") is not b.is_floating_point()


@pytest.mark.parametrize(
    "sketch",
    [Haar(rank=4), Gaussian(rank=4), Coordinates(rank=4), CountSketch(rank=20), BalancedCountSketch(rank=4)],
)
@pytest.mark.parametrize(("central", "accuracy"), [(True, 1e-7), (False, 1e-3)])
def test_the_length_of_the_columns_does_not_matter(sketch, central, accuracy):
    """A column of a coordinate sketch has length √(d/r), a Gaussian one entries of 1/√r, a bucket may be empty."""
    model, closure = problem("mlp with dropout")
    params = list(model.parameters())
    gradients, _, _ = backpropagated(closure, params)
    found, _ = observed(FiniteDifference(sketch=sketch, central=central), model, closure)
    assert same(flat(found.gradients[p] for p in params), expected(sketch, gradients), accuracy)


@settings(max_examples=25, deadline=None)
@given(
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    rank=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 50),
)
def test_the_default_step_suits_every_scale(scale, rank, dtype, seed):
    """The error of a function on the parameters' own scale is within a few times ε^(2/3), or that of the unit step."""
    generator = torch.Generator().manual_seed(seed)
    w = (scale * torch.randn(6, dtype=dtype, generator=generator)).requires_grad_()
    closure = lambda: ((w / scale).sin() + (w / scale) ** 2).sum()  # noqa: E731
    if scale < 1e-2:  # unit-scale steps would be far outside: the user says so
        oracle = FiniteDifference(rank=rank, step_size=torch.finfo(dtype).eps ** (1 / 3) * scale)
    else:
        oracle = FiniteDifference(rank=rank)
    gradients, _, _ = backpropagated(closure, [w])
    found, _ = observed(oracle, [w], closure)
    exact = expected(BalancedCountSketch(rank=rank), gradients)
    size = float(gradients[0].norm()) * 6
    assert float((found.gradients[w] - exact).norm()) <= 30 * torch.finfo(dtype).eps ** (2 / 3) * size


def test_a_closure_that_torch_cannot_differentiate():
    numpy = pytest.importorskip("numpy")
    w = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    opt = hasten.Optimizer([w], oracle=FiniteDifference(rank=3), lr=0.25)
    loss = opt.step(lambda: float(numpy.square(w.numpy()).sum()))
    assert isinstance(loss, float)
    assert loss == pytest.approx(14, rel=1e-8)
    torch.testing.assert_close(
        w.detach(), torch.tensor([0.5, -1.0, 1.5], dtype=torch.float64), rtol=1e-8, atol=0
    )


@pytest.mark.parametrize("name", ["mlp with dropout", "attention"])
def test_curvature_along_the_direction(name):
    model, closure = problem(name)
    params = list(model.parameters())
    state = torch.get_rng_state()
    found, _ = observed(FiniteDifference(rank=5, curvature=True), model, closure)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradients = torch.autograd.grad(closure(), params, create_graph=True)
    assert torch.equal(torch.get_rng_state(), after)
    G = [found.gradients[p] for p in params]
    products = torch.autograd.grad(sum((g * d).sum() for g, d in zip(gradients, G, strict=True)), params)
    exact = sum(float((h * d).sum()) for h, d in zip(products, G, strict=True))
    assert found.numbers["curvature"] == pytest.approx(exact, rel=1e-4)
    assert found.numbers["evaluations"] == 10 + 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_come_back_bit_for_bit_also_after_an_error(dtype):
    torch.manual_seed(0)
    w = (torch.randn(1000) * torch.logspace(-6, 6, 1000)).to(dtype).requires_grad_()
    before = w.detach().clone()
    calls = iter(range(99))

    def closure():
        if next(calls) == 5:
            assert not torch.equal(w, before)
            raise KeyError("data")
        return w.float().square().mean()

    opt = hasten.Optimizer([w], oracle=FiniteDifference(rank=8), lr=0.1)
    with pytest.raises(KeyError):
        opt.step(closure)
    assert torch.equal(w, before)
    opt = hasten.Optimizer([w], oracle=FiniteDifference(rank=8), lr=0.0)
    opt.step(closure)
    assert torch.equal(w, before)


def test_the_state_after_an_error():
    model, closure = problem("convolution with batch norm")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    calls = iter(range(99))

    def broken():
        loss = closure() + torch.rand(())
        if next(calls) == 2:
            raise KeyError("data")
        return loss

    opt = hasten.Optimizer(model, oracle=FiniteDifference(rank=3), lr=0.1)
    with pytest.raises(KeyError):
        opt.step(broken)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("closure", "error", "message"),
    [
        (None, TypeError, "needs a closure that returns the loss"),
        (lambda w: None, TypeError, "returned NoneType; it must return the loss, one real number"),
        (lambda w: w, TypeError, r"returned a tensor of shape \(4,\)"),
        (lambda w: w.sum().backward(), RuntimeError, r"the closure called backward\(\)"),
    ],
)
def test_a_closure_that_does_something_else(closure, error, message):
    w = torch.ones(4, requires_grad=True)
    opt = hasten.Optimizer([w], oracle=FiniteDifference(rank=2), lr=0.1)
    with pytest.raises(error, match=f"FiniteDifference: .*{message}"):
        opt.step(None if closure is None else lambda: closure(w))
    assert torch.equal(w, torch.ones(4))


@pytest.mark.parametrize("arguments", [{"step_size": 0.0}, {"step_size": -1}, {"central": 1}, {"rank": -1}])
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="is not allowed"):
        FiniteDifference(**arguments)


def test_a_given_step_is_used():
    """f = x³ at 0: the central difference with step h is h², the one-sided one too."""
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for central in (True, False):
        oracle = FiniteDifference(rank=1, step_size=0.1, central=central)
        found, _ = observed(oracle, [w], lambda: (w**3).sum())
        assert float(found.gradients[w]) == pytest.approx(0.01, rel=1e-12)
