"""Parts of matrix grain over sharded parameters that hold several matrices: what is kept, sent and waited for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import hasten
from hasten.engine import whole
from hasten.engine.owners import balanced, batches, cost
from hasten.engine.structure import Structure
from hasten.iterates import DistanceEstimate
from hasten.sharding import local
from hasten.transforms import EMA, ClipNorm
from hasten.words import UNIT, Buffer, Geometry, Value, hyper

WORKED: list[tuple[int, ...]] = []
"""The shapes of the matrices that this process worked on."""


@dataclass(frozen=True)
class Factored(Geometry):
    """L ← β L + g gᵀ, t ← max(t, tr L), P ← (1 + t + L)^-1 every other step; u = P m + y/10 from the second step."""

    beta: Value = hyper(0.8, UNIT, "decay of the average")
    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "matrix"
    traceable: ClassVar[bool] = False

    @property
    def preparing(self) -> int:
        return 1

    def buffers(self) -> dict[str, Buffer]:
        return {
            "left": Buffer(shape=lambda size: (size[0], size[0])),
            "root": Buffer(shape=lambda size: (size[0], size[0])),
            "largest": Buffer(shape=lambda size: ()),
            "nothing": Buffer(shape=lambda size: (0, size[1])),
            "mean": Buffer(),
        }

    def numbers(self, h: Any, k: Any, c: Any) -> dict[str, Any]:
        return {"beta": h.beta, "refresh": k % 2}

    def direction(self, d: Any, s: Any, n: Any) -> Any:
        WORKED.extend(tuple(own.shape) for own in d if own.std() > 1e-3)  # the engine's trials are constant
        s.left = n.beta * s.left + s.grad @ s.grad.mT
        trace = s.left.diagonal(dim1=-2, dim2=-1).sum(-1)
        s.largest = torch.maximum(s.largest, trace)
        s.mean = n.beta * s.mean + d
        if n.refresh:
            eye = torch.eye(d.shape[-2], dtype=d.dtype)
            s.root = torch.linalg.inv((1 + s.largest[:, None, None]) * eye + s.left)
        if d.shape[-2] > d.shape[-1]:
            s.mean = s.mean * 1.0
        return s.root @ s.mean + 0.1 * s.param


CASES: dict[str, tuple[dict[str, Any], list[tuple[int, ...]]]] = {
    "flatten": ({}, [(6, 5), (4, 4), (6, 5), (3, 2, 2), (1, 3), (0, 3)]),
    "stack": ({"layout": "stack"}, [(5, 3, 4), (2, 3, 4), (2, 2, 4, 2)]),
    "even split": ({"split": 3}, [(6, 4), (9, 2, 2)]),
    "uneven split": ({"split": (4, 1, 2)}, [(7, 3), (7, 3)]),
    "transposed": ({"layout": "transposed", "split": 2}, [(3, 4), (5, 6)]),
}


def gradient(p: Tensor, k: int, i: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * k + i)
    return p + torch.randn(p.shape, generator=generator, dtype=torch.float64)


def full(t: Tensor) -> Tensor:
    return t.full_tensor().detach().clone() if isinstance(t, DTensor) else t.detach().clone()


def placed(t: Tensor, mesh: Any, placements: Any) -> DTensor:
    replicated = DTensor.from_local(t, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(mesh, placements).detach()


def start(case: str, mesh: Any = None, kinds: Any = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(s, generator=generator, dtype=torch.float64) for s in CASES[case][1]]
    if mesh is not None:
        found = [placed(t, mesh, kinds(i)) for i, t in enumerate(found)]
    return [t.requires_grad_() for t in found]


CHAINS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "plain": ((ClipNorm(3.0), EMA(0.9), Factored()), None),
    "measured": ((Factored(),), DistanceEstimate(d0=1e-2)),
}


TRIED = [*((case, "plain") for case in CASES), ("uneven split", "measured")]


def made(case: str, params: list[Tensor], chain: str = "plain") -> hasten.Optimizer:
    transforms, iterate = CHAINS[chain]
    rate = {"lr": 0.1, "weight_decay": 0.01} if iterate is None else {}
    return hasten.Optimizer([{"params": params, **CASES[case][0]}], *transforms, iterate=iterate, **rate)


def advance(opt: hasten.Optimizer, params: list[Tensor], steps: range) -> list[Tensor]:
    for k in steps:
        for i, p in enumerate(params):
            g = gradient(full(p), k, i)
            p.grad = placed(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g
            if (k, i) == (1, 1):
                p.grad = None
        opt.step()
    return [full(p) for p in params]


def state(opt: hasten.Optimizer) -> dict[Any, Tensor]:
    return {(i, n): full(t) for i, s in enumerate(opt.state.values()) for n, t in s.items()}


def worked(rank: int, world: int, layout: str, budget: int) -> dict[str, Any]:
    if layout == "line":
        mesh = init_device_mesh("cpu", (world,))
        kinds: Any = lambda i: [Shard(i % 2)]  # noqa: E731
    else:
        mesh = init_device_mesh("cpu", (2, world // 2))
        kinds = lambda i: [Replicate() if layout == "replicas" else Shard(0), Shard(i % 2)]  # noqa: E731
    found = {}
    known, whole.BATCH = whole.BATCH, budget
    for case, chain in TRIED:
        params = start(case, mesh, kinds)
        opt = made(case, params, chain)
        WORKED.clear()
        values = advance(opt, params, range(4))
        kept = sum(local(s["left"]).numel() for s in opt.state.values())
        found[case, chain] = values, state(opt), list(WORKED), kept, float(opt.param_groups[0].get("d", 0))
    whole.BATCH = known
    return found


@pytest.mark.parametrize(
    ("world", "layout", "budget"), [(2, "line", 2**26), (4, "replicas", 1), (4, "plane", 300)]
)
def test_divided_matrices_move_as_whole_ones(teams: Any, world: int, layout: str, budget: int) -> None:
    found = teams(world).run(worked, layout, budget)
    for case, chain in TRIED:
        params = start(case)
        opt = made(case, params, chain)
        WORKED.clear()
        expected, kept = advance(opt, params, range(4)), state(opt)
        for values, states, _, _, estimate in (own[case, chain] for own in found):
            for a, b in zip(values, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
            assert states.keys() == kept.keys()
            for key, value in kept.items():
                torch.testing.assert_close(states[key], value, rtol=1e-11, atol=1e-11, msg=str(key))
            assert estimate == pytest.approx(float(opt.param_groups[0].get("d", 0)), rel=1e-11)
        if chain == "plain":  # nothing is worked on twice
            assert sorted(shape for own in found for shape in own[case, chain][2]) == sorted(WORKED)
            assert WORKED
            of_one = sum(s["left"].numel() for s in opt.state.values())
            assert sum(own[case, chain][3] for own in found) == of_one * (2 if layout == "replicas" else 1)


NAMED = ("Muon", "SOAP", "Shampoo", "Trion", "DCTAdamW", "Adafactor")


def named(rank: int, world: int) -> dict[str, list[Tensor]]:
    """Every optimizer with matrices, over rows that do not divide evenly."""
    found = {}
    for name in NAMED:
        params = start("flatten")
        if world > 1:
            mesh = init_device_mesh("cpu", (world,))
            params = [placed(p.detach(), mesh, [Shard(0)]).requires_grad_() for p in params]
        opt = getattr(hasten, name)(params, lr=0.01)
        found[name] = advance(opt, params, range(4))
    return found


def test_named_optimizers_move_divided_matrices_as_whole_ones(pair: Any) -> None:
    expected = named(0, 1)
    for found in pair.run(named):
        for name in NAMED:
            for a, b in zip(found[name], expected[name], strict=True):
                # A worker stacks those that it owns, and sums within a stack may be in another order.
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=name)


def traffic(rank: int, world: int) -> list[float]:
    mesh = init_device_mesh("cpu", (world,))
    params = [placed(torch.ones(64, 2, dtype=torch.float64), mesh, [Shard(0)]).requires_grad_()]
    opt = hasten.Optimizer(params, Factored())
    found = []
    for k in range(4):
        advance(opt, params, range(k, k + 1))
        found.append(opt.communication.parts["matrices"].sent)
    return [b - a for a, b in zip([0.0, *found], found, strict=False)]


def test_only_what_was_written_is_sent_back(pair: Any) -> None:
    """Of the two 64 × 64 factors one is written in every step, the other in every second."""
    owner, _ = pair.run(traffic)
    factor, small = 64 * 64 * 8 / 2, 2000
    assert owner[0] == pytest.approx(2 * factor, abs=small)  # both are written
    assert owner[1] == pytest.approx(factor, abs=small)
    assert owner[2] == pytest.approx(2 * factor, abs=small)
    assert owner[3] == pytest.approx(factor, abs=small)


def saved(rank: int, world: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (world,))
    for case in CASES:
        params = start(case, mesh, lambda i: [Shard(0)])
        opt = made(case, params)
        advance(opt, params, range(2))
        dcp.save({"p": dict(enumerate(params)), "o": opt.state_dict()}, checkpoint_id=f"{folder}/{case}")


def test_what_two_workers_saved_one_takes_up(pair: Any, tmp_path: Path) -> None:
    pair.run(saved, str(tmp_path))
    for case in CASES:
        params, expected = start(case), start(case)
        opt, other = made(case, params), made(case, expected)
        together = {"p": {i: p.detach() for i, p in enumerate(params)}, "o": opt.state_dict()}
        dcp.load(together, checkpoint_id=f"{tmp_path}/{case}", no_dist=True)
        opt.load_state_dict(together["o"])
        advance(other, expected, range(2))
        for a, b in zip(
            advance(opt, params, range(2, 4)), advance(other, expected, range(2, 4)), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def rows_of_factors(rank: int, world: int) -> list[Any]:
    mesh = init_device_mesh("cpu", (world,))
    p = placed(torch.ones(5, 3), mesh, [Shard(1)]).requires_grad_()
    opt = hasten.Optimizer([p], Factored())
    own = opt.state[p]
    return [
        (tuple(own[name].shape), tuple(local(own[name]).shape))
        for name in ("left", "largest", "mean", "nothing")
    ]


def test_factors_are_divided_by_rows(pair: Any) -> None:
    first, second = pair.run(rows_of_factors)
    assert first == [((5, 5), (3, 5)), ((), ()), ((5, 3), (5, 2)), ((0, 3), (0, 3))]
    assert second == [((5, 5), (2, 5)), ((), ()), ((5, 3), (5, 1)), ((0, 3), (0, 3))]


# -- who works on what ------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 20)), max_size=12),
    st.integers(1, 4),
    st.integers(1, 60),
)
def test_batches_hold_everything_once_within_their_budget(
    tasks: list[tuple[int, int]], workers: int, budget: int
) -> None:
    costs, sizes = [c for c, _ in tasks], [s for _, s in tasks]
    owner = balanced(costs, workers)
    found = batches(owner, costs, sizes, workers, budget)
    assert sorted(i for batch in found for i in batch) == list(range(len(tasks)))
    for batch in found:
        for worker in range(workers):
            own = [i for i in batch if owner[i] == worker]
            assert len(own) <= 1 or sum(sizes[i] for i in own) <= budget
    fewest = max((sum(o == w for o in owner) for w in range(workers)), default=0)
    assert len(found) <= fewest


def test_the_cost_is_that_of_each_matrix() -> None:
    assert cost((8, 6, 4), Structure("stack")) == 8 * 6 * 4 * 4
    assert cost((6, 4), Structure(split=3)) == 3 * 2 * 4 * 2
    assert cost((6, 4), Structure(split=(1, 5))) == 1 * 4 * 1 + 5 * 4 * 4
    assert cost((4, 6), Structure("transposed")) == 6 * 4 * 4
