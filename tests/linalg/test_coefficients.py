"""Quintics of orthogonalising iterations, against published tables and what makes them best."""

from __future__ import annotations

import math

import pytest
import torch

from hasten.linalg.coefficients import (
    CUSHION,
    MUON_PLUS,
    NS5,
    polar_express,
    range_of,
    shrunk,
    worst_error,
)

PUBLISHED = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
TRAINING = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def value(p: tuple[float, float, float], x: float) -> float:
    return p[0] * x + p[1] * x**3 + p[2] * x**5


def test_the_published_table() -> None:
    found = polar_express(8, cushion=CUSHION)
    assert found[:6] == tuple(pytest.approx(row, abs=1e-12) for row in PUBLISHED[:6])
    # The seventh interval is 2e-3 wide: there the published digits are round-off of a float64 solver, as two solvers
    # in float64 and one with 60 digits show (1.87500148084422 in place of 1.87500148085345). The eighth is its limit.
    assert found[6] == pytest.approx(PUBLISHED[6], abs=2e-11)
    assert found[7] == pytest.approx(PUBLISHED[7], abs=4e-9)
    assert polar_express(9)[8] == PUBLISHED[7]


def test_the_table_used_in_training() -> None:
    found = polar_express(5, safety=1.02, cushion=0.02)
    assert found == tuple(pytest.approx(row, abs=1e-12) for row in TRAINING)


def test_safety_afterwards_is_another_table() -> None:
    after = shrunk(polar_express(5, cushion=0.02), 1.02)
    assert after[0] == pytest.approx(TRAINING[0], abs=1e-12)
    assert after[1] != pytest.approx(TRAINING[1], abs=1e-3)
    assert after[-1] == polar_express(5, cushion=0.02)[-1]


@pytest.mark.parametrize("lower", [1e-3, 0.1, 0.6])
def test_errors_alternate_at_four_points(lower: float) -> None:
    """Which is what makes each quintic the best for its interval (Chebyshev)."""
    low, high = lower, 1.0
    for p in polar_express(5, lower, cushion=0.0):
        if high - low < 1e-2:
            break  # too narrow to be resolved in float64
        a, b, c = p
        inner = [math.sqrt((-3 * b + s * math.sqrt(9 * b * b - 20 * a * c)) / (10 * c)) for s in (-1, 1)]
        errors = [1 - value(p, x) for x in (low, *inner, high)]
        assert low < inner[0] < inner[1] < high
        assert errors == pytest.approx([errors[0], -errors[0], errors[0], -errors[0]], rel=1e-6, abs=1e-13)
        low, high = 1 - errors[0], 1 + errors[0]


def test_no_odd_quintic_nearby_is_better() -> None:
    generator = torch.Generator().manual_seed(0)
    (best,) = polar_express(1, 0.05, cushion=0.0)
    least = worst_error([best], 0.05)
    for _ in range(200):
        change = (1e-3 * torch.randn(3, generator=generator, dtype=torch.float64)).tolist()
        assert worst_error([tuple(x + d for x, d in zip(best, change, strict=True))], 0.05) > least


def test_the_last_quintics_tend_to_the_limit() -> None:
    assert polar_express(12)[-1] == (15 / 8, -10 / 8, 3 / 8)


def test_worst_errors_of_the_specification() -> None:
    """To its printed digits; Polar Express generated without safety and cushion."""
    express = [worst_error(polar_express(t, cushion=0.0)) for t in range(3, 8)]
    assert express[:4] == pytest.approx([0.860, 0.546, 0.113, 0.0009], abs=6e-4)
    assert express == sorted(express, reverse=True)
    assert [worst_error([NS5] * t) for t in range(1, 9)] == pytest.approx(
        [0.997, 0.988, 0.959, 0.860, 0.530, 0.318, 0.318, 0.318], abs=6e-4
    )
    longer = [MUON_PLUS[-t:] + MUON_PLUS[-1:] * (t - 5) for t in (3, 4, 5, 6, 8)]
    assert [worst_error(row) for row in longer] == pytest.approx(
        [0.970, 0.880, 0.525, 0.145, 0.021], abs=6e-4
    )
    assert range_of(shrunk(PUBLISHED, 1.01)[:4])[1] == pytest.approx(1.56, abs=6e-3), "rows cut off overshoot"


def test_the_range_is_that_of_a_fine_grid() -> None:
    for row in ([NS5] * 5, MUON_PLUS, polar_express(4, 4e-3), [(1.5, -0.5, 0.0)] * 3, [(0.5, 0.1, 0.0)]):
        x = torch.linspace(1e-3, 1, 200_001, dtype=torch.float64)
        for a, b, c in row:
            x = a * x + b * x**3 + c * x**5
        assert range_of(row) == pytest.approx((x.min().item(), x.max().item()), abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, r"steps = 0 is not allowed; it must be at least 1"),
        ({"steps": 5, "lower": 0.0}, r"lower = 0.0 is not allowed; it must be in \(0, 1\)"),
        ({"steps": 5, "lower": float("nan")}, "lower = nan"),
        ({"steps": 5, "safety": 0.9}, r"safety = 0.9 is not allowed; it must be in \[1, 2\)"),
        ({"steps": 5, "cushion": 1.0}, r"cushion = 1.0 is not allowed; it must be in \[0, 1\)"),
    ],
)
def test_what_is_not_allowed(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        polar_express(**arguments)  # type: ignore[arg-type]
