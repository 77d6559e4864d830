"""The claim on bytes between workers: its arithmetic, its ledger, and what is committed of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from benchmarks.claims import crew, link_speeds, thin_network_bytes
from benchmarks.claims.claim import RESULTS
from benchmarks.claims.link_speeds import Price
from benchmarks.claims.shared_softmax import Shared, problem
from benchmarks.claims.thin_network_bytes import Outcome, Race
from benchmarks.claims.thin_network_methods import SETTINGS, Method, quick_setting
from benchmarks.claims.trained import Cell
from hasten.race.entrants import parse_entrants
from hasten.race.hooks import parse_hooks
from hasten.race.tasks import find_task

FAST = Price("computes", 100, 1e-3, 1e6, 1)
THIN = Price("sends little", 200, 2e-3, 1e4, 1)


def test_time_is_computing_and_bits_over_the_link_and_latency() -> None:
    assert FAST.time(8e6) == pytest.approx(100 * (1e-3 + 1.0 + link_speeds.LATENCY))


def test_at_a_crossing_both_take_equally_long() -> None:
    speed = link_speeds.crossing(THIN, FAST)
    assert THIN.time(speed) == pytest.approx(FAST.time(speed), rel=1e-12)
    assert THIN.time(speed / 2) < FAST.time(speed / 2)
    assert link_speeds.crossing(FAST, dataclasses.replace(FAST, bytes=2e6)) == math.inf


prices = st.builds(
    Price,
    st.text(),
    st.integers(1, 10_000),
    st.floats(1e-6, 10),
    st.floats(0, 1e9),
    st.floats(0, 10),
)


@given(st.lists(prices, min_size=1, max_size=6))
def test_stretches_cover_all_speeds_with_the_fastest(several: list[Price]) -> None:
    stretches = link_speeds.best(several)
    assert stretches[0][0] == link_speeds.SLOWEST
    assert stretches[-1][1] == pytest.approx(link_speeds.FASTEST)
    for start, end, price in stretches:
        assert start <= end * (1 + 1e-12)
        middle = math.sqrt(start * end)
        # A method that is first between two neighbouring speeds alone is not seen.
        if end > 1.2 * start:
            assert price.time(middle) == pytest.approx(min(p.time(middle) for p in several), rel=1e-9)
    for (_, end, _), (start, _, _) in itertools.pairwise(stretches):
        assert start == end


def test_least_bytes_not_fewest_steps_are_chosen_and_only_at_the_target() -> None:
    setting = quick_setting()
    base, *_, local = setting.methods
    found = Race(
        setting,
        [
            Outcome(base, 30, [1.0, 1.2], 900.0),
            Outcome(local, 30, [1.0, 1.3], 10.0),
            Outcome(local, 60, [1.0, 1.1], 20.0),
            Outcome(local, 90, [0.9, 0.9], 30.0),
        ],
        {},
    )
    reached = found.reached(local)
    assert reached is not None
    assert (reached.steps, found.fewer(reached)) == (60, 45.0)
    assert found.least(local.kind) is reached
    assert found.reached(setting.methods[1]) is None
    assert found.least("PowerSGD") is None


def test_a_ledger_does_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.jsonl"
    cell = Cell("digits", 2, "AdamW", "none", 5, 0)

    def work(job: object, workers: object) -> crew.Found:
        raise AssertionError

    crew.Ledger(path)._keep("work", cell, crew._key("work", dataclasses.asdict(cell)), {"loss": math.inf})
    monkeypatch.setattr(crew, "Crew", None)  # nobody can be asked
    assert crew.Ledger(path).all(work, [cell]) == [{"loss": math.inf}]
    with pytest.raises(TypeError):
        crew.Ledger(path).all(work, [dataclasses.replace(cell, seed=1)])


def test_shared_rows_average_to_the_problem() -> None:
    whole = problem(4)
    assert len(whole.features) == 1796
    x = torch.randn(whole.dimension, generator=torch.Generator().manual_seed(0))
    values = []
    for rank in range(4):
        shared = Shared(whole, rank, 4)
        shared.x.data.copy_(x)
        values.append(float(shared().detach()))
    assert sum(values) / 4 == pytest.approx(float(whole.value(x.double())), rel=1e-12)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.task)
def test_methods_are_what_the_race_can_read(setting: thin_network_bytes.Setting) -> None:
    for method in setting.methods:
        parse_entrants(method.optimizer)
        (hook,) = parse_hooks(method.hook)
        assert hook.options.get("every", 1) == method.every
    assert len({method.name for method in setting.methods}) == len(setting.methods)


def sent_by_hand(method: Method, world: int, steps: int, shapes: list[torch.Size]) -> float:
    """Bytes of one worker, from the shapes alone."""
    (hook,) = parse_hooks(method.hook)
    ratio = hook.options.get("ratio", 1)
    numbers = sum(math.ceil(s.numel() / ratio) if len(s) > 1 else s.numel() for s in shapes)
    rounds = math.ceil(steps / method.every)
    verdict = 1 if method.every > 1 else 0  # whether all are finite
    return rounds * 4 * (numbers + verdict) * 2 * (world - 1) / world


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.task)
def test_committed_bytes_are_those_of_the_formula(setting: thin_network_bytes.Setting) -> None:
    lines = (RESULTS / f"{thin_network_bytes.NAME}.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    shapes = [p.shape for p in find_task(setting.task).build(0).model.parameters()]
    seen = 0
    for method in setting.methods:
        if method.hook.split("(")[0] not in ("none", "local", "subspace") or "SubspaceN" in method.optimizer:
            continue
        for row in rows:
            job = row["job"]
            same = row["work"] == "trained" and (job["task"], job["hook"]) == (setting.task, method.hook)
            if same and job["optimizer"] == method.optimizer:
                wanted = sent_by_hand(method, setting.world, job["steps"], shapes)
                assert row["found"]["sent"] == pytest.approx(wanted, rel=1e-12)
                seen += 1
    assert seen >= 4 * len(setting.seeds)


@pytest.mark.slow
def test_thin_network_bytes_in_quick_mode(tmp_path: Path) -> None:
    claim = thin_network_bytes.run(quick=True, folder=tmp_path)
    claim.write(tmp_path)
    assert claim.quick
    assert (tmp_path / f"{claim.name}.png").stat().st_size > 10_000
    assert "fp32 all-reduce" in (tmp_path / f"{claim.name}.md").read_text("utf-8")
