"""The unified view: which coefficients of accelerated SGD's linear recurrence an optimizer uses.

Every method of the family is, up to its geometry, one buffer and four numbers a step,

    m ← ρ m + s d;   y ← y − A m − B d;   evaluate at x = y + E m, or at an average x ← x + c (y − x),

with `d` the gradient (or the gradient in the method's metric). With constant coefficients it is quasi-hyperbolic
momentum with ``lr = B + sA/(1−ρ)`` and ``ν = 1 − B/lr``. Theorems: Morwani, Vyas, Zhang & Kakade 2025,
arXiv:2502.02431, re-derived; each map is a test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from hasten.engine import Optimizer
from hasten.engine.composition import Composition
from hasten.engine.scheduling import scheduled
from hasten.iterates import Plain, RandomizedSubspace, ScheduleFree, SubspaceDescent, ThreeSequences
from hasten.numbers import Names
from hasten.oracles import Mars, SubspaceOracle
from hasten.sketches import Identity, ImportanceBlocks
from hasten.transforms import TwoMomenta
from hasten.words import Geometry, Momentum, Step


@dataclass(frozen=True)
class Equivalence:
    """The coefficients of one step, lengths included.

    `slot` says where a nonlinear geometry stands: "none", "before" the linear recurrence (Schedule-Free AdamW) or
    "after" it (AdamW, Lion). `remarks` name what the recurrence leaves out; without remarks it is exact.
    """

    name: str
    step: int
    rho: float
    s: float
    A: float
    B: float
    E: float
    average: float | None
    slot: Literal["none", "before", "after"]
    remarks: tuple[str, ...] = ()

    @property
    def beta(self) -> float:
        """Decay of the momentum."""
        return self.rho

    @property
    def lr(self) -> float:
        """Total length of the step in one direction: ``B + sA/(1−ρ)``."""
        return self.B + self.s * self.A / (1 - self.rho)

    @property
    def nu(self) -> float:
        """Share of the average in the step; 1−ν is the share of the current direction."""
        return 1 - self.B / self.lr if self.lr else 0.0

    @property
    def alpha(self) -> float:
        """Weight of the current direction against the undamped sum, ``B/(sA)``: Simplified-AdEMAMix's α."""
        return self.B / (self.s * self.A) if self.s * self.A else float("inf")

    @property
    def current_weight(self) -> float:
        """Weight of the newest gradient in a step of total weight 1: ``1 − νβ``."""
        return 1 - self.nu * self.beta

    def __str__(self) -> str:
        point = (
            f"x ← x + {self.average:.4g} (y − x)" if self.average is not None else f"x = y + {self.E:.4g} m"
        )
        lines = [
            f"{self.name}, step {self.step}:  m ← {self.rho:.6g} m + {self.s:.4g} d;  "
            f"y ← y − {self.A:.4g} m − {self.B:.4g} d;  {point if self.average is not None or self.E else 'x = y'}",
            f"  = quasi-hyperbolic momentum with lr {self.lr:.4g}, ν {self.nu:.4g}, β {self.beta:.6g}"
            f"  (α {self.alpha:.4g})",
        ]
        return "\n".join([*lines, *(f"  {remark}" for remark in self.remarks)])


def equivalent(optimizer: Optimizer, step: int | None = None) -> Equivalence:
    """The coefficients of accelerated SGD that an optimizer uses.

    Args:
        optimizer: any optimizer of the library, or a free composition.
        step: at which step, from 1; by default the coming one.

    Raises:
        ValueError: the method is not of this family; says why.

    Example:
        >>> import torch, hasten
        >>> print(hasten.equivalent(hasten.Lion([torch.ones(3, requires_grad=True)])))
        Lion, step 1:  m ← 0.99 m + 1 d;  y ← y − 9.091e-07 m − 9.091e-06 d;  x = y
          = quasi-hyperbolic momentum with lr 0.0001, ν 0.9091, β 0.99  (α 10)
          Sign after the recurrence
    """
    group = optimizer.param_groups[0]
    k = group["step"] + 1 if step is None else step
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"equivalent: step = {step!r} is not allowed; it must be a whole number from 1")
    composition = optimizer.compositions[0]
    h = composition.values(scheduled(optimizer, group, back=group["step"] - k + 1), float)
    return _Reader(type(optimizer).__name__, composition, h, k).read()


class _Reader:
    """Reads the coefficients off a composition."""

    def __init__(self, name: str, composition: Composition, h: list[Names], k: int) -> None:
        self.name, self.composition, self.h, self.k = name, composition, h, k
        self.iterate, self.h_iterate = composition.sentence.iterate, h[-1]
        numbered = list(enumerate(composition.parts))
        self.momenta = [(i, part) for i, part in numbered if isinstance(part, Momentum)]
        self.geometries = [(i, part) for i, part in numbered if isinstance(part, Geometry)]

    def read(self) -> Equivalence:
        average = None
        if isinstance(self.iterate, Plain):
            rho, a, b = self._momentum()
            lr = self.h_iterate.lr
            numbers: tuple[float, ...] = (rho, 1.0, lr * a, lr * b, 0.0)
        elif isinstance(self.iterate, ScheduleFree):
            numbers, average = self._schedule_free()
        elif isinstance(self.iterate, SubspaceDescent | RandomizedSubspace):
            numbers = self._subspace(self.iterate)
        elif isinstance(self.iterate, ThreeSequences):
            numbers = self._three_sequences()
        else:
            raise ValueError(
                f"{self.name} is not of the accelerated-SGD family: {type(self.iterate).__name__} is not linear"
            )
        rho, s, a, b, e = numbers
        return Equivalence(self.name, self.k, rho, s, a, b, e, average, self._slot(), tuple(self._remarks()))

    def _slot(self) -> Literal["none", "before", "after"]:
        """Where the geometries stand: a three-sequence iterate is itself the recurrence."""
        if not self.geometries:
            return "none"
        recurrence = self.momenta[0][0] if self.momenta and isinstance(self.iterate, Plain) else None
        if recurrence is None:
            return "after" if isinstance(self.iterate, Plain) else "before"
        return "before" if self.geometries[0][0] < recurrence else "after"

    def _remarks(self) -> list[str]:
        remarks = [f"{type(part).__name__} {self._slot()} the recurrence" for _, part in self.geometries]
        remarks += [
            f"up to {type(part).__name__}, which is not linear"
            for part in self.composition.parts
            if isinstance(part, Step) and (part.measures or part.grain == "matrix")
        ]
        for i, part in self.momenta:
            if isinstance(part, TwoMomenta) and self.h[i].beta1:
                remarks.append(
                    "d is the fast average of the gradient, after its bias correction has died out"
                )
            if not isinstance(self.iterate, Plain):
                remarks.append(f"driven by {type(part).__name__} of the gradient")
        oracle = self.composition.sentence.oracle
        if isinstance(oracle, Mars) and oracle.exact:
            remarks.append("the correction uses another oracle: the batch evaluated twice")
        if isinstance(oracle, SubspaceOracle) and not isinstance(oracle.sketch, Identity):
            remarks.append("d is the gradient seen from a random subspace, P Pᵀ∇f")
        return remarks

    def _momentum(self) -> tuple[float, float, float]:
        oracle = self.composition.sentence.oracle
        if len(self.momenta) > 1:
            raise ValueError(
                f"{self.name} has {len(self.momenta)} momenta in series, which is not one linear buffer"
            )
        if not self.momenta:
            return 0.0, 0.0, 1.0
        i, momentum = self.momenta[0]
        assert isinstance(momentum, Momentum)
        rho, a, b = momentum.linear(self.h[i], self.k)
        if isinstance(oracle, Mars) and not oracle.exact:
            # c = g + γβ/(1−β)(g − g_prev) through an average with the same β is ν = 1−γ.
            if b != 0 or self.h[0].beta1 != rho:
                raise ValueError(
                    f"{self.name}: the correction and the momentum have different β: not one linear buffer"
                )
            gamma = self.h[0].gamma
            total = a / (1 - rho)
            return rho, a * (1 - gamma), gamma * total
        return rho, a, b

    def _schedule_free(self) -> tuple[tuple[float, ...], float]:
        assert isinstance(self.iterate, ScheduleFree)
        beta, c, weight = self.h_iterate.momentum, Names(**self.iterate.counters()), 1.0
        for step in range(1, self.k + 1):
            before = weight
            n = self.iterate.numbers(self.h_iterate, step, c)
            weight = n["weight"]
        average = weight / (1 - beta * (1 - weight)) if weight else 0.0
        return (1 - before, n["lr"], beta * weight, (1 - beta) * n["lr"], 0.0), average

    def _three_sequences(self) -> tuple[float, ...]:
        assert isinstance(self.iterate, ThreeSequences)
        c = Names(**self.iterate.counters())
        for step in range(1, self.k + 1):
            g, ahead = self.iterate.coupling(self.h_iterate, step, c)
        if g.p != 0 or g.q != 0:
            raise ValueError(f"{self.name} averages x inside the recurrence; give its coupling instead")
        output = self.iterate.output(self.h_iterate, ahead) if self.iterate.two_points else 0.0
        return (1 - g.a) * (1 - g.b), g.gamma - g.delta, ahead, g.delta, output

    def _subspace(self, iterate: SubspaceDescent | RandomizedSubspace) -> tuple[float, ...]:
        oracle = self.composition.sentence.oracle
        reasons = {
            "the curvature measured on the way": "curvature" in iterate.needs,
            "the losses met on the way": "loss" in iterate.needs,
            "the coordinates drawn": isinstance(oracle, SubspaceOracle)
            and isinstance(oracle.sketch, ImportanceBlocks),
            "the mirror metric": isinstance(iterate, RandomizedSubspace) and iterate.mirror,
        }
        if any(reasons.values()):
            found = " and ".join(reason for reason, applies in reasons.items() if applies)
            raise ValueError(f"{self.name}: its coefficients depend on {found}")
        unmeasured = Names(directional_derivatives=0.0, squared_norm=0.0, short_step=math.nan)
        c = Names(**iterate.counters())
        for step in range(1, self.k + 1):
            n = iterate.measured(self.h_iterate, step, c, unmeasured)
        if isinstance(iterate, SubspaceDescent):
            return 0.0, 1.0, 0.0, n["delta"], 0.0
        return n["R"], n["S"], n["a"], n["U"], c.output


TABLE_STEP = 1000
"""The step at which the table is read: bias corrections have died out, Schedule-Free's window is 1000 steps."""


def table() -> list[Mapping[str, Any]]:
    """The unified view as rows, one for each named optimizer at its defaults, read off the code at step 1000.

    Example:
        >>> from hasten.equivalence import table
        >>> round(next(row for row in table() if row["optimizer"] == "Nesterov")["alpha"], 6)
        1.111111
    """
    from hasten.optimizers import CATALOGUE

    rows: list[Mapping[str, Any]] = []
    for name, cls in CATALOGUE.items():
        optimizer = cls([torch.zeros(2, 2, requires_grad=True)], engine="eager")
        try:
            e = equivalent(optimizer, TABLE_STEP)
        except ValueError as error:
            rows.append({"optimizer": name, "remarks": str(error)})
            continue
        point = "average of y" if e.average is not None else "y + E m" if e.E else "y"
        rows.append(
            {
                "optimizer": name,
                "beta": e.beta,
                "nu": e.nu,
                "lr": e.lr,
                "alpha": e.alpha,
                "current weight": e.current_weight,
                "slot": e.slot,
                "evaluate at": point,
                "remarks": "; ".join(e.remarks) or "exact",
            }
        )
    return rows
