"""Randomized-subspace methods: descent, and accelerated descent, from r numbers a step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from hasten.checks import check_choice, flag, number, optional_number
from hasten.engine import EngineOptions, Optimizer
from hasten.engine.optimizer import listed
from hasten.iterates import RandomizedSubspace, SubspaceDescent
from hasten.iterates.subspace import SubspaceStep
from hasten.oracles.backpropagation import Backpropagation
from hasten.oracles.received import Received
from hasten.oracles.subspace import Sketched, SubspaceOracle
from hasten.sharding import placed, whole
from hasten.sketches import BalancedCountSketch, Curvature, ImportanceBlocks, PerLayer, Sketch
from hasten.words import POSITIVE, Value

Smoothness: TypeAlias = float | Tensor | Curvature | Literal["estimate"]
"""ℓ as a number; or L as a diagonal, a matrix or a curvature, from which ℓ follows; or "estimate"."""

RATIO = 8.0
"""d/r where neither a rank nor a sketch is given."""
DIRECTIONS = 16
"""r where neither is given and every number costs an evaluation."""


class SubspaceOptimizer(Optimizer):
    """What the randomized-subspace optimizers share; not used directly."""

    def _begin(
        self,
        params: Any,
        iterate: SubspaceStep,
        oracle: SubspaceOracle | None,
        sketch: Sketch | None,
        rank: int | None,
        smoothness: Smoothness,
        nu: float | None,
        engine: EngineOptions,
    ) -> None:
        """Settle the sketch and its constants, then build the sentence oracle → iterate."""
        if oracle is not None and not isinstance(oracle, SubspaceOracle):
            raise ValueError(
                f"{type(self).__name__}: oracle = {oracle!r} is not allowed; it must be a SubspaceOracle: Sketched, "
                "ForwardMode or FiniteDifference"
            )
        params = params if isinstance(params, nn.Module) else listed(params)
        shapes = [p.shape for p in _trainable(params)]
        asked = Sketched() if oracle is None else oracle
        family = self._family(asked, sketch, rank, shapes)
        dimension = sum(map(math.prod, shapes))
        own = family.nu(dimension) if dimension else 1.0
        chosen = optional_number(self, "nu", nu, POSITIVE)
        iterate = dataclasses.replace(
            iterate,
            smoothness=self._expected_smoothness(smoothness, family, dimension, own),
            inflation=own if chosen is None else chosen,
            second_moment=own,
            estimate=isinstance(smoothness, str),
        )
        valued = iterate.estimate or "loss" in iterate.needs
        if valued and isinstance(asked, Sketched) and asked.inner == Backpropagation():
            asked = dataclasses.replace(asked, inner=Backpropagation(loss=True))
        if isinstance(asked, Received):
            asked = dataclasses.replace(asked, shared_loss="loss" in iterate.needs)
        asked = dataclasses.replace(
            asked, rank=None, sketch=family, weight_decay=iterate.weight_decay, curvature=iterate.estimate
        )
        Optimizer.__init__(self, params, oracle=asked, iterate=iterate, **engine)
        self._family_asked = family
        self._chosen_nu = chosen is not None
        self._knows_curvature = isinstance(smoothness, Curvature) or (
            isinstance(smoothness, Tensor) and smoothness.dim() > 0
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; ν becomes that of the sketch of all parameters, unless it was given.

        Raises:
            ValueError: as for every optimizer; or L was given, which says nothing of further parameters. Nothing is
                changed.
        """
        made = hasattr(self, "_family_asked")  # not while torch's constructor adds the first groups
        if made and self._knows_curvature:
            raise ValueError(
                f"{self.name}: a parameter group cannot be added, because smoothness was given for the parameters "
                "there were; give it as a number, or 'estimate' it"
            )
        super().add_param_group(param_group)
        if made:
            self._follow_parameters()

    def _follow_parameters(self) -> None:
        """Put the constants of the sketch of all parameters into the groups, where they were not chosen."""
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad and p.numel()]
        family = self._family_asked
        family = family.bind([p.shape for p in params]) if isinstance(family, PerLayer) else family
        found = {"second_moment": family.nu(sum(p.numel() for p in params))}
        if not self._chosen_nu:
            metrics = [
                whole(self.state[p]["metric"], "sketched", of=p).reshape(-1).cpu()
                for p in params
                if "metric" in self.state[p]
            ]
            found["inflation"] = (
                _mirror_inflation(family, torch.cat(metrics)) if metrics else found["second_moment"]
            )
        for name, value in found.items():
            before, self.defaults[name] = self.defaults[name], value
            for group in self.param_groups:
                if group[name] == before:
                    group[name] = value

    def _family(
        self, asked: SubspaceOracle, sketch: Sketch | None, rank: int | None, shapes: Sequence[Sequence[int]]
    ) -> Sketch:
        owner = type(self).__name__
        for name, own, other in (("rank", rank, asked.rank), ("sketch", sketch, asked.sketch)):
            if own is not None and other is not None and own != other:
                raise ValueError(
                    f"{owner}: {name} = {own!r} is not allowed beside an oracle with {name} = {other!r}; give one"
                )
        sketch, rank = asked.sketch if sketch is None else sketch, asked.rank if rank is None else rank
        entries = sum(map(math.prod, shapes))
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise ValueError(f"{owner}: rank = {rank!r} is not allowed; it must be a positive integer")
        if sketch is None and isinstance(asked, Sketched):
            sketch = BalancedCountSketch(ratio=RATIO) if rank is None else BalancedCountSketch(rank=rank)
            sketch = sketch if len(shapes) < 2 else PerLayer(sketch)
        elif sketch is None:
            sketch = BalancedCountSketch(rank=max(1, min(DIRECTIONS, entries)) if rank is None else rank)
        elif not isinstance(sketch, Sketch):
            raise ValueError(
                f"{owner}: sketch = {sketch!r} is not allowed; it must be a hasten.sketches.Sketch"
            )
        elif rank is not None and rank != sketch.rank:
            raise ValueError(
                f"{owner}: rank = {rank!r} is not allowed beside a sketch, which has a rank of its own"
            )
        return sketch.bind(shapes) if isinstance(sketch, PerLayer) else sketch

    def _expected_smoothness(
        self, smoothness: Smoothness, family: Sketch, dimension: int, nu: float
    ) -> float:
        owner = type(self).__name__
        if isinstance(smoothness, str):
            check_choice(owner, "smoothness", smoothness, ("estimate",))
            return 1.0
        if isinstance(smoothness, Curvature) or (isinstance(smoothness, Tensor) and smoothness.dim() > 0):
            curvature = Curvature.of(smoothness)
            if curvature.dimension != dimension:
                raise ValueError(
                    f"{owner}: smoothness of dimension {curvature.dimension} is not allowed; it must be "
                    f"of dimension {dimension}, the number of entries of all parameters"
                )
            C = family.rate_constant(curvature)
            if not math.isfinite(C):
                raise ValueError(
                    f"{owner}: the steps of sketch = {family!r} are too long for smoothness; make both from one L"
                )
            return C / nu
        if not isinstance(smoothness, Real | Tensor):
            raise ValueError(
                f"{owner}: smoothness = {smoothness!r} is not allowed; it must be a number, a tensor, a Curvature or "
                "'estimate'"
            )
        return number(self, "smoothness", smoothness, POSITIVE)

    @property
    def oracle_calls(self) -> int:
        """How many numbers were learnt of gradients so far: r a step."""
        return int(max(group["oracle_calls"] for group in self.param_groups))


def _mirror_inflation(family: Sketch, metric: Tensor) -> float:
    """λ_max(E[W M⁻¹ W]); where the sketch fixes its own descent steps, the bound λ_max(M⁻¹) λ_max(E[W²])."""
    inverse = Curvature.of(1 / metric)
    if isinstance(family, ImportanceBlocks):
        return inverse.largest * family.nu(inverse.dimension)
    return family.expected_smoothness(inverse)


def _trainable(params: Any) -> list[Tensor]:
    """The parameters that will be moved, in order, from anything an optimizer takes."""
    if isinstance(params, nn.Module):
        return [p for p in params.parameters() if p.requires_grad]
    found: list[Tensor] = []
    for entry in params if isinstance(params, list) else ():
        entry = entry["params"] if isinstance(entry, Mapping) else entry
        entries = [entry] if isinstance(entry, Tensor) or _is_named(entry) else list(entry)
        found += [e[1] if _is_named(e) else e for e in entries]
    return [p for p in found if isinstance(p, Tensor) and p.requires_grad]


def _is_named(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)


class SubspaceNesterov(SubspaceOptimizer):
    """Randomized-subspace Nesterov acceleration: accelerated descent that learns r numbers of the gradient a step.

    ``step`` takes a closure that returns the loss. The parameters hold the query point y; the guarantee is for x, which
    they hold inside ``with opt.evaluating()``: E f(x_k) − f* ≤ 2CR²/(k+1)² with C = νℓ, and linear if μ > 0. With r = d
    and an orthogonal sketch this is Nesterov's method.

    Args:
        params: as for every optimizer; a module where the oracle is forward mode over one.
        sketch: family of the random subspaces. By default balanced CountSketch: of every matrix by itself, with vectors
            kept exact; of all parameters together where every number costs an evaluation.
        rank: r in all, instead of a sketch. By default an eighth of the parameters, or 16 where every number costs an
            evaluation.
        smoothness: ℓ = λ_max(E[W L W]), W = PPᵀ, as a number; or L as a diagonal, a matrix or a
            :class:`~hasten.sketches.Curvature` over all parameters, from which ℓ follows; or "estimate": from second
            directional derivatives on the way, two more numbers a step, and a closure that returns the loss. The
            estimate is a heuristic without a proof, and what to use for networks.
        strong_convexity: μ; 0 for convex functions, and where it is not known (then consider `restart`).
        nu: ν. By default the sketch's, which is safe; values down to 1 are faster until they are unstable.
        oracle: how Pᵀ∇f is learnt: from backpropagation by default; :class:`~hasten.oracles.ForwardMode` keeps no
            activations; :class:`~hasten.oracles.FiniteDifference` needs no derivative;
            :attr:`SubspaceHook.oracle <hasten.distributed.SubspaceHook.oracle>` takes what arrives over a network.
        schedule: "unified" for any μ; "convex" and "strongly convex" are the closed forms.
        restart: forget the momentum every so many steps (⌈√(4eC/μ)⌉ is safe where μ is roughly known); with
            `restart_by_value` only if the loss at y has grown since the last such step. Take at least 50.
        warm_start: start with A₀ = ν/ℓ: faster early, may be slower late.
        mirror: diagonal of the metric M of the mirror step, a tensor for each parameter in order; ν is then
            λ_max(E[W M⁻¹ W]), and distances and μ are measured in M.
        weight_decay: λ of a term (λ/2)‖x‖² of the objective, which is sketched like the rest.
        lr: factor on the step 1/ℓ, for schedulers.
        engine: see :class:`~hasten.EngineOptions`; the subspaces are drawn from `seed`.

    Example:
        >>> import torch, hasten
        >>> w = torch.zeros(64, requires_grad=True)
        >>> opt = hasten.SubspaceNesterov([w], rank=8, smoothness=torch.arange(1.0, 65.0) ** -2)
        >>> for _ in range(10):
        ...     _ = opt.step(lambda: ((w - 1) ** 2 * torch.arange(1.0, 65.0) ** -2).sum() / 2)
        >>> opt.oracle_calls
        80
    """

    source: ClassVar[str] = (
        "after the abstract of Omiya, Poirion & Takeda 2026, arXiv:2605.00740; constants and proofs are our own"
    )

    def __init__(
        self,
        params: Any,
        sketch: Sketch | None = None,
        rank: int | None = None,
        smoothness: Smoothness = "estimate",
        strong_convexity: Value = 0.0,
        nu: float | None = None,
        oracle: SubspaceOracle | None = None,
        schedule: Literal["unified", "convex", "strongly convex"] = "unified",
        restart: int | None = None,
        restart_by_value: bool = False,
        warm_start: bool = False,
        mirror: Sequence[Tensor] | None = None,
        weight_decay: Value = 0.0,
        lr: Value = 1.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        owner = type(self).__name__
        if mirror is not None and not (
            isinstance(mirror, list | tuple) and all(isinstance(m, Tensor) for m in mirror)
        ):
            raise ValueError(f"{owner}: mirror = {mirror!r} is not allowed; it must be a list of tensors")
        check_choice(owner, "schedule", schedule, ("unified", "convex", "strongly convex"))
        if schedule == "strongly convex" and (strong_convexity is None or strong_convexity == 0):
            raise ValueError(
                f"{owner}: strong_convexity = {strong_convexity!r} is not allowed with schedule='strongly convex'; "
                "it must be positive"
            )
        if restart is not None and (isinstance(restart, bool) or not isinstance(restart, int) or restart < 1):
            raise ValueError(
                f"{owner}: restart = {restart!r} is not allowed; it must be a positive integer, or None"
            )
        if flag(self, "restart_by_value", restart_by_value) and restart is None:
            raise ValueError(
                f"{owner}: restart_by_value needs restart, the steps between comparisons (at least 50)"
            )
        iterate = RandomizedSubspace(
            lr=lr,
            weight_decay=weight_decay,
            strong_convexity=strong_convexity,
            warm_start=float(flag(self, "warm_start", warm_start)),
            schedule=schedule,
            restart=restart,
            by_value=restart_by_value,
            mirror=mirror is not None,
        )
        self._begin(params, iterate, oracle, sketch, rank, smoothness, nu, engine)
        if mirror is not None:
            self._set_mirror(mirror)

    def _set_mirror(self, mirror: Sequence[Tensor]) -> None:
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if len(mirror) != len(params):
            raise ValueError(
                f"{self.name}: mirror of {len(mirror)} tensors is not allowed; it must be {len(params)}, one for each "
                "parameter"
            )
        for p, metric in zip(params, mirror, strict=True):
            if metric.shape != p.shape or not bool((torch.isfinite(metric) & (metric > 0)).all()):
                raise ValueError(
                    f"{self.name}: mirror of {self.name_of(p)} is not allowed; it must be positive, finite, of shape "
                    f"{tuple(p.shape)}"
                )
        for p, metric in zip(params, mirror, strict=True):
            own = self.state[p]["metric"]
            own.copy_(placed(metric.to(own.device), like=own))
        self._follow_parameters()


class SubspaceGradientDescent(SubspaceOptimizer):
    """Randomized-subspace gradient descent: x ← x − P Pᵀ∇f(x)/ℓ.

    Needs no momentum buffers. It can beat the accelerated method on clustered spectra and at loose accuracy, and with
    r beyond the effective rank takes about as many steps as gradient descent.

    Args:
        params: as for every optimizer.
        sketch: as for :class:`SubspaceNesterov`.
        rank: as for :class:`SubspaceNesterov`.
        smoothness: as for :class:`SubspaceNesterov`.
        oracle: as for :class:`SubspaceNesterov`.
        weight_decay: λ of a term (λ/2)‖x‖² of the objective.
        lr: factor on the step 1/ℓ, for schedulers.
        engine: see :class:`~hasten.EngineOptions`.

    Example:
        >>> import torch, hasten
        >>> w = torch.zeros(64, requires_grad=True)
        >>> opt = hasten.SubspaceGradientDescent([w], rank=8, smoothness=torch.ones(64))
        >>> loss = opt.step(lambda: ((w - 1) ** 2).sum() / 2)
    """

    source: ClassVar[str] = "cf. Kozak, Becker, Doostan & Tenorio 2021, Comput. Optim. Appl. 79"

    def __init__(
        self,
        params: Any,
        sketch: Sketch | None = None,
        rank: int | None = None,
        smoothness: Smoothness = "estimate",
        oracle: SubspaceOracle | None = None,
        weight_decay: Value = 0.0,
        lr: Value = 1.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = SubspaceDescent(lr=lr, weight_decay=weight_decay)
        self._begin(params, iterate, oracle, sketch, rank, smoothness, None, engine)
