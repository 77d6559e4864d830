"""What is learnt of a gradient that arrived over a network as r numbers s = Pᵀ · mean(g_i)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from hasten.oracles.backpropagation import local_gradients
from hasten.oracles.directional import Direction, second_derivative, squared_norm
from hasten.oracles.subspace import DrawnBlock, Lesson, Sketched
from hasten.oracles.substitution import Loss, State
from hasten.sketches import Draw


@dataclass
class Arrival:
    """What arrived of one parameter's gradient.

    Attributes:
        draw: P.
        s: the mean of Pᵀg_i over the workers, shape (r,).
        dtype: that of the gradient into which P s was written.
        taken_at: how many steps the optimizer had made or skipped when it used this; None: it has not.
    """

    draw: Draw
    s: Tensor
    dtype: torch.dtype
    taken_at: int | None = None

    def lifted(self, p: Tensor) -> Tensor:
        """P s, as it was written into ``p.grad``."""
        out = torch.empty_like(p, dtype=self.dtype, requires_grad=False)
        return self.draw.lift(self.s, out).to(p.dtype)


class Network(Protocol):
    """Where gradients arrive from, as :class:`~hasten.distributed.SubspaceHook` is."""

    def arrival(self, p: Tensor) -> Arrival | None:
        """What arrived last of a parameter's gradient; None for one without entries, or before the first arrival.

        Raises:
            KeyError: nothing ever arrives for this tensor.
        """

    def mean(self, number: float, part: str) -> float:
        """The mean over all workers, each of which calls this."""

    def apart(self) -> AbstractContextManager[None]:
        """Inside it the model is this worker's alone: nothing is sent, whatever runs forward or backward."""


@dataclass(frozen=True)
class Received(Sketched):
    """s = Pᵀ · mean(g_i) as it arrived in the last synchronised ``backward``: nothing is drawn or sent again.

    This is :class:`~hasten.oracles.Sketched` on the gradient of the mean of all workers' losses, with the subspaces of
    the network's seed in place of the optimizer's. Get it from :attr:`hasten.distributed.SubspaceHook.oracle`.

    Weight decay λ P Pᵀ y is added by every worker for itself. ``curvature`` = Gᵀ∇²f(y)G of the mean loss is the mean of
    what the workers find for their own losses, by a central difference of G · ∇f_i at two points: two more forward and
    backward passes that send nothing, and 8 bytes to average. The mean loss, if momentum is restarted by value, takes
    8 bytes more. Both need a closure.

    Gradients may be multiplied by one positive number between ``backward`` and ``step``, as a ``GradScaler`` or a
    clipping by norm does; s is multiplied alike.

    Args:
        network: where the gradients arrive.
        shared_loss: whether ``loss`` is to be the mean over all workers; otherwise it is this worker's own.

    Raises:
        RuntimeError: there was no synchronised ``backward`` since the last step; or a gradient was changed in another
            way since it arrived; or a parameter is not one of the network's. Nothing is changed.
    """

    network: Network | None = None
    shared_loss: bool = False
    arrives: ClassVar[bool] = True
    formula: ClassVar[str] = "s = mean(Pᵀ∇f_i(y)) over the workers;  G = P s"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network is None:
            raise TypeError("Received: network is missing; take the oracle from SubspaceHook(...).oracle")

    def drawn(self, variables: Sequence[Tensor], seed: int, step: int) -> list[DrawnBlock]:
        """None yet: the matrices arrive with s."""
        return []

    def learn(self, optimizer: Any, loss: Loss | None, drawn: list[DrawnBlock], start: State) -> Lesson:
        """Run the closure, if there is one, and take what has arrived."""
        assert self.network is not None
        found = self.inner.observe(optimizer, None if loss is None else loss.closure)
        variables = [
            p for group in optimizer.param_groups for p in group["params"] if p.requires_grad and p.numel()
        ]
        grads = {p: p.grad for p in variables} if found.gradients is None else found.gradients
        known = {p: g for p in variables if (g := grads.get(p)) is not None}
        arrived = self._arrived(optimizer, known)
        factor = 1.0 if found.gradients is not None else _common_factor(optimizer, known, arrived)
        blocks = [DrawnBlock(a.draw, [p]) for p, a in arrived.items()]
        coordinates = [a.s if factor == 1 else a.s * factor for a in arrived.values()]
        value = found.loss.detach() if isinstance(found.loss, Tensor) else found.loss
        number = math.nan if value is None else float(value)
        if self.shared_loss:
            number = self.network.mean(number, "loss")
        return Lesson(found.loss, number, coordinates, evaluations=1, drawn=blocks, lifted=known)

    def _arrived(self, optimizer: Any, variables: Mapping[Tensor, Tensor]) -> dict[Tensor, Arrival]:
        assert self.network is not None
        now = int(optimizer.param_groups[0]["step"]) + optimizer.skipped_steps
        found: dict[Tensor, Arrival] = {}
        for p in variables:
            try:
                arrival = self.network.arrival(p)
            except KeyError:
                raise RuntimeError(
                    f"{optimizer.name}: {optimizer.name_of(p)} is not a parameter of the model that the hook is "
                    "registered with"
                ) from None
            if arrival is None or arrival.taken_at not in (None, now):
                raise RuntimeError(
                    f"{optimizer.name}: no gradient has arrived since the last step; call loss.backward() outside of "
                    "no_sync() before each step(), or give step() a closure that returns the loss"
                )
            found[p] = arrival
        for arrival in found.values():
            arrival.taken_at = now
        return found

    def bend(self, loss: Loss | None, variables: Sequence[Tensor], along: Direction, start: State) -> float:
        """Gᵀ∇²h G of the mean h of all workers' losses."""
        assert self.network is not None
        if loss is None:
            raise TypeError("Received: curvature=True needs a closure that returns the loss")
        closure, apart = loss.closure, self.network.apart

        def slope() -> float:
            start.restore()
            with apart():
                found = local_gradients(closure, variables)
            pairs = zip(found, along(), strict=True)
            return sum(_dot(g, direction) for g, direction in pairs if g is not None)

        return self.network.mean(second_derivative(slope, variables, along), "curvature")


def _common_factor(
    optimizer: Any, grads: Mapping[Tensor, Tensor], arrived: Mapping[Tensor, Arrival]
) -> float:
    """c with grad = c P s for every parameter; 1 where s is not finite, which the optimizer answers by itself."""
    if not all(bool(torch.isfinite(a.s).all()) for a in arrived.values()):
        return 1.0
    if all(torch.equal(grads[p], a.lifted(p)) for p, a in arrived.items()):
        return 1.0
    square = along = 0.0
    for p, a in arrived.items():
        own = a.lifted(p)
        square, along = square + squared_norm(own), along + _dot(grads[p], own)
    factor = along / square if square > 0 else 0.0
    for p, a in arrived.items():
        own, g = a.lifted(p).double() * factor, grads[p].double()
        tolerance = 8 * max(torch.finfo(p.dtype).eps, torch.finfo(a.dtype).eps)
        if not (factor > 0 and math.sqrt(squared_norm(g - own)) <= tolerance * math.sqrt(squared_norm(own))):
            raise RuntimeError(
                f"{optimizer.name}: the gradient of {optimizer.name_of(p)} was changed after it had arrived, other "
                "than by one positive factor for all parameters, so it is no longer P s of the s that was sent. Give "
                "weight decay to the optimizer, clip by the norm of all gradients together, or use an oracle that "
                "reads p.grad"
            )
    return _rounded(factor, max(torch.finfo(p.dtype).eps for p in arrived))


def _rounded(factor: float, epsilon: float) -> float:
    """The power of two that the factor is but for rounding, so that the workers agree on it to the bit."""
    power = 2.0 ** round(math.log2(factor))
    return power if abs(factor - power) <= 8 * epsilon * power else factor


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.detach().reshape(-1).double(), b.detach().reshape(-1).double()))
