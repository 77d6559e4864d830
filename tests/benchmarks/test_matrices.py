"""The Muon benchmark: its judgement, and one run at trial size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

from benchmarks import matrices

ROOT = Path(__file__).resolve().parents[2]


def row(name: str, ratio: float, *errors: float) -> matrices.Row:
    found = matrices.Row(name, "square", steps=[ratio] * 3, limits=[1.0] * 3)
    found.errors = dict(zip("abc", errors, strict=False))
    return found


def test_verdicts() -> None:
    reference = row("torch Muon", 1.5, 0.2, 0.2)
    assert matrices.verdict(row("hasten Muon", 1.14), [reference])[1] == "yes"
    assert matrices.verdict(row("hasten Muon", 1.16), [reference])[1] == "**no**"
    ours = "hasten Muon polar_express"
    assert matrices.verdict(row(ours, 1.04, 0.1, 0.2), [reference])[1] == "yes"
    assert "0.73" in matrices.verdict(row(ours, 1.1, 0.1, 0.2), [reference])[1]
    assert "less orthogonal: b" in matrices.verdict(row(ours, 0.9, 0.1, 0.3), [reference])[1]
    assert matrices.verdict(reference, [reference]) == ("", "")
    assert matrices.verdict(row(ours, 1.04, 0.1), []) == ("", "")


def test_the_transformer_has_its_hidden_parameters() -> None:
    assert sum(m * n for m, n in matrices.SIZES["transformer"]) == 12 * 12 * 768**2


def test_errors_are_those_of_the_step() -> None:
    exact = matrices.of_class("hasten", "Muon", backend="svd", scale=None)
    errors = matrices.orthogonality(
        exact, {"x": torch.randn(12, 20, generator=torch.Generator().manual_seed(0))}
    )
    assert errors["x"] < 1e-5


@pytest.mark.slow
def test_a_run_at_trial_size(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.matrices",
        "--sizes",
        "trial",
        "--rounds",
        "2",
        "--threads",
        "1",
    ]
    only = "hasten TurboMuon,torch Muon"
    subprocess.run([*command, "--only", only, "--out", str(tmp_path)], check=True, cwd=ROOT, timeout=120)
    record = json.loads((tmp_path / "matrices.json").read_text("utf-8"))
    assert [row["failure"] for row in record["rows"]] == ["", ""]
    assert record["rows"][0]["errors"]["Gaussian"] < record["rows"][1]["errors"]["Gaussian"]
    assert "TurboMuon" in (tmp_path / "matrices.md").read_text("utf-8")
