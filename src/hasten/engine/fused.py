"""One fused pass over parameters of a bucket: made when it is first needed, run on flat views."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hasten.engine.formula import Formula, Layout, Pass
from hasten.engine.matrix import compute_dtype
from hasten.engine.parameters import ParameterGroups
from hasten.engine.plan import Bucket, flat
from hasten.engine.segments import MADE
from hasten.shared_object import NoCompiler

COMPILE_FROM = {"cpu": 2**12, "elsewhere": 2**17}
"""Number of parameters from which engine="auto" compiles: a C loop takes 0.2 s once, a kernel elsewhere seconds."""

Extras: TypeAlias = "dict[str, dict[Tensor, Any]]"
"""The gradients, and what else the oracle delivered for every parameter."""


Numbers: TypeAlias = "Mapping[str, float]"
"""The numbers of a formula, by name."""


def in_common(numbers: Mapping[int, Numbers]) -> Iterator[list[int]]:
    """The members that share their numbers."""
    found: dict[int, list[int]] = {}
    for m, own in numbers.items():
        found.setdefault(id(own), []).append(m)
    yield from found.values()


def prepare(optimizer: ParameterGroups, bucket: Bucket, extras: Extras) -> None:
    """Make, compile if that pays, every pass that the bucket needs: it may fail, but not half-way through a step."""
    composition, found = bucket.composition, bucket.passes
    for stop in (*composition.measuring, None):
        if not composition.reaches(stop):
            if stop not in found:
                found[stop] = _pass(optimizer, bucket, composition.stage(stop), extras)
        elif stop is None and "finish" not in found:
            lead = bucket.segments.lead
            if lead is not None:
                found["lead"] = _pass(optimizer, bucket, lead, extras)
            found["finish"] = _pass(optimizer, bucket, bucket.segments.finish, extras)


def _pass(optimizer: ParameterGroups, bucket: Bucket, formula: Formula, extras: Extras) -> Pass:
    p = bucket.params[0]
    own = {name: {p: p} for name in bucket.composition.extra_inputs}
    made = {name: {p: p.detach().new_empty(0, dtype=compute_dtype(p))} for name in MADE}
    tensors = _tensors(optimizer, formula, p, {"grad": {p: extras["grad"][p]}, **own, **made})
    dtypes = tuple(t.dtype.to_real() for t in tensors)
    compute = torch.float64 if torch.float64 in dtypes else torch.float32
    stochastic = optimizer.stochastic_rounding and p.dtype is torch.bfloat16 and "param" in formula.writes
    layout = Layout(dtypes, compute, p.device.type, stochastic)
    return choose_pass(optimizer, formula, layout)


def choose_pass(optimizer: ParameterGroups, formula: Formula, layout: Layout) -> Pass:
    """The compiled pass where it pays and can be had, otherwise the eager one."""
    from hasten.engine.eager import eager_pass

    large = optimizer.parameter_count >= COMPILE_FROM.get(layout.device, COMPILE_FROM["elsewhere"])
    if optimizer.engine == "eager" or (optimizer.engine == "auto" and (not large or _Fallback.happened)):
        return eager_pass(formula, layout)
    from hasten.engine.passes import compiled_pass

    try:
        return compiled_pass(formula, layout)
    except NoCompiler as error:
        if optimizer.engine == "compiled":
            raise
        _Fallback.happened = True
        warnings.warn(f"hasten runs without compiling, which is slower: {error}", UserWarning, stacklevel=5)
        return eager_pass(formula, layout)


class _Fallback:
    happened = False


def _tensors(optimizer: ParameterGroups, formula: Formula, p: Tensor, extras: Extras) -> list[Tensor]:
    """The tensors of one parameter that a formula works on, in its order."""
    state = optimizer.state[p]
    return [p if n == "param" else extras[n][p] if n in extras else state[n] for n in formula.inputs]


def run_pass(
    optimizer: ParameterGroups,
    bucket: Bucket,
    members: Sequence[int],
    formula: Formula,
    stage: Any,
    numbers: Numbers,
    extras: Extras,
    made: Mapping[str, Sequence[Tensor]] | None = None,
) -> list[list[float]]:
    """Run one fused pass; what is `made` between passes comes in the order of the members."""
    back: list[tuple[Tensor, Tensor]] = []
    slots = [
        [own.reshape(-1) for own in made[name]]
        if made is not None and name in made
        else _slot(bucket, name, members, name in formula.writes, back, extras)
        for name in formula.inputs
    ]
    noise = _noise(optimizer, bucket, members)
    sums = bucket.passes[stage](slots, [numbers[name] for name in formula.numbers], noise)
    for original, copy in back:
        original.copy_(copy)
    if "param" in formula.writes:
        _note_change([bucket.params[m] for m in members])
    return sums


def _note_change(params: list[Tensor]) -> None:
    for p in params:  # one by one, as older versions of torch take them
        torch.autograd.graph.increment_version(p)


def _slot(
    bucket: Bucket,
    name: str,
    members: Sequence[int],
    written: bool,
    back: list[tuple[Tensor, Tensor]],
    extras: Extras,
) -> list[Tensor]:
    """The tensors of one input, flat for a formula of the entries; copies to be written back are noted."""
    if name in extras:
        return [_flat_copy(extras[name][bucket.params[m]]) for m in members]
    views = bucket.views(name)
    if views is not None:
        return views if len(members) == len(views) else [views[m] for m in members]
    slot = []
    for m in members:
        original = bucket.tensors(name)[m]
        copy = original.detach().contiguous(memory_format=torch.contiguous_format)
        if written and not original.is_contiguous():
            back.append((original, copy))
        slot.append(flat(copy))
    return slot


def _flat_copy(t: Tensor) -> Tensor:
    """One-dimensional and contiguous: a view where there is one, otherwise a copy."""
    if t.is_contiguous() and not t.is_complex():
        return t.view(-1)
    return flat(t.contiguous(memory_format=torch.contiguous_format))


def _noise(optimizer: ParameterGroups, bucket: Bucket, members: Sequence[int]) -> list[int] | None:
    """A key for each tensor, if parameters are rounded at random; the shards of one have different ones."""
    if not optimizer.stochastic_rounding:
        return None
    step = int(bucket.counters["step"])
    shards = [bucket.divisions[m].number if bucket.divisions else 0 for m in members]
    ordinals = [bucket.ordinals[m] for m in members]
    return [_key(optimizer.seed, step, o + (s << 32)) for o, s in zip(ordinals, shards, strict=True)]


def _key(seed: int, step: int, ordinal: int) -> int:
    """A 64-bit key of the random numbers of one tensor at one step; odd multipliers keep the triples apart."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xC2B2AE3D27D4EB4F + ordinal * 0x165667B19E3779F9 + 1) % 2**64
