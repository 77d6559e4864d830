"""What a race found out: the runs, the ranking, and a verdict in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hasten.race.plan import Plan
from hasten.race.run import Run
from hasten.race.standings import Lead, Standing, rank


@dataclass(frozen=True)
class Verdict:
    """The answer in two sentences.

    Attributes:
        headline: who won.
        detail: by how much, and how sure that is.

    Example:
        >>> Verdict("Lion wins", "By a nose.").headline
        'Lion wins'
    """

    headline: str
    detail: str


@dataclass(frozen=True)
class Results:
    """The outcome of a race, finished or stopped early.

    Attributes:
        folder: where everything is kept.
        plan: what was raced.
        runs: the finished runs.
        trials: the finished runs of the search for learning rates.
        interrupted: whether runs are missing.

    Example:
        >>> Results(Path("."), Plan("lm", "", "", (), (0,), 1), (), (), True).verdict.headline
        'No run has finished yet'
    """

    folder: Path
    plan: Plan
    runs: tuple[Run, ...]
    trials: tuple[Run, ...]
    interrupted: bool = False

    @cached_property
    def _ranked(self) -> tuple[list[Standing], float | None]:
        return rank(self.plan, self.runs)

    @property
    def standings(self) -> list[Standing]:
        """The contenders, best first."""
        return self._ranked[0]

    @property
    def target(self) -> float | None:
        """The evaluation whose crossing was timed."""
        return self._ranked[1]

    @property
    def verdict(self) -> Verdict:
        """Who won, by how much, and how sure that is."""
        return verdict(self.standings, self.plan)

    def summary(self) -> str:
        """The ranking as a plain table.

        Example:
            >>> Results(Path("."), Plan("lm", "", "", (), (0,), 1), (), (), True).summary()
            'No run has finished yet.'
        """
        if not self.standings:
            return f"{self.verdict.headline}."
        rows = [summary_columns(self.plan), *(summary_row(k, s) for k, s in enumerate(self.standings, 1))]
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if k == 1 else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([f"{self.verdict.headline}. {self.verdict.detail}", "", *lines])


SUMMARY_COLUMNS = (
    "", "optimizer", "final", "over seeds", "behind [95%]", "steps to target", "time", "ms/step",
    "state B/param",
)  # fmt: skip


BYTES_COLUMNS = ("MB sent", "× fewer than fp32", "MB to target")
"""Of several workers: what one of them sends."""


def summary_columns(plan: Plan) -> tuple[str, ...]:
    """The heads of a summary's columns.

    Example:
        >>> len(summary_columns(Plan("lm", "", "", (), (0,), 1)))
        9
        >>> summary_columns(Plan("lm", "", "", (), (0,), 1, world=2))[-3:]
        ('MB sent', '× fewer than fp32', 'MB to target')
    """
    return (*SUMMARY_COLUMNS, *(BYTES_COLUMNS if plan.world > 1 else ()))


def summary_row(place: int, standing: Standing) -> tuple[str, ...]:
    """One contender's cells under `summary_columns`.

    Example:
        >>> len(SUMMARY_COLUMNS)
        9
    """
    s = standing
    finite = [x for x in s.finals if math.isfinite(x)]
    spread = f"{number(min(finite))}–{number(max(finite))}" if finite else ""
    if s.diverged:
        spread += f" ({s.diverged} of {len(s.finals)} diverged)"
    return (
        str(place),
        s.label,
        number(s.median),
        spread.strip(),
        behind(s.lead),
        f"{s.steps_to_target:.0f}" if s.steps_to_target is not None else "–",
        f"{s.seconds_to_target:.3g} s" if s.seconds_to_target is not None else "–",
        f"{s.step_ms:.3g}",
        f"{s.state_bytes:.3g}",
        *bytes_cells(s),
    )


def bytes_cells(standing: Standing) -> tuple[str, ...]:
    """One contender's cells under `BYTES_COLUMNS`; none for a worker by itself.

    Example:
        >>> len(BYTES_COLUMNS)
        3
    """
    s = standing
    if s.bytes is None or s.fewer is None:
        return ()
    return megabytes(s.bytes), f"{s.fewer:.3g}", megabytes(s.bytes_to_target)


def megabytes(size: float | None) -> str:
    """Bytes as megabytes (10⁶), without the unit.

    Example:
        >>> megabytes(1_234_567), megabytes(None)
        ('1.23', '–')
    """
    return "–" if size is None else f"{size / 1e6:.3g}"


def number(x: float) -> str:
    """A loss, short.

    Example:
        >>> number(2.03456), number(1.2e-9), number(math.inf)
        ('2.035', '1.2e-09', 'diverged')
    """
    if not math.isfinite(x):
        return "diverged"
    return f"{x:.4g}" if x == 0 or 1e-3 <= abs(x) < 1e5 else f"{x:.3g}"


def behind(lead: Lead | None) -> str:
    """How far behind the leader, with its interval.

    Example:
        >>> behind(Lead(0.1, 0.05, 0.15, 3, 3, False)), behind(Lead(4.0, 2.0, 8.0, 3, 3, True))
        ('+0.1 [+0.05, +0.15]', '×4 [2, 8]')
    """
    if lead is None:
        return ""
    if lead.factor:
        mean, low, high = (
            f"{x:.0f}" if 100 <= x < 1e5 else f"{x:.2g}" for x in (lead.mean, lead.low, lead.high)
        )
        text = f"×{mean}"
    else:
        low, high = f"{lead.low:+.2g}", f"{lead.high:+.2g}"
        text = f"{lead.mean:+.3g}"
    return text if math.isnan(lead.low) else f"{text} [{low}, {high}]"


def verdict(standings: list[Standing], plan: Plan) -> Verdict:
    """Put the ranking into words.

    Example:
        >>> verdict([], Plan("lm", "", "", (), (0,), 1)).headline
        'No run has finished yet'
    """
    if not standings:
        return Verdict("No run has finished yet", "")
    first, *rest = standings
    if not math.isfinite(first.median):
        return Verdict("Every optimizer diverged", "Try smaller learning rates, or --tune.")
    seeds = len(first.finals)
    reached = f"{first.label} reached {number(first.median)} ({plan.unit}) in {plan.length}"
    over = f"median of {seeds} seeds" if seeds > 1 else "one seed"
    if not rest:
        return Verdict(f"{first.label} raced alone", f"{reached}, {over}.")
    second = rest[0]
    if second.lead is None:
        why = "diverged" if not math.isfinite(second.median) else "did not finish the same seeds"
        return Verdict(f"{first.label} wins", f"{reached}, {over}; {second.label}, next, {why}.")
    lead = second.lead
    if lead.factor:
        by = f"a factor of {lead.mean:.3g}"
        interval = f"{lead.low:.3g} to {lead.high:.3g}"
    else:
        by = f"{lead.mean:.3g}"
        interval = f"{lead.low:.2g} to {lead.high:.2g}"
    ahead = f"ahead of {second.label} by {by} on average, on {lead.ahead} of {lead.seeds} seeds"
    if lead.seeds < 2:
        return Verdict(
            f"{first.label} is ahead",
            f"{reached}, ahead of {second.label} by {by}. One seed cannot say how sure that is.",
        )
    level = [s.label for s in rest if s.lead is not None and not s.lead.clear]
    if lead.clear:
        sure = f"95% interval {interval}: more than chance"
        return Verdict(f"{first.label} wins", f"{reached}, {over}; {ahead} ({sure}).")
    names = " and ".join([", ".join(level[:-1]), level[-1]] if len(level) > 1 else level)
    return Verdict(
        f"{first.label} is ahead, not clearly",
        f"{reached}, {over}; {ahead}, but the 95% interval ({interval}) includes no lead at all: "
        f"{lead.seeds} seeds cannot tell it from {names}.",
    )
