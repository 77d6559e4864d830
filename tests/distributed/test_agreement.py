"""A worker that differs is named, on every worker, before anything is averaged."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import hasten
from hasten.distributed import Disagreement, SubspaceHook, TopK
from hasten.distributed.agreement import agree_on, compare, description, optimizer_description
from hasten.sketches import BalancedCountSketch, CountSketch


class Branches(nn.Module):
    """Two layers of one shape; their order is that in which they were made."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(4, 4))


def network(width: int = 4, *, frozen: bool = False, layers: int = 1) -> nn.Module:
    made = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    made[0].bias.requires_grad_(not frozen)
    return made


def with_buffer(size: int) -> nn.Module:
    made = network()
    made.register_buffer("mean", torch.zeros(size))
    return made


def stepped(model: nn.Module, steps: int) -> hasten.AdamW:
    opt = hasten.AdamW(model)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        opt.step()
    return opt


def hook(ratio: float = 8.0, seed: int = 0, sketch: type = BalancedCountSketch) -> SubspaceHook:
    return SubspaceHook(sketch(ratio=ratio), seed=seed)


STRANGERS = {
    "shape": (lambda odd: (network(5 if odd else 4),), "model", "(5, 5)", "(4, 4)"),
    "dtype": (lambda odd: (network().double() if odd else network(),), "model", "float64", "float32"),
    "frozen": (lambda odd: (network(frozen=odd),), "model", "0.bias (4,) torch.float32 frozen", "float32"),
    "order": (lambda odd: (Branches(*("ba" if odd else "ab")),), "model", "b.weight", "a.weight"),
    "longer": (lambda odd: (network(layers=1 + odd),), "model", "1.weight (4, 4)", "nothing more"),
    "buffer": (lambda odd: (with_buffer(2 + odd),), "model", "mean (3,)", "mean (2,)"),
    "class": (
        lambda odd: (None, (hasten.Lion if odd else hasten.AdamW)(network())),
        "optimizer",
        "Lion",
        "AdamW",
    ),
    "lr": (
        lambda odd: (None, hasten.AdamW(network(), lr=1e-3 * (1 + 1e-12 * odd))),
        "optimizer",
        "lr = 0.001000000000001",
        "lr = 0.001",
    ),
    "schedule": (
        lambda odd: (None, hasten.AdamW(network(), lr=hasten.schedules.cosine(1e-3, 10 + odd))),
        "optimizer",
        "11",
        "10",
    ),
    "tensor lr": (
        lambda odd: (None, torch.optim.AdamW(network().parameters(), lr=torch.tensor(1.0 + odd))),
        "optimizer",
        "lr = 2.0",
        "lr = 1.0",
    ),
    "steps taken": (lambda odd: (None, stepped(network(), 1 + odd)), "optimizer", "step = 2", "step = 1"),
    "rounding": (
        lambda odd: (None, hasten.AdamW(network(), seed=int(odd))),
        "optimizer",
        "seed = 1",
        "seed = 0",
    ),
    "sketched in another way": (
        lambda odd: (None, hasten.SubspaceNesterov(network(), sketch=BalancedCountSketch(ratio=4 + odd))),
        "optimizer",
        "ratio=5",
        "ratio=4",
    ),
    "seed": (lambda odd: (None, None, hook(seed=7 * odd)), "seed", "7", "0"),
    "ratio": (lambda odd: (None, None, hook(ratio=8 + odd)), "sketch", "ratio=9", "ratio=8"),
    "sketch": (
        lambda odd: (None, None, hook(sketch=CountSketch if odd else BalancedCountSketch)),
        "sketch",
        "CountSketch(",
        "BalancedCountSketch(",
    ),
}


def said_by(call: object, *arguments: object) -> str:
    try:
        call(*arguments)
    except Disagreement as error:
        return str(error)
    return "agreed"


def all_strangers(rank: int, world: int, stranger: int) -> dict[str, tuple[str, str]]:
    return {
        name: (said_by(agree_on, *make(rank == stranger)), said_by(agree_on, *make(False)))
        for name, (make, *_) in STRANGERS.items()
    }


@pytest.mark.parametrize(("world", "stranger"), [(2, 1), (4, 2), (4, 0)])
def test_a_stranger_is_named_on_every_worker(teams, world: int, stranger: int) -> None:
    found = teams(world).run(all_strangers, stranger)
    others = [r for r in range(world) if r != stranger]
    for name, (_, thing, odd, usual) in STRANGERS.items():
        said, agreed = found[0][name]
        assert [each[name][0] for each in found] == [said] * world, name
        assert agreed == "agreed", name
        assert said.startswith(f"the workers do not have the same {thing}: "), name
        if world > 2:
            deviating, rest = said.split("; ")[0].split(", but ")
            assert f"rank {stranger} with" in deviating, name
            assert odd in deviating, name
            assert rest.startswith(f"ranks {', '.join(map(str, others))} with"), name
            assert usual in rest, name
        else:  # nobody is in the minority: both are named with what they have
            for rank, value in ((stranger, odd), (others[0], usual)):
                assert value in said.split(f"rank {rank} with")[1].split(", but ")[0], name


def registering(rank: int, world: int) -> tuple[str, bool]:
    model = DDP(network())
    said = said_by(hook(seed=rank // 3).register, model)
    hook().register(model)  # what was refused has left nothing behind
    model(torch.ones(1, 4)).sum().backward()
    return said, all(p.grad is not None for p in model.parameters())


def test_a_hook_of_another_seed_is_refused_and_leaves_the_model_free(four) -> None:
    said = "the workers do not have the same seed: rank 3 with 1, but ranks 0, 1, 2 with 0"
    assert four.run(registering) == [(said, True)] * 4


def other_version(rank: int, world: int) -> str:
    with mock.patch.object(hasten, "__version__", "9.9" if rank else hasten.__version__):
        return said_by(agree_on)


def test_versions_are_compared(pair) -> None:
    said = pair.run(other_version)
    assert said[0] == said[1]
    assert "version of hasten: " in said[0]
    assert "rank 1 with 9.9" in said[0]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8))
def test_exactly_those_outside_the_majority_deviate(values: list[str]) -> None:
    said = said_by(compare, [{"same": 1, "seed": value} for value in values])
    counts = Counter(values).most_common()
    if len(counts) == 1:
        assert said == "agreed"
        return
    deviating, majority = said.removeprefix("the workers do not have the same seed: ").split(", but ")
    named = {
        int(rank): part.split(" with ")[1]
        for part in deviating.split("; ")
        for rank in part.split(" with ")[0].removeprefix("ranks ").removeprefix("rank ").split(", ")
    }
    usual = majority.split(" with ")[1]
    assert Counter(values)[usual] == counts[0][1]
    assert named == {rank: value for rank, value in enumerate(values) if value != usual}


def test_what_only_some_know_is_a_difference() -> None:
    assert "rank 1 with 3" in said_by(compare, [{}, {"seed": 3}])
    assert said_by(compare, [{"x": float("nan")}, {"x": float("nan")}]) == "agreed"


def test_descriptions_hold_no_addresses() -> None:
    opt = hasten.AdamW(network(), lr=lambda step: 1e-3)
    assert "0x" not in optimizer_description(opt)
    sketched = hasten.SubspaceNesterov(network())
    assert "function vectors" in optimizer_description(sketched)
    assert "0x" not in optimizer_description(sketched)


def test_the_values_of_parameters_are_no_part_of_a_model() -> None:
    torch.manual_seed(0)
    assert description(network()) == description(network())


@pytest.mark.parametrize("name", ["model", "optimizer", "hook"])
def test_what_cannot_be_compared_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=rf"agree_on: {name} = TopK\(.*\) is not allowed"):
        agree_on(**{name: TopK()})
