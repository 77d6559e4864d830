"""From measured rows to verdicts, a Markdown table and a picture."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.claims.claim import Table
from benchmarks.speed.contenders import LIMIT
from benchmarks.speed.rounds import Row
from benchmarks.speed.worker import SHAPES

ADAMW_STREAMS = 7
WITHIN, TINY_WITHIN, FIRST_STEP_SECONDS, IMPORT_WITHIN = 1.15, 1.5, 5.0, 0.15
# These need reductions over whole tensors before they can move an entry: extra passes.
WHOLE_TENSOR = {"Adafactor", "Prodigy", "MARS"}
COLUMNS = [
    "contender",
    "step ms",
    "× torch fused AdamW (q1..q3)",
    "streams",
    "× memory limit",
    "to reach",
    "verdict",
    "state B/param",
    "transient B/param",
    "first step s, cold / warm",
]


def entries(size: str) -> int:
    """Number of parameters."""
    return sum(math.prod(shape) for shape in SHAPES[size])


def streams(row: Row) -> int:
    """Reads and writes of parameter-sized memory: p twice, g once, each state buffer twice."""
    if row.library == LIMIT:
        return 2
    buffers = row.first.get("state_bytes", 0.0) / (4 * entries(row.size))
    return 3 + 2 * round(buffers)


def ratio(row: Row) -> float:
    """Median over the rounds of the step time over the reference's."""
    return statistics.median(row.ratios) if row.ratios else math.nan


def limit_ratio(rows: list[Row]) -> float:
    """The memory limit's time for one stream, over the reference's step."""
    return next((ratio(row) / 2 for row in rows if row.library == LIMIT), math.nan)


def target(row: Row, rows: list[Row]) -> tuple[float, str] | None:
    """The ratio to the reference that one of our rows must reach, and where it comes from."""
    if row.library != "hasten":
        return None
    if row.mode == "eager":
        loops = [
            ratio(r)
            for r in rows
            if (r.library, r.method, r.mode) == ("torch", row.method, "for-loop") and r.ratios
        ]
        return (loops[0], "torch for-loop") if loops else None
    if row.size == "tiny":
        return TINY_WITHIN, "1.5 × torch fused AdamW"
    if row.method in WHOLE_TENSOR:
        return None
    return (
        WITHIN * streams(row) / ADAMW_STREAMS,
        f"{WITHIN} × {streams(row)}/{ADAMW_STREAMS} of torch fused AdamW",
    )


def verdict(row: Row, rows: list[Row]) -> tuple[str, str]:
    """What is to be reached, and whether it was; for our rows only."""
    if row.failure or row.library != "hasten":
        return "", ""
    texts, failures = [], []
    goal = target(row, rows)
    if goal:
        texts.append(f"≤ {goal[0]:.2f} ({goal[1]})")
        if ratio(row) > goal[0]:
            failures.append("step time")
    if row.mode == "compiled":
        peers = [r for r in rows if r.method == row.method and r.library not in ("hasten", "torch")]
        faster = [r.name for r in peers if r.ratios and ratio(r) < ratio(row)]
        if any(r.ratios for r in peers):
            texts.append("faster than every peer")
        failures += [f"{name} is faster" for name in faster]
        if row.size == "large":
            largest = 4 * max(math.prod(shape) for shape in SHAPES[row.size])
            texts.append("transient ≤ largest tensor")
            if row.transient_bytes > largest:
                failures.append("transient memory")
        if row.first["first_seconds"] > FIRST_STEP_SECONDS:
            failures.append(f"first step {row.first['first_seconds']:.1f} s")
        texts.append(f"first step ≤ {FIRST_STEP_SECONDS:.0f} s")
    if not texts:
        return "", ""
    return "; ".join(texts), "**no**: " + ", ".join(failures) if failures else "yes"


def cells(row: Row, rows: list[Row]) -> list[str]:
    """One row of the table."""
    if row.failure:
        return [row.name, row.failure, *[""] * (len(COLUMNS) - 2)]
    low, middle, high = quartiles(row.ratios)
    count, one = streams(row), limit_ratio(rows)
    to_reach, reached = verdict(row, rows)
    first = f"{row.first['first_seconds']:.1f}"
    if row.warm:
        first += f" / {row.warm['first_seconds']:.1f}"
    return [
        row.name,
        f"{1e3 * statistics.median(row.seconds):.2f}",
        f"{middle:.2f} ({low:.2f}..{high:.2f})",
        str(count),
        f"{middle / (one * count):.2f}" if row.size != "tiny" and one == one else "",
        to_reach,
        reached,
        f"{row.first['state_bytes'] / entries(row.size):.2f}",
        f"{row.transient_bytes / entries(row.size):.2f}",
        first,
    ]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def bandwidth(rows: list[Row]) -> str:
    """The in-place rate in words."""
    for row in rows:
        if row.library == LIMIT and row.seconds:
            rate = 8 * entries(row.size) / statistics.median(row.seconds) / 1e9
            return f"In-place rate (`mul_`, read and write counted): {rate:.1f} GB/s. "
    return ""


def others(rows: list[Row]) -> str:
    """How quiet the machine was."""
    shares = [share for row in rows for share in row.others]
    if not shares:
        return ""
    return (
        f"Processor time used by other programs during the visits: median "
        f"{statistics.median(shares):.0%}, worst {max(shares):.0%}."
    )


def markdown(record: dict[str, Any], rows_of: dict[str, list[Row]]) -> str:
    """The page."""
    lines = ["# Step time and memory", "", record["protocol"], ""]
    for size, rows in rows_of.items():
        title = f"{size}: {entries(size):,} float32 parameters in {len(SHAPES[size])} tensors"
        table = Table(title, COLUMNS, [cells(row, rows) for row in rows])
        lines += [table.markdown(), "", bandwidth(rows) + others(rows), ""]
        lines += [f"![{title}](steps-{size}.png)", ""]
    imports = record["imports"]
    if imports:
        table = Table(
            "Import: seconds added to `import torch`, fresh processes, medians",
            ["module", "import torch s", "added s", "added ratio", "to reach", "verdict"],
            [
                [
                    module,
                    f"{found['torch_seconds']:.2f}",
                    f"{found['added_seconds']:.3f}",
                    f"{found['added_ratio']:.1%}",
                    f"≤ {IMPORT_WITHIN:.0%}" if module == "hasten" else "",
                    ("yes" if found["added_ratio"] <= IMPORT_WITHIN else "**no**")
                    if module == "hasten"
                    else "",
                ]
                for module, found in imports.items()
            ],
        )
        lines += [table.markdown(), ""]
    lines.append(f"Regenerate with `{record['command']}`.")
    return "\n".join(lines) + "\n"


def picture(rows: list[Row], path: Path) -> None:
    """Bars of the ratio to the reference, with quartiles, ours in black."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [row for row in rows if row.ratios and row.library != LIMIT]
    if not shown:
        return
    shown.reverse()
    middles = [ratio(row) for row in shown]
    spans = [quartiles(row.ratios) for row in shown]
    errors = [[m - low for low, m, _ in spans], [high - m for _, m, high in spans]]
    colours = ["black" if row.library == "hasten" else "tab:gray" for row in shown]
    figure, axis = plt.subplots(figsize=(8, 1 + 0.19 * len(shown)), layout="constrained")
    axis.barh(range(len(shown)), middles, xerr=errors, color=colours, ecolor="tab:red")
    axis.set_yticks(range(len(shown)), [row.name for row in shown], fontsize=7)
    axis.set_xscale("log")
    axis.axvline(1, color="tab:red", linewidth=0.8)
    axis.set_xlabel("step time over torch fused AdamW's in the same round (log scale)")
    axis.margins(y=0.01)
    figure.savefig(path, dpi=110)
    plt.close(figure)
