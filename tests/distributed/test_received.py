"""Subspace optimizers on what arrives over a network: the same as one process on the averaged gradient."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
from typing import Any

import pytest
import torch
from comparing import refusal
from test_hook import SETUPS, data, network
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import hasten
from hasten.distributed import SubspaceHook
from hasten.sketches import BalancedCountSketch, PerLayer, RandomLowRank

STEPS = 8
SKETCH = BalancedCountSketch(ratio=8)
MIRROR = [
    torch.rand(p.shape, generator=torch.Generator().manual_seed(4)).double() + 0.5
    for p in network().parameters()
]

SENTENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "unified": ("SubspaceNesterov", {"smoothness": 20.0}),
    "strongly convex": (
        "SubspaceNesterov",
        {"smoothness": 20.0, "strong_convexity": 0.1, "schedule": "strongly convex"},
    ),
    "convex": ("SubspaceNesterov", {"smoothness": 20.0, "schedule": "convex"}),
    "decay": ("SubspaceNesterov", {"smoothness": 20.0, "weight_decay": 0.1, "strong_convexity": 0.01}),
    "restart": ("SubspaceNesterov", {"smoothness": 20.0, "restart": 3}),
    "restart by value": ("SubspaceNesterov", {"smoothness": 20.0, "restart": 2, "restart_by_value": True}),
    "warm start": ("SubspaceNesterov", {"smoothness": 20.0, "warm_start": True}),
    "mirror": ("SubspaceNesterov", {"smoothness": 20.0, "mirror": MIRROR}),
    "estimate": ("SubspaceNesterov", {"lr": 0.1, "restart": 2, "restart_by_value": True}),
    "estimate with decay": ("SubspaceNesterov", {"lr": 0.1, "weight_decay": 0.1}),
    "descent": ("SubspaceGradientDescent", {"smoothness": 20.0, "weight_decay": 0.1}),
    "descent with estimate": ("SubspaceGradientDescent", {"lr": 0.1}),
}


def tolerance(name: str) -> float:
    """A central difference of derivatives knows q to ε^(2/3) = 4e-11 only, and with it the steps of the estimate."""
    return 1e-9 if "estimate" in name else 1e-12


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def trajectory(model: Any, opt: Any, x: Tensor, y: Tensor, steps: int = STEPS) -> Tensor:
    """The parameters after every step, now and then also the point to evaluate."""
    found = []
    for k in range(steps):
        opt.step(lambda: ((model(x) - y) ** 2).mean())
        if opt.has_evaluation_point and k % 3 == 1:
            with opt.evaluating():
                found.append(vector(model))
        found.append(vector(model))
    return torch.stack(found)


def workers(rank: int, world: int, names: list[str], ddp: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name in names:
        kind, options = SENTENCES[name]
        model = DDP(network(), **ddp)
        hook = SubspaceHook(SKETCH, seed=3).register(model)
        opt = getattr(hasten, kind)(model, oracle=hook.oracle, **options)
        x, y = (t.chunk(world)[rank] for t in data(world))
        steps = trajectory(model, opt, x, y)
        traffic = {part: (t.calls, t.payload) for part, t in opt.communication.parts.items()}
        found[name] = steps, opt.oracle_calls, traffic
    return found


def compare(found: list[dict[str, Any]], world: int) -> None:
    """With one process, the whole batch and the same subspaces."""
    x, y = data(world)
    for name in found[0]:
        kind, options = SENTENCES[name]
        net = network()
        opt = getattr(hasten, kind)(net, sketch=PerLayer(SKETCH), seed=3, **options)
        steps, calls, traffic = found[0][name]
        assert all(torch.equal(each[name][0], steps) for each in found), name
        expected = trajectory(net, opt, x, y)
        torch.testing.assert_close(
            steps, expected, rtol=0, atol=tolerance(name), msg=lambda text, name=name: f"{name}: {text}"
        )
        assert calls == opt.oracle_calls
        wanted = {"loss"} if options.get("restart_by_value") else set()
        wanted |= {"curvature"} if "estimate" in name else set()
        assert set(traffic) == {"gradients", *wanted}
        assert all(traffic[part] == (STEPS, 8 * STEPS) for part in wanted)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("cap", [0.01, 25.0])
def test_workers_are_one_process_on_the_averaged_gradient(teams, world: int, cap: float) -> None:
    compare(teams(world).run(workers, list(SENTENCES), {"bucket_cap_mb": cap}), world)


@pytest.mark.parametrize(
    "options",
    [{"static_graph": True}, {"gradient_as_bucket_view": True}, {"find_unused_parameters": True}],
    ids=lambda o: next(iter(o)),
)
def test_the_ways_of_distributed_data_parallel(pair, options: dict[str, Any]) -> None:
    compare(pair.run(workers, ["unified", "estimate"], {"bucket_cap_mb": 0.01, **options}), 2)


def whole_space(rank: int, world: int) -> Any:
    """r = d, beside torch's Nesterov on plain averaged gradients."""
    smoothness, mu = 20.0, 0.2
    root = (mu / smoothness) ** 0.5
    x, y = (t.chunk(world)[rank] for t in data(world))
    model, plain = DDP(network()), DDP(network())
    hook = SubspaceHook(BalancedCountSketch(ratio=1)).register(model)
    opt = hasten.SubspaceNesterov(
        model, oracle=hook.oracle, smoothness=smoothness, strong_convexity=mu, schedule="strongly convex"
    )
    nesterov = torch.optim.SGD(
        plain.parameters(), lr=1 / smoothness, momentum=(1 - root) / (1 + root), nesterov=True
    )
    for _ in range(STEPS):
        opt.step(lambda: ((model(x) - y) ** 2).mean())
        nesterov.zero_grad()
        ((plain(x) - y) ** 2).mean().backward()
        nesterov.step()
    return [[p.detach() for p in m.parameters()] for m in (model, plain)]


def test_the_whole_space_is_nesterov_on_averaged_gradients(pair) -> None:
    for found, expected in pair.run(whole_space):
        for p, q in zip(found, expected, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


class Noisy(nn.Module):
    """Batch normalisation and dropout: buffers, and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Linear(20, 32), nn.BatchNorm1d(32), nn.Dropout(0.3), nn.Tanh(), nn.Linear(32, 1)
        ).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def undisturbed(rank: int, world: int, closure_does_it: bool) -> Any:
    """What an estimate of the curvature leaves of DDP's and torch's state, beside a run without one."""
    x, y = (t.chunk(world)[rank] for t in data(world))
    found = []
    for options in ({}, {"smoothness": 20.0}):
        torch.manual_seed(rank)
        model = DDP(Noisy(), bucket_cap_mb=0.001)
        hook = SubspaceHook(SKETCH, seed=3).register(model)
        opt = hasten.SubspaceNesterov(model, oracle=hook.oracle, lr=1e-6, **options)
        buffers_sent: list[bool] = []

        def closure(model: Any = model, buffers_sent: list[bool] = buffers_sent) -> Tensor:
            buffers_sent.append(model.will_sync_module_buffers())
            loss = ((model(x) - y) ** 2).mean()
            if closure_does_it:
                model.zero_grad()
                loss.backward()
            return loss

        for _ in range(3):
            opt.step(closure)
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        found.append(
            {
                "buffers": [b.clone() for b in model.buffers()],
                "random": torch.get_rng_state(),
                "has gradients": [g is not None for g in grads],
                "messages": hook.communication.parts["gradients"].calls,
                "averagings": hook.step,
                "buffers sent": sum(buffers_sent),
                "synchronises": (model.require_backward_grad_sync, model.require_forward_param_sync),
            }
        )
    return found


@pytest.mark.parametrize("closure_does_it", [False, True])
def test_the_curvature_disturbs_nothing(pair, closure_does_it: bool) -> None:
    for estimated, known in pair.run(undisturbed, closure_does_it):
        for a, b in zip(estimated.pop("buffers"), known.pop("buffers"), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)  # the steps are tiny, but not the same
        assert torch.equal(estimated.pop("random"), known.pop("random"))
        assert estimated == known
        assert estimated["averagings"] == 3
        assert estimated["has gradients"] == [closure_does_it] * len(estimated["has gradients"])


def bend(rank: int, world: int) -> Any:
    """Gᵀ∇²f G as the oracle finds it."""
    x, y = (t.chunk(world)[rank] for t in data(world))
    model = DDP(network())
    hook = SubspaceHook(SKETCH, seed=3).register(model)
    opt = hasten.SubspaceNesterov(model, oracle=hook.oracle)
    seen = opt.sentence.oracle.observe(opt, lambda: ((model(x) - y) ** 2).mean())
    return seen.numbers, [seen.gradients[p] for p in model.parameters()]


def test_the_curvature_is_that_of_the_mean_loss(pair) -> None:
    found = pair.run(bend)
    numbers, G = found[0]
    assert numbers["curvature"] == found[1][0]["curvature"]
    net = network()
    params = list(net.parameters())
    x, y = data(2)
    first = torch.autograd.grad(((net(x) - y) ** 2).mean(), params, create_graph=True)
    slope = sum((g * direction).sum() for g, direction in zip(first, G, strict=True))
    second = torch.autograd.grad(slope, params)
    q = sum(float((h * direction).sum()) for h, direction in zip(second, G, strict=True))
    assert numbers["curvature"] == pytest.approx(q, rel=1e-8)


LOW_RANK = RandomLowRank(rank=2)


def accumulated(rank: int, world: int, sketch: Any) -> list[Tensor]:
    """Three batches to a step, the first two under no_sync."""
    x, y = (t.chunk(world)[rank] for t in data(world))
    model = DDP(network(), bucket_cap_mb=0.01)
    hook = SubspaceHook(sketch, seed=3).register(model)
    opt = hasten.SubspaceNesterov(model, oracle=hook.oracle, smoothness=60.0)
    for _ in range(STEPS):
        opt.zero_grad()
        for k in range(3):
            with model.no_sync() if k < 2 else contextlib.nullcontext():
                ((model(x * (k + 1)) - y) ** 2).mean().backward()
        opt.step()
    assert hook.step == STEPS
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("sketch", [SKETCH, LOW_RANK], ids=["balanced", "low rank"])
def test_accumulated_gradients_arrive_as_one(pair, sketch: Any) -> None:
    found = pair.run(accumulated, sketch)
    net = network()
    opt = hasten.SubspaceNesterov(net, sketch=PerLayer(sketch), seed=3, smoothness=60.0)
    x, y = data(2)
    for _ in range(STEPS):
        opt.step(lambda: sum(((net(x * (k + 1)) - y) ** 2).mean() for k in range(3)))
    for a, b, p in zip(*found, net.parameters(), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, p.detach(), rtol=0, atol=1e-12)


def every_model(rank: int, world: int, name: str) -> Any:
    """Steps with a closure and after a backward of the user's own, in turns; what was frozen or unused beside them."""
    build, options = SETUPS[name]
    net = build()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    model = DDP(net, **options)
    hook = SubspaceHook(SKETCH, seed=3).register(model)
    opt = hasten.SubspaceNesterov(model, oracle=hook.oracle, smoothness=1e4)
    kind = torch.bfloat16 if name == "bfloat16" else torch.float32 if name == "autocast" else torch.float64
    x, y = (t.chunk(world)[rank].to(kind) for t in data(world))
    cast = torch.autocast("cpu", torch.bfloat16) if name == "autocast" else contextlib.nullcontext()

    def loss() -> Tensor:
        with cast:
            return ((model(x) - y) ** 2).mean()

    for k in range(6):
        if k % 2:
            opt.zero_grad()
            loss().backward()
            opt.step()
        else:
            opt.step(loss)
    still = [n for n, p in net.named_parameters() if torch.equal(p, before[n])]
    return {n: p.detach() for n, p in net.named_parameters()}, still, opt.oracle_calls


@pytest.mark.parametrize("name", ["odd", "odd static", "unused", "bfloat16", "autocast", "static views"])
def test_every_kind_of_model_steps_alike_on_all_workers(pair, name: str) -> None:
    (first, still, calls), (second, _, other) = pair.run(every_model, name)
    for n, p in first.items():
        assert torch.equal(p, second[n]), n
        assert bool(torch.isfinite(p).all()), n
    assert calls == other
    assert still == {"odd": ["empty", "frozen"], "unused": ["layers.3.weight", "layers.3.bias"]}.get(
        name.split()[0], []
    )
    if name != "unused":
        trained = [p for n, p in first.items() if n != "frozen" and p.numel()]
        assert calls == 6 * sum(p.numel() if p.dim() < 2 else -(-p.numel() // 8) for p in trained)


def changed(rank: int, world: int, change: str) -> Any:
    """Steps on gradients that were changed after they had arrived: the parameters, or what was said."""
    x, y = (t.chunk(world)[rank].float() for t in data(world))
    model = DDP(network().float(), bucket_cap_mb=0.01)
    hook = SubspaceHook(SKETCH, seed=3).register(model)
    decay = 0.1 if "decay" in change else 0.0
    opt = hasten.SubspaceNesterov(
        model, oracle=hook.oracle, smoothness=20.0, on_nonfinite="raise", weight_decay=decay
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0 if change == "odd scale" else 2.0**16)
    for k in range(4):
        opt.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        if "scale" in change:
            scaler.scale(
                torch.inf * loss if change == "overflowing scale" and k == 1 and rank == 1 else loss
            ).backward()
            scaler.step(opt)
            scaler.update()
            continue
        loss.backward()
        if "norm" in change:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        elif change == "value":
            torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)
        elif change == "one":
            model.module[0].weight.grad.mul_(0.5)
        elif change == "zero":
            opt.zero_grad(set_to_none=False)
        before = [p.detach().clone() for p in model.parameters()]
        try:
            opt.step()
        except RuntimeError as error:
            assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
            return str(error)
    return [p.detach() for p in model.parameters()], scaler.get_scale()


def reference(change: str) -> list[Tensor]:
    x, y = (t.float() for t in data(2))
    net = network().float()
    decay = 0.1 if "decay" in change else 0.0
    opt = hasten.SubspaceNesterov(net, sketch=PerLayer(SKETCH), seed=3, smoothness=20.0, weight_decay=decay)
    draws = itertools.count()
    for k in range(4):
        loss = ((net(x) - y) ** 2).mean()
        if change == "overflowing scale" and k == 1:
            next(draws)
            continue
        if "norm" in change:  # by the norm of P Pᵀg, as the workers see it
            whole = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
            family = PerLayer(SKETCH).bind([p.shape for p in net.parameters()])
            lifted = [
                (d := block.draw(seed=3, step=k)).lift(d.project(g))
                for block, g in zip(family.blocks(), whole, strict=True)
            ]
            norm = torch.cat(lifted).norm()
            loss = loss * min(1.0, float(0.5 / (norm + 1e-6)))
        opt.step(lambda loss=loss: loss)
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("change", ["scale", "odd scale", "norm", "norm beside decay", "none"])
def test_a_common_factor_is_taken_along(pair, change: str) -> None:
    (first, _), (second, _) = pair.run(changed, change)
    for a, b, p in zip(first, second, reference(change), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, p, rtol=0, atol=2e-5)


def test_a_scale_that_overflows_on_one_worker_is_lowered_on_all(pair) -> None:
    (first, scale), (second, other) = pair.run(changed, "overflowing scale")
    assert scale == other == 2.0**15
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(bool(torch.isfinite(a).all()) for a in first)


@pytest.mark.parametrize("change", ["value", "one", "zero"])
def test_any_other_change_is_refused(pair, change: str) -> None:
    for text in pair.run(changed, change):
        assert "was changed after it had arrived" in text
        assert "SubspaceNesterov: the gradient of parameter 'module.0.weight'" in text


def poisoned(rank: int, world: int, name: str) -> Any:
    """A NaN on one rank in the second of four steps."""
    x, y = (t.chunk(world)[rank] for t in data(world))
    model = DDP(network(), bucket_cap_mb=0.01)
    hook = SubspaceHook(SKETCH, seed=3).register(model)
    opt = (
        hasten.SubspaceNesterov(model, oracle=hook.oracle, on_nonfinite="skip")
        if name == "subspace"
        else hasten.AdamW(model, on_nonfinite="skip")
    )
    found = []
    for k in range(4):
        batch = x * torch.nan if k == 1 and rank == 1 else x
        opt.step(lambda batch=batch: ((model(batch) - y) ** 2).mean())
        found.append(vector(model))
    return found, opt.skipped_steps, hook.step


@pytest.mark.parametrize("name", ["subspace", "adamw"])
def test_what_is_not_finite_on_one_worker_is_skipped_by_all(pair, name: str) -> None:
    (first, skipped, averagings), (second, other, _) = pair.run(poisoned, name)
    assert (skipped, other, averagings) == (1, 1, 4)
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True)), k
        assert all(bool(torch.isfinite(p).all()) for p in a), k
    moved = [
        any(not torch.equal(p, q) for p, q in zip(a, b, strict=True)) for a, b in itertools.pairwise(first)
    ]
    assert moved == [False, True, True]


def resumed(rank: int, world: int, cap: float) -> Any:
    """Eight steps in one go, and four and four with everything saved and made anew between them."""
    x, y = (t.chunk(world)[rank] for t in data(world))

    def made() -> Any:
        model = DDP(network(), bucket_cap_mb=cap)
        hook = SubspaceHook(SKETCH, seed=3).register(model)
        return model, hook, hasten.SubspaceNesterov(model, oracle=hook.oracle)

    model, hook, opt = made()
    before = trajectory(model, opt, x, y, 4)
    buffer = io.BytesIO()
    torch.save([model.state_dict(), hook.state_dict(), opt.state_dict()], buffer)
    whole = trajectory(model, opt, x, y, 4)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    again = made()
    for thing, state in zip(again, saved, strict=True):
        thing.load_state_dict(state)
    model, hook, opt = again
    assert not torch.equal(before[-1], whole[-1])
    return whole, trajectory(model, opt, x, y, 4)


@pytest.mark.filterwarnings("ignore:.*saved in training mode")
@pytest.mark.parametrize(("world", "cap"), [(2, 25.0), (2, 0.01), (4, 25.0), (4, 0.01)])
def test_a_run_resumes_bit_for_bit(teams, world: int, cap: float) -> None:
    for whole, after in teams(world).run(resumed, cap):
        assert torch.equal(whole, after)


def misused(rank: int, world: int) -> list[str]:
    x, y = (t.chunk(world)[rank] for t in data(world))
    model = DDP(network())
    hook = SubspaceHook(SKETCH, seed=3).register(model)
    opt = hasten.SubspaceNesterov(model, oracle=hook.oracle, smoothness=20.0)
    said = []

    def loss() -> Tensor:
        return ((model(x) - y) ** 2).mean()

    def refused(kind: type[Exception], action: Any) -> None:
        said.append(refusal(kind, action))

    with model.no_sync():
        loss().backward()
    refused(RuntimeError, opt.step)  # nothing ever arrived
    opt.zero_grad()
    loss().backward()
    opt.step()
    refused(RuntimeError, opt.step)  # the same gradient again
    opt.zero_grad()
    loss().backward()
    with model.no_sync():
        loss().backward()
    refused(RuntimeError, opt.step)  # more was added after it had arrived
    stranger = nn.Linear(2, 2)
    other = hasten.SubspaceNesterov(stranger, oracle=hook.oracle, smoothness=1.0)
    stranger(torch.ones(2)).sum().backward()
    refused(RuntimeError, other.step)
    refused(ValueError, lambda: hasten.SubspaceNesterov(model, oracle=hook.oracle, rank=3))
    refused(
        ValueError,
        lambda: hasten.SubspaceNesterov(model, sketch=BalancedCountSketch(rank=3), oracle=hook.oracle),
    )
    refused(TypeError, lambda: hasten.SubspaceNesterov(model, oracle=hook.oracle).step())
    refused(TypeError, lambda: copy.deepcopy(opt))
    # A step that is refused for another reason does not use the gradient up.
    opt.zero_grad()
    loss().backward()
    opt.param_groups[0]["lr"] = -1.0
    refused(ValueError, opt.step)
    opt.param_groups[0]["lr"] = 1.0
    opt.step()
    return said


def test_misuse_is_refused_by_name(pair) -> None:
    patterns = [
        "no gradient has arrived since the last step",
        "no gradient has arrived since the last step",
        "was changed after it had arrived",
        "is not a parameter of the model that the hook is registered with",
        "rank = 3",
        "beside an oracle with sketch",
        "needs a closure",
        "cannot be copied or pickled",
        "lr = -1",
    ]
    for said in pair.run(misused):
        assert len(said) == len(patterns)
        for pattern, text in zip(patterns, said, strict=True):
            assert pattern in text
