"""Accelerated dynamics with matrix geometry: compositions, each against its recursion stated by itself."""

import matrix_recursions as reference
import pytest
import torch

import hasten
from hasten.iterates import Plain, ScheduleFree
from hasten.oracles import Backpropagation, Mars
from hasten.transforms import (
    EMA,
    ClipTensorNorm,
    Interpolation,
    NesterovEMA,
    Orthogonalize,
    SecondMoment,
    TwoMomenta,
    WeightDecay,
)

M, N = 5, 8
LR, DECAY = 0.05, 0.2


def made(count=8):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(count + 1, M, N, generator=generator, dtype=torch.float64)
    return draws[0], list(draws[1:])


def polar_of(momentum):
    return lambda g, k: reference.polar(momentum(g, k))


def two_momenta():
    fast, slow = reference.average(0.9), reference.average(0.99)
    return polar_of(lambda g, k: fast(g) / (1 - 0.9**k) + 4.0 * slow(g))


def lion_like():
    kept = [torch.zeros(M, N, dtype=torch.float64)]

    def momentum(g, _):
        u = 0.9 * kept[-1] + 0.1 * g
        kept.append(0.98 * kept[-1] + 0.02 * g)
        return u

    return polar_of(momentum)


def mars():
    average, before = reference.average(0.95), [torch.zeros(M, N, dtype=torch.float64)]

    def momentum(g, _):
        c = g + 0.025 * 0.95 / 0.05 * (g - before[-1])
        before.append(g)
        return average(c / max(1.0, float(c.norm())))

    direction = polar_of(momentum)
    return lambda g, k: 0.2 * max(M, N) ** 0.5 * direction(g, k)


COMPOSITIONS = {
    "AdEMAMix's momenta": ((TwoMomenta(0.9, 0.99, 4.0), Orthogonalize("svd")), {}, two_momenta),
    "Lion's momentum": ((Interpolation(0.9, 0.98), Orthogonalize("svd")), {}, lion_like),
    "MARS": (
        (ClipTensorNorm(1.0), EMA(0.95, debias=False), Orthogonalize("svd", scale="match_rms_adamw")),
        {"oracle": Mars(0.025, 0.95)},
        mars,
    ),
}


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_composition_is_its_recursion(name, engine):
    chain, options, stated = COMPOSITIONS[name]
    start, gradients = made()
    w = start.clone().requires_grad_()
    opt = hasten.Optimizer([w], *chain, lr=LR, weight_decay=DECAY, engine=engine, **options)
    expected = reference.trajectory(start, gradients, stated(), LR, DECAY)
    reference.compare(reference.run(opt, w, gradients), expected, 1e-11)


@pytest.mark.parametrize("inner", [False, True])
def test_schedule_free_muon_is_its_recursion(inner):
    """Steps of z along the orthogonal factor of the gradient at y (or of an average of them); evaluated at x."""
    start, gradients = made()
    w = start.clone().requires_grad_()
    first = NesterovEMA(0.5, nesterov=False).rename(momentum="inner_momentum")
    chain = (*((first,) if inner else ()), Orthogonalize("svd"))
    iterate = ScheduleFree(LR, momentum=0.9)
    opt = hasten.Optimizer([w], *chain, iterate=iterate)
    x, z, average, y = start, start, reference.average(0.5), start
    for k, g in enumerate(gradients, start=1):
        torch.testing.assert_close(w.detach(), y, rtol=1e-11, atol=1e-11)
        w.grad = g.clone()
        opt.step()
        z = z - LR * reference.polar(average(g) if inner else g)
        x = x + (z - x) / k
        y = 0.1 * z + 0.9 * x
        with opt.evaluating():
            torch.testing.assert_close(w.detach(), x, rtol=1e-11, atol=1e-11)


def test_a_whole_model_trains_with_schedule_free_muon():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()
    others = hasten.Sentence(
        Backpropagation(), (SecondMoment(0.95), WeightDecay(0.0)), ScheduleFree(0.01, momentum=0.9)
    )
    opt = hasten.Optimizer(model, Orthogonalize(), iterate=ScheduleFree(0.05, momentum=0.9), vectors=others)
    assert [g["lr"] for g in opt.param_groups] == [0.05, 0.01]
    x, y = torch.randn(64, 6, dtype=torch.float64), torch.randint(3, (64,))

    def loss():
        return torch.nn.functional.cross_entropy(model(x), y)

    start = loss().item()
    for _ in range(60):
        opt.zero_grad()
        loss().backward()
        opt.step()
    with opt.evaluating():
        assert loss().item() < 0.6 * start


def test_the_other_sentence_may_be_anything():
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)).double()
    others = hasten.Sentence(Backpropagation(), (WeightDecay(0.0),), Plain(0.3))
    opt = hasten.Optimizer(model, Orthogonalize("svd"), lr=0.1, vectors=others)
    before = model[1].weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    torch.testing.assert_close(model[1].weight.detach(), before - 0.3, rtol=1e-14, atol=1e-15)
