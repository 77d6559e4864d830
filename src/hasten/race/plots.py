"""The report's interactive figures, as the plain values that plotly.js takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from hasten.race.palette import style, translucent
from hasten.race.results import Results
from hasten.race.standings import Standing

DECADES: dict[str, Any] = {"type": "log", "exponentformat": "power", "dtick": 1}
BESIDE = {"x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top", "tracegroupgap": 2}
AXES = {"steps": "steps", "samples": "samples seen", "seconds": "seconds of training"}
BYTES_TITLE = "MB sent by one worker"
COUNTED_AXES = {"oracle_calls": "oracle calls (a whole gradient takes one for each parameter)", **AXES}


def axes_of(race: Results) -> dict[str, str]:
    """What curves may be drawn against, the first one first; titles by name.

    Example:
        >>> from pathlib import Path
        >>> from hasten.race.plan import Plan
        >>> list(axes_of(Results(Path("."), Plan("lm", "", "", (), (0,), 1), (), ())))
        ['steps', 'samples', 'seconds']
    """
    return COUNTED_AXES if race.plan.counted else AXES


def places(race: Results) -> dict[str, int]:
    """Each contender's place in the plan, which fixes its colour.

    Example:
        >>> from pathlib import Path
        >>> from hasten.race.plan import Plan
        >>> places(Results(Path("."), Plan("lm", "", "", (), (0,), 1), (), ()))
        {}
    """
    return {c.label: k for k, c in enumerate(race.plan.contenders)}


def plain(values: Sequence[float]) -> list[float | None]:
    """JSON has no infinity: what is not finite becomes null, a gap in the line.

    Example:
        >>> plain([1.0, math.inf])
        [1.0, None]
    """
    return [value if math.isfinite(value) else None for value in values]


def curves(race: Results) -> dict[str, Any]:
    """Loss against steps, samples, seconds or oracle calls: median and range over seeds, and bounds.

    Example:
        >>> from pathlib import Path
        >>> from hasten.race.plan import Plan
        >>> curves(Results(Path("."), Plan("lm", "", "", (), (0,), 1), (), ()))["traces"]
        []
    """
    traces: list[dict[str, Any]] = []
    titles = axes_of(race)
    first = next(iter(titles))
    axes: dict[str, dict[str, Any]] = {name: {"title": title, "values": []} for name, title in titles.items()}
    for standing in race.standings:
        for trace, columns in _curve_traces(race, standing):
            traces.append({**trace, "x": columns[first]})
            for name in titles:
                axes[name]["values"].append(columns[name])
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": titles[first]}},
        "yaxis": {"title": {"text": race.plan.unit}, **_loss_axis(race)},
        "legend": BESIDE,
        "hovermode": "x unified",
    }
    if race.target is not None:
        layout["shapes"] = _target_line(race.target)
    return {"id": "plot-curves", "traces": traces, "layout": layout, "axes": axes}


def _curve_traces(
    race: Results, standing: Standing, names: Iterable[str] | None = None
) -> list[tuple[dict[str, Any], dict[str, list[float]]]]:
    colour, dash = style(places(race)[standing.label])
    curve = standing.curve
    columns = {name: list(getattr(curve, name)) for name in names or axes_of(race)}
    band_columns = {name: [*xs, *reversed(xs)] for name, xs in columns.items()}
    shared = {"type": "scatter", "legendgroup": standing.label, "name": standing.label}
    line = {
        **shared,
        "mode": "lines",
        "y": plain(curve.median),
        "line": {"color": colour, "dash": dash, "width": 2.4},
        "hovertemplate": "%{y:.4g}",
    }
    band = {
        **shared,
        "mode": "lines",
        "y": plain([*curve.low, *reversed(curve.high)]),
        "fill": "toself",
        "fillcolor": translucent(colour, 0.16),
        "line": {"width": 0},
        "showlegend": False,
        "hoverinfo": "skip",
    }
    drawn: list[tuple[dict[str, Any], dict[str, list[float]]]]
    drawn = [(line, columns)] if len(standing.finals) == 1 else [(band, band_columns), (line, columns)]
    guarantee = race.plan.bounds.get(standing.label)
    if guarantee is not None:
        bound = {
            **shared,
            "mode": "lines",
            "y": plain(guarantee[: len(curve.steps)]),
            "line": {"color": colour, "dash": "dot", "width": 1.2},
            "showlegend": False,
            "hovertemplate": "bound %{y:.3g}",
        }
        drawn.append((bound, columns))
    return drawn


def bytes_sent(race: Results) -> dict[str, Any]:
    """Loss against the megabytes that one worker has sent, on a logarithmic scale.

    Example:
        >>> from pathlib import Path
        >>> from hasten.race.plan import Plan
        >>> bytes_sent(Results(Path("."), Plan("lm", "", "", (), (0,), 1, world=2), (), ()))["traces"]
        []
    """
    traces = [
        {**trace, "x": [sent / 1e6 if sent else None for sent in columns["bytes"]]}
        for standing in race.standings
        for trace, columns in _curve_traces(race, standing, ["bytes"])
    ]
    layout: dict[str, Any] = {
        "xaxis": {**DECADES, "title": {"text": BYTES_TITLE}},
        "yaxis": {"title": {"text": race.plan.unit}, **_loss_axis(race)},
        "legend": BESIDE,
    }
    if race.target is not None:
        layout["shapes"] = _target_line(race.target)
    return {"id": "plot-bytes", "traces": traces, "layout": layout}


def _target_line(target: float) -> list[dict[str, Any]]:
    return [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": target,
         "y1": target, "line": {"width": 1, "dash": "dot", "color": "#7a8794"}}
    ]  # fmt: skip


def loss_range(race: Results) -> tuple[float, float] | None:
    """The losses worth showing: those of contenders that did not diverge, without the first,
    untrained evaluations where these would flatten everything after them; None if there are none.

    Example:
        >>> from pathlib import Path
        >>> from hasten.race.plan import Plan
        >>> loss_range(Results(Path("."), Plan("lm", "", "", (), (0,), 1), (), ())) is None
        True
    """
    log = race.plan.log_scale
    sound = [s.curve for s in race.standings if math.isfinite(s.median)]
    since = 0.0 if log else race.plan.steps / 10
    highs = [y for c in sound for x, y in zip(c.steps, c.high, strict=True) if x >= since and y < math.inf]
    lows = [y for c in sound for y in c.low if y < math.inf and (y > 0 or not log)]
    if not highs or not lows:
        return None
    # A contender that jumps once must not hide the others: the tenth largest counts.
    top, bottom = sorted(highs)[-max(1, len(highs) // 10)], min(lows)
    # Bounds begin far above every curve: what they promise in the second half is to be seen.
    top = max([top, *(bound[len(bound) // 2] for bound in race.plan.bounds.values())])
    if log:
        return bottom / 2, top * 2
    margin = 0.06 * (top - bottom) or 1.0
    return bottom - margin, top + margin


def _loss_axis(race: Results) -> dict[str, Any]:
    limits = loss_range(race)
    if not race.plan.log_scale:
        return {"range": list(limits)} if limits else {}
    if limits is None:
        return dict(DECADES)
    low, high = (math.log10(x) for x in limits)
    return {**DECADES, "range": [low, high], "dtick": max(1, round((high - low) / 8))}


def sensitivity(race: Results) -> dict[str, Any]:
    """Final loss of every trial against its learning rate.

    Example:
        >>> from pathlib import Path
        >>> from hasten.race.plan import Plan
        >>> sensitivity(Results(Path("."), Plan("lm", "", "", (), (0,), 1), (), ()))["traces"]
        []
    """
    traces: list[dict[str, Any]] = []
    for label, place in places(race).items():
        trials = sorted((t for t in race.trials if t.label == label), key=lambda t: t.lr)
        colour, dash = style(place)
        if trials:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": label,
                    "x": [trial.lr for trial in trials],
                    "y": plain([trial.final_loss for trial in trials]),
                    "line": {"color": colour, "dash": dash, "width": 1.8},
                    "marker": {"size": 8},
                    "hovertemplate": "lr %{x:.3g}: %{y:.4g}",
                }
            )
    layout = {
        "xaxis": {**DECADES, "title": {"text": "learning rate"}},
        "yaxis": {"title": {"text": race.plan.unit}, **(DECADES if race.plan.log_scale else {})},
        "legend": BESIDE,
    }
    return {"id": "plot-sensitivity", "traces": traces, "layout": layout}


def to_target(race: Results) -> dict[str, Any]:
    """Steps and seconds until the median curve crosses the target, as bars side by side.

    Example:
        >>> from pathlib import Path
        >>> from hasten.race.plan import Plan
        >>> to_target(Results(Path("."), Plan("lm", "", "", (), (0,), 1), (), ()))["traces"][0]["x"]
        []
    """
    reached = [s for s in race.standings if s.steps_to_target is not None]
    columns: dict[str, list[Any]] = {
        "oracle_calls": [s.calls_to_target for s in reached],
        "steps": [s.steps_to_target for s in reached],
        "seconds": [s.seconds_to_target for s in reached],
        "MB_sent": [None if s.bytes_to_target is None else s.bytes_to_target / 1e6 for s in reached],
    }
    titles = {
        "oracle_calls": "oracle calls", "steps": "steps", "seconds": "seconds", "MB_sent": BYTES_TITLE,
    }  # fmt: skip
    absent = set() if race.plan.counted else {"oracle_calls"}
    absent |= set() if race.plan.world > 1 else {"MB_sent"}
    shown = [name for name in titles if name not in absent]
    colours = [style(places(race)[s.label])[0] for s in reached]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": columns[shown[0]],
        "y": [s.label for s in reached],
        "marker": {"color": colours},
        "texttemplate": "%{x:.4~g}",
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{y}: %{x:.4g}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": f"{titles[shown[0]]} to the target"}},
        "yaxis": {"autorange": "reversed"},
        "showlegend": False,
        "bargap": 0.45,
        "height": 90 + 38 * len(reached),
    }
    axes = {name: {"title": f"{titles[name]} to the target", "values": [columns[name]]} for name in shown}
    return {"id": "plot-target", "traces": [bars], "layout": layout, "axes": axes}
