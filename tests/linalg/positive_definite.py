"""Symmetric positive definite matrices with known spectra, and their powers from those spectra."""

from __future__ import annotations

import torch
from torch import Tensor


def with_spectrum(values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """V diag(values) Vᵀ for values [..., n] and a random orthogonal V, and that V."""
    n = values.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(*values.shape[:-1], n, n, generator=generator, dtype=torch.float64)
    v = torch.linalg.qr(normal).Q
    a = (v * values.unsqueeze(-2)) @ v.mT
    return (a + a.mT) / 2, v


def log_uniform(n: int, condition: float, stack: tuple[int, ...] = (), seed: int = 0) -> Tensor:
    """Eigenvalues [..., n] from 1 / condition to 1, uniform in their logarithms, both ends attained."""
    generator = torch.Generator().manual_seed(seed)
    values = condition ** -torch.rand(*stack, n, generator=generator, dtype=torch.float64)
    values[..., 0], values[..., -1] = 1 / condition, 1.0
    return values


def matrices(n: int, condition: float, stack: tuple[int, ...] = (), seed: int = 0) -> Tensor:
    """Matrices [..., n, n] of a condition number."""
    return with_spectrum(log_uniform(n, condition, stack, seed), seed)[0]


def power(values: Tensor, v: Tensor, exponent: float) -> Tensor:
    """V diag(values^exponent) Vᵀ."""
    return (v * (values**exponent).unsqueeze(-2)) @ v.mT


def relative(found: Tensor, reference: Tensor) -> float:
    """The largest ‖found - reference‖_F / ‖reference‖_F of a stack."""
    error = torch.linalg.matrix_norm(found.double() - reference) / torch.linalg.matrix_norm(reference)
    return float(error.detach().max())


def lyapunov_reference(s: Tensor, g: Tensor) -> Tensor:
    """X of S X + X S = (G + Gᵀ)/2, as one linear system of n² unknowns."""
    n = s.shape[-1]
    one = torch.eye(n, dtype=s.dtype)
    system = torch.kron(s, one) + torch.kron(one, s)
    return torch.linalg.solve(system, ((g + g.mT) / 2).reshape(n * n)).reshape(n, n)
