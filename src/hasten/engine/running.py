"""One pass over the parameters of a bucket."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hasten.engine.flow import Flow
from hasten.engine.formula import Formula, Layout, Pass
from hasten.engine.matrix import Converted, alike, compute_dtype, follow_all, store, through, together_with
from hasten.engine.parameters import ParameterGroups
from hasten.engine.plan import Bucket, flat
from hasten.engine.segments import MADE
from hasten.shared_object import NoCompiler

COMPILE_FROM = {"cpu": 2**12, "elsewhere": 2**17}
"""Number of parameters from which engine="auto" compiles: a C loop takes 0.2 s once, a kernel elsewhere seconds."""

Extras: TypeAlias = "dict[str, dict[Tensor, Any]]"
"""The gradients, and what else the oracle delivered for every parameter."""


def prepare(optimizer: ParameterGroups, bucket: Bucket, extras: Extras) -> None:
    """Make, compile if that pays, every pass that the bucket needs: it may fail, but not half-way through a step."""
    if bucket.whole is not None:
        return
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


def run(
    optimizer: ParameterGroups,
    bucket: Bucket,
    members: Sequence[int],
    stop: int | None,
    numbers: dict[str, float],
    extras: Extras,
) -> list[list[float]]:
    """Run one pass over some of a bucket's parameters, which have their numbers in common; gives their sums."""
    if bucket.whole is not None:
        return run_whole(optimizer, bucket, stop, [numbers] * len(bucket.params), extras)
    if not bucket.composition.reaches(stop):
        return _run_pass(optimizer, bucket, members, bucket.composition.stage(stop), stop, numbers, extras)
    if stop is not None:
        return [_measure(bucket, m, stop, numbers, extras) for m in members]
    shapes = [bucket.tensors("param")[m].shape for m in members]
    for lot in alike(shapes, [None] * len(shapes)):
        _run_stack(optimizer, bucket, [members[i] for i in lot], numbers, extras)
    return []


def _run_pass(
    optimizer: ParameterGroups,
    bucket: Bucket,
    members: Sequence[int],
    formula: Formula,
    stage: Any,
    numbers: dict[str, float],
    extras: Extras,
    made: Mapping[str, Tensor] | None = None,
) -> list[list[float]]:
    """Run one fused pass; what is `made` between passes is stacked in the order of the members."""
    back: list[tuple[Tensor, Tensor]] = []
    slots = [
        [made[name][j].reshape(-1) for j in range(len(members))]
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


def _run_stack(
    optimizer: ParameterGroups,
    bucket: Bucket,
    members: list[int],
    numbers: dict[str, float],
    extras: Extras,
) -> None:
    """Move equally shaped parameters, with parts among theirs that need whole tensors or matrices."""
    composition, segments = bucket.composition, bucket.segments
    compute = compute_dtype(bucket.params[0])
    own = [_own(bucket, m, extras) for m in members]
    entries = [Converted(tensors, compute) for tensors in own]
    if segments.lead is None:
        flow = together_with([composition.start(e) for e in entries])
    else:
        shape = own[0]["param"].shape
        made = {
            name: torch.empty((len(members), *shape), dtype=compute, device=own[0]["param"].device)
            for name in MADE
            if name in segments.lead.writes
        }
        _run_pass(optimizer, bucket, members, segments.lead, "lead", numbers, extras, made)
        flow = Flow(made["direction"], made.get("gradient", made["direction"]))
    flow = through(composition, bucket.structure, flow, entries, numbers)
    for name, value in flow.writes.items():
        for j, tensors in enumerate(own):
            store(tensors[name], value[j], None)
    if bucket.k > composition.preparing:
        arrived = {"direction": flow.direction, "gradient": flow.grad}
        _run_pass(optimizer, bucket, members, segments.finish, "finish", numbers, extras, arrived)


def _measure(
    bucket: Bucket, member: int, stop: int, numbers: dict[str, float], extras: Extras
) -> list[float]:
    """The sums of a pass that stops after parts which need whole tensors."""
    own = _own(bucket, member, extras)
    if not own["param"].numel():
        return [0.0] * len(bucket.composition.stage(stop).sums)
    entries = Converted(own, compute_dtype(own["param"]))
    flow = follow_all(bucket.composition, bucket.structure, entries, numbers, stop)
    for name, value in flow.writes.items():
        store(own[name], value, None)
    return [float(term.sum(dtype=torch.float64)) for term in flow.terms.values()]


def _own(bucket: Bucket, member: int, extras: Extras) -> dict[str, Tensor]:
    """Everything about one parameter, by name, in its own shape."""
    names = ["param", *(slot.name for slot in bucket.composition.slots)]
    found = {name: bucket.tensors(name)[member] for name in names}
    return {**found, **{name: given[bucket.params[member]] for name, given in extras.items()}}


def run_whole(
    optimizer: ParameterGroups,
    bucket: Bucket,
    stop: int | None,
    numbers: list[dict[str, float]],
    extras: Extras,
) -> list[list[float]]:
    """Run one pass of matrix grain over parameters that are divided among workers."""
    assert bucket.whole is not None
    slots = {
        name: [extras[name][p] for p in bucket.params] if name in extras else bucket.tensors(name)
        for name in bucket.composition.stage(stop).inputs
    }
    sums = bucket.whole(slots, numbers, _noise(optimizer, bucket, range(len(bucket.params))), stop)
    if stop is None:
        _note_change(bucket.params)
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
