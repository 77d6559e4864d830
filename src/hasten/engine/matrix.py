"""Passes over whole tensors, for formulas that need rows, columns or norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.engine.formula import Formula, Pass


def matrix_pass(formula: Formula) -> Pass:
    """Run the formula on each tensor in its own shape, in float32 or better."""

    def run(
        slots: Sequence[Sequence[Tensor]], numbers: Sequence[float], noise: Sequence[int] | None
    ) -> list[list[float]]:
        named = dict(zip(formula.numbers, numbers, strict=True))
        sums: list[list[float]] = []
        for member, tensors in enumerate(zip(*slots, strict=True)):
            originals = dict(zip(formula.inputs, tensors, strict=True))
            if originals["grad"].numel() == 0:
                sums.append([0.0] * len(formula.sums))
                continue
            compute = compute_dtype(originals["param"])
            writes, terms = formula.function({n: t.detach().to(compute) for n, t in originals.items()}, named)
            for name, value in writes.items():
                store(originals[name], value, noise[member] if noise and name == "param" else None)
            sums.append([float(term.sum(dtype=torch.float64)) for term in terms.values()])
        return sums

    return run


def compute_dtype(param: Tensor) -> torch.dtype:
    """The dtype of the arithmetic on a parameter."""
    return torch.float64 if param.dtype is torch.float64 else torch.float32


def store(target: Tensor, value: Tensor, key: int | None) -> None:
    """Put a value into a tensor of another dtype, rounded at random if there is a key and the dtype is bfloat16."""
    from hasten.engine.rounding import random_bits, round_stochastically
    from hasten.hashing import words

    if key is not None and target.dtype is torch.bfloat16:
        index = torch.arange(value.numel(), device=value.device).view(value.shape)
        value = round_stochastically(value, random_bits(*words(key), index))
    target.detach().copy_(value)
