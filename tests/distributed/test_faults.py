"""Workers that die, hang or meet NaN: the others notice, and a run goes on from where it was."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faulty_worker
import pytest
import torch
from comparing import same
from faulty_worker import Run, as_process

from hasten.distributed import latest

TIMEOUT = 6.0
"""Seconds after which a worker gives up on the others."""
KINDS = ["subspace", "feedback", "local"]


@pytest.fixture(scope="module")
def quick_start() -> Any:
    """Processes that begin with torch imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "hasten.distributed"])
    return context


class Crew:
    """Workers that are started, watched, and cleared away."""

    def __init__(self, context: Any, home: Path) -> None:
        self.context, self.home, self.count = context, home, 0
        self.processes: list[Any] = []

    def start(self, world: int, kind: str, program: bool = False, **options: Any) -> Path:
        """Start workers, and wait until all who can have ended; returns the folder with what they left."""
        self.count += 1
        folder = self.home.with_name(f"{self.home.name}-{self.count}")
        folder.mkdir()
        plans = [
            {
                "rank": r,
                "world": world,
                "folder": str(folder),
                "home": str(self.home),
                "kind": kind,
                **options,
            }
            for r in range(world)
        ]
        if program:
            command = [sys.executable, faulty_worker.__file__]
            self.processes = [subprocess.Popen([*command, json.dumps(plan)]) for plan in plans]
        else:
            self.processes = [self.context.Process(target=as_process, args=(plan,)) for plan in plans]
            for process in self.processes:
                process.start()
        hanging = options.get("fault", "").startswith("hang")
        self.codes = [ended(process) for process in self.processes[: world - hanging]]
        self.clear()
        return folder

    def clear(self) -> None:
        for process in self.processes:
            process.kill()
            ended(process)
        self.processes = []


def ended(process: Any, seconds: float = 100) -> int:
    """The exit status of a process."""
    if isinstance(process, subprocess.Popen):
        return process.wait(seconds)
    process.join(seconds)
    assert process.exitcode is not None
    return int(process.exitcode)


@pytest.fixture
def crew(quick_start: Any, tmp_path: Path) -> Iterator[Crew]:
    made = Crew(quick_start, tmp_path / "home")
    yield made
    made.clear()


def results(folder: Path, world: int) -> list[Any]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def seconds_to_notice(folder: Path, rank: int) -> float:
    return float((folder / f"failed-{rank}").read_text()) - float((folder / "fault").read_text())


def check_survivors(crew: Crew, folder: Path, survivors: list[int], within: tuple[float, float]) -> None:
    """They ended with a message that says what to do, in time."""
    for rank in survivors:
        assert crew.codes[rank] > 0
        said = (folder / f"said-{rank}").read_text()
        assert "WorkerLost: " in said
        assert "start all workers again from the last checkpoint" in said
        assert within[0] <= seconds_to_notice(folder, rank) < within[1]


CASES = [
    ("subspace", 2, 1, "death in backward", True),
    ("feedback", 3, 0, "death in backward", False),
    ("feedback", 2, 1, "death in exchange", False),
    ("local", 3, 2, "death in exchange", False),
]


@pytest.mark.parametrize(("kind", "world", "struck", "fault", "program"), CASES)
def test_a_worker_dies_in_a_step(
    crew: Crew, kind: str, world: int, struck: int, fault: str, program: bool
) -> None:
    """The others end in time and in words; a new start from the last checkpoint goes on to the bit."""
    folder = crew.start(world, kind, fault=fault, struck=struck, timeout=TIMEOUT, program=program)
    assert crew.codes[struck] == -signal.SIGKILL
    check_survivors(crew, folder, [r for r in range(world) if r != struck], (0.0, TIMEOUT))
    assert latest(crew.home).name.endswith("-step4")
    resumed = results(crew.start(world, kind), world)
    assert crew.codes == [0] * world
    crew.home = crew.home.with_name("straight")
    straight = results(crew.start(world, kind), world)
    assert [state["taken"] for state in resumed] == [8] * world
    assert same(resumed, straight)


def test_a_worker_hangs(crew: Crew) -> None:
    """The others wait as long as their group does, no longer."""
    folder = crew.start(2, "subspace", fault="hang in backward", timeout=TIMEOUT)
    check_survivors(crew, folder, [0], (0.9 * TIMEOUT, 2 * TIMEOUT))


@pytest.mark.parametrize(
    ("fault", "rank"), [("death in write", 1), ("death in write", 0), ("death in move", 0)]
)
def test_a_worker_dies_while_saving(crew: Crew, fault: str, rank: int) -> None:
    """The checkpoint before is whole and found, and a new start clears away what was begun."""
    folder = crew.start(2, "feedback", fault=fault, struck=rank, timeout=TIMEOUT)
    assert crew.codes[rank] == -signal.SIGKILL
    assert crew.codes[1 - rank] > 0
    said = (folder / f"said-{1 - rank}").read_text()
    assert f"WorkerLost: a worker was lost while a checkpoint was saved to {crew.home}" in said
    assert f"the one before it, {latest(crew.home)}, is whole" in said
    left = sorted(path.name for path in crew.home.iterdir())
    assert left == [".partial-000003", "000001-step2", "000002-step4"]
    resumed = results(crew.start(2, "feedback"), 2)
    assert crew.codes == [0, 0]
    assert [state["taken"] for state in resumed] == [8, 8]
    assert sorted(path.name for path in crew.home.iterdir()) == ["000003-step6", "000004-step8"]


def meeting_nan(rank: int, world: int, kind: str) -> dict[str, Any]:
    run = Run(kind, rank)
    for _ in range(3):
        run.step()
    before = run.everything()
    run.step(float("nan") if rank == world - 1 else 1.0)
    skipped = run.everything()
    for _ in range(3):
        run.step()
    after = run.everything()
    return {"before": before, "skipped": skipped, "after": after, "count": run.opt.skipped_steps}


@pytest.mark.parametrize(("kind", "world"), [("subspace", 2), ("feedback", 4)])
def test_nan_on_one_worker_is_skipped_by_all(teams, kind: str, world: int) -> None:
    found = teams(world).run(meeting_nan, kind)
    for each in found:
        assert each["count"] == 1
        assert same(each["skipped"]["model"], each["before"]["model"])
        assert not same(each["after"]["model"], each["before"]["model"])
        assert all(p.isfinite().all() for p in each["after"]["model"].values())
        assert same(each["after"]["model"], found[0]["after"]["model"])
        assert same(each["after"]["opt"], found[0]["after"]["opt"])
        if kind == "feedback":
            assert same(each["skipped"]["hook"]["exchange"], each["before"]["hook"]["exchange"])


def rejecting(rank: int, world: int) -> dict[str, Any]:
    run = Run("local", rank)
    for _ in range(3):
        run.step()
    before = run.everything()
    for factor in (1.0, float("nan") if rank == world - 1 else 1.0, 1.0):
        run.step(factor)
    rejected = run.everything()
    for _ in range(3):
        run.step()
    return {"before": before, "rejected": rejected, "after": run.everything()}


def test_nan_on_one_worker_rejects_the_round_on_all(pair) -> None:
    found = pair.run(rejecting)
    for each in found:
        assert each["rejected"]["opt"]["rejected_rounds"] == 1
        assert same(each["rejected"]["model"], each["before"]["model"])
        assert same(each["rejected"]["opt"]["exchange"], each["before"]["opt"]["exchange"])
        assert each["after"]["opt"]["rejected_rounds"] == 1
        assert same(each["after"]["model"], found[0]["after"]["model"])
        assert not same(each["after"]["model"], each["before"]["model"])
