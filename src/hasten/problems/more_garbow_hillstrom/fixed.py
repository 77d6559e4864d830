"""Problems 1 to 19: a fixed number of variables, half of them fits to measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hasten.problems.more_garbow_hillstrom.problem import LeastSquaresProblem

BARD = (0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39)
GAUSSIAN = (0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989)
MEYER = (
    34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744,
    8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872,
)  # fmt: skip
KOWALIK_OSBORNE_Y = (
    0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246,
)  # fmt: skip
KOWALIK_OSBORNE_U = (4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)
OSBORNE_1 = (
    0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751,
    0.718, 0.685, 0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490,
    0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406,
)  # fmt: skip
OSBORNE_2 = (
    1.366, 1.191, 1.112, 1.013, 0.991, 0.885, 0.831, 0.847, 0.786, 0.725, 0.746, 0.679, 0.608,
    0.655, 0.616, 0.606, 0.602, 0.626, 0.651, 0.724, 0.649, 0.649, 0.694, 0.644, 0.624, 0.661,
    0.612, 0.558, 0.533, 0.495, 0.500, 0.423, 0.395, 0.375, 0.372, 0.391, 0.396, 0.405, 0.428,
    0.429, 0.523, 0.562, 0.607, 0.653, 0.672, 0.708, 0.633, 0.668, 0.645, 0.632, 0.591, 0.559,
    0.597, 0.625, 0.739, 0.710, 0.729, 0.720, 0.636, 0.581, 0.428, 0.292, 0.162, 0.098, 0.054,
)  # fmt: skip


def one_to(last: int, like: Tensor) -> Tensor:
    """``1, 2, ..., last`` in the dtype and on the device of ``like``."""
    return torch.arange(1, last + 1, dtype=like.dtype, device=like.device)


def measured(values: Sequence[float], like: Tensor) -> Tensor:
    """Measurements in the dtype and on the device of ``like``."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def columns(x: Tensor) -> tuple[Tensor, ...]:
    """The variables, each of shape ``(..., 1)``, ready to meet a vector of ``m`` constants."""
    return x.unsqueeze(-1).unbind(-2)


def rosenbrock(x: Tensor) -> Tensor:
    """A curved valley, steep across and flat along."""
    x1, x2 = x.unbind(-1)
    return torch.stack([10 * (x2 - x1**2), 1 - x1], -1)


def freudenstein_roth(x: Tensor) -> Tensor:
    """Two cubics; most starts lead to the worse of two minima."""
    x1, x2 = x.unbind(-1)
    return torch.stack([-13 + x1 + ((5 - x2) * x2 - 2) * x2, -29 + x1 + ((x2 + 1) * x2 - 14) * x2], -1)


def powell_badly_scaled(x: Tensor) -> Tensor:
    """The two variables differ by six orders of magnitude at the minimum."""
    x1, x2 = x.unbind(-1)
    return torch.stack([1e4 * x1 * x2 - 1, torch.exp(-x1) + torch.exp(-x2) - 1.0001], -1)


def brown_badly_scaled(x: Tensor) -> Tensor:
    """Variables and residuals that differ by twelve orders of magnitude."""
    x1, x2 = x.unbind(-1)
    return torch.stack([x1 - 1e6, x2 - 2e-6, x1 * x2 - 2], -1)


def beale(x: Tensor) -> Tensor:
    """Flat plains around a sharp corner."""
    x1, x2 = x.unbind(-1)
    return torch.stack([1.5 - x1 * (1 - x2), 2.25 - x1 * (1 - x2**2), 2.625 - x1 * (1 - x2**3)], -1)


def jennrich_sampson(x: Tensor) -> Tensor:
    """Two exponentials fitted to a straight line: residuals stay large."""
    x1, x2 = columns(x)
    i = one_to(10, x)
    return 2 + 2 * i - (torch.exp(i * x1) + torch.exp(i * x2))


def helical_valley(x: Tensor) -> Tensor:
    """A valley winding around the third axis; undefined on that axis."""
    x1, x2, x3 = x.unbind(-1)
    angle = torch.atan2(x2, x1)
    # The paper's turns run from -1/4 to 3/4: its cut is the negative half of the second axis.
    turns = torch.where(angle < -math.pi / 2, angle + 2 * math.pi, angle) / (2 * math.pi)
    return torch.stack([10 * (x3 - 10 * turns), 10 * (torch.sqrt(x1**2 + x2**2) - 1), x3], -1)


def bard(x: Tensor) -> Tensor:
    """A rational fit; for large starts it flees to infinity."""
    x1, x2, x3 = columns(x)
    u = one_to(15, x)
    v = 16 - u
    return measured(BARD, x) - (x1 + u / (v * x2 + torch.minimum(u, v) * x3))


def gaussian(x: Tensor) -> Tensor:
    """A bell fitted to the standard normal density, started next to the answer."""
    x1, x2, x3 = columns(x)
    t = (8 - one_to(15, x)) / 2
    return x1 * torch.exp(-x2 * (t - x3) ** 2 / 2) - measured(GAUSSIAN + GAUSSIAN[-2::-1], x)


def meyer(x: Tensor) -> Tensor:
    """Resistance of a thermistor; the Hessian has a condition number of 1e16."""
    x1, x2, x3 = columns(x)
    return x1 * torch.exp(x2 / (45 + 5 * one_to(16, x) + x3)) - measured(MEYER, x)


def gulf(x: Tensor) -> Tensor:
    """Three parameters of a stretched exponential, flat far from the answer."""
    x1, x2, x3 = columns(x)
    t = one_to(99, x) / 100
    y = 25 + (-50 * torch.log(t)) ** (2 / 3)
    return torch.exp(-(torch.abs(y - x2) ** x3) / x1) - t


def box(x: Tensor) -> Tensor:
    """Two exponentials; a whole line of minima beside the point given here."""
    x1, x2, x3 = columns(x)
    i = one_to(10, x)
    t = i / 10
    return torch.exp(-t * x1) - torch.exp(-t * x2) - x3 * (torch.exp(-t) - torch.exp(-i))


def powell_singular(x: Tensor) -> Tensor:
    """The Hessian at the minimum is singular: convergence is slow there."""
    x1, x2, x3, x4 = x.unbind(-1)
    return torch.stack(
        [
            x1 + 10 * x2,
            math.sqrt(5) * (x3 - x4),
            (x2 - 2 * x3) ** 2,
            math.sqrt(10) * (x1 - x4) ** 2,
        ],
        -1,
    )


def wood(x: Tensor) -> Tensor:
    """Two valleys tied together, with a saddle in the way."""
    x1, x2, x3, x4 = x.unbind(-1)
    return torch.stack(
        [
            10 * (x2 - x1**2),
            1 - x1,
            math.sqrt(90) * (x4 - x3**2),
            1 - x3,
            math.sqrt(10) * (x2 + x4 - 2),
            (x2 - x4) / math.sqrt(10),
        ],
        -1,
    )


def kowalik_osborne(x: Tensor) -> Tensor:
    """Enzyme reaction, rational."""
    x1, x2, x3, x4 = columns(x)
    u = measured(KOWALIK_OSBORNE_U, x)
    return measured(KOWALIK_OSBORNE_Y, x) - x1 * (u**2 + u * x2) / (u**2 + u * x3 + x4)


def brown_dennis(x: Tensor) -> Tensor:
    """Sums of squares squared once more; large at the minimum."""
    x1, x2, x3, x4 = columns(x)
    t = one_to(20, x) / 5
    return (x1 + t * x2 - torch.exp(t)) ** 2 + (x3 + x4 * torch.sin(t) - torch.cos(t)) ** 2


def osborne_1(x: Tensor) -> Tensor:
    """Two exponentials and a constant fitted to measurements."""
    x1, x2, x3, x4, x5 = columns(x)
    t = 10 * (one_to(33, x) - 1)
    return measured(OSBORNE_1, x) - (x1 + x2 * torch.exp(-t * x4) + x3 * torch.exp(-t * x5))


def biggs(x: Tensor) -> Tensor:
    """Three exponentials."""
    x1, x2, x3, x4, x5, x6 = columns(x)
    t = one_to(13, x) / 10
    y = torch.exp(-t) - 5 * torch.exp(-10 * t) + 3 * torch.exp(-4 * t)
    return x3 * torch.exp(-t * x1) - x4 * torch.exp(-t * x2) + x6 * torch.exp(-t * x5) - y


def osborne_2(x: Tensor) -> Tensor:
    """An exponential and three bells fitted to measurements."""
    x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11 = columns(x)
    t = (one_to(65, x) - 1) / 10
    bells = (
        x2 * torch.exp(-((t - x9) ** 2) * x6)
        + x3 * torch.exp(-((t - x10) ** 2) * x7)
        + x4 * torch.exp(-((t - x11) ** 2) * x8)
    )
    return measured(OSBORNE_2, x) - (x1 * torch.exp(-t * x5) + bells)


def problem(
    number: int,
    name: str,
    residuals: Callable[[Tensor], Tensor],
    start: tuple[float, ...],
    minimum: float,
    minimiser: tuple[float, ...],
    *other_values: float,
) -> LeastSquaresProblem:
    """A problem that exists in one dimension only."""
    n = len(start)
    return LeastSquaresProblem(
        number,
        name,
        residuals,
        n,
        start_at=lambda _: start,
        minimum_at=lambda _: minimum,
        minimiser_at=lambda _: minimiser,
        other_values=other_values,
        least=n,
        most=n,
    )


# Number, name, residuals, start, minimum, minimiser, other values. What is not an exact number is
# the paper's, carried to double precision by Newton's method.
FIXED = (
    problem(1, "rosenbrock", rosenbrock, (-1.2, 1.0), 0.0, (1.0, 1.0)),
    problem(
        2, "freudenstein-roth", freudenstein_roth, (0.5, -2.0), 0.0, (5.0, 4.0),
        48.98425367924,
    ),
    problem(
        3, "powell-badly-scaled", powell_badly_scaled, (0.0, 1.0), 0.0,
        (1.0981593296996906e-05, 9.106146739867576),
    ),
    problem(4, "brown-badly-scaled", brown_badly_scaled, (1.0, 1.0), 0.0, (1e6, 2e-6)),
    problem(5, "beale", beale, (1.0, 1.0), 0.0, (3.0, 0.5)),
    problem(
        6, "jennrich-sampson", jennrich_sampson, (0.3, 0.4), 124.36218235561,
        (0.2578252136703641, 0.2578252136703641),
    ),
    problem(7, "helical-valley", helical_valley, (-1.0, 0.0, 0.0), 0.0, (1.0, 0.0, 0.0)),
    problem(
        8, "bard", bard, (1.0, 1.0, 1.0), 8.214877306579e-3,
        (0.0824105597497889, 1.133036092029721, 2.3436951786425375),
        17.42869333333,  # x2 and x3 to minus infinity: the fit is a constant
    ),
    problem(
        9, "gaussian", gaussian, (0.4, 1.0, 0.0), 1.127932769619e-8,
        (0.39895613783875666, 1.0000190844878059, 0.0),
    ),
    problem(
        10, "meyer", meyer, (0.02, 4000.0, 250.0), 87.94585517049,
        (0.005609636495368153, 6181.346342666971, 345.22363450222963),
    ),
    problem(11, "gulf", gulf, (5.0, 2.5, 0.15), 0.0, (50.0, 25.0, 1.5)),
    problem(12, "box", box, (0.0, 10.0, 20.0), 0.0, (1.0, 10.0, 1.0)),
    problem(13, "powell-singular", powell_singular, (3.0, -1.0, 0.0, 1.0), 0.0, (0.0, 0.0, 0.0, 0.0)),
    problem(14, "wood", wood, (-3.0, -1.0, -3.0, -1.0), 0.0, (1.0, 1.0, 1.0, 1.0)),
    problem(
        15, "kowalik-osborne", kowalik_osborne, (0.25, 0.39, 0.415, 0.39), 3.075056038492e-4,
        (0.19280693457903794, 0.19128232873436618, 0.12305650692632086, 0.13606233068379445),
        1.027343048695e-3,  # at infinity, with x2 = -14.0759
    ),
    problem(
        16, "brown-dennis", brown_dennis, (25.0, 5.0, -5.0, -1.0), 85822.20162635634,
        (-11.594439904762163, 13.203630051207202, -0.4034394881768596, 0.23677877445573628),
    ),
    problem(
        17, "osborne-1", osborne_1, (0.5, 1.5, -1.0, 0.01, 0.02), 5.464894697483e-5,
        (0.37541005210695194, 1.935846912712352, -1.4646871366134078,
         0.012867534640057259, 0.022122699661672674),
    ),
    problem(
        18, "biggs-exp6", biggs, (1.0, 2.0, 1.0, 1.0, 1.0, 1.0), 0.0, (1.0, 10.0, 1.0, 5.0, 4.0, 3.0),
        # A saddle, although the paper lists it as a minimum: the start has x1 = x5 and x3 = x6,
        # and so has every point that a gradient method reaches from it.
        5.655649925499951e-3,
    ),
    problem(
        19, "osborne-2", osborne_2, (1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5),
        0.04013773629354778,
        (1.3099771546273007, 0.4315537946029891, 0.6336616989607241, 0.5994305347859163,
         0.7541832263280116, 0.9042885798596332, 1.3658118352370283, 4.823698817227156,
         2.3986848661317546, 4.568874597667672, 5.6753414705806415),
    ),
)  # fmt: skip
