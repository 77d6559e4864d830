"""A sentence of parts, bound together: names of hyperparameters, buffers and counters, and the fused formula."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from hasten.engine.flow import Flow
from hasten.engine.formula import Formula
from hasten.engine.structure import PLAIN, Structure
from hasten.numbers import Names
from hasten.transforms.step import WeightDecay
from hasten.words import Buffer, Hyper, Iterate, Oracle, Part, Step, Transform


@dataclass(frozen=True)
class Sentence:
    """oracle → transforms → iterate.

    Example:
        >>> from hasten.oracles import Backpropagation
        >>> from hasten.transforms import EMA, Sign
        >>> from hasten.iterates import Plain
        >>> str(Sentence(Backpropagation(), (EMA(), Sign()), Plain()))
        'Backpropagation → EMA → Sign → Plain'
    """

    oracle: Oracle
    transforms: tuple[Transform, ...]
    iterate: Iterate

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, in the order in which information flows."""
        return (self.oracle, *self.transforms, self.iterate)

    def __str__(self) -> str:
        return " → ".join(type(part).__name__ for part in self.parts)


@dataclass(frozen=True)
class Place:
    """Where a hyperparameter is stored in a parameter group: a key, and an index if the key holds a tuple."""

    key: str
    index: int | None = None

    def read(self, group: dict[str, Any]) -> Any:
        """The value stored here."""
        return group[self.key] if self.index is None else group[self.key][self.index]

    def write(self, group: dict[str, Any], value: Any) -> None:
        """Store a value here; a tuple is replaced, never changed."""
        if self.index is None:
            group[self.key] = value
        else:
            group[self.key] = (*group[self.key][: self.index], value, *group[self.key][self.index + 1 :])

    def __str__(self) -> str:
        return self.key if self.index is None else f"{self.key}[{self.index}]"


_NUMBERED = re.compile(r"^(beta|nu)([1-9])(.*)$")


def places(names: Sequence[str]) -> dict[str, Place]:
    """Where each name is stored: ``beta1, beta2, …`` together make the tuple ``betas``, as users of torch expect.

    Example:
        >>> places(["lr", "beta1", "beta2"])["beta2"]
        Place(key='betas', index=1)
        >>> places(["lr", "beta2"])["beta2"]
        Place(key='beta2', index=None)
    """
    families: dict[str, dict[int, str]] = {}
    for name in names:
        if match := _NUMBERED.match(name):
            families.setdefault(f"{match[1]}s{match[3]}", {})[int(match[2])] = name
    found = {name: Place(name) for name in names}
    for key, members in families.items():
        if len(members) > 1 and set(members) == set(range(1, len(members) + 1)):
            found.update({name: Place(key, number - 1) for number, name in members.items()})
    return found


class Counter(NamedTuple):
    """A remembered number: its name in the state, its part, its name in the part, and its first value."""

    name: str
    part: int
    formal: str
    start: float


class Slot(NamedTuple):
    """A buffer: its name in the state, its part, its name in the part, and its declaration."""

    name: str
    part: int
    formal: str
    buffer: Buffer


class Composition:
    """Everything about a sentence that does not depend on parameters."""

    def __init__(self, sentence: Sentence, maximize: bool) -> None:
        self.sentence = sentence
        self.parts = sentence.parts
        self.maximize = maximize
        self.hypers: dict[str, Hyper] = {}
        self.defaults: dict[str, Any] = {}
        self._bind_hyperparameters()
        self.slots = tuple(self._slots())
        counters = list(self._counters())
        self.counters = tuple(c for c in counters if self.parts[c.part].measures != "all")
        self.group_counters = tuple(c for c in counters if self.parts[c.part].measures == "all")
        grains = [part.grain for part in self.parts]
        self.grain = next((grain for grain in ("matrix", "tensor") if grain in grains), "element")
        whole = [i for i, grain in enumerate(grains) if grain != "element"]
        self.together = range(whole[0], whole[-1] + 1) if whole else range(0)
        """The parts from the first to the last of which one needs more than an entry."""
        self.measuring = tuple(i for i, part in enumerate(self.parts) if part.measures)
        self._check_order_of_measurements()
        self._check_preparations()
        self._check_needs()
        self.extra_inputs = tuple(self.sentence.oracle.reads)
        self._stages: dict[int | None, Formula] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.sentence, self.maximize)

    def prepare(self) -> None:
        """Build every pass now; a user's ``torch.compile`` of the step could not."""
        for stop in (*self.measuring, None):
            self.stage(stop)

    def _check_order_of_measurements(self) -> None:
        """Sums over all parameters are taken first, so nothing before them may wait for the sums of one tensor."""
        per_tensor = None
        for i in self.measuring:
            if self.parts[i].measures == "tensor":
                per_tensor = self.parts[i]
            elif per_tensor is not None:
                late, early = type(self.parts[i]).__name__, type(per_tensor).__name__
                raise ValueError(
                    f"{late} is not allowed after {early}: it sums over all parameters; place it before"
                )

    def _check_preparations(self) -> None:
        for part in self.parts:
            if part.preparing and part.grain == "element":
                raise ValueError(
                    f"{type(part).__name__} is not allowed: a part of element grain has nothing to prepare"
                )

    def waiting(self, k: float) -> int | None:
        """The part that step `k` only prepares, so that those after it wait; None where all run."""
        return next((i for i, part in enumerate(self.parts) if k <= part.preparing), None)

    def _check_needs(self) -> None:
        oracle = self.sentence.oracle
        for part in self.parts:
            for name in part.needs:
                if name not in oracle.delivers:
                    raise ValueError(
                        f"{type(part).__name__} needs the number {name!r} of every step, which {type(oracle).__name__} "
                        "does not deliver"
                    )

    # -- hyperparameters ------------------------------------------------------------------------------------------

    def _bind_hyperparameters(self) -> None:
        for part in self.parts:
            for hyper in part.declared:
                name, value = part.key(hyper.name), part.value(hyper.name)
                if name in self.defaults and not _same(self.defaults[name], value):
                    raise ValueError(
                        f"two parts declare {name!r}, with values {self.defaults[name]!r} and {value!r}; give both the "
                        f"same value to share it, or keep them apart with {type(part).__name__}(...)"
                        f".rename({hyper.name}='another_name')"
                    )
                self.defaults[name] = value
                self.hypers.setdefault(name, hyper)
        self.places = places(list(self.defaults))
        self.bound = [[(h.name, self.places[part.key(h.name)]) for h in part.declared] for part in self.parts]

    def group_defaults(self) -> dict[str, Any]:
        """The default entries of a parameter group, numbered names collected in tuples."""
        entries: dict[str, Any] = {}
        for name, value in self.defaults.items():
            place = self.places[name]
            if place.index is None:
                entries[place.key] = value
            else:
                entries.setdefault(place.key, {})[place.index] = value
        return {k: tuple(v[i] for i in sorted(v)) if isinstance(v, dict) else v for k, v in entries.items()}

    def values(self, group: dict[str, Any], number: Callable[[Any], Any]) -> list[Names]:
        """The hyperparameters of each part, read from a parameter group."""
        return [
            Names(**{formal: number(place.read(group)) for formal, place in bound}) for bound in self.bound
        ]

    # -- state ----------------------------------------------------------------------------------------------------

    def _slots(self) -> Iterator[Slot]:
        taken: set[str] = {"step"}
        for i, part in enumerate(self.parts):
            for formal, buffer in part.buffers().items():
                yield Slot(_free(formal, taken), i, formal, buffer)

    def _counters(self) -> Iterator[Counter]:
        taken = {"step", *(slot.name for slot in self.slots)}
        for i, part in enumerate(self.parts):
            for formal, start in part.counters().items():
                yield Counter(_free(formal, taken), i, formal, start)

    # -- the formula ----------------------------------------------------------------------------------------------

    def number_names(self, i: int, *, measured: bool) -> tuple[str, ...]:
        """The names of the numbers of part `i`, with or without those that follow its measurement."""
        part = self.parts[i]
        h = Names(**{x.name: _representative(part.value(x.name), x) for x in part.declared})
        names = tuple(part.numbers(h, 1.0, Names(**part.counters())))
        if measured and part.measures:
            delivered = dict.fromkeys(self.sentence.oracle.delivers, 1.0)
            sums = Names(**dict.fromkeys(self.sum_names(i), 1.0), **delivered)
            names += tuple(part.measured(h, 1.0, Names(**part.counters()), sums))
        return names

    def sum_names(self, i: int) -> tuple[str, ...]:
        """The names of the sums that part `i` measures."""
        return tuple(self.stage(i).sums)

    def stage(self, stop: int | None) -> Formula:
        """The pass that measures for part `stop`, or, with None, the pass that moves the parameters."""
        if stop not in self._stages:
            self._stages[stop] = self._build(stop)
        return self._stages[stop]

    def _build(self, stop: int | None) -> Formula:
        end = len(self.parts) if stop is None else stop + 1
        numbers: tuple[str, ...] = ()
        for i in range(end):
            numbers += tuple(f"{i}.{name}" for name in self.number_names(i, measured=i != stop))
        shape = (1, 2, 2) if self.reaches(stop) else (1,)  # a stack of one matrix
        entries = {name: torch.full(shape, 0.5) for name in ("param", "grad", *self.extra_inputs)}
        for slot in self.slots:
            kept = (1, *slot.buffer.shape(torch.Size((2, 2)))) if slot.buffer.shape else shape
            entries[slot.name] = torch.full(kept, 0.5)
        tracker = Tracker(entries)
        writes, sums = self.run(tracker, dict.fromkeys(numbers, 0.5), stop)
        touched = tracker.read | set(writes)
        if self.reaches(stop):
            # Which buffers such a formula uses depends on the number of dimensions.
            touched |= {slot.name for slot in self.slots}
        inputs = tuple(name for name in entries if name in touched or name in ("param", "grad"))
        return Formula(
            inputs,
            numbers,
            tuple(writes),
            tuple(sums),
            lambda e, n: self.run(e, n, stop),
            self.key(stop),
        )

    def key(self, stage: Hashable) -> Hashable:
        """What is equal for equal formulas of one stage."""
        parts = tuple((type(part), tuple(part.options().items())) for part in self.parts)
        key = (parts, tuple(slot.name for slot in self.slots), self.maximize, stage)
        return key if _hashable(key) else (id(self), stage)

    def reaches(self, stop: int | None) -> bool:
        """Whether a pass needs more than an entry at a time."""
        return bool(self.together) and (stop is None or stop >= self.together.start)

    def kept_shape(self, slot: Slot, shape: torch.Size, structure: Structure = PLAIN) -> tuple[int, ...]:
        """The shape of a buffer of a tensor of some shape."""
        like = slot.buffer.shape
        if like is None:
            return tuple(shape)
        return structure.kept_shape(like, shape) if self.parts[slot.part].grain == "matrix" else like(shape)

    def run(self, entries: Any, numbers: Any, stop: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Apply every part in turn: new values by name, and terms to be summed by name."""
        flow = self.start(entries)
        self.follow(flow, entries, numbers, range(len(self.parts)), stop)
        return flow.writes, flow.terms

    def start(self, entries: Any) -> Flow:
        """Before the first part."""
        g = -entries["grad"] if self.maximize else entries["grad"]
        return Flow(g, g)

    def follow(self, flow: Flow, entries: Any, numbers: Any, parts: range, stop: int | None = None) -> None:
        """Apply some of the parts, up to the measurement of part `stop`, after which only its own writes count."""
        sign = -1.0 if self.maximize else 1.0
        for i in parts:
            part = self.parts[i]
            own = [slot for slot in self.slots if slot.part == i]
            s = _Entries(flow, entries, {slot.formal: slot.name for slot in own})
            prefix = f"{i}."
            n = Names(**{k[len(prefix) :]: v for k, v in numbers.items() if k.startswith(prefix)})
            d = flow.direction
            if i == stop:
                flow.terms = part.measure(d, s, n)
                flow.writes = _written(s, own)
                return
            if isinstance(part, Oracle):
                for name in self.extra_inputs:
                    setattr(s, name, sign * entries[name] if self.maximize else entries[name])
                flow.direction = flow.grad = part.correct(d, s, n)
            elif isinstance(part, WeightDecay) and not self.leads(i - 1) and i == len(self.parts) - 2:
                flow.decay = n.weight_decay
            elif isinstance(part, Transform):
                flow.direction = part.direction(d, s, n)
                if self.leads(i):
                    flow.grad = flow.direction
            elif isinstance(part, Iterate):
                moved = part.move(d, s, n) if flow.decay is None else part.move_decayed(d, flow.decay, s, n)
                flow.writes["param"] = moved
            flow.writes.update(_written(s, own))

    def leads(self, i: int) -> bool:
        """Whether the transforms up to part `i` only set lengths: what they make still counts as the gradient."""
        return all(isinstance(part, Step) for part in self.parts[1 : i + 1])


def _rebuilt(sentence: Sentence, maximize: bool) -> Composition:
    composition = Composition(sentence, maximize)
    composition.prepare()
    return composition


class _Entries(Names):
    """The state as a formula sees it: the parameter, the gradient and the part's own buffers, looked up when read."""

    def __init__(self, flow: Flow, entries: Any, names: dict[str, str]) -> None:
        super().__init__(_flow=flow, _entries=entries, _names=names)

    def __getattr__(self, name: str) -> Any:
        if name in ("param", "grad"):
            flow = self.__dict__["_flow"]
            flow.asked.add(name)
            return flow.grad if name == "grad" else self.__dict__["_entries"]["param"]
        names = self.__dict__["_names"]
        if name not in names:
            raise AttributeError(f"the part has no buffer {name!r}")
        return self.__dict__["_entries"][names[name]]


def _written(s: _Entries, slots: list[Slot]) -> dict[str, Any]:
    return {slot.name: s.__dict__[slot.formal] for slot in slots if slot.formal in s.__dict__}


class Tracker(dict[str, Any]):
    """Entries that remember which of them were read."""

    def __init__(self, entries: dict[str, Any]) -> None:
        super().__init__(entries)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


def _free(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate


def _same(a: Any, b: Any) -> bool:
    return a is b or bool(a == b)


def _hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _representative(value: Any, hyper: Hyper) -> float:
    """A number in place of a schedule, to learn the names of a part's numbers."""
    return float(value(0)) if callable(value) else float(value)
