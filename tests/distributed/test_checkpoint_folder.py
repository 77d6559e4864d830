"""Checkpoints on disk: whole or not there, checked before anything changes, for another number of workers too."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import hasten
from hasten.distributed import (
    CheckpointError,
    ErrorFeedback,
    Hook,
    LocalSteps,
    SubspaceHook,
    TopK,
    latest,
    load,
    save,
)
from hasten.sketches import BalancedCountSketch


def network(width: int = 16) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 1))


class Training:
    """A model, an optimizer and what carries gradients, on one worker."""

    def __init__(self, kind: str, rank: int, width: int = 16) -> None:
        self.rank, self.taken, self.hook = rank, 0, None
        net = network(width)
        self.model: nn.Module = net
        if kind == "local":
            self.opt: Any = LocalSteps(
                hasten.AdamW(net, lr=1e-2), every=3, exchange=ErrorFeedback(TopK(ratio=16))
            )
            return
        self.model = DDP(net, bucket_cap_mb=0.001)
        if kind == "subspace":
            self.hook = SubspaceHook(BalancedCountSketch(ratio=4), seed=3).register(self.model)
            self.opt = hasten.SubspaceNesterov(self.model, oracle=self.hook.oracle, smoothness=8.0)
        elif kind == "feedback":
            self.hook = Hook(ErrorFeedback(TopK(ratio=16))).register(self.model)
            self.opt = hasten.AdamW(self.model, lr=1e-2)
        elif kind == "torch":
            self.opt = torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    def run(self, steps: int) -> Training:
        for _ in range(steps):
            generator = torch.Generator().manual_seed(100 * self.rank + self.taken)
            x = torch.randn(16, 8, generator=generator)
            self.opt.zero_grad()
            (self.model(x) - x.sin().sum(1, keepdim=True)).square().mean().backward()
            self.opt.step()
            self.taken += 1
        return self

    def save(self, home: Path, **options: Any) -> Path:
        return save(home, self.model, self.opt, self.hook, extra={"taken": self.taken}, **options)

    def load(self, home: Path) -> Training:
        self.taken = load(home, self.model, self.opt, self.hook).extra["taken"]
        return self

    def everything(self) -> dict[str, Any]:
        """All state, copied."""
        hook = None if self.hook is None else self.hook.state_dict()
        return copy.deepcopy({"model": self.model.state_dict(), "opt": self.opt.state_dict(), "hook": hook})


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, through dicts and lists."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


KINDS = ["torch", "subspace", "feedback", "local"]


def interrupted(rank: int, world: int, kind: str, home: Path) -> tuple[bool, dict[str, Any]]:
    straight = Training(kind, rank).run(5)
    path = straight.save(home, step=5)
    straight.run(5)
    resumed = Training(kind, rank).run(2).load(path).run(5)
    return same(straight.everything(), resumed.everything()), straight.model.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_is_bit_for_bit(pair, tmp_path: Path, kind: str) -> None:
    """Five steps, a checkpoint, five more; LocalSteps is in the middle of a round then."""
    found = pair.run(interrupted, kind, tmp_path / "home")
    assert all(equal for equal, _ in found)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["000001-step5"]
    if kind != "local":
        assert same(*({k: v for k, v in state.items() if "running" not in k} for _, state in found))


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_is_bit_for_bit_on_four(four, tmp_path: Path, kind: str) -> None:
    assert all(equal for equal, _ in four.run(interrupted, kind, tmp_path))


def saved_by(rank: int, world: int, kind: str, home: Path) -> dict[str, Any]:
    training = Training(kind, rank).run(4)
    training.save(home)
    return training.everything()


def loaded_by(rank: int, world: int, kind: str, home: Path) -> dict[str, Any]:
    return Training(kind, rank).load(home).everything()


def errors(state: dict[str, Any], kind: str) -> dict[int, Tensor]:
    found: dict[int, Tensor] = (state["opt"] if kind == "local" else state["hook"])["exchange"]["errors"]
    return found


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_workers(teams, tmp_path: Path, kind: str, before: int, after: int) -> None:
    saved = teams(before).run(saved_by, kind, tmp_path)
    loaded = teams(after).run(loaded_by, kind, tmp_path)
    for rank, state in enumerate(loaded):
        former = saved[rank % before]
        assert same(state["model"], former["model"])
        part = "inner" if kind == "local" else "state"
        assert same(state["opt"][part], former["opt"][part])
    if kind not in ("feedback", "local"):
        return
    assert errors(saved[0], kind)
    for i in errors(saved[0], kind):
        means = [
            torch.stack([errors(state, kind)[i].double() for state in states]).mean(0)
            for states in (saved, loaded)
        ]
        torch.testing.assert_close(means[1], means[0], rtol=2.0**-24, atol=0)  # one rounding to float32


# -- in one process: what is on the disk ------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


def plain(steps: int = 2, width: int = 4) -> tuple[nn.Module, hasten.AdamW]:
    torch.manual_seed(width)
    net = nn.Linear(3, width)
    opt = hasten.AdamW(net, lr=0.1)
    for _ in range(steps):
        opt.zero_grad()
        net(torch.ones(2, 3)).square().sum().backward()
        opt.step()
    return net, opt


def copied(net: nn.Module, opt: Any) -> Any:
    return copy.deepcopy((net.state_dict(), opt.state_dict()))


OPERATIONS = [
    (os, "fsync"),
    (os, "replace"),
    (Path, "rename"),
    (Path, "mkdir"),
    (shutil, "rmtree"),
    (os, "chmod"),
]


def die_before(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The process is killed at its number-th operation on the disk."""
    seen = [0]

    def guarded(operation: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **options: Any) -> Any:
            seen[0] += 1
            if seen[0] == number:
                raise Killed
            return operation(*arguments, **options)

        return act

    for where, name in OPERATIONS:
        monkeypatch.setattr(where, name, guarded(getattr(where, name)))


def test_a_death_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    one, other = plain(2), plain(3)
    moments = 0
    for moment in range(1, 40):
        home = tmp_path / str(moment)
        save(home, *one, keep=1)
        died = False
        with pytest.MonkeyPatch.context() as patch:
            die_before(patch, moment)
            try:
                save(home, *other, keep=1)
            except Killed:
                died = True
        fresh = plain(0)
        load(home, *fresh)
        new = latest(home) == home / "000002"
        assert same(copied(*fresh), copied(*(other if new else one)))
        assert new or died
        moments += died
        third = save(home, *one, keep=1)
        assert [path.name for path in home.iterdir()] == [third.name]
        assert (home / third.name) == latest(home)
        if not died:
            break
    assert moments >= 8


def test_the_last_ones_are_kept_and_numbered(tmp_path: Path) -> None:
    net, opt = plain()
    for step in (5, 10, 15, 7):
        save(tmp_path, net, opt, step=step, keep=3)
    names = ["000002-step10", "000003-step15", "000004-step7"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert load(tmp_path, net, opt).step == 7
    assert load(tmp_path / names[0], net, opt).step == 10


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut off": (lambda c: os.truncate(c / "shared.pt", 100), "shared.pt is damaged: it has 100 bytes"),
    "a bit": (lambda c: flip(c / "shared.pt"), "shared.pt is damaged: its content is not what was written"),
    "missing": (lambda c: (c / "rank-00000.pt").unlink(), "rank-00000.pt is missing"),
    "manifest": (lambda c: (c / "manifest.json").write_text("{"), "manifest.json is damaged"),
    "later": (
        lambda c: (c / "manifest.json").write_text(
            json.dumps({**json.loads((c / "manifest.json").read_text()), "format": 99})
        ),
        "was written by a later hasten",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_nothing_changed(tmp_path: Path, damage: str) -> None:
    net, opt = plain()
    save(tmp_path, net, opt)
    found = save(tmp_path, net, opt)
    harm, said = DAMAGES[damage]
    harm(found)
    fresh = plain(1)
    before = copied(*fresh)
    with pytest.raises(CheckpointError, match=said) as error:
        load(tmp_path, *fresh)
    assert "Nothing was changed; the checkpoint before it is " + str(tmp_path / "000001") in str(error.value)
    assert same(copied(*fresh), before)
    load(tmp_path / "000001", *fresh)
    assert same(copied(*fresh), copied(net, opt))


def test_what_does_not_fit_is_named_and_nothing_changed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load(tmp_path, *plain())
    save(tmp_path, *plain())
    net, opt = plain(width=5)
    narrow, double, longer = plain(), plain(), plain()
    double = (double[0].double(), double[1])
    longer[0].register_buffer("mean", torch.zeros(2))
    state = ErrorFeedback(TopK(ratio=2))
    cases: list[tuple[Any, Any, str]] = [
        ((net, opt), None, r"'weight' is \(4, 3\) torch.float32, in the model \(5, 3\) torch.float32"),
        (double, None, r"'weight' is \(4, 3\) torch.float32, in the model \(4, 3\) torch.float64"),
        (longer, None, r"'mean' is not in it, in the model \(2,\) torch.float32"),
        (narrow, state, "saved with hook = None, and a ErrorFeedback is given"),
        ((narrow[0], hasten.Lion(narrow[0])), None, "was it saved by another optimizer"),
        ((narrow[0], hasten.AdamW([narrow[0].weight])), None, "has 2 parameters, the optimizer's 1"),
    ]
    for (model, optimizer), hook, said in cases:
        before = copied(model, optimizer)
        with pytest.raises(CheckpointError, match=said):
            load(tmp_path, model, optimizer, hook)
        assert same(copied(model, optimizer), before)


def test_bad_arguments(tmp_path: Path) -> None:
    net, opt = plain()
    with pytest.raises(ValueError, match="keep = 0 is not allowed"):
        save(tmp_path, net, opt, keep=0)
    with pytest.raises(ValueError, match="step = -1 is not allowed"):
        save(tmp_path, net, opt, step=-1)
    with pytest.raises(CheckpointError, match=r"extra = .*object.* is not allowed; it must be of numbers"):
        save(tmp_path, net, opt, extra={"a": object()})
    assert list(tmp_path.iterdir()) == []


# -- one worker fails: all do -----------------------------------------------------------------------------------------


def failing(call: Callable[[], Any]) -> str:
    try:
        call()
    except CheckpointError as error:
        return str(error)
    return "it went well"


def one_fails(rank: int, world: int, home: Path) -> dict[str, Any]:
    training = Training("feedback", rank).run(2)
    said: dict[str, Any] = {}
    good = training.save(home)
    elsewhere = home.with_name("elsewhere") if rank == 1 else home
    said["elsewhere"] = failing(lambda: training.save(elsewhere))
    training.hook.state_dict = lambda: full() if rank == 1 else {}  # type: ignore[union-attr]
    said["full disk"] = failing(lambda: training.save(home))
    del training.hook.state_dict  # type: ignore[union-attr]
    another = home.with_name("another")
    bad = training.save(another)
    if rank == 0:
        (bad / "rank-00001.pt").unlink()
    torch.distributed.barrier()
    said["left"] = sorted(path.name for path in home.iterdir())
    training.run(1)
    before = training.everything()
    said["missing"] = failing(lambda: training.load(another))
    said["same"] = same(training.everything(), before)
    if rank == 1:
        training.opt.add_param_group({"params": [("extra", nn.Parameter(torch.zeros(1)))]})
    before = training.everything()
    said["refused"] = failing(lambda: training.load(good))
    said["same again"] = same(training.everything(), before)
    return said


def full() -> None:
    raise OSError(28, "No space left on device")


def test_all_fail_when_one_fails(pair, tmp_path: Path) -> None:
    home = tmp_path / "home"
    found = pair.run(one_fails, home)
    assert found[0] == found[1]
    said = found[0]
    assert "rank 1: " in said["elsewhere"]
    assert "is not the folder that rank 0 has" in said["elsewhere"]
    assert said["full disk"] == "rank 1: [Errno 28] No space left on device"
    assert said["left"] == ["000001"]
    assert "rank 1: " in said["missing"]
    assert "rank-00001.pt is missing. Nothing was changed" in said["missing"]
    assert said["same"]
    assert said["refused"].startswith("rank 1: AdamW: the state dict has 1 parameter groups, the optimizer 2")
    assert said["same again"]


def test_the_latest_is_by_number(tmp_path: Path) -> None:
    for name in ("999999-step5", "1000000-step6", "000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    assert latest(tmp_path) == tmp_path / "1000000-step6"
