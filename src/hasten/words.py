"""The four words of the library: what every oracle, transform and iterate declares.

A *part* is a frozen dataclass. Its fields made by :func:`hyper` are hyperparameters, declared once (default,
range, meaning); its other fields are options that choose between formulas. A part names the tensors it keeps
for every parameter (`buffers`), the numbers it remembers from step to step (`counters`), the numbers its formula
needs at this step (`numbers`), and states the formula itself, entry by entry, as in the paper.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from typing_extensions import Self

from hasten.numbers import Names, Number

if TYPE_CHECKING:
    from hasten.schedules import Schedule

    Value: TypeAlias = float | Tensor | Schedule | Callable[[int], float]
    """What a hyperparameter may be set to: a number, a 0-d tensor, or a schedule (a function of the step)."""
else:
    Value = Any

Entry: TypeAlias = Any
"""The entries of one tensor inside a formula: supports arithmetic and the element-wise torch functions."""


@dataclass(frozen=True)
class Interval:
    """An allowed range of a hyperparameter.

    Example:
        >>> 1.0 in Interval(0, 1, closed="left"), float("nan") in Interval(0, 1)
        (False, False)
    """

    low: float
    high: float = math.inf
    closed: Literal["both", "left", "right", "neither"] = "left"

    def __contains__(self, x: float) -> bool:
        above = x >= self.low if self.closed in ("both", "left") else x > self.low
        below = x <= self.high if self.closed in ("both", "right") else x < self.high
        return bool(above and below)

    def __str__(self) -> str:
        left = "[" if self.closed in ("both", "left") else "("
        right = "]" if self.closed in ("both", "right") else ")"
        return f"{left}{self.low:g}, {self.high:g}{right}"


UNIT = Interval(0, 1)
"""[0, 1): decay rates of averages."""
FRACTION = Interval(0, 1, "both")
"""[0, 1]: weights of a mixture."""
NONNEGATIVE = Interval(0)
"""[0, inf)."""
POSITIVE = Interval(0, closed="neither")
"""(0, inf)."""
ANY = Interval(-math.inf, closed="neither")
"""Every finite number."""


@dataclass(frozen=True)
class Hyper:
    """A declared hyperparameter: its default, allowed range and meaning."""

    name: str
    default: Any
    allowed: Interval
    meaning: str


def hyper(default: Any, allowed: Interval, meaning: str) -> Any:
    """Declare a hyperparameter as a field of a part."""
    return field(default=default, metadata={"allowed": allowed, "meaning": meaning})


@dataclass(frozen=True)
class Buffer:
    """A tensor kept for every parameter.

    `start` is the initial value of each entry, or ``"param"``: a copy of the parameter, taken at its first step.
    `exact` buffers hold positions rather than averages; they are never kept in a low-precision `state_dtype`.
    `shape` maps the shape of a tensor (of a matrix, in parts of matrix grain) to that of what is kept for it; parts of
    element grain may not change it.
    """

    start: float | Literal["param"] = 0.0
    exact: bool = False
    shape: Callable[[torch.Size], tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Part:
    """One part of an optimizer. Not used directly: see :class:`Oracle`, :class:`Transform`, :class:`Iterate`."""

    renamed: Mapping[str, str] = field(
        default_factory=dict, kw_only=True, repr=False, hash=False, compare=False
    )
    """Hyperparameters stored in the parameter groups under another name (see :meth:`rename`)."""

    formula: ClassVar[str] = ""
    """The formula as in the paper, in plain text."""
    word: ClassVar[str] = ""
    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "element"
    """`element`: the formula holds for every entry. The others get stacks: `tensor`: k tensors of one shape, [k, …];
    `matrix`: k matrices, [k, m, n], whatever the tensors are that they are read from. What is kept in a shape of its
    own comes in stacks [k, …] as well."""
    measures: ClassVar[Literal["", "tensor", "all"]] = ""
    """Whether :meth:`measure` sums over each tensor, or over all parameters, before the formula is applied."""

    traceable: ClassVar[bool] = True
    """Whether the formula can be traced by ``torch.compile``: it does not branch on its numbers."""

    @classmethod
    def hypers(cls) -> tuple[Hyper, ...]:
        """The declared hyperparameters, in order."""
        return tuple(
            Hyper(f.name, f.default, f.metadata["allowed"], f.metadata["meaning"])
            for f in dataclasses.fields(cls)
            if "allowed" in f.metadata
        )

    def options(self) -> dict[str, Any]:
        """The fields that choose between formulas."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if "allowed" not in f.metadata and f.name != "renamed"
        }

    def rename(self, **names: str) -> Self:
        """The same part with hyperparameters stored under other names in the parameter groups.

        Example:
            >>> from hasten.transforms import EMA
            >>> EMA(0.98).rename(beta1="inner_momentum").key("beta1")
            'inner_momentum'
        """
        unknown = set(names) - {h.name for h in self.declared}
        if unknown:
            raise ValueError(f"{type(self).__name__} has no hyperparameter {sorted(unknown)[0]!r} to rename")
        return dataclasses.replace(self, renamed={**self.renamed, **names})

    def key(self, name: str) -> str:
        """The name under which a hyperparameter is stored in the parameter groups."""
        return self.renamed.get(name, name)

    @property
    def declared(self) -> tuple[Hyper, ...]:
        """The hyperparameters of this part and of the parts inside it."""
        return self.hypers()

    def value(self, name: str) -> Any:
        """What a declared hyperparameter is set to."""
        return getattr(self, name)

    @property
    def preparing(self) -> int:
        """How many first steps only fill buffers: the parts after this one do not run then."""
        return 0

    @property
    def needs(self) -> tuple[str, ...]:
        """Numbers that the oracle must deliver to this part's :meth:`measured`."""
        return ()

    def buffers(self) -> dict[str, Buffer]:
        """Tensors kept for every parameter."""
        return {}

    def counters(self) -> dict[str, float]:
        """Numbers remembered from step to step, with their initial values.

        They are kept for every parameter, or, in a part that measures over all parameters, for every group.
        """
        return {}

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """The numbers of the formula at step `k` = 1, 2, …, from hyperparameters `h`; may advance counters `c`."""
        return {}

    def measure(self, d: Entry, s: Any, n: Any) -> dict[str, Entry]:
        """Terms to be summed over the tensor (or over all parameters) before the formula is applied."""
        return {}

    def measured(self, h: Names, k: Number, c: Names, sums: Names) -> dict[str, Number]:
        """Further numbers of the formula, known once the sums are."""
        return {}


@dataclass
class Observation:
    """What an oracle learnt in one step.

    `gradients` are the gradients of this step by parameter; None: they are in ``p.grad``. `extras` are the tensors
    named in :attr:`Oracle.reads`, by parameter; `numbers` the ones named in :attr:`Oracle.delivers`.
    """

    loss: Any = None
    gradients: dict[Tensor, Tensor] | None = None
    extras: dict[str, dict[Tensor, Tensor]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Oracle(Part):
    """What is learnt about the objective, and at what price."""

    word: ClassVar[str] = "oracle"

    @property
    def reads(self) -> tuple[str, ...]:
        """Extra tensors delivered with the gradient."""
        return ()

    @property
    def delivers(self) -> tuple[str, ...]:
        """Numbers handed, as ``sums.<name>``, to the parts that measure over all parameters."""
        return ()

    def observe(self, optimizer: Any, closure: Callable[[], Any] | None) -> Observation:
        """Learn about the objective at the parameters, without changing them."""
        return Observation()

    def correct(self, g: Entry, s: Any, n: Any) -> Entry:
        """The gradient information passed on, from the raw gradient `g`."""
        return g


@dataclass(frozen=True)
class Transform(Part):
    """Given a direction, a better direction."""

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """The new direction, from `d`, the state `s` (`s.param`, `s.grad` and the part's buffers) and numbers `n`."""
        raise NotImplementedError


class Momentum(Transform):
    """A transform with memory along time."""

    word: ClassVar[str] = "momentum"

    def linear(self, h: Names, k: int) -> tuple[float, float, float]:
        """(beta, A, B) of ``m ← beta m + d; u = A m + B d`` at step `k`, or NotImplementedError if it is not one."""
        raise NotImplementedError


class Geometry(Transform):
    """A transform that chooses the norm under which one descends."""

    word: ClassVar[str] = "geometry"


class Step(Transform):
    """A transform that sets lengths: decay, clipping, scaling."""

    word: ClassVar[str] = "step"


@dataclass(frozen=True)
class Iterate(Part):
    """Where the parameter lives, and how a direction moves it."""

    word: ClassVar[str] = "iterate"
    two_points: ClassVar[bool] = False
    """Whether the point to evaluate differs from the point at which gradients are taken."""

    def move(self, d: Entry, s: Any, n: Any) -> Entry:
        """The new parameter, from the direction `d`."""
        raise NotImplementedError

    def move_decayed(self, d: Entry, decay: Entry, s: Any, n: Any) -> Entry:
        """The new parameter under decoupled weight decay: `move` along ``d + decay · y``."""
        return self.move(d + decay * s.param, s, n)

    def evaluation(self, s: Any, n: Any) -> Entry:
        """The point to evaluate, from the training point ``s.param``."""
        return s.param

    def training(self, s: Any, n: Any) -> Entry:
        """The training point, from the point to evaluate held in ``s.param``."""
        return s.param

    def switch(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """The numbers of :meth:`evaluation` and :meth:`training` after `k` steps."""
        return {}
