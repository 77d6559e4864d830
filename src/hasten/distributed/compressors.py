"""Compressors: short messages C(m) that stand for a tensor m, and how the mean of all workers' C(m_i) is formed.

A compressor is a δ-contraction: ‖C(m) − m‖² ≤ (1 − δ)‖m‖² for some δ > 0 (in expectation, where it draws). It may be
biased, so it belongs inside :class:`~hasten.distributed.ErrorFeedback`, which remembers m − C(m).

It says what must travel by *asking*: `exchange` is a generator that yields `Average` or `Gather` and is sent the
answer, so that it states the formula and nothing of the network. Whoever runs it packs each question into one
collective, whatever the number of tensors.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from hasten.checks import check_choice
from hasten.sketches import BalancedCountSketch, PerLayer, Sketch
from hasten.sketches.layers import Shape


@dataclass
class Message:
    """What one worker has to say about one parameter.

    Attributes:
        m: shaped like the parameter, contiguous, float32 or float64; becomes m − C(m).
        mean: like m; becomes the mean of all workers' C(m_i).
        index: the parameter's position, the same on all workers.
        step: how many exchanges were made before.
        memory: what the compressor kept from the last exchange of this parameter, equal on all workers; it may
            replace it.
    """

    m: Tensor
    mean: Tensor
    index: int = 0
    step: int = 0
    memory: Tensor | None = None


@dataclass
class Average:
    """Asks for the means over all workers; the answer is a list of tensors like these."""

    tensors: list[Tensor]


@dataclass
class Gather:
    """Asks for everyone's tensors; the answer is, by rank, a list of tensors like these."""

    tensors: list[Tensor]


Rounds = Generator[Average | Gather, Any, None]


class Compressor(abc.ABC):
    """A short stand-in C(m) for a tensor m. It holds no memory of its own: what is kept is in `Message.memory`."""

    rounds: ClassVar[int] = 1
    """How many questions it asks."""
    gathers: ClassVar[bool] = False
    """Whether messages are gathered from everyone, rather than added up on their way."""
    formula: ClassVar[str] = ""
    """C in plain text."""

    @abc.abstractmethod
    def payload(self, shape: Shape, itemsize: int) -> int:
        """Bytes that a worker hands over for a parameter of this shape, and of `itemsize` bytes an entry."""

    def remembered(self, shape: Shape) -> tuple[int, ...] | None:
        """The shape of `Message.memory` for a parameter of this shape; None if nothing is kept."""
        return None

    @abc.abstractmethod
    def exchange(self, messages: Sequence[Message]) -> Rounds:
        """Ask for what is needed, then leave the mean of all C(m_i) in `mean` and m − C(m) in `m`."""

    def saves(self, shape: Shape, itemsize: int, world: int) -> bool:
        """Whether fewer bytes travel than in an all-reduce of the whole, among this many workers (2 for one alone).

        Example:
            >>> [TopK(ratio=10).saves((1000, 1000), 4, world) for world in (2, 8, 16)]
            [True, True, False]
        """
        copies = max(world, 2) if self.gathers else 2
        return self.payload(shape, itemsize) * copies < 2 * math.prod(shape) * itemsize


def at_least_one(owner: str, name: str, value: Any) -> None:
    """Raise ValueError unless the value is a number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf:
        raise ValueError(f"{owner}: {name} = {value!r} is not allowed; it must be a number of at least 1")


def positive_integer(owner: str, name: str, value: Any) -> None:
    """Raise ValueError unless the value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{owner}: {name} = {value!r} is not allowed; it must be an integer of at least 1")


def integer(owner: str, name: str, value: Any) -> None:
    """Raise TypeError unless the value is an integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {name} = {value!r} is not allowed; it must be an integer")


@dataclass(frozen=True)
class TopK(Compressor):
    """The k = ⌈d/ratio⌉ entries of largest magnitude, as values and int32 positions, gathered. δ = k/d.

    Stich, Cordonnier and Jaggi, "Sparsified SGD with memory" (2018). A worker receives the messages of all others, so
    at W workers the traffic grows like W, unlike that of an all-reduce.

    Args:
        ratio: d/k, of every parameter by itself.
        values: dtype in which values travel; None for float32 (float64 for float64), or torch.bfloat16.

    Example:
        >>> message = Message(torch.tensor([3.0, -1.0, -4.0, 2.0]), torch.empty(4))
        >>> averaged(TopK(ratio=2), [[message]])
        >>> message.mean, message.m
        (tensor([ 3.,  0., -4.,  0.]), tensor([ 0., -1.,  0.,  2.]))
    """

    ratio: float = 100.0
    values: torch.dtype | None = None
    gathers: ClassVar[bool] = True
    formula: ClassVar[str] = "C(m)_j = m_j for the k largest |m_j|, else 0"

    def __post_init__(self) -> None:
        at_least_one("TopK", "ratio", self.ratio)
        check_choice("TopK", "values", self.values, (None, torch.float32, torch.bfloat16))

    def count(self, entries: int) -> int:
        """k."""
        return math.ceil(entries / self.ratio)

    def payload(self, shape: Shape, itemsize: int) -> int:
        """k (value + 4)."""
        value = itemsize if self.values is None else self.values.itemsize
        return self.count(math.prod(shape)) * (value + 4)

    def exchange(self, messages: Sequence[Message]) -> Rounds:
        """One gathering of values and positions."""
        values, positions = [], []
        for message in messages:
            m = message.m.view(-1)
            position = largest(m, self.count(m.numel()))
            value = m[position]
            sent = value if self.values is None else value.to(self.values)
            m[position] = value - sent
            values.append(sent)
            positions.append(position.to(torch.int32))
        everyone = yield Gather([*values, *positions])
        for k, message in enumerate(messages):
            mean = message.mean.view(-1).zero_()
            for theirs in everyone:
                value, position = theirs[k], theirs[len(messages) + k]
                mean.index_add_(0, position, value.to(mean.dtype) / len(everyone))


SAMPLED = 64
"""One entry in this many is looked at to guess how large the k-th largest is."""


def largest(m: Tensor, k: int) -> Tensor:
    """The positions of the k entries of largest magnitude of a vector, in no order; what is not a number is largest.

    Exact: a sample guesses a magnitude that a few more than k entries reach, and only those are compared; where the
    guess was wrong, all are.

    Example:
        >>> largest(torch.tensor([1.0, -5.0, 3.0]), 2).sort().values
        tensor([1, 2])
    """
    size = m.abs()
    if m.numel() > SAMPLED**2 and 0 < k < m.numel() // 4:
        sample = size[::SAMPLED]
        few = k / SAMPLED
        guess = torch.topk(sample, math.ceil(few + 3 * math.sqrt(few) + 3), sorted=False).values.min()
        reached = (~(size < guess)).nonzero().view(-1)  # so that NaN is among them
        if reached.numel() >= k:
            return reached[torch.topk(size[reached], k, sorted=False).indices]
    return torch.topk(size, k, sorted=False).indices


@dataclass(frozen=True)
class Sign(Compressor):
    """The mean magnitude times the signs: one bit an entry and one number, gathered. δ = ‖m‖₁²/(d‖m‖²) ≥ 1/d.

    Seide, Fu, Droppo, Li and Yu, "1-bit stochastic gradient descent" (2014); with this scale, Karimireddy, Rebjock,
    Stich and Jaggi, "Error feedback fixes SignSGD" (2019). A zero has the sign of its bit.

    Example:
        >>> message = Message(torch.tensor([3.0, -1.0, -4.0, 2.0]), torch.empty(4))
        >>> averaged(Sign(), [[message]])
        >>> message.mean
        tensor([ 2.5000, -2.5000, -2.5000,  2.5000])
    """

    gathers: ClassVar[bool] = True
    formula: ClassVar[str] = "C(m) = (‖m‖₁/d) sign(m)"

    def payload(self, shape: Shape, itemsize: int) -> int:
        """⌈d/8⌉ and a number."""
        return -(-math.prod(shape) // 8) + itemsize

    def exchange(self, messages: Sequence[Message]) -> Rounds:
        """One gathering of scales and signs."""
        scales, bits = [], []
        for message in messages:
            m = message.m.view(-1)
            scale = m.abs().mean()
            scales.append(scale.view(1))
            bits.append(packed(~torch.signbit(m)))
            m -= torch.copysign(scale, m)
        everyone = yield Gather([*scales, *bits])
        for k, message in enumerate(messages):
            mean = message.mean.view(-1).zero_()
            for theirs in everyone:
                scale = theirs[k] / len(everyone)
                positive = unpacked(theirs[len(messages) + k], mean.numel())
                mean += positive.to(mean.dtype).mul_(2 * scale).sub_(scale)


def packed(bits: Tensor) -> Tensor:
    """Eight booleans in each byte, the first in its lowest bit.

    Example:
        >>> packed(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    padded = torch.zeros(-(-bits.numel() // 8) * 8, dtype=torch.uint8, device=bits.device)
    padded[: bits.numel()] = bits
    return (padded.view(-1, 8) << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(
        1, dtype=torch.uint8
    )


def unpacked(found: Tensor, entries: int) -> Tensor:
    """What was packed.

    Example:
        >>> unpacked(torch.tensor([5], dtype=torch.uint8), 3)
        tensor([ True, False,  True])
    """
    masks = 1 << torch.arange(8, dtype=torch.uint8, device=found.device)
    return (found.unsqueeze(1) & masks).view(-1)[:entries] != 0


@dataclass(frozen=True)
class Sketched(Compressor):
    """C(m) = P Pᵀm/ν, with one random P for all workers, of which r numbers are added up. δ = 1/ν in expectation.

    P Pᵀ is unbiased and inflates squares by at most ν (d/r for most families), so it is no contraction; shrunk by ν
    it is one: E‖P Pᵀm/ν − m‖² ≤ (1 − 1/ν)‖m‖². What it shrinks comes later: in the long run all of it arrives.

    Args:
        sketch: the family of P, with a ratio d/r that holds for every parameter by itself.
        seed: of the subspaces; the same on every worker.

    Example:
        >>> Sketched(BalancedCountSketch(ratio=8), seed=1)
        Sketched(sketch=BalancedCountSketch(rank=None, ratio=8), seed=1)
    """

    sketch: Sketch = field(default_factory=lambda: BalancedCountSketch(ratio=64))
    seed: int = 0
    formula: ClassVar[str] = "C(m) = P Pᵀ m / ν"

    def __post_init__(self) -> None:
        if (
            not isinstance(self.sketch, Sketch)
            or isinstance(self.sketch, PerLayer)
            or self.sketch.ratio is None
        ):
            raise TypeError(
                f"Sketched: sketch = {self.sketch!r} is not allowed; it must be a sketch with a ratio, "
                "which holds for every parameter by itself"
            )
        integer("Sketched", "seed", self.seed)

    def payload(self, shape: Shape, itemsize: int) -> int:
        """r numbers."""
        return self.sketch.rank_in(math.prod(shape)) * itemsize

    def exchange(self, messages: Sequence[Message]) -> Rounds:
        """One average of all Pᵀm."""
        draws = [
            self.sketch.draw(message.m.numel(), seed=self.seed, step=message.step, block=message.index)
            for message in messages
        ]
        own = [draw.project(message.m) for draw, message in zip(draws, messages, strict=True)]
        means = yield Average(own)
        for message, draw, s, mean in zip(messages, draws, own, means, strict=True):
            nu = self.sketch.nu(message.m.numel())
            draw.lift(mean / nu, message.mean)
            message.m -= draw.lift(s / nu).view(message.m.shape)


def averaged(compressor: Compressor, workers: Sequence[Sequence[Message]]) -> None:
    """Exchange among workers that are all in this process: what a network would do, for studies of a compressor.

    Args:
        compressor: C.
        workers: by rank, each worker's messages; their `m`, `mean` and `memory` are written.

    Example:
        >>> both = [[Message(torch.tensor(m), torch.empty(2))] for m in ([4.0, 1.0], [1.0, -2.0])]
        >>> averaged(TopK(ratio=2), both)
        >>> both[0][0].mean, both[1][0].m
        (tensor([ 2., -1.]), tensor([1., 0.]))
    """
    running = [compressor.exchange(messages) for messages in workers]
    questions = [next(each) for each in running]
    for _ in range(compressor.rounds - 1):
        answer = _answer(questions)
        questions = [each.send(answer) for each in running]
    answer = _answer(questions)
    for each in running:
        finish(compressor, each, answer)


def _answer(questions: Sequence[Average | Gather]) -> list[Any]:
    if isinstance(questions[0], Gather):
        return [question.tensors for question in questions]
    return [
        torch.stack(same).mean(0) for same in zip(*(question.tensors for question in questions), strict=True)
    ]


def finish(compressor: Compressor, rounds: Rounds, answer: list[Any]) -> None:
    """Give a compressor its last answer.

    Raises:
        RuntimeError: it asks on.
    """
    try:
        rounds.send(answer)
    except StopIteration:
        return
    raise RuntimeError(f"{compressor!r} asks more than {compressor.rounds} questions")
