"""One pass over the parameters of a bucket, whatever its parts need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hasten.engine.composition import Composition
from hasten.engine.divided import run_divided
from hasten.engine.flow import Flow, Later
from hasten.engine.fused import Extras, Numbers, in_common, run_pass
from hasten.engine.matrix import (
    Converted,
    Stack,
    alike,
    compute_dtype,
    one_of,
    store,
    through,
    together_with,
)
from hasten.engine.parameters import ParameterGroups
from hasten.engine.plan import Bucket
from hasten.engine.segments import MADE


def run(
    optimizer: ParameterGroups, bucket: Bucket, stop: int | None, numbers: Sequence[Numbers], extras: Extras
) -> list[list[float]]:
    """Run one pass over a bucket's parameters, each with its numbers; gives the sums of each."""
    composition = bucket.composition
    rows = [[0.0] * len(composition.stage(stop).sums) for _ in bucket.params]
    if not composition.reaches(stop):
        formula = composition.stage(stop)
        for members in in_common(dict(enumerate(numbers))):
            found = run_pass(optimizer, bucket, members, formula, stop, numbers[members[0]], extras)
            for m, row in zip(members, found, strict=True):
                rows[m] = row
        return rows
    if bucket.whole is not None:
        return run_divided(optimizer, bucket, stop, numbers, extras)
    last = composition.waiting(bucket.k)
    if stop is not None and last is not None and last < stop:
        return rows
    shapes = [p.shape for p in bucket.tensors("param")]
    stacked = stop is None or stop >= composition.together.stop
    for lot in alike(shapes, list(_keys(composition, numbers, stacked)), bucket.params[0].device.type):
        own = [numbers[m] for m in lot]
        if stop is None:
            _move(optimizer, bucket, lot, own, extras, last)
        else:
            for m, row in zip(lot, _measure(bucket, lot, stop, own, extras), strict=True):
                rows[m] = row
    return rows


def _keys(composition: Composition, numbers: Sequence[Numbers], stacked: bool) -> Iterator[Any]:
    """Equal for parameters that may be stacked: their numbers are the same in all parts but the last ones."""
    known: dict[int, Any] = {}
    prefixes = tuple(f"{i}." for i in range(composition.together.stop))
    for m, own in enumerate(numbers):
        if not stacked:
            yield m
            continue
        if id(own) not in known:
            known[id(own)] = tuple(value for name, value in own.items() if name.startswith(prefixes))
        yield known[id(own)]


def _move(
    optimizer: ParameterGroups,
    bucket: Bucket,
    members: list[int],
    numbers: Sequence[Numbers],
    extras: Extras,
    last: int | None,
) -> None:
    """Move equally shaped parameters, with parts among theirs that need whole tensors or matrices."""
    composition = bucket.composition
    own = [_own(bucket, m, extras) for m in members]
    entries = [Converted(tensors, compute_dtype(bucket.params[0])) for tensors in own]
    flow = _led(optimizer, bucket, members, numbers[0], extras, entries)
    flow = through(composition, bucket.structure, flow, entries, numbers[0], last=last)
    for name, value in flow.writes.items():
        for j, tensors in enumerate(own):
            store(tensors[name], value[j], None)
    if last is not None:
        return
    finish = bucket.segments.finish
    made = {name: list(getattr(flow, MADE[name])) for name in finish.inputs if name in MADE}
    for places in in_common(dict(enumerate(numbers))):
        some = [members[j] for j in places]
        parts = {name: [stack[j] for j in places] for name, stack in made.items()}
        run_pass(optimizer, bucket, some, finish, "finish", numbers[places[0]], extras, parts)


def _led(
    optimizer: ParameterGroups,
    bucket: Bucket,
    members: Sequence[int],
    numbers: Numbers,
    extras: Extras,
    entries: Sequence[Converted],
) -> Flow:
    """Where equally shaped parameters stand, stacked, after the fused pass that comes first."""
    lead = bucket.segments.lead
    if lead is None:
        return together_with([bucket.composition.start(e) for e in entries])
    param = bucket.tensors("param")[members[0]]
    made = {
        name: param.new_empty((len(members), *param.shape), dtype=compute_dtype(param))
        for name in MADE
        if name in lead.writes
    }
    apart = {name: list(stack) for name, stack in made.items()}
    run_pass(optimizer, bucket, members, lead, "lead", numbers, extras, apart)
    if "gradient" in made:
        return Flow(made["direction"], made["gradient"])
    if bucket.segments.leads:
        return Flow(made["direction"], made["direction"])
    return Flow(made["direction"], Later(lambda: Stack(entries)["grad"]))


def _measure(
    bucket: Bucket, members: list[int], stop: int, numbers: Sequence[Numbers], extras: Extras
) -> Iterator[list[float]]:
    """The sums of a pass over equally shaped parameters that stops after parts which need whole tensors."""
    composition = bucket.composition
    own = [_own(bucket, m, extras) for m in members]
    entries = [Converted(tensors, compute_dtype(bucket.params[0])) for tensors in own]
    flows = [composition.start(e) for e in entries]
    for flow, e in zip(flows, entries, strict=True):
        composition.follow(flow, e, numbers[0], range(composition.together.start))
    stack = through(composition, bucket.structure, together_with(flows), entries, numbers[0], stop)
    for j, tensors in enumerate(own):
        flow = one_of(stack, j)
        if stop >= composition.together.stop:
            after = range(composition.together.stop, len(composition.parts))
            composition.follow(flow, entries[j], numbers[j], after, stop)
        for name, value in flow.writes.items():
            store(tensors[name], value, None)
        yield [float(term.sum(dtype=torch.float64)) for term in flow.terms.values()]


def _own(bucket: Bucket, member: int, extras: Extras) -> dict[str, Tensor]:
    """Everything about one parameter, by name, in its own shape."""
    names = ["param", *(slot.name for slot in bucket.composition.slots)]
    found = {name: bucket.tensors(name)[member] for name in names}
    return {**found, **{name: given[bucket.params[member]] for name, given in extras.items()}}
