from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel as DDP

from hasten.distributed import (
    Compressor,
    DCTColumns,
    Disagreement,
    ErrorFeedback,
    Hook,
    LowRank,
    Parcel,
    Sign,
    Sketched,
    TopK,
    redistributed,
)
from hasten.distributed.compressors import Message, averaged
from hasten.distributed.packing import average
from hasten.sketches import BalancedCountSketch
from hasten.wire import Wire

COMPRESSORS = [
    TopK(8),
    TopK(8, torch.bfloat16),
    Sign(),
    Sketched(BalancedCountSketch(ratio=8)),
    LowRank(2),
    LowRank(1, warm_start=False),
    DCTColumns(2),
]
SHAPES = [torch.Size(shape) for shape in [(20, 12), (7,), (4, 3, 5, 2), (), (16, 16), (2, 2), (0, 3)]]
STEPS = 3
PACKINGS = [[[0, 1, 2, 3, 4, 5, 6]], [[5, 4], [6, 3, 2], [0, 1]]]


def gradients(rank: int, step: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [(torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3) * scale for shape in SHAPES]


def run(
    exchange: ErrorFeedback,
    wire: Wire,
    steps: range,
    packing: list[list[int]] = PACKINGS[0],
    scale: float = 1.0,
) -> list[list[Tensor]]:
    """What arrives, by step and parameter."""
    found = []
    for step in steps:
        g = gradients(wire.rank, step, scale)
        parcels = [Parcel([g[i] for i in indices], indices, step) for indices in packing]
        for future in [exchange.mean(parcel, wire) for parcel in parcels]:  # all under way at once
            future.wait()
        found.append(g)
    return found


def everything(rank: int, world: int) -> dict[str, Any]:
    """For every compressor: what arrives with each packing, what is left, and what was sent."""
    found = {}
    for compressor in COMPRESSORS:
        runs = []
        for packing in PACKINGS:
            exchange, wire = ErrorFeedback(compressor), Wire()
            exchange.prepare(SHAPES)
            arrived = run(exchange, wire, range(STEPS), packing)
            runs.append((arrived, exchange.errors, wire.communication.parts["gradients"]))
        found[repr(compressor)] = runs
    return found


def sent_numbers(compressor: Compressor, world: int) -> tuple[int, float]:
    """Bytes handed over in one step, and bytes that leave a worker, from the formulas of the papers."""
    payload, sent = 0, 0.0
    for shape in SHAPES:
        d = math.prod(shape)
        n, m = (shape[0], d // max(1, shape[0])) if shape else (1, 1)
        short, gathered = {
            "TopK": (-(-d // 8) * (4 + (2 if getattr(compressor, "values", None) else 8)), True),
            "Sign": (-(-d // 8) + 8, True),
            "Sketched": (-(-d // 8) * 8, False),
            "LowRank": (8 * (n + m) * min(getattr(compressor, "rank", 0), n, m), False),
            "DCTColumns": (8 * (min(n, m) + 2 * max(n, m)), False),
        }[type(compressor).__name__]
        costs = (world - 1) * short if gathered else 2 * (world - 1) / world * short
        if len(shape) < 2 or costs >= 2 * (world - 1) / world * 8 * d:
            short, gathered = 8 * d, False
            costs = 2 * (world - 1) / world * short
        payload, sent = payload + short, sent + costs
    return payload, sent


@pytest.mark.parametrize("world", [2, 4])
def test_nothing_is_lost_and_all_workers_get_the_same(teams, world: int) -> None:
    found = teams(world).run(everything)
    for compressor in COMPRESSORS:
        runs = [by_rank[repr(compressor)] for by_rank in found]
        (arrived, _, traffic), (packed_otherwise, errors_otherwise, _) = runs[0]
        errors = [own[0][1] for own in runs]
        for i, shape in enumerate(SHAPES):
            for step in range(STEPS):
                for other in runs:
                    assert torch.equal(other[0][0][step][i], arrived[step][i])
                    assert torch.equal(other[1][0][step][i], packed_otherwise[step][i])
                torch.testing.assert_close(packed_otherwise[step][i], arrived[step][i], rtol=0, atol=1e-12)
            total = sum(arrived[step][i] for step in range(STEPS))
            left = sum(e.get(i, torch.zeros(shape).double()) for e in errors) / world
            expected = sum(gradients(r, step)[i] for r in range(world) for step in range(STEPS)) / world
            torch.testing.assert_close(total + left, expected, rtol=0, atol=1e-12)
        assert set(errors[0]) == set(errors_otherwise)
        assert {i for i, shape in enumerate(SHAPES) if len(shape) < 2}.isdisjoint(errors[0])
        assert 0 in errors[0]
        payload, sent = sent_numbers(compressor, world)
        assert traffic.payload == STEPS * payload
        assert traffic.sent == traffic.received == pytest.approx(STEPS * sent, abs=1e-6)
        assert traffic.calls == STEPS * (1 if isinstance(compressor, Sketched) else 2)


def dense_recursion(rank: int, world: int) -> tuple[list[list[Tensor]], list[Tensor]]:
    exchange = ErrorFeedback(TopK(8), exact=lambda shape: False)
    arrived = run(exchange, Wire(), range(5))
    return arrived, [exchange.errors.get(i) for i in range(len(SHAPES))]


def test_the_recursion_is_that_of_a_dense_statement(pair) -> None:
    found = pair.run(dense_recursion)
    memory = {(r, i): torch.zeros(shape).double() for r in range(2) for i, shape in enumerate(SHAPES)}
    for step in range(5):
        for i, shape in enumerate(SHAPES):
            kept, k = [], -(-shape.numel() // 8)
            for r in range(2):
                m = memory[r, i] + gradients(r, step)[i]
                saves = k * 12 < 8 * shape.numel()  # not for a scalar, or nothing
                c = m * (m.abs() >= m.abs().flatten().sort().values[-k]) if saves else m
                kept.append(c)
                memory[r, i] = m - c
            torch.testing.assert_close(found[0][0][step][i], sum(kept) / 2, rtol=0, atol=1e-12)
    for r in range(2):
        for i, e in enumerate(found[r][1]):
            torch.testing.assert_close(
                torch.zeros(SHAPES[i]).double() if e is None else e, memory[r, i], rtol=0, atol=1e-12
            )


class Bucket:
    """What torch's hook asks of a bucket."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.flat = torch.cat([t.reshape(-1) for t in tensors])
        self.shapes = [t.shape for t in tensors]

    def buffer(self) -> Tensor:
        return self.flat

    def gradients(self) -> list[Tensor]:
        pieces = torch.split(self.flat, [shape.numel() for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True


def beside_torch(rank: int, world: int) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    shown = [0, 1, 2, 4]
    state = PowerSGDState(None, 2, 2, min_compression_rate=1, random_seed=5)
    seed = np.random.RandomState(5).randint(1_000_000_000)
    exchange, wire = ErrorFeedback(LowRank(2)), Wire()
    torch.manual_seed(seed)  # the first Q of torch's hook, in the order in which it draws
    for i in shown:
        rows = SHAPES[i][0]
        if len(SHAPES[i]) > 1:
            exchange.memories[i] = torch.randn(1, SHAPES[i].numel() // rows, 2, dtype=torch.float64)[0]
    theirs, mine = [], []
    for step in range(8):
        bucket = Bucket([gradients(rank, step)[i] for i in shown])
        theirs.append(powerSGD_hook(state, bucket).wait().clone())
        if step >= 2:  # it begins with two exact averages
            g = [gradients(rank, step)[i] for i in shown]
            exchange.mean(Parcel(g, shown, step), wire).wait()
            mine.append(torch.cat([t.reshape(-1) for t in g]))
    left = torch.cat([exchange.errors.get(i, torch.zeros(SHAPES[i]).double()).flatten() for i in shown])
    return theirs[2:], mine, state.error_dict[0], left


def test_low_rank_follows_the_power_iteration_of_torch(pair) -> None:
    found = pair.run(beside_torch)
    for theirs, mine in zip(found[0][0], found[0][1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    # Torch's hook keeps m − mean(C), the paper m − C(m): equal in the mean, which is all that later means depend on.
    torch.testing.assert_close(found[0][3] + found[1][3], found[0][2] + found[1][2], rtol=0, atol=1e-10)


def poisoned(rank: int, world: int) -> list[Any]:
    found = []
    for compressor in COMPRESSORS:
        exchange, wire = ErrorFeedback(compressor), Wire()
        run(exchange, wire, range(2))
        before = {name: dict(kept) for name, kept in exchange.state_dict().items() if name != "compressor"}
        for place in (0, 1):  # compressed, and not
            g = gradients(rank, 2)
            if rank == 1:
                g[place].view(-1)[3] = math.nan
            exchange.mean(Parcel(g, list(range(len(g))), 2), wire).wait()
            found.append(bool(g[place].isfinite().all()))
            after = exchange.state_dict()
            found.append(
                all(
                    before[name].keys() == after[name].keys()
                    and all(torch.equal(before[name][i], after[name][i]) for i in before[name])
                    for name in before
                )
            )
    return found


def test_what_is_not_finite_on_one_worker_is_seen_by_all_and_changes_no_memory(pair) -> None:
    expected = [False, True] * (2 * len(COMPRESSORS))
    assert pair.run(poisoned) == [expected, expected]


def paid_back(rank: int, world: int) -> tuple[list[Tensor], set[int]]:
    """What was left of parameters that now go whole: of one that is silent, and of one that is not."""
    exchange = ErrorFeedback(TopK(8), exact=lambda shape: True)
    exchange.errors = {0: torch.full(SHAPES[0], 4.0 * rank), 4: torch.ones(SHAPES[4])}
    found = []
    for step in range(2):
        g = [torch.ones(SHAPES[0]), torch.zeros(SHAPES[4])]
        exchange.mean(Parcel(g, [0, 4], step), Wire()).wait()
        found += g
    return found, set(exchange.errors)


def test_what_was_left_arrives_at_once_where_nothing_is_compressed_any_more(pair) -> None:
    for arrived, left in pair.run(paid_back):
        assert [t.unique().tolist() for t in arrived] == [[3.0], [0.0], [1.0], [0.0]]
        assert left == {4}


def small_kinds(rank: int, world: int) -> tuple[list[Tensor], list[torch.dtype], list[torch.dtype], bool]:
    """bfloat16, a transposed and a channels-last tensor, in one parcel."""
    kinds = [
        torch.full((16, 16), 1 / 3 + rank).bfloat16(),
        torch.arange(64.0).view(8, 8).T,
        torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(rank)).to(
            memory_format=torch.channels_last
        ),
    ]
    expected = [t.clone() for t in kinds]
    exchange = ErrorFeedback(TopK(4))
    exchange.mean(Parcel(kinds, [0, 1, 2], 0), Wire()).wait()
    left = [exchange.errors[i] for i in range(3)]
    parts = [torch.where(e == 0, t.float(), torch.zeros(())) for e, t in zip(left, expected, strict=True)]
    same = all(torch.equal(e, t.float() * (e != 0)) for e, t in zip(left, expected, strict=True))
    return [*kinds, *parts], [t.dtype for t in kinds], [e.dtype for e in left], same


def test_low_precision_and_any_memory_layout(pair) -> None:
    found = pair.run(small_kinds)
    for tensors, dtypes, kept, same in found:
        assert dtypes == [torch.bfloat16, torch.float32, torch.float32]
        assert kept == [torch.float32] * 3
        assert same
        for i in range(3):
            expected = sum(other[0][3 + i] for other in found) / 2
            torch.testing.assert_close(tensors[i].float(), expected, rtol=2**-8 if i == 0 else 0, atol=1e-6)


def of_three_kinds(rank: int, world: int) -> list[Tensor]:
    tensors = [
        torch.tensor([1 + rank / 128], dtype=torch.bfloat16),
        torch.ones(1),
        torch.tensor([rank + 2.0**-40], dtype=torch.float64),
    ]
    return average(tensors, Wire(), "gradients").wait()


def test_what_is_averaged_together_is_so_in_the_widest_dtype(pair) -> None:
    for short, single, double in pair.run(of_three_kinds):
        assert (short.dtype, single.dtype, double.dtype) == (torch.bfloat16, torch.float32, torch.float64)
        assert (short.item(), single.item(), double.item()) == (1.0, 1.0, 0.5 + 2.0**-40)


def scaled(rank: int, world: int) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    scales = [1024.0, 1024.0, 512.0, 2048.0, 65536.0]
    now = iter(scales)
    with_scale, wire = ErrorFeedback(Sign(), scale=lambda: next(now)), Wire()
    arrived = [
        [t / s for t in run(with_scale, wire, range(step, step + 1), scale=s)[0]]
        for step, s in enumerate(scales)
    ]
    return arrived, run(ErrorFeedback(Sign()), wire, range(5))


def test_the_scale_of_the_gradients_may_change(pair) -> None:
    for arrived, expected in pair.run(scaled):
        for a, b in zip(arrived, expected, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Under DistributedDataParallel


class Branches(nn.Module):
    """A layer that only some steps use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.sometimes = nn.Linear(12, 24).double(), nn.Linear(24, 24).double()
        self.last = nn.Linear(24, 1).double()

    def forward(self, x: Tensor, used: bool) -> Tensor:
        h = self.first(x).tanh()
        return self.last(h + self.sometimes(h).tanh() if used else h)


def unused(rank: int, world: int) -> tuple[Tensor, Tensor, Tensor, int]:
    local = Branches()
    model = DDP(Branches(), find_unused_parameters=True, bucket_cap_mb=0.002)
    exchange = ErrorFeedback(TopK(10))
    Hook(exchange).register(model)
    arrived = torch.zeros(24, 24).double()
    expected = arrived.clone()
    x = torch.randn(32, 12, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    y = x.sin().sum(1, keepdim=True)
    for step in range(8):
        # None, one, or both of the workers use it.
        used = step % 4 == 0 or (step % 4 == 1 and rank == 0)
        for each in (model, local):
            each.zero_grad()
            ((each(x, used) - y) ** 2).mean().backward()
        mine, theirs = model.module.sometimes.weight.grad, local.sometimes.weight.grad
        arrived += 0 if mine is None else mine
        expected += 0 if theirs is None else theirs
    index = [name for name, _ in local.named_parameters()].index("sometimes.weight")
    return arrived, exchange.errors[index], expected, len(exchange.errors)


def test_nothing_is_lost_of_parameters_that_some_steps_do_not_use(pair) -> None:
    found = pair.run(unused)
    (arrived, _, _, kept), (also, *_) = found
    assert torch.equal(arrived, also)
    assert kept == 3
    left, expected = (sum(worker[k] for worker in found) / 2 for k in (1, 2))
    torch.testing.assert_close(arrived + left, expected, rtol=0, atol=1e-12)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(20, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))


def trained(
    rank: int, world: int, compressor: Compressor, steps: int, break_at: int | None
) -> tuple[list[float], list[Tensor], int]:
    def fresh() -> tuple[DDP, Hook, torch.optim.Optimizer]:
        model = DDP(network(), bucket_cap_mb=0.01)
        hook = Hook(ErrorFeedback(compressor)).register(model)
        return model, hook, torch.optim.AdamW(model.parameters(), lr=3e-3)

    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(rank))
    y = x.sin().sum(1, keepdim=True)
    model, hook, optimizer = fresh()
    losses, sent = [], 0
    for step in range(steps):
        if step == break_at:
            file = io.BytesIO()
            torch.save([each.state_dict() for each in (model, hook, optimizer)], file)
            sent = hook.communication.total.payload
            model, hook, optimizer = fresh()
            file.seek(0)
            loaded = torch.load(file, weights_only=True)
            for each, state in zip((model, hook, optimizer), loaded, strict=True):
                each.load_state_dict(state)
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return (
        losses,
        [p.detach().clone() for p in model.parameters()],
        sent + hook.communication.total.payload,
    )


@pytest.mark.parametrize(
    "compressor", [TopK(20), Sketched(BalancedCountSketch(ratio=8)), LowRank(1)], ids=repr
)
def test_adamw_trains_and_resumes_bit_for_bit(pair, compressor: Compressor) -> None:
    straight = pair.run(trained, compressor, 40, None)
    broken = pair.run(trained, compressor, 40, 17)
    for a, b in zip(straight, broken, strict=True):
        assert a[0] == b[0]
        assert all(torch.equal(p, q) for p, q in zip(a[1], b[1], strict=True))
        assert a[2] == b[2]
    assert all(torch.equal(p, q) for p, q in zip(straight[0][1], straight[1][1], strict=True))
    first, last = (sum(worker[0][k] for worker in straight) for k in (0, -1))
    assert last < 0.7 * first
    whole = 4 * sum(p.numel() for p in network().parameters())
    assert straight[0][2] < 40 * whole / 4


def scaled_training(rank: int, world: int, scaling: bool) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """With a GradScaler whose scale grows and shrinks, or without; one worker has NaN in one step."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3, enabled=scaling)
    model = DDP(network())
    exchange = ErrorFeedback(TopK(20), scale=scaler.get_scale if scaling else None)
    Hook(exchange).register(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scales = []
    for step in range(10):
        x = torch.randn(16, 20, generator=torch.Generator().manual_seed(2 * step + rank))
        y = x.sin().sum(1, keepdim=True)
        if step == 5 and rank == 1:
            x[3, 4] = math.nan
        optimizer.zero_grad()
        scaler.scale(((model(x) - y) ** 2).mean()).backward()
        if scaling:
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        elif step != 5:
            optimizer.step()
    return [p.detach().clone() for p in model.parameters()], list(exchange.errors.values()), scales


def test_a_grad_scaler_changes_nothing_and_skips_on_all_workers(pair) -> None:
    plain, found = pair.run(scaled_training, False), pair.run(scaled_training, True)
    for rank in range(2):
        assert found[rank][2] == [1024, 1024, 2048, 2048, 2048, 1024, 1024, 1024, 2048, 2048]
        for k in (0, 1):
            assert all(torch.equal(a, b) for a, b in zip(plain[rank][k], found[rank][k], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(found[rank][0], found[0][0], strict=True))


def refused(rank: int, world: int) -> list[str]:
    said = []
    for tensor, scale in ((torch.ones(4, 4, dtype=torch.complex64), 1.0), (torch.ones(4, 4), 0.0)):
        exchange = ErrorFeedback(TopK(2), scale=lambda scale=scale: scale)
        with pytest.raises((TypeError, ValueError)) as error:
            exchange.mean(Parcel([tensor], [0], 0), Wire())
        said.append(f"{error.type.__name__}: {error.value}")
    return said


def test_tensors_and_scales_that_make_no_sense_are_refused(pair) -> None:
    assert pair.run(refused)[0] == [
        "TypeError: ErrorFeedback: a tensor of torch.complex64 is not allowed; it must be real and floating",
        "ValueError: ErrorFeedback: scale() = 0.0 is not allowed; it must be positive and finite",
    ]


def unlike(rank: int, world: int) -> str:
    try:
        Hook(ErrorFeedback(TopK(10 if rank != 1 else 20))).register(DDP(network()))
    except Disagreement as error:
        return str(error)
    return "registered"


def test_another_compressor_on_one_worker_is_named(four) -> None:
    said = four.run(unlike)
    assert said[0].startswith("the workers do not have the same compressor: rank 1 with TopK(ratio=20, ")
    assert said == [said[0]] * 4


# Why memory is needed


def descend(
    oracles: list[Callable[[Tensor], Tensor]],
    compressor: Compressor,
    x: Tensor,
    lr: float,
    steps: int,
    feedback: bool,
) -> list[Tensor]:
    """x ← x − lr · mean of what the workers send, all in this process."""
    errors = [torch.zeros_like(x) for _ in oracles]
    path = [x]
    for step in range(steps):
        messages = [
            [Message(e + oracle(x), torch.empty_like(x), 0, step)]
            for e, oracle in zip(errors, oracles, strict=True)
        ]
        averaged(compressor, messages)
        errors = [m.m if feedback else torch.zeros_like(x) for (m,) in messages]
        x = x - lr * messages[0][0].mean
        path.append(x)
    return path


def least_squares(a: list[float], ridge: float) -> Callable[[Tensor], Tensor]:
    """The gradient of ⟨a, x⟩² + ridge/2 ‖x‖²."""
    v = torch.tensor(a, dtype=torch.float64)
    return lambda x: 2 * (v @ x) * v + ridge * x


def test_signs_without_feedback_never_leave_a_line() -> None:
    """Karimireddy et al. (2019), counterexample 3: f = ⟨a₁, x⟩² + ⟨a₂, x⟩², a = ±(1, −1) + ε(1, 1), one worker each."""
    oracles = [least_squares([1.5, -0.5], 0), least_squares([-0.5, 1.5], 0)]
    start = torch.ones(2, dtype=torch.float64)
    stalled = descend(oracles, Sign(), start, 0.02, 2000, feedback=False)
    assert all(float(x.sum()) == pytest.approx(2, abs=1e-12) for x in stalled)
    corrected = descend(oracles, Sign(), start, 0.02, 2000, feedback=True)
    assert float(corrected[-1].norm()) < 1e-6


def test_the_largest_entry_without_feedback_diverges() -> None:
    """Beznosikov et al. (2020), example 1: three workers, f_i = ⟨a_i, x⟩² + ¼‖x‖², from (t, t, t)."""
    oracles = [least_squares(a, 0.5) for a in ([-3, 2, 2], [2, -3, 2], [2, 2, -3])]
    start = torch.ones(3, dtype=torch.float64)
    away = descend(oracles, TopK(3), start, 0.01, 500, feedback=False)
    growth = 1 + 0.01 * 11 / 6  # what is sent of 2aᵢᵀx aᵢ + x/2 at (t, t, t) is −5.5 t on one coordinate each
    assert float(away[-1].norm() / away[0].norm()) == pytest.approx(growth**500, rel=1e-9)
    corrected = descend(oracles, TopK(3), start, 0.01, 5000, feedback=True)
    assert float(corrected[-1].norm()) < 1e-6


# State


def state(e: float, kind: str = "TopK", **more: Tensor) -> dict[str, Any]:
    return {"compressor": kind, "errors": {2: torch.full((20, 12), e)}, "memories": dict(more)}


def test_states_are_redistributed_with_the_mean_kept() -> None:
    states = [state(1.0), state(3.0), state(8.0)]
    assert redistributed(states, 3) == states
    for world in (1, 2, 7):
        found = redistributed(states, world)
        assert len(found) == world
        assert all(torch.equal(each["errors"][2], torch.full((20, 12), 4.0)) for each in found)
    lacking = {**state(0.0), "errors": {}}
    assert float(redistributed([state(6.0), lacking], 1)[0]["errors"][2][0, 0]) == 3.0
    kept = {"compressor": "LowRank", "errors": {}, "memories": {0: torch.ones(3, 1)}}
    assert torch.equal(redistributed([kept, kept], 4)[3]["memories"][0], torch.ones(3, 1))
    assert redistributed([{}, {}], 3) == [{}, {}, {}]


@pytest.mark.parametrize(
    ("states", "world", "says"),
    [
        ([], 2, r"states = \[\]"),
        ([state(1.0)], 0, "world = 0"),
        ([state(1.0), state(1.0, "Sign")], 1, "different compressors: Sign, TopK"),
        ([{"e": 1}], 2, "it must have"),
    ],
)
def test_states_that_do_not_belong_together_are_refused(states: list, world: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        redistributed(states, world)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({}, "it must have"),
        (state(1.0, "Sign"), "is of the compressor Sign, this one is LowRank"),
        ({**state(1.0, "LowRank")}, r"errors of shape \(20, 12\) for parameter 2; .* has \(4, 3, 5, 2\)"),
        (
            {"compressor": "LowRank", "errors": {}, "memories": {0: torch.ones(12, 3)}},
            r"memories of shape \(12, 3\) for parameter 0; .* has \(12, 2\)",
        ),
        ({"compressor": "LowRank", "errors": {9: torch.ones(1)}, "memories": {}}, "parameter 9"),
    ],
)
def test_another_state_is_refused_and_changes_nothing(bad: dict, says: str) -> None:
    exchange = ErrorFeedback(LowRank(2))
    exchange.prepare(SHAPES)
    exchange.errors[0] = kept = torch.ones(20, 12)
    with pytest.raises(ValueError, match=says):
        exchange.load_state_dict(bad)
    assert exchange.errors == {0: kept}
    early = ErrorFeedback(LowRank(2))
    if set(bad) and bad["compressor"] == "LowRank":
        early.load_state_dict(bad)  # the shapes are not known yet
        with pytest.raises(ValueError, match=says):
            early.prepare(SHAPES)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ErrorFeedback(3),
        lambda: ErrorFeedback(TopK),
        lambda: ErrorFeedback(TopK(2), exact=3),
        lambda: ErrorFeedback(TopK(2), exact=None),
        lambda: ErrorFeedback(TopK(2), scale=2.0),
    ],
)
def test_bad_arguments_of_error_feedback_are_named(make: Callable) -> None:
    with pytest.raises(TypeError, match=r"ErrorFeedback: \w+ = .* is not allowed; it must be"):
        make()
