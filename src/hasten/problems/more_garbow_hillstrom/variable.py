"""Problems 20 to 35: any number of variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from hasten.problems.more_garbow_hillstrom.fixed import one_to, powell_singular, rosenbrock
from hasten.problems.more_garbow_hillstrom.problem import LeastSquaresProblem

PENALTY = 1e-5


def watson(x: Tensor) -> Tensor:
    """A polynomial that solves a differential equation; ever worse conditioned as it grows."""
    t = one_to(29, x).unsqueeze(-1) / 29
    exponents = one_to(x.shape[-1], x) - 1
    powers = t**exponents
    # The derivative of the first power, times t, is the power itself times its exponent.
    polynomial, slope = x @ powers.mT, x @ (exponents * powers / t).mT
    x1, x2 = x[..., :1], x[..., 1:2]
    return torch.cat([slope - polynomial**2 - 1, x1, x2 - x1**2 - 1], -1)


def extended_rosenbrock(x: Tensor) -> Tensor:
    """Copies of `rosenbrock`, side by side."""
    return rosenbrock(x.reshape(*x.shape[:-1], -1, 2)).flatten(-2)


def extended_powell(x: Tensor) -> Tensor:
    """Copies of `powell_singular`, side by side."""
    return powell_singular(x.reshape(*x.shape[:-1], -1, 4)).flatten(-2)


def penalty_1(x: Tensor) -> Tensor:
    """A constraint ``|x|^2 = 1/4`` at the weight 1, the objective at 1e-5."""
    return torch.cat([math.sqrt(PENALTY) * (x - 1), x.square().sum(-1, keepdim=True) - 0.25], -1)


def penalty_2(x: Tensor) -> Tensor:
    """A constraint at the weight 1, exponentials at 1e-5."""
    n = x.shape[-1]
    i = one_to(n, x)
    grown, data = torch.exp(x / 10), torch.exp(i / 10)
    pairs = grown[..., 1:] + grown[..., :-1] - (data[1:] + data[:-1])
    singles = grown[..., 1:] - math.exp(-0.1)
    weighted = ((n - i + 1) * x.square()).sum(-1, keepdim=True) - 1
    small = math.sqrt(PENALTY)
    return torch.cat([x[..., :1] - 0.2, small * pairs, small * singles, weighted], -1)


def variably_dimensioned(x: Tensor) -> Tensor:
    """A quartic in one direction, a quadratic in all others."""
    weighted = (one_to(x.shape[-1], x) * (x - 1)).sum(-1, keepdim=True)
    return torch.cat([x - 1, weighted, weighted**2], -1)


def trigonometric(x: Tensor) -> Tensor:
    """Cosines and sines; many local minima."""
    n, cosines = x.shape[-1], torch.cos(x)
    return n - cosines.sum(-1, keepdim=True) + one_to(n, x) * (1 - cosines) - torch.sin(x)


def brown_almost_linear(x: Tensor) -> Tensor:
    """Linear but for one product of all variables."""
    n = x.shape[-1]
    linear = x[..., :-1] + x.sum(-1, keepdim=True) - (n + 1)
    return torch.cat([linear, x.prod(-1, keepdim=True) - 1], -1)


def grid(x: Tensor) -> tuple[float, Tensor]:
    """Spacing and inner points of the unit interval cut into ``n + 1``."""
    h = 1 / (x.shape[-1] + 1)
    return h, h * one_to(x.shape[-1], x)


def neighbours(x: Tensor, before: int, after: int) -> list[Tensor]:
    """``x_{i-before}, ..., x_{i+after}``, zero outside."""
    padded = pad(x, (before, after))
    return [padded[..., k : k + x.shape[-1]] for k in range(before + after + 1)]


def discrete_boundary_value(x: Tensor) -> Tensor:
    """``u'' = (u + t + 1)^3 / 2`` with zero boundary values, by finite differences."""
    h, t = grid(x)
    left, middle, right = neighbours(x, 1, 1)
    return 2 * middle - left - right + h**2 * (x + t + 1) ** 3 / 2


def discrete_integral_equation(x: Tensor) -> Tensor:
    """The same boundary value problem as an integral equation."""
    h, t = grid(x)
    cubes = (x + t + 1) ** 3
    below = (t * cubes).cumsum(-1)
    above = ((1 - t) * cubes).sum(-1, keepdim=True) - ((1 - t) * cubes).cumsum(-1)
    return x + h * ((1 - t) * below + t * above) / 2


def broyden_tridiagonal(x: Tensor) -> Tensor:
    """Quadratic, three variables to a residual."""
    left, middle, right = neighbours(x, 1, 1)
    return (3 - 2 * middle) * middle - left - 2 * right + 1


def broyden_banded(x: Tensor) -> Tensor:
    """Cubic, seven variables to a residual."""
    band = neighbours(x * (1 + x), 5, 1)
    others = sum(band) - band[5]
    return x * (2 + 5 * x**2) + 1 - others


def linear_full_rank(x: Tensor) -> Tensor:
    """Linear, well conditioned, with ``m = 2n``."""
    n = x.shape[-1]
    m = 2 * n
    return pad(x, (0, m - n)) - 2 / m * x.sum(-1, keepdim=True) - 1


def linear_rank_1(x: Tensor) -> Tensor:
    """Linear of rank one, with ``m = 2n``."""
    n = x.shape[-1]
    return one_to(2 * n, x) * (one_to(n, x) * x).sum(-1, keepdim=True) - 1


def linear_rank_1_zeros(x: Tensor) -> Tensor:
    """Linear of rank one, first and last row and column zero, with ``m = 2n``."""
    n = x.shape[-1]
    inner = (one_to(n, x) * x)[..., 1:-1].sum(-1, keepdim=True)
    return pad(one_to(2 * n - 2, x) * inner, (1, 1)) - 1


def chebyquad(x: Tensor) -> Tensor:
    """Abscissas of a quadrature with equal weights, by the moments of Chebyshev polynomials."""
    n, shifted = x.shape[-1], 2 * x - 1
    before, polynomial = torch.ones_like(x), shifted
    means = []
    for degree in range(1, n + 1):
        integral = 0.0 if degree % 2 else -1 / (degree**2 - 1)
        means.append(polynomial.mean(-1) - integral)
        before, polynomial = polynomial, 2 * shifted * polynomial - before
    return torch.stack(means, -1)


def repeated(*values: float) -> Callable[[int], list[float]]:
    """The values over and over, up to the dimension."""
    return lambda n: [values[j % len(values)] for j in range(n)]


def curved(n: int) -> list[float]:
    """``t_j (t_j - 1)`` on the grid of the discretised problems."""
    return [j / (n + 1) * (j / (n + 1) - 1) for j in range(1, n + 1)]


def penalty_1_minimiser(n: int) -> list[float]:
    """All entries equal: the root of ``a (s - 1) + 2 s (n s^2 - 1/4)`` beside ``s = 1 / (2 sqrt n)``."""
    s = 0.5 / math.sqrt(n)
    for _ in range(20):
        s -= (PENALTY * (s - 1) + 2 * s * (n * s * s - 0.25)) / (PENALTY + 6 * n * s * s - 0.5)
    return [s] * n


def penalty_1_minimum(n: int) -> float:
    """Least value of `penalty_1`."""
    s = penalty_1_minimiser(n)[0]
    return PENALTY * n * (s - 1) ** 2 + (n * s * s - 0.25) ** 2


def published(values: Mapping[int, float]) -> Callable[[int], float]:
    """A minimum that is known in some dimensions only."""
    return lambda n: values.get(n, math.nan)


def zero(n: int) -> float:
    """The minimum of a system of equations that has a solution."""
    return 0.0


def unknown(n: int) -> None:
    """No minimiser in closed form."""
    return None


def problem(
    number: int,
    name: str,
    residuals: Callable[[Tensor], Tensor],
    dimension: int,
    start_at: Callable[[int], Sequence[float]],
    minimum_at: Callable[[int], float],
    minimiser_at: Callable[[int], Sequence[float] | None],
    *other_values: float,
    least: int = 1,
    most: float = math.inf,
    multiple: int = 1,
) -> LeastSquaresProblem:
    """A problem that exists in many dimensions, in its usual one."""
    return LeastSquaresProblem(
        number, name, residuals, dimension, start_at, minimum_at, minimiser_at, other_values,
        least, most, multiple,
    )  # fmt: skip


# Number, name, residuals, usual dimension, start, minimum, minimiser, other values.
VARIABLE = (
    problem(
        20, "watson", watson, 6, repeated(0.0),
        published({6: 2.287670053552e-3, 9: 1.3997601381e-6, 12: 4.7223811e-10}), unknown,
        least=2, most=31,
    ),
    problem(
        21, "extended-rosenbrock", extended_rosenbrock, 10, repeated(-1.2, 1.0), zero, repeated(1.0),
        least=2, multiple=2,
    ),
    problem(
        22, "extended-powell", extended_powell, 12, repeated(3.0, -1.0, 0.0, 1.0), zero, repeated(0.0),
        least=4, multiple=4,
    ),
    problem(
        23, "penalty-1", penalty_1, 10, lambda n: [float(j) for j in range(1, n + 1)],
        penalty_1_minimum, penalty_1_minimiser,
    ),
    problem(
        24, "penalty-2", penalty_2, 10, repeated(0.5),
        published({4: 9.376293007355e-6, 10: 2.936605374567e-4}), unknown,
    ),
    problem(
        25, "variably-dimensioned", variably_dimensioned, 10,
        lambda n: [1 - j / n for j in range(1, n + 1)], zero, repeated(1.0),
    ),
    problem(
        26, "trigonometric", trigonometric, 10, lambda n: [1 / n] * n, zero, repeated(0.0),
        2.795056121878e-5,  # for ten variables
    ),
    problem(
        27, "brown-almost-linear", brown_almost_linear, 10, repeated(0.5), zero, repeated(1.0),
        1.0, least=2,
    ),
    problem(28, "discrete-boundary-value", discrete_boundary_value, 10, curved, zero, unknown),
    problem(29, "discrete-integral-equation", discrete_integral_equation, 10, curved, zero, unknown),
    problem(30, "broyden-tridiagonal", broyden_tridiagonal, 10, repeated(-1.0), zero, unknown),
    problem(31, "broyden-banded", broyden_banded, 10, repeated(-1.0), zero, unknown),
    # The three linear ones with m = 2n.
    problem(
        32, "linear-full-rank", linear_full_rank, 10, repeated(1.0), lambda n: float(n), repeated(-1.0),
    ),
    problem(
        33, "linear-rank-1", linear_rank_1, 10, repeated(1.0), lambda n: n * (2 * n - 1) / (4 * n + 1),
        lambda n: [3 / (4 * n + 1)] + [0.0] * (n - 1),
    ),
    problem(
        34, "linear-rank-1-zeros", linear_rank_1_zeros, 10, repeated(1.0),
        lambda n: (2 * n * n + 3 * n - 3) / (4 * n - 3),
        lambda n: [0.0, 1.5 / (4 * n - 3)] + [0.0] * (n - 2),
        least=3,
    ),
    problem(
        35, "chebyquad", chebyquad, 8, lambda n: [j / (n + 1) for j in range(1, n + 1)],
        published(dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 9), 0.0) | {8: 3.516873725678e-3, 10: 6.503954800882e-3}),
        unknown,
    ),
)  # fmt: skip
