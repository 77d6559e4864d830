"""Matrix polynomials and quotients of them that approximate A^(1/2) and A^(-1/2) without any eigenvalues."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.linalg.symmetric import identity

NUMERATOR = (1, 55, 330, 462, 165, 11)
r"""Coefficients of N in √x ≈ N(x) / D(x) by powers of x.

It is the [5/5] Padé approximant at x = 1: the even terms of (1 + √x)^11 over the odd ones (and √x). Divided by
1024 and written in z = 1 - x it is P(z) / Q(z) with P = (1, -11/4, 11/4, -77/64, 55/256, -11/1024) and
Q = (1, -9/4, 7/4, -35/64, 15/256, -1/1024); in x nothing cancels, since no term is negative."""
DENOMINATOR = NUMERATOR[::-1]
TAYLOR_DEGREE = 10


def taylor(exponent: float, degree: int = TAYLOR_DEGREE) -> list[float]:
    """Coefficients of (1 - z)^exponent by powers of z.

    Example:
        >>> taylor(0.5, 4)
        [1.0, -0.5, -0.125, -0.0625, -0.0390625]
    """
    found = [1.0]
    for k in range(degree):
        found.append(found[-1] * (k - exponent) / (k + 1))
    return found


def polynomial(x: Tensor, inverse: bool = False) -> Tensor:
    """X^(1/2), or X^(-1/2), by the Taylor polynomial of degree 10 in Z = I - X (MTP), [..., n, n].

    Five products of matrices: ``Σ_j (t_{3j} + t_{3j+1} Z + t_{3j+2} Z²) Z^{3j}`` from the inside (Paterson &
    Stockmeyer).
    """
    z = identity(x) - x
    powers = (identity(x), z, z @ z)
    cube = powers[1] @ powers[2]
    t = taylor(-0.5 if inverse else 0.5)
    found = t[9] * powers[0] + t[10] * powers[1]
    for j in (6, 3, 0):
        found = found @ cube + (t[j] * powers[0] + t[j + 1] * powers[1] + t[j + 2] * powers[2])
    return found


def pade(x: Tensor, inverse: bool = False) -> Tensor:
    """X^(1/2), or X^(-1/2), by the [5/5] Padé approximant at I (MPA), [..., n, n].

    Four products and one linear system. Where X = x I the relative error is
    ``2 c^11 / (1 - c^11)`` with c = (1 - √x) / (1 + √x).
    """
    square = x @ x
    powers = (identity(x), square, square @ square)
    n, d = (_even_and_odd(x, powers, coefficients) for coefficients in (NUMERATOR, DENOMINATOR))
    quotient: Tensor = torch.linalg.solve_ex(n, d).result if inverse else torch.linalg.solve_ex(d, n).result
    return quotient.contiguous()  # it comes column by column


def _even_and_odd(x: Tensor, powers: tuple[Tensor, Tensor, Tensor], c: tuple[int, ...]) -> Tensor:
    even = c[0] * powers[0] + c[2] * powers[1] + c[4] * powers[2]
    odd = c[1] * powers[0] + c[3] * powers[1] + c[5] * powers[2]
    return even + x @ odd
