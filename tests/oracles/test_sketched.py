"""A known gradient, seen through a random subspace."""

import math

import pytest
import torch
from oracle_models import backpropagated, flat, observed, problem, same

import hasten
from hasten.oracles import Backpropagation, ForwardMode, Mars, Sketched
from hasten.sketches import BalancedCountSketch, Haar, ImportanceCoordinates, IndependentCoordinates, PerLayer


@pytest.mark.parametrize("style", ["returned loss", "torch's closure", "no closure"])
def test_wherever_the_gradient_is(style):
    model, closure = problem("attention")
    model.eval()
    params = list(model.parameters())
    gradients, loss, _ = backpropagated(closure, params)
    draw = BalancedCountSketch(rank=9).draw(flat(params).numel(), seed=4, step=0)
    s = draw.project(flat(gradients))

    def backward():
        model.zero_grad()
        loss = closure()
        loss.backward()
        return loss

    if style == "no closure":
        backward()
    given = {"returned loss": closure, "torch's closure": backward, "no closure": None}[style]
    found, _ = observed(Sketched(rank=9), model, given, seed=4)
    assert same(flat(found.gradients[p] for p in params), draw.lift(s))
    assert found.numbers["squared_norm"] == pytest.approx(float(s.square().sum()), rel=1e-12)
    assert found.numbers["directional_derivatives"] == 9
    assert math.isnan(found.numbers["short_step"])
    if style != "no closure":
        assert same(found.loss.detach(), loss)
        assert found.numbers["loss"] == pytest.approx(float(loss), rel=1e-12)
    if style != "returned loss":  # p.grad stays as it is
        assert all(torch.equal(p.grad, g) for p, g in zip(params, gradients, strict=True))


def test_it_learns_what_forward_mode_learns():
    for sketch in (Haar(rank=5), PerLayer(BalancedCountSketch(ratio=4)), IndependentCoordinates(ratio=7)):
        model, closure = problem("mlp with dropout")
        state = torch.get_rng_state()
        results = []
        for oracle in (Sketched(sketch=sketch, curvature=True), ForwardMode(sketch=sketch, curvature=True)):
            torch.set_rng_state(state)
            results.append(observed(oracle, model, closure, seed=2)[0])
        one, other = results
        assert all(same(one.gradients[p], other.gradients[p]) for p in model.parameters())
        for name in ("loss", "squared_norm", "directional_derivatives"):
            assert one.numbers[name] == pytest.approx(other.numbers[name], rel=1e-12)
        assert one.numbers["curvature"] == pytest.approx(other.numbers["curvature"], rel=1e-9)


@pytest.mark.parametrize("smoothness", [5.0, "estimate"])
def test_accelerated_descent_is_the_same_with_either_oracle(smoothness):
    """The whole method on a network with dropout: a projected gradient, and forward mode in either way."""
    runs = []
    for oracle in (Sketched(), ForwardMode(chunk=1), ForwardMode(chunk=4)):
        model, closure = problem("mlp with dropout")
        sketch = BalancedCountSketch(rank=12)
        opt = hasten.SubspaceNesterov(model, sketch=sketch, oracle=oracle, smoothness=smoothness, seed=1)
        losses = [float(opt.step(closure).detach()) for _ in range(12)]
        runs.append((losses, flat(model.parameters())))
    for losses, params in runs[1:]:
        assert losses == pytest.approx(runs[0][0], rel=1e-8)
        assert same(params, runs[0][1], 1e-8)


def test_a_sketch_that_drew_nothing():
    """The loss is still known, and the gradient zero."""
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    sketch = IndependentCoordinates(ratio=1000)
    for oracle in (
        ForwardMode(sketch=sketch),
        Sketched(sketch=sketch),
        hasten.oracles.FiniteDifference(sketch=sketch),
    ):
        found, _ = observed(oracle, [w], lambda: (w**2).sum())
        assert found.numbers["directional_derivatives"] == 0
        assert found.numbers["loss"] == 3
        assert not found.gradients[w].any()


def test_the_step_of_importance_sampling_is_delivered():
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    diagonal = torch.tensor([4.0, 1.0, 0.25])
    sketch = ImportanceCoordinates(diagonal)
    found, _ = observed(ForwardMode(sketch=sketch), [w], lambda: (w**2).sum())
    draw = sketch.draw(3, seed=0, step=0)
    assert found.numbers["short_step"] == draw.short_step
    i = int(draw.columns()[0].nonzero())
    probability = diagonal.sqrt()[i] / diagonal.sqrt().sum()
    assert found.numbers["short_step"] == pytest.approx(float(probability / diagonal[i]), rel=1e-6)


def test_no_gradient_at_all_leaves_everything():
    w = torch.ones(3, requires_grad=True)
    opt = hasten.Optimizer([w], oracle=Sketched(rank=2), lr=0.1)
    opt.step()
    assert torch.equal(w, torch.ones(3))


def test_sparse_gradients_are_refused_by_name():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    opt = hasten.Optimizer(embedding, oracle=Sketched(rank=2), lr=0.1)
    with pytest.raises(RuntimeError, match="parameter 'weight' has a sparse gradient"):
        opt.step(lambda: embedding(torch.tensor([1])).sum())


def test_curvature_needs_a_closure():
    w = torch.ones(3, requires_grad=True)
    w.grad = torch.ones(3)
    opt = hasten.Optimizer([w], oracle=Sketched(rank=2, curvature=True), lr=0.1)
    with pytest.raises(TypeError, match="curvature=True needs a closure that returns the loss"):
        opt.step()


def test_only_plain_gradients_can_be_sketched():
    assert Sketched(rank=2).inner == Backpropagation()
    with pytest.raises(TypeError, match="inner = Mars"):
        Sketched(rank=2, inner=Mars())


def test_scheduled_weight_decay_is_that_of_the_coming_step():
    w = torch.ones(4, dtype=torch.float64, requires_grad=True)
    oracle = Sketched(rank=4, weight_decay=lambda k: 0.1 * (k + 1))
    opt = hasten.Optimizer([w], oracle=oracle, lr=0.0)
    for k in range(3):
        found = oracle.observe(opt, lambda: 0 * w.sum())
        torch.testing.assert_close(found.gradients[w], torch.full_like(w, 0.1 * (k + 1)))
        opt.step(lambda: 0 * w.sum())
