"""Convex problems with known constants: the constants are what they claim to be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import hessian, jvp, vmap

from hasten.problems import (
    CONVEX_PROBLEMS,
    SPECTRA,
    ConvexProblem,
    Quadratic,
    RidgeLeastSquares,
    RidgeLogistic,
    RidgeSoftmax,
    spectrum,
)
from hasten.problems.spectra import clustered, geometric, logspace, power

NAMES = [
    name
    for name in CONVEX_PROBLEMS
    if not name.startswith("quadratic") or name.split("-", 1)[1] in ("inverse-square", "clustered")
]


@pytest.fixture(scope="module")
def problems() -> dict[str, ConvexProblem]:
    pytest.importorskip("sklearn", reason="the data are scikit-learn's")
    return {name: CONVEX_PROBLEMS[name]() for name in NAMES}


def points(problem: ConvexProblem, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, problem.dimension, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_derivative_of_the_value(problems: dict[str, ConvexProblem], name: str) -> None:
    problem = problems[name]
    x = points(problem, 3, seed=0).requires_grad_()
    problem.value(x).sum().backward()
    torch.testing.assert_close(x.grad, problem.gradient(x.detach()), rtol=1e-12, atol=1e-13)
    # Under forward mode and vmap, as the oracles use it.
    tangent = points(problem, 1, seed=1)[0]
    forward = vmap(lambda point: jvp(problem.value, (point,), (tangent,))[1])(x.detach())
    torch.testing.assert_close(forward, problem.gradient(x.detach()) @ tangent, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_smoothness_and_strong_convexity_hold(problems: dict[str, ConvexProblem], name: str) -> None:
    """f(x) + ⟨∇f(x), y−x⟩ + (μ/2)‖y−x‖² ≤ f(y) ≤ f(x) + ⟨∇f(x), y−x⟩ + ½ (y−x)ᵀL(y−x), near and far."""
    problem = problems[name]
    curvature = problem.curvature
    assert curvature.diagonal is not None
    L = torch.diag(curvature.diagonal) if curvature.matrix is None else curvature.matrix
    for scale in (1e-2, 1.0, 10.0):
        x, y = points(problem, 20, seed=2), points(problem, 20, seed=3) * scale
        step = y - x
        linear = problem.value(x) + (problem.gradient(x) * step).sum(-1)
        above = linear + 0.5 * (step @ L * step).sum(-1)
        below = linear + 0.5 * problem.strong_convexity * step.square().sum(-1)
        slack = 1e-12 * above.abs().max()
        assert bool((below - slack <= problem.value(y)).all())
        assert bool((problem.value(y) <= above + slack).all())


@pytest.mark.parametrize("name", NAMES)
def test_the_minimiser_has_no_gradient(problems: dict[str, ConvexProblem], name: str) -> None:
    problem = problems[name]
    assert float(problem.gradient(problem.minimiser).norm()) <= 1e-13
    assert problem.minimum == float(problem.value(problem.minimiser))
    assert problem.gap > 0
    assert problem.distance == pytest.approx(float((problem.start - problem.minimiser).norm()))
    # ‖∇f‖²/(2λ_max) ≤ f − f* ≤ λ_max R²/2, f* being the minimum.
    start = float(problem.gradient(problem.start).square().sum()) / (2 * problem.smoothness)
    assert start <= problem.gap <= problem.smoothness * problem.distance**2 / 2


@pytest.mark.parametrize(
    ("name", "largest", "trace", "minimum", "squared_distance"),
    [
        ("logistic", 3.321402, 7.781000, 0.059829471882, 20.7106),
        ("softmax", 5.228650, 68.203896, 0.264554439119, 241.42),
    ],
)
def test_published_constants_of_the_ridge_models(
    problems: dict[str, ConvexProblem],
    name: str,
    largest: float,
    trace: float,
    minimum: float,
    squared_distance: float,
) -> None:
    problem = problems[name]
    assert problem.smoothness == pytest.approx(largest, abs=5e-7)
    assert problem.curvature.trace == pytest.approx(trace, abs=5e-7)
    assert problem.minimum == pytest.approx(minimum, abs=1e-12)
    assert problem.distance**2 == pytest.approx(squared_distance, rel=3e-5)
    assert problem.strong_convexity == 1e-3
    if name == "logistic":
        assert float(problem.value(problem.start)) == pytest.approx(math.log(2), rel=1e-15)


@pytest.mark.parametrize(
    ("name", "rank", "gap"),
    [
        ("inverse", 6.12, 1.761918),
        ("inverse-square", 1.64, 0.1121792),
        ("geometric", 10.0, 2.749136),
        ("clustered", 6.52, 1.598994),
    ],
)
def test_published_constants_of_the_quadratics(name: str, rank: float, gap: float) -> None:
    problem = Quadratic.named(name, 256)
    assert problem.curvature.effective_rank == pytest.approx(rank, abs=5e-3)
    assert problem.gap == pytest.approx(gap, rel=5e-7)
    assert problem.distance**2 == pytest.approx(225.000846, rel=1e-8)


@given(
    eigenvalues=st.lists(st.floats(0, 1e3), min_size=1, max_size=6).filter(any),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None)
def test_a_rotated_quadratic_is_the_aligned_one_seen_from_elsewhere(
    eigenvalues: list[float], seed: int
) -> None:
    rotated = Quadratic(eigenvalues, seed=seed)
    assert rotated.rotation is not None
    torch.testing.assert_close(
        rotated.rotation @ rotated.rotation.mT, torch.eye(len(eigenvalues), dtype=torch.float64)
    )
    aligned = Quadratic(eigenvalues, rotate=False, minimiser=rotated.minimiser @ rotated.rotation)
    x = points(rotated, 5, seed=seed)
    torch.testing.assert_close(rotated.value(x), aligned.value(x @ rotated.rotation), atol=1e-9, rtol=1e-9)
    assert rotated.curvature.largest == pytest.approx(aligned.curvature.largest, rel=1e-9)
    assert rotated.curvature.trace == pytest.approx(aligned.curvature.trace, rel=1e-9)


def test_an_aligned_quadratic_forms_no_matrix() -> None:
    problem = Quadratic.named("inverse-square", 200_000)  # a dense Hessian would take 320 GB
    assert problem.curvature.matrix is None
    assert problem.curvature.is_diagonal
    x = problem.start
    assert float(problem.gradient(x) @ x) == 0.0
    assert problem.gap == pytest.approx(float(problem.eigenvalues @ problem.minimiser.square()) / 2)


@pytest.mark.parametrize("name", SPECTRA)
def test_spectra_fall_from_one(name: str) -> None:
    values = spectrum(name, 50)
    assert values.shape == (50,)
    assert values.dtype == torch.float64
    assert float(values[0]) == 1.0
    assert bool((values.diff() <= 0).all() and (values > 0).all())


def test_spectra_by_their_formulas() -> None:
    i = range(1, 8)
    for values, formula in (
        (power(7, 2.0), [k**-2 for k in i]),
        (geometric(7, 0.9), [0.9 ** (k - 1) for k in i]),
        (logspace(7, 3.0), [10 ** (-3 * (k - 1) / 6) for k in i]),
        (clustered(7, 2, 0.01), [1, 1, *[0.01] * 5]),
        (spectrum("halves", 7), [1, 1, 1, 1, 1e-4, 1e-4, 1e-4]),
    ):
        assert values.tolist() == pytest.approx(formula, rel=1e-14)


@pytest.mark.parametrize(
    "make", [RidgeLogistic.breast_cancer, RidgeLeastSquares.diabetes], ids=lambda m: m.__qualname__
)
def test_hessians_are_the_second_derivatives(make: type[ConvexProblem]) -> None:
    pytest.importorskip("sklearn", reason="the data are scikit-learn's")
    problem = make()
    x = points(problem, 1, seed=5)[0]
    torch.testing.assert_close(problem.hessian(x), hessian(problem.value)(x), rtol=1e-11, atol=1e-13)


def test_the_softmax_hessian_is_the_second_derivative() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    problem = RidgeSoftmax(features, torch.arange(12) % 4, ridge=0.1)
    x = points(problem, 1, seed=6)[0]
    torch.testing.assert_close(problem.hessian(x), hessian(problem.value)(x), rtol=1e-11, atol=1e-13)


@given(scale=st.floats(0.1, 100.0), ridge=st.floats(1e-8, 10.0), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_newton_finds_the_minimiser_of_hard_problems_too(scale: float, ridge: float, seed: int) -> None:
    """Separable labels, large features and a small ridge put the minimiser far away."""
    generator = torch.Generator().manual_seed(seed)
    features = scale * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    labels = torch.where(features[:, 0] >= 0, 1, -1)
    problem = RidgeLogistic(features, labels, ridge)
    # f − f* ≤ ‖∇f‖²/(2μ).
    left = float(problem.gradient(problem.minimiser).square().sum()) / (2 * problem.strong_convexity)
    assert left <= 1e-14


ONES = torch.ones(2, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: spectrum("inverse-sqare", 3), "unknown name 'inverse-sqare'; did you mean 'inverse-square'"),
        (lambda: spectrum("equal", 0), "dimension = 0"),
        (lambda: spectrum("clustered", 3), "large = 4 is not allowed; it must be from 1 to 3"),
        (lambda: geometric(3, 1.5), "ratio = 1.5"),
        (lambda: logspace(3, -1.0), "decades = -1.0"),
        (lambda: power(3, float("nan")), "exponent = nan"),
        (lambda: Quadratic([1.0, 2.0], minimiser=torch.zeros(3)), r"minimiser of shape \(3,\)"),
        (lambda: RidgeLogistic(ONES[:, 0], torch.ones(2), 1.0), r"features of shape \(2,\)"),
        (lambda: RidgeLogistic(ONES, torch.ones(3), 1.0), r"targets of shape \(3,\)"),
        (lambda: RidgeLogistic(ONES, torch.zeros(2), 1.0), "labels must be -1 or 1"),
        (lambda: RidgeLogistic(ONES, torch.ones(2), 0.0), "ridge = 0.0"),
        (lambda: RidgeLogistic(ONES * float("nan"), torch.ones(2), 1.0), "must be finite"),
        (lambda: RidgeSoftmax(ONES, torch.ones(2), 1.0), "labels must be integers from 0"),
        (lambda: RidgeSoftmax(ONES, torch.tensor([0, -1]), 1.0), "labels must be integers from 0"),
    ],
)
def test_mistakes_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]  # a function of no arguments
