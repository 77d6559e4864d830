"""What arrives in p.grad through a hook: P · mean(Pᵀg_i) of the workers' own gradients, whatever DDP does around it."""

from __future__ import annotations

import contextlib
import copy
import pickle
from typing import Any

import pytest
import torch
from comparing import refusal
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

from hasten.distributed import AllReduce, Disagreement, Hook, SubspaceHook
from hasten.sketches import BalancedCountSketch, PerLayer, RandomLowRank, blocks

RATIO, SEED, STEPS = 8.0, 3, 4


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    ).double()


def data(world: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(8 * world, 20, generator=generator, dtype=torch.float64)
    return x, x.sin().sum(1, keepdim=True)


class Odd(nn.Module):
    """Three dtypes, a scalar, an empty tensor, a frozen one, and a convolution in another layout of memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(20, 16))
        self.wide = nn.Parameter(torch.randn(16, 4).double())
        self.narrow = nn.Parameter(torch.randn(16, 8).bfloat16())
        self.scalar = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.frozen = nn.Parameter(torch.randn(16, 16), requires_grad=False)
        self.convolution = nn.Conv2d(2, 4, 3, padding=1).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        h = x.float() @ self.matrix * self.scalar
        image = self.convolution(h.view(-1, 2, 2, 4))
        halves = (h.bfloat16() @ self.narrow).double().mean(1, keepdim=True)
        return (
            ((h @ self.frozen).double() @ self.wide).mean(1, keepdim=True)
            + halves
            + image.double().mean()
            + self.empty.sum()
        )


class Branches(nn.Module):
    """What is used differs from worker to worker and from step to step; one layer is never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(20, 8).double() for _ in range(4))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        used = (self.calls + round(float(x.abs().sum()))) % 2
        return self.layers[0](x).mean(1, keepdim=True) + self.layers[1 + used](x).mean(1, keepdim=True)


SETUPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "one bucket": (network, {}),
    "buckets": (network, {"bucket_cap_mb": 0.01}),
    "views": (network, {"bucket_cap_mb": 0.01, "gradient_as_bucket_view": True}),
    "static graph": (network, {"bucket_cap_mb": 0.01, "static_graph": True}),
    "static views": (network, {"static_graph": True, "gradient_as_bucket_view": True}),
    "odd": (Odd, {}),
    "odd static": (Odd, {"static_graph": True, "gradient_as_bucket_view": True}),
    "unused": (Branches, {"find_unused_parameters": True, "bucket_cap_mb": 0.001}),
    "bfloat16": (lambda: network().bfloat16(), {"bucket_cap_mb": 0.01}),
    "autocast": (lambda: network().float(), {}),
    "low rank": (network, {"bucket_cap_mb": 0.01}),
}


def sketch_of(name: str) -> Any:
    return RandomLowRank(ratio=RATIO) if name == "low rank" else BalancedCountSketch(ratio=RATIO)


def arrivals(rank: int, world: int, name: str, accumulate: bool) -> Any:
    """Step by step: the gradients that arrived, and this worker's own."""
    build, options = SETUPS[name]
    net = build()
    twin = copy.deepcopy(net)
    model = DDP(net, **options)
    hook = SubspaceHook(sketch_of(name), seed=SEED).register(model)
    kind = torch.bfloat16 if name == "bfloat16" else torch.float32 if name == "autocast" else torch.float64
    x, y = (t.chunk(world)[rank].to(kind) for t in data(world))
    cast = torch.autocast("cpu", torch.bfloat16) if name == "autocast" else contextlib.nullcontext()
    steps = []
    for step in range(STEPS):
        pieces = [(x * (1 + step), y)]
        if accumulate:
            pieces += [(x - step, y), (x.flip(0), y)]
        model.zero_grad()
        twin.zero_grad()
        for i, (a, b) in enumerate(pieces):
            with cast, model.no_sync() if i < len(pieces) - 1 else contextlib.nullcontext():
                ((model(a) - b) ** 2).mean().backward()
            with cast:
                ((twin(a) - b) ** 2).mean().backward()
        found = [[p.grad if p.grad is None else p.grad.clone() for p in m.parameters()] for m in (net, twin)]
        steps.append(found)
    return steps, {n: (t.calls, t.payload) for n, t in hook.communication.parts.items()}, hook.step


def expected(name: str, step: int, own: list[list[Tensor | None]]) -> list[Tensor | None]:
    """P · mean(Pᵀg_i), parameter by parameter, straight from the sketch's definition."""
    trained = [(i, p) for i, p in enumerate(SETUPS[name][0]().parameters()) if p.requires_grad]
    found: list[Tensor | None] = [None] * len(own[0])
    for block in blocks(PerLayer(sketch_of(name)), [p.shape for _, p in trained]):
        i, p = trained[block.members[0]]
        grads = [rank[i] for rank in own if rank[i] is not None]
        if grads:
            draw = block.draw(seed=SEED, step=step)
            wide = torch.promote_types(p.dtype, torch.float32)
            mean = sum(draw.project(g) for g in grads) / len(own)
            found[i] = draw.lift(mean.to(wide)).view(p.shape).to(p.dtype)
    return found


def check(name: str, world: int, found: list[Any]) -> None:
    for step in range(STEPS):
        own = [found[rank][0][step][1] for rank in range(world)]
        for i, want in enumerate(expected(name, step, own)):
            here = [found[rank][0][step][0][i] for rank in range(world)]
            if want is None:
                assert all(g is None or g.numel() == 0 for g in here), (name, i)
                continue
            assert all(torch.equal(g, here[0]) for g in here), (name, step, i)
            tolerance = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2**-7}[want.dtype]
            error = (here[0] - want).abs().max() / want.abs().max().clamp(min=1e-30)
            assert error <= tolerance, (name, step, i, float(error))
    assert found[0][2] == STEPS


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("accumulate", [False, True])
def test_gradients_are_the_lifted_mean_of_projections(pair, name: str, accumulate: bool) -> None:
    if "static" in name and accumulate:
        pytest.skip("torch does not support no_sync in a static graph's first backward")
    found = pair.run(arrivals, name, accumulate)
    check(name, 2, found)
    if name in ("one bucket", "buckets", "views", "static graph"):
        numbers = sum(p.numel() if p.dim() < 2 else -(-p.numel() // 8) for p in network().parameters())
        calls, payload = found[0][1]["gradients"]
        assert payload == STEPS * 8 * numbers
        assert (calls > STEPS) == (name != "one bucket")


@pytest.mark.parametrize("name", ["buckets", "unused"])
def test_four_workers(four, name: str) -> None:
    check(name, 4, four.run(arrivals, name, False))


def mistakes(rank: int, world: int) -> list[str]:
    said = []

    def refused(kind: type[Exception], action: Any) -> None:
        said.append(refusal(kind, action))

    model = DDP(network())
    hook = SubspaceHook(seed=1)
    refused(TypeError, lambda: hook.register(network()))
    refused(RuntimeError, lambda: hook.oracle)
    hook.register(model)
    refused(RuntimeError, lambda: hook.register(model))
    refused(RuntimeError, lambda: SubspaceHook().register(model))
    refused(TypeError, lambda: pickle.dumps(hook))
    refused(TypeError, lambda: copy.deepcopy(hook))
    refused(ValueError, lambda: hook.load_state_dict({"step": 3}))
    refused(ValueError, lambda: hook.load_state_dict({"step": 3, "exchange": {"memory": 1}}))
    assert hook.step == 0

    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))

    refused(TypeError, lambda: Hook(AllReduce()).register(DDP(Complex())))
    refused(TypeError, lambda: SubspaceHook().register(DDP(nn.Sequential(nn.Embedding(9, 4, sparse=True)))))
    return said


def test_mistakes_are_refused_by_name(pair) -> None:
    for said in pair.run(mistakes):
        patterns = [
            "must be a torch.nn.parallel.DistributedDataParallel",
            "after register",
            "attached already",
            "has a communication hook already",
            "cannot be copied or pickled",
            "cannot be copied or pickled",
            "a state dict with the keys ['step'] is not allowed",
            "'memory'",
            "parameter 'w' is complex",
            "'0' has sparse gradients",
        ]
        assert len(said) == len(patterns)
        for pattern, text in zip(patterns, said, strict=True):
            assert pattern in text


def ignoring(rank: int, world: int) -> tuple[int, list[Tensor]]:
    net = network()
    DDP._set_params_and_buffers_to_ignore_for_model(net, ["2.weight"])
    model = DDP(net)
    hook = Hook(AllReduce()).register(model)
    model(data(1)[0] + rank).sum().backward()
    return hook.step, [p.grad for p in net.parameters()]


def test_parameters_that_are_ignored_stay_out_of_it(pair) -> None:
    (steps, first), (_, second) = pair.run(ignoring)
    assert steps == 1
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [i != 2 for i in range(6)]


def strangers(rank: int, world: int, kind: str) -> str:
    """What every rank is told where the last one differs."""
    odd = rank == world - 1
    net = network()
    if kind == "model" and odd:
        net = nn.Sequential(nn.Linear(20, 64), nn.Linear(64, 1)).double()
    seed = 5 if kind == "seed" and odd else 0
    sketch = BalancedCountSketch(ratio=16 if kind == "sketch" and odd else 8)
    try:
        model = DDP(net)
    except RuntimeError as error:  # torch itself compares the shapes
        return str(error)
    try:
        hook = SubspaceHook(sketch, seed=seed).register(model)
        if kind == "step" and odd:
            hook.load_state_dict({"step": 7, "exchange": {}})
        x, y = data(1)
        ((model(x) - y) ** 2).mean().backward()
        if kind == "later":
            hook.load_state_dict({"step": 2 if odd else 1, "exchange": {}})
            model(x).mean().backward()
    except Disagreement as error:
        return str(error)
    raise AssertionError("no disagreement")


@pytest.mark.parametrize("kind", ["seed", "sketch", "step", "later"])
def test_a_stranger_is_named_on_every_rank(pair, kind: str) -> None:
    for text in pair.run(strangers, kind):
        assert "rank 1 with" in text
        assert {"seed": "same seed", "sketch": "same sketch"}.get(kind, "number of averagings") in text


def late(rank: int, world: int) -> list[Tensor]:
    """A hook that is registered after the first backward, and an ordinary optimizer that reads p.grad."""
    model = DDP(network())
    x, y = (t.chunk(world)[rank] for t in data(world))
    ((model(x) - y) ** 2).mean().backward()
    Hook(AllReduce()).register(model)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        opt.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        opt.step()
    return [p.detach() for p in model.parameters()]


def test_a_hook_may_come_late_and_serves_any_optimizer(pair) -> None:
    found = pair.run(late)
    net = network()
    x, y = data(2)
    opt = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(3):
        opt.zero_grad()
        ((net(x) - y) ** 2).mean().backward()
        opt.step()
    for a, b, p in zip(*found, net.parameters(), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, p.detach(), rtol=0, atol=1e-10)  # Adam divides rounding by small √v
