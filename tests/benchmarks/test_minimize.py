"""The benchmark of `minimize`: its counting, its judgement, its arithmetic, and a run at trial size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from benchmarks.minimize import contenders, measure, report, scaling, tasks
from benchmarks.minimize.__main__ import main
from benchmarks.minimize.contenders import OURS, REFERENCE, Contender
from benchmarks.minimize.counting import Counted, Exhausted
from benchmarks.minimize.measure import Row
from benchmarks.minimize.tasks import Task


def parabola(**changes: object) -> Task:
    facts = {
        "name": "parabola",
        "group": "collection",
        "value": lambda x: (torch.tensor([1.0, 10.0]) * x.square()).sum() + 1,
        "start": torch.ones(2, dtype=torch.float64),
        "targets": (1.0,),
    }
    return Task(**(facts | changes))


def row(task: str, contender: str, evaluations: int, solved: bool = True, **changes: object) -> Row:
    facts = {"value": 0.0, "excess": 0.0, "to_target": evaluations, "seconds": 0.1 * evaluations}
    return Row(task, "collection", contender, solved, evaluations=evaluations, **(facts | changes))


def test_gradients_and_curvature_reach_numpy() -> None:
    counted = Counted(parabola())
    value, gradient = counted.value_and_gradient(np.array([1.0, 2.0]))
    assert value == 42.0
    np.testing.assert_allclose(gradient, [2.0, 40.0])
    np.testing.assert_allclose(counted.hessian(np.zeros(2)), [[2, 0], [0, 20]])
    np.testing.assert_allclose(counted.hessian_product(np.zeros(2), np.array([1.0, 1.0])[::-1]), [2, 20])
    assert (counted.evaluations, counted.products) == (1, 3)


def test_whoever_goes_on_too_long_is_stopped() -> None:
    counted = Counted(parabola(), most_evaluations=2)
    for _ in range(2):
        counted.value(torch.zeros(2))
    with pytest.raises(Exhausted, match="2 evaluations"):
        counted.value(torch.zeros(2))
    with pytest.raises(Exhausted, match="out of time"):
        Counted(parabola(), seconds=-1.0).value(torch.zeros(2))


def test_solved_is_relative_to_the_way_to_go_and_to_the_minimum() -> None:
    task = parabola(targets=(100.0, 3.0))
    assert task.tolerance(3.0, first=3.0 + 1e-4) == pytest.approx(1e-11)
    assert task.tolerance(100.0, first=1e9) == pytest.approx(1e-5)
    assert task.reached(100.0 + 0.9e-5, 1e9)
    assert task.reached(3.0 + 0.9e-7 * 3, 1e9)
    assert not task.reached(100.0 + 1.1e-5, 1e9)
    assert not task.reached(50.0, 1e9)
    assert not task.reached(math.nan, 1e9)


def test_evaluations_to_the_target_are_counted_from_the_values() -> None:
    counted = Counted(parabola())
    for point in ([1.0, 1.0], [0.5, 0.0], [1e-5, 0.0], [0.0, 0.0]):
        counted.value(torch.tensor(point))
    assert counted.evaluations_to_target() == 3
    assert Counted(parabola()).evaluations_to_target() is None


def test_tasks_have_finite_starts_that_do_not_solve_them() -> None:
    found = list(tasks.collection())
    names = [task.name for task in found]
    assert len(names) == len(set(names)) > 100
    assert "gulf ×10" not in names  # its solution
    for task in found:
        value, gradient = task.first()
        assert math.isfinite(value), task.name
        assert bool(gradient.isfinite().all()), task.name
        assert not task.reached(value, value), task.name
        assert not math.isnan(task.targets[0]), task.name
        assert task.gradient_tolerance <= 1e-6


def test_regressions_know_their_minimum() -> None:
    pytest.importorskip("sklearn")
    (task,) = tasks.regressions(quick=True)
    assert task.first()[0] == pytest.approx(math.log(2))
    assert 0 < task.targets[0] < 0.2


@pytest.mark.parametrize("contender", contenders.all_contenders(), ids=lambda contender: contender.name)
def test_every_contender_solves_a_parabola(contender: Contender) -> None:
    found = measure.measured(parabola(), contender, repeats=2)
    assert found.solved, found
    assert 0 < found.to_target <= found.evaluations
    assert len(found.all_seconds) == 2
    assert found.excess == pytest.approx(0, abs=1e-7)


def test_a_failure_is_a_row_that_says_so() -> None:
    def broken(counted: Counted, gtol: float) -> torch.Tensor:
        raise RuntimeError("no luck\nat all")

    def endless(counted: Counted, gtol: float) -> torch.Tensor:
        while True:
            counted.value(torch.zeros(2))

    failed = measure.measured(parabola(), Contender("x", "y", broken), 1)
    assert (failed.solved, failed.failure) == (False, "RuntimeError: no luck")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "MOST_EVALUATIONS", 10)
        failed = measure.measured(parabola(), Contender("x", "y", endless), 1)
    # It was there after one evaluation, but returned nothing.
    assert (failed.solved, failed.failure, failed.evaluations, failed.to_target) == (
        False,
        "10 evaluations",
        10,
        1,
    )


def test_ratios_are_over_the_tasks_both_solve() -> None:
    rows = [
        row("a", OURS, 20), row("a", REFERENCE, 10),
        row("b", OURS, 10), row("b", REFERENCE, 20),
        row("c", OURS, 40), row("c", REFERENCE, 10),
        row("d", OURS, 1), row("d", REFERENCE, 100, solved=False),
    ]  # fmt: skip
    found, common = report.ratio(rows, OURS, lambda r: r.evaluations)
    assert (found, common) == (pytest.approx(4 ** (1 / 3)), 3)
    better, worse = report.verdicts(rows)
    assert better.startswith("Reached: hasten l-bfgs solves 4")
    assert worse.startswith("**Not reached**: 1.587 ×")


def test_fewer_solved_is_not_reached() -> None:
    rows = [row("a", OURS, 10, solved=False), row("a", REFERENCE, 10)]
    rows += [row("b", OURS, 10), row("b", REFERENCE, 10)]
    fewer, equal = report.verdicts(rows)
    assert fewer.startswith("**Not reached**")
    assert equal.startswith("Reached: 1.000")
    assert [line[0] for line in report.differences(rows).rows] == ["a"]


def test_profile() -> None:
    rows = [
        row("a", "x", 10), row("a", "y", 30),
        row("b", "x", 10, solved=False), row("b", "y", 5),
        row("c", "x", 2), row("c", "y", 1, solved=False),
    ]  # fmt: skip
    curves = report.profile(rows, ["x", "y"], lambda r: r.evaluations)
    assert curves == {"x": [1.0, 1.0], "y": [1.0, 3.0]}
    # Who takes no part does not set the best.
    assert report.profile(rows, ["y"], lambda r: r.evaluations) == {"y": [1.0, 1.0]}


def test_patterns() -> None:
    assert [c.name for c in contenders.selected([OURS])] == [OURS]
    assert {c.library for c in contenders.selected(["scipy*"])} == {"scipy"}
    with pytest.raises(ValueError, match="'scipz' names none of"):
        contenders.selected(["scipz"])


def test_scaling_page_judges_from_a_hundred_thousand_up() -> None:
    def timing(d: int, ratio: float) -> scaling.Timing:
        return scaling.Timing("t", d, OURS, 10, 0.0, [ratio, ratio], [ratio, ratio])

    slow_only_when_small = report.scaling_page([timing(1000, 3.0), timing(10**5, 0.9)], "c", quick=False)
    assert "- Reached (to reach" in slow_only_when_small
    slow = report.scaling_page([timing(10**5, 1.2), timing(10**6, 0.9)], "c", quick=False)
    assert "**Not reached**: slower on t, d = 100,000 (1.20)" in slow
    assert "to reach" not in report.scaling_page([timing(1000, 0.5)], "c", quick=True)


def test_scaling_functions() -> None:
    quadratic = scaling.logarithmic_spectrum(5)
    x = torch.ones(5, dtype=torch.float64)
    assert float(quadratic(x)) == 0
    curvature = torch.autograd.functional.hessian(quadratic, x).diagonal()
    torch.testing.assert_close(curvature, torch.logspace(0, -3, 5, dtype=torch.float64))


@pytest.mark.parametrize(("d", "others"), [(10**5, {"torchmin"}), (10**6, set())])
def test_the_other_library_stops_where_its_memory_would_not_fit(d: int, others: set[str]) -> None:
    ours, reference, *rest = scaling.taking_part(d)
    assert (ours.name, reference.name) == (OURS, REFERENCE)
    assert {c.library for c in rest} <= others


def test_what_is_not_finite_is_null() -> None:
    (record,) = report.records([Row("t", "g", "c")])
    assert record["value"] is None
    assert json.loads(json.dumps(record, allow_nan=False))["evaluations"] == 0


def test_unknown_contenders_end_the_command_with_one_line() -> None:
    with pytest.raises(SystemExit, match="--methods: 'scipz' names none of"):
        main(["--methods", "scipz"])


@pytest.mark.slow
def test_run_in_quick_mode(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("rich")
    threads = str(torch.get_num_threads())
    main(["--quick", "--threads", threads, "--methods", f"{OURS},{REFERENCE}", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {
        "minimize-problems.json", "minimize-problems.md", "minimize-problems.png",
        "minimize-scaling.json", "minimize-scaling.md",
    }  # fmt: skip
    record = json.loads((tmp_path / "minimize-problems.json").read_text("utf-8"))
    assert record["quick"]
    assert all(r["solved"] for r in record["rows"] if r["contender"] == OURS)
    page = (tmp_path / "minimize-problems.md").read_text("utf-8")
    assert page.startswith("# Minimisers on small problems\n\nQuick mode")
