"""From rows to tables, verdicts and a picture."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims.claim import Table
from benchmarks.minimize.contenders import OURS, REFERENCE, Contender, all_contenders
from benchmarks.minimize.measure import MOST_EVALUATIONS, MOST_SECONDS, Row
from benchmarks.minimize.scaling import CONDITION, FROM, MEMORY, Timing
from benchmarks.minimize.tasks import ACCURACY, STATIONARITY, WIDE, WIDENED

WITHIN = 1.1  # evaluations over SciPy's
QUICK = "Quick mode: a few tasks, for tests only; not a measurement."
PROTOCOL = (
    "Every contender gets the same float64 function, the same gradients (torch's automatic differentiation; SciPy's "
    "through a NumPy wrapper that shares the memory) and the same start, and stops when the largest entry of the "
    f"gradient is below {STATIONARITY:g}·min(1, its value at the start) or when it can go no further by its own "
    f"judgement; other rules are switched off, and {MOST_EVALUATIONS:,} evaluations or {MOST_SECONDS:g} s of "
    "processor time end any run. Newton-CG has no such rule, and gets the same number as the tolerance of its step. "
    "A task counts as solved "
    f"when the value at the returned point is within {ACCURACY:g}·min(f(x₀) − f*, max(1, f*)) of f*, where f* is the "
    "published minimum or one of the other published values at which a descent method may end (local minima, limits "
    "at infinity). Evaluations, value with gradient, are counted by the function, not reported by the method; "
    "Hessian-vector products that SciPy's Newton methods ask for are listed beside, those inside pytorch-minimize "
    "are not seen. "
    f"Tasks: the 35 Moré-Garbow-Hillstrom problems from their starts, 10 and 100 times as far out where the function "
    f"is finite there and the start does not solve it, {len(WIDENED)} of them with {WIDE} variables, ridge logistic "
    "regression (breast cancer) and ridge softmax regression (digits)."
)
SCALING = (
    "Seconds for a whole run, medians and quartiles of interleaved rounds in rotated order after one unmeasured "
    f"round; the ratio is to SciPy's run of the same round. Extended Rosenbrock from its start; a quadratic of "
    f"condition {CONDITION:g} with curvatures spread evenly in the logarithm. {MEMORY} steps are remembered by "
    "hasten and SciPy, 100 by pytorch-minimize, their defaults; which is why it takes part up to "
    f"d = {FROM:,} only."
)


def environment() -> dict[str, Any]:
    """What the numbers were measured on."""
    import scipy

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scipy": scipy.__version__,
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "platform": platform.platform(),
    }


def geometric_mean(values: list[float]) -> float:
    """`nan` for none."""
    return math.exp(statistics.fmean(math.log(v) for v in values)) if values else math.nan


def of(rows: list[Row], contender: str) -> dict[str, Row]:
    """A contender's rows by task."""
    return {row.task: row for row in rows if row.contender == contender}


def ratio(rows: list[Row], contender: str, quantity: Callable[[Row], float]) -> tuple[float, int]:
    """Geometric mean, over the tasks that both solve, of a quantity over the reference's; and their number."""
    theirs, mine = of(rows, REFERENCE), of(rows, contender)
    both = [task for task in mine if task in theirs and mine[task].solved and theirs[task].solved]
    return geometric_mean([quantity(mine[t]) / quantity(theirs[t]) for t in both]), len(both)


def summary(rows: list[Row], group: str) -> Table:
    """One line for each contender."""
    chosen = [row for row in rows if row.group == group]
    names = list(dict.fromkeys(row.contender for row in chosen))
    lines = []
    for name in names:
        mine = list(of(chosen, name).values())
        evaluations, common = ratio(chosen, name, lambda row: row.evaluations)
        reaching, _ = ratio(chosen, name, lambda row: row.to_target or row.evaluations)
        seconds, _ = ratio(chosen, name, lambda row: row.seconds)
        products = sum(row.products for row in mine)
        lines.append(
            [
                name,
                f"{sum(row.solved for row in mine)} of {len(mine)}",
                f"{evaluations:.2f} ({common})",
                f"{reaching:.2f}",
                f"{seconds:.2f}",
                f"{sum(row.evaluations for row in mine):,}",
                f"{products:,}" if products else "",
                str(sum(bool(row.failure) for row in mine)),
            ]
        )
    columns = [
        "contender",
        "solved",
        f"evaluations / {REFERENCE} (tasks both solve)",
        "to reach f*",
        "seconds",
        "evaluations in all",
        "Hessian products",
        "failures",
    ]
    return Table(group, columns, lines)


def verdicts(rows: list[Row]) -> list[str]:
    """The two targets on the collection, as sentences."""
    rows = [row for row in rows if row.group == "collection"]
    ours, theirs = (sum(r.solved for r in of(rows, name).values()) for name in (OURS, REFERENCE))
    evaluations, common = ratio(rows, OURS, lambda row: row.evaluations)
    return [
        f"{'Reached' if ours >= theirs else '**Not reached**'}: {OURS} solves {ours} of the collection's tasks, "
        f"{REFERENCE} {theirs} (to reach: at least as many).",
        f"{'Reached' if evaluations <= WITHIN else '**Not reached**'}: {evaluations:.3f} × {REFERENCE}'s evaluations "
        f"in the geometric mean over the {common} tasks both solve (to reach: at most {WITHIN}).",
    ]


def differences(rows: list[Row]) -> Table:
    """The tasks where ours and the reference part ways, the worst for us first."""
    mine, theirs = of(rows, OURS), of(rows, REFERENCE)
    lines = []
    for task in sorted(mine, key=lambda t: -mine[t].evaluations / max(1, theirs[t].evaluations)):
        a, b = mine[task], theirs[task]
        factor = a.evaluations / max(1, b.evaluations)
        if a.solved != b.solved or ((a.solved or b.solved) and not 0.67 <= factor <= 1.5):
            lines.append([task, *(text for row in (a, b) for text in outcome(row))])
    columns = ["task", "ours", "evaluations", "excess over f*", "SciPy's", "evaluations", "excess over f*"]
    return Table("Where ours and SciPy's L-BFGS differ", columns, lines)


def outcome(row: Row) -> list[str]:
    """Solved or not, evaluations, and how far from the nearest target."""
    return ["solved" if row.solved else row.failure or "no", f"{row.evaluations:,}", f"{row.excess:.1e}"]


def problems_page(rows: list[Row], command: str, quick: bool) -> str:
    """The page of the comparison on problems."""
    lines = ["# Minimisers on small problems", ""]
    lines += [QUICK, ""] if quick else []
    lines += [PROTOCOL, "", *[f"- {sentence}" for sentence in verdicts(rows)], ""]
    for group in dict.fromkeys(row.group for row in rows):
        lines += [summary(rows, group).markdown(), ""]
    lines += ["![Performance profiles](minimize-problems.png)", ""]
    lines += [
        "The share of the tasks that a contender solves within a factor of the best contender's evaluations (left: "
        "methods that use gradients only) or seconds (right: all). On problems this small the seconds are mostly "
        "those of automatic differentiation and of Python.",
        "",
        differences(rows).markdown(),
        "",
        f"Regenerate with `{command}`.",
    ]
    return "\n".join(lines) + "\n"


def scaling_page(timings: list[Timing], command: str, quick: bool) -> str:
    """The page of the growth with the number of variables."""
    columns = [
        "task",
        "d",
        "contender",
        "evaluations",
        "seconds (quartiles)",
        f"/ {REFERENCE}",
        "f at the end",
    ]
    lines = []
    for t in timings:
        low, middle, high = quartiles(t.seconds)
        spread = f"{middle:.3g} ({low:.3g}..{high:.3g})"
        cells = [t.task, f"{t.dimension:,}", t.contender, str(t.evaluations), spread, f"{t.ratio:.2f}"]
        lines.append([*cells, f"{t.value:.1e}"])
    judged = [t for t in timings if t.contender == OURS and t.dimension >= FROM]
    slower = [f"{t.task}, d = {t.dimension:,} ({t.ratio:.2f})" for t in judged if t.ratio >= 1]
    page = ["# Minimisers as the number of variables grows", ""]
    page += [QUICK, ""] if quick else []
    threads = f"torch runs on {torch.get_num_threads()} threads, SciPy's own arithmetic on one."
    page += [f"{SCALING} {threads}", ""]
    if judged:
        verdict = f"**Not reached**: slower on {'; '.join(slower)}" if slower else "Reached"
        page += [f"- {verdict} (to reach: {OURS} faster than {REFERENCE} from d = {FROM:,} up).", ""]
    page += [Table("seconds", columns, lines).markdown(), "", f"Regenerate with `{command}`."]
    return "\n".join(page) + "\n"


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def profile(rows: list[Row], names: list[str], quantity: Callable[[Row], float]) -> dict[str, list[float]]:
    """For each contender the sorted ratios to the best on the tasks it solves (Dolan & Moré, 2002)."""
    best: dict[str, float] = {}
    chosen = [row for row in rows if row.contender in names]
    for row in chosen:
        if row.solved:
            best[row.task] = min(best.get(row.task, math.inf), quantity(row))
    return {
        name: sorted(quantity(row) / best[row.task] for row in chosen if row.contender == name and row.solved)
        for name in names
    }


COLOURS = {"hasten": "black", "scipy": "tab:blue", "torchmin": "tab:orange"}
DASHES = ("solid", (0, (6, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (2, 2)), (0, (10, 2)))


def style(contender: Contender, before: list[str]) -> dict[str, Any]:
    """A colour for the library, a dash for the place in it; ours and the reference are drawn thick."""
    return {
        "color": COLOURS[contender.library],
        "linestyle": DASHES[before.count(contender.library)],
        "linewidth": 2.4 if contender.name in (OURS, REFERENCE) else 1.1,
    }


def picture(rows: list[Row], path: Path) -> None:
    """Performance profiles in evaluations and in seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    present = {row.contender for row in rows}
    everyone = [c for c in all_contenders() if c.name in present]
    tasks = len({row.task for row in rows})
    styles = {
        c.name: style(c, [other.library for other in everyone[:place]]) for place, c in enumerate(everyone)
    }
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
    panels: list[tuple[str, list[Any], Callable[[Row], float]]] = [
        ("evaluations", [c for c in everyone if not c.second_order], lambda row: row.evaluations),
        ("seconds", everyone, lambda row: row.seconds),
    ]
    farthest = 32.0
    for axis, (title, shown, quantity) in zip(axes, panels, strict=True):
        curves = profile(rows, [c.name for c in shown], quantity)
        for contender in shown:
            ratios = curves[contender.name]
            axis.step(
                [1.0, *ratios, farthest],
                [k / tasks for k in range(len(ratios) + 1)] + [len(ratios) / tasks],
                where="post",
                label=contender.name,
                **styles[contender.name],
            )
        axis.set_xscale("log", base=2)
        axis.set_xlim(1, farthest)
        axis.set_ylim(0, 1.02)
        axis.set_xlabel(f"{title} over the best contender's")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"share of {tasks} tasks solved")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def records(items: list[Any]) -> list[dict[str, Any]]:
    """Rows or timings, ready for JSON: what is not finite becomes null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{name: plain(value) for name, value in dataclasses.asdict(item).items()} for item in items]
