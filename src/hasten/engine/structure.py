"""Which matrices a tensor is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from hasten.checks import check_choice

Shape: TypeAlias = "Sequence[int]"
Like: TypeAlias = "Callable[[torch.Size], tuple[int, ...]]"
"""Maps a matrix's shape to that of something kept for it."""

Layout: TypeAlias = Literal["flatten", "stack", "transposed"]
"""How a tensor is read as one or several matrices."""
KEYS = ("layout", "split")
"""The entries of a parameter group that say how its tensors are read as matrices."""


@dataclass(frozen=True)
class Structure:
    """How a tensor with two or more dimensions is read as one or several matrices.

    Tensors come in stacks: k of one shape, along a leading dimension. `pieces` gives one stack of matrices for every
    part of `split`, each [k · c, m, n], with c the matrices that a tensor of layout ``"stack"`` holds.

    Args:
        layout: ``"flatten"``: the first dimension is the rows, all others are the columns (a convolution is
            out × in·h·w). ``"stack"``: the last two dimensions are a matrix, those before them number the matrices
            (experts, heads). ``"transposed"``: the second dimension is the rows, all others are the columns (in × out,
            as transposed convolutions and some linear layers are stored).
        split: the rows hold so many matrices of equal height, or matrices of these heights (a fused QKV projection).

    Example:
        >>> [tuple(x.shape) for x in Structure(split=(4, 1, 1)).pieces(torch.zeros(2, 6, 3))]
        [(2, 4, 3), (2, 1, 3), (2, 1, 3)]
        >>> [tuple(x.shape) for x in Structure("stack").pieces(torch.zeros(2, 8, 6, 3))]
        [(16, 6, 3)]
        >>> [tuple(x.shape) for x in Structure("transposed", split=3).pieces(torch.zeros(2, 4, 12))]
        [(2, 4, 4), (2, 4, 4), (2, 4, 4)]
    """

    layout: Layout = "flatten"
    split: int | tuple[int, ...] | None = None

    def check(self, shape: Shape) -> str:
        """Why a tensor of this shape cannot be read so; empty if it can."""
        if len(shape) < 2:
            return "it has fewer than two dimensions"
        rows = self.matrix(shape)[1]
        if isinstance(self.split, int) and (self.split < 1 or rows % self.split):
            return f"its {rows} rows cannot be split into {self.split} equal parts"
        if isinstance(self.split, tuple) and sum(self.split) != rows:
            return f"its {rows} rows are not {' + '.join(map(str, self.split))}"
        return ""

    def matrix(self, shape: Shape) -> tuple[int, int, int]:
        """How many matrices a tensor holds before it is split, their rows, and their columns."""
        if self.layout == "flatten":
            return 1, shape[0], math.prod(shape[1:])
        if self.layout == "transposed":
            return 1, shape[1], shape[0] * math.prod(shape[2:])
        return math.prod(shape[:-2]), shape[-2], shape[-1]

    def heights(self, shape: Shape) -> list[int]:
        """The rows of each part."""
        rows = self.matrix(shape)[1]
        if self.split is None:
            return [rows]
        return [rows // self.split] * self.split if isinstance(self.split, int) else list(self.split)

    def pieces(self, stack: Tensor) -> list[Tensor]:
        """Stacks of matrices, one for every part, from k tensors [k, …]."""
        shape = stack.shape[1:]
        count, rows, columns = self.matrix(shape)
        if self.layout == "transposed":
            stack = stack.transpose(1, 2)
        matrices = stack.reshape(stack.shape[0] * count, rows, columns)
        return [matrices] if self.split is None else list(torch.split(matrices, self.heights(shape), dim=1))

    def assemble(self, pieces: Sequence[Tensor], shape: Shape) -> Tensor:
        """k tensors [k, *shape] from their pieces: undoes `pieces`."""
        matrices = pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=1)
        if self.layout == "transposed":
            return matrices.reshape(-1, shape[1], shape[0], *shape[2:]).transpose(1, 2).contiguous()
        return matrices.reshape(-1, *shape)

    # What is kept for each matrix, in another shape than its own: alone as it is; several of one shape stacked;
    # several of different shapes one after another, flat.

    def _kept(self, like: Like, shape: Shape) -> list[tuple[int, ...]]:
        columns = self.matrix(shape)[2]
        return [tuple(like(torch.Size((m, columns)))) for m in self.heights(shape)]

    def kept_shape(self, like: Like, shape: Shape) -> tuple[int, ...]:
        """The shape of the buffer that holds what is kept for all matrices of a tensor."""
        count, kept = self.matrix(shape)[0], self._kept(like, shape)
        if count * len(kept) == 1:
            return kept[0]
        if len(set(kept)) == 1:
            return (count * len(kept), *kept[0])
        return (sum(count * math.prod(s) for s in kept),)

    def kept_piece(self, buffers: Sequence[Tensor], like: Like, shape: Shape, piece: int) -> Tensor:
        """What is kept for one part of each of k tensors, as a stack [k · c, …]."""
        count, kept = self.matrix(shape)[0], self._kept(like, shape)
        start = sum(count * math.prod(s) for s in kept[:piece])
        length = count * math.prod(kept[piece])
        own = [b.reshape(-1)[start : start + length].view(count, *kept[piece]) for b in buffers]
        return own[0] if len(own) == 1 else torch.cat(own)

    def keep(self, pieces: Sequence[Tensor], like: Like, shape: Shape) -> Tensor:
        """The buffers [k, …] of k tensors from what is kept for their parts: undoes `kept_piece`."""
        count, kept = self.matrix(shape)[0], self._kept(like, shape)
        flat = [
            p.reshape(-1, count * math.prod(s)) if p.numel() else p for p, s in zip(pieces, kept, strict=True)
        ]
        found = [p for p in flat if p.numel()]
        if not found:  # nothing is kept for such matrices
            return pieces[0].new_empty(pieces[0].shape[0] // max(count, 1), *self.kept_shape(like, shape))
        whole = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        return whole.reshape(whole.shape[0], *self.kept_shape(like, shape))


PLAIN = Structure()


def structure_of(group: dict[str, Any]) -> Structure:
    """The structure of the tensors of a parameter group."""
    return Structure(**{key: group[key] for key in KEYS if group.get(key) is not None})


def check_structure(owner: str, group: dict[str, Any]) -> None:
    """Raise ValueError unless what a parameter group says about its tensors is allowed."""
    for key, allowed in (
        ("matrices", (None, True, False)),
        ("layout", (None, "flatten", "stack", "transposed")),
    ):
        check_choice(owner, key, group.get(key), allowed)
    split = group.get("split")
    heights = split if isinstance(split, tuple) else () if split is None else (split,)
    if split == () or not all(isinstance(h, int) and not isinstance(h, bool) and h > 0 for h in heights):
        raise ValueError(
            f"{owner}: split = {split!r} is not allowed; it must be a number of equal parts, or a tuple of their rows"
        )
