"""Geometry of Kronecker statistics: each side of a matrix preconditioned by an inverse root (Shampoo)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hasten.checks import check_choice, flag, number, optional_number
from hasten.linalg.inverse_root import inv_root
from hasten.linalg.products import symmetric_product
from hasten.numbers import Names, Number
from hasten.transforms.blocks import Blocks, merged
from hasten.transforms.eigenbasis import AT_LEAST_ONE, due
from hasten.words import FRACTION, NONNEGATIVE, POSITIVE, Buffer, Entry, Geometry, Value, hyper

GRAFTS = (None, "sgd", "adagrad", "rmsprop", "adam")


@dataclass(frozen=True)
class KroneckerRoot(Geometry):
    """Shampoo's preconditioner of matrices, L^(-1/4) D R^(-1/4), with the length of another method's direction.

    A matrix is cut into blocks of at most `max_preconditioner_dim` rows and columns, each with factors L and R of its
    own; the result depends on where the blocks end. With one block and no memory (β₂ = 0, no momentum, eps 0) the
    direction is the polar factor of the gradient.

    The length of the direction of every block is that of the grafted method's, so that its learning rate can be used
    as it is; before `start_preconditioning_step` the grafted direction itself is taken. Without grafting lr has the
    unit of Shampoo's own direction, and steps before the start are the incoming direction.

    Zero gradients give a zero direction. Where a factor holds numbers that are not finite, or its root cannot be found,
    the previous root is kept (the identity, if there is none).

    Args:
        start_preconditioning_step: the first step with a preconditioner; None: `precondition_frequency`.
        grafting: ``"sgd"``: the incoming direction d. ``"adagrad"``: d/(√Σg² + ε). ``"rmsprop"``: d/(√v + ε).
            ``"adam"``: d/(√(v/(1−β₂ᵏ)) + ε).
        max_preconditioner_dim: a longer side is cut.
        exponent: the power of each inverse root; None: 1/(2·order), 1/4 for matrices.
        debias: divide the factors by ``1 − β₂ᵏ``, their weight so far, if β₂ < 1.

    Sources: Gupta, Koren & Singer 2018, arXiv:1802.09568; Anil et al. 2020, arXiv:2002.09018 (grafting, blocks);
    Shi et al. 2023, arXiv:2309.06497.

    Example:
        >>> import torch, hasten
        >>> from hasten.transforms import EMA, KroneckerRoot
        >>> w = torch.eye(3, requires_grad=True)
        >>> opt = hasten.Optimizer([w], EMA(0.9), KroneckerRoot(0.999, grafting="adam"), lr=1e-3)
    """

    beta2: Value = hyper(1.0, FRACTION, "decay of the averages L and R; 1 sums them up, as AdaGrad")
    eps: Value = hyper(1e-12, NONNEGATIVE, "added to the eigenvalues of L and R")
    relative_eps: Value = hyper(0.0, NONNEGATIVE, "added to the eigenvalues, in units of the largest")
    precondition_frequency: Value = hyper(
        1, AT_LEAST_ONE, "steps from one computation of the roots to the next"
    )
    graft_beta2: Value = hyper(0.999, FRACTION, "decay of the grafted method's average of squared gradients")
    graft_eps: Value = hyper(1e-8, NONNEGATIVE, "added to the root of the grafted method's average")
    start_preconditioning_step: int | None = None
    grafting: Literal["sgd", "adagrad", "rmsprop", "adam"] | None = None
    max_preconditioner_dim: int = 1024
    exponent: float | None = None
    debias: bool = True
    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "matrix"
    traceable: ClassVar[bool] = False
    formula: ClassVar[str] = (
        "L ← β₂ L + w g gᵀ, R ← β₂ R + w gᵀ g (w = 1−β₂, or 1 if β₂ = 1);  every f steps roots of L, R;  "
        "u = L^(-1/4) d R^(-1/4) · ‖graft‖/‖L^(-1/4) d R^(-1/4)‖"
    )

    def __post_init__(self) -> None:
        name = type(self).__name__
        optional_number(self, "start_preconditioning_step", self.start_preconditioning_step, AT_LEAST_ONE)
        number(self, "max_preconditioner_dim", self.max_preconditioner_dim, AT_LEAST_ONE)
        optional_number(self, "exponent", self.exponent, POSITIVE)
        check_choice(name, "grafting", self.grafting, GRAFTS)
        flag(self, "debias", self.debias)

    def blocks(self, size: Sequence[int]) -> Blocks:
        """How a matrix of this size is cut."""
        return Blocks(size, self.max_preconditioner_dim)

    def buffers(self) -> dict[str, Buffer]:
        """The factors and roots of both sides, and the grafted method's average of squared gradients."""

        def squares(side: int) -> Buffer:
            return Buffer(exact=True, shape=lambda size: self.blocks(size).squares_shape(side))

        kept = ("left_factor", "right_factor", "left_root", "right_root")
        return {**{name: squares(i % 2) for i, name in enumerate(kept)}, **self._graft_buffers()}

    def _graft_buffers(self) -> dict[str, Buffer]:
        return (
            {} if self.grafting in (None, "sgd") else {"graft_sq": Buffer(exact=self.grafting == "adagrad")}
        )

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """Weights of the sums, their bias corrections, and what is done at this step."""
        start = self.start_preconditioning_step
        start = math.ceil(h.precondition_frequency) if start is None else start
        graft = 1.0 if self.grafting == "adagrad" else h.graft_beta2
        return {
            "beta": h.beta2,
            "weight": 1 - h.beta2 if h.beta2 < 1 else 1.0,
            "correction": 1 - h.beta2**k if self.debias and h.beta2 < 1 else 1.0,
            "eps": h.eps,
            "relative_eps": h.relative_eps,
            "graft_beta": graft,
            "graft_weight": 1 - graft if graft < 1 else 1.0,
            "graft_root": math.sqrt(1 - graft**k) if self.grafting == "adam" and graft < 1 else 1.0,
            "graft_eps": h.graft_eps,
            "started": k >= start,
            "starts": k == start,
            "compute": k == start or (k > start and due(k, h.precondition_frequency)),
        }

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The preconditioned direction with the grafted length; before the start, the grafted direction."""
        blocks = self.blocks(d.shape[1:])
        grads = blocks.cut(s.grad)
        lefts = follow(blocks.unpack(s.left_factor, 0), grads, 0, n)
        rights = follow(blocks.unpack(s.right_factor, 1), grads, 1, n)
        s.left_factor, s.right_factor = blocks.pack(lefts, 0), blocks.pack(rights, 1)
        if n.compute:
            s.left_root = blocks.pack(self._roots(lefts, blocks.unpack(s.left_root, 0), 2, n), 0)
            s.right_root = blocks.pack(self._roots(rights, blocks.unpack(s.right_root, 1), 2, n), 1)
        graft = self._graft(d, s, n)
        if not n.started:
            return graft
        sides = [blocks.unpack(s.left_root, 0), blocks.unpack(s.right_root, 1)]
        return self._preconditioned(blocks, d, graft, sides)

    def _roots(self, factors: Sequence[Tensor], before: Sequence[Tensor], order: int, n: Any) -> list[Tensor]:
        """The inverse roots of the factors of one dimension, or, where there is none, those before."""
        p = 2.0 * order if self.exponent is None else 1 / self.exponent
        found = []
        for factor, old in zip(factors, before, strict=True):
            one = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
            fallback = one.expand_as(factor) if n.starts else old
            found.append(inv_root(factor / n.correction, p, n.eps, n.relative_eps, fallback))
        return found

    def _graft(self, d: Tensor, s: Any, n: Any) -> Tensor:
        """The direction of the grafted method."""
        if self.grafting in (None, "sgd"):
            return d
        square = torch.addcmul(n.graft_beta * s.graft_sq, s.grad, s.grad, value=n.graft_weight)
        s.graft_sq = square
        return d / square.sqrt().div_(n.graft_root).add_(n.graft_eps)

    def _preconditioned(
        self, blocks: Blocks, d: Tensor, graft: Tensor, roots: Sequence[Sequence[Tensor]]
    ) -> Tensor:
        """Every block of d times its roots, one for each dimension, as long as its block of the grafted direction."""
        made = []
        for i, (u, g) in enumerate(zip(blocks.cut(d), blocks.cut(graft), strict=True)):
            for dimension, own in enumerate(roots):
                u = times(u, own[i], dimension)
            if self.grafting is not None:
                u = u * (lengths(g) / (lengths(u) + 1e-16))
            made.append(u)
        return blocks.join(made)


def _flat(part: KroneckerRoot, size: torch.Size) -> tuple[int, ...]:
    blocks = part.blocks(size)
    return (sum(math.prod(blocks.squares_shape(i)) for i in range(len(blocks.size))),)


@dataclass(frozen=True)
class TensorKroneckerRoot(KroneckerRoot):
    """Shampoo's preconditioner of tensors of any order p: a factor for every dimension, to the power -1/(2p).

    A tensor is taken as it is, whatever its group says about matrices; vectors are tensors of order one, with the full
    matrix. With `merge` neighbouring dimensions, from the last one, are merged first as long as their product is within
    `max_preconditioner_dim` (a 64 × 32 × 3 × 3 convolution becomes 64 × 288).

    Example:
        >>> import torch, hasten
        >>> from hasten.transforms import TensorKroneckerRoot
        >>> w = torch.ones(3, 4, 5, requires_grad=True)
        >>> opt = hasten.Optimizer([w], TensorKroneckerRoot(grafting="adam", merge=False), lr=1e-3)
        >>> opt.state[w]["factors"].shape  # 3² + 4² + 5²
        torch.Size([50])
    """

    merge: bool = True
    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "tensor"
    formula: ClassVar[str] = (
        "F_i ← β₂ F_i + w g_(i) g_(i)ᵀ for every dimension i (g_(i): unfolded);  every f steps their roots;  "
        "u = d ×_i F_i^(-1/2p) · ‖graft‖/‖d ×_i F_i^(-1/2p)‖"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        flag(self, "merge", self.merge)

    def blocks(self, size: Sequence[int]) -> Blocks:
        """How a tensor of this size is cut, once its dimensions are merged."""
        limit = self.max_preconditioner_dim
        return Blocks(merged(size, limit) if self.merge else tuple(size) or (1,), limit)

    def buffers(self) -> dict[str, Buffer]:
        """The factors and roots of all dimensions, one after another, and the grafted method's average."""
        kept = Buffer(exact=True, shape=lambda size: _flat(self, size))
        return {"factors": kept, "roots": kept, **self._graft_buffers()}

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The preconditioned direction with the grafted length; before the start, the grafted direction."""
        blocks = self.blocks(d.shape[1:])
        order, stack = len(blocks.size), (d.shape[0], *blocks.size)
        grads = blocks.cut(s.grad.reshape(stack))
        kept = self._by_dimension(blocks, s.factors)
        factors = [follow(own, grads, i, n) for i, own in enumerate(kept)]
        s.factors = torch.cat([blocks.pack(own, i).flatten(1) for i, own in enumerate(factors)], dim=1)
        if n.compute:
            before = self._by_dimension(blocks, s.roots)
            roots = [self._roots(own, old, order, n) for own, old in zip(factors, before, strict=True)]
            s.roots = torch.cat([blocks.pack(own, i).flatten(1) for i, own in enumerate(roots)], dim=1)
        graft = self._graft(d, s, n)
        if not n.started:
            return graft
        roots = self._by_dimension(blocks, s.roots)
        return self._preconditioned(blocks, d.reshape(stack), graft.reshape(stack), roots).reshape(d.shape)

    def _by_dimension(self, blocks: Blocks, kept: Tensor) -> list[list[Tensor]]:
        """The square matrices of every dimension, from what is kept for all."""
        lengths = [math.prod(blocks.squares_shape(i)) for i in range(len(blocks.size))]
        return [blocks.unpack(own, i) for i, own in enumerate(torch.split(kept, lengths, dim=1))]


def follow(factors: Sequence[Tensor], grads: Sequence[Tensor], dimension: int, n: Any) -> list[Tensor]:
    """The factors of one dimension with this step's gradients."""
    found = []
    for factor, grad in zip(factors, grads, strict=True):
        g = unfolded(grad, dimension)
        found.append(symmetric_product(g, g.mT).mul_(n.weight).add_(factor, alpha=n.beta))
    return found


def unfolded(x: Tensor, dimension: int) -> Tensor:
    """A stack of tensors as matrices: one dimension is the rows, all others are the columns.

    Example:
        >>> unfolded(torch.zeros(7, 2, 3, 4), 1).shape
        torch.Size([7, 3, 8])
    """
    return x.movedim(dimension + 1, 1).reshape(x.shape[0], x.shape[dimension + 1], -1)


def times(x: Tensor, square: Tensor, dimension: int) -> Tensor:
    """A stack of tensors times symmetric matrices [k, b, b] along one dimension.

    Example:
        >>> times(torch.ones(1, 2, 3), 2 * torch.eye(3)[None], 1)
        tensor([[[2., 2., 2.],
                 [2., 2., 2.]]])
    """
    if dimension == x.dim() - 2:
        return (x.reshape(x.shape[0], -1, x.shape[-1]) @ square).reshape(x.shape)
    moved = x.movedim(dimension + 1, 1)
    return (square @ moved.reshape(*moved.shape[:2], -1)).reshape(moved.shape).movedim(1, dimension + 1)


def lengths(x: Tensor) -> Tensor:
    """The Euclidean norm of every tensor of a stack, [k, 1, …]."""
    found: Tensor = torch.linalg.vector_norm(x.reshape(x.shape[0], -1), dim=1)
    return found.reshape(-1, *(1,) * (x.dim() - 1))
