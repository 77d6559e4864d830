"""A race's folder: the plan, one file for each run as it ends, checkpoints, and the report.

Every file appears whole or not at all: it is written beside its place, flushed to disk, and moved.

    plan.json            what is raced, decided once
    runs/NAME.jsonl      one finished run: header, points, end
    runs/NAME.pt         its model, for torch.load(weights_only=True)
    trials/NAME.jsonl    one finished run of the search for learning rates
    report.html, *.png   made from the above, at any time
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import torch

from hasten.files import write_atomically
from hasten.race.errors import RaceError
from hasten.race.run import Run
from hasten.race.training import State

PLAN = "plan.json"


def run_name(label: str, seed: int) -> str:
    """A file name for a run: readable, and different for different labels.

    Example:
        >>> run_name("AdamW", 0)
        'AdamW-seed0-7f45c8'
    """
    readable = re.sub(r"[^A-Za-z0-9.=]+", "-", label).strip("-")[:60]
    return f"{readable}-seed{seed}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


class Store:
    """The folder of one race.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Store(Path(folder) / "race").has_plan()
        False
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def go_on(self) -> str:
        """How to go on with the race, in words."""
        return f"go on with: hasten race --resume --out {shlex.quote(str(self.folder))}"

    def create(self) -> None:
        """Make the folders, or say in one line why that is not possible."""
        try:
            for part in ("runs", "trials"):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "runs" / ".writable", "")
            (self.folder / "runs" / ".writable").unlink()
        except OSError as error:
            raise RaceError(f"cannot write to {self.folder}: {error.strerror or error}") from error

    def has_plan(self) -> bool:
        """Whether a race was planned here."""
        return (self.folder / PLAN).is_file()

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Keep what the race is, before its first run."""
        write_atomically(self.folder / PLAN, json.dumps(plan, indent=1) + "\n")

    def read_plan(self) -> dict[str, Any]:
        """The plan, as written."""
        if not self.has_plan():
            raise RaceError(f"{self.folder} holds no race: there is no {PLAN} in it")
        try:
            plan: dict[str, Any] = json.loads((self.folder / PLAN).read_text())
        except ValueError as error:
            raise RaceError(f"{self.folder / PLAN} is not a plan: {error}") from error
        return plan

    def write_run(self, run: Run, state: State) -> None:
        """Keep a finished run. Its lines come last, for they are what marks it as finished."""
        name = run_name(run.label, run.seed)
        buffer = io.BytesIO()
        torch.save({"label": run.label, "seed": run.seed, "model": state}, buffer)
        write_atomically(self.folder / "runs" / f"{name}.pt", buffer.getvalue())
        write_atomically(self.folder / "runs" / f"{name}.jsonl", run.to_lines())

    def write_trial(self, run: Run) -> None:
        """Keep one finished run of the search."""
        name = run_name(run.label, run.seed)
        write_atomically(self.folder / "trials" / f"{name}.jsonl", run.to_lines())

    def read_run(self, label: str, seed: int, part: str = "runs") -> Run | None:
        """A finished run, or None if it has not finished (or its file is damaged)."""
        path = self.folder / part / f"{run_name(label, seed)}.jsonl"
        try:
            return Run.from_lines(path.read_text())
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def read_checkpoint(self, label: str, seed: int) -> State:
        """The model of a finished run, at its evaluation point."""
        path = self.folder / "runs" / f"{run_name(label, seed)}.pt"
        state: State = torch.load(path, weights_only=True)["model"]
        return state
