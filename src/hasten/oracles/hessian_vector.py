"""Products of the Hessian with vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, jvp

from hasten.checks import check_choice
from hasten.oracles.failures import explaining
from hasten.oracles.substitution import Loss, differentiable_kernels, scalar
from hasten.sketches import Rademacher
from hasten.words import Observation, Oracle


class Product(NamedTuple):
    """A loss, its gradients, and its Hessian times vectors, in the order of the parameters; no graph."""

    loss: Tensor
    gradients: list[Tensor]
    products: list[Tensor]


@dataclass(frozen=True)
class HessianVector(Oracle):
    """The gradient, and the Hessian times a random probe: both from one evaluation of the closure's loss.

    As an oracle it delivers the gradients, and to later parts the extra tensors ``probe`` = v with independent signs
    ±1, and ``hessian_vector`` = Hv; v∘Hv averages to the diagonal of H and its sum to the trace (Hutchinson).
    The probe is drawn from the optimizer's seed and the number of the step.

    Args:
        mode: ``"reverse"`` differentiates g·v back through the graph of the gradient; ``"forward-over-reverse"`` pushes
            v forward through the gradient: about the same time, less memory, and needs forward derivatives.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> loss, g, hv = HessianVector().product(lambda: (w**3).sum(), [w], [torch.ones(2)])
        >>> loss, g, hv
        (tensor(9.), [tensor([ 3., 12.])], [tensor([ 6., 12.])])
    """

    mode: Literal["reverse", "forward-over-reverse"] = "reverse"
    formula: ClassVar[str] = "g = ∇f(y);  v_i = ±1;  h = ∇²f(y) v"

    def __post_init__(self) -> None:
        check_choice("HessianVector", "mode", self.mode, ("reverse", "forward-over-reverse"))

    @property
    def reads(self) -> tuple[str, ...]:
        """The probe and the product."""
        return ("probe", "hessian_vector")

    @property
    def delivers(self) -> tuple[str, ...]:
        """The loss."""
        return ("loss",)

    def product(
        self, closure: Callable[[], Any], params: nn.Module | Sequence[Tensor], vectors: Sequence[Tensor]
    ) -> Product:
        """The loss, its gradients, and Hv.

        Args:
            closure: returns the loss, and does not call ``backward``.
            params: the parameters, or a module: then those of its parameters that require a gradient.
            vectors: v, a tensor in the shape of each parameter.

        Raises:
            TypeError, ValueError: the closure did not return a real loss of one entry, a vector has another shape, or a
                tensor does not require a gradient.
            NotImplementedError: an operation is not differentiable twice; names it and its module.
        """
        module, tensors = variables_of(params)
        if len(vectors) != len(tensors):
            raise ValueError(f"HessianVector: {len(vectors)} vectors for {len(tensors)} parameters")
        for i, (p, v) in enumerate(zip(tensors, vectors, strict=True)):
            if not p.requires_grad:
                raise ValueError(
                    f"HessianVector: tensor {i} does not require a gradient; call requires_grad_() on it"
                )
            if v.shape != p.shape:
                raise ValueError(
                    f"HessianVector: vector {i} has shape {tuple(v.shape)}; its parameter has {tuple(p.shape)}"
                )
        return self._product(Loss(closure, tensors, module, "HessianVector"), list(vectors))

    def _product(self, loss: Loss, vectors: list[Tensor]) -> Product:
        run = self._reverse if self.mode == "reverse" else self._forward_over_reverse
        with explaining(loss.owner, loss.module), differentiable_kernels(loss.module):
            return run(loss, vectors)

    @staticmethod
    def _reverse(loss: Loss, vectors: list[Tensor]) -> Product:
        with torch.enable_grad():
            value = scalar(loss.owner, loss.closure())
            if not value.requires_grad:
                raise RuntimeError("HessianVector: the loss does not depend on the parameters")
            gradients = torch.autograd.grad(value, loss.variables, create_graph=True, materialize_grads=True)
            slope = torch.stack([(g * v).sum() for g, v in zip(gradients, vectors, strict=True)]).sum()
        products = (
            torch.autograd.grad(slope, loss.variables, materialize_grads=True)
            if slope.requires_grad
            else [torch.zeros_like(p) for p in loss.variables]
        )
        return Product(value.detach(), [g.detach() for g in gradients], list(products))

    @staticmethod
    def _forward_over_reverse(loss: Loss, vectors: list[Tensor]) -> Product:
        def gradient(points: list[Tensor]) -> tuple[Any, tuple[Tensor, list[Tensor]]]:
            gradients, (value, buffers) = grad_and_value(loss, has_aux=True)(points)
            return gradients, (value, buffers)

        points = [p.detach() for p in loss.variables]
        with torch.enable_grad():
            result: Any = jvp(gradient, (points,), (vectors,), has_aux=True)
        gradients, products, (value, buffers) = result
        with torch.no_grad():
            loss.write(buffers)
        return Product(value.detach(), [g.detach() for g in gradients], [h.detach() for h in products])

    def observe(self, optimizer: Any, closure: Callable[[], Any] | None) -> Observation:
        """The gradients, a probe, and its product."""
        if closure is None:
            raise TypeError("HessianVector: step() needs a closure that returns the loss")
        tensors = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        probes = signs(tensors, optimizer.seed, int(optimizer.param_groups[0]["step"]))
        loss, gradients, products = self._product(
            Loss(closure, tensors, optimizer.module, "HessianVector"), probes
        )
        extras = {
            "probe": dict(zip(tensors, probes, strict=True)),
            "hessian_vector": dict(zip(tensors, products, strict=True)),
        }
        return Observation(loss, dict(zip(tensors, gradients, strict=True)), extras, {"loss": float(loss)})


def variables_of(params: nn.Module | Sequence[Tensor]) -> tuple[nn.Module | None, list[Tensor]]:
    """A module and its parameters that require a gradient; or no module, and the tensors."""
    if isinstance(params, nn.Module):
        return params, [p for p in params.parameters() if p.requires_grad]
    return None, list(params)


def signs(tensors: Sequence[Tensor], seed: int, step: int) -> list[Tensor]:
    """Independent signs ±1 in the shapes of tensors, from (seed, step): the same on every device."""
    return [
        Rademacher(rank=1)
        .draw(p.numel(), seed=seed, step=step, block=i)
        .columns(0, 1, dtype=p.dtype, device=p.device)
        .view(p.shape)
        if p.numel()
        else torch.zeros_like(p)
        for i, p in enumerate(tensors)
    ]
