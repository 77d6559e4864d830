"""Randomized-subspace optimizers against the three sequences written out, and their arguments."""

import math

import numpy as np
import pytest
import torch

import hasten
from hasten.oracles import FiniteDifference, ForwardMode
from hasten.sketches import (
    BalancedCountSketch,
    Coordinates,
    Curvature,
    Gaussian,
    Haar,
    Identity,
    ImportanceCoordinates,
    PerLayer,
    StridedSigns,
)

F64 = torch.float64


def quadratic(d, seed=0):
    """L, x* and f of a random quadratic."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(d, d, generator=generator, dtype=F64)
    L = A @ A.T / d + 0.05 * torch.eye(d, dtype=F64)
    target = torch.randn(d, generator=generator, dtype=F64)
    return L, target, lambda x: 0.5 * (x - target) @ L @ (x - target)


def three_sequences(
    gradient, d, draw, steps, *, smoothness, nu, mu=0.0, decay=0.0, warm=0.0, restart=None, metric=None
):
    """The method as it is written down: three vectors and three numbers, dense matrices."""
    smoothness, mu = smoothness + nu * decay, mu + decay
    C, A = nu * smoothness, warm * nu / smoothness
    x = z = torch.zeros(d, dtype=F64)
    metric = torch.ones(d, dtype=F64) if metric is None else metric
    points = []
    for k in range(steps):
        B = 1 + mu * A
        b = B + mu * A
        a = (b + math.sqrt(b * b + 4 * (C - mu) * A * B)) / (2 * (C - mu))
        A_next, B_next = A + a, B + mu * a
        theta, gamma = a * B / (a * B + A * B_next), a / B_next
        y = (1 - theta) * x + theta * z
        P = draw(k).columns(dtype=F64).T
        G = P @ (P.T @ (gradient(y) + decay * y))
        x = y - G / smoothness
        z = (1 - mu * gamma) * z + mu * gamma * y - gamma * G / metric
        A = A_next
        if restart is not None and (k + 1) % restart == 0:
            z, A = x, 0.0
        points.append(x)
    return points


def run(f, opt, w, steps):
    points = []
    for _ in range(steps):
        opt.step(lambda: f(w))
        with opt.evaluating():
            points.append(w.detach().clone())
    return points


CASES = {
    "convex": {},
    "strongly convex": {"mu": 0.05},
    "weight decay": {"mu": 0.02, "decay": 0.3},
    "warm start": {"warm": 1.0},
    "restarts": {"restart": 7},
    "mirror": {"metric": 2.0},
}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "family", [BalancedCountSketch, Haar, Gaussian, Coordinates], ids=lambda f: f.__name__
)
def test_the_two_buffer_form_is_the_three_sequences(case, family):
    d, steps, options = 12, 40, dict(CASES[case])
    L, target, f = quadratic(d)
    sketch = family(rank=3)
    if "metric" in options:
        options["metric"] = 1 + torch.rand(d, generator=torch.Generator().manual_seed(5), dtype=F64)
    metric = options.get("metric", torch.ones(d, dtype=F64))
    w = torch.zeros(d, dtype=F64, requires_grad=True)
    opt = hasten.SubspaceNesterov(
        [w],
        sketch=sketch,
        smoothness=L,
        strong_convexity=options.get("mu", 0.0),
        weight_decay=options.get("decay", 0.0),
        warm_start=options.get("warm", 0.0) == 1.0,
        restart=options.get("restart"),
        mirror=[metric] if "metric" in options else None,
        seed=4,
    )
    expected = three_sequences(
        lambda y: L @ (y - target),
        d,
        lambda k: sketch.draw(d, seed=4, step=k),
        steps,
        smoothness=sketch.expected_smoothness(L),
        nu=float(torch.linalg.eigvalsh(sketch.smoothed(torch.diag(1 / metric)))[-1]),
        **options,
    )
    for found, x in zip(run(f, opt, w, steps), expected, strict=True):
        torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-11)


def test_layers_are_sketched_by_themselves_and_vectors_kept_whole():
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 4).double()
    data, labels = torch.randn(30, 6, dtype=F64), torch.randn(30, 4, dtype=F64)
    shapes = [p.shape for p in model.parameters()]
    sketch = PerLayer(BalancedCountSketch(ratio=4)).bind(shapes)
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()

    def loss():
        return torch.nn.functional.mse_loss(model(data), labels)

    def gradient(y):
        values = [v.requires_grad_() for v in torch.split((start + y).detach(), [24, 4])]
        predicted = data @ values[0].view(4, 6).T + values[1]
        return torch.cat(torch.autograd.grad((predicted - labels).square().mean(), values))

    expected = three_sequences(
        gradient, 28, lambda k: sketch.draw(28, seed=2, step=k), 20, smoothness=3.0, nu=4.0
    )
    opt = hasten.SubspaceNesterov(
        model, sketch=PerLayer(BalancedCountSketch(ratio=4)), smoothness=3.0, seed=2
    )
    assert opt.param_groups[0]["inflation"] == pytest.approx(4.0, rel=1e-14)
    for _ in range(20):
        opt.step(loss)
    assert opt.oracle_calls == 20 * (24 // 4 + 4)
    with opt.evaluating():
        found = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.testing.assert_close(found, start + expected[-1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("oracle", [ForwardMode(), ForwardMode(chunk=1), FiniteDifference()], ids=str)
@pytest.mark.parametrize("optimizer", [hasten.SubspaceNesterov, hasten.SubspaceGradientDescent])
def test_every_oracle_gives_the_same_run(oracle, optimizer):
    L, _, f = quadratic(16)
    ends = []
    for chosen in (None, oracle):
        w = torch.zeros(16, dtype=F64, requires_grad=True)
        opt = optimizer([w], sketch=StridedSigns(rank=4), smoothness=L, oracle=chosen, weight_decay=0.1)
        ends.append(run(f, opt, w, 30)[-1])
        assert opt.oracle_calls == 120
        assert w.grad is None
    tolerance = 1e-6 if isinstance(oracle, FiniteDifference) else 1e-12
    torch.testing.assert_close(ends[0], ends[1], rtol=tolerance, atol=tolerance)


def test_the_accelerated_method_wins_where_the_theory_says_so():
    """i⁻² in d = 256: iterations to 1e-2 with r = 16, counted with schedule C over 20 draws: 1144."""
    d = 256
    spectrum = torch.arange(1, d + 1, dtype=F64) ** -2
    target = torch.from_numpy(np.random.default_rng(7).standard_normal(d))

    def f(x):
        return 0.5 * (spectrum * (x - target) ** 2).sum()

    gap = float(f(torch.zeros(d, dtype=F64)))
    assert gap == pytest.approx(0.1121792, rel=1e-6)
    w = torch.zeros(d, dtype=F64, requires_grad=True)
    opt = hasten.SubspaceNesterov(
        [w], sketch=BalancedCountSketch(rank=16), smoothness=spectrum, schedule="convex", engine="eager"
    )
    for k in range(1, 1400):
        opt.step(lambda: f(w))
        if k % 10 == 0:
            with opt.evaluating(), torch.no_grad():
                if float(f(w)) < 1e-2 * gap:
                    break
    assert k == pytest.approx(1144, rel=0.1)
    assert opt.oracle_calls == 16 * k


def test_the_estimate_takes_longer_steps_than_the_worst_case():
    """The heuristic for ℓ: fewer steps than with the exact ℓ, and it never diverges here."""
    d = 128
    spectrum = torch.arange(1, d + 1, dtype=F64) ** -2

    def f(x):
        return 0.5 * (spectrum * (x - 1) ** 2).sum()

    ends = []
    for smoothness in (spectrum, "estimate"):
        w = torch.zeros(d, dtype=F64, requires_grad=True)
        opt = hasten.SubspaceNesterov([w], rank=16, smoothness=smoothness, engine="eager")
        points = run(f, opt, w, 300)
        ends.append(float(f(points[-1])))
        assert max(float(f(x)) for x in points) <= 1.2 * float(f(torch.zeros(d, dtype=F64)))
    assert ends[1] < ends[0]


def test_restarts_by_value_forget_the_momentum_only_after_a_rise():
    d = 64
    spectrum = torch.logspace(0, -3, d, dtype=F64)

    def f(x):
        return 0.5 * (spectrum * (x - 1) ** 2).sum()

    values = {}
    for options in ({}, {"restart": 50, "restart_by_value": True}):
        w = torch.zeros(d, dtype=F64, requires_grad=True)
        opt = hasten.SubspaceNesterov([w], rank=8, smoothness=spectrum, engine="eager", **options)
        ages = []
        for _ in range(3000):
            run(f, opt, w, 1)
            ages.append(opt.param_groups[0]["age"])
        values[bool(options)] = float(f(run(f, opt, w, 1)[-1]))
        forgotten = [k + 1 for k, age in enumerate(ages) if age == 0]
        assert all(k % 50 == 0 for k in forgotten)
        assert bool(forgotten) == bool(options)
        assert len(forgotten) < 3000 / 50
    assert values[True] < values[False]


def test_importance_sampling_sets_its_own_steps():
    spectrum = torch.arange(1, 33, dtype=F64) ** -2.0

    def f(x):
        return 0.5 * (spectrum * (x - 1) ** 2).sum()

    w = torch.zeros(32, dtype=F64, requires_grad=True)
    opt = hasten.SubspaceNesterov([w], sketch=ImportanceCoordinates(spectrum), smoothness=spectrum)
    group = opt.param_groups[0]
    assert group["inflation"] * group["smoothness"] == pytest.approx(float(spectrum.sqrt().sum()) ** 2)
    end = run(f, opt, w, 1500)[-1]
    assert float(f(end)) < 1e-3 * float(f(torch.zeros(32, dtype=F64)))
    assert opt.oracle_calls == 1500


def test_weight_decay_shortens_the_steps_that_a_sketch_sets_itself():
    spectrum = torch.arange(1, 33, dtype=F64) ** -2.0
    w = torch.ones(32, dtype=F64, requires_grad=True)
    opt = hasten.SubspaceNesterov(
        [w], sketch=ImportanceCoordinates(spectrum), smoothness=spectrum, weight_decay=0.1
    )
    end = run(lambda x: 0.5 * (spectrum * (x - 1) ** 2).sum(), opt, w, 3000)[-1]
    torch.testing.assert_close(end, spectrum / (spectrum + 0.1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("nu", [None, 1.0])
def test_weight_decay_enters_the_expected_smoothness_by_the_second_moment_whatever_nu_is(nu):
    """E[W (L + λI) W] ⪯ (ℓ + λ λ_max(E[W²])) I: the first step is as long as that."""
    w = torch.ones(12, dtype=F64, requires_grad=True)
    sketch = BalancedCountSketch(rank=3)
    opt = hasten.SubspaceNesterov([w], sketch=sketch, smoothness=2.0, nu=nu, weight_decay=0.5)
    draw = sketch.draw(12, seed=0, step=0)
    G = draw.lift(draw.project(torch.ones(12, dtype=F64) * 0.5))
    found = run(lambda x: 0 * x.sum(), opt, w, 1)[0]
    torch.testing.assert_close(found, 1 - G / (2.0 + 4 * 0.5), rtol=1e-14, atol=0)


MIRROR = torch.tensor([0.01, 0.5, 2.0, 40.0], dtype=F64)
MIRRORED = {
    # E[W²] of a coordinate i is d/r, and W is diagonal
    "coordinates": (Coordinates(rank=2), 2 / MIRROR),
    # c = (n−r)/(r(n−1)) = 1/3: (1−c) M⁻¹ + c tr(M⁻¹) I
    "balanced": (BalancedCountSketch(rank=2), 2 / 3 / MIRROR + (1 / MIRROR).sum() / 3),
    "importance": (ImportanceCoordinates(torch.tensor([4.0, 2.0, 1.0, 1.0]) ** 2), torch.tensor(8 / 0.01)),
}


@pytest.mark.parametrize("case", MIRRORED, ids=str)
def test_a_mirror_metric_comes_with_its_own_nu(case):
    sketch, expected = MIRRORED[case]
    w = torch.zeros(4, dtype=F64, requires_grad=True)
    opt = hasten.SubspaceNesterov([w], sketch=sketch, smoothness=1.0, mirror=[MIRROR])
    assert opt.param_groups[0]["inflation"] == pytest.approx(float(expected.max()), rel=1e-12)
    opt = hasten.SubspaceNesterov([w], sketch=sketch, smoothness=1.0, mirror=[MIRROR], nu=3.0)
    assert opt.param_groups[0]["inflation"] == 3.0


@pytest.mark.parametrize("order", ["first", "last"])
def test_a_parameter_that_joins_late_joins_the_momentum_where_it_stands(order):
    early, late = (torch.zeros(8, dtype=F64, requires_grad=True) for _ in range(2))
    params = [early, late] if order == "last" else [late, early]
    opt = hasten.SubspaceNesterov(params, sketch=PerLayer(Coordinates(rank=2), exact=bool), smoothness=1.0)
    for k in range(6):
        opt.step(lambda k=k: early.square().sum() + (late.square().sum() if k >= 3 else 0))
    A = 0.0
    for _ in range(6):
        A += (1 + math.sqrt(1 + 4 * A)) / 2
    assert opt.param_groups[0]["A"] == pytest.approx(A, rel=1e-14)


def test_parameters_added_later_count_in_nu():
    def added(**options):
        first, second = (torch.zeros(n, requires_grad=True) for n in (8, 24))
        opt = hasten.SubspaceNesterov([first], sketch=Coordinates(rank=2), **options)
        before = opt.param_groups[0]["inflation"]
        opt.add_param_group({"params": [second]})
        return before, [group["inflation"] for group in opt.param_groups]

    assert added() == (4.0, [16.0, 16.0])
    assert added(nu=2.0) == (2.0, [2.0, 2.0])
    with pytest.raises(ValueError, match="a parameter group cannot be added, because smoothness was given"):
        added(smoothness=torch.ones(8))


NEEDING = [{}, {"smoothness": 1.0, "restart": 50, "restart_by_value": True}]


@pytest.mark.parametrize("options", NEEDING, ids=["estimate", "restart by value"])
def test_what_needs_the_value_of_the_loss_asks_for_it(options):
    w = torch.ones(4, requires_grad=True)
    opt = hasten.SubspaceNesterov([w], rank=2, **options)
    w.grad = torch.ones(4)
    with pytest.raises(TypeError, match=r"SubspaceNesterov: step\(\) needs a closure that returns the loss"):
        opt.step()
    with pytest.raises(TypeError, match="SubspaceNesterov: the closure returned None"):
        opt.step(lambda: w.sum().backward())
    assert torch.equal(w, torch.ones(4))


def test_a_checkpoint_resumes_with_the_same_subspaces(tmp_path):
    _, _, f = quadratic(10)

    def build():
        w = torch.zeros(10, dtype=F64, requires_grad=True)
        return w, hasten.SubspaceNesterov([w], rank=2, smoothness="estimate", restart=9)

    w, opt = build()
    run(f, opt, w, 13)
    torch.save({"w": w, "opt": opt.state_dict()}, tmp_path / "state.pt")
    ahead = run(f, opt, w, 11)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again, other = build()
    other.load_state_dict(saved["opt"])
    with torch.no_grad():
        again.copy_(saved["w"])
    assert all(torch.equal(a, b) for a, b in zip(ahead, run(f, other, again, 11), strict=True))
    assert opt.oracle_calls == other.oracle_calls == 24 * 2


def test_the_parameters_hold_y_in_training_and_x_in_evaluation():
    L, _, f = quadratic(8)
    w = torch.zeros(8, dtype=F64, requires_grad=True)
    opt = hasten.SubspaceNesterov([w], rank=2, smoothness=L)
    run(f, opt, w, 5)
    y = w.detach().clone()
    opt.eval()
    x = w.detach().clone()
    with pytest.raises(RuntimeError, match="hold the evaluation point"):
        opt.step(lambda: f(w))
    opt.train()
    torch.testing.assert_close(w.detach(), y, rtol=1e-14, atol=1e-14)
    assert not torch.allclose(x, y)


def test_a_step_without_a_gradient_or_a_closure_moves_nothing():
    w = torch.ones(4, requires_grad=True)
    opt = hasten.SubspaceNesterov([w], rank=1, smoothness=1.0)
    opt.step()
    assert torch.equal(w, torch.ones(4))
    w.grad = torch.ones(4)
    opt.step()
    assert not torch.equal(w, torch.ones(4))


BAD = [
    ({"sketch": 8}, "sketch = 8 is not allowed"),
    ({"rank": 0}, "rank = 0 is not allowed"),
    ({"rank": 2, "sketch": Haar(rank=3)}, "rank = 2 is not allowed beside a sketch"),
    ({"rank": 2, "oracle": ForwardMode(rank=3)}, "rank = 2 is not allowed beside an oracle with rank = 3"),
    ({"sketch": Haar(rank=2), "oracle": ForwardMode(sketch=Haar(rank=3))}, "beside an oracle with sketch"),
    (
        {"sketch": ImportanceCoordinates(torch.ones(6)), "smoothness": 3 * torch.ones(6)},
        "steps of sketch = ImportanceCoordinates.* are too long for smoothness",
    ),
    ({"rank": 99}, "rank = 99 is not allowed in dimension 6"),
    ({"smoothness": "guess"}, "smoothness = 'guess' is not allowed"),
    ({"smoothness": None}, "smoothness = None is not allowed; it must be a number, a tensor"),
    ({"smoothness": 0.0}, "smoothness = 0.0 is not allowed"),
    ({"smoothness": torch.ones(5)}, "smoothness of dimension 5 is not allowed; it must be of dimension 6"),
    ({"smoothness": -torch.ones(6)}, "positive|negative"),
    ({"smoothness": Curvature(7, 1.0, 2.0)}, "dimension 7"),
    ({"strong_convexity": -1.0}, "strong_convexity = -1.0 is not allowed"),
    ({"schedule": "fast"}, "schedule = 'fast' is not allowed"),
    ({"schedule": "strongly convex"}, "strong_convexity = 0.0 is not allowed"),
    ({"schedule": "strongly convex", "strong_convexity": None}, "strong_convexity = None is not allowed"),
    ({"restart": 0}, "restart = 0 is not allowed"),
    ({"restart_by_value": True}, "restart_by_value needs restart"),
    ({"warm_start": 1}, "warm_start = 1 is not allowed"),
    ({"nu": 0.0}, "nu = 0.0 is not allowed"),
    ({"oracle": "forward"}, "oracle = 'forward' is not allowed; it must be a SubspaceOracle: Sketched"),
    ({"mirror": [torch.ones(5)]}, "mirror of parameter 0"),
    ({"mirror": [-torch.ones(6)]}, "mirror of parameter 0"),
    ({"mirror": []}, "mirror of 0 tensors"),
    ({"mirror": 3.0}, "mirror = 3.0 is not allowed"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_is_not_allowed_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        hasten.SubspaceNesterov([torch.zeros(6, requires_grad=True)], **options)


def test_the_whole_space_is_a_sketch_too():
    L, _, f = quadratic(6)
    w = torch.zeros(6, dtype=F64, requires_grad=True)
    opt = hasten.SubspaceGradientDescent([w], sketch=Identity(), smoothness=L)
    largest = float(torch.linalg.eigvalsh(L)[-1])
    assert opt.param_groups[0]["smoothness"] == pytest.approx(largest, rel=1e-14)
    g = torch.autograd.grad(f(w), w)[0]
    torch.testing.assert_close(run(f, opt, w, 1)[0], -g / largest, rtol=1e-14, atol=0)


def test_the_order_of_groups_with_rates_of_their_own_does_not_matter():
    ends = []
    for order in ((0, 1), (1, 0)):
        u, v = (torch.zeros(6, dtype=F64, requires_grad=True) for _ in range(2))
        groups = [{"params": [u], "lr": 1.0}, {"params": [v], "lr": 0.25}]
        opt = hasten.SubspaceNesterov([groups[i] for i in order], sketch=Identity(), smoothness=4.0)
        for _ in range(50):
            opt.step(
                lambda u=u, v=v: 2 * ((u - 1) ** 2).sum() + 2 * ((v + 1) ** 2 * torch.arange(6)).sum() / 6
            )
        with opt.evaluating():
            ends.append((u.detach().clone(), v.detach().clone()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def test_a_loss_without_a_gradient_comes_back_and_moves_nothing():
    w = torch.ones(4, requires_grad=True)
    opt = hasten.SubspaceNesterov([w], rank=1, smoothness=1.0)
    assert opt.step(lambda: 3.5) == 3.5
    assert torch.equal(w, torch.ones(4))
