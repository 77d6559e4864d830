"""Parts that need whole tensors or matrices, run on stacks of equal ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hasten.engine.composition import Composition
from hasten.engine.flow import Flow, Later
from hasten.engine.structure import Structure

Entries: TypeAlias = "Mapping[str, Tensor]"


class Converted:
    """Tensors by name, in the dtype of the arithmetic when they are read."""

    def __init__(self, tensors: Entries, compute: torch.dtype) -> None:
        self.tensors, self.compute = tensors, compute

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name].detach().to(self.compute)


def through(
    composition: Composition,
    structure: Structure,
    flow: Flow,
    entries: Sequence[Any],
    numbers: Any,
    stop: int | None = None,
    last: int | None = None,
) -> Flow:
    """Take tensors of one shape through the parts of ``composition.together``.

    Args:
        composition: with parts of tensor or matrix grain.
        structure: how the tensors are read as matrices.
        flow: of all tensors, stacked, as the parts before have left it.
        entries: of each tensor by name, in the dtype of the arithmetic.
        numbers: of the formula, the same for all.
        stop: the part to measure for, if any.
        last: the last part to apply, if the others wait until it has been prepared.

    Returns:
        The flow of all, stacked: ``direction``, ``grad`` and ``writes`` are [k, …].

    Raises:
        ValueError: a part makes something of another shape than it should; names both.
    """
    shape, stack = flow.direction.shape[1:], Stack(entries)
    flow.writes = {}
    for i in composition.together:
        if (stop is not None and i > stop) or (last is not None and i > last):
            break
        if composition.parts[i].grain == "matrix":
            _through_matrices(composition, structure, shape, flow, stack, numbers, i, stop)
        else:
            before = flow.direction
            composition.follow(flow, stack, numbers, range(i, i + 1), stop)
            _check_made(composition, i, flow, before, shape)
    return flow


def _piece(structure: Structure, flow: Flow, piece: int) -> Tensor:
    return structure.pieces(flow.grad)[piece]


def _check_made(composition: Composition, i: int, flow: Flow, before: Tensor, shape: torch.Size) -> None:
    """Raise ValueError if what a part made has a wrong shape; bring its direction to the dtype of the arithmetic."""
    made = {"the direction": (flow.direction, shape)}
    for slot in composition.slots:
        if slot.part == i and slot.name in flow.writes:
            kept = slot.buffer.shape(shape) if slot.buffer.shape else shape
            made[repr(slot.formal)] = (flow.writes[slot.name], torch.Size(kept))
    for what, (value, own) in made.items():
        if value.shape != (before.shape[0], *own):
            raise ValueError(
                f"{type(composition.parts[i]).__name__}: {what} that it makes has the shape {tuple(value.shape)}; "
                f"it must be {(before.shape[0], *own)}"
            )
    if flow.direction.dtype is not before.dtype:  # fused passes read it as what the arithmetic is in
        changed = flow.direction.to(before.dtype)
        if not flow.apart:
            flow.grad = changed
        flow.direction = changed


def _through_matrices(
    composition: Composition,
    structure: Structure,
    shape: torch.Size,
    flow: Flow,
    stack: Stack,
    numbers: Any,
    i: int,
    stop: int | None,
) -> None:
    """One part of matrix grain, on one stack of matrices after another."""
    likes = {s.name: s.buffer.shape for s in composition.slots if s.part == i and s.buffer.shape is not None}
    directions = structure.pieces(flow.direction)
    parts: list[Flow] = []
    for piece, d in enumerate(directions):
        grad = Later(partial(_piece, structure, flow, piece)) if flow.apart else d
        part = Flow(d, grad, flow.decay)
        pieces = _Pieces(stack, structure, likes, shape, piece)
        composition.follow(part, pieces, numbers, range(i, i + 1), stop)
        _check_made(composition, i, part, d, d.shape[1:])
        parts.append(part)
    if stop != i:
        flow.direction = structure.assemble([part.direction for part in parts], shape)
        if composition.leads(i):
            flow.grad = flow.direction
    else:
        flow.terms = {name: sum(part.terms[name].sum() for part in parts) for name in parts[0].terms}
        flow.writes = {}
    for name in parts[0].writes:
        own = [part.writes[name] for part in parts]
        like = likes.get(name)
        flow.writes[name] = (
            structure.assemble(own, shape) if like is None else structure.keep(own, like, shape)
        )
    flow.asked |= parts[0].asked


class Stack:
    """Entries of several tensors, stacked when they are read."""

    def __init__(self, entries: Sequence[Any]) -> None:
        self.entries = entries

    def each(self, name: str) -> list[Tensor]:
        """One after another."""
        return [own[name] for own in self.entries]

    def __getitem__(self, name: str) -> Tensor:
        return _stacked(self.each(name))


class _Pieces:
    """Entries of one stack of matrices, taken out of their tensors when they are read."""

    def __init__(
        self, stack: Stack, structure: Structure, likes: Mapping[str, Any], shape: torch.Size, piece: int
    ) -> None:
        self.stack, self.structure, self.likes, self.shape, self.piece = stack, structure, likes, shape, piece

    def __getitem__(self, name: str) -> Tensor:
        like = self.likes.get(name)
        if like is not None:
            return self.structure.kept_piece(self.stack.each(name), like, self.shape, self.piece)
        return self.structure.pieces(self.stack[name])[self.piece]


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    # Contiguous either way: products of matrices are rounded as their strides are.
    return tensors[0].contiguous().unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def follow_all(
    composition: Composition, structure: Structure, entries: Any, numbers: Any, stop: int | None
) -> Flow:
    """Take one tensor through all parts, up to the measurement of part `stop`."""
    together = composition.together
    flow = composition.start(entries)
    composition.follow(flow, entries, numbers, range(together.start), stop)
    if not composition.reaches(stop):
        return flow
    if not flow.direction.numel():
        flow.terms = dict.fromkeys(composition.sum_names(stop), flow.direction) if stop is not None else {}
        return flow
    writes = flow.writes
    flow = one_of(through(composition, structure, together_with([flow]), [entries], numbers, stop), 0)
    if stop is None or stop >= together.stop:
        composition.follow(flow, entries, numbers, range(together.stop, len(composition.parts)), stop)
    if stop is None:
        flow.writes = {**writes, **flow.writes}
    return flow


def together_with(flows: Sequence[Flow]) -> Flow:
    """The flows of tensors of one shape, stacked."""
    first = flows[0]
    direction = _stacked([flow.direction for flow in flows])
    grad = Later(lambda: _stacked([flow.grad for flow in flows])) if first.apart else direction
    return Flow(direction, grad, first.decay)


def one_of(flow: Flow, member: int) -> Flow:
    """The flow of one of the stacked tensors."""
    direction = flow.direction[member]
    writes = {name: value[member] for name, value in flow.writes.items()}
    grad = Later(lambda: flow.grad[member]) if flow.apart else direction
    found = Flow(direction, grad, flow.decay, writes, dict(flow.terms))
    found.asked = flow.asked
    return found


LOT = {"cpu": 2**20, "elsewhere": 2**24}
"""Tensors are stacked up to so many entries. On a CPU a product of 1024 × 1024 matrices is as fast alone as in a stack
[M]; elsewhere many small kernels leave the device idle, and a stack of 64 MB in float32 fills any."""


def alike(shapes: Sequence[torch.Size], keys: Sequence[Any], device: str = "cpu") -> Iterator[list[int]]:
    """Positions of equal shapes and keys, in lots of `LOT` entries, or of as many as the largest tensor has."""
    budget = max([LOT.get(device, LOT["elsewhere"]), *(shape.numel() for shape in shapes)])
    found: dict[Any, list[int]] = {}
    for i, (shape, key) in enumerate(zip(shapes, keys, strict=True)):
        if shape.numel():
            found.setdefault((shape, key), []).append(i)
    for (shape, _), members in found.items():
        lot = max(1, budget // shape.numel())
        for start in range(0, len(members), lot):
            yield members[start : start + lot]


def compute_dtype(param: Tensor) -> torch.dtype:
    """The dtype of the arithmetic on a parameter."""
    return torch.float64 if param.dtype is torch.float64 else torch.float32


def store(target: Tensor, value: Tensor, key: int | None) -> None:
    """Put a value into a tensor of another dtype, rounded at random if there is a key and the dtype is bfloat16."""
    from hasten.engine.rounding import random_bits, round_stochastically
    from hasten.hashing import words

    if key is not None and target.dtype is torch.bfloat16:
        index = torch.arange(value.numel(), device=value.device).view(value.shape)
        value = round_stochastically(value, random_bits(*words(key), index))
    target.detach().copy_(value)
