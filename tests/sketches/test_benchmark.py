"""The benchmark of sketches, at trial size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from benchmarks import sketches


def row(goal: float | None, seconds: float, transient: float = 0.5) -> sketches.Row:
    return sketches.Row("x", goal, [seconds] * 3, [seconds] * 3, [1.0] * 3, transient)


def test_verdicts() -> None:
    assert row(3.0, 2.9).verdict() == "yes"
    assert row(3.0, 3.1).verdict() == "**no**: time"
    assert row(3.0, 3.1, 2.0).verdict() == "**no**: time, memory"
    assert row(None, 99.0).verdict() == ""


def test_run_at_trial_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["x", "--bits", "12", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    sketches.main()
    record = json.loads((tmp_path / "sketches.json").read_text())
    assert record["dimension"] == 4096
    assert [r["name"] for r in record["rows"]] == list(sketches.families(12))
    assert "| BalancedCountSketch |" in (tmp_path / "sketches.md").read_text()
    assert (tmp_path / "sketches.png").stat().st_size > 1000
