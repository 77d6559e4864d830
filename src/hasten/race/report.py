"""The report: one HTML file that opens offline, everything it needs inside it."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from hasten.files import write_atomically
from hasten.race.errors import RaceError, require
from hasten.race.hooks import PLAIN
from hasten.race.palette import style
from hasten.race.plots import bytes_sent, curves, places, sensitivity, to_target
from hasten.race.results import BYTES_COLUMNS, Results, behind, bytes_cells, number
from hasten.race.standings import Standing

STRIP_WIDTH, STRIP_HEIGHT = 190, 18


def write_report(race: Results, path: Path) -> Path:
    """Write the report of a race and give its path.

    Raises:
        RaceError: if plotly is missing or the file cannot be written.

    Example:
        >>> from hasten.race import load
        >>> write_report(load("no-such-folder"), Path("report.html"))
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: no-such-folder holds no race: there is no plan.json in it
    """
    page = report_page(race)
    try:
        write_atomically(path, page)
    except OSError as error:
        raise RaceError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def report_page(race: Results) -> str:
    """The report as text.

    Example:
        >>> from hasten.race.plan import Plan
        >>> page = report_page(Results(Path("."), Plan("lm", "", "", (), (0,), 1), (), ()))
        >>> page.startswith("<!doctype html>")
        True
    """
    require("plotly")
    from plotly.offline import get_plotlyjs

    plan, verdict = race.plan, race.verdict
    figures = [curves(race)] if race.standings else []
    sections = (
        [_section("curves", "Loss curves", _curves_note(race), "plot-curves", _switch(figures[0]))]
        if figures
        else []
    )
    if race.target is not None and any(s.steps_to_target is not None for s in race.standings):
        figures.append(to_target(race))
        sections.append(
            _section(
                "target", "Time to target", _target_note(race), "plot-target", _switch(figures[-1]), "fit"
            )
        )
    if race.plan.world > 1 and race.standings:
        figures.append(bytes_sent(race))
        table = _bytes_table(race)
        sections.append(
            _section("bytes", "Loss against bytes sent", _bytes_note(race), "plot-bytes", table=table)
        )
    if race.trials:
        figures.append(sensitivity(race))
        note = (
            f"{plan.trials} full-length trials for each optimizer ({plan.search} search), on a seed "
            "kept for them. Gaps are divergences."
        )
        sections.append(_section("sensitivity", "Sensitivity to the learning rate", note, "plot-sensitivity"))
    data = json.dumps(figures, allow_nan=False).replace("</", "<\\/")
    values = {
        "title": html.escape(f"hasten race: {plan.task}"),
        "style": _resource("report.css"),
        "task": html.escape(plan.task),
        "headline": html.escape(verdict.headline),
        "detail": html.escape(verdict.detail),
        "facts": html.escape(_facts(race)),
        "notice": _notice(race),
        "standings_note": html.escape(_standings_note(race)),
        "standings": _standings_table(race),
        "plots": "\n".join(sections),
        "cost_note": "Times are medians over the training steps of all seeds, one run at a time. "
        "The first step, with compilation and allocation, is left out of them.",
        "cost": _cost_table(race),
        "sentences": _sentences(race),
        "command": html.escape(plan.command),
        "environment": _definitions(race),
        "plotly": get_plotlyjs(),
        "figures": data,
        "script": _resource("report.js"),
    }
    # Split at the slots instead of replacing one after another: a value may contain braces.
    first, *rest = _resource("report.html").split("{{")
    page = [first]
    for piece in rest:
        name, text = piece.split("}}", 1)
        page += [values[name], text]
    return "".join(page)


def _switch(figure: dict[str, Any]) -> list[tuple[str, str]]:
    """The buttons that choose a figure's horizontal axis."""
    return [(axis, axis.replace("_", " ")) for axis in figure["axes"]]


def _resource(name: str) -> str:
    return (files("hasten.race") / "page" / name).read_text(encoding="utf-8")


def _section(
    key: str,
    title: str,
    note: str,
    plot: str,
    switch: Iterable[tuple[str, str]] = (),
    size: str = "",
    table: str = "",
) -> str:
    buttons = "".join(
        f'<button type="button" data-axis="{axis}" aria-pressed="{str(k == 0).lower()}">{text}</button>'
        for k, (axis, text) in enumerate(switch)
    )
    row = f'<div class="switch" data-figure="{plot}">{buttons}</div>' if buttons else ""
    return (
        f'<section id="{key}"><h2>{title}</h2><p class="note">{html.escape(note)}</p>{row}'
        f'<div class="plot {size}" id="{plot}"></div>{table}</section>'
    )


def _facts(race: Results) -> str:
    plan = race.plan
    seeds = f"{len(plan.seeds)} seeds" if len(plan.seeds) > 1 else "1 seed"
    tuned = f" · {plan.trials} learning rates tried for each" if plan.trials else ""
    workers = f" · {plan.world} workers share every batch" if plan.world > 1 else ""
    return f"{plan.title} · {plan.parameters:,} parameters · {plan.length} a run · {seeds}{tuned}{workers}"


def _notice(race: Results) -> str:
    if not race.interrupted:
        return ""
    whole = len(race.plan.contenders) * len(race.plan.seeds)
    return (
        f'<p class="notice">This race was stopped early: {len(race.runs)} of {whole} runs are in. '
        "The ranking uses the seeds that every optimizer has finished, if there is one.</p>"
    )


def _standings_note(race: Results) -> str:
    lead = "factor" if race.plan.log_scale else "difference"
    return (
        f"Final {race.plan.unit}: median over seeds, and every seed as a dot. “Behind” is the mean "
        f"{lead} to the winner over the same seeds, with its 95% interval (Student's t); in "
        "italics where that interval includes no lead at all. All optimizers saw the same "
        "batches from the same start."
    )


def _curves_note(race: Results) -> str:
    many = "Lines are medians over seeds, bands their range." if len(race.plan.seeds) > 1 else ""
    dotted = "Dotted: the target"
    if race.plan.bounds:
        dotted += ", and in a curve's colour what the theory guarantees in the mean over all draws"
    return f"{many} {dotted}. Click a name to hide it, twice to see it alone.".strip()


def _bytes_note(race: Results) -> str:
    plan = race.plan
    plain = "; one without “over” in its name all-reduces gradients in float32" if PLAIN in plan.hooks else ""
    return (
        f"Counted on one of {plan.world} workers{plain}. An all-reduce of n bytes among W workers makes each send "
        "2n(W−1)/W, an all-gather n(W−1), as ring algorithms do. “Fewer” compares with an all-reduce of the gradient "
        f"in float32 at every step, {plan.gradient_bytes / 1e6:.3g} MB each time."
    )


def _target_note(race: Results) -> str:
    assert race.target is not None
    meaning = "" if race.plan.target is not None else ", the level that all of them reached"
    missing = [s.label for s in race.standings if s.steps_to_target is None]
    never = f" Never reached by {', '.join(missing)}." if missing else ""
    return f"When the median curve first comes down to {number(race.target)}{meaning}.{never}"


def _standings_table(race: Results) -> str:
    heads = [
        ("", ""), ("optimizer", "name"), ("final", ""), ("seeds", "strip"), ("behind [95%]", ""),
        ("oracle calls to target" if race.plan.counted else "steps to target", ""),
        ("seconds to target", ""), ("peak lr", ""),
    ]  # fmt: skip
    rows = []
    scale = _strip_scale(race)
    for place, s in enumerate(race.standings, 1):
        kind = "" if s.lead is None else ("clear" if s.lead.clear else "level")
        cells = [
            (str(place), ""),
            (_name(race, s.label), "name"),
            (number(s.median), ""),
            (_strip(race, s, scale), "strip"),
            (behind(s.lead), kind),
            (_maybe(s.calls_to_target if race.plan.counted else s.steps_to_target, ".0f"), ""),
            (_maybe(s.seconds_to_target, ".3g"), ""),
            (f"{s.lr:.3g}", ""),
        ]
        rows.append(_row("td", cells, "first" if place == 1 else ""))
    return _table(heads, rows)


def _bytes_table(race: Results) -> str:
    heads = [("optimizer", "name"), *((head, "") for head in BYTES_COLUMNS), ("final", "")]
    rows = []
    for s in sorted(race.standings, key=lambda s: s.bytes or 0.0):
        cells = [(cell, "") for cell in (*bytes_cells(s), number(s.median))]
        rows.append(_row("td", [(_name(race, s.label), "name"), *cells]))
    return _table(heads, rows)


def _cost_table(race: Results) -> str:
    heads = [
        ("optimizer", "name"), ("training step, ms", ""), ("of which optimizer, ms", ""),
        ("state, bytes per parameter", ""), ("first step, s", ""),
    ]  # fmt: skip
    rows = []
    for s in sorted(race.standings, key=lambda s: s.optimizer_ms):
        pace = race.plan.paces.get(s.label)
        cells = [
            (_name(race, s.label), "name"),
            (f"{s.step_ms:.2f}", ""),
            (f"{s.optimizer_ms:.2f}", ""),
            (f"{s.state_bytes:.3g}", ""),
            (_maybe(pace.first_step if pace else None, ".2f"), ""),
        ]
        rows.append(_row("td", cells))
    return _table(heads, rows)


def _table(heads: list[tuple[str, str]], rows: list[str]) -> str:
    return f"<table><thead>{_row('th', heads)}</thead><tbody>{''.join(rows)}</tbody></table>"


def _row(tag: str, cells: Iterable[tuple[str, str]], kind: str = "") -> str:
    inside = "".join(f'<{tag} class="{css}">{content}</{tag}>' for content, css in cells)
    return f'<tr class="{kind}">{inside}</tr>'


def _maybe(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _name(race: Results, label: str) -> str:
    colour, _ = style(places(race)[label])
    return f'<span class="key" style="background:{colour}"></span>{html.escape(label)}'


def _strip_scale(race: Results) -> tuple[float, float]:
    """The range of the seeds' dots; contenders far off the others' scale are cut at its edge."""
    values = sorted(_scaled(race, x) for s in race.standings for x in s.finals if math.isfinite(x))
    if not values:
        return 0.0, 1.0
    middle = values[len(values) // 2]
    low, high = values[0], min(values[-1], values[0] + 4 * max(middle - values[0], 1e-12))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _scaled(race: Results, x: float) -> float:
    return math.log10(max(x, 1e-300)) if race.plan.log_scale else x


def _strip(race: Results, standing: Standing, scale: tuple[float, float]) -> str:
    colour, _ = style(places(race)[standing.label])
    low, high = scale
    middle = STRIP_HEIGHT / 2
    dots = []
    for x in standing.finals:
        if math.isfinite(x):
            part = min(1.0, max(0.0, (_scaled(race, x) - low) / (high - low)))
            at = 8 + part * (STRIP_WIDTH - 16)
            dots.append(
                f'<circle cx="{at:.1f}" cy="{middle}" r="5" fill="{colour}" fill-opacity="0.75">'
                f"<title>{number(x)}</title></circle>"
            )
    return (
        f'<svg class="strip" width="{STRIP_WIDTH}" height="{STRIP_HEIGHT}" role="img" '
        f'aria-label="final evaluation of each seed"><line x1="0" y1="{middle}" '
        f'x2="{STRIP_WIDTH}" y2="{middle}"/>{"".join(dots)}</svg>'
    )


def _sentences(race: Results) -> str:
    parts = []
    for contender in race.plan.contenders:
        sentence = race.plan.sentences.get(contender.label, contender.name)
        options = ", ".join(f"{k}={v!r}" for k, v in contender.options.items())
        course = f"{contender.schedule} learning rate, warm-up {contender.warmup:.0%} of the run"
        parts.append(
            f"<details><summary>{_name(race, contender.label)}</summary>"
            f"<pre>{html.escape(sentence)}</pre>"
            f'<p class="note">Raced with {html.escape(options)}; {course}.</p></details>'
        )
    return "".join(parts)


def _definitions(race: Results) -> str:
    plan = race.plan
    pairs = {
        **plan.environment,
        "threads": str(plan.threads),
        "seeds": ", ".join(map(str, plan.seeds)),
        "length": f"{plan.length} a run, {plan.evaluations} evaluations",
        "data": plan.data,
        "workers": f"{plan.world}, over {', '.join(plan.hooks)}" if plan.world > 1 else "",
    }
    return "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in pairs.items() if v)
