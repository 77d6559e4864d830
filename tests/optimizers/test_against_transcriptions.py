"""Optimizers that torch does not have, against plain loops written from their papers, and against authors' code."""

import math

import pytest
import torch

import hasten

LR, B1, B2, EPS, WD = 0.01, 0.9, 0.99, 1e-8, 0.1


def closed_loop(make, steps=40):
    """The trajectory of a small nonlinear problem, gradients taken at the parameters."""
    w = torch.linspace(-1.0, 1.5, 6, dtype=torch.float64).requires_grad_()
    opt = make([w])
    path = []
    for k in range(steps):
        w.grad = gradient(w.detach(), k)
        opt.step()
        path.append(w.detach().clone())
    return torch.stack(path)


def gradient(w, k):
    return torch.sin(3 * w + k) + 0.5 * w


def loop(update, steps=40):
    """The same, by a plain loop: `update(w, g, k, s)` returns the new parameters; `s` remembers."""
    w, s, path = torch.linspace(-1.0, 1.5, 6, dtype=torch.float64), {}, []
    for k in range(1, steps + 1):
        w = update(w, gradient(w, k - 1), k, s)
        path.append(w)
    return torch.stack(path)


def average(s, key, new, beta):
    s[key] = beta * s.get(key, torch.zeros_like(new)) + (1 - beta) * new
    return s[key]


def adabound(w, g, k, s, amsbound=False):
    g = g + WD * w
    m, v = average(s, "m", g, B1), average(s, "v", g * g, B2)
    if amsbound:
        v = s["max"] = torch.maximum(s.get("max", v), v)
    rate = LR * math.sqrt(1 - B2**k) / (1 - B1**k) / (v.sqrt() + EPS)
    low, high = 0.1 * (1 - 1 / (1e-3 * k + 1)), 0.1 * (1 + 1 / (1e-3 * k))
    return w - rate.clamp(low, high) * m


def diffgrad(w, g, k, s):
    g = g + WD * w
    m, v = average(s, "m", g, B1), average(s, "v", g * g, B2)
    friction = torch.sigmoid((s.get("g", torch.zeros_like(g)) - g).abs())
    s["g"] = g
    return w - LR * math.sqrt(1 - B2**k) / (1 - B1**k) * friction * m / (v.sqrt() + EPS)


def ademamix(w, g, k, s):
    fast, slow, v = average(s, "m1", g, B1), average(s, "m2", g, 0.999), average(s, "v", g * g, B2)
    u = (fast / (1 - B1**k) + 5.0 * slow) / ((v / (1 - B2**k)).sqrt() + EPS)
    return w - LR * (u + WD * w)


def simplified_ademamix(w, g, k, s):
    s["m"] = B1 * s.get("m", 0) + g
    v = average(s, "v", g * g, B2)
    return w - LR * ((s["m"] + 5.0 * g) / ((v / (1 - B2**k)).sqrt() + EPS) + WD * w)


def lion(w, g, k, s):
    m = s.get("m", torch.zeros_like(g))
    u = (B1 * m + (1 - B1) * g).sign()
    s["m"] = B2 * m + (1 - B2) * g
    return w - LR * (u + WD * w)


def signum(w, g, k, s):
    return w - LR * (average(s, "m", g, B1).sign() + WD * w)


def qhadam(w, g, k, s):
    g = g + WD * w
    m, v = average(s, "m", g, B1) / (1 - B1**k), average(s, "v", g * g, B2) / (1 - B2**k)
    return w - LR * (0.7 * m + 0.3 * g) / ((0.8 * v + 0.2 * g * g).sqrt() + EPS)


def optax_nadamw(w, g, k, s):
    m, v = average(s, "m", g, B1), average(s, "v", g * g, B2)
    look = B1 * m / (1 - B1 ** (k + 1)) + (1 - B1) * g / (1 - B1**k)
    return w - LR * (look / ((v / (1 - B2**k)).sqrt() + EPS) + WD * w)


ADAM = {"lr": LR, "betas": (B1, B2), "eps": EPS, "weight_decay": WD}
CASES = {
    "AdaBound": (adabound, hasten.AdaBound, ADAM),
    "AMSBound": (lambda *a: adabound(*a, amsbound=True), hasten.AMSBound, ADAM),
    "DiffGrad": (diffgrad, hasten.DiffGrad, ADAM),
    "AdEMAMix": (ademamix, hasten.AdEMAMix, {**ADAM, "betas": (B1, B2, 0.999), "alpha": 5.0}),
    "SimplifiedAdEMAMix": (simplified_ademamix, hasten.SimplifiedAdEMAMix, {**ADAM, "alpha": 5.0}),
    "Lion": (lion, hasten.Lion, {"lr": LR, "betas": (B1, B2), "weight_decay": WD}),
    "Signum": (signum, hasten.Signum, {"lr": LR, "momentum": B1, "weight_decay": WD}),
    "QHAdam": (qhadam, hasten.QHAdam, {**ADAM, "nus": (0.7, 0.8)}),
    "NAdamW optax": (optax_nadamw, hasten.NAdamW, {**ADAM, "variant": "optax"}),
}


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("name", CASES)
def test_the_trajectory_is_the_papers(name, engine):
    update, cls, kwargs = CASES[name]
    ours = closed_loop(lambda p: cls(p, engine=engine, **kwargs))
    torch.testing.assert_close(ours, loop(update), rtol=1e-11, atol=1e-13)


def test_adabound_scales_its_bounds_with_a_scheduled_lr():
    def halved(w, g, k, s):
        step = adabound(w, g, k, s)
        return w + (step - w) * 0.5**k

    def make(params):
        opt = hasten.AdaBound(params, **ADAM)
        torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1.0)
        opt.register_step_pre_hook(lambda o, *_: o.param_groups[0].update(lr=o.param_groups[0]["lr"] / 2))
        return opt

    torch.testing.assert_close(closed_loop(make, 8), loop(halved, 8), rtol=1e-11, atol=1e-13)


def test_bounds_that_never_bind_leave_adam():
    """final_lr so that [low, high] contains every rate: AdaBound is then Adam, eps on the raw root."""
    ours = closed_loop(lambda p: hasten.AdaBound(p, lr=LR, betas=(B1, B2), final_lr=1e-2, gamma=1e-9))
    adam = closed_loop(lambda p: hasten.Adam(p, lr=LR, betas=(B1, B2)))
    torch.testing.assert_close(ours, adam, rtol=1e-5, atol=1e-6)


def test_diffgrad_under_a_constant_gradient_is_adam_at_half_the_rate():
    def run(make):
        w = torch.zeros(3, dtype=torch.float64).requires_grad_()
        opt = make([w])
        path = []
        for _ in range(10):
            w.grad = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
            opt.step()
            path.append(w.detach().clone())
        return torch.stack(path).diff(dim=0)

    ours, adam = run(lambda p: hasten.DiffGrad(p, lr=LR)), run(lambda p: hasten.Adam(p, lr=LR / 2))
    torch.testing.assert_close(ours, adam, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"use_bias_correction": True, "d0": 1e-4},
        {"safeguard_warmup": True, "d_coef": 2.0},
        {"growth_rate": 1.02, "d0": 1e-3, "lr": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_prodigy_is_the_authors(options, engine):
    prodigyopt = pytest.importorskip("prodigyopt")

    def train(cls, **extra):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
        x, y = torch.randn(32, 6, dtype=torch.float64), torch.randn(32, 2, dtype=torch.float64)
        opt = cls(model.parameters(), **options, **extra)
        path, estimates = [], []
        for k in range(60):
            opt.zero_grad()
            rows = slice(8 * (k % 4), 8 * (k % 4) + 8)
            (model(x[rows]) - y[rows]).square().mean().backward()
            opt.step()
            path.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone())
            estimates.append(opt.param_groups[0]["d"])
        return torch.stack(path), estimates

    ours, d = train(hasten.Prodigy, engine=engine)
    theirs, expected = train(prodigyopt.Prodigy)
    assert expected[-1] > expected[0]
    assert d == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
