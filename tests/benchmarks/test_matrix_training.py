"""The study of steps to AdamW's loss: what it makes of the runs, told beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims import matrix_training
from benchmarks.claims.crew import Ledger
from benchmarks.claims.matrix_methods import ADAMW, METHODS, Method
from benchmarks.claims.matrix_training import TUNING_SEED, Study, study, table
from hasten.race.entrants import parse_entrants, settle

FASTER = Method("faster", "Muon(lr={lr})", 1.0, 0.6)
WORSE = Method("worse", "Lion(lr={lr})", 1.0, 0.6)
BORROWER = Method("borrower", "AdaMuon(lr={lr})", 4e-3, borrows="AdamW")
TOY = Study("toy", "digits", 100, (0, 1), (0.6, 0.4), (ADAMW, FASTER, WORSE, BORROWER), (0.5, 1.0, 2.0))


class Foretold(Ledger):
    """Every method does best at twice its rate; the faster one needs half the steps, the worse one twice as many."""

    def all(self, work: Any, jobs: Iterable[Any]) -> list[dict[str, Any]]:
        return [{"loss": self.loss(job), "seconds": 0.5} for job in jobs]

    def loss(self, job: Any) -> float:
        name, _, rest = job.optimizer.partition("(lr=")
        off = abs(float(rest.rstrip(")")) / (2e-3 if name in ("AdamW", "AdaMuon") else 2.0) - 1)
        pace = {"Muon": 2.0, "Lion": 0.5}.get(name, 1.0)
        return 100 / (pace * job.steps) + off + (0.0 if job.seed == TUNING_SEED else 0.01 * job.seed)


def test_rates_are_tuned_or_borrowed_and_runs_are_shortened_while_they_are_as_good() -> None:
    adamw, faster, worse, borrower = study(TOY, Foretold())
    assert [r.rate for r in (adamw, faster, worse)] == [2.0, 2.0, 2.0]
    assert borrower.method.at(borrower.rate) == "AdaMuon(lr=0.002)"
    assert (adamw.reached, faster.reached, worse.reached, borrower.reached) == (1.0, 0.6, None, 1.0)
    assert adamw.losses == pytest.approx((1.0, 1.01))


def test_the_table_has_the_best_first_and_marks_edges() -> None:
    rows = table(TOY, study(TOY, Foretold())).rows
    assert [row[0] for row in rows] == ["faster", "AdamW", "borrower", "worse"]
    assert rows[0][2:] == ["0.6×", "500.0 ms, 1.00×", "0.60×", "`Muon(lr=2)` (edge)"]
    assert rows[3][2] == "—"


def test_methods_are_what_the_race_can_read() -> None:
    for method in METHODS:
        (entrant,) = parse_entrants(method.at(1.0))
        assert settle(entrant, "lm", 100).options["lr"] == method.rate


@pytest.mark.slow
def test_quick_mode(tmp_path: Path) -> None:
    claim = matrix_training.run(quick=True, folder=tmp_path)
    assert claim.quick
    assert len(claim.tables) == 1
    assert len(claim.tables[0].rows) == 3
