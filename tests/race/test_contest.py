"""The race: fair, repeatable to the bit, and safe on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hasten.files import write_atomically
from hasten.race import Race, RaceError, load, race, resume
from hasten.race.entrants import parse_entrants
from hasten.race.plan import settle_all
from hasten.race.progress import Observer
from hasten.race.run import DIVERGED
from hasten.race.store import Store
from hasten.race.tasks import TASKS, find_task
from hasten.race.training import train
from hasten.race.tuning import SPAN, make_search, tune

Small = Callable[..., Race]


def digests(result: Race) -> dict[tuple[str, str, int], str]:
    kinds = {"trial": result.trials, "run": result.runs}
    return {(kind, run.label, run.seed): run.digest for kind, runs in kinds.items() for run in runs}


def test_everyone_takes_the_same_steps_and_starts_at_the_same_point(small_race: Small) -> None:
    result = small_race("SGD,AdamW,torch.AdamW")
    assert {run.steps for run in result.runs} == {30}
    starts = {(run.seed, run.points[0].loss) for run in result.runs}
    assert len(starts) == 2
    assert len(result.runs) == 6


def test_seeds_come_from_what_a_run_is_and_not_from_the_order(small_race: Small, tmp_path: Path) -> None:
    forth = small_race("SGD,ScheduleFreeAdamW,MARS", task="digits", steps=8, out=tmp_path / "a")
    back = small_race("MARS,ScheduleFreeAdamW", task="digits", steps=8, seeds=[1], out=tmp_path / "b")
    there = digests(forth)
    assert digests(back).items() <= there.items()
    assert len(set(there.values())) == 6


def test_racing_leaves_the_callers_random_state_alone(small_race: Small) -> None:
    before = torch.get_rng_state()
    small_race()
    assert torch.equal(before, torch.get_rng_state())


def test_our_adamw_is_torchs_adamw(small_race: Small) -> None:
    ours, theirs = small_race("AdamW,torch.AdamW", task="digits", seeds=1, steps=40).runs
    for a, b in zip(ours.points, theirs.points, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)


def test_evaluating_often_does_not_change_the_training(small_race: Small, tmp_path: Path) -> None:
    often, seldom = (
        small_race("ScheduleFreeSGD(lr=1e-3)", seeds=1, evaluations=n, out=tmp_path / str(n)) for n in (30, 1)
    )
    assert often.runs[0].points[-1].loss == pytest.approx(seldom.runs[0].points[-1].loss, rel=1e-9)


def test_divergence_ends_the_run_and_not_the_race(small_race: Small) -> None:
    result = small_race("SGD(lr=1000.0),AdamW")
    sgd, adamw = result.standings[::-1]
    assert sgd.diverged == 2
    assert all(run.status == DIVERGED and run.steps < 30 for run in result.runs if run.label == sgd.label)
    assert adamw.diverged == 0
    assert result.verdict.headline.startswith("AdamW")


def test_an_optimizer_told_to_raise_diverges_too(small_race: Small) -> None:
    result = small_race("SGD(lr=1000.0, on_nonfinite='raise')", seeds=1)
    assert result.runs[0].status == DIVERGED


def test_files_hold_the_runs_and_load_without_pickle(small_race: Small) -> None:
    result = small_race("AdamW")
    files = sorted(result.folder.glob("runs/*"))
    assert [f.suffix for f in files] == [".jsonl", ".pt"] * 2
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert [rows[0]["kind"], rows[1]["kind"], rows[-1]["kind"]] == ["run", "point", "end"]
    checkpoint = torch.load(files[1], weights_only=True)
    point = checkpoint["model"]["x"]
    height = (1 - point[0]) ** 2 + 100 * (point[1] - point[0] ** 2) ** 2
    assert float(height) == pytest.approx(result.runs[0].final_loss)
    assert load(result.folder).runs == result.runs


def test_a_folder_with_a_race_is_not_written_over(small_race: Small) -> None:
    small_race()
    with pytest.raises(RaceError, match="already holds a race"):
        small_race()


class StopAt(Observer):
    """Interrupts the race at a step of a run, as Ctrl-C would."""

    def __init__(self, run: int, step: int) -> None:
        self.run, self.step, self.taken = run, step, 0

    def began(self, name: str) -> None:
        self.run -= 1

    def stepped(self) -> None:
        self.taken += self.run < 0
        if self.taken == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("search", ["random", "optuna", "grid"])
def test_stopped_and_resumed_equals_uninterrupted(small_race: Small, tmp_path: Path, search: str) -> None:
    options = {"trials": 3, "search": search}
    whole = small_race("AdamW,Lion", out=tmp_path / "whole", **options)
    for number, place in enumerate([(0, 5), (4, 7), (8, 1)]):
        folder = tmp_path / f"stopped{number}"
        part = small_race("AdamW,Lion", out=folder, observer=StopAt(*place), **options)
        assert part.interrupted
        assert digests(part).items() <= digests(whole).items()
        rest = resume(folder)
        assert not rest.interrupted
        assert digests(rest) == digests(whole)
        assert [run.lr for run in rest.runs] == [run.lr for run in whole.runs]


def test_resuming_repeats_a_damaged_run(small_race: Small) -> None:
    whole = small_race()
    victim = sorted(whole.folder.glob("runs/*.jsonl"))[0]
    victim.write_text(victim.read_text()[:-40])
    assert load(whole.folder).interrupted
    assert digests(resume(whole.folder)) == digests(whole)


def test_kill_nine_loses_at_most_the_run_under_way(own_task: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = start(own_task, folder)
    await_runs(process, folder, 2)
    process.kill()
    process.wait()
    before = {path.name: path.read_bytes() for path in folder.glob("runs/*") if not path.name.startswith(".")}
    assert any(name.endswith(".jsonl") for name in before)
    rest = resume(folder)
    assert len(rest.runs) == 6
    after = {path.name: path.read_bytes() for path in folder.glob("runs/*")}
    assert before.items() <= after.items()
    whole = race(f"{own_task}:slow", "AdamW,Lion,SGD", seeds=2, steps=20, threads=1, out=tmp_path / "whole")
    assert digests(rest) == digests(whole)


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_leaves_a_valid_partial_result(own_task: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    process = start(own_task, folder)
    await_runs(process, folder, 2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"--resume --out {folder}" in output
    part = load(folder)
    assert part.interrupted
    assert len(part.runs) >= 2
    assert "stopped early" in (folder / "report.html").read_text()


def start(own_task: Path, folder: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-c", "from hasten.race.cli import main; main()", "race",
        "--task", f"{own_task}:slow", "--optimizers", "AdamW,Lion,SGD", "--seeds", "2",
        "--steps", "20", "--threads", "1", "--out", str(folder),
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )


def heed_interrupts() -> None:
    """Undo what a shell does to programs in the background: they, and their children, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def await_runs(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob("runs/*.jsonl"))) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("hasten.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_resume_refuses_changed_data(small_race: Small) -> None:
    result = small_race()
    store = Store(result.folder)
    store.write_plan({**store.read_plan(), "data": "other"})
    with pytest.raises(RaceError, match="is not what the race began with"):
        resume(result.folder)


def test_own_task_and_what_can_be_wrong_with_it(own_task: Path) -> None:
    assert find_task(f"{own_task}:line").title == "Fit a line"
    for function, message in [
        ("lines", "did you mean 'line'?"),
        ("broken", "raised KeyError"),
        ("wrong", "must return a hasten.race.Task, but returned int"),
    ]:
        with pytest.raises(RaceError, match=message.replace("?", r"\?")):
            race(f"{own_task}:{function}", "SGD", out=own_task.parent / "out")
    with pytest.raises(RaceError, match="there is no file"):
        find_task("nowhere.py:line")
    with pytest.raises(RaceError, match="name the function too"):
        find_task(str(own_task))
    own_task.write_text("import no_such_module")
    with pytest.raises(RaceError, match="ModuleNotFoundError"):
        find_task(f"{own_task}:line")


def test_an_error_while_training_names_the_line(own_task: Path) -> None:
    own_task.write_text(own_task.read_text().replace("x[rows]) - y[rows]", "x[rows]) - z[rows]"))
    with pytest.raises(RaceError, match=r"own.py:\d+: name 'z' is not defined"):
        race(f"{own_task}:line", "SGD", out=own_task.parent / "out")


@pytest.mark.parametrize("name", [name for name in TASKS if name != "lm"])
def test_every_task_can_be_learnt_by_its_own_entrants(name: str) -> None:
    source = find_task(name)
    steps = 60
    for contender in settle_all(parse_entrants(source.entrants), source, source.build(0), steps):
        run, _ = train(source, contender, seed=0, steps=steps, evaluations=3)
        assert run.final_loss < run.points[0].loss, contender.label


def test_the_budget_decides_the_steps(small_race: Small) -> None:
    result = small_race("SGD", steps=None, budget="12s", seeds=1)
    assert result.plan.steps > 100
    assert result.plan.budget == 12
    capped = small_race("SGD", steps=None, seeds=1, out=result.folder.parent / "capped")
    assert capped.plan.steps == TASKS["rosenbrock"].steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"seeds": [1, 1]}, "all different"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"trials": -1}, "trials=-1"),
        ({"threads": 0}, "threads=0"),
        ({"search": "bayes"}, "random, optuna, grid"),
        ({"budget": "long"}, "budget='long'"),
        ({"task": "rosenbrok"}, "did you mean 'rosenbrock'"),
    ],
)
def test_mistakes_are_named(small_race: Small, options: dict[str, object], message: str) -> None:
    with pytest.raises(RaceError, match=message):
        small_race(**options)


@pytest.mark.parametrize("kind", ["random", "optuna", "grid"])
def test_searches_repeat_themselves_and_stay_in_range(kind: str) -> None:
    def proposals() -> list[float]:
        search, seen = make_search(kind, 6, "lm", "Lion"), []
        tune(search, 6, lambda _, factor: seen.append(factor) or factor)  # type: ignore[func-returns-value]
        return seen

    first = proposals()
    assert first == proposals()
    assert len(first) == 6
    assert all(1 / SPAN * 0.999 <= factor <= SPAN * 1.001 for factor in first)
    assert kind == "grid" or first[0] == 1.0


def test_tuning_uses_the_best_trial(small_race: Small) -> None:
    result = small_race("SGD(lr=1e-5)", trials=5, search="grid", seeds=1)
    best = min(result.trials, key=lambda run: run.final_loss)
    assert len(result.trials) == 5
    assert result.runs[0].lr == best.lr == pytest.approx(1e-4)
