"""The race's figures as PNG files, for slides, papers and READMEs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.race.errors import RaceError, require
from hasten.race.palette import style
from hasten.race.plots import BYTES_TITLE, axes_of, loss_range, places
from hasten.race.results import Results, number
from hasten.race.standings import Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOK: Any = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b9bdc2",
    "axes.labelcolor": "#3a3f45",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8ea",
    "grid.linewidth": 0.8,
    "xtick.color": "#5f6670",
    "ytick.color": "#5f6670",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
}


MAP_LOOK: Any = {**LOOK, "axes.grid": False}


def write_figures(race: Results, folder: Path) -> list[Path]:
    """Draw curves and standings (and the sensitivity, if searched) and give the files' paths.

    Example:
        >>> from hasten.race.plan import Plan
        >>> write_figures(Results(Path("."), Plan("lm", "", "", (), (0,), 1), (), ()), Path("."))
        []
    """
    require("matplotlib")
    if not race.standings:
        return []
    from matplotlib import rc_context

    drawings = {"curves.png": curves, "standings.png": standings}
    if race.plan.world > 1:
        drawings["bytes.png"] = bytes_sent
    if race.trials:
        drawings["sensitivity.png"] = sensitivity
    written = []
    for name, draw in drawings.items():
        with rc_context(LOOK):
            written.append(save(draw(race), folder / name))
    return written


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, or say in one line why that is not possible.

    Example:
        >>> from matplotlib.figure import Figure
        >>> save(Figure(), Path("/no/such/folder/a.png"))
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: cannot write /no/such/folder/a.png: No such file or directory
    """
    try:
        figure.savefig(path)
    except OSError as error:
        raise RaceError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    # Figure and not pyplot: no window system, no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def curves(race: Results) -> Figure:
    """Loss against steps, or oracle calls where they are counted: median over seeds, their range, bounds.

    Example:
        >>> curves.__name__
        'curves'
    """
    beside = race.plan.world > 1  # names are long then
    figure, axes = _canvas(11.6 if beside else 8.4, 4.8)
    name, title = next(iter(axes_of(race).items()))
    for s in race.standings:
        xs = getattr(s.curve, name)
        _draw(race, axes, s, xs)
        if guarantee := race.plan.bounds.get(s.label):
            colour, _ = style(places(race)[s.label])
            axes.plot(xs, guarantee[: len(xs)], ":", color=colour, lw=1.2)
    if race.plan.log_scale:
        axes.set_yscale("log")
    limits = loss_range(race)
    if limits is not None:
        axes.set_ylim(*limits)
    axes.set_xlim(0, max((getattr(s.curve, name)[-1] for s in race.standings), default=1))
    axes.set_xlabel(title if not race.plan.bounds else f"{title}; dotted: the theory's bound")
    axes.set_ylabel(race.plan.unit)
    axes.set_title(race.verdict.headline, loc="left", fontweight="bold", fontsize=13)
    if beside:
        figure.legend(loc="outside right upper")
    else:
        axes.legend(loc="upper right" if not race.plan.log_scale else "lower left")
    return figure


def bytes_sent(race: Results) -> Figure:
    """Loss against the megabytes that one worker has sent: median over seeds, and their range.

    Example:
        >>> bytes_sent.__name__
        'bytes_sent'
    """
    figure, axes = _canvas(11.6, 4.8)
    for s in race.standings:
        _draw(race, axes, s, [sent / 1e6 if sent else math.nan for sent in s.curve.bytes])
    axes.set_xscale("log")
    if race.plan.log_scale:
        axes.set_yscale("log")
    limits = loss_range(race)
    if limits is not None:
        axes.set_ylim(*limits)
    if race.target is not None:
        axes.axhline(race.target, linestyle=":", lw=1, color="#7a8794")
    axes.set_xlabel(BYTES_TITLE)
    axes.set_ylabel(race.plan.unit)
    axes.set_title(race.verdict.headline, loc="left", fontweight="bold", fontsize=13)
    figure.legend(loc="outside right upper")
    return figure


def _draw(race: Results, axes: Axes, standing: Standing, xs: Sequence[float]) -> None:
    """One contender's median and range over seeds."""
    colour, dash = style(places(race)[standing.label])
    shape = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}[dash]
    axes.fill_between(xs, standing.curve.low, standing.curve.high, color=colour, alpha=0.15, lw=0)
    median = [y if math.isfinite(y) else math.nan for y in standing.curve.median]
    axes.plot(xs, median, shape, color=colour, lw=2, label=_legend(standing))


def _legend(standing: Standing) -> str:
    return f"{standing.label}  {number(standing.median)}"


def standings(race: Results) -> Figure:
    """Every seed's final loss as a dot, the median as a bar, best on top.

    Example:
        >>> standings.__name__
        'standings'
    """
    shown = [s for s in race.standings if math.isfinite(s.median)] or race.standings
    figure, axes = _canvas(8.4, 1.3 + 0.42 * len(shown))
    for row, s in enumerate(shown):
        colour, _ = style(places(race)[s.label])
        finite = [x for x in s.finals if math.isfinite(x)]
        axes.scatter(finite, [row] * len(finite), s=52, color=colour, alpha=0.7, lw=0, zorder=3)
        if math.isfinite(s.median):
            axes.plot([s.median] * 2, [row - 0.28, row + 0.28], color=colour, lw=2.4, zorder=4)
    axes.set_yticks(range(len(shown)), [s.label for s in shown])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    if race.plan.log_scale:
        axes.set_xscale("log")
    axes.set_xlabel(f"final {race.plan.unit}")
    axes.set_title(race.verdict.headline, loc="left", fontweight="bold", fontsize=13)
    return figure


def sensitivity(race: Results) -> Figure:
    """Final loss of every trial against its learning rate; diverged trials as crosses on top.

    Example:
        >>> sensitivity.__name__
        'sensitivity'
    """
    figure, axes = _canvas(8.4, 4.4)
    for label, place in places(race).items():
        trials = sorted((t for t in race.trials if t.label == label), key=lambda t: t.lr)
        colour, _ = style(place)
        ends = [t.final_loss if math.isfinite(t.final_loss) else math.nan for t in trials]
        axes.plot([t.lr for t in trials], ends, "o-", color=colour, lw=1.6, ms=6, label=label)
        lost = [t.lr for t in trials if not math.isfinite(t.final_loss)]
        top = axes.get_xaxis_transform()
        axes.plot(lost, [0.97] * len(lost), "x", color=colour, transform=top, clip_on=False)
    axes.set_xscale("log")
    if race.plan.log_scale:
        axes.set_yscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel(race.plan.unit)
    axes.legend(loc="best")
    return figure
