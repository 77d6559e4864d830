"""From runs to a ranking, and to how sure one may be of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.race.plan import Plan
from hasten.race.run import FINISHED, Run

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; 1.96 beyond.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """The course of one contender over its seeds, at the steps all its runs were evaluated.

    Attributes:
        steps, samples, seconds: the three axes (seconds: median over seeds).
        oracle_calls, bytes: further axes, empty where they are not counted (bytes: sent by one worker, median).
        median, low, high: evaluation over seeds. A diverged seed counts as infinitely bad in the
            median and is left out of the band.

    Example:
        >>> Curve((0,), (0,), (0.0,), (1.0,), (1.0,), (1.0,)).median
        (1.0,)
    """

    steps: tuple[int, ...]
    samples: tuple[int, ...]
    seconds: tuple[float, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    oracle_calls: tuple[int, ...] = ()
    bytes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Lead:
    """How far the leader is ahead of another contender, seed by seed.

    Attributes:
        mean, low, high: mean lead and its 95 % interval (Student's t on the paired differences);
            factors where the task's loss spans decades, differences otherwise. With one seed
            there is no interval: low and high are nan.
        ahead: seeds on which the leader was ahead.
        seeds: seeds that both finished.
        factor: whether the numbers are factors.

    Example:
        >>> Lead(0.1, 0.05, 0.15, 3, 3, False).clear
        True
    """

    mean: float
    low: float
    high: float
    ahead: int
    seeds: int
    factor: bool

    @property
    def clear(self) -> bool:
        """Whether the 95 % interval leaves out "no lead"."""
        return self.low > (1.0 if self.factor else 0.0)


@dataclass(frozen=True)
class Standing:
    """One line of the ranking.

    Attributes:
        label: the contender.
        finals: final evaluation of every seed, in the plan's order (infinite where diverged).
        diverged: number of seeds that diverged.
        steps_to_target, seconds_to_target: where the median curve crosses the target, or None.
        step_ms, optimizer_ms: median over seeds.
        state_bytes: optimizer state per parameter.
        lr: peak learning rate.
        curve: the course.
        lead: of the leader over this contender; None for the leader and where it never finished.
        calls_to_target: oracle calls where the median curve crosses the target, where they are counted.
        bytes: sent by one worker in a whole run, where there are several.
        fewer: times fewer than by an all-reduce of the gradient in float32 at every step; infinite if none were sent.
        bytes_to_target: where the median curve crosses the target.

    Example:
        >>> Standing.__name__
        'Standing'
    """

    label: str
    finals: tuple[float, ...]
    diverged: int
    steps_to_target: float | None
    seconds_to_target: float | None
    step_ms: float
    optimizer_ms: float
    state_bytes: float
    lr: float
    curve: Curve
    lead: Lead | None = None
    calls_to_target: float | None = None
    bytes: float | None = None
    fewer: float | None = None
    bytes_to_target: float | None = None

    @property
    def median(self) -> float:
        """Median of the final evaluations."""
        return statistics.median(self.finals)


def curve_of(runs: Sequence[Run]) -> Curve:
    """Median and range over the runs of one contender.

    Example:
        >>> from hasten.race.run import Point
        >>> points = (Point(0, 0, 0.0, None, 2.0), Point(5, 40, 1.0, 1.5, 1.0))
        >>> curve_of([Run("a", 0, 0.1, {}, "finished", points, 5, 1.0, 0.1, 4.0, "")]).median
        (2.0, 1.0)
    """
    longest = max(runs, key=lambda run: len(run.points))
    columns = range(len(longest.points))
    reached = [[run.points[k] for run in runs if k < len(run.points)] for k in columns]
    losses = [[p.loss for p in points] for points in reached]
    return Curve(
        steps=tuple(p.step for p in longest.points),
        samples=tuple(p.samples for p in longest.points),
        seconds=tuple(statistics.median(p.seconds for p in points) for points in reached),
        median=tuple(
            statistics.median([*values, *[math.inf] * (len(runs) - len(values))]) for values in losses
        ),
        low=tuple(min(values) for values in losses),
        high=tuple(max(values) for values in losses),
        oracle_calls=tuple(p.oracle_calls for p in longest.points if p.oracle_calls is not None),
        bytes=tuple(
            statistics.median(sent)
            for points in reached
            if (sent := [p.bytes for p in points if p.bytes is not None])
        ),
    )


def crossing(xs: Sequence[float], ys: Sequence[float], target: float) -> float | None:
    """Where a curve first comes down to the target, interpolated linearly; None if never.

    Example:
        >>> crossing([0, 10, 20], [3.0, 2.0, 1.0], 1.5)
        15.0
    """
    for k, y in enumerate(ys):
        if y <= target:
            if k == 0 or not math.isfinite(ys[k - 1]):
                return float(xs[k])
            part = (ys[k - 1] - target) / (ys[k - 1] - y)
            return xs[k - 1] + part * (xs[k] - xs[k - 1])
    return None


def lead_over(leader: Sequence[float], other: Sequence[float], *, factor: bool) -> Lead | None:
    """Paired comparison of final evaluations of the same seeds; None if none was finished by both.

    Example:
        >>> lead = lead_over([1.0, 1.1, 1.2], [1.2, 1.3, 1.45], factor=False)
        >>> round(lead.mean, 3), lead.ahead, lead.clear
        (0.217, 3, True)
    """
    pairs = [(a, b) for a, b in zip(leader, other, strict=True) if math.isfinite(a + b)]
    if factor:
        tiny = 1e-300
        gaps = [math.log(max(b, tiny) / max(a, tiny)) for a, b in pairs]
    else:
        gaps = [b - a for a, b in pairs]
    if not gaps:
        return None
    mean, count = statistics.fmean(gaps), len(gaps)
    if count > 1:
        quantile = STUDENT[count - 2] if count - 2 < len(STUDENT) else 1.96
        margin = quantile * statistics.stdev(gaps) / math.sqrt(count)
    else:
        margin = math.nan
    low, high, ahead = mean - margin, mean + margin, sum(gap > 0 for gap in gaps)
    if factor:
        mean, low, high = (math.exp(min(x, 700.0)) for x in (mean, low, high))
    return Lead(mean, low, high, ahead, count, factor)


def default_target(plan: Plan, finals: dict[str, tuple[float, ...]]) -> float | None:
    """The plan's target, or the level that every contender reached: the worst final median.

    Contenders that diverged have no say in it.

    Example:
        >>> default_target(Plan("lm", "", "", (), (0,), 1), {"a": (1.0, 1.2, 1.1), "b": (1.5,)})
        1.5
    """
    if plan.target is not None:
        return plan.target
    medians = (statistics.median(values) for values in finals.values())
    return max((m for m in medians if math.isfinite(m)), default=None)


def rank(plan: Plan, runs: Sequence[Run]) -> tuple[list[Standing], float | None]:
    """The ranking by median final evaluation, and the target that was timed.

    Only seeds that every contender has run are compared, so that an interrupted race stays fair;
    if there is no such seed, whatever there is.

    Example:
        >>> rank(Plan("lm", "", "", (), (0,), 1), [])
        ([], None)
    """
    seen = {c.label: {run.seed for run in runs if run.label == c.label} for c in plan.contenders}
    common = set.intersection(*seen.values()) if seen else set()
    fair = [run for run in runs if run.seed in common] or list(runs)
    order = {seed: k for k, seed in enumerate(plan.seeds)}
    groups: dict[str, list[Run]] = {}
    for run in sorted(fair, key=lambda run: order.get(run.seed, 0)):
        groups.setdefault(run.label, []).append(run)
    finals = {label: tuple(run.final_loss for run in group) for label, group in groups.items()}
    target = default_target(plan, finals)
    standings = [_standing(label, group, finals[label], target, plan) for label, group in groups.items()]
    standings.sort(key=lambda standing: standing.median)
    if common and standings:
        first, *rest = standings
        standings = [first, *(_with_lead(first, other, plan.log_scale) for other in rest)]
    return standings, target


def _standing(
    label: str, group: list[Run], finals: tuple[float, ...], target: float | None, plan: Plan
) -> Standing:
    curve = curve_of(group)
    sent = curve.bytes[-1] if curve.bytes else None
    whole = plan.gradient_bytes * curve.steps[-1]
    level = -math.inf if target is None else target
    return Standing(
        label=label,
        finals=finals,
        diverged=sum(run.status != FINISHED for run in group),
        steps_to_target=crossing(curve.steps, curve.median, level),
        seconds_to_target=crossing(curve.seconds, curve.median, level),
        step_ms=statistics.median(run.step_ms for run in group),
        optimizer_ms=statistics.median(run.optimizer_ms for run in group),
        state_bytes=group[0].state_bytes,
        lr=group[0].lr,
        curve=curve,
        calls_to_target=crossing(curve.oracle_calls, curve.median, level) if curve.oracle_calls else None,
        bytes=sent,
        fewer=None if sent is None else whole / sent if sent else math.inf,
        bytes_to_target=crossing(curve.bytes, curve.median, level) if curve.bytes else None,
    )


def _with_lead(first: Standing, other: Standing, factor: bool) -> Standing:
    lead = lead_over(first.finals, other.finals, factor=factor)
    return Standing(**{**vars(other), "lead": lead})
