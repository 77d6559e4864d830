"""What workers learn of their own losses, averaged: of r directional derivatives, r floats travel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hasten.wire import Wire, serve, serving, wait


def replicated(module: Any) -> bool:
    """Whether a module's gradients are averaged over workers by DistributedDataParallel."""
    return isinstance(module, DistributedDataParallel)


def workers(optimizer: Any, variables: Sequence[Tensor], sent: Sequence[int], averaged: bool) -> Wire | None:
    """The wire to the workers to average with; None where this process is alone with its loss.

    When it is made, the workers compare what they draw their subspaces from, what they send, and their parameters.

    Raises:
        RuntimeError: torch.distributed is not initialised, or workers differ; names how.
    """
    if not variables or not (averaged or replicated(optimizer.module)):
        return None
    module = optimizer.module
    if not replicated(module) and not dist.is_initialized():
        raise RuntimeError(
            f"{optimizer.name}: averaged=True needs torch.distributed: call torch.distributed.init_process_group "
            "first, or start the script with torchrun"
        )
    group = module.process_group if replicated(module) else dist.group.WORLD
    known = serving(variables[0], group)
    if known is not None:
        return known
    wire = Wire(group)
    total = sum(float(p.detach().double().sum()) for p in variables)
    facts = {
        "seed": optimizer.seed,
        "number of steps": int(optimizer.param_groups[0]["step"]),
        "ranks of the sketches": list(sent),
        "sum of the parameters": total,
    }
    everyone = wire.objects(facts)
    for name, value in everyone[0].items():
        found = [each[name] for each in everyone]
        if any(other != value for other in found):
            raise RuntimeError(
                f"{optimizer.name}: the workers do not have the same {name}: {found}, by rank; they must, for the "
                "mean of their directional derivatives to be one of the mean of their losses"
            )
    serve(variables, wire)
    return wire


def mean_of_coordinates(coordinates: Sequence[Tensor], wire: Wire) -> list[Tensor]:
    """The mean of each s over the workers, by one all-reduce."""
    sizes = [len(s) for s in coordinates]
    kind = torch.float64 if any(s.dtype is torch.float64 for s in coordinates) else torch.float32
    sent = torch.cat([s.to(kind) for s in coordinates]).div_(wire.world)
    pieces = torch.split(wait(wire.sum(sent, "directional derivatives")), sizes)
    return [piece.to(s.dtype) for piece, s in zip(pieces, coordinates, strict=True)]


def mean_of_number(number: float, part: str, like: Tensor, wire: Wire) -> float:
    """The mean of a number over the workers."""
    own = torch.tensor([number / wire.world], dtype=torch.float64, device=like.device)
    return float(wait(wire.sum(own, part)))
