"""One step: collect the gradients, compute the numbers, run the fused passes.

Everything that can fail — odd gradients, hyperparameters out of range, a missing compiler — is done before the first
tensor is changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.engine.composition import Composition
from hasten.engine.formula import Formula, Layout, NoCompiler, Pass
from hasten.engine.matrix import matrix_pass
from hasten.numbers import Names

if TYPE_CHECKING:
    from hasten.engine.optimizer import Optimizer

COMPILE_FROM = 2**17
"""Number of parameters from which engine="auto" compiles."""


class NonFiniteGradient(FloatingPointError):
    """A gradient holds NaN or infinity, and the optimizer was told to raise."""


@dataclass
class Bucket:
    """Parameters of one group that share their numbers and their layout."""

    group: dict[str, Any]
    composition: Composition
    params: list[Tensor]
    counters: dict[str, float]
    h: list[Names]
    ordinals: list[int]
    numbers: dict[str, float] = field(default_factory=dict)
    after: list[Names] = field(default_factory=list)

    @property
    def k(self) -> float:
        """The number of this step, from 1."""
        return self.counters["step"] + 1


def run_step(optimizer: Optimizer, extras: dict[str, dict[Tensor, Tensor]], loss: Any) -> None:
    """Move every parameter that has a gradient by one step."""
    active = _active(optimizer)
    if not _finite(optimizer, active):
        for group in optimizer.param_groups:
            group["skipped_steps"] += 1
        return
    hypers = [optimizer.resolve(group) for group in optimizer.param_groups]
    buckets = _buckets(optimizer, active, hypers)
    for bucket in buckets:
        _numbers(bucket)
    passes = {(id(b), stop): _pass(optimizer, b, stop) for b in buckets for stop in (*b.composition.measuring, None)}
    for bucket in buckets:
        _start_positions(optimizer, bucket)
    _measure_all(optimizer, buckets, passes, extras, loss)
    for bucket in buckets:
        if any(bucket.composition.parts[i].measures == "tensor" for i in bucket.composition.measuring):
            _run_one_by_one(optimizer, bucket, passes, extras)
        else:
            _run(optimizer, bucket, range(len(bucket.params)), None, passes[id(bucket), None], bucket.numbers, extras)
        _remember(optimizer, bucket)
    for group, (values, _) in zip(optimizer.param_groups, hypers, strict=True):
        group.update(values)
        group["step"] += 1


def _active(optimizer: Optimizer) -> list[list[tuple[int, Tensor]]]:
    """The parameters of each group that have a gradient, with their ordinals; odd gradients are refused."""
    active: list[list[tuple[int, Tensor]]] = []
    ordinal = 0
    for group in optimizer.param_groups:
        found = []
        for p in group["params"]:
            if p.grad is not None:
                if p.grad.layout is not torch.strided:
                    raise RuntimeError(
                        f"{optimizer.name}: {optimizer.name_of(p)} has a sparse gradient, which is not supported; "
                        "use nn.Embedding(..., sparse=False), or torch.optim.SparseAdam for this parameter"
                    )
                if p.is_complex() and optimizer.composition_of(p).grain == "matrix":
                    part = next(x for x in optimizer.composition_of(p).parts if x.grain == "matrix")
                    raise RuntimeError(
                        f"{optimizer.name}: {optimizer.name_of(p)} is complex, which {type(part).__name__} does not support"
                    )
                if p not in optimizer.state:
                    optimizer.initialise(p)
                found.append((ordinal, p))
            ordinal += 1
        active.append(found)
    return active


def _finite(optimizer: Optimizer, active: list[list[tuple[int, Tensor]]]) -> bool:
    if optimizer.on_nonfinite == "propagate":
        return True
    params = [p for found in active for _, p in found if p.numel()]
    grads = [torch.view_as_real(p.grad) if p.is_complex() else p.grad for p in params if p.grad is not None]
    bad = [p for p, g in zip(params, grads, strict=True) if not torch.isfinite(torch.linalg.vector_norm(g, torch.inf))]
    if bad and optimizer.on_nonfinite == "raise":
        raise NonFiniteGradient(
            f"{optimizer.name}: the gradient of {optimizer.name_of(bad[0])} is not finite (NaN or infinity)"
            + (f", and {len(bad) - 1} more" if len(bad) > 1 else "")
            + "; nothing was changed. on_nonfinite='skip' would skip such steps"
        )
    return not bad


def _buckets(
    optimizer: Optimizer,
    active: list[list[tuple[int, Tensor]]],
    hypers: Sequence[tuple[dict[str, Any], dict[int, list[Names]]]],
) -> list[Bucket]:
    buckets: list[Bucket] = []
    for group, found, (_, values) in zip(optimizer.param_groups, active, hypers, strict=True):
        alike: dict[Any, Bucket] = {}
        for composition in optimizer.compositions:
            members = [(i, p) for i, p in found if optimizer.composition_of(p) is composition]
            if not members:
                continue
            names = ["step", *(counter.name for counter in composition.counters)]
            columns = [torch.stack([optimizer.state[p][name] for _, p in members]).tolist() for name in names]
            for (ordinal, p), *row in zip(members, *columns, strict=True):
                assert p.grad is not None
                key = (id(composition), p.device, p.dtype, p.grad.dtype, *row)
                if key not in alike:
                    alike[key] = Bucket(
                        group, composition, [], dict(zip(names, row, strict=True)), values[id(composition)], []
                    )
                alike[key].params.append(p)
                alike[key].ordinals.append(ordinal)
        buckets.extend(alike.values())
    return buckets


def _counters(bucket: Bucket, i: int) -> Names:
    """The counters of part `i` as they stand before this step."""
    own = {c.formal: bucket.counters[c.name] for c in bucket.composition.counters if c.part == i}
    shared = {c.formal: float(bucket.group[c.name]) for c in bucket.composition.group_counters if c.part == i}
    return Names(**own, **shared)


def _numbers(bucket: Bucket) -> None:
    """The numbers that are known before anything is measured."""
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
    optimizer: Optimizer,
    buckets: list[Bucket],
    passes: dict[Any, Pass],
    extras: dict[str, dict[Tensor, Tensor]],
    loss: Any,
) -> None:
    """Run the measurements that sum over all parameters, part by part."""
    for composition in {id(b.composition): b.composition for b in buckets}.values():
        own = [b for b in buckets if b.composition is composition]
        for i in composition.measuring:
            if composition.parts[i].measures != "all":
                continue
            totals = dict.fromkeys(composition.sum_names(i), 0.0)
            for bucket in own:
                everything = range(len(bucket.params))
                for row in _run(optimizer, bucket, everything, i, passes[id(bucket), i], bucket.numbers, extras):
                    for name, value in zip(totals, row, strict=True):
                        totals[name] += value
            sums = Names(**totals)
            if composition.sentence.oracle.delivers_loss:
                sums.loss = float(loss)
            for bucket in own:
                bucket.numbers.update(_measured(bucket, i, sums))


def _run_one_by_one(
    optimizer: Optimizer, bucket: Bucket, passes: dict[Any, Pass], extras: dict[str, dict[Tensor, Tensor]]
) -> None:
    """Parts that measure a tensor give every tensor its own numbers."""
    composition = bucket.composition
    for member in range(len(bucket.params)):
        numbers = dict(bucket.numbers)
        for i in composition.measuring:
            if composition.parts[i].measures == "tensor":
                (row,) = _run(optimizer, bucket, [member], i, passes[id(bucket), i], numbers, extras)
                sums = Names(**dict(zip(composition.sum_names(i), row, strict=True)))
                numbers.update(_measured(bucket, i, sums))
        _run(optimizer, bucket, [member], None, passes[id(bucket), None], numbers, extras)


def _pass(optimizer: Optimizer, bucket: Bucket, stop: int | None) -> Pass:
    formula = bucket.composition.stage(stop)
    if bucket.composition.grain == "matrix":
        return matrix_pass(formula)
    p = bucket.params[0]
    tensors = _tensors(optimizer, formula, p, {name: {p: p} for name in bucket.composition.extra_inputs})
    dtypes = tuple(t.dtype.to_real() for t in tensors)
    compute = torch.float64 if torch.float64 in dtypes else torch.float32
    stochastic = optimizer.stochastic_rounding and p.dtype is torch.bfloat16 and "param" in formula.writes
    layout = Layout(dtypes, compute, p.device.type, stochastic)
    return choose_pass(optimizer, formula, layout)


def choose_pass(optimizer: Optimizer, formula: Formula, layout: Layout) -> Pass:
    """The compiled pass where it pays and can be had, otherwise the eager one."""
    from hasten.engine.eager import eager_pass

    large = optimizer.parameter_count >= COMPILE_FROM
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


def _tensors(
    optimizer: Optimizer, formula: Formula, p: Tensor, extras: dict[str, dict[Tensor, Tensor]]
) -> list[Tensor]:
    """The tensors of one parameter that a formula works on, in its order."""
    state = optimizer.state[p]
    known: dict[str, Any] = {"param": p, "grad": p.grad}
    return [known[n] if n in known else extras[n][p] if n in extras else state[n] for n in formula.inputs]


def _run(
    optimizer: Optimizer,
    bucket: Bucket,
    members: Sequence[int],
    stop: int | None,
    run: Pass,
    numbers: dict[str, float],
    extras: dict[str, dict[Tensor, Tensor]],
) -> list[list[float]]:
    """Run one pass over some of a bucket's parameters."""
    formula = bucket.composition.stage(stop)
    params = [bucket.params[m] for m in members]
    rows = [_tensors(optimizer, formula, p, extras) for p in params]
    back: list[tuple[Tensor, Tensor]] = []
    if bucket.composition.grain == "element":
        rows = [[_flat(t, name in formula.writes, back) for t, name in zip(row, formula.inputs, strict=True)] for row in rows]
    slots = list(zip(*rows, strict=True))
    noise = None
    if optimizer.stochastic_rounding:
        noise = [_key(optimizer.seed, int(bucket.counters["step"]), bucket.ordinals[m]) for m in members]
    sums = run(slots, [numbers[name] for name in formula.numbers], noise)
    for original, copy in back:
        original.copy_(copy)
    if "param" in formula.writes:
        torch.autograd.graph.increment_version(params)
    return sums


def _flat(t: Tensor, written: bool, back: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One-dimensional and contiguous: a view where there is one, otherwise a copy, noted if it must be copied back."""
    if t.is_contiguous():
        t = t.detach()
        return torch.view_as_real(t).view(-1) if t.is_complex() else t.view(-1)
    copy = t.detach().contiguous(memory_format=torch.contiguous_format)
    if written:
        back.append((t, copy))
    return torch.view_as_real(copy).view(-1) if t.is_complex() else copy.view(-1)


def _key(seed: int, step: int, ordinal: int) -> int:
    """A 64-bit key of the random numbers of one tensor at one step; odd multipliers keep the triples apart."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xC2B2AE3D27D4EB4F + ordinal * 0x165667B19E3779F9 + 1) % 2**64


def _start_positions(optimizer: Optimizer, bucket: Bucket) -> None:
    """Buffers that start at the parameter take its value now, not when the optimizer was made."""
    if bucket.counters["step"] == 0:
        for slot in bucket.composition.slots:
            if slot.buffer.start == "param":
                for p in bucket.params:
                    optimizer.state[p][slot.name].copy_(p)


def _remember(optimizer: Optimizer, bucket: Bucket) -> None:
    """Write the advanced counters back."""
    after = {"step": bucket.k}
    for counter in bucket.composition.counters:
        after[counter.name] = getattr(bucket.after[counter.part], counter.formal)
    for name, value in after.items():
        if value != bucket.counters[name]:
            source = torch.tensor(value, dtype=torch.float64)
            torch._foreach_copy_([optimizer.state[p][name] for p in bucket.params], [source] * len(bucket.params))
    for counter in bucket.composition.group_counters:
        value = getattr(bucket.after[counter.part], counter.formal)
        for group in optimizer.param_groups:
            group[counter.name] = value
