"""The step benchmark: its arithmetic, its robustness, and one run at trial size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

import hasten
from benchmarks.speed import contenders, machine, report, rounds
from benchmarks.speed.steppers import TorchStepper
from benchmarks.speed.worker import Bench

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = report.entries("large")


def row(name: str, ratio: float, **changes: object) -> rounds.Row:
    library, method, mode = name.split(" ", 2)
    found = rounds.Row(name, library, method, mode, "large")
    found.seconds, found.reference_seconds = [ratio, ratio, ratio], [1.0, 1.0, 1.0]
    found.first = {"first_seconds": 1.0, "state_bytes": 8.0 * PARAMETERS}
    found.transient_bytes = 0.0
    for key, value in changes.items():
        setattr(found, key, value)
    return found


def test_large_size_is_as_stated() -> None:
    assert PARAMETERS == 20 * 1024**2 + 20 * 1024


@pytest.mark.parametrize(("buffers", "expected"), [(0, 3), (1, 5), (2, 7), (3, 9)])
def test_streams_follow_from_the_state(buffers: int, expected: int) -> None:
    first = {"first_seconds": 1.0, "state_bytes": 4.0 * buffers * PARAMETERS + 160}
    assert report.streams(row("hasten X compiled", 1.0, first=first)) == expected


def test_verdict_on_step_time() -> None:
    assert report.verdict(ours := row("hasten AdamW compiled", 1.14), [ours])[1] == "yes"
    assert "step time" in report.verdict(ours := row("hasten AdamW compiled", 1.16), [ours])[1]
    lion = row("hasten Lion compiled", 0.9)
    lion.first["state_bytes"] = 4.0 * PARAMETERS
    assert "step time" in report.verdict(lion, [lion])[1]  # 5 streams: 1.15 * 5 / 7 = 0.82


def test_verdict_on_peers_memory_and_first_step() -> None:
    ours, peer = row("hasten AdamW compiled", 1.1), row("optax AdamW jit", 1.0)
    assert "optax AdamW jit is faster" in report.verdict(ours, [ours, peer])[1]
    ours = row("hasten AdamW compiled", 1.0, transient_bytes=4 * 1024**2 + 1)
    assert "transient memory" in report.verdict(ours, [ours])[1]
    ours = row("hasten AdamW compiled", 1.0)
    ours.first["first_seconds"] = 5.5
    assert "first step 5.5 s" in report.verdict(ours, [ours])[1]


def test_eager_is_held_against_the_for_loop() -> None:
    ours, loop = row("hasten AdamW eager", 2.0), row("torch AdamW for-loop", 1.9)
    assert "step time" in report.verdict(ours, [ours, loop])[1]
    assert report.verdict(row("hasten Lion eager", 9.0), [])[1] == ""


def test_failed_contender_is_a_row_that_says_so() -> None:
    failed = row("optax AdamW jit", 1.0, failure="not installed", seconds=[], reference_seconds=[])
    assert report.cells(failed, [failed])[:2] == ["optax AdamW jit", "not installed"]
    ours = row("hasten AdamW compiled", 1.0)
    assert report.verdict(ours, [ours, failed])[1] == "yes"


def test_every_catalogued_optimizer_takes_part_compiled_and_eager() -> None:
    names = {c.name for c in contenders.all_contenders()}
    for method in hasten.optimizers.CATALOGUE:
        assert {f"hasten {method} compiled", f"hasten {method} eager"} <= names
    assert len(names) == len(contenders.all_contenders())
    assert contenders.REFERENCE in names


def test_unknown_contender_is_named() -> None:
    with pytest.raises(ValueError, match="'AdamX' matches no contender"):
        contenders.selected(["AdamX"])


@pytest.mark.parametrize("method", list(hasten.optimizers.CATALOGUE))
def test_our_contenders_step_and_move(method: str) -> None:
    bench = Bench(f"hasten {method} eager", "trial")
    assert bench.visit(0.0)["steps"] == 3


def test_a_step_that_moves_nothing_is_caught() -> None:
    class Idle(torch.optim.SGD):
        def step(self, closure: object = None) -> None:
            pass

    idle = contenders.Contender("x", "y", "z", lambda p: TorchStepper(Idle(p, lr=0.1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.speed.worker.named", lambda name: idle)
        with pytest.raises(RuntimeError, match="moves nothing"):
            Bench("x y z", "trial")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_of_memory_is_seen() -> None:
    if not machine.can_measure_peaks():
        pytest.skip("the peak of resident memory cannot be reset here")
    before = machine.reset_peak()
    torch.ones(4 * 1024**2)
    assert machine.peak() - before > 12e6


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_run_at_trial_size(tmp_path: Path) -> None:
    command = "-m benchmarks.steps --size trial --rounds 2 --visit 0.01 --threads 1 --imports 1"
    chosen = ["--contenders", "hasten AdamW eager,torch AdamW for-loop", "--out", str(tmp_path)]
    subprocess.run([sys.executable, *command.split(), *chosen], cwd=ROOT, check=True)
    record = json.loads((tmp_path / "steps.json").read_text("utf-8"))
    assert [r["failure"] for r in record["rows"]] == ["", "", ""]
    assert all(len(r["seconds"]) == 2 for r in record["rows"])
    page = (tmp_path / "steps.md").read_text("utf-8")
    assert "hasten AdamW eager" in page
    assert (tmp_path / "steps-trial.png").exists()
