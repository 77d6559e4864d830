"""The collection against published numbers and against a second, scalar statement of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import hessian, jacfwd, vmap

from hasten.problems.more_garbow_hillstrom import MORE_GARBOW_HILLSTROM, LeastSquaresProblem

PROBLEMS = list(MORE_GARBOW_HILLSTROM.values())
EVERY = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)

# ||residuals|| at the start times a factor, as the reference outputs of MINPACK's test programs
# (lmder, hybrd) print it to eight digits.
MINPACK = [
    ("linear-full-rank", 5, {1: 5.0000000}),
    ("linear-rank-1", 5, {1: 2.9152187e2}),
    ("linear-rank-1-zeros", 5, {1: 1.2603968e2}),
    ("rosenbrock", 2, {1: 4.9193496, 10: 1.3400631e3, 100: 1.4300005e5}),
    ("helical-valley", 3, {1: 5.0e1, 10: 1.0295630e2, 100: 9.9126182e2}),
    ("powell-singular", 4, {1: 1.4662878e1, 10: 1.2709839e3, 100: 1.2688790e5}),
    ("freudenstein-roth", 2, {1: 2.0012496e1, 10: 1.2432834e4, 100: 1.1426455e7}),
    ("bard", 3, {1: 6.4561363, 10: 3.6141853e1, 100: 3.8411468e2}),
    ("kowalik-osborne", 4, {1: 7.2891510e-2, 10: 2.9793701, 100: 2.9959062e1}),
    ("meyer", 3, {1: 4.1153467e4, 10: 4.1682169e6}),
    ("watson", 6, {1: 5.4772256, 10: 6.4331258e3, 100: 6.7425604e5}),
    ("watson", 9, {1: 5.4772256, 10: 1.2088127e4, 100: 1.2691093e6}),
    ("watson", 12, {1: 5.4772256, 10: 1.9220759e4, 100: 2.0189180e6}),
    ("box", 3, {1: 3.2111584e1}),
    ("jennrich-sampson", 2, {1: 6.4585650e1}),
    ("brown-dennis", 4, {1: 2.8154384e3, 10: 5.5507335e5, 100: 6.1211252e7}),
    ("chebyquad", 5, {1: 2.2570657e-1, 10: 4.1172432e6, 100: 5.6361303e11}),
    ("chebyquad", 6, {1: 2.1547198e-1, 10: 1.3079247e8, 100: 1.8755789e14}),
    ("chebyquad", 7, {1: 1.8376789e-1, 10: 4.2693282e9, 100: 6.4143166e16}),
    ("chebyquad", 8, {1: 1.9651386e-1}),
    ("chebyquad", 9, {1: 1.6994993e-1}),
    ("chebyquad", 10, {1: 1.8374783e-1}),
    ("brown-almost-linear", 10, {1: 1.6530216e1, 10: 9.7656240e6, 100: 9.7656250e16}),
    ("brown-almost-linear", 30, {1: 8.3476044e1}),
    ("brown-almost-linear", 40, {1: 1.2802636e2}),
    ("osborne-1", 5, {1: 9.3756402e-1}),
    ("osborne-2", 11, {1: 1.4468654}),
    ("powell-badly-scaled", 2, {1: 1.0654866, 10: 1.0}),
    ("discrete-boundary-value", 10, {1: 2.8080582e-2, 10: 5.2555258e-1, 100: 1.0657390e2}),
    ("discrete-integral-equation", 1, {1: 1.2792969e-1, 10: 2.5625, 100: 8.3611719e2}),
    ("discrete-integral-equation", 10, {1: 2.5182701e-1, 10: 6.1168330, 100: 1.2693089e3}),
    ("trigonometric", 10, {1: 8.4117534e-2, 10: 2.0305195e1, 100: 9.3369375e1}),
    ("broyden-tridiagonal", 10, {1: 4.5825757, 10: 6.3910093e2, 100: 6.3337583e4}),
    ("broyden-banded", 10, {1: 1.8973666e1, 10: 1.7130922e4, 100: 1.5949860e7}),
]

# ||gradient|| / 2 at the start: hybrd solves these two as systems of the gradient's equations.
HALF_GRADIENTS = [
    ("watson", 6, {1: 6.8485872e1, 10: 3.5312586e6}),
    ("watson", 9, {1: 8.8789552e1, 10: 1.0151080e7}),
    ("variably-dimensioned", 10, {1: 2.2402135e6, 10: 5.2234376e7, 100: 1.5923646e11}),
]

# Least values as the paper prints them, in the dimension it prints them for.
PAPER = [
    ("jennrich-sampson", 2, 124.362), ("bard", 3, 8.21487e-3), ("gaussian", 3, 1.12793e-8),
    ("meyer", 3, 87.9458), ("kowalik-osborne", 4, 3.07505e-4), ("brown-dennis", 4, 85822.2),
    ("osborne-1", 5, 5.46489e-5), ("osborne-2", 11, 4.01377e-2), ("watson", 6, 2.28767e-3),
    ("watson", 9, 1.39976e-6), ("watson", 12, 4.72238e-10), ("penalty-1", 4, 2.24997e-5),
    ("penalty-1", 10, 7.08765e-5), ("penalty-2", 4, 9.37629e-6), ("penalty-2", 10, 2.93660e-4),
    ("chebyquad", 8, 3.51687e-3), ("chebyquad", 10, 6.50395e-3),
]  # fmt: skip


def algorithm_566(name: str, x: list[float]) -> float:
    """The objective, number by number, in the way in which the paper's program adds it up."""
    n = len(x)
    rows = range(1, n + 1)
    X = [math.nan, *x]
    match name:
        case "brown-badly-scaled":
            return (x[0] - 1e6) ** 2 + (x[1] - 2e-6) ** 2 + (x[0] * x[1] - 2) ** 2
        case "beale":
            c = (1.5, 2.25, 2.625)
            return sum((c[i - 1] - x[0] * (1 - x[1] ** i)) ** 2 for i in (1, 2, 3))
        case "gaussian":
            y = [9e-4, 4.4e-3, 1.75e-2, 5.4e-2, 0.1295, 0.242, 0.3521, 0.3989]
            y += y[6::-1]
            at = [3.5 - 0.5 * i - x[2] for i in range(15)]
            return sum((x[0] * math.exp(-0.5 * x[1] * d * d) - v) ** 2 for d, v in zip(at, y, strict=True))
        case "gulf":
            total = 0.0
            for i in range(1, 100):
                r = abs((-50 * math.log(i / 100)) ** (2 / 3) + 25 - x[1])
                total += (math.exp(-(r ** x[2]) / x[0]) - i / 100) ** 2
            return total
        case "box":
            total = 0.0
            for i in range(1, 11):
                d = i / 10
                total += (
                    math.exp(-d * x[0]) - math.exp(-d * x[1]) - (math.exp(-d) - math.exp(-i)) * x[2]
                ) ** 2
            return total
        case "wood":
            s, t = x[1] - 1, x[3] - 1
            return (
                100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2 + 90 * (x[3] - x[2] ** 2) ** 2
                + (1 - x[2]) ** 2 + 10 * (s + t) ** 2 + (s - t) ** 2 / 10
            )  # fmt: skip
        case "biggs-exp6":
            total = 0.0
            for i in range(1, 14):
                d = i / 10
                y = math.exp(-d) - 5 * math.exp(-10 * d) + 3 * math.exp(-4 * d)
                total += (
                    x[2] * math.exp(-d * x[0]) - x[3] * math.exp(-d * x[1]) + x[5] * math.exp(-d * x[4]) - y
                ) ** 2
            return total
        case "extended-rosenbrock":
            return sum((1 - X[j]) ** 2 + 100 * (X[j + 1] - X[j] ** 2) ** 2 for j in rows[::2])
        case "extended-powell":
            return sum(
                (X[j] + 10 * X[j + 1]) ** 2
                + 5 * (X[j + 2] - X[j + 3]) ** 2
                + (X[j + 1] - 2 * X[j + 2]) ** 4
                + 10 * (X[j] - X[j + 3]) ** 4
                for j in rows[::4]
            )
        case "penalty-1":
            return 1e-5 * sum((v - 1) ** 2 for v in x) + (sum(v * v for v in x) - 0.25) ** 2
        case "penalty-2":
            t1 = sum((n - j + 1) * X[j] ** 2 for j in rows) - 1
            t2 = sum(
                (math.exp(X[j] / 10) + math.exp(X[j - 1] / 10) - math.exp(j / 10) - math.exp((j - 1) / 10))
                ** 2
                for j in rows[1:]
            )
            t3 = sum((math.exp(X[j] / 10) - math.exp(-0.1)) ** 2 for j in rows[1:])
            return 1e-5 * (t2 + t3) + t1**2 + (x[0] - 0.2) ** 2
        case "variably-dimensioned":
            t1 = sum(j * (X[j] - 1) for j in rows)
            return sum((v - 1) ** 2 for v in x) + t1**2 * (1 + t1**2)
        case "trigonometric":
            s = sum(math.cos(v) for v in x)
            return sum((n + j - math.sin(X[j]) - s - j * math.cos(X[j])) ** 2 for j in rows)
        case "powell-badly-scaled":
            return (1e4 * x[0] * x[1] - 1) ** 2 + (math.exp(-x[0]) + math.exp(-x[1]) - 1 - 1e-4) ** 2
        case "helical-valley":
            turns = math.copysign(0.25, x[1])
            if x[0]:
                turns = math.atan(x[1] / x[0]) / (2 * math.pi) + (0.5 if x[0] < 0 else 0.0)
            return 100 * ((x[2] - 10 * turns) ** 2 + (math.hypot(x[0], x[1]) - 1) ** 2) + x[2] ** 2
        case "watson":
            total = x[0] ** 2 + (x[1] - x[0] ** 2 - 1) ** 2
            for i in range(1, 30):
                t = i / 29
                slope = sum((j - 1) * X[j] * t ** (j - 2) for j in rows[1:])
                total += (slope - sum(X[j] * t ** (j - 1) for j in rows) ** 2 - 1) ** 2
            return total
        case "brown-dennis":
            total = 0.0
            for i in range(1, 21):
                d = i / 5
                total += (
                    (x[0] + d * x[1] - math.exp(d)) ** 2 + (x[2] + math.sin(d) * x[3] - math.cos(d)) ** 2
                ) ** 2
            return total
        case "chebyquad":
            total = 0.0
            for i in rows:
                mean = sum(math.cos(i * math.acos(2 * v - 1)) for v in x) / n
                total += (mean + (1 / (i * i - 1) if i % 2 == 0 else 0.0)) ** 2
            return total
    raise KeyError(name)


EIGHTEEN = [problem for problem in PROBLEMS if problem.unconstrained]


def test_all_of_them_are_there() -> None:
    assert [problem.number for problem in PROBLEMS] == list(range(1, 36))
    assert all(MORE_GARBOW_HILLSTROM[problem.name] is problem for problem in PROBLEMS)
    assert len(EIGHTEEN) == 18


@pytest.mark.parametrize(
    ("name", "n", "norms"), MINPACK, ids=lambda v: str(v) if not isinstance(v, dict) else ""
)
def test_residuals_at_the_starts_are_those_minpack_prints(name: str, n: int, norms: dict[int, float]) -> None:
    problem = MORE_GARBOW_HILLSTROM[name].with_dimension(n)
    for factor, norm in norms.items():
        found = problem.residuals(problem.start_scaled(factor)).norm()
        assert float(found) == pytest.approx(norm, rel=6e-8)


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("brown-badly-scaled", [1, 1]),
        ("beale", [1, 1]),
        ("gaussian", [0.4, 1, 0]),
        ("gulf", [5, 2.5, 0.15]),
        ("wood", [-3, -1, -3, -1]),
        ("biggs-exp6", [1, 2, 1, 1, 1, 1]),
        ("extended-rosenbrock", [-1.2, 1] * 5),
        ("extended-powell", [3, -1, 0, 1] * 3),
        ("penalty-1", list(range(1, 11))),
        ("penalty-2", [0.5] * 10),
    ],
)
def test_starts_that_minpack_does_not_show(name: str, start: list[float]) -> None:
    assert MORE_GARBOW_HILLSTROM[name].start.tolist() == start


def test_brown_badly_scaled_sees_its_small_constant() -> None:
    residuals = MORE_GARBOW_HILLSTROM["brown-badly-scaled"].residuals(torch.zeros(2, dtype=torch.float64))
    assert residuals.tolist() == [-1e6, -2e-6, -2.0]


@pytest.mark.parametrize(("name", "norm"), [("bard", 4.1747687), ("kowalik-osborne", 3.2052193e-2)])
def test_limits_at_infinity_are_where_minpack_ends(name: str, norm: float) -> None:
    (value,) = MORE_GARBOW_HILLSTROM[name].other_values
    assert value == pytest.approx(norm**2, rel=1e-7)


@pytest.mark.parametrize(("name", "n", "norms"), HALF_GRADIENTS)
def test_gradients_at_the_starts_are_those_minpack_prints(name: str, n: int, norms: dict[int, float]) -> None:
    problem = MORE_GARBOW_HILLSTROM[name].with_dimension(n)
    for factor, norm in norms.items():
        assert float(problem.gradient(problem.start_scaled(factor)).norm() / 2) == pytest.approx(
            norm, rel=6e-8
        )


@pytest.mark.parametrize("problem", EIGHTEEN, ids=lambda problem: problem.name)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_values_agree_with_the_scalar_statement(problem: LeastSquaresProblem, data: st.DataObject) -> None:
    # Positive and inside the unit interval, where every one of them is defined.
    inside = st.floats(0.05, 0.95)
    x = data.draw(st.lists(inside, min_size=problem.dimension, max_size=problem.dimension))
    if problem.name == "helical-valley":
        signs = st.sampled_from([-1.0, 1.0])
        x = [v * data.draw(signs) for v in x]
    expected = algorithm_566(problem.name, x)
    assert float(problem.value(torch.tensor(x, dtype=torch.float64))) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("x2", [2.0, -2.0])
def test_helical_valley_on_its_cut(x2: float) -> None:
    problem = MORE_GARBOW_HILLSTROM["helical-valley"]
    x = [0.0, x2, 0.3]
    assert float(problem.value(torch.tensor(x, dtype=torch.float64))) == pytest.approx(
        algorithm_566(problem.name, x), rel=1e-12
    )


@pytest.mark.parametrize(("name", "n", "value"), PAPER)
def test_minima_continue_the_digits_of_the_paper(name: str, n: int, value: float) -> None:
    # The paper cuts digits off, it does not round.
    minimum = MORE_GARBOW_HILLSTROM[name].with_dimension(n).minimum
    unit = 10.0 ** (math.floor(math.log10(value)) - 5)
    assert value - 1e-6 * unit <= minimum < value + unit


def newton(function, x: Tensor, steps: int) -> Tensor:
    """Damped by nothing: only for starts next to the solution."""
    for _ in range(steps):
        x = x - torch.linalg.solve(jacfwd(function)(x), function(x))
    return x


@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if p.minimiser is not None], ids=lambda problem: problem.name
)
def test_known_minimisers_give_the_minimum_and_no_gradient(problem: LeastSquaresProblem) -> None:
    x = problem.minimiser
    value, curvature = problem.value(x), hessian(problem.value)(x)
    scale = float(problem.value(problem.start))
    assert float(value) == pytest.approx(problem.minimum, rel=1e-10, abs=1e-20 * scale)
    # In units in which the curvatures along the axes are one, so that scaling does not matter.
    units = curvature.diagonal().sqrt().clamp_min(1e-300)
    error = torch.where(units > 1e-200, problem.gradient(x) / units, 0.0)
    assert float(error.norm()) <= 1e-7 * max(1.0, math.sqrt(problem.minimum))
    scaled = curvature / (units * units[:, None])
    scaled = torch.where(scaled.isfinite(), scaled, 0.0)
    assert float(torch.linalg.eigvalsh(scaled)[0]) >= -1e-10


@pytest.mark.parametrize(
    ("half", "centre"),  # the abscissas below one half, as the paper prints them, and one half
    [
        ([], [0.5]),
        ([0.2113], []),
        ([0.1464], [0.5]),
        ([0.1027, 0.4062], []),
        ([0.0838, 0.3127], [0.5]),
        ([0.0669, 0.2887, 0.3667], []),
        ([0.0581, 0.2352, 0.3380], [0.5]),
        ([0.0442, 0.1995, 0.2356, 0.4160], [0.5]),
    ],
)
def test_chebyquad_has_a_zero_where_the_paper_says_so(half: list[float], centre: list[float]) -> None:
    x = [*half, *centre, *[1 - v for v in reversed(half)]]
    problem = MORE_GARBOW_HILLSTROM["chebyquad"].with_dimension(len(x))
    assert problem.minimum == 0.0
    start = torch.tensor(x, dtype=torch.float64)
    found = newton(problem.residuals, start, 8)
    assert float(problem.value(found)) < 1e-25
    torch.testing.assert_close(found, start, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n", [3, 10, 40])
@pytest.mark.parametrize(
    "name",
    ["discrete-boundary-value", "discrete-integral-equation", "broyden-tridiagonal", "broyden-banded"],
)
def test_systems_of_equations_have_a_solution(name: str, n: int) -> None:
    problem = MORE_GARBOW_HILLSTROM[name].with_dimension(n)
    x = newton(problem.residuals, problem.start, 20)
    assert float(problem.value(x)) < 1e-24


def test_the_two_discretisations_have_one_solution() -> None:
    """An independent statement of both: they discretise the same equation the same way."""
    equations = [
        MORE_GARBOW_HILLSTROM[f"discrete-{kind}"] for kind in ("boundary-value", "integral-equation")
    ]
    by_differences, by_integrals = (newton(p.residuals, p.start, 20) for p in equations)
    torch.testing.assert_close(by_differences, by_integrals, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "n", "x"),
    [
        ("watson", 6, (-0.0157251, 1.012435, -0.232992, 1.260430, -1.513729, 0.992996)),
        ("watson", 9, (-1.530702e-5, 0.999790, 0.0147640, 0.146342, 1.000821, -2.617731, 4.104403,
                       -3.143612, 1.052626)),
        ("penalty-2", 4, (0.1999993, 0.1913167, 0.4801015, 0.5188454)),
        ("penalty-2", 10, (0.19998361, 0.01035065, 0.01960493, 0.03208907, 0.04993268, 0.07651400,
                           0.11862407, 0.19214487, 0.34732059, 0.36916437)),
        ("chebyquad", 8, (0.0431528, 0.1930908, 0.2663287, 0.5, 0.5, 0.7336713, 0.8069092, 0.9568472)),
        ("chebyquad", 10, (0.0596199, 0.1667083, 0.2391707, 0.3988843, 0.3988843, 0.6011157, 0.6011157,
                           0.7608293, 0.8332917, 0.9403801)),
    ],
)  # fmt: skip
def test_published_minima_are_where_newton_ends(name: str, n: int, x: tuple[float, ...]) -> None:
    problem = MORE_GARBOW_HILLSTROM[name].with_dimension(n)
    found = newton(lambda z: torch.func.grad(problem.value)(z), torch.tensor(x, dtype=torch.float64), 6)
    assert float(problem.value(found)) == pytest.approx(problem.minimum, rel=1e-8)
    assert float(torch.linalg.eigvalsh(hessian(problem.value)(found))[0]) > 0


def test_other_values_are_stationary() -> None:
    far = 1e9
    for name, x in {
        "freudenstein-roth": (11.412778986902094, -0.8968052532744766),
        "bard": (0.8406666666666667, -far, -far),
        "brown-almost-linear": (0.0,) * 9 + (11.0,),
        "trigonometric": (0.05515090398, 0.05684061679, 0.05876400176, 0.06099060866, 0.0636262137,
                          0.06684317945, 0.20816151857, 0.16436309589, 0.08500689569, 0.09143145071),
        "biggs-exp6": (1.7114159947195875, 17.68319818094907, 1.163143660918858, 5.186561551993454,
                       1.7114159947195875, 1.163143660918858),
    }.items():  # fmt: skip
        problem, point = MORE_GARBOW_HILLSTROM[name], torch.tensor(x, dtype=torch.float64)
        assert float(problem.value(point)) == pytest.approx(problem.other_values[0], rel=1e-6), name
        assert float(problem.gradient(point).norm()) < 1e-6, name
    saddle = hessian(problem.value)(point)
    assert float(torch.linalg.eigvalsh(saddle)[0]) < -1e-3


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 60), place=st.sampled_from([p for p in PROBLEMS if p.most == math.inf]))
def test_every_dimension_it_claims(n: int, place: LeastSquaresProblem) -> None:
    if n < place.least or n % place.multiple:
        with pytest.raises(ValueError, match=rf"{place.name}: dimension must be .*, got {n}"):
            place.with_dimension(n)
        return
    problem = place.with_dimension(n)
    assert problem.start.shape == (n,)
    assert bool(problem.residuals(problem.start).isfinite().all())
    x = problem.minimiser
    if x is not None and problem.name != "brown-almost-linear":
        assert float(problem.value(x)) == pytest.approx(problem.minimum, rel=1e-9, abs=1e-18)


@EVERY
def test_derivatives(problem: LeastSquaresProblem) -> None:
    generator = torch.Generator().manual_seed(problem.number)
    x = problem.start + 0.05 * torch.rand(problem.dimension, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    # Residuals in units of their size: central differences lose the rest to round-off.
    size = problem.residuals(x).abs().max().detach()
    assert torch.autograd.gradcheck(lambda z: problem.residuals(z) / size, x, eps=1e-6, rtol=1e-4, atol=1e-6)
    jacobian = jacfwd(problem.residuals)(x.detach())
    expected = 2 * jacobian.mT @ problem.residuals(x.detach())
    torch.testing.assert_close(
        problem.gradient(x), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
    )


@EVERY
def test_batches_and_vmap(problem: LeastSquaresProblem) -> None:
    points = torch.stack([problem.start, problem.start_scaled(0.5), problem.start + 0.1])
    alone = torch.stack([problem.value(x) for x in points])
    torch.testing.assert_close(problem.value(points), alone, rtol=1e-12, atol=0)
    torch.testing.assert_close(vmap(problem.value)(points), alone, rtol=1e-12, atol=0)
    torch.testing.assert_close(problem.value(points.view(3, 1, -1)), alone.view(3, 1), rtol=1e-12, atol=0)
    slopes = torch.stack([problem.gradient(x) for x in points])
    torch.testing.assert_close(
        vmap(torch.func.grad(problem.value))(points), slopes, rtol=1e-9, atol=1e-9 * float(slopes.abs().max())
    )
    assert problem.terms == problem.residuals(points).shape[-1] >= problem.dimension


@EVERY
def test_precision_follows_the_argument(problem: LeastSquaresProblem) -> None:
    single = problem.residuals(problem.start.float())
    assert single.dtype == torch.float32
    if problem.name not in ("meyer", "osborne-1"):  # too ill-conditioned to compare in float32
        full = problem.residuals(problem.start)
        torch.testing.assert_close(single.double(), full, rtol=1e-3, atol=1e-4 * float(full.abs().max()))


def test_a_start_is_a_new_tensor_every_time() -> None:
    problem = MORE_GARBOW_HILLSTROM["wood"]
    problem.start.zero_()
    assert problem.start.tolist() == [-3.0, -1.0, -3.0, -1.0]
    assert problem.start_scaled(1).tolist() == problem.start.tolist()


def test_unknown_minima_are_nan() -> None:
    assert math.isnan(MORE_GARBOW_HILLSTROM["penalty-2"].with_dimension(7).minimum)
    assert MORE_GARBOW_HILLSTROM["chebyquad"].minimiser is None


@pytest.mark.parametrize(
    ("name", "n", "message"),
    [
        ("wood", 5, "wood: dimension must be 4, got 5"),
        ("extended-powell", 6, "extended-powell: dimension must be >= 4 and a multiple of 4, got 6"),
        ("watson", 32, "watson: dimension must be >= 2 and <= 31, got 32"),
    ],
)
def test_dimensions_that_do_not_exist(name: str, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MORE_GARBOW_HILLSTROM[name].with_dimension(n)


def test_it_prints_itself() -> None:
    assert repr(MORE_GARBOW_HILLSTROM["watson"]) == "LeastSquaresProblem(20, 'watson', dimension=6)"
