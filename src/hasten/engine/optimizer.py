"""`Optimizer`: runs a sentence of parts over parameter groups, as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from hasten.engine.checkpoint import restore
from hasten.engine.composition import Sentence
from hasten.engine.description import describe
from hasten.engine.options import read_options
from hasten.engine.parameters import ParameterGroups
from hasten.engine.plan import Plan
from hasten.engine.routing import matrix_groups
from hasten.engine.scheduling import scheduled
from hasten.engine.stepping import run_step
from hasten.engine.traced import refuse_tracing, traced_step
from hasten.engine.two_points import evaluation, switch, watch
from hasten.iterates.plain import Plain
from hasten.oracles.backpropagation import Backpropagation
from hasten.transforms.step import WeightDecay
from hasten.wire import Communication, communication
from hasten.words import Iterate, Oracle, Transform, Value

_ARTICLES = {Iterate: "an iterate", Oracle: "an oracle", Transform: "a transform"}


class Optimizer(ParameterGroups):
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
        vectors: a sentence of its own for parameters with fewer than two dimensions, and for those in groups with
            ``matrices=False``. Where the transforms work on matrices, parameters are put into two groups, one for each
            sentence, with the defaults of that sentence: see :func:`~hasten.matrix_groups`.
        roles: further sentences by name, each for the groups that have this name under the key ``"role"``.
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

    def __init__(
        self,
        params: Any,
        *transforms: Transform,
        iterate: Iterate | None = None,
        oracle: Oracle | None = None,
        lr: Value | None = None,
        weight_decay: Value | None = None,
        vectors: Sentence | None = None,
        roles: Mapping[str, Sentence] | None = None,
        **engine_options: Any,
    ) -> None:
        signature = inspect.signature(type(self).__init__).parameters.values()
        named = {p.name for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        options = read_options(self.name, engine_options, named - {"self", "params"})
        sentence = self._sentence(transforms, iterate, oracle, lr, weight_decay)
        sentences = [sentence] if vectors is None else [sentence, vectors]
        module = params if isinstance(params, nn.Module) else getattr(params, "module", None)
        params = params if isinstance(params, nn.Module) else listed(params)
        whole = any(part.grain == "matrix" for part in sentence.parts)
        if whole and vectors is not None and isinstance(params, nn.Module | list):
            params = matrix_groups(params)
        super().__init__(params, sentences, options, roles)
        self.module = module
        self.plan: Plan | None = None
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

    @property
    def communication(self) -> Communication:
        """What this worker sent and received for these parameters, by part; prints as a table."""
        return communication(p for group in self.param_groups for p in group["params"])

    def scheduled(self, group: dict[str, Any]) -> dict[str, Any]:
        """A parameter group with every scheduled hyperparameter at its value for the coming step."""
        return scheduled(self, group)

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
        self.plan = run_step(self, observation, self.plan)
        return observation.loss

    # -- two points ---------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Put the training point into the parameters (nothing happens if they hold it, or if there is only one)."""
        self._to(training=True)

    def eval(self) -> None:
        """Put the point to evaluate into the parameters (nothing happens if they hold it, or if there is only one)."""
        self._to(training=False)

    def evaluating(self) -> AbstractContextManager[None]:
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
        return evaluation(self)

    def _to(self, training: bool) -> None:
        if self.has_evaluation_point and self.training != training:
            switch(self, training)

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


def listed(params: Any) -> Any:
    """Parameters as a list, so that they can be looked at twice; what is no list is left for torch to refuse."""
    if isinstance(params, Iterable) and not isinstance(params, Tensor | dict | str):
        return list(params)
    return params
