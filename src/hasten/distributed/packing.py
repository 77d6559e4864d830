"""Several tensors in one collective, and a compressor's questions over the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.futures import Future

from hasten.distributed.compressors import Average, Compressor, Gather, Message, finish
from hasten.distributed.exchange import finished
from hasten.wire import Wire, wait


def average(tensors: Sequence[Tensor], wire: Wire, part: str) -> Future[list[Tensor]]:
    """The means over the workers, from one all-reduce in the widest of the dtypes, and in no less than float32.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> average([torch.ones(2), torch.zeros(1)], Wire(), "gradients").wait()
        [tensor([1., 1.]), tensor([0.])]
        >>> dist.destroy_process_group()
    """
    if not tensors:
        return finished([])
    wide = torch.float64 if any(t.dtype is torch.float64 for t in tensors) else torch.float32
    together = torch.cat([t.reshape(-1).to(wide) for t in tensors]).div_(wire.world)

    def arrived(done: Future[Tensor]) -> list[Tensor]:
        pieces = torch.split(done.value(), [t.numel() for t in tensors])
        return [piece.view(t.shape).to(t.dtype) for t, piece in zip(tensors, pieces, strict=True)]

    return wire.sum(together, part).then(arrived)


def gather(tensors: Sequence[Tensor], wire: Wire, part: str) -> Future[list[list[Tensor]]]:
    """Everyone's tensors by rank, of any dtypes, from one all-gather of their bytes.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> gather([torch.ones(2), torch.tensor([3], dtype=torch.int32)], Wire(), "gradients").wait()
        [[tensor([1., 1.]), tensor([3], dtype=torch.int32)]]
        >>> dist.destroy_process_group()
    """
    # Wide ones first: then each begins at a multiple of its size.
    order = sorted(range(len(tensors)), key=lambda k: -tensors[k].itemsize)
    together = torch.cat([tensors[k].reshape(-1).view(torch.uint8) for k in order])

    def opened(theirs: Tensor) -> list[Tensor]:
        pieces = torch.split(theirs, [tensors[k].nbytes for k in order])
        found = {
            k: piece.view(tensors[k].dtype).view(tensors[k].shape)
            for k, piece in zip(order, pieces, strict=True)
        }
        return [found[k] for k in range(len(tensors))]

    return wire.gather(together, part).then(lambda done: [opened(theirs) for theirs in done.value()])


def exchanged(
    compressor: Compressor, messages: Sequence[Message], whole: Sequence[Tensor], wire: Wire, part: str
) -> Future[list[Tensor]]:
    """Start to exchange the messages; gives the means of what is averaged whole, which joins the first average.

    Rounds before the last are waited for: were they continued where their answers arrive, then workers that have
    several parcels under way would start their collectives in different orders.
    """
    if not messages:
        return average(whole, wire, part)
    rounds = compressor.exchange(messages)
    question = next(rounds)
    beside = average(whole, wire, part) if isinstance(question, Gather) else finished([])
    joined = [] if isinstance(question, Gather) else list(whole)
    own = len(question.tensors)
    asked = _ask([*question.tensors, *joined], question, wire, part)
    means: list[Tensor] = []

    def answered(answer: list[Any]) -> list[Any]:
        """The compressor's part of the first answer."""
        means.extend(answer[own:] if joined else [])
        return answer[:own] if joined else answer

    for _ in range(compressor.rounds - 1):
        question = rounds.send(answered(wait(asked)))
        joined = []
        asked = _ask(question.tensors, question, wire, part)

    @torch.no_grad()
    def arrived(done: Future[list[Any]]) -> list[Tensor]:
        finish(compressor, rounds, answered(done.value()))
        return means or beside.wait()

    return asked.then(arrived)


def _ask(tensors: Sequence[Tensor], question: Average | Gather, wire: Wire, part: str) -> Future[list[Any]]:
    return (gather if isinstance(question, Gather) else average)(tensors, wire, part)
