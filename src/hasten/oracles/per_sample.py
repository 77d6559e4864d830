"""The gradient of every sample of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from hasten.checks import flag, optional_number
from hasten.oracles.hessian_vector import variables_of
from hasten.oracles.substitution import Loss
from hasten.words import POSITIVE, Observation, Oracle


class ForEach:
    """A closure for per-sample gradients: the loss of each sample by itself.

    Args:
        loss: the loss of one sample, called with its slice of every tensor of the batch, as a batch of one.
        batch: tensors of shape (n, …).

    Example:
        >>> model = nn.Linear(3, 1)
        >>> each = ForEach(lambda x, y: (model(x) - y).square().mean(), torch.ones(5, 3), torch.zeros(5, 1))
        >>> each().shape
        torch.Size([5])
    """

    def __init__(self, loss: Callable[..., Any], *batch: Tensor) -> None:
        sizes = {t.shape[0] if t.dim() else None for t in batch}
        if len(sizes) != 1 or None in sizes:
            shapes = ", ".join(str(tuple(t.shape)) for t in batch) or "none"
            raise ValueError(
                f"ForEach: tensors of shapes {shapes} are not a batch; all must begin with its size n"
            )
        self.loss = loss
        self.batch = batch
        self.size = int(batch[0].shape[0])

    def __call__(self) -> Tensor:
        """The losses, shape (n,), one after the other."""
        return torch.stack(
            [self.loss(*(t[i : i + 1] for t in self.batch)).reshape(()) for i in range(self.size)]
        )


def per_sample_gradients(
    closure: Callable[[], Any], params: nn.Module | Sequence[Tensor], chunk: int | None = None
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The losses (c,) and gradients (c, \\*shape) of c samples at a time, through all n.

    A :class:`ForEach` costs about as much as the gradient of the batch: each sample goes forward and back once, `chunk`
    together. Any other closure returns the losses of all samples, shape (n,): it is evaluated once, and every sample
    goes back through the graph of the whole batch, n times the work of one backward pass. Either way the gradients
    take `chunk` times the parameters' memory.

    Under `ForEach`, each sample has random numbers of its own, and buffers stay as they are: normalisation over a
    batch makes no sense for one sample, so put it into evaluation mode.

    Raises:
        TypeError, ValueError: the losses are not a real tensor of shape (n,), or one is not of one entry (`ForEach`).
        RuntimeError: the losses do not depend on the parameters.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> [(losses, g[0]) for losses, g in per_sample_gradients(lambda: x @ w, [w])]
        [(tensor([1., 2.]), tensor([[1., 0.],
                [0., 2.]]))]
    """
    yield from _gradients(closure, *variables_of(params), chunk)


def _gradients(
    closure: Callable[[], Any], module: nn.Module | None, tensors: list[Tensor], chunk: int | None
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    if isinstance(closure, ForEach):
        yield from _each(closure, module, tensors, chunk or closure.size)
        return
    with torch.enable_grad():
        losses = closure()
    if not isinstance(losses, Tensor) or losses.dim() != 1 or not losses.is_floating_point():
        found = (
            f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"type {type(losses).__name__}"
        )
        raise ValueError(
            f"PerSample: the closure returned losses of {found}; it must return those of all samples, a real tensor of "
            "shape (n,) (reduction='none'), or be a ForEach"
        )
    if not losses.requires_grad:
        raise RuntimeError("PerSample: the losses do not depend on the parameters")
    size = chunk or max(losses.numel(), 1)
    for begin in range(0, losses.numel(), size):
        stop = min(begin + size, losses.numel())
        rows = losses.new_zeros(stop - begin, losses.numel())
        rows.diagonal(begin).fill_(1)
        gradients = torch.autograd.grad(
            losses, tensors, rows, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )
        yield losses.detach()[begin:stop], list(gradients)


def _each(
    closure: ForEach, module: nn.Module | None, tensors: list[Tensor], size: int
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    def one(points: list[Tensor], *sample: Tensor) -> Any:
        batch_of_one = [t[None] for t in sample]
        return Loss(lambda: closure.loss(*batch_of_one), tensors, module, "PerSample")(points)

    points = [p.detach() for p in tensors]
    for begin in range(0, closure.size, size):
        samples = [t[begin : begin + size] for t in closure.batch]
        gradient = grad_and_value(one, has_aux=True)

        def without_buffers(*sample: Tensor, gradient: Any = gradient) -> tuple[list[Tensor], Tensor]:
            gradients, (value, _) = gradient(points, *sample)
            return gradients, value

        with torch.enable_grad():
            gradients, losses = vmap(without_buffers, randomness="different")(*samples)
        yield losses.detach(), [g.detach() for g in gradients]


@dataclass(frozen=True)
class PerSample(Oracle):
    """The mean of per-sample gradients, each clipped if asked, with their variance.

    The closure returns the losses of all samples, shape (n,), or is a :class:`ForEach`; see
    :func:`per_sample_gradients` for what either costs.

    Delivers the numbers ``loss`` (the mean), ``mean_square`` = (1/n) Σ‖g_i‖², ``variance`` = Σ‖g_i − ḡ‖²/(n−1), the
    trace of the samples' covariance (NaN for one sample), and ``clipped``, the share of samples that were; all of
    gradients before clipping. With ``variance_by_entry=True`` later parts may read ``grad_variance``, the same entry
    by entry.

    Args:
        clip: the largest length of a sample's gradient over all parameters; longer ones are scaled down to it.
        chunk: samples whose gradients are held at once; by default all.

    Example:
        >>> import hasten
        >>> model = nn.Linear(3, 1)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> opt = hasten.Optimizer(model, oracle=PerSample(clip=1.0), lr=0.1)
        >>> _ = opt.step(ForEach(lambda x, y: (model(x) - y).square().mean(), x, y))
    """

    clip: float | None = None
    chunk: int | None = None
    variance_by_entry: bool = False
    formula: ClassVar[str] = "g = (1/n) Σ_i g_i min(1, clip/‖g_i‖)"

    def __post_init__(self) -> None:
        optional_number(self, "clip", self.clip, POSITIVE)
        flag(self, "variance_by_entry", self.variance_by_entry)
        if self.chunk is not None and (type(self.chunk) is not int or self.chunk < 1):
            raise ValueError(
                f"PerSample: chunk = {self.chunk!r} is not allowed; it must be an integer of at least 1"
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The variance of every entry, if it is asked for."""
        return ("grad_variance",) if self.variance_by_entry else ()

    @property
    def delivers(self) -> tuple[str, ...]:
        """The numbers of every step."""
        return ("loss", "mean_square", "variance", "clipped")

    def observe(self, optimizer: Any, closure: Callable[[], Any] | None) -> Observation:
        """Collect the gradients of all samples, chunk by chunk."""
        if closure is None:
            raise TypeError(
                "PerSample: step() needs a closure that returns the losses of all samples, or a ForEach"
            )
        tensors = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        total = [torch.zeros_like(p) for p in tensors]
        kept = [torch.zeros_like(p) for p in tensors] if self.clip is not None else total
        squares = [torch.zeros_like(p) for p in tensors] if self.variance_by_entry else []
        n, loss, square, clipped = 0, 0.0, 0.0, 0
        for losses, gradients in _gradients(closure, optimizer.module, tensors, self.chunk):
            lengths = _lengths(gradients)
            n, loss, square = (
                n + len(losses),
                loss + float(losses.sum()),
                square + float(lengths.square().sum()),
            )
            for t, g in zip(total, gradients, strict=True):
                t += g.sum(0)
            for q, g in zip(squares, gradients, strict=False):
                q += g.square().sum(0)
            if self.clip is not None:
                factor = (self.clip / lengths).clamp(max=1)
                clipped += int((lengths > self.clip).sum())
                for k, g in zip(kept, gradients, strict=True):
                    k += torch.tensordot(factor.to(g.dtype), g, dims=1)
        if n == 0:
            raise ValueError("PerSample: the batch is empty")
        mean_length = sum(float((t.double() / n).square().sum()) for t in total)
        numbers = {
            "loss": loss / n,
            "mean_square": square / n,
            "variance": (square - n * mean_length) / (n - 1) if n > 1 else math.nan,
            "clipped": clipped / n,
        }
        extras = (
            {
                "grad_variance": {
                    p: (q - t.square() / n) / max(n - 1, 1)
                    for p, q, t in zip(tensors, squares, total, strict=True)
                }
            }
            if self.variance_by_entry
            else {}
        )
        gradients_by_parameter = {p: k / n for p, k in zip(tensors, kept, strict=True)}
        return Observation(losses.new_tensor(loss / n), gradients_by_parameter, extras, numbers)


def _lengths(gradients: Sequence[Tensor]) -> Tensor:
    """‖g_i‖ over all parameters, shape (c,), float64."""
    return torch.stack([g.flatten(1).double().square().sum(1) for g in gradients]).sum(0).sqrt()
