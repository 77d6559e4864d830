"""The approximants of √x, against rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from hasten.linalg.rational import DENOMINATOR, NUMERATOR, TAYLOR_DEGREE, pade, polynomial, taylor

Polynomial = list[Fraction]
PUBLISHED_P = [Fraction(*c) for c in ((1, 1), (-11, 4), (11, 4), (-77, 64), (55, 256), (-11, 1024))]
PUBLISHED_Q = [Fraction(*c) for c in ((1, 1), (-9, 4), (7, 4), (-35, 64), (15, 256), (-1, 1024))]


def product(a: Polynomial, b: Polynomial) -> Polynomial:
    found = [Fraction(0)] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            found[i + j] += x * y
    return found


def in_one_minus(a: tuple[int, ...]) -> Polynomial:
    """The coefficients by powers of z of Σ a_k (1 - z)^k."""
    found = [Fraction(0)] * len(a)
    for k, c in enumerate(a):
        for j in range(k + 1):
            found[j] += c * math.comb(k, j) * (-1) ** j
    return found


def root_series(exponent: Fraction, degree: int) -> Polynomial:
    """(1 - z)^exponent by the binomial theorem."""
    found = [Fraction(1)]
    for k in range(degree):
        found.append(found[-1] * (k - exponent) / (k + 1))
    return found


def test_in_powers_of_one_minus_x_it_is_the_published_quotient() -> None:
    assert in_one_minus(NUMERATOR) == [1024 * c for c in PUBLISHED_P]
    assert in_one_minus(DENOMINATOR) == [1024 * c for c in PUBLISHED_Q]


def test_it_is_the_pade_approximant() -> None:
    """P(z) - Q(z) √(1 - z) vanishes to the order 11, as no other quotient of degrees 5 and 5 does."""
    series = root_series(Fraction(1, 2), 15)
    error = [-c for c in product(PUBLISHED_Q, series)]
    for k, c in enumerate(PUBLISHED_P):
        error[k] += c
    assert error[:11] == [0] * 11
    assert error[11] != 0


@pytest.mark.parametrize("exponent", [Fraction(1, 2), Fraction(-1, 2)])
def test_taylor_coefficients(exponent: Fraction) -> None:
    exact = root_series(exponent, TAYLOR_DEGREE)
    assert taylor(float(exponent)) == [float(c) for c in exact]
    if exponent > 0:
        assert exact[:7] == [
            1,
            *(Fraction(*c) for c in ((-1, 2), (-1, 8), (-1, 16), (-5, 128), (-7, 256), (-21, 1024))),
        ]


@pytest.mark.parametrize("inverse", [False, True])
def test_of_diagonal_matrices_they_are_the_scalar_functions(inverse: bool) -> None:
    points = [Fraction(1, 1000), Fraction(1, 7), Fraction(1, 2), Fraction(1), Fraction(7, 2), Fraction(40)]
    n = [sum(c * x**k for k, c in enumerate(NUMERATOR)) for x in points]
    d = [sum(c * x**k for k, c in enumerate(DENOMINATOR)) for x in points]
    series = root_series(Fraction(-1, 2) if inverse else Fraction(1, 2), TAYLOR_DEGREE)
    x = torch.diag(torch.tensor([float(p) for p in points], dtype=torch.float64))
    quotients = [float(b / a if inverse else a / b) for a, b in zip(n, d, strict=True)]
    assert pade(x, inverse).diagonal().tolist() == pytest.approx(quotients, rel=1e-14)
    sums = [float(sum(t * (1 - p) ** k for k, t in enumerate(series))) for p in points[:4]]
    assert polynomial(x[:4, :4], inverse).diagonal().tolist() == pytest.approx(sums, rel=1e-13)


@pytest.mark.parametrize("x", [0.01, 0.2, 0.9, 1.5, 30.0])
def test_the_error_of_the_pade_approximant(x: float) -> None:
    c = (1 - math.sqrt(x)) / (1 + math.sqrt(x))
    found = float(pade(torch.tensor([[x]], dtype=torch.float64))) / math.sqrt(x) - 1
    assert found == pytest.approx(2 * c**11 / (1 - c**11), rel=1e-6, abs=1e-15)


def test_it_is_as_good_at_one_over_x() -> None:
    x = torch.tensor([[0.03]], dtype=torch.float64)
    assert float(pade(x) * pade(1 / x)) == pytest.approx(1, rel=1e-14)
