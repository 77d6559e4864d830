"""What the command line offers, one function for each command."""

from __future__ import annotations

import math
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from hasten.race import advice, catalogue, contest
from hasten.race.errors import INTERRUPTED, RaceError, require
from hasten.race.live import LiveObserver
from hasten.race.outcome import Race
from hasten.race.palette import style
from hasten.race.picture import picture as draw_picture
from hasten.race.plots import places
from hasten.race.progress import Observer
from hasten.race.results import summary_columns, summary_row
from hasten.race.store import Store

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Optimizers for PyTorch: race them, list them, explain them, picture them; advice on sketches.",
)
console = Console()
WIDE = 112
SPARED_WHERE_NARROW = frozenset({"over seeds", "time", "state B/param"})
ROOM_FOR_BYTES = 50
"""Columns of the terminal that bytes, and the longer names that come with them, take."""
SPARED_FOR_BYTES = frozenset({"behind [95%]", "steps to target", "ms/step"})

Optimizers = Annotated[
    str | None, typer.Option(help="Who takes part, as in 'AdamW,Lion(lr=3e-4),torch.SGD(lr=0.1)'.")
]


@app.command()
def race(
    task: Annotated[
        str | None,
        typer.Option(
            help="lm, digits, digits-conv, logistic, least-squares, a surface such as rosenbrock, "
            "a convex problem such as convex/softmax, or file.py:function of your own (default lm)."
        ),
    ] = None,
    optimizers: Optimizers = None,
    budget: Annotated[
        str | None, typer.Option(help="Wall-clock target, as in 3m or 1h30m (default 4m).")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds (default 3).")] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of every run (convex/...: of those with whole gradients), instead of a budget."
        ),
    ] = None,
    tune: Annotated[
        int | None, typer.Option(help="Learning rates to try first, for every optimizer.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="How to choose those: random, optuna, grid.")] = None,
    target: Annotated[float | None, typer.Option(help="Evaluation whose crossing is timed.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that torch may use, in every worker.")] = None,
    hook: Annotated[
        str | None,
        typer.Option(
            help="How several workers exchange: none (all-reduce in float32), bf16, subspace(ratio=64), "
            "lowrank(rank=2), topk(ratio=100), dct(rank=4), sign, local(every=32), powersgd(rank=1), or several "
            "of them; every optimizer races over each (default none)."
        ),
    ] = None,
    world: Annotated[
        int | None, typer.Option(help="Workers that share every batch, started here (default 1).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the race (default race/TASK-TIME).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the race in --out, or the latest one.")
    ] = False,
) -> int:
    """Race optimizers on a task and write a report.

    Without options: six optimizers, three seeds each, train a small language model on the text of
    Python's standard library, in about four minutes. Ctrl-C stops early and keeps what is done.

    Several workers share every batch with --world 2, or where torchrun starts them:
    torchrun --nproc-per-node 2 -m hasten.race --task lm --hook subspace
    """
    require("plotly", "matplotlib")
    asked: dict[str, Any] = {
        "task": task, "optimizers": optimizers, "budget": budget, "seeds": seeds, "steps": steps,
        "tune": tune, "search": search, "target": target, "threads": threads,
        "hook": hook, "world": world,
    }  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None}
    first = os.environ.get("RANK", "0") == "0"
    observer = LiveObserver(console) if first else Observer()
    if resume and given:
        raise RaceError(f"--resume goes on as planned: leave out --{next(iter(given))}")
    if resume:
        result = contest.resume(out, observer=observer)
    else:
        given["trials"] = given.pop("tune", 0)
        result = contest.race(**given, out=out, observer=observer, command=_command())
    if first:
        show(result)
    return INTERRUPTED if result.interrupted else 0


def _command() -> str:
    module = Path(sys.argv[0]).name == "__main__.py"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        size = os.environ.get("LOCAL_WORLD_SIZE", "1")
        return shlex.join(["torchrun", "--nproc-per-node", size, "-m", "hasten.race", *sys.argv[1:]])
    return shlex.join(["hasten", *(["race"] if module else []), *sys.argv[1:]])


def show(result: Race) -> None:
    """Print the ranking, and write report and figures.

    Example:
        >>> show(contest.load("no-such-folder"))
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: no-such-folder holds no race: there is no plan.json in it
    """
    verdict = result.verdict
    console.print()
    console.print(Text(verdict.headline, style="bold"))
    if verdict.detail:
        console.print(Text(verdict.detail))
    if result.standings:
        console.print()
        console.print(ranking(result))
    report = result.report()
    result.figures()
    console.print(f"\nreport: {report}", highlight=False, soft_wrap=True)
    if result.interrupted:
        console.print(
            f"stopped early; {Store(result.folder).go_on}",
            highlight=False,
            soft_wrap=True,
        )


def ranking(result: Race) -> Table:
    """The standings as a table for the terminal.

    Example:
        >>> from hasten.race.plan import Plan
        >>> ranking(Race(Path("."), Plan("lm", "", "", (), (0,), 1), (), ())).row_count
        0
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    columns = summary_columns(result.plan)
    room = console.width - (ROOM_FOR_BYTES if result.plan.world > 1 else 0)
    spared = SPARED_WHERE_NARROW if room < WIDE else frozenset()
    spared |= SPARED_FOR_BYTES if room < WIDE - ROOM_FOR_BYTES else frozenset()
    shown = [c for c in columns if c not in spared]
    for column in shown:
        justify: JustifyMethod = "left" if column == "optimizer" else "right"
        # A long name may take two lines; a number must not lose its end.
        name = column == "optimizer"
        table.add_column(
            Text(column), justify=justify, no_wrap=not name, overflow="fold" if name else "ellipsis"
        )
    for place, standing in enumerate(result.standings, 1):
        cells = {c: Text(t) for c, t in zip(columns, summary_row(place, standing), strict=True)}
        if console.width < WIDE:
            cells["behind [95%]"] = Text(cells["behind [95%]"].plain.split(" [")[0])
        colour, _ = style(places(result)[standing.label])
        cells["optimizer"].stylize(f"bold {colour}" if place == 1 else colour)
        if not math.isfinite(standing.median):
            cells["final"].stylize("red")
        table.add_row(*(cells[c] for c in shown))
    return table


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a race.")]) -> int:
    """Write a race's report and figures anew, from what is on disk."""
    require("plotly", "matplotlib")
    show(contest.load(folder))
    return 0


@app.command("list")
def list_() -> int:
    """List every optimizer as a point of the design space."""
    table = Table(box=None, pad_edge=False, header_style="dim", row_styles=("", "dim"))
    for column in catalogue.COLUMNS:
        table.add_column(
            column, justify="right" if column == "floats" else "left", no_wrap=column in ("name", "floats")
        )
    for row in catalogue.rows():
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    console.print("floats: state kept for each parameter. More: hasten explain NAME", style="dim")
    return 0


@app.command()
def explain(name: Annotated[str, typer.Argument(help="An optimizer, as in ademamix.")]) -> int:
    """Explain an optimizer: formula, parts, defaults, state, source, relatives."""
    for title, text in catalogue.explain(name).items():
        console.print(Text(title, style="bold"))
        console.print(Text(text), soft_wrap=True)
        console.print()
    return 0


@app.command()
def picture(
    task: Annotated[str, typer.Option(help="A surface: rosenbrock, beale, ...")] = "rosenbrock",
    optimizers: Optimizers = None,
    steps: Annotated[int, typer.Option(help="Steps to take.")] = 500,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("."),
    animate: Annotated[bool, typer.Option(help="Write the moving picture too.")] = True,
) -> int:
    """Draw how optimizers descend a surface: a picture, and the same moving."""
    for path in draw_picture(task, optimizers, steps=steps, out=out, animate=animate):
        console.print(str(path), highlight=False, soft_wrap=True)
    return 0


@app.command()
def advise(
    problem: Annotated[
        str | None,
        typer.Option(
            help="digits, breast-cancer, diabetes, or a quadratic such as quadratic-inverse-square."
        ),
    ] = None,
    accuracy: Annotated[float, typer.Option(help="Part of the initial gap f(x0) - f* to be left.")] = 1e-4,
    cost: Annotated[
        str,
        typer.Option(
            help="What is scarce: forward (directional derivatives), bytes (sent), reverse (gradients)."
        ),
    ] = "forward",
    dimension: Annotated[float | None, typer.Option(help="Variables, where no problem is named.")] = None,
    effective_rank: Annotated[float | None, typer.Option(help="Trace over largest eigenvalue of L.")] = None,
    largest: Annotated[float | None, typer.Option(help="Largest eigenvalue of L (default 1).")] = None,
    strong_convexity: Annotated[float | None, typer.Option(help="Smallest curvature (default 0).")] = None,
    distance: Annotated[float | None, typer.Option(help="From start to minimiser (default 1).")] = None,
    gap: Annotated[float | None, typer.Option(help="f(x0) - f* (default: the largest there can be).")] = None,
) -> int:
    """Advise whether a random subspace pays, which sketch, and of which rank."""
    found = advice.advice(
        problem, accuracy, cost,
        dimension=dimension, largest=largest, effective_rank=effective_rank,
        strong_convexity=strong_convexity, distance=distance, gap=gap,
    )  # fmt: skip
    console.print(Text(advice.heading(found), style="bold"))
    console.print()
    console.print(advice.table(found))
    console.print()
    console.print(Text(found.sentence))
    console.print(Text(advice.LEGEND, style="dim"))
    return 0
