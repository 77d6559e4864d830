"""`hasten.minimize` against `scipy.optimize.minimize` and pytorch-minimize.

Small problems: which are solved, in how many evaluations and seconds, as tables and performance
profiles. Scaling: seconds up to a million variables.

    python -m benchmarks.minimize                                    # both, about twenty minutes
    python -m benchmarks.minimize --part problems --methods 'hasten*,scipy*'
    python -m benchmarks.minimize --part scaling --rounds 9
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims.claim import write_atomically
from benchmarks.minimize import measure, report, scaling, tasks
from benchmarks.minimize.contenders import OURS, REFERENCE, Contender, selected

RESULTS = Path(__file__).resolve().parents[1] / "results"
PARTS = ("problems", "scaling")


def arguments(given: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.minimize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--methods", default="", help="comma-separated names, wildcards allowed")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the scaling")
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of a small problem; seconds: their median"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="a few tasks, as the tests use")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(given)


@contextmanager
def counter(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar that moves on with every finished task."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        number = bar.add_task(title, total=total)
        yield lambda name: bar.update(number, advance=1, description=f"{title}: {name}")


def write(name: str, page: str, record: dict[str, Any], folder: Path) -> None:
    """The page and its numbers."""
    write_atomically(folder / f"minimize-{name}.json", json.dumps(record, indent=1) + "\n")
    write_atomically(folder / f"minimize-{name}.md", page)
    print(f"{name}: {folder / f'minimize-{name}.md'}")


def problems(contenders: list[Contender], options: argparse.Namespace, record: dict[str, Any]) -> None:
    """The small problems."""
    everything = list(itertools.chain(tasks.collection(options.quick), tasks.regressions(options.quick)))
    with counter("problems", len(everything)) as done:
        rows = measure.everything(everything, contenders, 1 if options.quick else options.repeats, done)
    report.picture(rows, options.out / "minimize-problems.png")
    page = report.problems_page(rows, record["command"], options.quick)
    write("problems", page, record | {"rows": report.records(rows)}, options.out)
    print("\n".join(report.verdicts(rows)))


def growth(options: argparse.Namespace, record: dict[str, Any]) -> None:
    """The scaling."""
    dimensions = (100,) if options.quick else scaling.DIMENSIONS
    with counter("scaling", 2 * len(dimensions)) as done:
        timings = scaling.measure(dimensions, 2 if options.quick else options.rounds, done)
    page = report.scaling_page(timings, record["command"], options.quick)
    write("scaling", page, record | {"rows": report.records(timings)}, options.out)


def main(given: list[str] | None = None) -> None:
    """Measure and write."""
    given = sys.argv[1:] if given is None else given
    options = arguments(given)
    torch.set_num_threads(options.threads)
    patterns = [p.strip() for p in options.methods.split(",") if p.strip()]
    try:
        contenders = selected(patterns)
    except ValueError as wrong:
        sys.exit(str(wrong))
    # Verdicts need these two beside whatever else is asked for.
    contenders += [c for c in selected([OURS, REFERENCE]) if c not in contenders]
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "command": shlex.join(["python", "-m", "benchmarks.minimize", *given]),
        "quick": options.quick,
        "environment": report.environment(),
    }
    if options.part in ("problems", "all"):
        problems(contenders, options, record)
    if options.part in ("scaling", "all"):
        growth(options, record)


if __name__ == "__main__":
    main()
