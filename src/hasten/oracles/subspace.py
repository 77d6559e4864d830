"""What is learnt of a gradient from a random subspace: r numbers s = Pᵀ∇f(y), and the direction G = P s."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from hasten.oracles.averaging import mean_of_coordinates, mean_of_number, replicated, workers
from hasten.oracles.backpropagation import Backpropagation
from hasten.oracles.directional import Direction, push, second_derivative, squared_norm
from hasten.oracles.substitution import Loss, State
from hasten.sharding import is_distributed, placed, whole
from hasten.sketches import BalancedCountSketch, Draw, Sketch, blocks
from hasten.words import NONNEGATIVE, Observation, Oracle, Value, hyper


class DrawnBlock:
    """One block of a drawn sketch, and the parameters it acts on."""

    def __init__(self, draw: Draw, variables: Sequence[Tensor]) -> None:
        self.draw = draw
        self.variables = list(variables)
        self.sizes = [p.numel() for p in variables]
        self.dtype = working_dtype(variables)
        self.device = variables[0].device

    def project(self, tensors: Sequence[Tensor]) -> Tensor:
        """Pᵀ of the concatenated tensors, shape (r,)."""
        tensors = [whole(t, "sketched", of=p) for t, p in zip(tensors, self.variables, strict=True)]
        if len(tensors) == 1:
            return self.draw.project(tensors[0])
        flat = [t.detach().reshape(-1).to(self.device, self.dtype) for t in tensors]
        return self.draw.project(torch.cat(flat))

    def lift(self, s: Tensor) -> dict[Tensor, Tensor]:
        """P s, by parameter."""
        return self._split(self.draw.lift(s))

    def directions(self, start: int, stop: int) -> dict[Tensor, Tensor]:
        """Columns start … stop−1 of P by parameter, each of shape (stop − start, \\*shape)."""
        return self._split(self.draw.columns(start, stop, dtype=self.dtype, device=self.device))

    def tangents(self, start: int, stop: int, variables: Sequence[Tensor]) -> list[Tensor | None]:
        """The same for each of `variables`; None for those of other blocks."""
        found = self.directions(start, stop)
        return [found.get(p) for p in variables]

    def _split(self, entries: Tensor) -> dict[Tensor, Tensor]:
        pieces = zip(self.variables, torch.split(entries, self.sizes, dim=-1), strict=True)
        found = {p: e.reshape((*e.shape[:-1], *p.shape)).to(p.device, p.dtype) for p, e in pieces}
        return {p: placed(e, like=p) if is_distributed(p) else e for p, e in found.items()}


def working_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 if any tensor is, otherwise float32: what r numbers are kept in."""
    return torch.float64 if any(t.dtype is torch.float64 for t in tensors) else torch.float32


@dataclass
class Lesson:
    """What was learnt of the closure's loss h, before weight decay: h(y) and s by block.

    `loss` is the loss as ``step`` returns it, `value` the same as a number, `evaluations` how often the closure ran.
    `drawn` are the blocks, where they are others than the oracle was given; `lifted` is P s, where it is known already.
    """

    loss: Any
    value: float
    coordinates: Sequence[Tensor | None]
    evaluations: int
    drawn: list[DrawnBlock] | None = None
    lifted: dict[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class SubspaceOracle(Oracle, abc.ABC):
    """s = Pᵀ∇f(y) for a fresh random P, delivered as the gradients G = P s.

    f is the closure's loss plus ``(weight_decay/2)‖y‖²``. P is drawn from the optimizer's seed and the number of the
    step. Frozen parameters are left out, and so are blocks whose parameters all have no gradient; a parameter without
    a gradient counts as having the gradient zero in a block whose others have one, and in forward mode.

    Delivers the numbers ``loss`` (f(y)), ``squared_norm`` (‖s‖², with E‖s‖² = ‖∇f‖²), ``directional_derivatives``
    (how many numbers were learnt), ``evaluations`` (of the closure), ``short_step`` (where the sketch fixes it,
    otherwise NaN) and, with ``curvature=True``, ``curvature`` = Gᵀ∇²f(y)G.

    With ``averaged=True``, or given a DistributedDataParallel model, f is the mean of all workers' losses: s, the loss
    and the curvature are averaged, which takes r floats and 8 bytes for each of the others. Workers must start at the
    same parameters and with the same seed, which is checked.

    Args:
        rank: r, shared by all parameters; 1 if neither it nor a sketch is given.
        sketch: the family of P; by default balanced CountSketch of this rank over all parameters together.
        weight_decay: λ of (λ/2)‖y‖².
        curvature: whether to learn Gᵀ∇²f(y)G too, at the price of two more derivatives.
        averaged: whether to average over all workers of torch.distributed's default process group.

    Raises:
        ValueError: rank and sketch contradict each other, or the rank exceeds the number of parameters.
    """

    rank: int | None = None
    sketch: Sketch | None = None
    weight_decay: Value = hyper(0.0, NONNEGATIVE, "λ of (λ/2)‖y‖², a part of the objective")
    curvature: bool = False
    averaged: bool = False
    formula: ClassVar[str] = "s = Pᵀ∇f(y);  G = P s"
    bend_evaluations: ClassVar[int] = 2
    """How often the closure is evaluated for the curvature."""
    backpropagates: ClassVar[bool] = False
    """Whether the gradient is known whole, so that parameters may be DTensors."""
    arrives: ClassVar[bool] = False
    """Whether the numbers are those of all workers already."""

    def __post_init__(self) -> None:
        owner, own = type(self).__name__, None if self.sketch is None else self.sketch.rank
        if self.rank is not None and self.sketch is not None and own not in (None, self.rank):
            raise ValueError(
                f"{owner}: rank = {self.rank!r} is not allowed beside a sketch of rank {own}; give one"
            )
        if self.sketch is None:
            BalancedCountSketch(rank=1 if self.rank is None else self.rank)  # refuses what is not a rank

    @property
    def delivers(self) -> tuple[str, ...]:
        """The numbers of every step."""
        always = ("loss", "squared_norm", "directional_derivatives", "evaluations", "short_step")
        return (*always, "curvature") if self.curvature else always

    def observe(self, optimizer: Any, closure: Callable[[], Any] | None) -> Observation:
        """Draw P, learn s, and put G together."""
        owner = type(self).__name__
        sign = -1.0 if optimizer.maximize else 1.0  # the decay pulls to zero whichever way the objective goes
        decay = {p: sign * d for p, d in decays(optimizer, self.key("weight_decay")).items()}
        variables = list(decay)
        for p in variables:
            if p.is_complex():
                raise RuntimeError(
                    f"{optimizer.name}: {optimizer.name_of(p)} is complex, which {owner} does not support"
                )
            self._check_placement(optimizer, p)
        loss = None if closure is None else Loss(closure, variables, optimizer.module, owner)
        drawn = self.drawn(variables, optimizer.seed, int(optimizer.param_groups[0]["step"]))
        start = State(optimizer.module, {p.device for p in variables})
        ranks = [block.draw.rank for block in drawn]
        wire = None if self.arrives else workers(optimizer, variables, ranks, self.averaged)
        try:
            lesson = self.learn(optimizer, loss, drawn, start)
            if wire is not None:
                lesson.value = mean_of_number(lesson.value, "loss", variables[0], wire)
                if not (self.backpropagates and replicated(optimizer.module)):
                    lesson.coordinates = mean_of_coordinates(_complete(drawn, lesson.coordinates), wire)
            drawn = drawn if lesson.drawn is None else lesson.drawn
            learnt: list[tuple[DrawnBlock, Tensor]] = []
            for block, s in zip(drawn, lesson.coordinates, strict=True):
                if s is None:
                    continue
                if any(decay[p] for p in block.variables):
                    s = s + block.project([decay[p] * p.detach() for p in block.variables]).to(s)
                learnt.append((block, s))

            def lifted() -> dict[Tensor, Tensor]:
                if lesson.lifted is not None and not any(decay.values()):
                    return lesson.lifted
                return {p: g for block, s in learnt for p, g in block.lift(s).items()}

            numbers = {
                "loss": sign * (lesson.value + sum(d / 2 * squared_norm(p) for p, d in decay.items() if d)),
                "squared_norm": sum(squared_norm(s) for _, s in learnt),
                "directional_derivatives": float(sum(block.draw.rank for block, _ in learnt)),
                "evaluations": float(lesson.evaluations),
                "short_step": _short_step(drawn),
            }
            if self.curvature and not learnt:
                numbers["curvature"] = 0.0
            elif self.curvature:
                after = State(optimizer.module, {p.device for p in variables})

                def along() -> list[Tensor]:
                    found = lifted()
                    return [found[p] if p in found else torch.zeros_like(p) for p in variables]

                numbers["curvature"] = self.bend(loss, variables, along, start)
                if wire is not None:
                    numbers["curvature"] = mean_of_number(
                        numbers["curvature"], "curvature", variables[0], wire
                    )
                numbers["evaluations"] += self.bend_evaluations
                after.restore()
            gradients = lifted()
            if self.curvature:
                numbers["curvature"] += sum(
                    d * squared_norm(gradients[p]) for p, d in decay.items() if p in gradients and d
                )
        except BaseException:
            start.restore()
            raise
        return Observation(lesson.loss, gradients, numbers=numbers)

    def _check_placement(self, optimizer: Any, p: Tensor) -> None:
        if is_distributed(p) and not self.backpropagates:
            raise RuntimeError(
                f"{optimizer.name}: {optimizer.name_of(p)} is a DTensor, which {type(self).__name__} does not support; "
                "use Sketched, which backpropagates"
            )
        if is_distributed(p) and self.curvature:
            raise RuntimeError(
                f"{optimizer.name}: {optimizer.name_of(p)} is a DTensor, of which the curvature cannot be estimated; "
                "give smoothness as a number"
            )

    def drawn(self, variables: Sequence[Tensor], seed: int, step: int) -> list[DrawnBlock]:
        """The matrices of this step, block by block."""
        sketch = self.sketch or BalancedCountSketch(rank=1 if self.rank is None else self.rank)
        return [
            DrawnBlock(block.draw(seed=seed, step=step), [variables[i] for i in block.members])
            for block in blocks(sketch, [p.shape for p in variables])
        ]

    @abc.abstractmethod
    def learn(self, optimizer: Any, loss: Loss | None, drawn: list[DrawnBlock], start: State) -> Lesson:
        """The loss and s by block; None for a block of which there is nothing to learn."""

    def together(self, variables: Sequence[Tensor]) -> bool:
        """Whether several directions go through the closure at once."""
        return False

    def bend(self, loss: Loss | None, variables: Sequence[Tensor], along: Direction, start: State) -> float:
        """Gᵀ∇²h G of the closure's loss h."""
        if loss is None:
            raise TypeError(f"{type(self).__name__}: curvature=True needs a closure that returns the loss")

        def slope() -> float:
            start.restore()
            return float(push(loss, [g[None] for g in along()], self.together(variables))[1])

        return second_derivative(slope, variables, along)


def decays(optimizer: Any, key: str) -> dict[Tensor, float]:
    """The weight decay of every parameter that is not frozen, at the coming step."""
    return {
        p: float(entries[key])
        for group in optimizer.param_groups
        for entries in [optimizer.scheduled(group)]
        for p in group["params"]
        if p.requires_grad
    }


def _complete(drawn: list[DrawnBlock], coordinates: Sequence[Tensor | None]) -> list[Tensor]:
    """s of every block, zero where there is nothing to learn: other workers may have learnt something."""
    return [
        torch.zeros(block.draw.rank, dtype=block.dtype, device=block.device) if s is None else s
        for block, s in zip(drawn, coordinates, strict=True)
    ]


def _short_step(drawn: list[DrawnBlock]) -> float:
    steps = {block.draw.short_step for block in drawn}
    return next(iter(steps)) or math.nan if len(steps) == 1 else math.nan


@dataclass(frozen=True)
class Sketched(SubspaceOracle):
    """s = Pᵀg of a gradient g that is known whole: what is left of it after it went through r numbers.

    Args:
        inner: where g comes from: an oracle that delivers gradients as they are.

    Example:
        >>> import hasten
        >>> from hasten.sketches import Haar
        >>> w = torch.ones(4, requires_grad=True)
        >>> opt = hasten.Optimizer([w], oracle=Sketched(sketch=Haar(rank=2)), lr=0.1)
        >>> opt.step(lambda: (w**2).sum())
        tensor(4., grad_fn=<SumBackward0>)
    """

    inner: Oracle = field(default_factory=Backpropagation)
    backpropagates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.inner, Oracle) or type(self.inner).correct is not Oracle.correct:
            raise TypeError(
                f"Sketched: inner = {self.inner!r} is not allowed; it must be an oracle that delivers plain gradients"
            )

    def learn(self, optimizer: Any, loss: Loss | None, drawn: list[DrawnBlock], start: State) -> Lesson:
        """Project the whole gradient."""
        found = self.inner.observe(optimizer, None if loss is None else loss.closure)
        variables = [p for block in drawn for p in block.variables]
        known = {p: p.grad for p in variables} if found.gradients is None else found.gradients
        for p in variables:
            g = known.get(p)
            if g is not None and g.layout is not torch.strided:
                raise RuntimeError(
                    f"{optimizer.name}: {optimizer.name_of(p)} has a sparse gradient, which is not supported"
                )
        full = {p: torch.zeros_like(p) if (g := known.get(p)) is None else g.detach() for p in variables}
        coordinates = [
            None
            if all(known.get(p) is None for p in block.variables)
            else block.project([full[p] for p in block.variables])
            for block in drawn
        ]
        value = found.loss.detach() if isinstance(found.loss, Tensor) else found.loss
        return Lesson(found.loss, math.nan if value is None else float(value), coordinates, evaluations=1)
