"""Ranking, and how sure it is."""

from __future__ import annotations

import math
import statistics

import pytest

from hasten.race.entrants import Contender
from hasten.race.errors import RaceError
from hasten.race.plan import Pace, Plan, parse_duration, steps_within
from hasten.race.results import verdict
from hasten.race.run import DIVERGED, FINISHED, Point, Run
from hasten.race.standings import STUDENT, crossing, curve_of, lead_over, rank


def run(label: str, seed: int, *losses: float, status: str = FINISHED) -> Run:
    points = tuple(Point(10 * k, 80 * k, 0.1 * k, None, x) for k, x in enumerate(losses))
    return Run(label, seed, 0.1, {}, status, points, 10 * len(losses), 1.0, 0.1, 8.0, "")


def plan(*labels: str, seeds: tuple[int, ...] = (0, 1, 2), log_scale: bool = False) -> Plan:
    contenders = tuple(Contender(label, label, {}) for label in labels)
    return Plan("t", "a task", "", contenders, seeds, 20, log_scale=log_scale)


def test_ranking_is_by_the_median_over_seeds() -> None:
    runs = [run("a", s, 3, x) for s, x in enumerate([1.0, 1.1, 9.0])]
    runs += [run("b", s, 3, x) for s, x in enumerate([1.5, 1.5, 1.5])]
    standings, target = rank(plan("b", "a"), runs)
    assert [s.label for s in standings] == ["a", "b"]
    assert standings[0].median == 1.1
    assert target == 1.5


def test_paired_interval_is_students() -> None:
    leader, other = [1.0, 2.0, 3.0, 4.0], [1.2, 2.1, 3.4, 4.3]
    lead = lead_over(leader, other, factor=False)
    assert lead is not None
    gaps = [b - a for a, b in zip(leader, other, strict=True)]
    margin = STUDENT[2] * statistics.stdev(gaps) / 2
    assert (lead.mean, lead.high - lead.mean) == pytest.approx((0.25, margin))
    assert lead.ahead == 4


def test_students_quantiles_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = [stats.t.ppf(0.975, df) for df in range(1, len(STUDENT) + 1)]
    assert pytest.approx(expected, abs=6e-4) == STUDENT


def test_where_losses_span_decades_leads_are_factors() -> None:
    lead = lead_over([1e-6, 1e-8], [1e-4, 1e-6], factor=True)
    assert lead is not None
    assert lead.mean == pytest.approx(100)
    assert lead.clear


def test_one_seed_says_nothing_about_certainty() -> None:
    lead = lead_over([1.0], [2.0], factor=False)
    assert lead is not None
    assert not lead.clear
    words = verdict(rank(plan("a", "b", seeds=(0,)), [run("a", 0, 1.0), run("b", 0, 2.0)])[0], plan("a"))
    assert "One seed" in words.detail


def test_divergence_counts_as_worst_and_does_not_hide() -> None:
    runs = [run("a", s, 3, 2) for s in range(3)]
    runs += [run("b", 0, 3, 1), run("b", 1, 3, status=DIVERGED), run("b", 2, 3, status=DIVERGED)]
    standings, target = rank(plan("a", "b"), runs)
    assert [s.label for s in standings] == ["a", "b"]
    assert standings[1].diverged == 2
    assert standings[1].median == math.inf
    assert target == 2


def test_an_interrupted_race_compares_common_seeds_only() -> None:
    runs = [run("a", 0, 3, 1.0), run("b", 0, 3, 2.0), run("a", 1, 3, 100.0)]
    standings, _ = rank(plan("a", "b"), runs)
    assert standings[0].finals == (1.0,)


def test_before_any_common_seed_there_is_no_lead() -> None:
    standings, _ = rank(plan("a", "b"), [run("a", 0, 3, 1.0)])
    assert [s.label for s in standings] == ["a"]
    assert verdict(standings, plan("a", "b")).headline == "a raced alone"


def test_verdict_owns_up_to_a_tie() -> None:
    runs = [run("a", s, x) for s, x in enumerate([1.0, 1.2, 1.1])]
    runs += [run("b", s, x) for s, x in enumerate([1.2, 1.0, 1.15])]
    words = verdict(rank(plan("a", "b"), runs)[0], plan("a", "b"))
    assert words.headline == "a is ahead, not clearly"
    assert "cannot tell it from b" in words.detail


def test_everyone_diverged() -> None:
    runs = [run("a", s, 3.0, status=DIVERGED) for s in range(3)]
    assert verdict(rank(plan("a"), runs)[0], plan("a")).headline == "Every optimizer diverged"


def test_crossing_interpolates() -> None:
    assert crossing([0, 10, 20], [4.0, 2.0, 1.0], 3.0) == 5.0
    assert crossing([0, 10], [4.0, 2.0], 1.0) is None
    assert crossing([0, 10], [0.5, 0.2], 1.0) == 0.0


def test_curves_of_unequal_length_are_medians_with_divergence_as_infinity() -> None:
    curve = curve_of([run("a", 0, 4, 2, 1), run("a", 1, 4, status=DIVERGED), run("a", 2, 4, 3, 2)])
    assert curve.median == (4, 3, 2)
    assert curve.high == (4, 3, 2)


def test_runs_survive_their_file_format() -> None:
    one = run("a", 0, 3.0, 0.1 + 0.2)
    assert Run.from_lines(one.to_lines()) == one
    whole = one.to_lines()
    with pytest.raises(ValueError, match="not a complete run"):
        Run.from_lines(whole[: whole.rindex('{"kind": "end"')])


@pytest.mark.parametrize(
    ("text", "seconds"), [("3m", 180), ("90s", 90), ("1h30m", 5400), ("45", 45), (2.5, 2.5)]
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3m", "0", "3 parsecs", True])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(RaceError, match="budget"):
        parse_duration(text)


def test_the_number_of_steps_keeps_to_the_budget() -> None:
    paces = [Pace(1.0, 0.02), Pace(1.0, 0.03)]
    steps, evaluations = steps_within(60.0, paces, 0.05, runs_each=3, evaluations=20)
    used = 3 * (steps * 0.05 + 2 * 21 * 0.05)
    assert 50 < used <= 60
    assert evaluations == 20


def test_costly_evaluations_become_fewer() -> None:
    steps, evaluations = steps_within(60.0, [Pace(1.0, 0.01)], 1.0, runs_each=1, evaluations=40)
    assert evaluations == 19
    assert steps * 0.01 + (evaluations + 1) * 1.0 <= 60
