"""How tensors that differ from worker to worker become one mean, and what is sent for it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.futures import Future

from hasten.wire import Wire


@dataclass
class Parcel:
    """Tensors to be averaged over the workers, in place.

    Attributes:
        tensors: one for each parameter in the parcel, shaped like it; equal in number and shape on all workers.
        indices: the parameters' positions among all trainable parameters of the model, the same on all workers.
        step: how many exchanges were made before; random draws depend on it and on the index, never on how parameters
            are packed into parcels.
        part: what the traffic is counted as.
    """

    tensors: Sequence[Tensor]
    indices: Sequence[int]
    step: int
    part: str = "gradients"


class Exchange(abc.ABC):
    """Averages parcels over the workers, exactly or nearly.

    What is not finite on one worker is not finite in the mean, hence on all of them, and leaves an exchange's memory
    as it was.
    """

    shapes: Sequence[torch.Size] = ()

    def prepare(self, shapes: Sequence[torch.Size]) -> None:
        """Learn the shapes of all trainable parameters, before the first parcel."""
        self.shapes = list(shapes)

    @abc.abstractmethod
    def mean(self, parcel: Parcel, wire: Wire) -> Future[None]:
        """Start to replace each tensor by the (approximate) mean over all workers, the same to the bit on each."""

    @property
    def facts(self) -> dict[str, Any]:
        """What must be equal on all workers, by a name that users understand."""
        return {"exchange": repr(self)}

    def state_dict(self) -> dict[str, Any]:
        """What this worker remembers from parcel to parcel (its own: differs from rank to rank)."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: it is another exchange's; nothing is changed.
        """
        if state_dict:
            raise ValueError(
                f"{type(self).__name__}: the state dict has {next(iter(state_dict))!r}; it keeps none"
            )


def finished(value: Any = None) -> Future[Any]:
    """A future that is done."""
    future: Future[Any] = Future()
    future.set_result(value)
    return future
