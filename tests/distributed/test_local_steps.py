from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from drifting import INNERS, SHAPES, close, slope, start, target, train
from torch import Tensor, nn

import hasten
from hasten.distributed import ErrorFeedback, LocalSteps, Subspace, TopK
from hasten.sketches import BalancedCountSketch
from hasten.wire import communication


def run(rank: int, world: int, inner: str, outer: str | None, every: int, steps: int, exchange: Any) -> Any:
    params = start()
    outers: dict[str, Callable[..., Any]] = {
        "plain": lambda ps: torch.optim.SGD(ps, lr=1.0),
        "momentum": lambda ps: torch.optim.SGD(ps, lr=0.6, momentum=0.8, nesterov=True),
        "slow": lambda ps: hasten.SGD(ps, lr=0.2),
    }
    opt = LocalSteps(
        INNERS[inner](params), None if outer is None else outers[outer], every=every, exchange=exchange
    )
    train(opt, params, rank, range(steps))
    sent = {name: (t.calls, t.payload) for name, t in opt.communication.parts.items()}
    return [p.detach().clone() for p in params], [a.detach().clone() for a in opt.anchor.point], sent


def synchronous(world: int, steps: int) -> list[Tensor]:
    params = [p.detach() for p in start()]
    for step in range(steps):
        params = [p - 0.3 * sum(slope(p, r, step) for r in range(world)) / world for p in params]
    return params


def alone(inner: str, steps: int) -> list[Tensor]:
    params = start()
    opt = INNERS[inner](params)
    train(opt, params, 0, range(steps))
    if hasattr(opt, "eval"):
        opt.eval()
    return [p.detach() for p in params]


def diloco(
    world: int, every: int, rounds: int, lr: float, momentum: float, worker: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """The whole recursion on one machine, in flat vectors: AdamW inside, Nesterov outside; `worker` bends the mean."""
    sizes = [math.prod(s) for s in SHAPES]

    def gradient(x: Tensor, rank: int, step: int) -> Tensor:
        pieces = [x_.view(s) for x_, s in zip(x.split(sizes), SHAPES, strict=True)]
        return torch.cat([slope(x_, rank, step).reshape(-1) for x_ in pieces])

    theta = torch.cat([p.detach().reshape(-1) for p in start()])
    velocity = torch.zeros_like(theta)
    m, v = [torch.zeros_like(theta) for _ in range(world)], [torch.zeros_like(theta) for _ in range(world)]
    for t in range(rounds):
        displacement = torch.zeros_like(theta)
        for rank in range(world):
            x = theta.clone()
            for step in range(t * every, (t + 1) * every):
                g, k = gradient(x, rank, step), step + 1
                m[rank] = 0.9 * m[rank] + 0.1 * g
                v[rank] = 0.999 * v[rank] + 0.001 * g * g
                x = x * (1 - 0.05 * 0.01) - 0.05 * (m[rank] / (1 - 0.9**k)) / (
                    (v[rank] / (1 - 0.999**k)).sqrt() + 1e-8
                )
            displacement += (theta - x) / world
        displacement = worker(displacement, t)
        velocity = momentum * velocity + displacement
        theta = theta - lr * (displacement + momentum * velocity)
    return [x.view(s) for x, s in zip(theta.split(sizes), SHAPES, strict=True)]


@pytest.mark.parametrize("world", [2, 4])
def test_single_steps_of_sgd_are_synchronous_sgd(teams, world: int) -> None:
    found = teams(world).run(run, "SGD", "plain", 1, 7, None)
    close(found[0][0], synchronous(world, 7))


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("inner", ["AdamW", "torch.AdamW"])
def test_the_recursion_of_the_paper(teams, world: int, inner: str) -> None:
    found = teams(world).run(run, inner, None, 3, 12, None)
    close(found[0][0], diloco(world, 3, 4, 0.7, 0.9, lambda d, t: d))
    for params, anchor, sent in found:
        assert all(torch.equal(a, b) for a, b in zip(params, found[0][0], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(params, anchor, strict=True))
        assert sent["displacements"] == (4, 4 * 8 * 47)
        assert "start" not in sent


def test_a_sketch_exchanges_the_projected_displacements(pair) -> None:
    sketch = BalancedCountSketch(ratio=4)

    def projected(d: Tensor, round_: int) -> Tensor:
        pieces = list(d.split([30, 5, 12]))
        for i, rank in ((0, 8), (2, 3)):
            draw = BalancedCountSketch(rank=rank).draw(pieces[i].numel(), seed=5, step=round_, block=i)
            pieces[i] = draw.lift(draw.project(pieces[i]))
        return torch.cat(pieces)

    found = pair.run(run, "AdamW", "momentum", 3, 12, Subspace(sketch, seed=5))
    close(found[0][0], diloco(2, 3, 4, 0.6, 0.8, projected))
    assert found[0][2]["displacements"] == (4, 4 * 8 * (8 + 5 + 3))
    assert found[0][2]["verdict"] == (4, 4 * 4)
    given = pair.run(run, "AdamW", "slow", 3, 12, sketch)
    same = pair.run(run, "AdamW", "slow", 3, 12, Subspace(sketch))
    assert all(torch.equal(a, b) for a, b in zip(given[0][0], same[0][0], strict=True))


def each_alone(rank: int, world: int, inner: str, every: int, steps: int) -> list[Tensor]:
    """Groups of one."""
    group = [dist.new_group([r]) for r in range(world)][rank]
    params = start()
    opt = LocalSteps(
        INNERS[inner](params), lambda ps: hasten.SGD(ps, lr=1.0), every=every, exchange=None, group=group
    )
    train(opt, params, 0, range(steps))
    with opt.evaluating():
        return [p.detach().clone() for p in params]


@pytest.mark.parametrize("inner", INNERS)
def test_a_single_worker_with_plain_steps_outside_is_the_inner_optimizer(pair, inner: str) -> None:
    close(pair.run(each_alone, inner, 3, 12)[0], alone(inner, 12))


def in_parcels(rank: int, world: int, limit: int, exchange: Any) -> tuple[list[Tensor], int]:
    from hasten.distributed import local_steps

    before, local_steps.PARCEL = local_steps.PARCEL, limit
    try:
        params = [*start(), nn.Parameter(torch.linspace(-1, 1, 24).view(4, 6))]  # float32 among float64
        opt = LocalSteps(hasten.AdamW(params, lr=0.05), every=2, exchange=exchange)
        for step in range(6):
            for p in params:
                p.grad = slope(p.detach(), rank, step).to(p.dtype)
            opt.step()
    finally:
        local_steps.PARCEL = before
    assert communication(params) == opt.communication == opt.inner.communication
    return [p.detach().clone() for p in params], opt.communication.parts["displacements"].calls


@pytest.mark.parametrize("compressed", [False, True])
def test_how_parameters_are_packed_makes_no_difference(pair, compressed: bool) -> None:
    exchange = Subspace(BalancedCountSketch(ratio=4)) if compressed else None
    whole, calls = pair.run(in_parcels, 10**6, exchange)[0]
    apart, more_calls = pair.run(in_parcels, 100, exchange)[0]
    assert (calls, more_calls) == (3 * 2, 3 * 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, apart, strict=True))


def test_the_outer_optimizer_follows_the_exchange(pair) -> None:
    found = pair.run(defaults)[0]
    assert found == [("Nesterov", 0.7), ("SGD", 1.0), ("SGD", 1.0)]


def defaults(rank: int, world: int) -> list[tuple[str, float]]:
    exchanges = (None, BalancedCountSketch(ratio=4), ErrorFeedback(TopK(ratio=4)))
    outers = [LocalSteps(torch.optim.SGD(start(), lr=0.1), exchange=e).outer for e in exchanges]
    return [(type(o).__name__, o.param_groups[0]["lr"]) for o in outers]


# -- Schedule-Free inside -------------------------------------------------------------------------------------------


def averaging(rank: int, world: int, steps: int, every: int) -> tuple[list[Tensor], list[Tensor]]:
    params = start()
    opt = LocalSteps(hasten.ScheduleFreeSGD(params, lr=0.3), lambda ps: hasten.SGD(ps, lr=1.0), every=every)
    train(opt, params, rank, range(steps))
    with opt.evaluating():
        return [p.detach().clone() for p in params], [opt.state[p]["z"].clone() for p in params]


def test_schedule_free_workers_exchange_their_averages_and_z_moves_along(pair) -> None:
    beta, lr, every = 0.9, 0.3, 3
    x, z = ([[p.detach() for p in start()] for _ in range(2)] for _ in range(2))
    for step in range(2 * every):
        c = 1 / (step + 1)
        for rank in range(2):
            y = [(1 - beta) * b + beta * a for a, b in zip(x[rank], z[rank], strict=True)]
            z[rank] = [b - lr * slope(q, rank, step) for b, q in zip(z[rank], y, strict=True)]
            x[rank] = [(1 - c) * a + c * b for a, b in zip(x[rank], z[rank], strict=True)]
        if (step + 1) % every == 0:
            mean = [(a + b) / 2 for a, b in zip(*x, strict=True)]
            for rank in range(2):
                z[rank] = [b + m - a for a, b, m in zip(x[rank], z[rank], mean, strict=True)]
                x[rank] = mean
    for rank, (found_x, found_z) in enumerate(pair.run(averaging, 2 * every, every)):
        close(found_x, x[rank])
        close(found_z, z[rank])


# -- evaluation, buffers, schedules -----------------------------------------------------------------------------------


def evaluated(rank: int, world: int, inner: str) -> tuple[list[Tensor], bool, bool, str]:
    params = start()
    opt = LocalSteps(INNERS[inner](params), every=3)
    train(opt, params, rank, range(5))
    before = [p.detach().clone() for p in params]
    said = ""
    with opt.evaluating():
        seen = [p.detach().clone() for p in params]
        away = not any(torch.equal(a, b) for a, b in zip(seen, before, strict=True))
        try:
            opt.step()
        except RuntimeError as error:
            said = str(error)
    back = opt.training and all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    return seen, away, back, said


@pytest.mark.parametrize("inner", ["AdamW", "ScheduleFree"])
def test_all_workers_evaluate_the_anchor_and_come_back_to_the_bit(pair, inner: str) -> None:
    found = pair.run(evaluated, inner)
    for seen, away, back, said in found:
        assert all(torch.equal(a, b) for a, b in zip(seen, found[0][0], strict=True))
        assert away
        assert back
        assert "call opt.train() before opt.step()" in said


def normalised(rank: int, world: int, averaged: bool) -> tuple[list[Tensor], int]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    buffers = list(model.buffers()) if averaged else []
    opt = LocalSteps(torch.optim.SGD(model.parameters(), lr=0.0), every=2, buffers=buffers)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    for step in range(2):
        model(target(rank, step, (8, 4))).sum().backward()
        opt.step()
        schedule.step()
    return [model[1].running_mean, model[1].running_var], int(model[1].num_batches_tracked)


def test_buffers_are_averaged_where_asked(pair) -> None:
    apart, together = pair.run(normalised, False), pair.run(normalised, True)
    for i in range(2):
        assert not torch.equal(apart[0][0][i], apart[1][0][i])
        for rank in range(2):
            torch.testing.assert_close(
                together[rank][0][i], (apart[0][0][i] + apart[1][0][i]) / 2, rtol=0, atol=1e-14
            )
            assert together[rank][1] == 2


def scheduled(rank: int, world: int) -> tuple[list[float], list[Tensor]]:
    params = start()
    opt = LocalSteps(torch.optim.SGD(params, lr=0.3), lambda ps: hasten.SGD(ps, lr=1.0), every=1)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    rates = []
    for step in range(3):
        rates.append(opt.param_groups[0]["lr"])
        train(opt, params, rank, range(step, step + 1))
        opt.zero_grad()
        schedule.step()
    assert all(p.grad is None for p in params)
    return rates, [p.detach() for p in params]


def test_schedulers_drive_the_inner_optimizer(pair) -> None:
    rates, params = pair.run(scheduled)[0]
    assert rates == [0.3, 0.15, 0.075]
    expected = [p.detach() for p in start()]
    for step, lr in enumerate(rates):
        expected = [p - lr * (slope(p, 0, step) + slope(p, 1, step)) / 2 for p in expected]
    close(params, expected)


def halves(rank: int, world: int) -> tuple[str, list[Tensor]]:
    params = [nn.Parameter(p.detach().bfloat16()) for p in start()]
    opt = LocalSteps(torch.optim.SGD(params, lr=0.5), lambda ps: hasten.SGD(ps, lr=1.0), every=2)
    for step in range(4):
        for p in params:
            p.grad = slope(p.detach(), rank, step).bfloat16()
        opt.step()
    assert all(torch.equal(p, a.bfloat16()) for p, a in zip(params, opt.anchor.point, strict=True))
    return str(opt.anchor.point[0].dtype), [p.detach() for p in params]


def test_the_anchor_of_short_parameters_is_kept_in_float32(pair) -> None:
    found = pair.run(halves)
    assert found[0][0] == "torch.float32"
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


# -- mistakes ---------------------------------------------------------------------------------------------------------


def thawed() -> None:
    layers = nn.Linear(2, 2), nn.Linear(2, 1).requires_grad_(False)
    opt = LocalSteps(torch.optim.SGD([p for layer in layers for p in layer.parameters()], lr=0.1))
    layers[1].requires_grad_(True)
    opt.step()


def mistaken(rank: int, world: int) -> list[str]:
    w = nn.Parameter(torch.zeros(2))
    sgd = torch.optim.SGD([w], lr=0.1)
    attempts: list[Callable[[], Any]] = [
        lambda: LocalSteps([w]),
        lambda: LocalSteps(sgd, every=0),
        lambda: LocalSteps(sgd, every=2.0),
        lambda: LocalSteps(sgd, sgd),
        lambda: LocalSteps(sgd, lambda ps: None),
        lambda: LocalSteps(sgd, exchange=4),
        lambda: LocalSteps(torch.optim.SGD([nn.Parameter(torch.zeros(2, dtype=torch.cfloat))], lr=0.1)),
        lambda: LocalSteps(sgd).add_param_group({"params": [nn.Parameter(torch.zeros(1))]}),
        lambda: LocalSteps(sgd, buffers=nn.BatchNorm1d(2).named_buffers()),
        lambda: copy.deepcopy(LocalSteps(sgd)),
        thawed,
    ]
    return [answer(attempt) for attempt in attempts]


def answer(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_mistakes_are_answered(pair) -> None:
    expected = [
        r"TypeError: LocalSteps: inner = .* must be an optimizer",
        r"ValueError: LocalSteps: every = 0 .* positive integer",
        r"ValueError: LocalSteps: every = 2\.0 .* positive integer",
        r"TypeError: LocalSteps: outer = SGD .* function",
        r"TypeError: LocalSteps: outer gave None",
        r"TypeError: LocalSteps: exchange = 4 .* an Exchange, a Sketch or None",
        r"TypeError: LocalSteps: a parameter .*complex64 .* real floating",
        r"RuntimeError: LocalSteps: a parameter group cannot be added",
        r"TypeError: LocalSteps: buffers with a tuple .* tensors",
        r"TypeError: LocalSteps: .* cannot be copied or pickled",
        r"RuntimeError: LocalSteps: a parameter that was frozen .* is no more",
    ]
    for said in pair.run(mistaken):
        for found, pattern in zip(said, expected, strict=True):
            assert re.match(pattern, found, re.DOTALL), found


def test_without_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="not initialised"):
        LocalSteps(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1))
