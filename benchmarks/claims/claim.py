"""What a claim is, and how its result is written: JSON for machines, Markdown for people."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass
class Check:
    """One comparison: what should be found, what was found, and whether they agree."""

    statement: str
    baseline: str
    expected: str
    measured: str
    holds: bool


@dataclasses.dataclass
class Table:
    """A titled table; cells are already text."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table as Markdown, with its title above."""
        lines = [f"**{self.title}**", "", markdown_row(self.columns)]
        lines.append(markdown_row(["---"] * len(self.columns)))
        lines += [markdown_row(row) for row in self.rows]
        return "\n".join(lines)


@dataclasses.dataclass
class Claim:
    """A claim with its problem, its checks and the tables behind them."""

    name: str
    title: str
    source: str
    problem: str
    checks: list[Check]
    tables: list[Table]
    reading: list[str] = dataclasses.field(default_factory=list)
    figures: list[str] = dataclasses.field(default_factory=list)
    quick: bool = False
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """``reproduced``, ``reproduced in part`` or ``not reproduced``."""
        held = sum(check.holds for check in self.checks)
        if held == len(self.checks):
            return "reproduced"
        return "reproduced in part" if held else "not reproduced"

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        record = dataclasses.asdict(self)
        record["verdict"] = self.verdict
        record["environment"] = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
        }
        return record

    def markdown(self) -> str:
        """The page of the claim."""
        lines = [f"# {self.title}", "", f"Verdict: **{self.verdict}**", ""]
        if self.quick:
            lines += ["Quick mode: small sizes, for tests only; not a measurement.", ""]
        lines += [f"Source: {self.source}", "", self.problem, ""]
        lines += ["| check | baseline | expected | measured | holds |", "|---|---|---|---|---|"]
        for check in self.checks:
            cells = [check.statement, check.baseline, check.expected, check.measured]
            lines.append(markdown_row([*cells, "yes" if check.holds else "**no**"]))
        for figure in self.figures:
            lines += ["", f"![{self.title}]({figure})"]
        for table in self.tables:
            lines += ["", table.markdown()]
        if self.reading:
            lines += ["", "Reading:", "", *[f"- {sentence}" for sentence in self.reading]]
        command = f"python -m benchmarks.claims.{self.name}"
        lines += [
            "",
            f"Regenerate with `{command}` ({self.seconds:.0f} s of processor time, "
            f"torch {torch.__version__}, {torch.get_num_threads()} threads).",
        ]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path = RESULTS) -> None:
        """Write ``<name>.json`` and ``<name>.md`` into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{self.name}.json", json.dumps(self.as_dict(), indent=1) + "\n")
        write_atomically(folder / f"{self.name}.md", self.markdown())


def markdown_row(cells: list[str]) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def write_atomically(path: Path, text: str) -> None:
    """Replace the file in one move, so that an interrupted run leaves the old one whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def scientific(value: float) -> str:
    """Two digits, as tables of many orders of magnitude want them."""
    return f"{value:.1e}" if value == value and abs(value) != float("inf") else "diverges"


def command_line(run: Callable[..., Claim], name: str) -> None:
    """``--quick`` and ``--out`` for a claim's module, then the verdict on the terminal."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.claims.{name}")
    parser.add_argument("--quick", action="store_true", help="small sizes, as the tests use")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    started = time.process_time()
    options.out.mkdir(parents=True, exist_ok=True)
    claim = run(quick=options.quick, folder=options.out)
    claim.seconds = time.process_time() - started
    claim.write(options.out)
    for check in claim.checks:
        print(
            f"{'holds' if check.holds else 'FAILS'}  {check.statement}: "
            f"expected {check.expected}, measured {check.measured}"
        )
    print(
        f"{claim.title}: {claim.verdict} ({claim.seconds:.0f} s of processor time) -> {options.out}/{name}.md"
    )
