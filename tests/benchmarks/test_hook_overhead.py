"""The benchmark of the hook's overhead, at trial size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import hook_overhead
from benchmarks.hook_overhead import PLAIN, Row


def test_verdicts() -> None:
    assert Row("SubspaceHook(x)", PLAIN, ratios=[1.3, 1.2, 1.1]).verdict() == "yes"
    assert Row("SubspaceHook(x)", PLAIN, ratios=[1.3, 1.2, 1.3]).verdict() == "**no**"
    assert Row("Hook(AllReduce())", PLAIN, ratios=[9.0]).verdict() == ""
    assert Row("SubspaceHook(x)", PLAIN, ratios=[1.0, 2.0, 3.0]).spread() == "1.50 … 2.50"


@pytest.mark.slow
def test_run_at_trial_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        "x",
        "--width",
        "256",
        "--layers",
        "2",
        "--batch",
        "4",
        "--rounds",
        "1",
        "--out",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    hook_overhead.main()
    record = json.loads((tmp_path / "hook-overhead.json").read_text())
    assert record["parameters"] == 2 * (256**2 + 256)
    assert (
        record["command"] == "python -m benchmarks.hook_overhead --width 256 --layers 2 --batch 4 --rounds 1"
    )
    rows = {row["name"]: row for row in record["rows"]}
    whole = 4 * record["parameters"]  # 2n(W−1)/W of two workers
    assert rows[PLAIN]["counted"] == rows["Hook(AllReduce())"]["counted"] == whole
    sketched = rows["SubspaceHook(BalancedCountSketch, d/r = 64)"]
    assert sketched["counted"] == 4 * 2 * (256**2 / 64 + 256)
    for row in rows.values():
        if row["measured"] is not None:  # what is counted did cross the interface
            assert row["measured"] >= row["counted"]
    assert "| DDP alone |" in (tmp_path / "hook-overhead.md").read_text()
