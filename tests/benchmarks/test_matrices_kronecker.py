"""The benchmark of SOAP and Shampoo: it measures steps that move, and its page judges by the median."""

import json
import sys

import pytest

from benchmarks import matrices_kronecker


@pytest.mark.parametrize("name", ["hasten SOAP", "hasten Shampoo"])
def test_a_visit_is_a_period_of_steps(name):
    bench = matrices_kronecker.Bench(name, size=8, count=2)
    before = [p.detach().clone() for p in bench.params]
    found = bench.visit(2)
    assert found["step"] > 0
    assert found["product"] > 0
    assert all(not p.equal(old) for p, old in zip(bench.params, before, strict=True))
    assert bench.optimizer.param_groups[0]["step"] == 1 + 3 * matrices_kronecker.PERIOD


@pytest.mark.parametrize(("steps", "verdict"), [([1.2, 1.3, 1.4], "yes"), ([1.2, 1.4, 1.5], "**no**")])
def test_the_goal_is_for_the_median(steps, verdict):
    row = matrices_kronecker.Row("hasten SOAP", 0.1, steps, [1.0, 1.0, 1.0], 9.0)
    missing = matrices_kronecker.Row("heavyball SOAP", failure="not installed")
    record = dict.fromkeys(("count", "size", "threads", "rounds", "torch", "python", "command"), 1)
    page = matrices_kronecker.markdown([row, missing], {**record, "others": 0.0})
    (line,) = [line for line in page.splitlines() if line.startswith("| hasten SOAP")]
    assert f"| ≤ 1.3 | {verdict} |" in line
    assert "| heavyball SOAP | not installed |" in page


@pytest.mark.slow
def test_the_whole_run_writes_both_files(tmp_path, monkeypatch, capsys):
    arguments = ["--size", "16", "--count", "1", "--rounds", "2", "--only", "hasten SOAP", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["", *arguments, "--products", "2", "--out", str(tmp_path)])
    matrices_kronecker.main()
    (row,) = json.loads((tmp_path / "matrices-kronecker.json").read_text())["rows"]
    assert not row["failure"]
    assert len(row["steps"]) == 2
    assert (tmp_path / "matrices-kronecker.md").read_text().strip() == capsys.readouterr().out.strip()
