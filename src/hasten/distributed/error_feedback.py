"""Error feedback: what a compressor leaves out is remembered, and sent later."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.futures import Future

from hasten.distributed.compressors import Compressor, Message, positive_integer
from hasten.distributed.exchange import Exchange, Parcel
from hasten.distributed.packing import exchanged
from hasten.sketches.layers import Shape, vectors
from hasten.wire import Wire


class ErrorFeedback(Exchange):
    """Worker i sends C(m_i) instead of its g_i, and adds next time what was left out:

        m_i = e_i + g_i,   e_i⁺ = m_i − C(m_i),   mean of C(m_i) arrives.

    So Σ arrived + mean(e) = Σ mean(g_i) at every step: nothing is lost, only late. Seide et al. (2014); Stich,
    Cordonnier and Jaggi (2018); Karimireddy, Rebjock, Stich and Jaggi, "Error feedback fixes SignSGD and other gradient
    compression schemes" (2019). Costs a buffer the size of the gradient on every worker, and another while a
    parcel is under way.

    Vectors, scalars and whatever compression would not make cheaper are averaged exactly, in float32 (float64 for
    float64). A worker whose gradient of a parameter is zero throughout keeps what it has of that parameter: so nothing
    gets lost where DistributedDataParallel finds a parameter unused and drops what arrives for it.

    What is not finite on one worker is not finite in the mean; then the memory of the whole parcel stays as it was. If
    the optimizer skips such a step, what other parcels delivered in it is lost.

    Args:
        compressor: C.
        exact: which shapes are never compressed; vectors and scalars unless told otherwise.
        scale: what the tensors are multiplied by at present, such as ``GradScaler.get_scale``; the memory is kept in
            units free of it, so that it may change. Without it, the scale of the tensors must stay the same.

    Example:
        >>> import torch.distributed as dist
        >>> from hasten.distributed import TopK
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> exchange, wire = ErrorFeedback(TopK(ratio=4)), Wire()
        >>> for step in range(2):
        ...     g = torch.tensor([[3.0, 2.0], [1.0, -1.0]])
        ...     exchange.mean(Parcel([g], [0], step), wire).wait()
        ...     print(g)
        tensor([[3., 0.],
                [0., 0.]])
        tensor([[0., 4.],
                [0., 0.]])
        >>> exchange.errors[0]
        tensor([[ 3.,  0.],
                [ 2., -2.]])
        >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        compressor: Compressor,
        *,
        exact: Callable[[Shape], bool] = vectors,
        scale: Callable[[], float] | None = None,
    ) -> None:
        if not isinstance(compressor, Compressor):
            raise TypeError(
                f"ErrorFeedback: compressor = {compressor!r} is not allowed; it must be a Compressor"
            )
        for name, value in (("exact", exact), ("scale", scale)):
            if not callable(value) and not (name == "scale" and value is None):
                raise TypeError(f"ErrorFeedback: {name} = {value!r} is not allowed; it must be a function")
        self.compressor = compressor
        self.exact = exact
        self.scale = scale
        self.errors: dict[int, Tensor] = {}
        """e, by parameter; float32, or float64 for float64."""
        self.memories: dict[int, Tensor] = {}
        """What the compressor keeps, by parameter; equal on all workers."""

    def prepare(self, shapes: Sequence[torch.Size]) -> None:
        """Learn the shapes, which must be those of the memory, if there is one."""
        self._check(self.errors, self.memories, shapes)
        super().prepare(shapes)

    @property
    def facts(self) -> dict[str, Any]:
        """The compressor, and which parameters are never compressed."""
        exact = [i for i, shape in enumerate(self.shapes) if self.exact(shape)]
        return {"compressor": repr(self.compressor), "parameters never compressed": repr(exact)}

    @torch.no_grad()
    def mean(self, parcel: Parcel, wire: Wire) -> Future[None]:
        """One collective for each round of the compressor, and at most one more for what is averaged exactly.

        Raises:
            TypeError: a tensor is not real and floating.
            ValueError: the scale is not positive and finite.
        """
        scale = self._scale_of(parcel.tensors)
        silent = zero_throughout(parcel)
        messages = [
            self._message(g, index, parcel.step, scale, index in silent)
            for g, index in zip(parcel.tensors, parcel.indices, strict=True)
        ]
        short = [message for message in messages if self.compresses(message.m, wire.world)]
        whole = [message for message in messages if not self.compresses(message.m, wire.world)]

        @torch.no_grad()
        def arrived(done: Future[list[Tensor]]) -> None:
            for message, mean in zip(whole, done.value(), strict=True):
                message.mean.copy_(mean)
            for message, g in zip(messages, parcel.tensors, strict=True):
                if message.mean is not g or scale != 1:
                    g.copy_(message.mean * scale)
            if all_finite(parcel.tensors):
                self._remember(short, whole, silent)

        return exchanged(self.compressor, short, [m.m for m in whole], wire, parcel.part).then(arrived)

    def _scale_of(self, tensors: Sequence[Tensor]) -> float:
        for t in tensors:
            if not t.is_floating_point():
                raise TypeError(
                    f"ErrorFeedback: a tensor of {t.dtype} is not allowed; it must be real and floating"
                )
        scale = 1.0 if self.scale is None else float(self.scale())
        if not 0 < scale < math.inf:
            raise ValueError(
                f"ErrorFeedback: scale() = {scale} is not allowed; it must be positive and finite"
            )
        return scale

    def compresses(self, tensor: Tensor, world: int) -> bool:
        """Whether such a tensor is sent as C(m), among this many workers."""
        return not self.exact(tensor.shape) and self.compressor.saves(tensor.shape, tensor.itemsize, world)

    def _message(self, g: Tensor, index: int, step: int, scale: float, silent: bool) -> Message:
        """m = e + g, in the memory's dtype and free of the scale; 0 where the worker is silent."""
        kind = torch.float64 if g.dtype is torch.float64 else torch.float32
        m = g.to(kind, copy=True, memory_format=torch.contiguous_format)
        if scale != 1:
            m /= scale
        if index in self.errors and not silent:
            m += self.errors[index].to(m.device)
        mean = g if g.dtype is kind and g.is_contiguous() else torch.empty_like(m)
        return Message(m, mean, index, step, self.memories.get(index))

    def _remember(self, short: Iterable[Message], whole: Iterable[Message], silent: set[int]) -> None:
        for message in whole:
            if message.index not in silent:
                self.errors.pop(message.index, None)
        for message in short:
            if message.index not in silent:
                self.errors[message.index] = message.m
            if message.memory is not None:
                self.memories[message.index] = message.memory

    def state_dict(self) -> dict[str, Any]:
        """e and the compressor's memory, by parameter."""
        return {
            "compressor": type(self.compressor).__name__,
            "errors": dict(self.errors),
            "memories": dict(self.memories),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: it is another exchange's or another compressor's, or of other shapes; nothing is changed.
        """
        _check_keys(state_dict)
        mine = type(self.compressor).__name__
        if state_dict["compressor"] != mine:
            raise ValueError(
                f"ErrorFeedback: the state dict is of the compressor {state_dict['compressor']}, this one is {mine}"
            )
        errors, memories = dict(state_dict["errors"]), dict(state_dict["memories"])
        self._check(errors, memories, self.shapes)
        self.errors = {i: e.detach().clone() for i, e in errors.items()}
        self.memories = {i: memory.detach().clone() for i, memory in memories.items()}

    def _check(
        self, errors: Mapping[int, Tensor], memories: Mapping[int, Tensor], shapes: Sequence[torch.Size]
    ) -> None:
        """Raise ValueError unless the memory is of parameters of these shapes, as far as they are known yet."""
        for i in sorted({*errors, *memories}) if shapes else ():
            if i >= len(shapes):
                raise ValueError(
                    f"ErrorFeedback: the state dict has parameter {i}, the model has {len(shapes)} of them"
                )
            expected = {"errors": tuple(shapes[i]), "memories": self.compressor.remembered(shapes[i])}
            for name, found in (("errors", errors), ("memories", memories)):
                if i in found and tuple(found[i].shape) != expected[name]:
                    raise ValueError(
                        f"ErrorFeedback: the state dict has {name} of shape {tuple(found[i].shape)} for parameter {i}; "
                        f"{self.compressor!r} has {expected[name]}"
                    )

    def __repr__(self) -> str:
        return f"ErrorFeedback({self.compressor!r})"


def zero_throughout(parcel: Parcel) -> set[int]:
    """The parameters whose tensor is zero in every entry.

    Example:
        >>> zero_throughout(Parcel([torch.zeros(2), torch.ones(2)], [4, 7], 0))
        {4}
    """
    indices = [i for i, t in zip(parcel.indices, parcel.tensors, strict=True) if t.numel()]
    zero = (_extremes(parcel.tensors) == 0).all(1).tolist()
    return {i for i, nothing in zip(indices, zero, strict=True) if nothing}


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every entry of every tensor is finite.

    Example:
        >>> all_finite([torch.zeros(2), torch.tensor([1.0, float("nan")])])
        False
    """
    return bool(_extremes(tensors).isfinite().all())


def _extremes(tensors: Iterable[Tensor]) -> Tensor:
    """Least and largest entry of each tensor that has entries; NaN if there is one."""
    found = [torch.stack(torch.aminmax(t.detach())) for t in tensors if t.numel()]
    wide = torch.float64 if any(pair.dtype is torch.float64 for pair in found) else torch.float32
    return torch.stack([pair.to(wide) for pair in found]) if found else torch.zeros(0, 2)


def _check_keys(state_dict: Mapping[str, Any]) -> None:
    expected = {"compressor", "errors", "memories"}
    if set(state_dict) != expected:
        raise ValueError(
            f"ErrorFeedback: the state dict has {sorted(state_dict)}; it must have {sorted(expected)}"
        )


def redistributed(states: Sequence[Mapping[str, Any]], world: int) -> list[dict[str, Any]]:
    """State dicts of all ranks' exchanges, by rank, for another number of workers.

    On as many workers, every state as it was. Otherwise e ← mean(e_i) on all of them: then Σ arrived + mean(e) goes on
    as it was.

    Args:
        states: what `Exchange.state_dict` returned, from every rank.
        world: the number of workers to come.

    Raises:
        ValueError: the states are of different compressors, or there are none.

    Example:
        >>> def state(e):
        ...     return {"compressor": "TopK", "errors": {0: torch.tensor([e])}, "memories": {}}
        >>> [each["errors"][0] for each in redistributed([state(1.0), state(3.0)], 3)]
        [tensor([2.]), tensor([2.]), tensor([2.])]
    """
    positive_integer("redistributed", "world", world)
    if not states:
        raise ValueError("redistributed: states = [] is not allowed; it must be one of every rank")
    if len(states) == world or not any(states):
        return [dict(states[min(rank, len(states) - 1)]) for rank in range(world)]
    for state in states:
        _check_keys(state)
    kinds = sorted({state["compressor"] for state in states})
    if len(kinds) > 1:
        raise ValueError(f"redistributed: the states are of different compressors: {', '.join(kinds)}")
    errors: dict[int, Tensor] = {}
    for i in sorted({i for state in states for i in state["errors"]}):
        known = [state["errors"][i] for state in states if i in state["errors"]]
        total = sum((e.double() for e in known[1:]), known[0].double())
        errors[i] = (total / len(states)).to(known[0].dtype)
    memories = {i: memory for state in reversed(states) for i, memory in state["memories"].items()}
    return [
        {"compressor": kinds[0], "errors": dict(errors), "memories": dict(memories)} for _ in range(world)
    ]
