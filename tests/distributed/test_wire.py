"""Counted collectives, and gradients that travel in parcels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel as DDP

import hasten
from hasten import sharding
from hasten.distributed import (
    AllReduce,
    Communication,
    ErrorFeedback,
    Exchange,
    Hook,
    LocalSteps,
    LowRank,
    SubspaceHook,
    Traffic,
    WorkerLost,
)
from hasten.distributed.exchange import Parcel
from hasten.distributed.parcels import Parcels, packed
from hasten.wire import Wire, losing


def counted(rank: int, world: int) -> Any:
    wire = Wire()
    total = wire.sum(torch.full((6,), float(rank + 1)), "sums").wait()
    wire.sum(torch.full((2,), 1.0, dtype=torch.float64), "sums").wait()
    found = wire.gather(torch.tensor([rank], dtype=torch.int32), "gathered").wait()
    return (
        total,
        [int(t) for t in found],
        {n: (t.calls, t.payload, t.sent) for n, t in wire.communication.parts.items()},
    )


@pytest.mark.parametrize("world", [2, 4])
def test_bytes_are_those_of_ring_algorithms(teams, world: int) -> None:
    for total, gathered, parts in teams(world).run(counted):
        assert torch.equal(total, torch.full((6,), world * (world + 1) / 2))
        assert gathered == list(range(world))
        assert parts == {
            "sums": (2, 24 + 16, 2 * 40 * (world - 1) / world),
            "gathered": (1, 4, 4.0 * (world - 1)),
        }


def two_hooks(rank: int, world: int) -> Any:
    """One optimizer of two models on the wire, and one of neither."""
    first, second = DDP(nn.Linear(4, 2)), DDP(nn.Linear(3, 1))
    for model in (first, second):
        Hook(AllReduce()).register(model)
    opt = hasten.AdamW([*first.parameters(), *second.parameters()])
    half = hasten.AdamW(second.parameters())
    none = hasten.AdamW(nn.Linear(2, 2))
    opt.step(lambda: first(torch.ones(1, 4)).sum() + second(torch.ones(1, 3)).sum())
    return [o.communication.total.payload for o in (opt, half, none)], str(opt.communication)


def test_an_optimizer_knows_what_its_parameters_cost(pair) -> None:
    for payloads, table in pair.run(two_hooks):
        assert payloads == [4 * (10 + 4), 4 * 4, 0]
        assert [line.split() for line in table.splitlines()] == [
            ["part", "calls", "payload", "sent", "received"],
            ["gradients", "2", "56", "56", "56"],
            ["total", "2", "56", "56", "56"],
        ]


def test_traffic_adds_up() -> None:
    one = Communication({"a": Traffic(1, 2, 3.0, 4.0)})
    two = Communication({"b": Traffic(1, 1, 1.0, 1.0), "a": Traffic(1, 1, 1.0, 1.0)})
    assert (one + two).parts == {"a": Traffic(2, 3, 4.0, 5.0), "b": Traffic(1, 1, 1.0, 1.0)}
    assert (one + two).total == Traffic(3, 4, 5.0, 6.0)
    assert one.parts == {"a": Traffic(1, 2, 3.0, 4.0)}
    assert str(Communication()).splitlines()[1].split() == ["total", "0", "0", "0", "0"]


def test_only_what_a_network_raises_is_a_loss() -> None:
    with pytest.raises(ValueError, match="mine"), losing("loss"):
        raise ValueError("mine")
    with (
        pytest.raises(WorkerLost, match="the exchange of the loss failed: a worker has died"),
        losing("loss"),
    ):
        raise RuntimeError("Connection reset by peer")


class Failing(Exchange):
    """What arrives cannot be used."""

    def mean(self, parcel: Parcel, wire: Wire) -> Future[None]:
        def fail(done: Future[Tensor]) -> None:
            raise WorkerLost("nobody is there")

        return wire.sum(parcel.tensors[0].clone(), parcel.part).then(fail)


def failing(rank: int, world: int) -> str:
    model = DDP(nn.Linear(3, 1))
    Hook(Failing()).register(model)
    try:
        model(torch.ones(2, 3)).sum().backward()
    except RuntimeError as error:
        return str(error)
    return "nothing was raised"


def test_an_exchange_that_fails_stops_backward(pair) -> None:
    assert all("WorkerLost: nobody is there" in text for text in pair.run(failing))


class Broken:
    """What a collective gives whose other end is gone."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.future: Future[None] = Future()
        self.future.set_exception(RuntimeError("Connection closed by peer"))

    def get_future(self) -> Future[None]:
        return self.future


def waited_for(rank: int, world: int) -> list[str]:
    mesh = init_device_mesh("cpu", (world,))
    p = nn.Parameter(distribute_tensor(torch.ones(8, 4), mesh, [Shard(0)]))
    p.grad = distribute_tensor(torch.ones(8, 4), mesh, [Shard(0)])
    hook = SubspaceHook().register(DDP(nn.Linear(3, 1)))
    local = LocalSteps(
        torch.optim.SGD(nn.Linear(20, 20).parameters(), lr=0.1), exchange=ErrorFeedback(LowRank(2))
    )
    actions: list[Callable[[], Any]] = [
        lambda: sharding.total(1.0, of=p),
        lambda: sharding.whole(p, "parameters"),
        lambda: hasten.AdamW([p], on_nonfinite="skip").step(),
        lambda: hasten.Adafactor([p]).step(),
        lambda: hook.mean(1.0, "loss"),
        lambda: local._exchange([torch.ones_like(q) for q in local.parameters]),
    ]
    with mock.patch.multiple(dist, all_reduce=Broken, all_gather=Broken, all_to_all_single=Broken):
        return [kind_of_error(action) for action in actions]


def kind_of_error(action: Callable[[], Any]) -> str:
    try:
        action()
    except Exception as error:
        return type(error).__name__
    return "none"


def test_a_lost_worker_is_told_by_the_kind_of_the_error(pair) -> None:
    assert pair.run(waited_for) == [["WorkerLost"] * 6] * 2


def given_up(rank: int, world: int) -> Any:
    """A backward that fails half-way on all workers, and the next one."""

    class Stop(torch.autograd.Function):
        fails = False

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            if Stop.fails:
                raise ValueError("half-way")
            return g

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(Stop.apply(self.one(x)))

    made = []
    for fails in (True, False):
        model = DDP(Net(), bucket_cap_mb=0.0001)
        hook = SubspaceHook(seed=1).register(model)
        x = torch.full((2, 8), float(rank + 1))
        model(x).sum().backward()
        model.zero_grad()
        if fails:
            Stop.fails = True
            with pytest.raises(ValueError, match="half-way"):
                model(x).sum().backward()
            Stop.fails = False
            model.zero_grad()
            model = DDP(model.module, bucket_cap_mb=0.0001)  # torch's reducer does not recover
            state = hook.state_dict()
            hook = SubspaceHook(seed=1).register(model)
            hook.load_state_dict(state)
        model(x).sum().backward()
        made.append((hook.step, [p.grad.clone() for p in model.parameters()]))
    return made


def test_a_backward_that_was_given_up_counts_for_nothing(pair) -> None:
    for (step, grads), (other, expected) in pair.run(given_up):
        assert step == other == 2
        assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from([torch.float32, torch.float64])), max_size=12),
    st.integers(1, 200),
    st.randoms(use_true_random=False),
)
def test_parcels_are_sent_once_they_are_complete(sizes: Any, limit: int, random: Any) -> None:
    parameters = [torch.zeros(n, dtype=dtype) for n, dtype in sizes]
    parcels = packed(parameters, limit)
    assert sorted(i for parcel in parcels for i in parcel) == list(range(len(parameters)))
    for parcel in parcels:
        assert parcel == sorted(parcel)
        assert len({parameters[i].dtype for i in parcel}) == 1
        assert sum(parameters[i].nbytes for i in parcel[1:]) < limit
    sent: list[tuple[int, ...]] = []

    def send(gradients: Any, indices: Any) -> Future[None]:
        assert [int(g) for g in gradients] == list(indices)
        sent.append(tuple(indices))
        future: Future[None] = Future()
        future.set_result(None)
        return future

    gathering = Parcels(parcels, [], send)
    for _ in range(2):
        sent.clear()
        order = list(range(len(parameters)))
        random.shuffle(order)
        while order:
            several = [order.pop() for _ in range(min(len(order), random.randint(1, 3)))]
            done, last = gathering.add([torch.tensor(i) for i in several], several)
            assert last == (not order)
            complete = [p for p in parcels if not set(p) & set(order)]
            assert sorted(sent) == sorted(map(tuple, complete))
            assert done.done() == all(not set(p) & set(order) for p in parcels if set(p) & set(several))
    assert sorted(sent) == sorted(map(tuple, parcels))
