"""Local steps: workers train by themselves for a while, then exchange how far they came (the form of DiLoCo)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from hasten.distributed.agreement import agree, optimizer_description
from hasten.distributed.anchor import Anchor, Outer, checksum, load_together, mean_of_workers, nesterov
from hasten.distributed.exchange import Exchange, Parcel
from hasten.distributed.inner import carry, renew, switches
from hasten.distributed.linear import AllReduce, Subspace
from hasten.distributed.parcels import packed
from hasten.engine.two_points import evaluation
from hasten.sketches import Sketch
from hasten.wire import Communication, Wire, serve, wait

PARCEL = 2**26
"""Bytes that are exchanged together: enough to fill a link, little beside a large model."""
STATE = ("inner", "anchor", "exchange", "local", "rounds", "steps_in_round", "rejected_rounds")


class LocalSteps(torch.optim.Optimizer):
    """Every worker takes H steps of its own; then all exchange how far they came, and an outer optimizer steps on it.

    A round, from the anchor θ that all workers share, on worker i of W::

        θ_i ← θ,  then H inner steps on its own gradients
        Δ   = (1/W) Σ_i (θ − θ_i)                 what is exchanged: once a round, not once a step
        θ   ← outer step at θ with the gradient Δ

    With plain SGD(lr=1) outside this is local SGD (θ becomes the mean of the workers' parameters), and with H = 1 and
    SGD inside, synchronous SGD. The defaults are the paper's: H = 500, and outside Nesterov's momentum of 0.9 with
    lr 0.7; inside it has AdamW.

    Use it as any optimizer, on a model that is *not* wrapped in DistributedDataParallel; every worker must take equally
    many steps (so no ``GradScaler``, which skips those of one worker alone). Learning-rate schedulers act on the inner
    optimizer; `outer` has its own `param_groups`. Before the first step, workers with other parameters than rank 0
    receive its, as under DistributedDataParallel.

    The point to evaluate is the anchor, the same on all workers: the parameters hold it inside ``with
    opt.evaluating()``, and after each exchange. Call :meth:`sync` at the end of training, for steps after the last one.

    The inner optimizer's averages stay with their worker. If it has a point to evaluate (Schedule-Free's average), that
    is the point from which the displacement is taken and which the anchor replaces; its other points, Schedule-Free's
    z, move along by the same distance. Of optimizers from elsewhere only the parameters move.

    If a displacement is not finite on any worker, which 4 bytes tell all of them before each exchange, they reject the
    round, go back to the anchor, and count it in `rejected_rounds`. A worker whose inner averages are not finite then
    starts those anew.

    What is compressed arrives noisy (a sketch: E‖PPᵀΔ‖² = ν‖Δ‖², ν ≈ d/r) or late (error feedback), and an outer
    momentum of 0.9 amplifies both, so with an exchange that compresses the default outside is SGD(lr=1). On a small
    network (scikit-learn's digits, 600 steps of AdamW, H = 10 and 50) with d/r = 16 that ended at losses below 0.07, as
    the exact exchange did, and Nesterov's above 0.5; with d/r = 64 a sketch needed lr = 1/4.
    :class:`~hasten.SubspaceNesterov` has no place outside: it would sketch a second time what arrives, and that is not
    the gradient of a fixed function either.

    Args:
        inner: an optimizer over this worker's parameters.
        outer: makes the outer optimizer from the anchor, a list of tensors in the parameters' dtype, but at least
            float32; unless given ``Nesterov(lr=0.7, momentum=0.9)``, or ``SGD(lr=1.0)`` if the exchange compresses.
        every: H.
        exchange: how the mean is formed: exactly unless given. A :class:`~hasten.sketches.Sketch` means
            ``Subspace(sketch)``.
        buffers: floating tensors to average exactly at each exchange, such as ``model.buffers()``: batch norm's running
            averages differ from worker to worker otherwise. Others among them are left alone.
        group: a process group; None for the default one.

    Raises:
        TypeError: an argument is of another kind, or a parameter is not a plain real tensor.
        ValueError: `every` is not a positive integer.
        Disagreement: a worker has other parameters, another outer optimizer, H or exchange; names it. Raised on every
            worker, here, or in the first step if it was resumed from another state.

    Example:
        >>> import hasten
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> w = torch.ones(3, requires_grad=True)
        >>> opt = LocalSteps(hasten.AdamW([w], lr=0.1), every=4)
        >>> for _ in range(10):
        ...     opt.zero_grad()
        ...     (w**2).sum().backward()
        ...     _ = opt.step()
        >>> opt.rounds, opt.communication.parts["displacements"].payload
        (2, 24)
        >>> opt.sync()
        >>> opt.rounds
        3
        >>> dist.destroy_process_group()
    """

    differ_by_rank: ClassVar[bool] = True
    """Workers' parameters and states differ between exchanges, so each saves its own."""
    source: ClassVar[str] = (
        "Douillard et al. 2023, DiLoCo, arXiv:2311.08105; local SGD: Stich 2019, arXiv:1805.09767"
    )

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        outer: Outer | None = None,
        every: int = 500,
        exchange: Exchange | Sketch | None = None,
        *,
        buffers: Iterable[Tensor] = (),
        group: Any = None,
    ) -> None:
        buffers = list(buffers)
        _check(inner, every, exchange, buffers)
        self.inner = inner
        self.every = every
        everything = [p for g in inner.param_groups for p in g["params"]]
        self.parameters = [p for p in everything if p.requires_grad]
        self._frozen = [p for p in everything if not p.requires_grad]
        self.buffers = [b for b in buffers if b.is_floating_point()]
        exchange = AllReduce() if exchange is None else exchange
        self.exchange = Subspace(exchange) if isinstance(exchange, Sketch) else exchange
        if outer is None:
            outer = nesterov if isinstance(self.exchange, AllReduce) else mean_of_workers
        try:
            self.anchor = Anchor(self.parameters, outer)
        except TypeError as error:
            raise TypeError(f"LocalSteps: {error}") from error
        self.rounds = 0
        """How many exchanges were made, rejected ones included."""
        self.steps_in_round = 0
        """Inner steps since the last exchange."""
        self.rejected_rounds = 0
        """Exchanges whose mean was not finite."""
        self._local: list[Tensor] | None = None
        """θ_i, while the parameters hold the anchor for evaluation."""
        self._met = self._resumed = False
        self.wire = Wire(group)
        self.exchange.prepare([p.shape for p in self.parameters])
        agree(self.wire, self.facts)
        super().__init__([{"params": g["params"]} for g in inner.param_groups], {})
        self._adopt()
        serve(self.parameters, self.wire)

    def _adopt(self) -> None:
        """Show the inner optimizer's groups and state as one's own: schedulers and users look there."""
        inner = self.inner
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults

    @property
    def outer(self) -> torch.optim.Optimizer:
        """The optimizer that moves the anchor."""
        return self.anchor.outer

    @property
    def facts(self) -> dict[str, Any]:
        """What must be equal on all workers, by a name that users understand."""
        params = [
            f"{name}{tuple(p.shape)} {p.dtype}{'' if p.requires_grad else ' frozen'}"
            for g in self.inner.param_groups
            for name, p in zip(g.get("param_names") or [""] * len(g["params"]), g["params"], strict=True)
        ]
        return {
            "parameters": "\n".join(params),
            "buffers": "\n".join(str(tuple(b.shape)) for b in self.buffers),
            "number of local steps": self.every,
            "outer optimizer": optimizer_description(self.outer),
            **self.exchange.facts,
        }

    @property
    def communication(self) -> Communication:
        """What this worker sent and received so far: displacements, buffers, and parameters at the start."""
        return self.wire.communication

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Not supported once made: give the inner optimizer all groups first.

        Raises:
            RuntimeError: always, once made.
        """
        if (
            self.__dict__.get("param_groups") is self.inner.param_groups
        ):  # not while torch's constructor calls
            raise RuntimeError(
                "LocalSteps: a parameter group cannot be added; add it to the inner optimizer before LocalSteps is made"
            )
        super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The inner optimizer's."""
        self.inner.zero_grad(set_to_none)

    # -- rounds -------------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One inner step, and an exchange after every H-th.

        Args:
            closure: as the inner optimizer takes it.

        Returns:
            What the inner optimizer's step returns.

        Raises:
            RuntimeError: the parameters hold the anchor for evaluation, or one was frozen once. Nothing is changed.
            WorkerLost: another worker is gone.
        """
        self._require_training("step")
        if any(p.requires_grad for p in self._frozen):
            raise RuntimeError(
                "LocalSteps: a parameter that was frozen when this was made is no more; make a new one"
            )
        self._meet()
        loss = self.inner.step(closure)
        self.steps_in_round += 1
        if self.steps_in_round >= self.every:
            self.sync()
        return loss

    @torch.no_grad()
    def sync(self) -> None:
        """Exchange now, on all workers alike; nothing happens if no step was taken since the last exchange."""
        self._require_training("sync")
        self._meet()
        if not self.steps_in_round:
            return
        to_evaluation_point, to_training_point = switches(self.inner)
        to_evaluation_point()
        try:
            displacements = self.anchor.displacements(self.parameters)
            accepted = self._all_finite(displacements)
            if accepted:
                averages = self._exchange(displacements)
                accepted = self.anchor.step(displacements)
            self._return()
            if accepted:
                self._keep(averages)
            else:
                self.rejected_rounds += 1
                renew(self.inner, self.parameters)
            self.rounds += 1
            self.steps_in_round = 0
        finally:
            to_training_point()

    def _all_finite(self, displacements: Sequence[Tensor]) -> bool:
        """Whether they are, on all workers; found out first, so that no exchange remembers what was not used."""
        spoilt = not all(bool(d.isfinite().all()) for d in displacements)
        where = displacements[0].device if displacements else None
        return not wait(self.wire.sum(torch.tensor([float(spoilt)], device=where), "verdict")).item()

    def _exchange(self, displacements: Sequence[Tensor]) -> list[Tensor]:
        """Displacements become their mean; returns that of the buffers."""
        averages = [b.detach().clone() for b in self.buffers]
        started = [self.exchange.mean(p, self.wire) for p in self._parcels(displacements, "displacements")]
        started += [AllReduce().mean(p, self.wire) for p in self._parcels(averages, "buffers")]
        for future in started:
            wait(future)
        return averages

    def _keep(self, averages: Sequence[Tensor]) -> None:
        for b, average in zip(self.buffers, averages, strict=True):
            if bool(average.isfinite().all()):
                b.copy_(average)

    def _parcels(self, tensors: Sequence[Tensor], part: str) -> Iterator[Parcel]:
        for members in packed(tensors, PARCEL):
            yield Parcel([tensors[i] for i in members], members, self.rounds, part)

    def _return(self) -> None:
        """θ_i ← θ; the inner optimizer's other points by the same distance."""
        for p, way in zip(self.parameters, self.anchor.displacements(self.parameters), strict=True):
            carry(self.inner, p, way)
        self.anchor.place(self.parameters)

    @torch.no_grad()
    def _meet(self) -> None:
        """Before the first step of a run: the same place in the run, and the same anchor, on all workers."""
        if self._met:
            return
        agree(
            self.wire, {"number of rounds": self.rounds, "number of steps in the round": self.steps_in_round}
        )
        if self._resumed:
            agree(self.wire, {"anchor (its checksum)": checksum(self.anchor.point)})
        else:
            if len(set(self.wire.objects(checksum(self.parameters)))) > 1:
                for p in self.parameters:
                    sent = p.detach().clone() if self.wire.rank == 0 else torch.zeros_like(p)
                    p.copy_(wait(self.wire.sum(sent, "start")))
            self.anchor.move(self.parameters)  # which were received, or loaded since
        self._met = True

    # -- two points ---------------------------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether the parameters are this worker's own, not the anchor put there for evaluation."""
        return self._local is None

    @torch.no_grad()
    def eval(self) -> None:
        """Put the anchor into the parameters (nothing happens if they hold it). Sends nothing."""
        if self._local is None:
            self._local = [p.detach().clone() for p in self.parameters]
            switches(self.inner)[0]()
            if self._met or self._resumed:  # before the first step, the parameters are the anchor to be
                self.anchor.place(self.parameters)

    @torch.no_grad()
    def train(self) -> None:
        """Put this worker's own parameters back (nothing happens if they are there)."""
        if self._local is not None:
            switches(self.inner)[1]()
            for p, local in zip(self.parameters, self._local, strict=True):
                p.copy_(local)  # to the bit, which the inner optimizer's way there and back is not
            self._local = None

    def evaluating(self) -> AbstractContextManager[None]:
        """The parameters hold the anchor inside the ``with`` block, and the same as before after it."""
        return evaluation(self)

    def _require_training(self, method: str) -> None:
        if not self.training:
            raise RuntimeError(
                f"LocalSteps: the parameters hold the anchor; call opt.train() before opt.{method}()"
            )

    # -- saving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters, as it is on this worker: load it on the same rank to go on bit for bit.

        In the middle of a round the parameters, too, are this worker's own: save them on every rank. After an exchange
        (``steps_in_round == 0``) only the inner optimizer's averages, and the exchange's memory, differ from rank to
        rank.
        """
        values: dict[str, Any] = {
            name: getattr(self, name).state_dict() for name in ("inner", "anchor", "exchange")
        }
        counts = {name: getattr(self, name) for name in ("rounds", "steps_in_round", "rejected_rounds")}
        return {**values, **counts, "local": self._local}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned. To be called by all workers or none, before their next step.

        Raises:
            ValueError: it is not of this class, these parameters or these optimizers. Nothing is changed.
        """
        for key in STATE:
            if key not in state_dict:
                raise ValueError(f"LocalSteps: the state dict has no {key!r}; it is not of LocalSteps")
        local, counts = state_dict["local"], [int(state_dict[name]) for name in STATE[-3:]]
        if local is not None and [t.shape for t in local] != [p.shape for p in self.parameters]:
            raise ValueError("LocalSteps: 'local' in the state dict is not of these parameters")
        try:
            load_together(
                [(getattr(self, name), state_dict[name]) for name in ("anchor", "exchange", "inner")]
            )
        finally:
            self._adopt()
        self._local = local and [t.to(p, copy=True) for t, p in zip(local, self.parameters, strict=True)]
        self.rounds, self.steps_in_round, self.rejected_rounds = counts
        self._met, self._resumed = False, True

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "LocalSteps: it has a process group and cannot be copied or pickled; save opt.state_dict()"
        )

    def __repr__(self) -> str:
        return (
            f"LocalSteps({type(self.inner).__name__}, {type(self.outer).__name__}, every={self.every}, "
            f"exchange={self.exchange!r})"
        )


def _check(inner: Any, every: Any, exchange: Any, buffers: Sequence[Any]) -> None:
    if not isinstance(inner, torch.optim.Optimizer):
        raise TypeError(f"LocalSteps: inner = {inner!r} is not allowed; it must be an optimizer")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"LocalSteps: every = {every!r} is not allowed; it must be a positive integer")
    if not isinstance(exchange, Exchange | Sketch | None):
        raise TypeError(
            f"LocalSteps: exchange = {exchange!r} is not allowed; it must be an Exchange, a Sketch or None"
        )
    for b in buffers:
        if not isinstance(b, Tensor):
            raise TypeError(
                f"LocalSteps: buffers with a {type(b).__name__} is not allowed; it must be tensors"
            )
