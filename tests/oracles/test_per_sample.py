"""Per-sample gradients against one backward pass for each sample."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_models import observed, same
from torch import nn

import hasten
from hasten.oracles import ForEach, PerSample, per_sample_gradients


class Batch:
    """A small network, a batch, and the gradients of its samples one by one."""

    def __init__(self, n=7):
        torch.manual_seed(n)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.x, self.y = torch.randn(n, 3).double(), torch.randn(n, 2).double()
        self.params = list(self.model.parameters())
        self.gradients = []
        for i in range(n):
            loss = (self.model(self.x[i : i + 1]) - self.y[i : i + 1]).square().mean()
            self.gradients.append(torch.autograd.grad(loss, self.params))
        self.losses = self.all_losses().detach()

    def all_losses(self):
        return (self.model(self.x) - self.y).square().mean(1)

    def closures(self):
        one = lambda x, y: (self.model(x) - y).square().mean()  # noqa: E731
        return [self.all_losses, ForEach(one, self.x, self.y)]


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 9), chunk=st.one_of(st.none(), st.integers(1, 10)))
def test_gradients_of_every_sample(n, chunk):
    batch = Batch(n)
    for closure in batch.closures():
        pieces = list(per_sample_gradients(closure, batch.model, chunk))
        assert [len(losses) for losses, _ in pieces] == [
            min(chunk or n, n - i) for i in range(0, n, chunk or n)
        ]
        torch.testing.assert_close(torch.cat([losses for losses, _ in pieces]), batch.losses)
        for j in range(len(batch.params)):
            found = torch.cat([gradients[j] for _, gradients in pieces])
            torch.testing.assert_close(found, torch.stack([g[j] for g in batch.gradients]))
    assert all(p.grad is None for p in batch.params)


@pytest.mark.parametrize("clip", [None, 0.7, 1e-3, 1e3])
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_mean_its_clipping_and_its_variance(clip, chunk):
    batch = Batch()
    whole = torch.stack([torch.cat([g.flatten() for g in gradients]) for gradients in batch.gradients])
    lengths = whole.norm(dim=1)
    clipped = whole if clip is None else whole * (clip / lengths).clamp(max=1)[:, None]
    for closure in batch.closures():
        found, _ = observed(PerSample(clip=clip, chunk=chunk, variance_by_entry=True), batch.model, closure)
        got = torch.cat([found.gradients[p].flatten() for p in batch.params])
        assert same(got, clipped.mean(0))
        assert found.numbers["loss"] == pytest.approx(float(batch.losses.mean()), rel=1e-12)
        assert same(found.loss, batch.losses.mean())
        assert found.numbers["mean_square"] == pytest.approx(float(lengths.square().mean()), rel=1e-12)
        assert found.numbers["variance"] == pytest.approx(float(whole.var(0).sum()), rel=1e-10)
        by_entry = torch.cat([found.extras["grad_variance"][p].flatten() for p in batch.params])
        assert same(by_entry, whole.var(0), 1e-10)
        assert found.numbers["clipped"] == pytest.approx(
            0 if clip is None else float((lengths > clip).double().mean())
        )


def test_steps_without_clipping_are_those_of_the_batch():
    batch, twin = Batch(), Batch()
    opt = hasten.Optimizer(batch.model, oracle=PerSample(chunk=3), lr=0.1)
    reference = torch.optim.SGD(twin.params, lr=0.1)
    for k in range(4):
        opt.step(batch.closures()[k % 2])
        reference.zero_grad()
        twin.all_losses().mean().backward()
        reference.step()
    for p, q in zip(batch.params, twin.params, strict=True):
        torch.testing.assert_close(p, q)


def test_one_sample_has_no_variance():
    batch = Batch(1)
    found, _ = observed(PerSample(), batch.model, batch.all_losses)
    assert math.isnan(found.numbers["variance"])


def test_a_sample_with_the_gradient_zero_is_not_divided_by():
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    found, _ = observed(PerSample(clip=1.0), [w], lambda: x @ w)
    torch.testing.assert_close(found.gradients[w], torch.tensor([0.3, 0.4], dtype=torch.float64))


def test_dropout_masks_differ_from_sample_to_sample():
    w = torch.ones(64, requires_grad=True)
    x = torch.ones(8, 64)
    each = ForEach(lambda x: nn.functional.dropout(x * w, 0.5).sum(), x)
    ((_, (gradients,)),) = per_sample_gradients(each, [w])
    assert len({tuple(g.tolist()) for g in gradients}) == 8


@pytest.mark.parametrize(
    ("closure", "error", "message"),
    [
        (None, TypeError, "needs a closure that returns the losses of all samples"),
        (lambda w: w.sum(), ValueError, r"losses of shape \(\); it must return those of all samples"),
        (lambda w: 1.0, ValueError, "losses of type float"),
        (lambda w: torch.ones(3), RuntimeError, "do not depend on the parameters"),
        (lambda w: torch.zeros(0) * w.sum(), ValueError, "the batch is empty"),
    ],
)
def test_a_closure_that_does_something_else(closure, error, message):
    w = torch.ones(4, requires_grad=True)
    opt = hasten.Optimizer([w], oracle=PerSample(), lr=0.1)
    with pytest.raises(error, match=f"PerSample: .*{message}"):
        opt.step(None if closure is None else lambda: closure(w))
    assert torch.equal(w, torch.ones(4))


def test_arguments_out_of_range():
    for arguments in ({"clip": 0}, {"chunk": 0}, {"variance_by_entry": 1}):
        with pytest.raises(ValueError, match="is not allowed"):
            PerSample(**arguments)
    with pytest.raises(ValueError, match=r"shapes \(2,\), \(3,\) are not a batch"):
        ForEach(lambda x, y: x, torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="shapes none are not a batch"):
        ForEach(lambda: 0)
