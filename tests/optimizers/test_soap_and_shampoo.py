"""SOAP and Shampoo by name: what they are composed of, the published vector, and the parameters they leave."""

import json
import math
from pathlib import Path

import pytest
import torch

import hasten
from hasten.transforms import Accumulation, EigenbasisSecondMoment

F64 = torch.float64
VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "accelerated-sgd.json").read_text())


def tensors(steps, *shape, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=F64).to(dtype) for _ in range(steps)]


def steps(build, start, grads, **group):
    """Parameters after every step, fed open loop."""
    w = start.clone().requires_grad_()
    opt = build([{"params": [w], **group}])
    points = []
    for g in grads:
        w.grad = g.clone()
        opt.step()
        points.append(w.detach().clone())
    return points


def apart(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def test_the_published_vector_of_an_accumulated_numerator():
    """The first gradient has rank two in three columns: in the third, eps = 1e-8 divides what rounding has left.

    The vector itself is 1.6e-10 from the same recursion in 50 digits, from the first step on; what follows is exact.
    """
    (case,) = [c for c in VECTORS["matrix_cases"] if c["name"] == "simplified_soap"]
    h, matrix = case["hyper"], VECTORS["matrix"]
    geometry = EigenbasisSecondMoment(
        h["beta2"],
        h["eps"],
        h["beta_shampoo"],
        h["precondition_frequency"],
        prepare=False,
        eps_on="corrected",
    )
    parts = (Accumulation(h["beta1"], h["alpha"]), geometry)
    start = torch.tensor(matrix["W0"], dtype=F64)
    grads = [torch.tensor(g, dtype=F64) for g in matrix["GM"]]
    found = steps(
        lambda p: hasten.Optimizer(p, *parts, lr=h["lr"], weight_decay=h["weight_decay"]), start, grads
    )
    expected = [torch.tensor(p, dtype=F64) for p in case["steps"]]
    assert apart(found, expected) < 1e-9
    moved, published = ([p - points[0] for p in points] for points in (found, expected))
    assert apart(moved, published) < 1e-12


def shampoo(w, grads, lr, beta1, beta2, beta3, eps, decay, momentum, dampening, nesterov, decoupled):
    """The authors' order of one step, with one block, SGD grafting and roots in every step."""
    left, right = (
        torch.zeros(w.shape[0], w.shape[0], dtype=F64),
        torch.zeros(w.shape[1], w.shape[1], dtype=F64),
    )
    filtered, buffer, points = torch.zeros_like(w), torch.zeros_like(w), []

    def root(a):
        values, vectors = torch.linalg.eigh(a)
        return vectors @ torch.diag((values - values.min().clamp(max=0) + eps) ** -0.25) @ vectors.T

    for t, g in enumerate(grads, start=1):
        g = g if decoupled else g + decay * w
        left = beta2 * left + (1 - beta2) * g @ g.T
        right = beta2 * right + (1 - beta2) * g.T @ g
        bar = beta3 * filtered + (1 - beta3) * g
        filtered = beta1 * filtered + (1 - beta1) * g
        bar = bar / (1 - beta3 * beta1 ** (t - 1))
        d = root(left / (1 - beta2**t)) @ bar @ root(right / (1 - beta2**t))
        d = d * bar.norm() / (d.norm() + 1e-16)
        d = d + decay * w if decoupled else d
        if momentum:
            buffer = momentum * buffer + (1 - dampening) * d
            d = (1 - dampening) * d + momentum * buffer if nesterov else buffer
        w = w - lr * d
        points.append(w.clone())
    return points


@pytest.mark.parametrize("filter_beta", [None, 0.5])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"), [(0.0, 0.0, False), (0.9, 0.2, False), (0.9, 0.2, True)]
)
@pytest.mark.parametrize("decoupled", [True, False])
def test_shampoos_order_of_a_step(filter_beta, momentum, dampening, nesterov, decoupled):
    (start,), grads = tensors(1, 5, 4, seed=1), tensors(7, 5, 4)
    chosen = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov, "decoupled": decoupled}
    shared = {"lr": 0.03, "eps": 1e-4}
    found = steps(
        lambda p: hasten.Shampoo(
            p,
            betas=(0.8, 0.9),
            filter_beta=filter_beta,
            relative_eps=0.0,
            weight_decay=0.1,
            precondition_frequency=1,
            grafting="sgd",
            **chosen,
            **shared,
        ),
        start,
        grads,
    )
    beta3 = 0.8 if filter_beta is None else filter_beta
    expected = shampoo(start, grads, beta1=0.8, beta2=0.9, beta3=beta3, decay=0.1, **chosen, **shared)
    assert apart(found, expected) < 1e-11


def test_shampoo_starts_as_adamw_in_every_parameter():
    found = {}
    for cls in (hasten.Shampoo, hasten.AdamW):
        params = [p.requires_grad_() for p in (*tensors(1, 5, 4), *tensors(1, 3), *tensors(1, 2, 3, 2))]
        opt = cls(params, lr=0.01, weight_decay=0.1)
        for k in range(12):
            for i, p in enumerate(params):
                p.grad = tensors(1, *p.shape, seed=10 * k + i)[0]
            opt.step()
            found.setdefault(k, []).append([p.detach().clone() for p in params])
    for k in range(9):
        assert apart(*found[k]) < 1e-14
    assert apart(*found[11]) > 1e-4
    vectors = [[points[1]] for points in found[11]]
    assert apart(*vectors) < 1e-14


def test_soap_moves_vectors_as_adamw_unless_told_otherwise():
    def run(cls, **options):
        (p,) = tensors(1, 5)
        opt = cls([p.requires_grad_()], lr=0.01, weight_decay=0.1, **options)
        for g in tensors(4, 5, seed=3):
            p.grad = g
            opt.step()
        return p.detach()

    torch.testing.assert_close(run(hasten.SOAP), run(hasten.AdamW, betas=(0.95, 0.95)))
    other = run(hasten.SOAP, fallback_betas=(0.5, 0.6), fallback_eps=0.1, fallback_weight_decay=0.2)
    (p,) = tensors(1, 5)
    opt = hasten.AdamW([p.requires_grad_()], lr=0.01, betas=(0.5, 0.6), eps=0.1, weight_decay=0.2)
    for g in tensors(4, 5, seed=3):
        p.grad = g
        opt.step()
    torch.testing.assert_close(other, p.detach())


@pytest.mark.parametrize("name", ["SOAP", "Shampoo"])
@pytest.mark.parametrize(
    ("shape", "group", "apart_as"),
    [
        ((12, 4), {"split": 3}, (3, 4, 4)),
        ((3, 4, 5), {"layout": "stack"}, (3, 4, 5)),
        ((4, 5, 3, 2), {}, (1, 4, 30)),
    ],
)
def test_fused_and_stacked_matrices_are_matrices_by_themselves(name, shape, group, apart_as):
    def build(params):
        return getattr(hasten, name)(params, lr=0.01, precondition_frequency=2)

    (start,), grads = tensors(1, *shape, seed=1), tensors(6, *shape)
    together = steps(build, start, grads, **group)[-1].reshape(apart_as)
    for i, one in enumerate(together):
        alone = steps(build, start.reshape(apart_as)[i], [g.reshape(apart_as)[i] for g in grads])[-1]
        torch.testing.assert_close(one, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["SOAP", "Shampoo"])
def test_a_convolution_is_flattened(name):
    (start,), grads = tensors(1, 4, 3, 2, 2), tensors(5, 4, 3, 2, 2, seed=2)

    def build(params):
        return getattr(hasten, name)(params, lr=0.01, precondition_frequency=2)

    whole = steps(build, start, grads)[-1]
    flat = steps(build, start.flatten(1), [g.flatten(1) for g in grads])[-1]
    assert torch.equal(whole.flatten(1), flat)


@pytest.mark.parametrize("order", ["matrix", "tensor"])
def test_shampoo_solves_an_ill_conditioned_regression_faster_than_adamw(order):
    (mixing,), (target,) = tensors(1, 12, 12), tensors(1, 8, 12, seed=1)
    (noise,) = tensors(1, 400, 12, seed=2)
    inputs = noise * torch.logspace(0, -2, 12, dtype=F64) @ torch.linalg.qr(mixing).Q

    def loss_after(cls, **chosen):
        w = torch.zeros(8, 12, dtype=F64, requires_grad=True)
        opt = cls([w], weight_decay=0.0, **chosen)
        for _ in range(100):
            opt.zero_grad()
            loss = ((inputs @ (w - target).T) ** 2).mean()
            loss.backward()
            opt.step()
        return loss.item()

    grid = (0.03, 0.1, 0.3)
    adamw = min(loss_after(hasten.AdamW, lr=lr) for lr in grid)
    found = min(loss_after(hasten.Shampoo, lr=lr, precondition_frequency=5, order=order) for lr in grid)
    assert found < 0.5 * adamw


@pytest.mark.parametrize("name", ["SOAP", "Shampoo"])
def test_a_saved_run_goes_on_as_if_nothing_had_happened(name, tmp_path):
    def build():
        params = [p.requires_grad_() for p in (*tensors(1, 6, 4, dtype=torch.float32), *tensors(1, 3))]
        return params, getattr(hasten, name)(params, lr=0.01, precondition_frequency=3)

    runs = []
    for interrupted in (False, True):
        params, opt = build()
        for k in range(11):
            if interrupted and k == 5:
                torch.save([opt.state_dict(), params], tmp_path / "run.pt")
                saved, values = torch.load(tmp_path / "run.pt", weights_only=True)
                params, opt = build()
                for p, value in zip(params, values, strict=True):
                    p.data.copy_(value)
                opt.load_state_dict(saved)
            for i, p in enumerate(params):
                p.grad = tensors(1, *p.shape, seed=10 * k + i, dtype=p.dtype)[0]
            opt.step()
        runs.append([p.detach().clone() for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_bytes_of_state_are_those_that_are_said():
    for name in ("SOAP", "Shampoo"):
        w = torch.zeros(64, 64, requires_grad=True)
        state = getattr(hasten, name)([w]).state[w]
        size = sum(t.numel() * t.element_size() for t in state.values())
        assert math.isclose(size / w.numel(), 24, rel_tol=0.01)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SOAP", {"sides": "left"}),
        ("SOAP", {"bias_correction": 1}),
        ("Shampoo", {"order": 2}),
        ("Shampoo", {"grafting": "lion"}),
        ("Shampoo", {"exponent": -1.0}),
        ("Shampoo", {"dampening": 1.0}),
        ("Shampoo", {"nesterov": "yes"}),
        ("Shampoo", {"start_preconditioning_step": 0}),
    ],
)
def test_choices_are_refused_by_name(name, options):
    (argument,) = options
    with pytest.raises(ValueError, match=rf"^{name}: {argument} = .* is not allowed; it must be"):
        getattr(hasten, name)([torch.ones(2, 2, requires_grad=True)], **options)
