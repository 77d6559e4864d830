"""Compressors that send factors of a matrix; a tensor is seen as one, of its first dimension by all others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hasten.distributed.compressors import (
    Average,
    Compressor,
    Message,
    Rounds,
    integer,
    positive_integer,
)
from hasten.linalg.cosine import cosine_rows, cosine_transform, leading
from hasten.sketches.counters import key_of
from hasten.sketches.layers import Shape


def as_matrix(shape: Shape) -> tuple[int, int]:
    """Rows and columns: the first dimension by all others.

    Example:
        >>> as_matrix((8, 3, 5, 5)), as_matrix((7,))
        ((8, 75), (7, 1))
    """
    return (1, 1) if not shape else (shape[0], math.prod(shape[1:]))


@dataclass(frozen=True)
class LowRank(Compressor):
    """PowerSGD: one step of power iteration from where the last one ended. Two averages, of (n + m) r numbers in all.

    With M the n × m matrix of a worker,

        P = orthonormal(mean M Q),   Q⁺ = Mᵀ P,   C(M) = P Q⁺ᵀ = P Pᵀ M,

    and the mean of the Q⁺ is kept as the next Q. Vogels, Karimireddy and Jaggi, "PowerSGD" (2019). From a random Q,
    E‖C(M) − M‖² ≤ (1 − r/m)‖M‖² if all M are equal.

    Args:
        rank: r, at most the lesser side.
        warm_start: whether Q is kept; otherwise it is drawn anew for every exchange.
        seed: of the first Q; the same on every worker.

    Example:
        >>> from hasten.distributed.compressors import averaged
        >>> M = torch.outer(torch.arange(1.0, 4.0), torch.ones(3))
        >>> message = Message(M.clone(), torch.empty(3, 3))
        >>> averaged(LowRank(1), [[message]])
        >>> torch.allclose(message.mean, M), message.memory.shape
        (True, torch.Size([3, 1]))
    """

    rank: int = 4
    warm_start: bool = True
    seed: int = 0
    rounds: ClassVar[int] = 2
    formula: ClassVar[str] = "C(M) = P Pᵀ M, P = orthonormal(mean M Q)"

    def __post_init__(self) -> None:
        positive_integer("LowRank", "rank", self.rank)
        integer("LowRank", "seed", self.seed)
        if not isinstance(self.warm_start, bool):
            raise ValueError(
                f"LowRank: warm_start = {self.warm_start!r} is not allowed; it must be True or False"
            )

    def rank_in(self, shape: Shape) -> int:
        """r, or the lesser side."""
        return min(self.rank, *as_matrix(shape))

    def payload(self, shape: Shape, itemsize: int) -> int:
        """(n + m) r numbers."""
        return sum(as_matrix(shape)) * self.rank_in(shape) * itemsize

    def remembered(self, shape: Shape) -> tuple[int, ...] | None:
        """That of Q, m × r."""
        return (as_matrix(shape)[1], self.rank_in(shape)) if self.warm_start else None

    def exchange(self, messages: Sequence[Message]) -> Rounds:
        """Average the M Q, then the Mᵀ P."""
        matrices = [message.m.view(as_matrix(message.m.shape)) for message in messages]
        images = yield Average(
            [M @ self.start(message) for M, message in zip(matrices, messages, strict=True)]
        )
        bases = [orthonormal(image) for image in images]
        own = [M.T @ P for M, P in zip(matrices, bases, strict=True)]
        means = yield Average(own)
        for message, M, P, Q, mean in zip(messages, matrices, bases, own, means, strict=True):
            torch.mm(P, mean.T, out=message.mean.view(M.shape))
            M.addmm_(P, Q.T, alpha=-1)
            if self.warm_start and bool(mean.any()):  # nothing to go on from where all were zero
                message.memory = mean.clone()

    def start(self, message: Message) -> Tensor:
        """Q: where the last step ended, else random; orthonormal."""
        if message.memory is not None:
            return orthonormal(message.memory.to(message.m))
        rows, columns = as_matrix(message.m.shape)
        generator = torch.Generator().manual_seed(key_of(self.seed, message.step, message.index) >> 1)
        Q = torch.randn(columns, min(self.rank, rows, columns), generator=generator, dtype=torch.float64)
        return orthonormal(Q).to(message.m)


def orthonormal(P: Tensor) -> Tensor:
    """An orthonormal basis that contains the columns in its span (QR).

    Example:
        >>> orthonormal(torch.tensor([[3.0], [4.0]])).abs()
        tensor([[0.6000],
                [0.8000]])
    """
    Q: Tensor = torch.linalg.qr(P).Q
    return Q


@dataclass(frozen=True)
class DCTColumns(Compressor):
    """The r columns of M Dᵀ with the most energy over all workers, D the orthonormal cosine basis (DCT-II).

        S = M Dᵀ,   J = the r largest of Σ_workers ‖S_:,j‖²,   C(M) = S_:,J D_J,:

    D acts on the lesser side of the n × m matrix. Two averages: min(n, m) energies, from which all workers choose
    alike, and max(n, m) r numbers. Σ‖C(M_i) − M_i‖² ≤ (1 − r/min(n, m)) Σ‖M_i‖². Modoranu et al., "FFT-based dynamic
    subspace selection for low-rank adaptive optimization" (2025), where a worker chooses by itself.

    Args:
        rank: r, at most the lesser side.

    Example:
        >>> from hasten.distributed.compressors import averaged
        >>> message = Message(torch.ones(3, 2), torch.empty(3, 2))
        >>> averaged(DCTColumns(1), [[message]])
        >>> torch.allclose(message.mean, torch.ones(3, 2))
        True
    """

    rank: int = 4
    rounds: ClassVar[int] = 2
    formula: ClassVar[str] = "C(M) = S_J D_J, S = M Dᵀ"

    def __post_init__(self) -> None:
        positive_integer("DCTColumns", "rank", self.rank)

    def payload(self, shape: Shape, itemsize: int) -> int:
        """min(n, m) + max(n, m) r numbers."""
        shorter, longer = sorted(as_matrix(shape))
        return (shorter + longer * min(self.rank, shorter)) * itemsize

    def exchange(self, messages: Sequence[Message]) -> Rounds:
        """Average the energies, then the chosen columns."""
        tall = [upright(message.m) for message in messages]
        coefficients = [cosine_transform(M) for M in tall]
        energies = yield Average([S.square().sum(0) for S in coefficients])
        chosen = [leading(energy, min(self.rank, energy.numel())) for energy in energies]
        own = [S[:, J] for S, J in zip(coefficients, chosen, strict=True)]
        del coefficients
        means = yield Average(own)
        for message, M, J, S, mean in zip(messages, tall, chosen, own, means, strict=True):
            D = cosine_rows(J, M.shape[1], M.dtype)
            upright(message.mean).copy_(mean @ D)
            M.addmm_(S, D, alpha=-1)


def upright(M: Tensor) -> Tensor:
    """The matrix, or its transpose, that has no fewer rows than columns; a view."""
    matrix = M.view(as_matrix(M.shape))
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
