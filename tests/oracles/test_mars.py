"""MARS's oracle: the corrected gradient by hand, and the exact mode's second evaluation."""

import pytest
import torch
from torch import nn

import hasten


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2)).double()


class Batches:
    """A closure for each step, that records the dropout masks it drew."""

    def __init__(self, model):
        self.model, self.masks = model, []
        self.x = torch.randn(8, 16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        model[2].register_forward_hook(lambda _, inputs, output: self.masks.append(output.detach() != 0))

    def closure(self, k):
        def evaluate():
            self.model.zero_grad()
            loss = self.model(self.x[k]).square().sum()
            loss.backward()
            return loss.detach()

        return evaluate


def test_exact_mars_needs_a_closure():
    opt = hasten.MARS(network().parameters(), exact=True)
    with pytest.raises(TypeError, match="exact MARS needs a closure"):
        opt.step()


def test_both_evaluations_draw_the_same_dropout_masks():
    model = network()
    batches = Batches(model)
    opt = hasten.MARS(model.parameters(), exact=True)
    for k in range(4):
        opt.step(batches.closure(k))
    assert len(batches.masks) == 8
    for before, now in zip(batches.masks[::2], batches.masks[1::2], strict=True):
        assert torch.equal(before, now)
    assert not torch.equal(batches.masks[0], batches.masks[2])


@pytest.mark.parametrize("optimize_1d", [False, True])
def test_exact_mars_is_the_manual_computation(optimize_1d):
    """Against plain loops: the batch at the previous parameters of all tensors, with the same random numbers."""
    lr, (b1, b2), gamma, eps, decay = 0.01, (0.95, 0.99), 0.1, 1e-8, 0.1
    model, twin = network(), network()
    batches, manual = Batches(model), Batches(twin)
    opt = hasten.MARS(
        model.parameters(),
        lr=lr,
        betas=(b1, b2),
        gamma=gamma,
        weight_decay=decay,
        exact=True,
        optimize_1d=optimize_1d,
        lr_1d=0.003,
        betas_1d=(0.9, 0.95),
        weight_decay_1d=0.2,
    )
    params = list(twin.parameters())
    previous = [p.detach().clone() for p in params]
    m, v = ([torch.zeros_like(p) for p in params] for _ in range(2))
    for k in range(5):
        torch.manual_seed(k)
        loss = opt.step(batches.closure(k))

        current = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, old in zip(params, previous, strict=True):
                p.copy_(old)
        torch.manual_seed(k)
        manual.closure(k)()
        before = [p.grad.clone() for p in params]
        with torch.no_grad():
            for p, value in zip(params, current, strict=True):
                p.copy_(value)
        torch.manual_seed(k)
        expected = manual.closure(k)()
        assert torch.allclose(loss, expected, rtol=1e-12)
        previous = current
        with torch.no_grad():
            for i, p in enumerate(params):
                rate, beta1, beta2, wd, c = lr, b1, b2, decay, p.grad
                if p.dim() < 2 and not optimize_1d:
                    rate, beta1, beta2, wd = 0.003, 0.9, 0.95, 0.2
                else:
                    c = p.grad + gamma * b1 / (1 - b1) * (p.grad - before[i])
                    c = c / max(c.norm().item(), 1.0)
                m[i] = beta1 * m[i] + (1 - beta1) * c
                v[i] = beta2 * v[i] + (1 - beta2) * c * c
                u = m[i] / (1 - beta1 ** (k + 1)) / ((v[i] / (1 - beta2 ** (k + 1))).sqrt() + eps)
                p -= rate * (u + wd * p)
        for p, q in zip(model.parameters(), params, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-10, atol=1e-12)


def test_an_error_in_the_closure_puts_the_parameters_back():
    model = network()
    batches = Batches(model)
    opt = hasten.MARS(model.parameters(), exact=True)
    for k in range(2):
        opt.step(batches.closure(k))
    before = [p.detach().clone() for p in model.parameters()]

    def broken():
        raise KeyError("data")

    with pytest.raises(KeyError):
        opt.step(broken)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_first_correction_of_the_exact_mode_is_zero():
    """The previous parameters of the first step are the current ones: exact MARS then steps like its base."""
    w, u = (torch.full((2, 2), 0.5, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def closure(p):
        def evaluate():
            p.grad = torch.full_like(p, 0.1)
            return torch.zeros(())

        return evaluate

    hasten.MARS([w], exact=True, gamma=0.5).step(closure(w))
    hasten.MARS([u], exact=True, gamma=0.0).step(closure(u))
    assert torch.equal(w, u)


def test_approximate_mars_corrects_by_the_last_gradient():
    w = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    opt = hasten.Optimizer([w], oracle=hasten.oracles.Mars(gamma=0.1, beta1=0.5), lr=1.0)
    w.grad = torch.full_like(w, 1.0)
    opt.step()
    assert torch.allclose(w, torch.full_like(w, -1.1))
    w.grad = torch.full_like(w, 3.0)
    opt.step()
    assert torch.allclose(w, torch.full_like(w, -1.1 - (3.0 + 0.1 * 2.0)))


def test_frozen_parameters_are_left_alone_by_the_exact_mode():
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    batches = Batches(model)
    opt = hasten.MARS(model.parameters(), exact=True)
    for k in range(3):
        opt.step(batches.closure(k))
    assert torch.equal(before, model[0].weight)
