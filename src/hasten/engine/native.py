"""The fast pass on a CPU: a formula written out as one C loop over all tensors.

The loop reads and writes each entry once, its work is split over torch's own OpenMP threads by
the total number of entries, and neither a new shape nor a new number recompiles it.  Results are
bitwise those of the eager pass for + - * / sqrt, comparisons and selections, because contraction
into fused multiply-adds is off; exp and its kin agree to 1e-6 relative.
"""

from __future__ import annotations

import ctypes
import math
import sys
from array import array
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from hasten.hashing import FMIX32, words
from hasten.shared_object import Unsupported, build

from .formula import Constant, Formula, Layout, Operand, Pass, Program, trace

BLOCK = 8192
"""Entries that one thread takes at a time; a power of two, so that blocks never straddle 2^32."""

SERIAL_BELOW = 32768
"""Fewer entries than this are not worth waking other threads for (torch's own grain size)."""

_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "uint16_t",
    torch.float16: "_Float16",
}

_PRELUDE = """\
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(HASTEN_MVEC)
/* glibc's vector versions, which math.h offers only under -ffast-math */
#define VECTOR __attribute__((simd("notinbranch")))
VECTOR float expf(float); VECTOR double exp(double);
VECTOR float logf(float); VECTOR double log(double);
VECTOR float powf(float, float); VECTOR double pow(double, double);
#if __GLIBC_PREREQ(2, 35)
VECTOR float tanhf(float); VECTOR double tanh(double);
VECTOR float expm1f(float); VECTOR double expm1(double);
VECTOR float log1pf(float); VECTOR double log1p(double);
#endif
#endif
static inline float float_of(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
static inline float widen(uint16_t half) { return float_of((uint32_t)half << 16); }
static inline uint16_t to_nearest_even(float x) {
    uint32_t bits = bits_of(x);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return x != x ? (uint16_t)0x7fc0 : (uint16_t)rounded;
}
static inline uint16_t to_random(float x, uint32_t index, uint32_t low, uint32_t high) {
    uint32_t random = fmix32(fmix32(index ^ low) ^ high) >> 16;
    int finite = fabsf(x) <= FLT_MAX;
    return finite ? (uint16_t)((bits_of(x) + random) >> 16) : to_nearest_even(x);
}
"""

# F marks the suffix of the C function's name for the compute type, R the compute type itself.
_EXPRESSIONS = {
    "neg": "-{0}",
    "abs": "fabsF({0})",
    "sqrt": "sqrtF({0})",
    "reciprocal": "(R)1 / {0}",
    "square": "{0} * {0}",
    "sign": "(R)({0} > 0) - (R)({0} < 0)",
    "exp": "expF({0})",
    "expm1": "expm1F({0})",
    "log": "logF({0})",
    "log1p": "log1pF({0})",
    "sigmoid": "(R)1 / ((R)1 + expF(-{0}))",
    "tanh": "tanhF({0})",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "pow": "powF({0}, {1})",
    "copysign": "copysignF({0}, {1})",
    "maximum": "({0} > {1} || {0} != {0}) ? {0} : {1}",
    "minimum": "({0} < {1} || {0} != {0}) ? {0} : {1}",
    "where": "{0} ? {1} : {2}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "logical_and": "{0} & {1}",
    "logical_or": "{0} | {1}",
    "logical_xor": "{0} ^ {1}",
    "logical_not": "!{0}",
    "isfinite": "fabsF({0}) <= MAX",
    "isinf": "fabsF({0}) > MAX",
    "isnan": "{0} != {0}",
}

_DRIVER = """\
void run(int64_t tensors, const int64_t *sizes, const uint64_t *pointers, const double *numbers,
         const uint32_t *noise, double *sums, int threads) {
    int64_t total = 0, blocks = 0;
    for (int64_t t = 0; t < tensors; t++) {
        total += sizes[t];
        blocks += (sizes[t] + BLOCK - 1) / BLOCK;
    }
    double *partial = SUMS ? malloc((size_t)(blocks ? blocks : 1) * SUMS * sizeof(double)) : 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
    {
#ifdef _OPENMP
        int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
#else
        int64_t thread = 0, team = 1;
#endif
        /* A thread takes the blocks that begin in its share of all entries. */
        int64_t share = total / team, rest = total % team;
        int64_t from = thread * share + (thread < rest ? thread : rest);
        int64_t to = from + share + (thread < rest);
        int64_t begin = 0, block0 = 0;
        for (int64_t t = 0; t < tensors; begin += sizes[t], block0 += (sizes[t] + BLOCK - 1) / BLOCK, t++) {
            int64_t size = sizes[t];
            if (begin + size <= from || begin >= to) continue;
            int64_t first = from > begin ? (from - begin + BLOCK - 1) / BLOCK * BLOCK : 0;
            int64_t last = to - begin < size ? to - begin : size;
            for (int64_t i = first; i < last; i += BLOCK) {
                int64_t count = size - i < BLOCK ? size - i : BLOCK;
                block(count, i, pointers, tensors, t, numbers,
                      noise ? noise + 2 * t : 0, partial + SUMS * (block0 + i / BLOCK));
            }
        }
    }
    /* Summed block by block, so that the result does not depend on the number of threads. */
    for (int64_t t = 0, b = 0; SUMS && t < tensors; t++) {
        for (int s = 0; s < SUMS; s++) sums[SUMS * t + s] = 0;
        for (int64_t n = (sizes[t] + BLOCK - 1) / BLOCK; n > 0; n--, b++)
            for (int s = 0; s < SUMS; s++) sums[SUMS * t + s] += partial[SUMS * b + s];
    }
    free(partial);
}
"""


def source(formula: Formula, layout: Layout) -> str:
    """The C source of the pass.

    Raises:
        Unsupported: An operation, a dtype or the device has no native form.
    """
    layout.check(formula)
    if layout.device != "cpu":
        raise Unsupported(f"native passes run on a CPU, not on {layout.device}")
    for dtype in layout.dtypes:
        if dtype not in _TYPES:
            raise Unsupported(f"native passes have no {dtype}")
    program = trace(formula)
    unknown = program.operations - _EXPRESSIONS.keys() - {"clamp"}
    if unknown:
        raise Unsupported(f"native passes have no {', '.join(sorted(unknown))}")
    sizes = [f"#define BLOCK {BLOCK}", f"#define SUMS {len(formula.sums)}"]
    return "\n".join([FMIX32, _PRELUDE, *sizes, *_block(formula, layout, program), _DRIVER])


def _block(formula: Formula, layout: Layout, program: Program) -> list[str]:
    real = _TYPES[layout.compute]
    used = {o for i in program.instructions for o in i.operands if isinstance(o, int)}
    used.update(o for o in program.writes + program.sums if isinstance(o, int))
    head = [
        "static void block(int64_t count, int64_t start, const uint64_t *pointers, int64_t tensors,",
        "        int64_t t, const double *numbers, const uint32_t *noise, double *sums) {",
    ]
    body: list[str] = []
    for i, (name, dtype) in enumerate(zip(formula.inputs, layout.dtypes, strict=True)):
        if i in used or name in formula.writes:
            kind = _TYPES[dtype] if name in formula.writes else f"const {_TYPES[dtype]}"
            head.append(f"    {kind} *restrict p{i} = ({kind} *)pointers[{i} * tensors + t] + start;")
        if i in used:
            load = f"widen(p{i}[i])" if dtype is torch.bfloat16 else f"p{i}[i]"
            body.append(f"{real} v{i} = ({real}){load};")
    head += [
        f"    const {real} v{v} = ({real})numbers[{v - program.inputs}];"
        for v in range(program.inputs, program.first)
        if v in used
    ]
    if layout.stochastic:
        head.append("    const uint32_t low = noise[0], high = noise[1] ^ (uint32_t)(start >> 32);")
    for v, (operation, operands) in enumerate(program.instructions, program.first):
        kind = "int" if program.flags[v] else real
        expression = (
            _clamp([None if o == Constant(None) else _term(o, real) for o in operands])
            if operation == "clamp"
            else _EXPRESSIONS[operation].format(*(_term(o, real) for o in operands))
        )
        body.append(f"{kind} v{v} = {_typed(expression, real)};")
    for name, value in zip(formula.writes, program.writes, strict=True):
        i = formula.inputs.index(name)
        body.append(f"p{i}[i] = {_store(_term(value, real), name, layout.dtypes[i], layout)};")
    for s, value in enumerate(program.sums):
        body.append(f"s{s} += (double)({_term(value, real)});")
    partial = [f"s{s}" for s in range(len(formula.sums))]
    if partial:
        head.append("    double " + ", ".join(f"{s} = 0" for s in partial) + ";")
    reduction = f" reduction(+ : {', '.join(partial)})" if partial else ""
    head += ["#ifdef _OPENMP", f"#pragma omp simd{reduction}", "#endif"]
    head.append("    for (int64_t i = 0; i < count; i++) {")
    return [
        *head,
        *(f"        {line}" for line in body),
        "    }",
        *(f"    sums[{s}] = {name};" for s, name in enumerate(partial)),
        "}",
    ]


def _typed(expression: str, real: str) -> str:
    """Choose the float or the double form of the C functions in an expression."""
    suffix, largest = ("f", "FLT_MAX") if real == "float" else ("", "DBL_MAX")
    for name in ("fabs", "sqrt", "exp", "expm1", "log", "log1p", "tanh", "pow", "copysign"):
        expression = expression.replace(f"{name}F(", f"{name}{suffix}(")
    return expression.replace("(R)", f"({real})").replace("MAX", largest)


def _term(operand: Operand, real: str) -> str:
    if isinstance(operand, int):
        return f"v{operand}"
    value = operand.value
    assert value is not None, "only clamp takes an absent operand"
    if math.isnan(value):
        return f"(({real})NAN)"
    if math.isinf(value):
        return f"(({real}){'-' if value < 0 else ''}INFINITY)"
    return f"(({real}){value.hex()})"


def _clamp(terms: list[str | None]) -> str:
    """Bounds that are NaN give NaN, as in torch."""
    x, low, high = terms
    assert x is not None
    expression = x
    if low is not None:
        expression = f"(({x} < {low} || {low} != {low}) ? {low} : {x})"
    if high is not None:
        expression = f"(({expression} > {high} || {high} != {high}) ? {high} : {expression})"
    return expression


def _store(term: str, name: str, dtype: torch.dtype, layout: Layout) -> str:
    if dtype is torch.bfloat16:
        if layout.stochastic and name == "param":
            return f"to_random((float){term}, (uint32_t)(start + i), low, high)"
        return f"to_nearest_even((float){term})"
    if dtype is torch.float16:
        return f"(_Float16)(float){term}"  # through float32, as torch converts float64
    return f"({_TYPES[dtype]}){term}"


def native_pass(formula: Formula, layout: Layout) -> Pass:
    """Compile a formula to machine code, or find it in the cache.

    Raises:
        Unsupported: The formula, a dtype or the device has no native form.
        NoCompiler: No C compiler works here (a kind of ``Unsupported``).

    Example:
        >>> def descend(entry, number):
        ...     return {"param": entry["param"] - number["lr"] * entry["grad"]}, {}
        >>> formula = Formula(("param", "grad"), ("lr",), ("param",), (), descend, "descend")
        >>> step = native_pass(formula, Layout((torch.float32,) * 2, torch.float32, "cpu"))
        >>> param = torch.ones(2)
        >>> step([[param], [torch.ones(2)]], [0.5], None), param
        ([[]], tensor([0.5000, 0.5000]))
    """
    if sys.platform == "win32":
        raise Unsupported("native passes are not available on Windows")
    library = build(source(formula, layout), entry="run")
    run = library.run
    run.restype = None
    sums = len(formula.sums)
    pointer = ctypes.c_void_p

    def call(
        slots: Sequence[Sequence[Tensor]], numbers: Sequence[float], noise: Sequence[int] | None
    ) -> list[list[float]]:
        sizes = array("q", map(Tensor.numel, slots[0]))
        addresses = array("Q", map(Tensor.data_ptr, chain.from_iterable(slots)))
        count = len(sizes)
        if len(addresses) != count * len(slots):
            raise ValueError("the slots of a pass list different numbers of tensors")
        scalars = array("d", numbers)
        keys = array("I", chain.from_iterable(map(words, noise))) if layout.stochastic and noise else None
        totals = array("d", bytes(8 * count * sums))
        threads = torch.get_num_threads() if sum(sizes) > SERIAL_BELOW else 1
        run(
            ctypes.c_int64(count),
            pointer(sizes.buffer_info()[0]),
            pointer(addresses.buffer_info()[0]),
            pointer(scalars.buffer_info()[0]),
            pointer(keys.buffer_info()[0] if keys else None),
            pointer(totals.buffer_info()[0]),
            ctypes.c_int(threads),
        )
        return [list(totals[sums * t : sums * (t + 1)]) for t in range(count)]

    return call
