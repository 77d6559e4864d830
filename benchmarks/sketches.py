"""What a random projection costs: project and lift against copying the vector, and the memory they take.

Every round visits every family once, each visit right after a copy of the same vector; the ratio is to that copy.

    python -m benchmarks.sketches                    # 2²⁴ float32, r = d/256, about two minutes
    python -m benchmarks.sketches --bits 16 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.claims.claim import Table, write_atomically
from benchmarks.speed import machine
from hasten import sketches
from hasten.sketches import Sketch, native

RESULTS = Path(__file__).parent / "results"
RATIO = 256
PROTOCOL = (
    "One vector of float32, r = d/256. A *copy* is `out.copy_(g)`. Every round visits every family once, in rotated "
    "order and right after timing a copy (the fastest of three): `project` is a draw and Pᵀg, `lift` is P s into a "
    "given vector. Ratios are medians over the rounds of (project + lift) / (2 copies). Transient memory is what one "
    "call adds to the peak of resident memory, in vectors of d entries, the r numbers included. *Small* is one draw, "
    "projection and lift of a vector of 256 float64 at r = 16, on one thread."
)


@dataclass
class Row:
    """What was measured of one family."""

    name: str
    goal: float | None
    project: list[float] = field(default_factory=list)
    lift: list[float] = field(default_factory=list)
    copy: list[float] = field(default_factory=list)
    transient: float = float("nan")
    small_microseconds: float = float("nan")

    def ratio(self) -> float:
        """(project + lift) over two copies, median over the rounds."""
        rounds = zip(self.project, self.lift, self.copy, strict=True)
        return statistics.median((p + q) / (2 * c) for p, q, c in rounds)

    def verdict(self) -> str:
        """Whether the goals of time and memory are reached."""
        if self.goal is None:
            return ""
        failures = ["time"] if self.ratio() > self.goal else []
        if self.transient > 1 + 4 / RATIO:  # one vector, and a few of r numbers
            failures.append("memory")
        return "**no**: " + ", ".join(failures) if failures else "yes"


def families(bits: int) -> dict[str, tuple[Sketch, float | None]]:
    """The families with O(d) or O(d log d) work, and what each is to reach (in two copies)."""
    return {
        "StridedSigns": (sketches.StridedSigns(ratio=RATIO), 3.0),
        "BalancedCountSketch": (sketches.BalancedCountSketch(ratio=RATIO), 12.0),
        "AffineCountSketch": (sketches.AffineCountSketch(ratio=RATIO), 12.0),
        "CountSketch": (sketches.CountSketch(ratio=RATIO), None),
        "SparseSign (s = 8)": (sketches.SparseSign(ratio=RATIO), None),
        "SRHT": (sketches.SRHT(ratio=RATIO), 3 * bits / 8),
        "RandomSignDCT": (sketches.RandomSignDCT(ratio=RATIO), None),
        "Coordinates": (sketches.Coordinates(ratio=RATIO), None),
    }


def seconds(work: Callable[[], object]) -> float:
    """One call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def transient(work: Callable[[], object]) -> float:
    """Bytes that a call adds to the peak of resident memory."""
    before = machine.reset_peak()
    result = work()
    grown = machine.peak() - before
    del result
    return float(grown)


def small(family: Sketch) -> float:
    """Microseconds of a draw, a projection and a lift at d = 256, the fastest of five hundreds."""
    sketch = type(family)(rank=16)
    g, out = torch.randn(256, dtype=torch.float64), torch.empty(256, dtype=torch.float64)

    def hundred() -> None:
        for step in range(100):
            draw = sketch.draw(256, step=step)
            draw.lift(draw.project(g), out=out)

    return 1e4 * min(seconds(hundred) for _ in range(5))


def measure(bits: int, rounds: int) -> list[Row]:
    """All families, interleaved."""
    d = 1 << bits
    g, out = torch.randn(d), torch.zeros(d)
    chosen = families(bits)
    rows = [Row(name, goal) for name, (_, goal) in chosen.items()]
    for number in range(rounds + 1):
        for shift in range(len(rows)):
            row = rows[(number + shift) % len(rows)]
            sketch = chosen[row.name][0]
            copy = min(seconds(lambda: out.copy_(g)) for _ in range(3))
            project = seconds(lambda s=sketch, n=number: s.draw(d, step=n).project(g))
            draw = sketch.draw(d, step=number)
            s = draw.project(g)
            lift = seconds(lambda draw=draw, s=s: draw.lift(s, out=out))
            if number:  # the first round warms up
                row.copy.append(copy)
                row.project.append(project)
                row.lift.append(lift)
            elif machine.can_measure_peaks():
                grown = [
                    transient(lambda s=sketch: s.draw(d).project(g)),
                    transient(lambda draw=draw, s=s: draw.lift(s, out=out)),
                ]
                row.transient = max(grown) / (4 * d)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for row in rows:
        row.small_microseconds = small(chosen[row.name][0])
    torch.set_num_threads(threads)
    return rows


def markdown(rows: list[Row], record: dict[str, object]) -> str:
    """The page."""
    cells = [
        [
            row.name,
            f"{1e3 * statistics.median(row.project):.1f}",
            f"{1e3 * statistics.median(row.lift):.1f}",
            f"{row.ratio():.2f}",
            "" if row.goal is None else f"≤ {row.goal:g}",
            f"{row.transient:.2f}",
            f"{row.small_microseconds:.0f}",
            row.verdict(),
        ]
        for row in rows
    ]
    columns = [
        "family",
        "project ms",
        "lift ms",
        "× two copies",
        "to reach",
        "transient",
        "small µs",
        "verdict",
    ]
    copy = 1e3 * statistics.median(c for row in rows for c in row.copy)
    title = f"d = {record['dimension']:,}, {record['threads']} threads; a copy takes {copy:.1f} ms"
    code = "compiled" if record["compiled"] else "tensor code (no C compiler here)"
    lines = ["# Sketches", "", PROTOCOL, "", Table(title, columns, cells).markdown(), ""]
    lines.append(
        f"Kernels: {code}. Processor time used by other programs meanwhile: {record['others']:.0%}. "
        f"Torch {record['torch']}, Python {record['python']}."
    )
    lines += ["", "![sketches](sketches.png)", "", f"Regenerate with `{record['command']}`."]
    return "\n".join(lines) + "\n"


def picture(rows: list[Row], path: Path) -> None:
    """Bars of project and lift in copies, goals as ticks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for y, row in enumerate(reversed(rows)):
        project = statistics.median(p / (2 * c) for p, c in zip(row.project, row.copy, strict=True))
        axis.barh(y, project, color="black", label="project" if y == 0 else None)
        axis.barh(y, row.ratio() - project, left=project, color="tab:gray", label="lift" if y == 0 else None)
        if row.goal is not None:
            axis.plot(
                [row.goal] * 2, [y - 0.4, y + 0.4], color="tab:red", label="to reach" if y == 7 else None
            )
    axis.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    axis.set_xlabel("time over copying the vector twice")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, judge, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sketches", description=__doc__)
    parser.add_argument("--bits", type=int, default=24, help="log₂ of the dimension")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    if options.bits < 12 or options.rounds < 1:
        parser.error("--bits must be at least 12 and --rounds at least 1")
    torch.set_num_threads(options.threads)
    busy, own = machine.busy_seconds(), machine.process_seconds(os.getpid())
    rows = measure(options.bits, options.rounds)
    busy, own = machine.busy_seconds() - busy, machine.process_seconds(os.getpid()) - own
    command = "python -m benchmarks.sketches"
    if (options.bits, options.rounds) != (24, 7):
        command += f" --bits {options.bits} --rounds {options.rounds}"
    record: dict[str, object] = {
        "dimension": 1 << options.bits,
        "threads": options.threads,
        "compiled": native.kernels() is not None,
        "others": max(0.0, 1 - own / busy) if busy else 0.0,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": command,
        "protocol": PROTOCOL,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    picture(rows, options.out / "sketches.png")
    page = markdown(rows, record)
    record["rows"] = [asdict(row) for row in rows]
    write_atomically(options.out / "sketches.json", json.dumps(record, indent=1) + "\n")
    write_atomically(options.out / "sketches.md", page)
    print(page)


if __name__ == "__main__":
    main()
