"""Schedules: each against an independent statement, and as the value of any hyperparameter."""

import io
import math

import pytest
import torch
from torch.optim import lr_scheduler

import hasten
from hasten import schedules


def torchs(make, steps, key="lr", lr=1.0, **options):
    """The values that a scheduler of torch sets."""
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9, **options)
    scheduler = make(opt)
    values = []
    for _ in range(steps):
        values.append(opt.param_groups[0][key])
        opt.step()
        scheduler.step()
    return values


def ours(schedule, steps):
    return [schedule(t) for t in range(steps)]


@pytest.mark.parametrize("rise", [0.3, 0.5])
def test_one_cycle_is_torchs(rise):
    def cycle(opt):
        return lr_scheduler.OneCycleLR(
            opt, max_lr=0.7, total_steps=40, pct_start=rise, base_momentum=0.8, max_momentum=0.95
        )

    lr = schedules.one_cycle(0.7, total=40, rise=rise)
    momentum = schedules.one_cycle_momentum(0.95, 0.8, total=40, rise=rise)
    assert ours(lr, 40) == pytest.approx(torchs(cycle, 40), rel=1e-12)
    assert ours(momentum, 40) == pytest.approx(torchs(cycle, 40, "momentum"), rel=1e-12)


def test_cosine_is_torchs_after_the_warm_up():
    expected = torchs(lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=30, eta_min=0.1), 30)
    assert ours(schedules.cosine(1.0, total=30, final=0.1), 30) == pytest.approx(expected, rel=1e-12)
    warm = schedules.cosine(1.0, total=40, warmup=10, final=0.1)
    assert ours(warm, 10) == pytest.approx([(t + 1) / 10 for t in range(10)], rel=1e-12)
    assert [warm(t) for t in range(10, 40)] == pytest.approx(expected, rel=1e-12)
    assert warm(1000) == pytest.approx(0.1)


def test_linear_and_warmup_are_torchs():
    expected = torchs(lambda opt: lr_scheduler.LinearLR(opt, 0.25, 1.0, total_iters=12), 20)
    assert ours(schedules.linear(0.25, 1.0, steps=12), 20) == pytest.approx(expected, rel=1e-12)
    assert ours(schedules.linear(2.0, 1.0, steps=2, delay=3), 7) == [2, 2, 2, 2, 1.5, 1, 1]
    expected = torchs(lambda opt: lr_scheduler.LambdaLR(opt, lambda t: min(1, (t + 1) / 5)), 9, lr=3.0)
    assert ours(schedules.warmup(3.0, steps=5), 9) == pytest.approx(expected, rel=1e-12)


def test_warmup_stable_decay():
    values = ours(schedules.wsd(2.0, total=10, warmup=2, decay=4, final=0.4), 12)
    assert values == pytest.approx([1, 2, 2, 2, 2, 2, 2, 1.6, 1.2, 0.8, 0.4, 0.4])


def test_ademamix_schedules_are_the_papers():
    """The scheduler of the authors' code: linear in the half-life, from β_start = β₁."""

    def f(beta, eps=1e-8):
        return math.log(0.5) / math.log(beta + eps) - 1

    def reference(step, beta_end, beta_start, warmup):
        if step < warmup:
            a = step / float(warmup)
            return math.pow(0.5, 1 / ((1.0 - a) * f(beta_start) + a * f(beta_end) + 1))
        return beta_end

    values = ours(schedules.half_life(0.9, 0.9999, steps=50), 60)
    assert values == pytest.approx([reference(t + 1, 0.9999, 0.9, 50) for t in range(60)], rel=1e-12)
    assert ours(schedules.ademamix_alpha(8.0, steps=4), 6) == [2, 4, 6, 8, 8, 8]


def test_rectified_is_radams_factor():
    beta2, values = 0.99, ours(schedules.rectified(0.1, beta2=0.99), 30)
    limit = 2 / (1 - beta2) - 1
    for t, value in enumerate(values):
        k = t + 1
        rho = limit - 2 * k * beta2**k / (1 - beta2**k)
        expected = 0.0
        if rho > 4:
            expected = 0.1 * math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
        assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: schedules.cosine(1.0, total=0),
            "cosine: total = 0 is not allowed; it must be greater than 0",
        ),
        (lambda: schedules.cosine(float("nan"), total=5), "cosine: peak = nan is not allowed"),
        (lambda: schedules.warmup("1", steps=5), "warmup: peak = '1' is not allowed; it must be a number"),
        (lambda: schedules.one_cycle(1.0, total=5, rise=1.0), "one_cycle: rise = 1.0 is not allowed"),
        (lambda: schedules.wsd(1.0, 10, -1, 2), "wsd: warmup = -1 is not allowed; it must be 0 or more"),
        (lambda: schedules.Schedule.from_plain({"schedule": "cosin"}), "unknown schedule 'cosin'"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make()


def fresh(build):
    torch.manual_seed(0)
    w = torch.randn(5, dtype=torch.float64).requires_grad_()
    return w, build([w])


def advance(w, opt, steps, start=0):
    for k in range(start, start + steps):
        w.grad = torch.sin(w.detach() * (k + 1))
        opt.step()


ANY_HYPERPARAMETER = {
    "lr": lambda p, s: hasten.AdamW(p, lr=s(1e-3, 1e-2)),
    "betas[0]": lambda p, s: hasten.AdamW(p, betas=(s(0.5, 0.9), 0.999)),
    "betas[1]": lambda p, s: hasten.AdamW(p, betas=(0.9, s(0.9, 0.99))),
    "eps": lambda p, s: hasten.AdamW(p, eps=s(1e-3, 1e-8)),
    "weight_decay": lambda p, s: hasten.AdamW(p, weight_decay=s(0.0, 0.5)),
    "momentum": lambda p, s: hasten.SGD(p, lr=0.1, momentum=s(0.5, 0.9)),
    "alpha": lambda p, s: hasten.AdEMAMix(p, alpha=s(0.0, 5.0)),
    "nu": lambda p, s: hasten.QHM(p, nu=s(0.1, 0.9)),
}


@pytest.mark.parametrize("place", ANY_HYPERPARAMETER)
def test_a_schedule_is_the_value_of_any_hyperparameter(place):
    """The same as setting the value by hand before every step, and the group shows the value that was used."""
    build = ANY_HYPERPARAMETER[place]
    w, opt = fresh(lambda p: build(p, lambda a, b: schedules.linear(a, b, steps=6)))
    v, other = fresh(lambda p: build(p, lambda a, b: a))
    key, _, index = place.partition("[")
    made = {}
    build(
        [torch.zeros(1, requires_grad=True)],
        lambda a, b: made.update(schedule=schedules.linear(a, b, steps=6)) or a,
    )
    for t in range(9):
        value = made["schedule"](t)
        group = other.param_groups[0]
        if index:
            betas = list(group[key])
            betas[int(index[0])] = value
            value = tuple(betas)
        group[key] = value
        advance(w, opt, 1, t)
        advance(v, other, 1, t)
        assert opt.param_groups[0][key] == group[key]
    assert torch.equal(w, v)


def through_file(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_schedule_resumes_from_its_checkpoint():
    def build(p):
        return hasten.AdamW(
            p, lr=schedules.cosine(1e-2, total=10, warmup=3), betas=(schedules.linear(0.5, 0.9, 8), 0.99)
        )

    w, opt = fresh(build)
    advance(w, opt, 4)
    saved, value = through_file(opt.state_dict()), w.detach().clone()
    advance(w, opt, 4, 4)
    # The schedule is in the checkpoint: the new optimizer need not know it.
    v, other = fresh(lambda p: hasten.AdamW(p))
    other.load_state_dict(saved)
    with torch.no_grad():
        v.copy_(value)
    advance(v, other, 4, 4)
    assert torch.equal(w, v)


def test_a_function_of_the_step_is_a_schedule_but_is_not_saved():
    def build(p):
        return hasten.AdamW(p, lr=lambda t: 1e-2 / (1 + t))

    w, opt = fresh(build)
    advance(w, opt, 3)
    assert opt.param_groups[0]["lr"] == 1e-2 / 3
    saved, value = through_file(opt.state_dict()), w.detach().clone()
    advance(w, opt, 2, 3)
    v, other = fresh(build)
    other.load_state_dict(saved)
    with torch.no_grad():
        v.copy_(value)
    advance(v, other, 2, 3)
    assert torch.equal(w, v)
    u, without = fresh(lambda p: hasten.AdamW(p))
    without.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="lr was scheduled by a function, which a checkpoint cannot hold"):
        advance(u, without, 1)


def test_two_schedulers_of_one_hyperparameter_are_refused():
    w, opt = fresh(lambda p: hasten.AdamW(p, lr=schedules.warmup(1e-2, steps=5)))
    scheduler = lr_scheduler.StepLR(opt, 1, gamma=0.5)
    advance(w, opt, 1)
    scheduler.step()
    before = w.detach().clone()
    with pytest.raises(RuntimeError, match=r"AdamW: lr has a schedule of its own.*use one scheduler"):
        advance(w, opt, 1, 1)
    assert torch.equal(w, before)


def test_torchs_schedulers_work_beside_a_schedule_of_something_else():
    w, opt = fresh(lambda p: hasten.AdamW(p, betas=(schedules.linear(0.5, 0.9, steps=4), 0.99)))
    scheduler = lr_scheduler.StepLR(opt, 1, gamma=0.5)
    for k in range(4):
        assert opt.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**k)
        advance(w, opt, 1, k)
        scheduler.step()


def test_a_group_may_have_a_schedule_of_its_own():
    a, b = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    opt = hasten.SGD([{"params": [a]}, {"params": [b], "lr": schedules.warmup(0.1, steps=2)}], lr=0.1)
    for _ in range(2):
        a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
        opt.step()
    assert torch.allclose(a, torch.full_like(a, 0.8))
    assert torch.allclose(b, torch.full_like(b, 0.85))


def test_a_schedule_that_leaves_the_range_is_refused_at_its_step():
    w, opt = fresh(lambda p: hasten.AdamW(p, betas=(schedules.linear(0.5, 1.5, steps=4), 0.99)))
    advance(w, opt, 2)
    before = w.detach().clone()
    with pytest.raises(ValueError, match=r"AdamW: betas\[0\] = 1.0 is not allowed"):
        advance(w, opt, 1, 2)
    assert torch.equal(w, before)
