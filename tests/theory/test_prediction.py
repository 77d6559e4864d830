"""Predictions and advice, against published tables and against what must hold for every spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.problems import Quadratic, RidgeLogistic, RidgeSoftmax, spectrum
from hasten.sketches import (
    BalancedCountSketch,
    Curvature,
    Haar,
    Identity,
    ImportanceCoordinates,
    StridedSigns,
)
from hasten.theory import Accelerated, ScheduleC, advise, clusters, predict

D = 10_000
LARGE = {
    "all equal": lambda: spectrum("equal", D),
    "Wishart": lambda: Curvature(D, 1.0, 2508.0),
    "i^-1/2": lambda: spectrum("inverse-root", D),
    "0.99^i": lambda: spectrum("slow-geometric", D),
    "1/i": lambda: spectrum("inverse", D),
    "one 1, rest 1e-4": lambda: spectrum("spiked", D),
    "i^-2": lambda: spectrum("inverse-square", D),
}


@pytest.mark.parametrize(
    ("name", "rank", "speed_up", "inflation"),
    [
        (name, rank, speed_up, inflation)
        for name, rho, row in (
            ("all equal", D, [(1.00, 10000), (1.00, 625), (1.00, 39), (1.00, 1)]),
            ("Wishart", 2508, [(2.00, 5010), (1.99, 314), (1.92, 20.3), (1.51, 2.6)]),
            ("i^-1/2", 198, [(7.06, 1416), (6.82, 91.7), (4.71, 8.3), (5.03, 10.0)]),
            ("0.99^i", 100, [(9.90, 1010), (9.25, 67.6), (5.31, 7.4), (7.07, 14.1)]),
            ("1/i", 10, [(29.1, 343), (19.3, 32.3), (6.13, 6.4), (21.9, 45.6)]),
            ("one 1, rest 1e-4", 2, [(50.0, 200), (22.9, 27.2), (6.21, 6.3), (44.7, 112)]),
            ("i^-2", 2, [(52.4, 191), (23.2, 27.0), (6.22, 6.3), (46.4, 108)]),
        )
        for rank, (speed_up, inflation) in zip((1, 16, 256, rho), row, strict=True)
    ],
)
def test_published_speed_ups_of_haar_in_ten_thousand_dimensions(
    name: str, rank: int, speed_up: float, inflation: float
) -> None:
    prediction = predict(LARGE[name](), Haar(rank=rank), 1e-4)
    assert prediction.speed_up == pytest.approx(speed_up, rel=3e-3)
    # Printed to two or three digits.
    assert prediction.inflation == pytest.approx(inflation, rel=1e-2, abs=0.06)


@pytest.mark.parametrize(
    ("name", "speed_up"),
    [
        ("all equal", 1.0),
        ("i^-1/2", 7.5),
        ("0.99^i", 50),
        ("1/i", 50),
        ("one 1, rest 1e-4", 99),
        ("i^-2", 1022),
    ],
)
def test_published_speed_ups_of_coordinate_importance(name: str, speed_up: float) -> None:
    curvature = Curvature.of(LARGE[name]())
    assert predict(curvature, ImportanceCoordinates(curvature), 1e-4).speed_up == pytest.approx(
        speed_up, rel=1e-2
    )


@pytest.mark.parametrize(
    ("name", "sketch", "speed_up"),
    [
        ("inverse", Haar(rank=1), 5.64),
        ("inverse", BalancedCountSketch(rank=4), 5.31),
        ("inverse", BalancedCountSketch(rank=16), 3.51),
        ("inverse-square", Haar(rank=1), 8.42),
        ("inverse-square", Haar(rank=16), 3.72),
        ("inverse-square", BalancedCountSketch(rank=1), 12.49),
        ("inverse-square", BalancedCountSketch(rank=4), 7.43),
        ("inverse-square", BalancedCountSketch(rank=16), 3.93),
        ("inverse-square", BalancedCountSketch(rank=64), 1.99),
        ("inverse-square", StridedSigns(rank=16), 3.99),
        ("geometric", Haar(rank=1), 4.64),
        ("geometric", BalancedCountSketch(rank=16), 3.23),
        ("clustered", BalancedCountSketch(rank=4), 5.20),
        ("equal", Haar(rank=1), 1.00),
        ("logspace", Haar(rank=1), 2.92),
        ("logspace", BalancedCountSketch(rank=8), 2.73),
        ("sharply-clustered", BalancedCountSketch(rank=8), 4.84),
        ("halves", Haar(rank=8), 1.39),
    ],
    ids=str,
)
def test_published_speed_ups_on_quadratics(name: str, sketch: object, speed_up: float) -> None:
    found = predict(Quadratic.named(name, 256), sketch, 1e-4).speed_up  # type: ignore[arg-type]  # a sketch
    assert found == pytest.approx(speed_up, abs=6e-3)


def test_published_speed_ups_on_data() -> None:
    pytest.importorskip("sklearn", reason="the data are scikit-learn's")
    cancer, digits = RidgeLogistic.breast_cancer(), RidgeSoftmax.digits()
    for problem, sketch, expected_smoothness, speed_up in (
        (cancer, Haar(rank=1), 13.54963, 2.76),
        (cancer, Haar(rank=4), 5.62275, 2.14),
        (cancer, BalancedCountSketch(rank=8), 4.34725, 1.71),
        (digits, Haar(rank=4), 23.4396, 5.97),
        (digits, BalancedCountSketch(rank=4), 23.3939, 5.98),
        (digits, BalancedCountSketch(rank=16), 9.68426, 4.65),
        (digits, BalancedCountSketch(rank=64), 6.25687, 2.89),
    ):
        prediction = predict(problem, sketch, 1e-4)  # type: ignore[arg-type]  # mypy joins the sketches to object
        assert prediction.expected_smoothness == pytest.approx(expected_smoothness, rel=1e-5)
        assert prediction.speed_up == pytest.approx(speed_up, abs=6e-3)


eigenvalues = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=12).filter(lambda v: max(v) > 1e-3)


@given(values=eigenvalues, share=st.floats(0.0, 1.0))
@settings(max_examples=200, deadline=None)
def test_haar_never_loses_in_the_bound(values: list[float], share: float) -> None:
    L = torch.tensor(values, dtype=torch.float64)
    d = len(values)
    rank = 1 + round(share * (d - 1))
    S = predict(L, Haar(rank=rank), 0.1).speed_up
    spread = 1 - float(L.mean() / L.max())
    assert S >= 1 - 1e-12
    if rank == d or spread == 0:
        assert abs(S - 1) <= 1e-12
    elif spread > 1e-6:
        assert S > 1 + 1e-9


@given(values=eigenvalues, accuracy=st.floats(1e-8, 0.5), mean=st.floats(0.0, 1.0))
@settings(max_examples=100, deadline=None)
def test_a_prediction_agrees_with_itself(values: list[float], accuracy: float, mean: float) -> None:
    L = torch.tensor(values, dtype=torch.float64)
    mu = mean * float(L.min())
    p = predict(L, Haar(rank=1), accuracy, strong_convexity=mu)
    largest = float(L.max())
    bound = Accelerated(p.constant, 1.0, mu)
    assert p.iterations == bound.iterations(accuracy * largest / 2)
    assert p.full_iterations == Accelerated(largest, 1.0, mu).iterations(accuracy * largest / 2)
    assert (p.oracle_calls, p.full_oracle_calls) == (p.iterations, len(values) * p.full_iterations)
    assert (p.bytes, p.full_bytes) == (4 * p.oracle_calls, 4 * p.full_oracle_calls)
    assert p.speed_up == pytest.approx(len(values) / p.inflation)
    assert p.recommendation in str(p)


def test_counts_follow_the_formula_of_the_convex_case() -> None:
    """√(2CR²/ε) − 1 rounded up, and r or d oracle calls a step."""
    problem = Quadratic.named("inverse-square", 256)
    p = predict(problem, BalancedCountSketch(rank=16), 1e-2, strong_convexity=0.0)
    epsilon = 1e-2 * 0.11217919305111
    for count, constant in ((p.iterations, 16 * p.expected_smoothness), (p.full_iterations, 1.0)):
        assert count == math.ceil(math.sqrt(2 * constant * 225.00084617483 / epsilon)) - 1
        assert count == ScheduleC(constant, problem.distance).iterations(epsilon)
    assert p.full_oracle_calls / p.oracle_calls == pytest.approx(p.speed_up, rel=5e-3)


def test_the_full_method_is_a_sketch_of_full_rank() -> None:
    L = spectrum("inverse", 32)
    full, identity = predict(L, None, 1e-3), predict(L, Identity(), 1e-3)
    assert full.speed_up == identity.speed_up == 1.0
    assert full.iterations == identity.iterations == full.full_iterations
    assert full.oracle_calls == full.full_oracle_calls == 32 * full.iterations


@pytest.mark.parametrize(
    ("smoothness", "cost", "better", "words"),
    [
        (lambda: spectrum("inverse-square", 256), "forward", "subspace", "fewer directional derivatives"),
        (lambda: spectrum("inverse-square", 256), "bytes", "subspace", "fewer bytes sent"),
        (lambda: spectrum("inverse-square", 256), "reverse", "full", "Use the full method with reverse mode"),
        (
            lambda: spectrum("equal", 256),
            "forward",
            "full",
            "BalancedCountSketch of rank 4 would save next to nothing",
        ),
        (lambda: spectrum("clustered", 256), "forward", "either", "falls into 2 narrow clusters"),
        (
            lambda: Curvature(256, 1.0, 6.52),
            "forward",
            "subspace",
            "Use BalancedCountSketch of rank 4: about",
        ),
    ],
)
def test_the_better_choice_in_words(
    smoothness: Callable[[], torch.Tensor | Curvature], cost: str, better: str, words: str
) -> None:
    p = predict(smoothness(), BalancedCountSketch(rank=4), 1e-4, cost=cost)  # type: ignore[arg-type]  # one of them
    assert p.better == better
    assert words in p.recommendation
    assert p.gain == (1 / p.inflation if cost == "reverse" else p.speed_up)


def test_without_momentum_where_its_guarantee_is_better() -> None:
    L = torch.cat([torch.ones(4), torch.linspace(0.6, 0.2, 60)])
    p = predict(L, Haar(rank=1), 0.5, strong_convexity=0.2)
    assert p.descent_iterations is not None
    assert p.descent_iterations < p.iterations
    assert "plain subspace gradient descent has the better guarantee" in p.recommendation


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([1.0] * 64, 1),
        ([1.0] * 4 + [0.01] * 60, 2),
        ([1.0] * 4 + [0.0] * 60, 1),
        ([1.0, 1.05, 1.09] + [0.5] * 30, 2),
        ([1.0, 1.2] + [0.5] * 2, None),
        ([0.9**k for k in range(64)], None),
        ([1 / k for k in range(1, 257)], None),
    ],
)
def test_clusters(values: list[float], count: int | None) -> None:
    diagonal = torch.tensor(values, dtype=torch.float64)
    assert clusters(Curvature.of(diagonal)) == count
    rotation = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    rotated = rotation @ torch.diag(diagonal) @ rotation.mT
    assert clusters(Curvature.of((rotated + rotated.mT) / 2)) == count
    assert clusters(Curvature(len(values), float(diagonal.max()), float(diagonal.sum()))) is None


@pytest.mark.parametrize("name", ["inverse", "inverse-square", "geometric"])
def test_advice_picks_the_effective_rank(name: str) -> None:
    L = spectrum(name, 256)
    advice = advise(L, 1e-4)
    rho = float(L.sum() / L.max())
    assert advice.pick.rank == round(rho)
    assert advice.predictions[0].sketch == "full"
    assert advice.cheapest.oracle_calls == min(p.oracle_calls for p in advice.predictions)
    assert advice.sentence.startswith(f"Use {advice.pick.sketch} of rank {advice.pick.rank}: about")
    # The rule's price: at most √2 in oracle calls against the balanced sketch at r = 1.
    one = next(p for p in advice.predictions if p.sketch == "BalancedCountSketch" and p.rank == 1)
    assert one.speed_up <= math.sqrt(2) * advice.pick.speed_up * 1.02
    assert one.inflation > advice.pick.inflation


@pytest.mark.parametrize(("name", "cost"), [("equal", "forward"), ("inverse-square", "reverse")])
def test_advice_against_sketches(name: str, cost: str) -> None:
    advice = advise(spectrum(name, 64), 1e-4, cost=cost)  # type: ignore[arg-type]  # one of them
    assert advice.pick.sketch == "full"
    assert advice.sentence.startswith("Use the full method")


def test_the_full_method_may_be_the_cheapest() -> None:
    assert advise(torch.ones(256), 1e-4, strong_convexity=1.0).cheapest.sketch == "full"


def test_advice_on_sketches_of_ones_own() -> None:
    chosen = [Haar(rank=2), Haar(rank=30)]
    advice = advise(spectrum("inverse", 64), 1e-2, sketches=chosen)
    assert [p.rank for p in advice.predictions] == [64, 2, 30]
    assert advice.pick.rank == 2
    assert advise(torch.ones(1), 0.5).pick.sketch == "full"
    assert advise(torch.ones(1), 0.5, sketches=[]).sentence.startswith("This is the full method")


HALF = Curvature(10, 1.0, 5.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accuracy": 0.0}, "accuracy = 0.0 is not allowed; it must be between 0 and 1"),
        ({"accuracy": 1.0}, "accuracy = 1.0"),
        ({"strong_convexity": 0.6}, "strong_convexity = 0.6 .* trace/dimension = 0.5"),
        ({"strong_convexity": float("nan")}, "strong_convexity = nan"),
        ({"distance": 0.0}, "distance = 0.0"),
        ({"gap": 0.6}, "gap = 0.6 is not allowed; .* λ_max R²/2 = 0.5"),
        ({"gap": 0.01, "strong_convexity": 0.1}, "μR²/2 = 0.05"),
        ({"cost": "forwards"}, "cost = 'forwards'"),
        ({"sketch": Haar(rank=11)}, "rank = 11 is not allowed in dimension 10"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], message: str) -> None:
    defaults: dict[str, object] = {"problem": HALF, "sketch": Haar(rank=1), "accuracy": 0.1}
    with pytest.raises(ValueError, match=message):
        predict(**{**defaults, **arguments})  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits", Haar(rank=2), 0.1), "problem = 'digits' is not allowed"),
        ((torch.ones(8), Haar, 0.1), "sketch = .* is not allowed"),
        ((torch.ones(8), Haar(rank=2), "0.1"), "accuracy = '0.1' is not allowed"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_name(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        predict(*arguments)
