"""One pass over the parameters of a bucket, whatever its parts need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hasten.engine.divided import run_divided
from hasten.engine.flow import Flow, Later
from hasten.engine.fused import Extras, run_pass
from hasten.engine.matrix import (
    Converted,
    Stack,
    alike,
    compute_dtype,
    follow_all,
    store,
    through,
    together_with,
)
from hasten.engine.parameters import ParameterGroups
from hasten.engine.plan import Bucket
from hasten.engine.segments import MADE


def run(
    optimizer: ParameterGroups,
    bucket: Bucket,
    members: Sequence[int],
    stop: int | None,
    numbers: dict[str, float],
    extras: Extras,
) -> list[list[float]]:
    """Run one pass over some of a bucket's parameters, which have their numbers in common; gives their sums."""
    if not bucket.composition.reaches(stop):
        return run_pass(optimizer, bucket, members, bucket.composition.stage(stop), stop, numbers, extras)
    if bucket.whole is not None:
        return run_divided(optimizer, bucket, stop, [numbers] * len(bucket.params), extras)
    if stop is not None:
        return [_measure(bucket, m, stop, numbers, extras) for m in members]
    shapes = [bucket.tensors("param")[m].shape for m in members]
    for lot in alike(shapes, [None] * len(shapes), bucket.params[0].device.type):
        _run_stack(optimizer, bucket, [members[i] for i in lot], numbers, extras)
    return []


def _run_stack(
    optimizer: ParameterGroups,
    bucket: Bucket,
    members: list[int],
    numbers: dict[str, float],
    extras: Extras,
) -> None:
    """Move equally shaped parameters, with parts among theirs that need whole tensors or matrices."""
    composition = bucket.composition
    own = [_own(bucket, m, extras) for m in members]
    entries = [Converted(tensors, compute_dtype(bucket.params[0])) for tensors in own]
    flow = _led(optimizer, bucket, members, numbers, extras, entries)
    last = composition.waiting(bucket.k)
    flow = through(composition, bucket.structure, flow, entries, numbers, last=last)
    for name, value in flow.writes.items():
        for j, tensors in enumerate(own):
            store(tensors[name], value[j], None)
    if last is None:
        finish = bucket.segments.finish
        made = {name: list(getattr(flow, MADE[name])) for name in finish.inputs if name in MADE}
        run_pass(optimizer, bucket, members, finish, "finish", numbers, extras, made)


def _led(
    optimizer: ParameterGroups,
    bucket: Bucket,
    members: Sequence[int],
    numbers: Mapping[str, float],
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
    bucket: Bucket, member: int, stop: int, numbers: dict[str, float], extras: Extras
) -> list[float]:
    """The sums of a pass that stops after parts which need whole tensors."""
    own, last = _own(bucket, member, extras), bucket.composition.waiting(bucket.k)
    if not own["param"].numel() or (last is not None and last < stop):
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
