"""One step: collect the gradients, compute the numbers, run the fused passes.

Everything that can fail — odd gradients, hyperparameters out of range, a missing compiler — is done before the first
tensor is changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hasten.engine.fused import Extras, prepare
from hasten.engine.parameters import ParameterGroups
from hasten.engine.plan import Bucket, Plan
from hasten.engine.running import run
from hasten.engine.scheduling import resolve, store
from hasten.engine.sharded import Sharding
from hasten.numbers import Names
from hasten.sharding import aligned
from hasten.wire import Wire
from hasten.words import Observation


class NonFiniteGradient(FloatingPointError):
    """A gradient holds NaN or infinity, and the optimizer was told to raise."""


def run_step(optimizer: ParameterGroups, observation: Observation, plan: Plan | None) -> Plan:
    """Move every parameter that has a gradient by one step; returns the plan, if it still fits the one given."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    known = observation.gradients
    grads = [p.grad for p in params] if known is None else [known.get(p) for p in params]
    if plan is None or not plan.fits(optimizer, params, grads):
        plan = Plan(optimizer, params, grads)
    extras: Extras = {"grad": dict(zip(params, grads, strict=True)), **observation.extras}
    delivered = observation.numbers
    if plan.sharding is not None:
        extras = {name: _aligned(optimizer, tensors) for name, tensors in extras.items()}
        delivered = plan.sharding.mean(delivered)
    if not _finite(optimizer, extras["grad"], plan.sharding):
        for group in optimizer.param_groups:
            group["skipped_steps"] += 1
        return plan
    hypers = [resolve(optimizer, group) for group in optimizer.param_groups]
    buckets = plan.buckets
    for bucket in buckets:
        bucket.h = bucket.composition.values(hypers[bucket.index][1], float)
        _numbers(bucket)
        prepare(optimizer, bucket, extras)
    for bucket in buckets:
        _start_positions(bucket)
    _measure_all(optimizer, buckets, extras, delivered, plan.sharding)
    for bucket in buckets:
        if any(bucket.composition.parts[i].measures == "tensor" for i in bucket.composition.measuring):
            _run_one_by_one(optimizer, bucket, extras, plan.sharding)
        else:
            run(optimizer, bucket, None, [bucket.numbers] * len(bucket.params), extras)
        _remember(optimizer, bucket)
    _follow(optimizer, buckets)
    plan.seal()
    for group, (values, _) in zip(optimizer.param_groups, hypers, strict=True):
        store(optimizer, group, values)
        group["step"] += 1
    return plan


def _aligned(optimizer: ParameterGroups, tensors: dict[Tensor, Any]) -> dict[Tensor, Any]:
    """This worker's parts of gradients, placed as their parameters are."""
    return {
        p: g if g is None else aligned(g, p, lambda p: f"{optimizer.name}: {optimizer.name_of(p)}")
        for p, g in tensors.items()
    }


def _finite(
    optimizer: ParameterGroups, grads: dict[Tensor, Tensor | None], sharding: Sharding | None
) -> bool:
    if optimizer.on_nonfinite == "propagate":
        return True
    flags = [g is not None and not _is_finite(g) for g in grads.values()]
    if sharding is not None and sharding.divided:
        flags = sharding.anywhere(flags)
    bad = [p for p, flag in zip(grads, flags, strict=True) if flag]
    if bad and optimizer.on_nonfinite == "raise":
        raise NonFiniteGradient(
            f"{optimizer.name}: the gradient of {optimizer.name_of(bad[0])} is not finite (NaN or infinity)"
            + (f", and {len(bad) - 1} more" if len(bad) > 1 else "")
            + "; nothing was changed. on_nonfinite='skip' would skip such steps"
        )
    return not bad


def _is_finite(g: Tensor) -> bool:
    if g.layout is not torch.strided or not g.numel():
        return True  # a sparse gradient is refused later, by name
    return bool(
        torch.isfinite(torch.linalg.vector_norm(torch.view_as_real(g) if g.is_complex() else g, torch.inf))
    )


def _counters(bucket: Bucket, i: int) -> Names:
    """The counters of part `i` as they stand before this step."""
    own = {c.formal: bucket.counters[c.name] for c in bucket.composition.counters if c.part == i}
    shared = {c.formal: float(bucket.group[c.name]) for c in bucket.composition.group_counters if c.part == i}
    return Names(**own, **shared)


def _numbers(bucket: Bucket) -> None:
    """The numbers that are known before anything is measured."""
    bucket.numbers, bucket.after = {}, []
    for i, part in enumerate(bucket.composition.parts):
        c = _counters(bucket, i)
        for name, value in part.numbers(bucket.h[i], bucket.k, c).items():
            bucket.numbers[f"{i}.{name}"] = value
        bucket.after.append(c)


def _measured(bucket: Bucket, i: int, sums: Names) -> dict[str, float]:
    part, c = bucket.composition.parts[i], _counters(bucket, i)
    numbers = part.measured(bucket.h[i], bucket.k, c, sums)
    bucket.after[i] = c
    return {f"{i}.{name}": value for name, value in numbers.items()}


def _measure_all(
    optimizer: ParameterGroups,
    buckets: list[Bucket],
    extras: Extras,
    delivered: dict[str, float],
    sharding: Sharding | None,
) -> None:
    """Run the measurements that sum over all parameters, part by part."""
    for composition in {id(b.composition): b.composition for b in buckets}.values():
        own = [b for b in buckets if b.composition is composition]
        for i in composition.measuring:
            if composition.parts[i].measures != "all":
                continue
            totals = dict.fromkeys(composition.sum_names(i), 0.0)
            shared: dict[Wire, list[float]] = {}
            for bucket in own if totals else ():
                rows = run(optimizer, bucket, i, [bucket.numbers] * len(bucket.params), extras)
                if bucket.wire is None:
                    _add(totals, rows)
                else:
                    rows.append(shared.get(bucket.wire, [0.0] * len(totals)))
                    shared[bucket.wire] = [sum(column) for column in zip(*rows, strict=True)]
            for wire, row in shared.items():
                assert sharding is not None
                _add(totals, sharding.total([row], wire))
            sums = Names(**totals, **delivered)
            for bucket in own:
                bucket.numbers.update(_measured(bucket, i, sums))


def _add(totals: dict[str, float], rows: list[list[float]]) -> None:
    for row in rows:
        for name, value in zip(totals, row, strict=True):
            totals[name] += value


def _run_one_by_one(
    optimizer: ParameterGroups, bucket: Bucket, extras: Extras, sharding: Sharding | None
) -> None:
    """Parts that measure a tensor give every tensor its own numbers; the sums of divided tensors travel at once."""
    numbers = [bucket.numbers] * len(bucket.params)
    for i in _per_tensor(bucket):
        rows = run(optimizer, bucket, i, numbers, extras)
        if bucket.wire is not None:
            assert sharding is not None
            rows = sharding.total(rows, bucket.wire)
        numbers = [
            {**own, **_measured_tensor(bucket, i, row)} for own, row in zip(numbers, rows, strict=True)
        ]
    run(optimizer, bucket, None, numbers, extras)


def _per_tensor(bucket: Bucket) -> list[int]:
    composition = bucket.composition
    return [i for i in composition.measuring if composition.parts[i].measures == "tensor"]


def _measured_tensor(bucket: Bucket, i: int, row: list[float]) -> dict[str, float]:
    return _measured(bucket, i, Names(**dict(zip(bucket.composition.sum_names(i), row, strict=True))))


def _start_positions(bucket: Bucket) -> None:
    """Buffers that start at the parameter take its value now, not when the optimizer was made."""
    if bucket.counters["step"] == 0:
        for slot in bucket.composition.slots:
            if slot.buffer.start == "param":
                for buffer, p in zip(bucket.tensors(slot.name), bucket.tensors("param"), strict=True):
                    buffer.copy_(p)


def _remember(optimizer: ParameterGroups, bucket: Bucket) -> None:
    """Write the advanced counters back."""
    after = {"step": bucket.k}
    for counter in bucket.composition.counters:
        after[counter.name] = getattr(bucket.after[counter.part], counter.formal)
    for name, value in after.items():
        if value != bucket.counters[name]:
            source = torch.tensor(value, dtype=torch.float64)
            torch._foreach_copy_(bucket.tensors(name), [source] * len(bucket.params))
            bucket.counters[name] = value
    for counter in bucket.composition.group_counters:
        bucket.group[counter.name] = getattr(bucket.after[counter.part], counter.formal)


def _follow(optimizer: ParameterGroups, buckets: list[Bucket]) -> None:
    """Counters of a group none of whose parameters moved: those of the last group that did."""
    moved = {bucket.index for bucket in buckets}
    for composition in {id(b.composition): b.composition for b in buckets}.values():
        last = next(b for b in reversed(buckets) if b.composition is composition)
        for index, group in enumerate(optimizer.param_groups):
            if index not in moved:
                group.update({c.name: last.group[c.name] for c in composition.group_counters})
