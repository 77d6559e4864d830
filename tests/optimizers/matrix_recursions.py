"""Muon's recursions, each stated by itself in float64, one matrix at a time."""

import math

import torch

NS5 = (3.4445, -4.7750, 2.0315)


def polar(g):
    """U Vᵀ of U S Vᵀ."""
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    return u @ v


def iterated(g, norm, steps=5, table=None):
    """Jordan's iteration from g / norm, rows being the shorter side."""
    x = g / norm
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for a, b, c in table or [NS5] * steps:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


def jordan(g):
    return iterated(g, g.norm() + 1e-7)


def torchs(g):
    return iterated(g, max(float(g.norm()), 1e-7))


def trajectory(start, gradients, direction, lr, decay):
    """W ← (1 − lr·decay) W − lr · direction(g, k), from the first gradient on."""
    w, path = start.clone(), []
    for k, g in enumerate(gradients, start=1):
        w = (1 - lr * decay) * w - lr * direction(g, k)
        path.append(w)
    return path


def average(beta):
    """An average of what it is called with, from zero."""
    kept = []

    def advance(g):
        kept.append(beta * kept[-1] + (1 - beta) * g if kept else (1 - beta) * g)
        return kept[-1]

    return advance


def original(m, n):
    return math.sqrt(max(1.0, m / n))


def run(opt, w, gradients):
    """The matrix after every step of an optimizer of ours."""
    path = []
    for g in gradients:
        w.grad = g.clone()
        opt.step()
        path.append(w.detach().clone())
    return path


def compare(ours, theirs, tolerance=1e-12):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
