"""Accelerated dynamics in Muon's geometry, against their recursions written out."""

from __future__ import annotations

import torch
from torch import Tensor

import hasten

STEPS, LR, DECAY = 8, 0.01, 0.1


def gradient(k: int, w: Tensor) -> Tensor:
    noise = torch.randn(w.shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    return w + noise


def start() -> Tensor:
    return torch.randn((6, 4), generator=torch.Generator().manual_seed(99), dtype=torch.float64)


def step_of(d: Tensor) -> Tensor:
    """0.2 √max(m, n) U Vᵀ."""
    u, _, v = torch.linalg.svd(d, full_matrices=False)
    return 0.2 * 6**0.5 * (u @ v)


def trained(kind: type[hasten.Optimizer], **arguments: object) -> tuple[Tensor, hasten.Optimizer]:
    w = start().requires_grad_()
    opt = kind([w], lr=LR, weight_decay=DECAY, backend="svd", **arguments)  # type: ignore[call-arg]
    for k in range(STEPS):
        w.grad = gradient(k, w.detach())
        opt.step()
    return w, opt


def test_schedule_free_muon_averages_orthogonalised_gradients() -> None:
    beta = 0.9
    x = z = y = start()
    weights = 0.0
    for k in range(STEPS):
        z = z - LR * (step_of(gradient(k, y)) + DECAY * y)
        weights += LR**2
        x = x + LR**2 / weights * (z - x)
        y = (1 - beta) * z + beta * x
    w, opt = trained(hasten.ScheduleFreeMuon, momentum=beta)
    torch.testing.assert_close(w.detach(), y, rtol=0, atol=1e-12)
    with opt.evaluating():
        torch.testing.assert_close(w.detach(), x, rtol=0, atol=1e-12)


def test_ademamix_muon_orthogonalises_both_averages_together() -> None:
    fast, slow, alpha = 0.9, 0.99, 5.0
    w, m1, m2 = start(), torch.zeros(6, 4), torch.zeros(6, 4)
    for k in range(STEPS):
        g = gradient(k, w)
        m1, m2 = fast * m1 + (1 - fast) * g, slow * m2 + (1 - slow) * g
        w = w - LR * (step_of(m1 / (1 - fast ** (k + 1)) + alpha * m2) + DECAY * w)
    found, _ = trained(hasten.AdEMAMixMuon, betas=(fast, slow), alpha=alpha)
    torch.testing.assert_close(found.detach(), w, rtol=0, atol=1e-12)


def test_mars_muon_orthogonalises_an_average_of_clipped_corrections() -> None:
    beta, gamma = 0.95, 0.5
    w, m, before = start(), torch.zeros(6, 4), torch.zeros(6, 4)
    for k in range(STEPS):
        g = gradient(k, w)
        c = g + gamma * beta / (1 - beta) * (g - before)
        c = c / max(1.0, float(c.norm()))
        m, before = beta * m + (1 - beta) * c, g
        w = w - LR * (step_of(m) + DECAY * w)
    found, _ = trained(hasten.MARSMuon, momentum=beta, gamma=gamma)
    torch.testing.assert_close(found.detach(), w, rtol=0, atol=1e-12)
