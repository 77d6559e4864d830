from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from drifting import INNERS, SHAPES, start, train
from torch import Tensor, nn

import hasten
from hasten.distributed import Disagreement, ErrorFeedback, LocalSteps, Subspace, TopK
from hasten.sketches import BalancedCountSketch

# -- the start and the end ------------------------------------------------------------------------------------------


def from_different_starts(rank: int, world: int) -> tuple[list[Tensor], dict[str, int], int]:
    torch.manual_seed(rank)
    params = [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in SHAPES]
    opt = LocalSteps(torch.optim.SGD(params, lr=0.3), every=4)
    for p in params:
        p.grad = torch.zeros_like(p)
    opt.step()
    before = opt.rounds
    opt.sync()
    opt.sync()
    sent = {name: t.payload for name, t in opt.communication.parts.items()}
    return [p.detach().clone() for p in params], sent, opt.rounds - before


def test_workers_start_where_rank_0_is_and_sync_ends_a_round(four) -> None:
    found = four.run(from_different_starts)
    torch.manual_seed(0)
    expected = [torch.randn(s, dtype=torch.float64) for s in SHAPES]
    for params, sent, rounds in found:
        assert all(torch.equal(a, b) for a, b in zip(params, expected, strict=True))
        assert sent == {"start": 8 * 47, "verdict": 4, "displacements": 8 * 47}
        assert rounds == 1


def loaded_later(rank: int, world: int, outer: str) -> list[Tensor]:
    """A model is loaded after the optimizer was made, as a fine-tuning script may do."""
    params = start()
    outers: dict[str, Any] = {"torch": None, "points": lambda ps: hasten.ScheduleFreeSGD(ps, lr=1.0)}
    opt = LocalSteps(torch.optim.SGD(params, lr=0.3), outers[outer], every=2)
    with torch.no_grad():
        for p in params:
            p.add_(1)
    train(opt, params, rank, range(4))
    return [p.detach().clone() for p in params]


def made_later(rank: int, world: int, outer: str) -> list[Tensor]:
    params = start()
    with torch.no_grad():
        for p in params:
            p.add_(1)
    outers: dict[str, Any] = {"torch": None, "points": lambda ps: hasten.ScheduleFreeSGD(ps, lr=1.0)}
    opt = LocalSteps(torch.optim.SGD(params, lr=0.3), outers[outer], every=2)
    train(opt, params, rank, range(4))
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("outer", ["torch", "points"])
def test_parameters_may_be_loaded_until_the_first_step(pair, outer: str) -> None:
    for a, b in zip(pair.run(loaded_later, outer)[0], pair.run(made_later, outer)[0], strict=True):
        assert torch.equal(a, b)


def disagreeing(rank: int, world: int, what: str) -> str:
    odd = rank == 2
    params = [nn.Parameter(torch.zeros(3, 5 if odd and what == "parameters" else 4))]
    lr = 0.5 if odd and what == "outer optimizer" else 0.7
    sketch = BalancedCountSketch(ratio=4)
    exchange = Subspace(sketch, seed=1 if odd and what == "seed" else 0)
    every = 3 if odd and what == "number of local steps" else 2
    try:
        LocalSteps(torch.optim.SGD(params, lr=0.1), lambda ps: hasten.SGD(ps, lr=lr), every, exchange)
    except Disagreement as error:
        return str(error)
    return ""


@pytest.mark.parametrize("what", ["parameters", "outer optimizer", "seed", "number of local steps"])
def test_a_worker_that_differs_is_named_everywhere(four, what: str) -> None:
    for said in four.run(disagreeing, what):
        assert f"the same {what}" in said
        assert "rank 2 with" in said


def resumed_apart(rank: int, world: int, what: str) -> str:
    params = start()
    opt = LocalSteps(torch.optim.SGD(params, lr=0.1), every=3)
    train(opt, params, rank, range(4))
    saved = opt.state_dict()
    if rank == 1 and what == "rounds":
        saved = {**saved, "rounds": 0}
    if rank == 1 and what == "anchor":
        point = [t + 1e-15 for t in saved["anchor"]["point"]]
        saved = {**saved, "anchor": {**saved["anchor"], "point": point}}
    opt.load_state_dict(saved)
    try:
        train(opt, params, rank, range(1))
    except Disagreement as error:
        return str(error)
    return ""


@pytest.mark.parametrize("what", ["rounds", "anchor", ""])
def test_a_worker_resumed_from_elsewhere_is_named(pair, what: str) -> None:
    for said in pair.run(resumed_apart, what):
        assert what in said
        assert bool(said) == bool(what)


# -- what is not finite -----------------------------------------------------------------------------------------------


def spoilt(rank: int, world: int, inner: str, exchange: Any) -> tuple[Any, ...]:
    params = start()
    running = torch.zeros(2, dtype=torch.float64)
    opt = LocalSteps(INNERS[inner](params), every=2, exchange=exchange, buffers=[running])
    train(opt, params, rank, range(2))
    anchor = [a.detach().clone() for a in opt.anchor.point]
    memory = repr(opt.exchange.state_dict())
    running += rank
    for p in params:
        p.grad = torch.full_like(p, torch.nan if rank == 1 else 1.0)
    opt.step()
    train(opt, params, rank, range(3, 4))
    returned = all(torch.equal(p, a) for p, a in zip(params, anchor, strict=True))
    kept = repr(opt.exchange.state_dict()) == memory
    counts = opt.rounds, opt.rejected_rounds
    train(opt, params, rank, range(4, 6))
    finite = all(bool(p.isfinite().all()) for p in params)
    return returned, kept, counts, running.tolist(), finite, opt.rejected_rounds, [p.detach() for p in params]


@pytest.mark.parametrize("inner", ["AdamW", "torch.AdamW", "ScheduleFree"])
def test_a_nan_on_one_worker_rejects_the_round_on_all(pair, inner: str) -> None:
    found = pair.run(spoilt, inner, None)
    for returned, kept, counts, running, finite, rejected, params in found:
        assert kept
        assert finite
        assert returned or inner == "ScheduleFree"  # its parameters hold y, near the anchor x
        assert counts == (2, 1)
        assert rejected == 1
        assert running == [0.5, 0.5]
        if inner != "ScheduleFree":
            assert all(torch.equal(a, b) for a, b in zip(params, found[0][-1], strict=True))


def test_a_rejected_round_leaves_the_memory_of_the_exchange(pair) -> None:
    for _, kept, counts, *_ in pair.run(spoilt, "AdamW", ErrorFeedback(TopK(ratio=4))):
        assert kept
        assert counts == (2, 1)


def spoilt_buffer(rank: int, world: int) -> list[list[float]]:
    params = start()
    buffers = [torch.tensor([1.0 + rank]), torch.tensor([torch.nan if rank else 3.0])]
    opt = LocalSteps(INNERS["SGD"](params), every=2, buffers=buffers)
    train(opt, params, rank, range(2))
    return [b.tolist() for b in buffers]


def test_a_buffer_that_is_not_finite_on_one_worker_stays_there(pair) -> None:
    first, second = pair.run(spoilt_buffer)
    assert first == [[1.5], [3.0]]
    assert second[0] == [1.5]


# -- saving ----------------------------------------------------------------------------------------------------------


def build(inner: str, exchange: Any) -> tuple[list[nn.Parameter], LocalSteps]:
    params = start()
    return params, LocalSteps(INNERS[inner](params), every=3, exchange=exchange)


def interrupted(rank: int, world: int, inner: str, exchange: Any, at: int, evaluating: bool) -> bool:
    params, opt = build(inner, exchange)
    train(opt, params, rank, range(at))
    if evaluating:
        opt.eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a Schedule-Free optimizer saved in training mode
        torch.save({"params": [p.detach() for p in params], "opt": opt.state_dict()}, file)
    if evaluating:
        opt.train()
    train(opt, params, rank, range(at, 10))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, resumed = build(inner, copy.deepcopy(exchange))
    resumed.load_state_dict(saved["opt"])
    with torch.no_grad():
        for p, q in zip(again, saved["params"], strict=True):
            p.copy_(q)
    if evaluating:
        resumed.train()
    train(resumed, again, rank, range(at, 10))
    return all(torch.equal(a, b) for a, b in zip(params, again, strict=True))


@pytest.mark.parametrize("inner", ["AdamW", "torch.AdamW", "ScheduleFree"])
@pytest.mark.parametrize("at", [4, 6])
@pytest.mark.parametrize("evaluating", [False, True])
def test_a_resumed_run_goes_on_bit_for_bit(pair, inner: str, at: int, evaluating: bool) -> None:
    assert pair.run(interrupted, inner, ErrorFeedback(TopK(ratio=4)), at, evaluating) == [True, True]


def evaluated_after_loading(rank: int, world: int) -> tuple[bool, bool]:
    params, opt = build("AdamW", None)
    train(opt, params, rank, range(4))
    again, resumed = build("AdamW", None)
    resumed.load_state_dict(opt.state_dict())
    with torch.no_grad():
        for q, p in zip(again, params, strict=True):
            q.copy_(p)
    with resumed.evaluating():
        at_anchor = all(torch.equal(q, a) for q, a in zip(again, opt.anchor.point, strict=True))
    return at_anchor, all(torch.equal(q, p) for q, p in zip(again, params, strict=True))


def test_the_anchor_is_what_is_evaluated_before_the_first_step_after_loading(pair) -> None:
    assert pair.run(evaluated_after_loading) == [(True, True), (True, True)]


def refused(rank: int, world: int, key: str) -> tuple[str, bool]:
    params, opt = build("AdamW", None)
    train(opt, params, rank, range(4))
    before = repr(opt.state_dict())
    saved = copy.deepcopy(opt.state_dict())
    train(opt, params, rank, range(4, 6))
    opt.load_state_dict(saved)
    bad = copy.deepcopy(saved)
    if key == "anchor":
        bad["anchor"]["point"] = bad["anchor"]["point"][:1]
    elif key == "inner":
        bad["inner"]["param_groups"] = []
        bad["anchor"]["point"][0] += 1
    elif key == "exchange":
        bad["exchange"] = {"errors": {}}
    elif key == "local":
        bad["local"] = [torch.zeros(2)]
    else:
        del bad[key]
    try:
        opt.load_state_dict(bad)
    except ValueError as error:
        return str(error), repr(opt.state_dict()) == before
    return "", False


@pytest.mark.parametrize("key", ["anchor", "inner", "exchange", "local", "rounds"])
def test_a_state_that_does_not_fit_changes_nothing(pair, key: str) -> None:
    said, unchanged = pair.run(refused, key)[0]
    assert said
    assert unchanged
