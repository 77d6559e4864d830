"""Which parameters' gradients travel together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.futures import Future, collect_all


def packed(parameters: Sequence[Tensor], limit: int) -> list[list[int]]:
    """Positions of parameters in parcels of one dtype and device, from the last to the first, as gradients get ready.

    DistributedDataParallel fills its buckets anew after the first ``backward``, and then sums in another order. These
    parcels depend on the parameters alone, so a run that is resumed goes on as if it had never stopped.

    Args:
        parameters: in order.
        limit: bytes from which a parcel is closed.

    Example:
        >>> packed([torch.zeros(4), torch.zeros(4), torch.zeros(4).double(), torch.zeros(4)], limit=32)
        [[1, 3], [2], [0]]
    """
    parcels: list[list[int]] = []
    filling: dict[tuple[torch.dtype, torch.device], int] = {}
    for i in reversed(range(len(parameters))):
        kind = (parameters[i].dtype, parameters[i].device)
        if kind not in filling:
            filling[kind] = len(parcels)
            parcels.append([])
        number = filling[kind]
        parcels[number].insert(0, i)
        if sum(parameters[j].nbytes for j in parcels[number]) >= limit:
            del filling[kind]
    return parcels


class Parcels:
    """Gathers gradients as they get ready, and hands on every parcel that is complete.

    Args:
        parcels: positions of parameters, parcel by parcel.
        devices: those of the parameters.
        send: starts the exchange of a parcel, of these gradients and parameters.
    """

    def __init__(
        self,
        parcels: Sequence[Sequence[int]],
        devices: Sequence[torch.device],
        send: Callable[[Sequence[Tensor], Sequence[int]], Future[None]],
    ) -> None:
        self._members = [tuple(parcel) for parcel in parcels]
        self._number = {i: number for number, parcel in enumerate(parcels) for i in parcel}
        self._devices: list[int | str | torch.device] = [
            *dict.fromkeys(d for d in devices if d.type != "cpu")
        ]
        self._send = send
        self._waiting: dict[int, dict[int, Tensor]] = {}
        self._arriving: dict[int, Future[list[Tensor]]] = {}
        self._sent: set[int] = set()

    def add(self, gradients: Sequence[Tensor], indices: Sequence[int]) -> tuple[Future[None], bool]:
        """A future of when all these have been exchanged, and whether they were the last that were missing."""
        numbers = list(dict.fromkeys(self._number[i] for i in indices))
        if any(n in self._sent for n in numbers) or any(
            i in self._waiting.get(self._number[i], ()) for i in indices
        ):  # an earlier backward was given up
            self._begin()
        for i, g in zip(indices, gradients, strict=True):
            self._waiting.setdefault(self._number[i], {})[i] = g
        futures = []
        for n in numbers:
            futures.append(self._arriving.setdefault(n, Future(devices=self._devices)))
            if len(self._waiting[n]) == len(self._members[n]):
                self._dispatch(n)
        last = len(self._sent) == len(self._members)
        if last:
            self._begin()
        return collect_all(futures).then(lambda done: _raise_first(futures)), last

    def _begin(self) -> None:
        self._waiting.clear()
        self._arriving.clear()
        self._sent.clear()

    def _dispatch(self, number: int) -> None:
        members, arriving = self._members[number], self._arriving[number]
        gradients = [self._waiting[number][i] for i in members]
        self._sent.add(number)

        def arrived(done: Future[None]) -> None:
            try:
                done.value()
            except Exception as error:
                arriving.set_exception(error)  # type: ignore[arg-type]  # torch annotates it as a result
            else:
                arriving.set_result(gradients)

        self._send(gradients, members).add_done_callback(arrived)


def _raise_first(futures: Sequence[Future[list[Tensor]]]) -> None:
    """Ask the futures themselves: torch does not hand their exceptions on to those that are made of them."""
    for future in futures:
        future.value()
