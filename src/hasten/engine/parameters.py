"""Parameters in groups: their hyperparameters, their state, and the sentences that move them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hasten.checks import check_value, nearest
from hasten.engine.composition import Composition, Place, Sentence
from hasten.engine.structure import KEYS, check_structure, structure_of
from hasten.schedules import Schedule
from hasten.sharding import divided_like, is_distributed
from hasten.words import Hyper

_BOOKKEEPING = frozenset({"params", "param_names", "step", "skipped_steps", "train_mode", "schedules"})
_SCHEDULER_KEYS = frozenset(
    {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", "name"}
)
STRUCTURE = ("matrices", *KEYS)
"""What a group may say about its tensors: whether the sentence for matrices moves them, and how they are read."""


class ParameterGroups(torch.optim.Optimizer):
    """What the rooms of the engine know of an optimizer: everything but how it steps.

    Args:
        params: parameters, named parameters or groups as for torch's optimizers, or a module.
        sentences: that of all parameters; and a second one, if there is one, for those with fewer than two dimensions
            and those in groups with ``matrices=False``.
        options: the values of :class:`~hasten.EngineOptions`.
        roles: sentences by name, for the groups that name them under the key `role_key`.
    """

    source: ClassVar[str] = ""
    """The paper."""
    role_key: ClassVar[str] = "role"
    """The entry of a parameter group that names the sentence which moves it, where there are several by name."""

    def __init__(
        self,
        params: Any,
        sentences: Sequence[Sentence],
        options: dict[str, Any],
        roles: Mapping[str, Sentence] | None = None,
    ) -> None:
        self.maximize: bool = options["maximize"]
        self.engine: str = options["engine"]
        self.on_nonfinite: str = options["on_nonfinite"]
        self.stochastic_rounding: bool = options["stochastic_rounding"]
        self.state_dtype: torch.dtype | None = options["state_dtype"]
        self.seed: int = options["seed"]
        self.sentence = sentences[0]
        sentences, named = list(sentences), dict(roles or {})
        self.compositions = [Composition(own, self.maximize) for own in (*sentences, *named.values())]
        self.roles = dict(zip(named, self.compositions[len(sentences) :], strict=True))
        """The compositions of the groups that name one."""
        self.others: Composition | None = self.compositions[1] if len(sentences) > 1 else None
        """That of vectors, and of the groups with ``matrices=False``."""
        self.has_evaluation_point = any(c.sentence.iterate.two_points for c in self.compositions)
        self.places: dict[str, Place] = {}
        self.hypers: dict[str, Hyper] = {}
        defaults: dict[str, Any] = {}
        for composition in self.compositions:
            self.places.update(composition.places)
            self.hypers = {**composition.hypers, **self.hypers}
            defaults = {**composition.group_defaults(), **defaults}
        self.functions: dict[tuple[int, str], Callable[[int], float]] = {}
        """The schedules that are functions, by the number of their group and their place."""
        self.written: dict[tuple[int, str], Any] = {}
        """What was last stored for each scheduled hyperparameter, by identity of its group and its place."""
        self.parameter_count = 0
        self.module = params if isinstance(params, nn.Module) else None
        """The module whose parameters these are, where it was given."""
        self._warned: set[str] = set()
        self._places: dict[int, tuple[dict[str, Any], int]] = {}
        for name, place in self.places.items():
            if self.others is None or name in self.compositions[0].places or name not in self.others.places:
                self.check(name, place.read(defaults))
        if self.others is not None:
            self._check_others(self.others)
        for composition in self.compositions:
            composition.prepare()
        super().__init__(params if self.module is None else self.module.named_parameters(), defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, which may override any hyperparameter.

        Raises:
            ValueError: an unknown key (with the nearest known one) or a value out of range; nothing is changed.
        """
        if not isinstance(param_group, dict):
            raise TypeError(
                f"{self.name}: a parameter group must be a dict, not {type(param_group).__name__}"
            )
        given = param_group.get("params", ())
        if not isinstance(given, Tensor | set):
            param_group = {**param_group, "params": list(given)}  # looked at more than once
        known = {place.key for place in self.places.values()}
        for key in param_group:
            if not self.accepts_group_key(key):
                raise ValueError(
                    f"{self.name}: a parameter group has the unknown key {key!r}{nearest(key, known)}"
                )
        self.check_role(param_group)
        own = self._composition(None, param_group)
        defaults = {**self.defaults, **({} if own is self.compositions[0] else own.group_defaults())}
        entries = {key: param_group.get(key, defaults[key]) for key in known}
        self.check_group({**param_group, **entries})
        self.check_tensors(param_group)
        schedules: dict[str, Any] = dict(param_group.get("schedules", {}))
        functions: dict[str, Callable[[int], float]] = {}
        for place in self.places.values():
            value = place.read(entries)
            if callable(value):
                schedules[str(place)] = (
                    value.plain() if isinstance(value, Schedule) else {"schedule": "function"}
                )
                if not isinstance(value, Schedule):
                    functions[str(place)] = value
                place.write(entries, float(value(0)))
        group = {**param_group, **entries}
        for key, value in self._bookkeeping().items():
            group.setdefault(key, value)
        group["schedules"] = schedules
        super().add_param_group(group)
        made = self.param_groups[-1]
        self.written.update({(id(made), text): self.place_of(text).read(made) for text in schedules})
        index = len(self.param_groups) - 1
        self.functions.update({(index, place): function for place, function in functions.items()})
        for p in self.param_groups[-1]["params"]:
            self.parameter_count += p.numel()
            if p.requires_grad:
                self.initialise(p)

    def check_role(self, group: dict[str, Any]) -> None:
        """Raise ValueError unless the sentence that a group names is there."""
        role = group.get(self.role_key)
        if role is not None and not (isinstance(role, str) and role in self.roles):
            known = nearest(str(role), self.roles) if self.roles else "; it has one sentence for all"
            raise ValueError(f"{self.name}: {self.role_key} = {role!r} is not allowed{known}")

    def check_tensors(self, group: dict[str, Any]) -> None:
        """Raise ValueError unless every tensor of a group is of a kind that its sentence can move."""
        for key in STRUCTURE:
            if group.get(key) is not None and all(c.grain != "matrix" for c in self.compositions):
                raise ValueError(f"{self.name}: {key} = {group[key]!r} is not allowed: it needs no matrices")
        check_structure(self.name, group)
        matrices, given = group.get("matrices"), group["params"]
        if matrices is False and len(self.compositions) == 1 and self.compositions[0].grain == "matrix":
            raise ValueError(
                f"{self.name}: matrices = False is not allowed: it has no sentence for other parameters (vectors=)"
            )
        for i, named in enumerate([given] if isinstance(given, Tensor) else list(given)):
            p = named[1] if isinstance(named, tuple) else named
            if isinstance(p, Tensor) and (matrices or self._composition(p, group).grain == "matrix"):
                reason = structure_of(group).check(p.shape)
                if reason:
                    name = repr(named[0]) if isinstance(named, tuple) else f"{i} of a group"
                    raise ValueError(
                        f"{self.name}: parameter {name}, of shape {tuple(p.shape)}, is not a matrix: {reason}"
                    )

    def _bookkeeping(self) -> dict[str, Any]:
        counters = {c.name: c.start for composition in self.compositions for c in composition.group_counters}
        mode = {"train_mode": True} if self.has_evaluation_point else {}
        return {"step": 0, "skipped_steps": 0, **mode, **counters}

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError unless a value is in the range of the hyperparameter of this name."""
        check_value(self.name, self.places[name], value(0) if callable(value) else value, self.hypers[name])

    def _check_others(self, composition: Composition) -> None:
        """Raise ValueError unless the values for all other parameters are in range; by the names of their arguments."""
        arguments = inspect.signature(type(self).__init__).parameters
        own = composition.group_defaults()
        for name, place in composition.places.items():
            shown = f"fallback_{place}" if f"fallback_{place.key}" in arguments else place
            value = place.read(own)
            check_value(self.name, shown, value(0) if callable(value) else value, composition.hypers[name])

    def initialise(self, p: Tensor) -> None:
        """Make the complete state of a parameter, as it is before its first step."""
        state = self.state[p]
        state["step"] = torch.zeros((), dtype=torch.float64)
        composition, shapes = self.composition_of(p), self.state_shapes(p)
        for counter in composition.counters:
            state[counter.name] = torch.tensor(counter.start, dtype=torch.float64)
        for slot in composition.slots:
            dtype = self._buffer_dtype(p, slot.buffer.exact)
            start = 0.0 if slot.buffer.start == "param" else slot.buffer.start
            if slot.buffer.shape is None and is_distributed(p):  # divided like its parameter
                state[slot.name] = torch.full_like(p.detach(), start, dtype=dtype)
            else:
                state[slot.name] = divided_like(p, shapes[slot.name], start, dtype)
            if slot.buffer.start == "param":
                state[slot.name].copy_(p.detach())

    def _buffer_dtype(self, p: Tensor, exact: bool) -> torch.dtype:
        if p.dtype in (torch.float64, torch.complex64, torch.complex128):
            return p.dtype
        return torch.float32 if exact or self.state_dtype is None else self.state_dtype

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The optimizer's name, as errors give it."""
        return type(self).__name__

    def composition_of(self, p: Tensor) -> Composition:
        """The composition that moves a parameter."""
        return self._composition(p, self.group_of(p))

    def _composition(self, p: Tensor | None, group: dict[str, Any]) -> Composition:
        """That of a parameter, or, without one, of a matrix in this group."""
        if group.get(self.role_key) is not None:
            return self.roles[group[self.role_key]]
        if self.others is not None and (group.get("matrices") is False or (p is not None and p.dim() < 2)):
            return self.others
        return self.compositions[0]

    def group_of(self, p: Tensor) -> dict[str, Any]:
        """The parameter group that a parameter is in."""
        group, i = self._places.get(id(p), ({"params": []}, 0))
        if i >= len(group["params"]) or group["params"][i] is not p:  # a framework has replaced parameters
            self._places = {id(q): (own, j) for own in self.param_groups for j, q in enumerate(own["params"])}
            group, i = self._places[id(p)]
        return group

    def name_of(self, p: Tensor) -> str:
        """A parameter as a user would call it."""
        for g, group in enumerate(self.param_groups):
            for i, q in enumerate(group["params"]):
                if q is p:
                    names = group.get("param_names")
                    return (
                        f"parameter {names[i]!r}"
                        if names
                        else f"parameter {i} of group {g}, shape {tuple(p.shape)},"
                    )
        return f"a parameter of shape {tuple(p.shape)}"

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped because a gradient was not finite."""
        return max((int(group["skipped_steps"]) for group in self.param_groups), default=0)

    def check_group(self, entries: dict[str, Any]) -> None:
        """Raise ValueError unless every hyperparameter of a group is in its range."""
        for place in self.places.values():
            if place.index is not None:
                family = sum(p.key == place.key for p in self.places.values())
                _check_tuple(self.name, place.key, entries[place.key], family)
        for composition in self._serving(entries):
            for name, place in self.places.items():
                value = place.read(entries)
                allowed = composition.hypers.get(name, self.hypers[name])
                check_value(self.name, place, value(0) if callable(value) else value, allowed)

    def _serving(self, group: dict[str, Any]) -> list[Composition]:
        """The compositions that may move parameters of a group: the same name may have another range in each."""
        own = self._composition(None, group)
        mixed = self.others is not None and own is self.compositions[0] and group.get("matrices") is None
        return [own, self.others] if mixed and self.others is not None else [own]

    def accepts_group_key(self, key: str) -> bool:
        """Whether a parameter group may hold this key."""
        return (
            key in _BOOKKEEPING
            or key in _SCHEDULER_KEYS
            or key in STRUCTURE
            or key == self.role_key
            or any(key == p.key for p in self.places.values())
        )

    def state_shapes(self, p: Tensor, group: dict[str, Any] | None = None) -> dict[str, tuple[int, ...]]:
        """The names and shapes of the tensors kept for a parameter, in its group or in another."""
        group = self.group_of(p) if group is None else group
        composition, structure = self._composition(p, group), structure_of(group)
        shapes: dict[str, tuple[int, ...]] = {"step": (), **{c.name: () for c in composition.counters}}
        return {
            **shapes,
            **{s.name: composition.kept_shape(s, p.shape, structure) for s in composition.slots},
        }

    def place_of(self, text: str) -> Place:
        """The place whose name is written in a group's entry ``schedules``."""
        return next(place for place in self.places.values() if str(place) == text)

    @property
    def training(self) -> bool:
        """Whether the parameters hold the training point."""
        return all(group.get("train_mode", True) for group in self.param_groups)

    def warn_once(self, topic: str, message: str) -> None:
        """A warning that is given once per optimizer."""
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(message, UserWarning, stacklevel=3)


def _check_tuple(owner: str, key: str, value: Any, length: int) -> None:
    if not isinstance(value, tuple | list) or len(value) != length:
        raise ValueError(f"{owner}: {key} = {value!r} is not allowed; it must be {length} numbers")
