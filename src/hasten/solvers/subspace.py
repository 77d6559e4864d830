"""Randomized-subspace methods on deterministic problems: r directional derivatives an iteration.

The formulas are those of :mod:`hasten.iterates.subspace`; here they are run on flat vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hasten.iterates.subspace import RandomizedSubspace, SubspaceDescent, SubspaceStep
from hasten.numbers import Names, Number, maximum, sqrt, where
from hasten.oracles.directional import directional_derivatives
from hasten.sketches import BalancedCountSketch, Curvature, ImportanceCoordinates, Sketch
from hasten.solvers.method import Method, State, register
from hasten.solvers.objective import Objective
from hasten.solvers.options import option
from hasten.solvers.space import Mask, divide
from hasten.words import FRACTION, NONNEGATIVE, POSITIVE, Interval


@dataclass
class Drawing(State):
    """The query point y, the iterate with its numbers, and the running mean of ‖s‖², which estimates ‖∇f(y)‖²."""

    y: Tensor
    difference: Tensor
    sketch: Sketch
    part: SubspaceStep
    h: Names
    c: Names
    square: Number
    weight: float
    """Of the newest ‖s‖² in the mean."""
    never: Mask
    always: Mask
    taken: int = 0


@dataclass(frozen=True)
class SubspaceMethod(Method):
    """What the methods share: the sketch and its constants, and learning Pᵀ∇f.

    f at x is evaluated only every `check_every` iterations, where the run may end; the norm of the gradient is then the
    root of the running mean of ‖s‖², whose expectation is ‖∇f(y)‖². In a stack every problem draws its own subspaces:
    problem i those of block i, whatever the others are.
    """

    stopping: ClassVar[dict[str, Any]] = {"maxiter": 100_000}
    source: ClassVar[str] = (
        "Omiya, Poirion & Takeda (2026), arXiv:2605.00740; constants and schedules are ours"
    )

    oracle: Literal["backprop", "forward"] = option(
        "backprop", ("backprop", "forward"), "how Pᵀ∇f is learnt: from the whole gradient, or in forward mode"
    )
    check_every: int = option(25, Interval(1), "iterations between evaluations of f at x", integer=True)
    seed: int = option(0, Interval(0), "of the subspaces", integer=True)

    def part(self) -> SubspaceStep:
        """The iterate that states the formulas."""
        raise NotImplementedError

    def family(self, dimension: int) -> Sketch:
        """The sketch."""
        raise NotImplementedError

    def constants(self, sketch: Sketch, dimension: int) -> dict[str, float]:
        """Values of the iterate's hyperparameters."""
        raise NotImplementedError

    def start(self, objective: Objective, x0: Tensor) -> Drawing:
        """Settle the constants, and evaluate at x0."""
        if objective.space.batched and self.oracle == "forward":
            raise ValueError("minimize: option oracle = 'forward' is not allowed with batched=True")
        d, space, part = x0.shape[-1], objective.space, self.part()
        sketch = self.family(d)
        constants = {**{o.name: o.default for o in part.hypers()}, **self.constants(sketch, d)}
        # One ‖s‖² has a relative variance of about 2(ν − 1)/d (exactly, for Haar sketches of many variables), which the
        # mean brings down to a hundredth; with ν = 1 every ‖s‖² is exact.
        weight = 1 / (1 + 100 * (sketch.nu(d) - 1) / d)
        f, g = objective.value_and_gradient(x0)
        none = space.number(0.0)
        never = none > 0
        return Drawing(
            x=x0,
            f=f,
            g=g,
            residual=space.largest(g),
            iterations=none,
            stepped=never,
            failed=never,
            y=x0,
            difference=torch.zeros_like(x0),
            sketch=sketch,
            part=part,
            h=Names(**constants),
            # Numbers on which the problems of a stack agree stay plain; the others become tensors by themselves.
            c=Names(**part.counters()),
            square=space.dot(g, g),
            weight=weight,
            never=never,
            always=none == 0,
        )

    def step(self, objective: Objective, state: Drawing) -> Drawing:
        """One iteration: s = Pᵀ∇f(y), G = P s, and the iterate's move along G."""
        part, k = state.part, state.taken + 1
        G, sums = self._learn(objective, state)
        numbers = part.measured(state.h, k, state.c, sums)
        s = Names(param=state.y, difference=state.difference)
        state.y = part.move(G, s, _columns(G, numbers))
        state.difference, state.taken = s.difference, k
        state.square = state.square + state.weight * (sums.squared_norm - state.square)
        state.iterations = state.iterations + 1
        state.stepped = state.never
        if k % self.check_every == 0:
            state.stepped = state.always
            state.x = self._evaluated(state)
            state.f, state.g = objective.value(state.x), None
            state.residual = sqrt(state.square)
        return state

    def output(self, state: Drawing) -> Tensor | None:
        """x, unless it was evaluated in the last iteration."""
        return self._evaluated(state) if state.taken % self.check_every else None

    def _evaluated(self, state: Drawing) -> Tensor:
        """x, from the query point."""
        s = Names(param=state.y, difference=state.difference)
        n = _columns(state.y, state.part.switch(state.h, state.taken, state.c))
        x: Tensor = state.part.evaluation(s, n)
        return x

    def _learn(self, objective: Objective, state: Drawing) -> tuple[Tensor, Names]:
        """G = P s, and what the iterate's numbers depend on."""
        space, y, estimate = objective.space, state.y, state.part.estimate
        d, k = y.shape[-1], state.taken
        blocks = range(len(y)) if space.batched else (0,)
        draws = [state.sketch.draw(d, seed=self.seed, step=k, block=block) for block in blocks]
        if self.oracle == "forward":
            value, s = directional_derivatives(objective.function, y, draws[0])
            objective.count("nfev")
            loss, found = value.item(), [s]
            G = draws[0].lift(s).to(y)
        else:
            loss, g = objective.value_and_gradient(y)
            rows = g if space.batched else g.unsqueeze(0)
            found = [draw.project(row) for draw, row in zip(draws, rows, strict=True)]
            G = torch.empty_like(g)
            for draw, s, out in zip(draws, found, G if space.batched else (G,), strict=True):
                draw.lift(s, out=out)
        rank = _agreed(y, [float(draw.rank) for draw in draws])
        steps = [math.nan if draw.short_step is None else draw.short_step for draw in draws]
        objective.count("nproj", rank + 2 * estimate)
        squares = [torch.dot(s, s) for s in found]
        return G, Names(
            loss=loss,
            directional_derivatives=rank,
            squared_norm=torch.stack(squares).double() if space.batched else squares[0].item(),
            short_step=_agreed(y, steps),
            curvature=self._curvature(objective, y, G) if estimate else 0.0,
        )

    def _curvature(self, objective: Objective, y: Tensor, G: Tensor) -> Number:
        """Gᵀ∇²f(y)G, by the central difference of the slope along G."""
        space = objective.space
        root = math.sqrt(y.shape[-1])
        size = maximum(space.norm(y), space.number(root * 1e-3))
        h = space.epsilon ** (1 / 3) * divide(size, space.norm(G))
        h = where(h == h, h, 0.0)  # G = 0
        slopes = [self._slope(objective, space.add(y, sign * h, G), G) for sign in (1, -1)]
        return where(h > 0, divide(slopes[0] - slopes[1], 2 * h), 0.0)

    def _slope(self, objective: Objective, x: Tensor, G: Tensor) -> Number:
        if self.oracle == "forward":
            objective.count("nfev")
            return torch.func.jvp(objective.function, (x,), (G,))[1].item()
        return objective.space.dot(G, objective.value_and_gradient(x)[1])


def _columns(like: Tensor, numbers: dict[str, Number]) -> Names:
    """Numbers to multiply the vectors by: those that differ within a stack as columns, in the vectors' dtype."""
    return Names(
        **{
            name: value.to(like.dtype).unsqueeze(-1) if isinstance(value, Tensor) else value
            for name, value in numbers.items()
        }
    )


def _agreed(like: Tensor, values: list[float]) -> Number:
    """A value for every problem: one number where all agree (or have none, nan)."""
    first = values[0]
    if first != first or values.count(first) == len(values):
        return first
    return torch.tensor(values, dtype=torch.float64, device=like.device)


def _curvature(smoothness: Tensor | Curvature, dimension: int) -> Curvature:
    """What is known of L, for this many variables."""
    curvature = Curvature.of(smoothness)
    if curvature.dimension != dimension:
        raise ValueError(
            f"minimize: option smoothness is of {curvature.dimension} variables; x0 has {dimension}"
        )
    return curvature


@dataclass(frozen=True)
class AnySketch(SubspaceMethod):
    """Options of the methods that take any sketch."""

    rank: int | None = option(None, Interval(1), "r, numbers learnt an iteration; None: d/8", integer=True)
    sketch: Sketch | None = option(None, (Sketch,), "the family of the subspaces; None: balanced CountSketch")
    smoothness: Any = option(
        "estimate",
        (POSITIVE, Tensor, Curvature, "estimate"),
        'ℓ, or L as a matrix, a diagonal or a Curvature, or "estimate"',
    )
    nu: float | None = option(None, POSITIVE, "ν; None: the sketch's own. Lower is faster, and unproven")

    def family(self, dimension: int) -> Sketch:
        """The sketch that was given, or balanced CountSketch of the rank."""
        if self.sketch is None:
            return BalancedCountSketch(rank=math.ceil(dimension / 8) if self.rank is None else self.rank)
        if self.rank is not None:
            raise ValueError(
                "minimize: options rank and sketch are not allowed together; the sketch has a rank"
            )
        return self.sketch

    def constants(self, sketch: Sketch, dimension: int) -> dict[str, float]:
        """ℓ and ν: whatever ν is chosen, the ℓ of the sketch."""
        own = sketch.nu(dimension)
        found = {"inflation": own if self.nu is None else self.nu}
        if isinstance(self.smoothness, Tensor | Curvature):
            C = sketch.rate_constant(_curvature(self.smoothness, dimension))
            if not math.isfinite(C):
                raise ValueError(
                    f"minimize: the steps of option sketch = {sketch!r} are too long for option smoothness; "
                    "make both from one L"
                )
            found["smoothness"] = C / own
        elif not self.estimating:
            found["smoothness"] = float(self.smoothness)
        return found

    @property
    def estimating(self) -> bool:
        """Whether ℓ is learnt on the way."""
        return isinstance(self.smoothness, str)


@register
@dataclass(frozen=True)
class SubspaceNesterov(AnySketch):
    """Randomized-subspace Nesterov: accelerated descent from r numbers an iteration."""

    name: ClassVar[str] = "subspace-nesterov"

    strong_convexity: float = option(0.0, NONNEGATIVE, "μ, the smallest curvature")
    schedule: Literal["unified", "convex", "strongly convex"] = option(
        "unified", ("unified", "convex", "strongly convex"), "of the momentum"
    )
    restart: int | None = option(
        None, Interval(1), "iterations after which the momentum is forgotten", integer=True
    )
    restart_by_value: bool = option(
        False,
        (False, True),
        "forget it only if f(y) has grown since the last such iteration; take at least 50",
    )
    warm_start: float = option(0.0, FRACTION, "A₀ in units of ν/ℓ; 1 is faster early and may be slower late")

    def part(self) -> SubspaceStep:
        """The three sequences."""
        return RandomizedSubspace(
            schedule=self.schedule,
            restart=self.restart,
            by_value=self.restart_by_value,
            estimate=self.estimating,
        )

    def constants(self, sketch: Sketch, dimension: int) -> dict[str, float]:
        """ℓ, ν, μ and A₀."""
        if self.schedule == "strongly convex" and self.strong_convexity == 0:
            raise ValueError(
                "minimize: option schedule = 'strongly convex' is not allowed without strong_convexity > 0"
            )
        if self.restart_by_value and self.restart is None:
            raise ValueError(
                "minimize: option restart_by_value needs restart, the iterations between comparisons (at least 50)"
            )
        own = {"strong_convexity": self.strong_convexity, "warm_start": self.warm_start}
        return {**super().constants(sketch, dimension), **own}


@register
@dataclass(frozen=True)
class SubspaceGradientDescent(AnySketch):
    """Randomized-subspace gradient descent: x ← x − P Pᵀ∇f(x)/ℓ."""

    name: ClassVar[str] = "subspace-gradient-descent"
    source: ClassVar[str] = "cf. Kozak, Becker, Doostan & Tenorio (2021), doi:10.1007/s10589-021-00271-w"

    def part(self) -> SubspaceStep:
        """Plain descent."""
        return SubspaceDescent(estimate=self.estimating)


@register
@dataclass(frozen=True)
class CoordinateDescent(SubspaceMethod):
    """Accelerated coordinate descent: single coordinates, drawn in proportion to √L_ii."""

    name: ClassVar[str] = "coordinate-descent"
    source: ClassVar[str] = "Allen-Zhu, Qu, Richtárik & Yuan (2016), arXiv:1512.09103"

    smoothness: Any = option(None, (Tensor, Curvature), "L: a matrix, its diagonal, or a Curvature; needed")
    strong_convexity: float = option(0.0, NONNEGATIVE, "μ, the smallest curvature")

    def part(self) -> SubspaceStep:
        """The three sequences."""
        return RandomizedSubspace()

    def family(self, dimension: int) -> Sketch:
        """Coordinates by importance."""
        if self.smoothness is None:
            raise ValueError(
                "minimize: method 'coordinate-descent' needs the option smoothness: L, its diagonal, or a Curvature"
            )
        return ImportanceCoordinates(_curvature(self.smoothness, dimension))

    def constants(self, sketch: Sketch, dimension: int) -> dict[str, float]:
        """C = (Σ√L_ii)², and μ."""
        return {"inflation": sketch.rate_constant(self.smoothness), "strong_convexity": self.strong_convexity}
