"""One pass over parameters that are divided among workers, with parts among theirs that need whole matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from hasten.engine.flow import Flow, Later
from hasten.engine.fused import Extras, Numbers, in_common, run_pass
from hasten.engine.matrix import Converted, compute_dtype, store
from hasten.engine.parameters import ParameterGroups
from hasten.engine.plan import Bucket
from hasten.engine.segments import MADE
from hasten.engine.whole import Visit


def run_divided(
    optimizer: ParameterGroups,
    bucket: Bucket,
    stop: int | None,
    numbers: Sequence[Numbers],
    extras: Extras,
) -> list[list[float]]:
    """Run one pass over parameters that are divided among workers, and that parts of matrix grain need whole.

    While one batch is worked on, the next one is on its way.
    """
    whole = bucket.whole
    assert whole is not None
    composition, compute = bucket.composition, compute_dtype(bucket.params[0])
    rows = [[0.0] * len(composition.stage(stop).sums) for _ in bucket.params]
    last = composition.waiting(bucket.k)
    if stop is not None and last is not None and last < stop:
        return rows
    names = ("param", *(slot.name for slot in composition.slots))
    slots = {name: bucket.tensors(name) for name in names}
    slots |= {name: [given[p] for p in bucket.params] for name, given in extras.items()}
    visiting: tuple[Visit, dict[int, Converted], Mapping[int, Numbers]] | None = None
    for batch in (*whole.batches, None):
        following = None
        if batch is not None:
            entries = {m: Converted({name: slot[m] for name, slot in slots.items()}, compute) for m in batch}
            own: Mapping[int, Numbers] = {m: numbers[m] for m in batch}
            if stop is None:
                flows = _led(optimizer, bucket, own, extras, entries)
            else:
                flows = {m: composition.start(entries[m]) for m in batch}
                for m, flow in flows.items():
                    composition.follow(flow, entries[m], own[m], range(composition.together.start))
            following = whole.depart(flows, slots, own, stop, last), entries, own
        if visiting is not None:
            visit, entries, own = visiting
            whole.arrive(visit, slots, own, compute, stop, last)
            for m, flow in visit.flows.items():
                if stop is not None:
                    after = range(composition.together.stop, len(composition.parts))
                    composition.follow(flow, entries[m], own[m], after, stop) if stop in after else None
                    rows[m] = [float(term.sum(dtype=torch.float64)) for term in flow.terms.values()] or rows[
                        m
                    ]
                for name, value in flow.writes.items():
                    store(slots[name][m], value, None)
            if stop is None and last is None:
                _finish(optimizer, bucket, own, extras, visit.flows)
        visiting = following
    return rows


def _led(
    optimizer: ParameterGroups,
    bucket: Bucket,
    numbers: Mapping[int, Numbers],
    extras: Extras,
    entries: Mapping[int, Converted],
) -> dict[int, Flow]:
    """Where each member stands after the fused pass that comes first."""
    lead = bucket.segments.lead
    if lead is None:
        return {m: bucket.composition.start(entries[m]) for m in numbers}
    params = bucket.tensors("param")
    made = {
        name: {m: params[m].new_empty(params[m].shape, dtype=compute_dtype(params[m])) for m in numbers}
        for name in MADE
        if name in lead.writes
    }
    for members in in_common(numbers):
        own = {name: [of[m] for m in members] for name, of in made.items()}
        run_pass(optimizer, bucket, members, lead, "lead", numbers[members[0]], extras, own)
    directions = made["direction"]
    if "gradient" in made or bucket.segments.leads:
        return {m: Flow(directions[m], made.get("gradient", directions)[m]) for m in numbers}
    return {m: Flow(directions[m], Later(partial(entries[m].__getitem__, "grad"))) for m in numbers}


def _finish(
    optimizer: ParameterGroups,
    bucket: Bucket,
    numbers: Mapping[int, Numbers],
    extras: Extras,
    flows: Mapping[int, Flow],
) -> None:
    """The fused pass that comes last."""
    for members in in_common(numbers):
        finish = bucket.segments.finish
        made = {
            name: [getattr(flows[m], MADE[name]) for m in members] for name in finish.inputs if name in MADE
        }
        run_pass(optimizer, bucket, members, finish, "finish", numbers[members[0]], extras, made)
