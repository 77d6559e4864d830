"""The claims' machinery, and each claim in quick mode."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

import hasten
from benchmarks.claims import (
    estimated_constants,
    forward_fine_tuning,
    forward_memory,
    matrix_square_root,
    matrix_training,
    moved_digits,
    noise_dominated_least_squares,
    recursions,
    simplified_ademamix,
    spectral_radii,
    subspace_expectations,
    subspace_oracle_calls,
    table,
    thin_network_bytes,
)
from benchmarks.claims.claim import Check, Claim, Table
from hasten.problems.least_squares import StreamingLeastSquares


def claim_of(*holds: bool) -> Claim:
    checks = [Check(f"check {i}", "base", "< 1", "0.5", h) for i, h in enumerate(holds)]
    return Claim("name", "Title", "source", "problem", checks, [Table("t", ["a"], [["1"]])])


def test_verdict_counts_the_checks() -> None:
    assert claim_of(True, True).verdict == "reproduced"
    assert claim_of(True, False).verdict == "reproduced in part"
    assert claim_of(False).verdict == "not reproduced"


def test_results_and_index_are_written(tmp_path: Path) -> None:
    claim_of(True, False).write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["name.json", "name.md"]
    page = table.index(table.records(tmp_path))
    assert "[Title](results/name.md) | **reproduced in part**" in page
    assert "0.5 (**fails**)" in page


def test_every_claim_has_a_committed_result_and_a_row_in_the_index() -> None:
    folder = Path(table.__file__).parent
    page = (folder / "README.md").read_text("utf-8")
    assert page == table.index(table.records(folder / "results"))
    for module in (
        estimated_constants,
        forward_fine_tuning,
        forward_memory,
        matrix_square_root,
        matrix_training,
        noise_dominated_least_squares,
        simplified_ademamix,
        spectral_radii,
        subspace_oracle_calls,
        thin_network_bytes,
    ):
        record = json.loads((folder / "results" / f"{module.NAME}.json").read_text("utf-8"))
        assert not record["quick"]
        assert record["title"] in page


@pytest.mark.parametrize("sketch", ["coordinate", "Haar"])
def test_noise_constants_are_the_second_moments_of_the_sketch(sketch: str) -> None:
    d, r = 5, 2
    rng = np.random.default_rng(0)
    v = rng.standard_normal(d)
    if sketch == "coordinate":
        masks = [np.isin(range(d), kept) for kept in itertools.combinations(range(d), r)]
        squares = np.mean([(d / r * mask * v) ** 2 for mask in masks], axis=0)
        tolerance = 1e-12
    else:
        frames = np.linalg.qr(rng.standard_normal((400_000, d, r)))[0]
        seen = d / r * np.einsum("nir,njr,j->ni", frames, frames, v)
        squares, tolerance = (seen**2).mean(0), 0.02
    c1, c2 = spectral_radii.noise_constants(sketch, d, r)
    np.testing.assert_allclose(squares, c1 * v**2 + c2 * (v**2).sum(), rtol=tolerance)
    assert squares.sum() == pytest.approx(d / r * (v**2).sum(), rel=tolerance)


def test_moment_map_propagates_second_moments() -> None:
    """Against the exact average over all masks and over a two-point law of (y, m)."""
    d, r, triple = 4, 2, (0.7, 0.05, 0.2)
    eigenvalues = np.array([1.0, 0.5, 0.2, 0.1])
    beta, a, b = triple
    rng = np.random.default_rng(1)
    states = [(rng.standard_normal(d), rng.standard_normal(d)) for _ in range(2)]
    masks = [np.isin(range(d), kept) for kept in itertools.combinations(range(d), r)]

    def moments(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        return np.concatenate(
            [
                np.mean([f(y, m) for y, m in pairs], axis=0)
                for f in (lambda y, m: y * y, lambda y, m: y * m, lambda y, m: m * m)
            ]
        )

    after = []
    for (y, m), mask in itertools.product(states, masks):
        g = d / r * mask * eigenvalues * y
        m_next = beta * m + g
        after.append((y - a * m_next - b * g, m_next))
    constants = spectral_radii.noise_constants("coordinate", d, r)
    predicted = spectral_radii.moment_map(eigenvalues, triple, constants) @ moments(states)
    np.testing.assert_allclose(moments(after), predicted, rtol=1e-12)


@pytest.mark.parametrize("row", spectral_radii.ROWS, ids=str)
def test_spectral_radii(row: spectral_radii.Row) -> None:
    for method, value in spectral_radii.radii(row).items():
        assert value == pytest.approx(row.expected[method], abs=1e-6)


def test_canonical_degenerates_to_sgd_without_room_for_acceleration() -> None:
    problem = StreamingLeastSquares(20, 1e3, one_hot=True)
    setting = recursions.canonical(problem)
    assert setting.momentum_weight == pytest.approx(0.0, abs=1e-15)
    assert setting.gradient_weight == pytest.approx(1 / problem.r_squared)


def test_tuning_takes_the_least_geometric_mean_and_never_a_divergence() -> None:
    risks = torch.tensor([[[1.0, 0.1, 0.01], [1.0, 1.0, float("nan")]]])
    assert recursions.tune(risks).tolist() == [1]


def test_tail_average_is_the_mean_of_the_second_half() -> None:
    problem = StreamingLeastSquares(3, 10.0)
    tail = recursions.TailAverage(problem, [4, 7])
    values = {}
    for step in range(1, 8):
        tail.add(step, torch.full((3,), float(step)))
        if step in (4, 7):
            values[step] = float(tail.mean(step)[0])
    assert values == {4: 3.5, 7: 5.5}


def test_state_floats_agree_with_the_description() -> None:
    for optimizer_class in (hasten.AdamW, hasten.AdEMAMix, hasten.SimplifiedAdEMAMix):
        w = torch.nn.Parameter(torch.ones(3, 2))
        optimizer = optimizer_class([w])
        w.grad = torch.ones_like(w)
        optimizer.step()
        described = hasten.describe(optimizer).floats_per_parameter
        assert simplified_ademamix.state_floats(optimizer) == described


def test_a_row_reads_off_iterations_speed_up_and_tightness() -> None:
    block = subspace_expectations.blocks(quick=True)[0]
    baseline, sketched = (
        subspace_oracle_calls.Run(block, row, [10, 20, 30], [0.5, found, 0.001])
        for row, found in zip(block.rows[:2], (0.009, 0.02), strict=True)
    )
    assert (baseline.iterations(0.01), sketched.iterations(0.01)) == (20, 30)
    assert baseline.iterations(1e-9) is None
    r = sketched.prediction.rank
    assert subspace_oracle_calls.speed_ups(sketched, baseline) == [pytest.approx(256 * 20 / (r * 30))]
    # 2CR²/(k+1)² with C = 1
    bound = [2 * block.problem.distance**2 / (k + 1) ** 2 for k in (10, 20, 30)]
    ratios = [gap * block.problem.gap / b for gap, b in zip(baseline.gaps, bound, strict=True)]
    assert baseline.tightness == pytest.approx(max(ratios), rel=1e-12)
    assert not baseline.agrees  # 41 expected
    assert baseline.deviation == pytest.approx(21 / 41)


def test_a_rotated_problem_keeps_start_minimiser_and_spectrum() -> None:
    block = next(b for b in subspace_expectations.blocks(quick=False) if b.title == "i⁻², d = 256")
    row = next(row for row in block.rows if row.turned is not None)
    assert row.turned.gap == pytest.approx(block.problem.gap, rel=1e-12)
    assert row.turned.distance == pytest.approx(block.problem.distance, rel=1e-12)
    assert row.sketch.expected_smoothness(row.turned.curvature) == pytest.approx(1.153, rel=2e-2)


@pytest.mark.slow
def test_subspace_oracle_calls_in_quick_mode(tmp_path: Path) -> None:
    claim = subspace_oracle_calls.run(quick=True, folder=tmp_path)
    claim.write(tmp_path)
    assert claim.quick
    assert (tmp_path / f"{claim.name}.png").stat().st_size > 10_000
    assert all(check.holds for check in claim.checks), claim.checks


@pytest.mark.slow
@pytest.mark.parametrize("module", [noise_dominated_least_squares, spectral_radii, simplified_ademamix])
def test_claim_in_quick_mode(module: object, tmp_path: Path) -> None:
    claim = module.run(quick=True, folder=tmp_path)
    claim.write(tmp_path)
    assert claim.quick
    assert (tmp_path / f"{claim.name}.md").read_text("utf-8").startswith(f"# {claim.title}")
    exact = [c for c in claim.checks if "nats" not in c.baseline]
    assert all(check.holds for check in exact), exact


@pytest.mark.slow
def test_estimated_constants_in_quick_mode(tmp_path: Path) -> None:
    claim = estimated_constants.run(quick=True, folder=tmp_path)
    assert claim.quick
    assert claim.checks[0].holds, claim.checks[0]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
def test_a_peak_is_what_was_held_for_a_moment() -> None:
    forward_memory.known_allocation()  # the pages of torch's own code
    assert forward_memory.known_allocation() == pytest.approx(forward_memory.KNOWN, rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
def test_forward_memory_in_quick_mode(tmp_path: Path) -> None:
    claim = forward_memory.run(quick=True, folder=tmp_path)
    claim.write(tmp_path)
    assert claim.quick
    assert (tmp_path / f"{claim.name}.png").stat().st_size > 10_000
    assert claim.checks[0].holds, claim.checks[0]  # so small a model is mostly a block of attention's scores


def test_mezo_follows_the_derivative_along_its_direction() -> None:
    model = torch.nn.Linear(3, 2).double()
    before = [p.detach().clone() for p in model.parameters()]
    inputs = torch.randn(5, 3, dtype=torch.float64)

    def loss() -> torch.Tensor:
        return model(inputs).square().mean()

    gradients = torch.autograd.grad(loss(), list(model.parameters()))
    moved_digits.MeZO(model, lr=0.1, seed=4).step(loss)
    seeds = torch.Generator().manual_seed(4)
    z = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=seeds)))
    directions = [torch.randn(p.shape, generator=z).double() for p in before]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    for p, start, d in zip(model.parameters(), before, directions, strict=True):
        torch.testing.assert_close(p.detach(), start - 0.1 * slope * d, rtol=0, atol=1e-9)


def test_a_diverged_run_stays_infinite() -> None:
    task = moved_digits.moved_digits()
    mezo = next(m for m in moved_digits.methods() if m.name == moved_digits.MEZO)
    curve = forward_fine_tuning.tune(mezo, 1e3, 0, task, 2.0, 100)
    assert curve.losses == [float("inf")] * 3
    assert len(curve.accuracies) == len(curve.seconds) == 3


@pytest.mark.slow
def test_forward_fine_tuning_in_quick_mode(tmp_path: Path) -> None:
    claim = forward_fine_tuning.run(quick=True, folder=tmp_path)
    claim.write(tmp_path)
    assert claim.quick
    assert (tmp_path / f"{claim.name}.png").stat().st_size > 10_000
    assert claim.checks[0].holds, claim.checks[0]
