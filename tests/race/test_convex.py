"""Races on convex problems with known constants: equal oracle calls, and bounds that hold."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.problems import Quadratic
from hasten.race import Race, RaceError, load
from hasten.race.known import bound, by_formula, named_sketch
from hasten.race.results import number
from hasten.race.tasks import TASKS
from hasten.theory import ScheduleU, SubspaceDescent

Small = Callable[..., Race]
ENTRANTS = (
    "SubspaceNesterov(sketch='Identity'),SubspaceNesterov(rank=16),SubspaceGradientDescent(rank=64),"
    "SubspaceNesterov(sketch='Haar', rank=32),AcceleratedSGD,Nesterov,SGD,AdamW"
)
WITH_BOUND = {
    "SubspaceNesterov(sketch='Identity')",
    "SubspaceNesterov(rank=16)",
    "SubspaceGradientDescent(rank=64)",
    "SubspaceNesterov(sketch='Haar', rank=32)",
    "SGD",
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Race:
    """A race of three seeds, run once."""
    from hasten.race import race

    folder = tmp_path_factory.mktemp("convex") / "race"
    return race("convex/quadratic-inverse", ENTRANTS, seeds=3, steps=24, evaluations=12, out=folder)


def test_all_take_the_same_oracle_calls(result: Race) -> None:
    plan = result.plan
    assert plan.counted
    assert plan.length == "6,144 oracle calls"  # 24 whole gradients of 256 entries
    for run in result.runs:
        assert [p.oracle_calls for p in run.points][0::12] == [0, 6144]
        assert run.steps == run.points[-1].step == plan.steps_of(run.label)
    steps = {run.label: run.steps for run in result.runs}
    assert steps["SubspaceNesterov(rank=16)"] == 24 * 16
    assert steps["SubspaceGradientDescent(rank=64)"] == 24 * 4
    assert steps["SGD"] == steps["AdamW"] == steps["SubspaceNesterov(sketch='Identity')"] == 24


def test_bounds_are_those_of_the_theory_and_hold(result: Race) -> None:
    problem = Quadratic.named("inverse")
    assert set(result.plan.bounds) == WITH_BOUND
    for label, limits in result.plan.bounds.items():
        runs = [run for run in result.runs if run.label == label]
        assert len(limits) == len(runs[0].points) == 13
        assert limits[0] == runs[0].points[0].loss == pytest.approx(problem.gap)
        for k, limit in enumerate(limits):
            mean = sum(run.points[k].loss for run in runs) / len(runs)
            assert 0 < mean <= limit * (1 + 1e-9)
    assert result.plan.bounds["SubspaceNesterov(sketch='Identity')"][6] == pytest.approx(
        ScheduleU(1.0, problem.distance, 1 / 256).at(12)
    )
    assert result.plan.bounds["SGD"][12] == pytest.approx(
        SubspaceDescent(1.0, 1.0, problem.distance, problem.gap, 1 / 256).at(24)
    )


def test_the_report_draws_oracle_calls_and_bounds(result: Race) -> None:
    page = result.report().read_text()
    figures = {
        f["id"]: f for f in json.loads(re.findall(r'type="application/json">(.*?)</script>', page, re.S)[-1])
    }
    curves, target = figures["plot-curves"], figures["plot-target"]
    assert list(curves["axes"]) == ["oracle_calls", "steps", "samples", "seconds"]
    assert list(target["axes"]) == ["oracle_calls", "steps", "seconds"]
    dotted = [t for t in curves["traces"] if t["line"].get("dash") == "dot" and t["line"]["width"] < 2]
    assert {t["name"] for t in dotted} == WITH_BOUND
    for trace, steps in zip(curves["traces"], curves["axes"]["steps"]["values"], strict=True):
        assert max(trace["x"]) == 6144
        assert max(steps) == result.plan.steps_of(trace["name"])
    for text in ("oracle calls to target", "what the theory guarantees", "6,144 oracle calls a run"):
        assert text in page
    assert [path.name for path in result.figures()] == ["curves.png", "standings.png"]


def test_long_names_do_not_cut_numbers_off(result: Race, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from hasten.race import commands

    console = Console(width=80, file=io.StringIO())
    monkeypatch.setattr(commands, "console", console)
    console.print(commands.ranking(result))
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert all(number(standing.median) in shown for standing in result.standings)
    assert "…" not in shown


def test_standings_time_the_target_in_oracle_calls(result: Race) -> None:
    for standing in result.standings:
        calls = result.plan.paces[standing.label].calls
        assert calls is not None
        if standing.steps_to_target is None:
            assert standing.calls_to_target is None
        else:
            assert standing.calls_to_target == pytest.approx(calls * standing.steps_to_target)


def test_a_race_on_disk_keeps_bounds_and_oracle_calls(result: Race) -> None:
    again = load(result.folder)
    assert again.plan == result.plan
    assert [run.points for run in again.runs] == [run.points for run in result.runs]


def test_other_races_count_no_oracle_calls(small_race: Small) -> None:
    other = small_race("SGD", seeds=1)
    assert not other.plan.counted
    assert other.plan.length == "30 steps"
    assert other.plan.bounds == {}
    assert {p.oracle_calls for p in other.runs[0].points} == {None}
    assert other.standings[0].calls_to_target is None


def test_importance_sampling_races_too(small_race: Small) -> None:
    label = "SubspaceNesterov(sketch='ImportanceCoordinates')"
    result = small_race(f"{label},SubspaceNesterov(sketch='Identity')", task="convex/quadratic-inverse-square",
                        steps=5, evaluations=5, seeds=1)  # fmt: skip
    assert result.plan.steps_of(label) == 5 * 256
    sampled, full = (run.final_loss for run in result.runs)
    assert sampled < full
    assert result.plan.bounds[label][-1] >= sampled


def test_settings_that_leave_the_formula_have_no_bound() -> None:
    problem = Quadratic.named("inverse")
    for name in ("SubspaceNesterov", "SubspaceGradientDescent"):
        formula = by_formula(name, {"rank": 8}, problem)
        assert formula is not None
        assert bound(name, {**formula, "rank": 8}, problem) is not None
        for change in ({"smoothness": 0.5}, {"lr": 2.0}, {"rank": 4}):
            assert bound(name, {**formula, "rank": 8, **change}, problem) is None
    # Its short step is not 1/ℓ, so the bound of plain descent is not its own.
    options = {"sketch": "ImportanceCoordinates"}
    formula = by_formula("SubspaceGradientDescent", options, problem)
    assert formula is not None
    assert bound("SubspaceGradientDescent", {**formula, **options}, problem) is None
    assert by_formula("AdamW", {}, problem) is None


def test_formulas_by_hand() -> None:
    problem = Quadratic([4.0, 1.0], rotate=False)
    assert by_formula("SGD", {}, problem) == {"lr": 0.25}
    assert by_formula("Nesterov", {}, problem) == {"lr": 0.25, "momentum": pytest.approx(1 / 3)}
    # Haar, d = 2, r = 1: E[WLW] = 2 (2L + tr L)/4, ν = 2.
    assert by_formula("SubspaceNesterov", {"sketch": "Haar", "rank": 1}, problem) == {
        "smoothness": pytest.approx(6.5),
        "strong_convexity": 1.0,
    }


def test_every_convex_task_names_who_fits_it() -> None:
    tasks = [source for name, source in TASKS.items() if name.startswith("convex/")]
    assert len(tasks) >= 10
    for source in tasks:
        problem = source.build(0).problem
        assert problem is not None
        assert math.isclose(source.build(1).evaluate(), problem.gap)
        ranks = [int(r) for e in source.entrants for r in re.findall(r"rank=(\d+)", e)]
        assert ranks
        assert max(ranks) < problem.dimension / 2


@pytest.mark.parametrize(
    ("optimizers", "message"),
    [
        ("SubspaceNesterov(sketch='Har', rank=4)", "unknown sketch 'Har': did you mean 'Haar'?"),
        ("SubspaceNesterov(rank=300)", "rank = 300 is not allowed in dimension 256"),
        ("SubspaceNesterov(sketch='Haar', rank=0)", "rank = 0"),
        ("SubspaceNesterov(rank=4, smoothness=-1.0)", "smoothness = -1.0"),
    ],
)
def test_mistakes_are_one_line(small_race: Small, tmp_path: Path, optimizers: str, message: str) -> None:
    with pytest.raises(RaceError, match=re.escape(message)) as caught:
        small_race(optimizers, task="convex/quadratic-inverse")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_sketches_that_need_a_curvature_say_so() -> None:
    with pytest.raises(RaceError, match="needs a task whose curvature is known"):
        named_sketch({"sketch": "ImportanceCoordinates"})
    with pytest.raises(RaceError, match="unknown sketch 'Sketch'"):
        named_sketch({"sketch": "Sketch"})
