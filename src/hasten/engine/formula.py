"""What a fused pass computes, and the contract of everything that runs one.

A :class:`Formula` says what happens to *one entry*; a :class:`Layout` says how the entries lie in
memory; a :class:`Pass` runs the one over the other.  :func:`trace` reads a formula into a
:class:`Program`, the short list of instructions that the eager and the native pass share.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, fx

from hasten.shared_object import Unsupported


@dataclass(frozen=True)
class Formula:
    """What one fused pass computes for each entry of a tensor.

    ``function`` receives the entries by input name and the numbers by name, and returns the new
    values by written name and the summands by sum name.  It is pure, and written with operators
    and ``torch`` functions, so that it can be run on tensors or read symbolically.  Numbers are
    scalars of the compute dtype: combine them with entries, not with one another.

    ``sums`` names per-entry values that are summed over each tensor.  Equal ``key`` means equal
    ``function``: kernels are kept per (key, layout).

    Example:
        >>> def descend(entry, number):
        ...     return {"param": entry["param"] - number["lr"] * entry["grad"]}, {}
        >>> Formula(("param", "grad"), ("lr",), ("param",), (), descend, "descend").writes
        ('param',)
    """

    inputs: tuple[str, ...]
    numbers: tuple[str, ...]
    writes: tuple[str, ...]
    sums: tuple[str, ...]
    function: Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]
    key: Hashable

    def identity(self) -> Hashable:
        """What decides whether two formulas may share a kernel."""
        return (self.inputs, self.numbers, self.writes, self.sums, self.key)


@dataclass(frozen=True)
class Layout:
    """How the entries of a formula's inputs lie in memory.

    Every input is converted to ``compute`` on load, and rounded to its own dtype on store: to
    nearest even, or stochastically for the input ``"param"`` if ``stochastic``.

    Example:
        >>> Layout((torch.bfloat16, torch.float32), torch.float32, "cpu", stochastic=True).device
        'cpu'
    """

    dtypes: tuple[torch.dtype, ...]
    compute: torch.dtype
    device: str
    stochastic: bool = False

    def check(self, formula: Formula) -> None:
        """Raise ``ValueError`` if this layout does not describe the formula's inputs."""
        if len(self.dtypes) != len(formula.inputs):
            raise ValueError(
                f"layout.dtypes has {len(self.dtypes)} entries; the formula has "
                f"{len(formula.inputs)} inputs {formula.inputs}"
            )
        if self.compute not in (torch.float32, torch.float64):
            raise ValueError(f"layout.compute is {self.compute}; allowed: float32, float64")
        missing = [name for name in formula.writes if name not in formula.inputs]
        if missing:
            raise ValueError(f"the formula writes {missing}, which are not among its inputs")
        if self.stochastic:
            dtype = dict(zip(formula.inputs, self.dtypes, strict=True)).get("param")
            if dtype is not torch.bfloat16 or "param" not in formula.writes:
                raise ValueError(f"layout.stochastic needs a written bfloat16 input 'param'; it is {dtype}")


class Pass(Protocol):
    """Runs one formula over many tensors in place.

    ``slots[i]`` lists, over the tensors, the flat contiguous 1-D tensors of ``inputs[i]``; the
    tensors of one position have equal length, which may be 0.  ``noise`` holds one 64-bit key for
    each tensor when the layout is stochastic.  Returns for each tensor its sums, accumulated in
    float64.  The tensors are not checked: the engine has made them.

    The sign of a zero that comes from a tie in ``maximum``, ``minimum`` or ``clamp`` is not
    specified, as in torch, where it depends on the entry's position.
    """

    def __call__(
        self,
        slots: Sequence[Sequence[Tensor]],
        numbers: Sequence[float],
        noise: Sequence[int] | None,
    ) -> list[list[float]]:
        """Update the slots in place and return the sums of each tensor."""
        ...


def built_once(build: Callable[[Formula, Layout], Pass]) -> Callable[[Formula, Layout], Pass]:
    """Keep what a builder of passes has built, for every optimizer with the same formula and layout."""
    kept: dict[Hashable, Pass] = {}

    @functools.wraps(build)
    def find(formula: Formula, layout: Layout) -> Pass:
        key = (formula.identity(), layout)
        if key not in kept:
            kept[key] = build(formula, layout)
        return kept[key]

    return find


class Constant(NamedTuple):
    """A Python number inside a formula; ``None`` stands for an absent bound of ``clamp``."""

    value: float | None


Operand = int | Constant
"""The index of a value of the program, or a constant."""


class Instruction(NamedTuple):
    """One operation, named as the torch function that computes it."""

    operation: str
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Program:
    """A traced formula.  Values are numbered: inputs, then numbers, then instructions.

    ``flags[v]`` tells whether value ``v`` is boolean, ``spread[v]`` whether it has an entry for
    each entry of the tensor (a combination of numbers only has not).
    """

    inputs: int
    numbers: int
    instructions: tuple[Instruction, ...]
    writes: tuple[Operand, ...]
    sums: tuple[Operand, ...]
    flags: tuple[bool, ...]
    spread: tuple[bool, ...]

    @property
    def first(self) -> int:
        """The index of the first instruction's value."""
        return self.inputs + self.numbers

    @property
    def operations(self) -> frozenset[str]:
        """The operations that occur."""
        return frozenset(instruction.operation for instruction in self.instructions)


UNARY = (
    "neg",
    "abs",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "square",
    "sign",
    "exp",
    "expm1",
    "log",
    "log1p",
    "sigmoid",
    "tanh",
    "relu",
    "isfinite",
    "isnan",
    "isinf",
)
BINARY = ["add", "sub", "mul", "div", "maximum", "minimum", "pow", "copysign"]
COMPARISONS = ["gt", "ge", "lt", "le", "eq", "ne"]
LOGICAL = ["logical_and", "logical_or", "logical_xor", "logical_not"]

_SYNONYMS = {
    "negative": "neg",
    "absolute": "abs",
    "truediv": "div",
    "divide": "div",
    "true_divide": "div",
    "subtract": "sub",
    "multiply": "mul",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "and_": "logical_and",
    "or_": "logical_or",
    "xor": "logical_xor",
    "invert": "logical_not",
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    "bitwise_xor": "logical_xor",
    "bitwise_not": "logical_not",
}
_FLAG_RESULTS = frozenset([*COMPARISONS, *LOGICAL, "isfinite", "isnan", "isinf"])
_ONLY_FLAGS = frozenset(LOGICAL)
_NEVER_FLAGS = frozenset(UNARY) | {"maximum", "minimum", "pow", "copysign", "clamp"}


def _functions() -> dict[Any, str]:
    names = [*UNARY, *BINARY, *COMPARISONS, *LOGICAL, *_SYNONYMS]
    known: dict[Any, str] = {}
    for name in names:
        for room in (operator, torch, torch.nn.functional):
            function = getattr(room, name, None)
            if function is not None:
                known[function] = _SYNONYMS.get(name, name)
    known[abs] = "abs"
    known[torch.where] = "where"
    for name in ("clamp", "clamp_min", "clamp_max", "zeros_like", "ones_like", "full_like"):
        known[getattr(torch, name)] = name
    known[torch.clip] = "clamp"
    known[operator.pos] = "pos"
    return known


_FUNCTIONS = _functions()
_METHODS = {name: name for name in _FUNCTIONS.values()} | _SYNONYMS | {"clip": "clamp"}


class _Reader:
    """Turns the nodes of an ``fx.Graph`` into instructions."""

    def __init__(self, inputs: int, numbers: int) -> None:
        self.instructions: list[Instruction] = []
        self.flags = [False] * (inputs + numbers)
        self.spread = [True] * inputs + [False] * numbers
        self.values: dict[fx.Node, Operand] = {}

    def operand(self, argument: Any) -> Operand:
        if isinstance(argument, fx.Proxy):
            argument = argument.node
        if isinstance(argument, fx.Node):
            return self.values[argument]
        if argument is None or isinstance(argument, bool | int | float):
            return Constant(None if argument is None else float(argument))
        raise Unsupported(f"the formula uses {argument!r}, which is neither an entry nor a number")

    def emit(self, operation: str, *operands: Operand) -> Operand:
        flags = [isinstance(o, int) and self.flags[o] for o in operands]
        if operation in _ONLY_FLAGS and not all(flags):
            raise Unsupported(f"the formula applies {operation} to values that are not boolean")
        if any(flags) and (operation in _NEVER_FLAGS or all(flags)) and operation not in _ONLY_FLAGS:
            raise Unsupported(f"the formula applies {operation} to boolean values")
        if operation == "where" and (not flags[0] or any(flags[1:])):
            raise Unsupported("the formula uses where(condition, a, b) with other than bool, real, real")
        self.instructions.append(Instruction(operation, operands))
        self.flags.append(operation in _FLAG_RESULTS)
        self.spread.append(any(isinstance(o, int) and self.spread[o] for o in operands))
        return len(self.flags) - 1

    def read(self, node: fx.Node) -> Operand:
        table: dict[Any, str] = _METHODS if node.op == "call_method" else _FUNCTIONS
        name = table.get(node.target)
        if name is None:
            raise Unsupported(f"the formula uses {getattr(node.target, '__name__', node.target)}")
        options = {
            key: value for key, value in node.kwargs.items() if value is not None and value is not False
        }
        arguments = list(node.args)
        if name == "where" and node.op == "call_method":
            arguments[:2] = [arguments[1], arguments[0]]
        if name in ("zeros_like", "ones_like") and not options and len(arguments) == 1:
            return Constant(0.0 if name == "zeros_like" else 1.0)
        if name == "full_like" and not options and len(arguments) == 2:
            return self.operand(arguments[1])
        for key in _KEYWORDS.get(name, _ANY_KEYWORDS):
            if key in options:
                arguments += [None] * (_KEYWORDS.get(name, _ANY_KEYWORDS).index(key) - len(arguments))
                arguments.append(options.pop(key))
        if options:
            raise Unsupported(f"the formula calls {name} with {', '.join(options)}")
        arity = _ARITY.get(name, 1 if name in UNARY else 2)
        if name == "clamp":
            arguments += [None] * (3 - len(arguments))
        if len(arguments) != arity:
            raise Unsupported(f"the formula calls {name} with {len(arguments)} arguments")
        return self.lower(name, [self.operand(argument) for argument in arguments])

    def lower(self, name: str, operands: list[Operand]) -> Operand:
        """Say the rarer operations in terms of the others, with the same bits as torch's."""
        if name == "pos":
            return operands[0]
        if name == "relu":
            return self.emit("clamp", operands[0], Constant(0.0), Constant(None))
        if name == "clamp_min":
            return self.emit("clamp", operands[0], operands[1], Constant(None))
        if name == "clamp_max":
            return self.emit("clamp", operands[0], Constant(None), operands[1])
        if name == "rsqrt":
            return self.emit("reciprocal", self.emit("sqrt", operands[0]))
        if name == "pow" and isinstance(operands[1], Constant):
            base, exponent = operands[0], operands[1].value
            if exponent == 2.0:
                return self.emit("square", base)
            if exponent == 3.0:
                return self.emit("mul", self.emit("square", base), base)
            if exponent == 0.5:
                return self.emit("sqrt", base)
            if exponent == -0.5:
                return self.emit("reciprocal", self.emit("sqrt", base))
            if exponent == -1.0:
                return self.emit("reciprocal", base)
        return self.emit(name, *operands)


_KEYWORDS = {
    "clamp": ("input", "min", "max"),
    "clamp_min": ("input", "min"),
    "clamp_max": ("input", "max"),
    "pow": ("input", "exponent"),
    "where": ("condition", "input", "other"),
}
_ANY_KEYWORDS = ("input", "other")
_ARITY = {"clamp": 3, "where": 3, "logical_not": 1, "pos": 1}


def trace(formula: Formula) -> Program:
    """Read a formula symbolically.

    Raises:
        Unsupported: The formula branches on values, calls something that is not an elementwise
            operation, or returns other names than it declares.

    Example:
        >>> def descend(entry, number):
        ...     return {"param": entry["param"] - number["lr"] * entry["grad"]}, {}
        >>> sorted(trace(Formula(("param", "grad"), ("lr",), ("param",), (), descend, 1)).operations)
        ['mul', 'sub']
    """
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    names = [*formula.inputs, *formula.numbers]
    proxies = [fx.Proxy(graph.placeholder(f"value{i}"), tracer) for i in range(len(names))]
    inputs = len(formula.inputs)
    try:
        written, summed = formula.function(
            dict(zip(formula.inputs, proxies[:inputs], strict=True)),
            dict(zip(formula.numbers, proxies[inputs:], strict=True)),
        )
    except Exception as error:
        # A formula may be any Python; whatever it does to a symbol that a tensor would allow
        # only means that it cannot be read.
        raise Unsupported(f"the formula cannot be traced: {str(error).splitlines()[0]}") from error
    for kind, declared, found in (
        ("writes", formula.writes, written),
        ("sums", formula.sums, summed),
    ):
        if set(found) != set(declared):
            raise Unsupported(f"the formula declares {kind} {declared} and returns {tuple(found)}")

    reader = _Reader(inputs, len(formula.numbers))
    wanted = _reachable([*written.values(), *summed.values()])
    for index, proxy in enumerate(proxies):
        reader.values[proxy.node] = index
    for node in graph.nodes:
        if node.op != "placeholder" and node in wanted:
            reader.values[node] = reader.read(node)
    return Program(
        inputs,
        len(formula.numbers),
        tuple(reader.instructions),
        tuple(reader.operand(written[name]) for name in formula.writes),
        tuple(reader.operand(summed[name]) for name in formula.sums),
        tuple(reader.flags),
        tuple(reader.spread),
    )


def _reachable(results: Sequence[Any]) -> set[fx.Node]:
    waiting = [result.node for result in results if isinstance(result, fx.Proxy)]
    reached: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting.extend(node.all_input_nodes)
    return reached
