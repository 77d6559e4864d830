"""Directional derivatives by forward-mode differentiation: no graph, no stored activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.oracles.directional import chunk_for, push
from hasten.oracles.subspace import DrawnBlock, Lesson, SubspaceOracle
from hasten.oracles.substitution import Loss, State


@dataclass(frozen=True)
class ForwardMode(SubspaceOracle):
    """s = Pᵀ∇f(y) as r directional derivatives in forward mode (Omiya, Poirion & Takeda, 2026, arXiv:2605.00740).

    Memory: the parameters of `chunk` directions and the activations of one layer, `chunk` + 1 times; none are kept.
    Time: each chunk runs the closure once, and each direction costs three to six forward passes more. Where a gradient
    by backpropagation fits into memory, it costs about as much as one direction and is the better choice.

    The closure returns the loss and does not call ``backward``; it may be evaluated several times a step, so it must
    not draw a new batch. All evaluations of a step see the same dropout masks and the same batch-norm statistics, and
    after the step the random number generators and the module's buffers are as after one forward pass. (The buffers
    are known where the optimizer was given the module instead of its parameters.) Attention, transformer layers and
    recurrent layers use kernels that have forward derivatives (attention without a T×T matrix, unless it drops out),
    and compiled modules run eagerly. A non-finite loss gives non-finite gradients, which the optimizer's
    ``on_nonfinite`` answers.

    Args:
        chunk: directions taken together; by default as many as hold 2²⁰ numbers (2²⁴ on an accelerator), at most 16.

    Raises:
        NotImplementedError: an operation has no forward derivative; names it and the module that uses it.
        RuntimeError: the closure called ``backward``, returned a loss that does not depend on the parameters, or
            returned another loss at the same point.
        TypeError, ValueError: the closure did not return a real loss of one entry.

    Example:
        >>> import hasten
        >>> model = torch.nn.Linear(3, 1)
        >>> x = torch.ones(5, 3)
        >>> opt = hasten.Optimizer(model, oracle=ForwardMode(rank=2), lr=1e-2)
        >>> before = opt.step(lambda: model(x).square().mean())
        >>> before.requires_grad, model.weight.grad
        (False, None)
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk is not None and (type(self.chunk) is not int or self.chunk < 1):
            raise ValueError(
                f"ForwardMode: chunk = {self.chunk!r} is not allowed; it must be an integer of at least 1"
            )

    def together(self, variables: Sequence[Tensor]) -> bool:
        """Whether chunks have more than one direction."""
        return self._size(variables) > 1

    def _size(self, variables: Sequence[Tensor]) -> int:
        device = variables[0].device if variables else torch.device("cpu")
        return chunk_for(sum(p.numel() for p in variables), device, self.chunk)

    def learn(self, optimizer: Any, loss: Loss | None, drawn: list[DrawnBlock], start: State) -> Lesson:
        """Push the columns of P through the closure, chunk by chunk."""
        if loss is None:
            raise TypeError("ForwardMode: step() needs a closure that returns the loss")
        first: Tensor | None = None
        coordinates, evaluations, connected = [], 0, False
        size, together = self._size(loss.variables), self.together(loss.variables)
        for block in drawn:
            found = []
            for begin in range(0, block.draw.rank, size):
                tangents = block.tangents(begin, min(begin + size, block.draw.rank), loss.variables)
                if evaluations:
                    start.restore()
                value, slopes, reached = push(loss, tangents, together)
                first = value if first is None else first
                _check_same(first, value)
                connected, evaluations = connected or reached, evaluations + 1
                found.append(slopes.to(block.dtype))
            coordinates.append(
                torch.cat(found) if found else torch.zeros(0, dtype=block.dtype, device=block.device)
            )
        if first is None:  # a sketch of random size drew nothing
            with torch.no_grad():
                return Lesson(*_known(loss), coordinates, evaluations=1)
        if not connected:
            raise RuntimeError(
                "ForwardMode: the loss does not depend on the parameters; is it detached, or another model's?"
            )
        return Lesson(first, float(first), coordinates, evaluations)


def _known(loss: Loss) -> tuple[Any, float]:
    value = loss.closure()
    return value, float(value)


def _check_same(first: Tensor, value: Tensor) -> None:
    a, b = float(first), float(value)
    tolerance = math.sqrt(torch.finfo(first.dtype).eps) * max(abs(a), 1e-3)
    if math.isfinite(a) and math.isfinite(b) and abs(a - b) > tolerance:
        raise RuntimeError(
            f"ForwardMode: the closure returned {a:g} and then {b:g} at the same point; it is evaluated several times "
            "a step and must use one batch"
        )
