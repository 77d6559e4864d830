"""Directional derivatives from differences of function values: nothing is differentiated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hasten.checks import check_choice, optional_number
from hasten.oracles.directional import Direction, difference_step, moved, root_mean_square, squared_norm
from hasten.oracles.failures import explaining
from hasten.oracles.subspace import DrawnBlock, Lesson, SubspaceOracle
from hasten.oracles.substitution import Loss, State
from hasten.words import POSITIVE

STEP_SIZES = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""Default change of an entry, for parameters of unit scale."""


@dataclass(frozen=True)
class FiniteDifference(SubspaceOracle):
    """s = Pᵀ∇f(y) from function values: central, or one-sided with half the evaluations.

    With unit-scale directions v = p/rms(p), the root mean square over the nonzero entries of a column p of P:

    central: p·∇f ≈ rms(p) [f(y+hv) − f(y−hv)]/(2h), 2r evaluations, error O(h²);
    one-sided: p·∇f ≈ rms(p) [f(y+hv) − f(y)]/h, r + 1 evaluations, error O(h).

    The closure returns the loss as a number or a tensor; it need not be differentiable. It is evaluated with the
    parameters moved in place, which are put back bit for bit from a copy, also after an error. All evaluations see
    the same random numbers and buffers; afterwards these are as after one. ``curvature`` is
    [f(y+ηG) − 2f(y) + f(y−ηG)]/η²: use float64.

    Args:
        step_size: h; by default 10⁻³ in float32, 10⁻⁵ in float64 and 10⁻² in half precision, but at least ε^(1/3)
            times the root mean square of the parameters.
        central: whether to evaluate on both sides. The loss is then the mean of all evaluations, f(y) + O(h²).

    Raises:
        TypeError: there is no closure, or it did not return a number.

    Example:
        >>> import hasten
        >>> w = torch.ones(4, dtype=torch.float64)
        >>> opt = hasten.Optimizer([w.requires_grad_()], oracle=FiniteDifference(rank=4), lr=0.25)
        >>> round(opt.step(lambda: float((w**2).sum())), 6)
        4.0
        >>> [round(x, 6) for x in w.tolist()]
        [0.5, 0.5, 0.5, 0.5]
    """

    step_size: float | None = None
    central: bool = True
    bend_evaluations: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        optional_number(self, "step_size", self.step_size, POSITIVE)
        check_choice("FiniteDifference", "central", self.central, (True, False))

    def learn(self, optimizer: Any, loss: Loss | None, drawn: list[DrawnBlock], start: State) -> Lesson:
        """Evaluate along every column of P."""
        if loss is None:
            raise TypeError("FiniteDifference: step() needs a closure that returns the loss")
        here = _Evaluations(loss, start)
        base = None if self.central else here.at({}, 0.0)
        coordinates = []
        for block in drawn:
            h = self.step_size or max(STEP_SIZES[_lowest(block.variables)], difference_floor(block.variables))
            found = []
            for j in range(block.draw.rank):
                column = {p: d[0] for p, d in block.directions(j, j + 1).items()}
                scale = _scale(column)
                if scale == 0:
                    found.append(0.0)
                elif base is None:
                    found.append(scale * (here.at(column, h / scale) - here.at(column, -h / scale)) / (2 * h))
                else:
                    found.append(scale * (here.at(column, h / scale) - base) / h)
            coordinates.append(torch.tensor(found, dtype=block.dtype, device=block.device))
        if not here.values:
            base = here.at({}, 0.0)
        value = sum(here.values) / len(here.values) if base is None else base
        return Lesson(here.like(value), value, coordinates, len(here.values))

    def bend(self, loss: Loss | None, variables: Sequence[Tensor], along: Direction, start: State) -> float:
        """The second difference of the loss along G."""
        assert loss is not None
        column = dict(zip(variables, along(), strict=True))
        size = root_mean_square(list(column.values()))
        if size == 0:
            return 0.0
        eta = difference_step(variables, size, 1 / 4)
        here = _Evaluations(loss, start)
        return (here.at(column, eta) - 2 * here.at({}, 0.0) + here.at(column, -eta)) / eta**2


class _Evaluations:
    """Function values near the current point, which is put back after each."""

    def __init__(self, loss: Loss, start: State) -> None:
        self.loss = loss
        self.start = start
        self.values: list[float] = []
        self.result: Any = None

    def at(self, direction: dict[Tensor, Tensor], length: float) -> float:
        """f(y + length · direction)."""
        self.start.restore()
        with (
            moved(list(direction), lambda: list(direction.values()), length),
            explaining(self.loss.owner, self.loss.module),
        ):
            self.result = self.loss.closure()
        try:
            self.values.append(float(self.result))
        except (TypeError, ValueError, RuntimeError):
            kind = (
                f"a tensor of shape {tuple(self.result.shape)}"
                if isinstance(self.result, Tensor)
                else type(self.result).__name__
            )
            raise TypeError(
                f"{self.loss.owner}: the closure returned {kind}; it must return the loss, one real number"
            ) from None
        return self.values[-1]

    def like(self, value: float) -> Any:
        """A value as the closure returns it: a tensor or a number."""
        return torch.full_like(self.result, value) if isinstance(self.result, Tensor) else value


def difference_floor(variables: Sequence[Tensor]) -> float:
    """ε^(1/3) times the root mean square of the parameters: below it, round-off dominates."""
    epsilon: float = torch.finfo(_lowest(variables)).eps
    return float(epsilon ** (1 / 3)) * root_mean_square([p.detach() for p in variables])


def _lowest(variables: Sequence[Tensor]) -> torch.dtype:
    return max((p.dtype for p in variables), key=lambda dtype: torch.finfo(dtype).eps)


def _scale(column: dict[Tensor, Tensor]) -> float:
    """Root mean square over the nonzero entries."""
    nonzero = sum(int(d.count_nonzero()) for d in column.values())
    return math.sqrt(sum(map(squared_norm, column.values())) / nonzero) if nonzero else 0.0
