"""What the workers that share parameters tell each other in a step: sums, and whether gradients are finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hasten.sharding import Division, division, is_distributed, local, wire_over
from hasten.wire import Wire, serve, wait


class Sharding:
    """How the parameters of an optimizer are divided among workers.

    Args:
        params: all of them; some may be plain tensors, which every worker has whole.
        name_of: a parameter as a user would call it.

    Raises:
        RuntimeError: a parameter is placed in a way that is not supported; names it.
    """

    def __init__(self, params: Sequence[Tensor], name_of: Callable[[Tensor], str]) -> None:
        self.divisions: dict[Tensor, Division] = {}
        """How each divided parameter is."""
        self.everyone: list[Wire] = []
        """All workers of the meshes, also those that hold replicas."""
        self.device = torch.device("cpu")
        distributed = [p for p in params if is_distributed(p)]
        for p in distributed:
            try:
                found = division(p)
            except RuntimeError as error:
                raise RuntimeError(f"{name_of(p)} cannot be stepped: {error}") from error
            if found is None:
                continue
            self.divisions[p] = found
            self.device = local(p).device
            everyone = wire_over(p, p.device_mesh)  # type: ignore[attr-defined]  # a DTensor
            if not any(everyone.group is wire.group for wire in self.everyone):
                self.everyone.append(everyone)
            for wire in (found.wire, everyone):
                serve(distributed, wire)  # so that all of them share it

    @property
    def divided(self) -> bool:
        """Whether any parameter is."""
        return bool(self.divisions)

    def anywhere(self, flags: Sequence[bool]) -> list[bool]:
        """Which of the flags are set on any worker."""
        counts = torch.tensor(flags, dtype=torch.int32, device=self.device)
        for wire in self.everyone:
            counts = wait(wire.sum(counts, "finite"))
        return [count > 0 for count in counts.tolist()]

    def mean(self, numbers: dict[str, float]) -> dict[str, float]:
        """The mean over all workers of what an oracle delivered: each has the loss of its own batch."""
        if not numbers or not self.divided:
            return numbers
        values = torch.tensor(list(numbers.values()), dtype=torch.float64, device=self.device)
        for wire in self.everyone:
            values = wait(wire.sum(values, "sums")) / wire.world
        return dict(zip(numbers, values.tolist(), strict=True))

    def total(self, rows: Sequence[Sequence[float]], wire: Wire) -> list[list[float]]:
        """The sums of each row over all shards."""
        if not rows or not rows[0]:
            return [list(row) for row in rows]
        own = torch.tensor(rows, dtype=torch.float64, device=self.device)
        found: list[list[float]] = wait(wire.sum(own, "sums")).tolist()
        return found
