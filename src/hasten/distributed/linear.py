"""Exchanges that are linear in what the workers send, so that sums of it are all that travels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.futures import Future

from hasten.checks import check_choice
from hasten.distributed.exchange import Exchange, Parcel
from hasten.oracles.received import Arrival
from hasten.sketches import BalancedCountSketch, Draw, PerLayer, Sketch, blocks
from hasten.sketches.layers import Block, Shape, vectors
from hasten.wire import Wire

RATIO = 64.0
"""d/r where no sketch is given."""


class AllReduce(Exchange):
    """The exact mean, or the mean of gradients rounded to a shorter dtype.

    Args:
        dtype: what travels; None for the tensors' own.

    Example:
        >>> AllReduce(torch.bfloat16)
        AllReduce(torch.bfloat16)
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        check_choice("AllReduce", "dtype", dtype, (None, torch.float16, torch.bfloat16, torch.float32))
        self.dtype = dtype

    def mean(self, parcel: Parcel, wire: Wire) -> Future[None]:
        """One all-reduce of everything."""
        sent = torch.cat([t.reshape(-1) for t in parcel.tensors]).div_(wire.world)
        sent = sent if self.dtype is None else sent.to(self.dtype)

        def arrived(done: Future[Tensor]) -> None:
            pieces = torch.split(done.value(), [t.numel() for t in parcel.tensors])
            for t, piece in zip(parcel.tensors, pieces, strict=True):
                t.copy_(piece.view(t.shape))

        return wire.sum(sent, parcel.part).then(arrived)

    def __repr__(self) -> str:
        return f"AllReduce({'' if self.dtype is None else self.dtype})"


class Subspace(Exchange):
    """Each worker sends s_i = Pᵀg_i, every worker forms P · mean(s_i) = P Pᵀ · mean(g_i), with one P for all.

    Unbiased: E[P Pᵀ] = I. Every parameter is sketched by itself, P from (seed, step, its position), so the result does
    not depend on how DistributedDataParallel packs its buckets, and equals the single-process
    :class:`~hasten.oracles.Sketched` oracle of the same seed on the averaged gradient.

    Args:
        sketch: the family of P; balanced CountSketch with d/r = 64 unless told otherwise. One that is not
            :class:`~hasten.sketches.PerLayer` is applied to every parameter for itself.
        exact: which shapes are sent whole, if the sketch is not PerLayer; vectors and scalars unless told otherwise.
        seed: of the subspaces; the same on every worker.

    Example:
        >>> Subspace(BalancedCountSketch(ratio=8), seed=1)
        Subspace(BalancedCountSketch(rank=None, ratio=8), seed=1)
    """

    def __init__(
        self, sketch: Sketch | None = None, *, exact: Callable[[Shape], bool] = vectors, seed: int = 0
    ) -> None:
        sketch = BalancedCountSketch(ratio=RATIO) if sketch is None else sketch
        if not isinstance(sketch, Sketch):
            raise TypeError(
                f"Subspace: sketch = {sketch!r} is not allowed; it must be a hasten.sketches.Sketch"
            )
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"Subspace: seed = {seed!r} is not allowed; it must be an integer")
        self.sketch = sketch if isinstance(sketch, PerLayer) else PerLayer(sketch, exact)
        self.seed = seed
        self.arrivals: dict[int, Arrival] = {}
        """By parameter: P and the mean s of the last exchange."""
        self._blocks: dict[int, Block] = {}

    def prepare(self, shapes: Sequence[torch.Size]) -> None:
        """Fix every parameter's rank."""
        super().prepare(shapes)
        self._blocks = {i: block for block in blocks(self.sketch, shapes) for i in block.members}

    @property
    def facts(self) -> dict[str, Any]:
        """The sketch, what it sends of each parameter, and its seed."""
        sent = [f"{i}: {block.sketch!r}" for i, block in self._blocks.items()]
        return {"sketch": "\n".join([repr(self.sketch.sketch), *sent]), "seed": self.seed}

    def draws(self, parcel: Parcel) -> list[Draw | None]:
        """P for each tensor; None for those without entries."""
        return [
            self._blocks[i].draw(seed=self.seed, step=parcel.step) if i in self._blocks else None
            for i in parcel.indices
        ]

    def project(self, parcel: Parcel, draws: Sequence[Draw | None]) -> Tensor:
        """All s, one after the other: r numbers."""
        small = [d.project(t) for d, t in zip(draws, parcel.tensors, strict=True) if d is not None]
        kind = torch.float64 if any(s.dtype is torch.float64 for s in small) else torch.float32
        return torch.cat([s.to(kind) for s in small]) if small else torch.zeros(0)

    def lift(self, s: Tensor, parcel: Parcel, draws: Sequence[Draw | None]) -> None:
        """P s, into the tensors."""
        start = 0
        for draw, tensor, index in zip(draws, parcel.tensors, parcel.indices, strict=True):
            if draw is not None:
                own = s[start : start + draw.rank]
                draw.lift(own, tensor)
                self.arrivals[index] = Arrival(draw, own, tensor.dtype)
                start += draw.rank

    def mean(self, parcel: Parcel, wire: Wire) -> Future[None]:
        """One all-reduce of r numbers, in float32 (float64 for float64)."""
        draws = self.draws(parcel)
        sent = self.project(parcel, draws).div_(wire.world)
        return wire.sum(sent, parcel.part).then(lambda done: self.lift(done.value(), parcel, draws))

    def __repr__(self) -> str:
        return f"Subspace({self.sketch.sketch!r}, seed={self.seed})"
