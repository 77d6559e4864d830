"""One step: collect the gradients, compute the numbers, run the fused passes.

Everything that can fail — odd gradients, hyperparameters out of range, a missing compiler — is done before the first
tensor is changed.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hasten.engine.formula import Formula, Layout, Pass
from hasten.engine.matrix import matrix_pass
from hasten.engine.parameters import ParameterGroups
from hasten.engine.plan import Bucket, Plan, flat
from hasten.engine.scheduling import resolve, store
from hasten.engine.sharded import Sharding
from hasten.numbers import Names
from hasten.sharding import aligned
from hasten.shared_object import NoCompiler
from hasten.wire import Wire
from hasten.words import Observation

COMPILE_FROM = {"cpu": 2**12, "elsewhere": 2**17}
"""Number of parameters from which engine="auto" compiles: a C loop takes 0.2 s once, a kernel elsewhere seconds."""

Extras: TypeAlias = "dict[str, dict[Tensor, Any]]"
"""The gradients, and what else the oracle delivered for every parameter."""


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
        bucket.h = hypers[bucket.index][1][id(bucket.composition)]
        _numbers(bucket)
        for stop in (*bucket.composition.measuring, None):
            if stop not in bucket.passes and bucket.whole is None:
                bucket.passes[stop] = _pass(optimizer, bucket, stop, extras)
    for bucket in buckets:
        _start_positions(bucket)
    _measure_all(optimizer, buckets, extras, delivered, plan.sharding)
    for bucket in buckets:
        if any(bucket.composition.parts[i].measures == "tensor" for i in bucket.composition.measuring):
            _run_one_by_one(optimizer, bucket, extras, plan.sharding)
        else:
            _run(optimizer, bucket, None, None, bucket.numbers, extras)
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
                rows = _run(optimizer, bucket, None, i, bucket.numbers, extras)
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
    """Parts that measure a tensor give every tensor its own numbers."""
    if bucket.wire is not None:
        assert sharding is not None
        _run_together(optimizer, bucket, extras, sharding)
        return
    for member in range(len(bucket.params)):
        numbers = dict(bucket.numbers)
        for i in _per_tensor(bucket):
            (row,) = _run(optimizer, bucket, member, i, numbers, extras)
            numbers.update(_measured_tensor(bucket, i, row))
        _run(optimizer, bucket, member, None, numbers, extras)


def _run_together(optimizer: ParameterGroups, bucket: Bucket, extras: Extras, sharding: Sharding) -> None:
    """The same for divided tensors: the sums of all of them travel at once."""
    assert bucket.wire is not None
    numbers = [dict(bucket.numbers) for _ in bucket.params]
    for i in _per_tensor(bucket):
        rows = sharding.total(_run_each(optimizer, bucket, i, numbers, extras), bucket.wire)
        for own, row in zip(numbers, rows, strict=True):
            own.update(_measured_tensor(bucket, i, row))
    _run_each(optimizer, bucket, None, numbers, extras)


def _run_each(
    optimizer: ParameterGroups,
    bucket: Bucket,
    stop: int | None,
    numbers: list[dict[str, float]],
    extras: Extras,
) -> list[list[float]]:
    """Run one pass over all of a bucket's parameters, each with its own numbers."""
    if bucket.whole is not None:
        return _run_whole(optimizer, bucket, stop, numbers, extras)
    rows: list[list[float]] = []
    for member, own in enumerate(numbers):
        rows += _run(optimizer, bucket, member, stop, own, extras)
    return rows


def _per_tensor(bucket: Bucket) -> list[int]:
    composition = bucket.composition
    return [i for i in composition.measuring if composition.parts[i].measures == "tensor"]


def _measured_tensor(bucket: Bucket, i: int, row: list[float]) -> dict[str, float]:
    return _measured(bucket, i, Names(**dict(zip(bucket.composition.sum_names(i), row, strict=True))))


def _pass(optimizer: ParameterGroups, bucket: Bucket, stop: int | None, extras: Extras) -> Pass:
    formula = bucket.composition.stage(stop)
    if bucket.composition.grain == "matrix":
        return matrix_pass(formula)
    p = bucket.params[0]
    own = {name: {p: p} for name in bucket.composition.extra_inputs}
    tensors = _tensors(optimizer, formula, p, {"grad": {p: extras["grad"][p]}, **own})
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


def _run(
    optimizer: ParameterGroups,
    bucket: Bucket,
    member: int | None,
    stop: int | None,
    numbers: dict[str, float],
    extras: Extras,
) -> list[list[float]]:
    """Run one pass over all of a bucket's parameters, or over one member."""
    if bucket.whole is not None:
        return _run_whole(optimizer, bucket, stop, [numbers] * len(bucket.params), extras)
    formula = bucket.composition.stage(stop)
    chosen = slice(None) if member is None else slice(member, member + 1)
    params = bucket.params[chosen]
    back: list[tuple[Tensor, Tensor]] = []
    slots = [_slot(bucket, name, chosen, name in formula.writes, back, extras) for name in formula.inputs]
    noise = _noise(optimizer, bucket, chosen)
    sums = bucket.passes[stop](slots, [numbers[name] for name in formula.numbers], noise)
    for original, copy in back:
        original.copy_(copy)
    if "param" in formula.writes:
        _note_change(params)
    return sums


def _run_whole(
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
    sums = bucket.whole(slots, numbers, _noise(optimizer, bucket, slice(None)), stop)
    if stop is None:
        _note_change(bucket.params)
    return sums


def _note_change(params: list[Tensor]) -> None:
    for p in params:  # one by one, as older versions of torch take them
        torch.autograd.graph.increment_version(p)


def _slot(
    bucket: Bucket,
    name: str,
    chosen: slice,
    written: bool,
    back: list[tuple[Tensor, Tensor]],
    extras: Extras,
) -> list[Tensor]:
    """The tensors of one input, flat for a formula of the entries; copies to be written back are noted."""
    if name in extras:
        fresh = [extras[name][p] for p in bucket.params[chosen]]
        return fresh if bucket.composition.grain == "matrix" else [_flat_copy(t) for t in fresh]
    if bucket.composition.grain == "matrix":
        return bucket.tensors(name)[chosen]
    views = bucket.views(name)
    if views is not None:
        return views[chosen]
    slot = []
    for original in bucket.tensors(name)[chosen]:
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


def _noise(optimizer: ParameterGroups, bucket: Bucket, chosen: slice) -> list[int] | None:
    """A key for each tensor, if parameters are rounded at random; the shards of one have different ones."""
    if not optimizer.stochastic_rounding:
        return None
    step, ordinals = int(bucket.counters["step"]), bucket.ordinals[chosen]
    shards = [d.number for d in bucket.divisions[chosen]] or [0] * len(ordinals)
    return [_key(optimizer.seed, step, o + (s << 32)) for o, s in zip(ordinals, shards, strict=True)]


def _key(seed: int, step: int, ordinal: int) -> int:
    """A 64-bit key of the random numbers of one tensor at one step; odd multipliers keep the triples apart."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xC2B2AE3D27D4EB4F + ordinal * 0x165667B19E3779F9 + 1) % 2**64


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
