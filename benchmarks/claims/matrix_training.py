"""Steps to AdamW's loss: every geometry for matrices, and their peers, tuned with equal effort.

Regenerate with ``python -m benchmarks.claims.matrix_training``.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from benchmarks.claims.claim import RESULTS, Check, Claim, Table, command_line
from benchmarks.claims.crew import Found, Ledger
from benchmarks.claims.matrix_methods import ADAMW, METHODS, RATES, Method
from benchmarks.claims.trained import Cell, paced, trained

NAME = "matrix_training"
TUNING_SEED = 1000
LANES = 2
PACE = 64
"""Steps for the pace of a method: half of them to get going, half measured."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A task, and how long and how often it is trained on."""

    title: str
    task: str
    steps: int
    seeds: tuple[int, ...] = (0, 1, 2)
    fractions: tuple[float, ...] = (0.6, 0.4)
    methods: tuple[Method, ...] = METHODS
    rates: tuple[float, ...] = RATES

    def cell(self, method: Method, rate: float, seed: int, fraction: float = 1.0) -> Cell:
        """One run: the schedule ends with it, however long it is."""
        return Cell(self.task, 1, method.at(rate), "none", round(fraction * self.steps), seed)


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one method.

    Attributes:
        method, rate: the method, and the learning rate that tuning chose, over the middle of its grid.
        losses: at the full length, for each seed.
        seconds: of one processor, a step, the gradient included.
        reached: the fraction of the steps whose mean loss is AdamW's or less; None if no fraction is.
    """

    method: Method
    rate: float
    losses: tuple[float, ...]
    seconds: float
    reached: float | None

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return statistics.mean(self.losses)


def study(found: Study, ledger: Ledger) -> list[Result]:
    """Tune every method, run it on fresh seeds, and shorten its run for as long as it is as good as AdamW."""
    rates = {method: tuned(found, method, ledger) for method in found.methods if not method.borrows}
    by_name = {method.name: rate * method.rate for method, rate in rates.items()}
    rates.update({m: by_name[m.borrows] / m.rate for m in found.methods if m.borrows})
    full = {
        method: ledger.all(trained, [found.cell(method, rates[method], seed) for seed in found.seeds])
        for method in found.methods
    }
    target = _mean(full[ADAMW])
    paces = [dataclasses.replace(found.cell(m, rates[m], found.seeds[0]), steps=PACE) for m in found.methods]
    seconds = dict(zip(found.methods, ledger.all(paced, paces), strict=True))
    return [
        Result(
            method,
            rates[method],
            tuple(run["loss"] for run in full[method]),
            seconds[method]["seconds"],
            _shortest(found, method, rates[method], ledger, full[method], target),
        )
        for method in found.methods
    ]


def tuned(found: Study, method: Method, ledger: Ledger) -> float:
    """The learning rate, over the middle of the grid, of the least loss on the tuning seed."""
    runs = ledger.all(trained, [found.cell(method, rate, TUNING_SEED) for rate in found.rates])
    losses = {rate: _finite(run["loss"]) for rate, run in zip(found.rates, runs, strict=True)}
    return min(losses, key=lambda rate: losses[rate])


def _shortest(
    found: Study, method: Method, rate: float, ledger: Ledger, full: Sequence[Found], target: float
) -> float | None:
    reached = 1.0 if _mean(full) <= target else None
    for fraction in found.fractions if reached and (method.expected or 1.0) < 1 else ():
        cells = [found.cell(method, rate, seed, fraction) for seed in found.seeds]
        if _mean(ledger.all(trained, cells)) > target:
            break
        reached = fraction
    return reached


def _finite(loss: float | None) -> float:
    return math.inf if loss is None or not math.isfinite(loss) else loss


def _mean(runs: Sequence[Found]) -> float:
    return statistics.mean(_finite(run["loss"]) for run in runs)


def table(found: Study, results: Sequence[Result]) -> Table:
    """One row a method, the best first."""
    base = next(r for r in results if r.method is ADAMW)
    rows = []
    for r in sorted(results, key=lambda r: r.loss):
        spread = f" ± {statistics.stdev(r.losses):.3f}" if len(r.losses) > 1 and math.isfinite(r.loss) else ""
        edge = " (edge)" if not r.method.borrows and r.rate in (found.rates[0], found.rates[-1]) else ""
        pace = r.seconds / base.seconds
        rows.append(
            [
                r.method.name,
                f"{r.loss:.3f}{spread}" if math.isfinite(r.loss) else "diverges",
                "—" if r.reached is None else f"{r.reached:.2g}×",
                f"{1e3 * r.seconds:.1f} ms, {pace:.2f}×",
                "—" if r.reached is None else f"{r.reached * pace:.2f}×",
                f"`{r.method.at(r.rate)}`{edge}",
            ]
        )
    columns = [
        "method",
        "held-out loss",
        "steps to AdamW's loss",
        "a step",
        "time to AdamW's loss",
        "as tuned",
    ]
    return Table(f"{found.title}: {found.steps} steps, {len(found.seeds)} seeds", columns, rows)


STUDIES = (Study("Language model, 975k parameters, 8 × 64 characters a step", "lm", 480),)


def run(quick: bool = False, folder: Path = RESULTS) -> Claim:
    """What is done is in the ledger beside the result."""
    studies = STUDIES
    if quick:
        few = tuple(m for m in METHODS if m.name in ("AdamW", "Muon", "SOAP"))
        studies = (Study("digits, quick", "digits", 8, (0,), (0.6,), few, (1.0,)),)
    path = None if quick else folder / f"{NAME}.jsonl"
    with Progress(disable=quick) as progress:
        bar = progress.add_task("training", total=None)
        with Ledger(path, lambda *_: progress.advance(bar), lanes=1 if quick else LANES) as ledger:
            results = [study(found, ledger) for found in studies]
    checks = []
    for found, own in zip(studies, results, strict=True):
        checks += [_check(found, result) for result in own if result.method.expected is not None]
    return Claim(
        NAME,
        "Steps to AdamW's loss with matrix geometry",
        "Jordan et al. 2024 (Muon); Liu et al. 2025, arXiv:2502.16982 (Moonlight); Vyas et al. 2024, arXiv:2409.11321 "
        "(SOAP); Si et al. 2025, arXiv:2507.11005 (AdaMuon)",
        "Every method has one learning rate to tune, for matrices and for the rest alike, tried at the same "
        f"{len(RATES)} multiples ({', '.join(f'{r:g}' for r in RATES)}) of a customary value, in one run each of full "
        "length on a seed that is not reported; warm-up over a tenth of the run, then linear decay to 0 (none for "
        "Schedule-Free). Then fresh seeds; equal seeds mean equal initialisation and batches. Of the "
        "methods with a claim, one that ends below AdamW's mean loss is run again, at the same learning rate, with 0.6 "
        "and 0.4 of the steps, its schedule "
        "ending with it, until it no longer does: the last fraction that did bounds its steps to AdamW's loss. Seconds "
        "are those of one processor, a gradient and a step, the orthogonalisation included.",
        checks,
        [table(found, own) for found, own in zip(studies, results, strict=True)],
        quick=quick,
    )


def _check(found: Study, result: Result) -> Check:
    method, reached = result.method, result.reached
    return Check(
        f"{found.task}: steps of {method.name} to AdamW's final loss, over AdamW's",
        f"AdamW, {found.steps} steps",
        f"≤ {method.expected:g}",
        "not reached" if reached is None else f"{reached:g} (loss {result.loss:.3f} at the full length)",
        reached is not None and method.expected is not None and reached <= method.expected,
    )


if __name__ == "__main__":
    command_line(run, NAME)
