"""`Optimizer`: runs a sentence of parts over parameter groups, as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hasten.checks import check_value, nearest
from hasten.engine.checkpoint import restore
from hasten.engine.composition import Composition, Place, Sentence
from hasten.engine.description import describe
from hasten.engine.options import read_options
from hasten.engine.plan import Plan
from hasten.engine.scheduling import place_of, scheduled
from hasten.engine.stepping import run_step
from hasten.engine.traced import refuse_tracing, traced_step
from hasten.engine.two_points import switch, watch
from hasten.iterates.plain import Plain
from hasten.oracles.backpropagation import Backpropagation
from hasten.schedules import Schedule
from hasten.sharding import is_distributed
from hasten.transforms.step import WeightDecay
from hasten.wire import Communication, communication
from hasten.words import Hyper, Iterate, Oracle, Transform, Value

_ARTICLES = {Iterate: "an iterate", Oracle: "an oracle", Transform: "a transform"}
_BOOKKEEPING = frozenset({"params", "param_names", "step", "skipped_steps", "train_mode", "schedules"})
_SCHEDULER_KEYS = frozenset(
    {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", "name"}
)


class Optimizer(torch.optim.Optimizer):
    """Any composition of parts: oracle → transforms → iterate.

    Args:
        params: parameters, named parameters or parameter groups as for torch's optimizers, or a module. Given a module,
            an optimizer whose evaluation point differs from its training point warns when the module is evaluated at
            the wrong one.
        transforms: applied to the gradient in order.
        iterate: how the direction moves the parameters.
        oracle: where the gradient comes from.
        lr: learning rate of the iterate; a number, a 0-d tensor, or a schedule.
        weight_decay: decoupled weight decay: a :class:`~hasten.transforms.WeightDecay` after all transforms.
        vectors: a sentence of its own for parameters with fewer than two dimensions.
        engine_options: see :class:`~hasten.EngineOptions`.

    Raises:
        ValueError: a hyperparameter is out of its range, or a group has an unknown key; names it, and what is allowed.
        TypeError: an unknown keyword, with the nearest known one.

    Example:
        A point of the design space that has no name: AdEMAMix's simplified momentum, in sign geometry, averaged by
        Schedule-Free.

        >>> import torch, hasten
        >>> from hasten.transforms import Accumulation, Sign
        >>> from hasten.iterates import ScheduleFree
        >>> w = torch.ones(3, requires_grad=True)
        >>> opt = hasten.Optimizer([w], Accumulation(0.95, alpha=5.0), Sign(), iterate=ScheduleFree(), lr=1e-2)
        >>> (w**2).sum().backward()
        >>> _ = opt.step()
        >>> print(opt.sentence)
        Backpropagation → Accumulation → Sign → WeightDecay → ScheduleFree
    """

    source: ClassVar[str] = ""
    """The paper."""

    def __init__(
        self,
        params: Any,
        *transforms: Transform,
        iterate: Iterate | None = None,
        oracle: Oracle | None = None,
        lr: Value | None = None,
        weight_decay: Value | None = None,
        vectors: Sentence | None = None,
        **engine_options: Any,
    ) -> None:
        self.name = type(self).__name__
        signature = inspect.signature(type(self).__init__).parameters.values()
        named = {p.name for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        options = read_options(self.name, engine_options, named - {"self", "params"})
        self.maximize: bool = options["maximize"]
        self.engine: str = options["engine"]
        self.on_nonfinite: str = options["on_nonfinite"]
        self.stochastic_rounding: bool = options["stochastic_rounding"]
        self.state_dtype: torch.dtype | None = options["state_dtype"]
        self.seed: int = options["seed"]
        self.sentence = self._sentence(transforms, iterate, oracle, lr, weight_decay)
        sentences = [self.sentence] if vectors is None else [self.sentence, vectors]
        self.compositions = [Composition(sentence, self.maximize) for sentence in sentences]
        self.has_evaluation_point = any(s.iterate.two_points for s in sentences)
        self.places: dict[str, Place] = {}
        self.hypers: dict[str, Hyper] = {}
        defaults: dict[str, Any] = {}
        for composition in self.compositions:
            self.places.update(composition.places)
            self.hypers = {**composition.hypers, **self.hypers}
            defaults.update(composition.group_defaults())
        self.functions: dict[tuple[int, str], Callable[[int], float]] = {}
        self._warned: set[str] = set()
        self.parameter_count = 0
        self.module = params if isinstance(params, nn.Module) else None
        """The module whose parameters these are, where it was given."""
        self.plan: Plan | None = None
        self.written: dict[tuple[int, str], Any] = {}
        """What was last stored for each scheduled hyperparameter, by identity of its group and its place."""
        for name, place in self.places.items():
            self.check(name, place.read(defaults))
        for composition in self.compositions:
            composition.prepare()
        super().__init__(listed(params) if self.module is None else self.module.named_parameters(), defaults)
        if self.module is not None and self.has_evaluation_point:
            watch(self.module, self)

    # -- construction -----------------------------------------------------------------------------------------------

    def _sentence(
        self,
        transforms: tuple[Transform, ...],
        iterate: Iterate | None,
        oracle: Oracle | None,
        lr: Value | None,
        weight_decay: Value | None,
    ) -> Sentence:
        iterate = Plain() if iterate is None else iterate
        oracle = Backpropagation() if oracle is None else oracle
        for kind, part in [(Iterate, iterate), (Oracle, oracle), *((Transform, t) for t in transforms)]:
            if not isinstance(part, kind):
                raise TypeError(f"{self.name}: {part!r} is not allowed; it must be {_ARTICLES[kind]}")
        if lr is not None:
            iterate = dataclasses.replace(iterate, lr=lr)  # type: ignore[call-arg]  # every iterate declares lr
        parts = (oracle, *transforms, iterate)
        decaying = next((p for p in parts if "weight_decay" in {h.name for h in p.hypers()}), None)
        if decaying is not None and weight_decay is not None:
            raise ValueError(
                f"{self.name}: weight_decay is given twice: as an argument and in {type(decaying).__name__}; "
                "leave the argument out and give it there"
            )
        if decaying is None:
            transforms = (*transforms, WeightDecay(0.0 if weight_decay is None else weight_decay))
        return Sentence(oracle, transforms, iterate)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, which may override any hyperparameter.

        Raises:
            ValueError: an unknown key (with the nearest known one) or a value out of range; nothing is changed.
        """
        if not isinstance(param_group, dict):
            raise TypeError(
                f"{self.name}: a parameter group must be a dict, not {type(param_group).__name__}"
            )
        known = {place.key for place in self.places.values()}
        for key in param_group:
            if not self.accepts_group_key(key):
                raise ValueError(
                    f"{self.name}: a parameter group has the unknown key {key!r}{nearest(key, known)}"
                )
        entries = {key: param_group.get(key, self.defaults[key]) for key in known}
        self.check_group(entries)
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
        self.written.update({(id(made), text): place_of(self, text).read(made) for text in schedules})
        index = len(self.param_groups) - 1
        self.functions.update({(index, place): function for place, function in functions.items()})
        for p in self.param_groups[-1]["params"]:
            self.parameter_count += p.numel()
            if p.requires_grad:
                self.initialise(p)

    def _bookkeeping(self) -> dict[str, Any]:
        counters = {c.name: c.start for composition in self.compositions for c in composition.group_counters}
        mode = {"train_mode": True} if self.has_evaluation_point else {}
        return {"step": 0, "skipped_steps": 0, **mode, **counters}

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError unless a value is in the range of the hyperparameter of this name."""
        check_value(self.name, self.places[name], value(0) if callable(value) else value, self.hypers[name])

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
                state[slot.name] = torch.full(shapes[slot.name], start, dtype=dtype, device=p.device)
            if slot.buffer.start == "param":
                state[slot.name].copy_(p.detach())

    def _buffer_dtype(self, p: Tensor, exact: bool) -> torch.dtype:
        if p.dtype in (torch.float64, torch.complex64, torch.complex128):
            return p.dtype
        return torch.float32 if exact or self.state_dtype is None else self.state_dtype

    # -- reading ------------------------------------------------------------------------------------------------------

    def composition_of(self, p: Tensor) -> Composition:
        """The composition that moves a parameter."""
        return self.compositions[1 if len(self.compositions) > 1 and p.dim() < 2 else 0]

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

    @property
    def communication(self) -> Communication:
        """What this worker sent and received for these parameters, by part; prints as a table."""
        return communication(p for group in self.param_groups for p in group["params"])

    def check_group(self, entries: dict[str, Any]) -> None:
        """Raise ValueError unless every hyperparameter of a group is in its range."""
        for place in self.places.values():
            if place.index is not None:
                family = sum(p.key == place.key for p in self.places.values())
                _check_tuple(self.name, place.key, entries[place.key], family)
        for name, place in self.places.items():
            self.check(name, place.read(entries))

    def accepts_group_key(self, key: str) -> bool:
        """Whether a parameter group may hold this key."""
        return (
            key in _BOOKKEEPING or key in _SCHEDULER_KEYS or any(key == p.key for p in self.places.values())
        )

    def scheduled(self, group: dict[str, Any]) -> dict[str, Any]:
        """A parameter group with every scheduled hyperparameter at its value for the coming step."""
        return scheduled(self, group)

    def state_shapes(self, p: Tensor) -> dict[str, tuple[int, ...]]:
        """The names and shapes of the tensors kept for a parameter."""
        composition = self.composition_of(p)
        shapes: dict[str, tuple[int, ...]] = {"step": (), **{c.name: () for c in composition.counters}}
        for slot in composition.slots:
            shapes[slot.name] = tuple(p.shape if slot.buffer.shape is None else slot.buffer.shape(p.shape))
        return shapes

    # -- stepping -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. Gradients are read from ``p.grad`` and never changed.

        Args:
            closure: computes the loss and its gradient; optional unless the oracle needs one.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a gradient is sparse, a part does not support complex parameters, or the parameters hold the
                evaluation point (call ``opt.train()`` first). Nothing is changed.
            ValueError: a hyperparameter was moved out of its range. Nothing is changed.
            NonFiniteGradient: with ``on_nonfinite="raise"``. Nothing is changed.
        """
        if self.has_evaluation_point and not self.training:
            raise RuntimeError(
                f"{self.name}: the parameters hold the evaluation point; call opt.train() before opt.step()"
            )
        if torch.compiler.is_compiling():
            refuse_tracing(self.sentence.oracle)
            loss = None if closure is None else torch.enable_grad()(closure)()
            traced_step(self)
            return loss
        observation = self.sentence.oracle.observe(self, closure)
        run_step(self, observation)
        return observation.loss

    # -- two points ---------------------------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether the parameters hold the training point."""
        return all(group.get("train_mode", True) for group in self.param_groups)

    def train(self) -> None:
        """Put the training point into the parameters (nothing happens if they hold it, or if there is only one)."""
        self._to(training=True)

    def eval(self) -> None:
        """Put the point to evaluate into the parameters (nothing happens if they hold it, or if there is only one)."""
        self._to(training=False)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """The parameters hold the point to evaluate inside the ``with`` block, and the same as before after it.

        Example:
            >>> import torch, hasten
            >>> w = torch.ones(2, requires_grad=True)
            >>> opt = hasten.ScheduleFreeSGD([w], lr=0.1)
            >>> with opt.evaluating():
            ...     opt.training
            False
            >>> opt.training
            True
        """
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            if was_training:
                self.train()

    def _to(self, training: bool) -> None:
        if self.has_evaluation_point and self.training != training:
            switch(self, training)

    def warn_once(self, topic: str, message: str) -> None:
        """A warning that is given once per optimizer."""
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(message, UserWarning, stacklevel=3)

    # -- saving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As torch's; loads with ``torch.load(weights_only=True)`` and resumes bit for bit.

        Warns once if the parameters hold a training point that differs from the point to evaluate: a model saved now
        would be evaluated at the wrong one.
        """
        if (
            self.has_evaluation_point
            and self.training
            and any(group["step"] > 0 for group in self.param_groups)
        ):
            self.warn_once(
                "saving",
                f"{self.name}: saved in training mode. Resuming from this is exact, but a model saved beside it holds "
                "the training point y, not the point x to evaluate; save inside `with opt.evaluating():` for that",
            )
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; also accepts the state of a torch optimizer with the same tensors.

        The dtype of the state is kept: float32 averages of bfloat16 parameters stay float32.

        Raises:
            ValueError: groups, sizes, names or shapes do not fit; names the first that does not. Nothing is changed.
        """
        restore(self, state_dict)

    def __repr__(self) -> str:
        return str(describe(self))

    def __getstate__(self) -> dict[str, Any]:
        # Hooks stay behind, as torch's do; so does the `step` that torch's schedulers wrap around ours.
        hidden = ("_optimizer_", "_zero_grad_profile_name", "_warned_capturable", "step", "_opt_called")
        return {k: v for k, v in self.__dict__.items() if not k.startswith(hidden)} | {
            "plan": None,
            "module": None,
            "written": {},
        }


def _check_tuple(owner: str, key: str, value: Any, length: int) -> None:
    if not isinstance(value, tuple | list) or len(value) != length:
        raise ValueError(f"{owner}: {key} = {value!r} is not allowed; it must be {length} numbers")


def listed(params: Any) -> Any:
    """Parameters as a list, so that they can be looked at twice; what is no list is left for torch to refuse."""
    if isinstance(params, Iterable) and not isinstance(params, Tensor | dict | str):
        return list(params)
    return params
