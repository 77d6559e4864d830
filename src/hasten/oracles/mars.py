"""MARS: a gradient corrected by its change (Yuan et al., 2024, arXiv:2411.10438)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hasten.numbers import Names, Number
from hasten.oracles.backpropagation import Backpropagation, differentiate
from hasten.words import NONNEGATIVE, UNIT, Buffer, Entry, Observation, Oracle, Value, hyper


@dataclass(frozen=True)
class Mars(Oracle):
    """A variance-reduced gradient: the gradient, plus a multiple of its change since the last step.

    Approximate (the default): the previous gradient is the last step's, of another batch. `exact=True`: the current
    batch is evaluated again at the previous parameters, with the same random numbers; ``step`` then needs a closure.
    The previous gradient of the first step is zero in the approximate mode (as in the authors' code), and the
    gradient itself in the exact one.
    """

    gamma: Value = hyper(0.025, NONNEGATIVE, "strength of the correction")
    beta1: Value = hyper(0.95, UNIT, "decay of the momentum that follows, which scales the correction")
    exact: bool = False
    formula: ClassVar[str] = "c = g + γ β₁/(1−β₁) (g − g_prev)"

    @property
    def reads(self) -> tuple[str, ...]:
        """The gradient of the current batch at the previous parameters."""
        return ("grad_before",) if self.exact else ()

    def buffers(self) -> dict[str, Buffer]:
        """The previous gradient, or the previous parameter."""
        return {"previous_param": Buffer("param", exact=True)} if self.exact else {"previous_grad": Buffer()}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """The multiple of the change."""
        return {"scale": h.gamma * h.beta1 / (1 - h.beta1)}

    def correct(self, g: Entry, s: Any, n: Any) -> Entry:
        """The corrected gradient."""
        if self.exact:
            s.previous_param = s.param
            return g + n.scale * (g - s.grad_before)
        corrected = g + n.scale * (g - s.previous_grad)
        s.previous_grad = g
        return corrected

    def observe(self, optimizer: Any, closure: Callable[[], Any] | None) -> Observation:
        """Evaluate the closure, in the exact mode first at the previous parameters."""
        if not self.exact:
            return Backpropagation().observe(optimizer, closure)
        if closure is None:
            raise TypeError(
                "step() of exact MARS needs a closure that computes the loss and its gradient: it evaluates the "
                "batch again at the previous parameters"
            )
        params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        current = [p.detach().clone() for p in params]
        random_state = torch.get_rng_state()
        cuda_states = {d: torch.cuda.get_rng_state(d) for d in {p.device for p in params} if d.type == "cuda"}
        try:
            for p in params:
                if p in optimizer.state and optimizer.state[p]["step"] > 0:
                    p.detach().copy_(optimizer.state[p]["previous_param"])
            _, before = differentiate(closure, params)
            if before is None:
                before = {p: p.grad.detach().clone() for p in params if p.grad is not None}
        finally:
            for p, value in zip(params, current, strict=True):
                p.detach().copy_(value)
        torch.set_rng_state(random_state)
        for device, state in cuda_states.items():
            torch.cuda.set_rng_state(state, device)
        observation = Backpropagation().observe(optimizer, closure)
        observation.extras["grad_before"] = before
        return observation


@dataclass(frozen=True)
class RememberedPoint(Backpropagation):
    """The plain gradient of a parameter that is moved beside exactly corrected ones: its previous value is kept.

    Exact MARS evaluates the batch at the previous point of *all* parameters, so those that another sentence moves
    must be put back too.
    """

    def buffers(self) -> dict[str, Buffer]:
        """The previous parameter."""
        return {"previous_param": Buffer("param", exact=True)}

    def correct(self, g: Entry, s: Any, n: Any) -> Entry:
        """The gradient itself."""
        s.previous_param = s.param
        return g
