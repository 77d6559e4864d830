"""Communication hooks of DistributedDataParallel that average gradients by an exchange."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from hasten.distributed.agreement import agree, description
from hasten.distributed.exchange import Exchange, Parcel
from hasten.distributed.linear import Subspace
from hasten.distributed.parcels import Parcels, packed
from hasten.oracles.received import Arrival, Received
from hasten.sketches import Sketch
from hasten.sketches.layers import Shape, vectors
from hasten.wire import Communication, Wire, serve, wait


class Hook:
    """Averages the gradients of a DistributedDataParallel model by an exchange.

    Gradients accumulated under ``model.no_sync()`` go out whole with the next synchronised ``backward``; call
    ``zero_grad`` between synchronised ones. Parameters travel together as they follow each other in the model, up to
    DistributedDataParallel's ``bucket_cap_mb``, and nothing depends on how it fills its buckets: a run is the same to
    the bit when it is repeated, or resumed on as many workers.

    Args:
        exchange: how the mean is formed.

    Example:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from hasten.distributed import AllReduce
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> model = DistributedDataParallel(nn.Linear(3, 1))
        >>> hook = Hook(AllReduce()).register(model)
        >>> model(torch.ones(2, 3)).sum().backward()
        >>> hook.step, hook.communication.total.payload
        (1, 16)
        >>> dist.destroy_process_group()
    """

    def __init__(self, exchange: Exchange) -> None:
        if not isinstance(exchange, Exchange):
            raise TypeError(f"Hook: exchange = {exchange!r} is not allowed; it must be an Exchange")
        self.exchange = exchange
        self.step = 0
        """How many times the gradients were averaged."""
        self.parameters: list[Tensor] = []
        self.wire: Wire | None = None
        self._model: weakref.ref[DistributedDataParallel] | None = (
            None  # torch's reducer keeps this hook alive
        )
        self._index: dict[int, int] = {}
        self._agreed = False

    def register(self, model: nn.Module) -> Any:
        """Attach to a DistributedDataParallel model; returns the hook.

        Raises:
            TypeError: the model is not a DistributedDataParallel, or a parameter is complex or has sparse gradients.
            RuntimeError: the hook is attached already, or the model has another.
            Disagreement: a worker has another model, seed or exchange; names it. Raised on every worker.
        """
        if not isinstance(model, DistributedDataParallel):
            raise TypeError(
                f"{type(self).__name__}: model = {type(model).__name__} is not allowed; "
                "it must be a torch.nn.parallel.DistributedDataParallel"
            )
        if self.wire is not None:
            raise RuntimeError(f"{type(self).__name__}: attached already; make a hook for each model")
        if getattr(model, "mixed_precision", None) is not None:
            raise RuntimeError(
                f"{type(self).__name__}: DistributedDataParallel(mixed_precision=...) averages by a hook of its "
                "own, and torch allows one; use torch.autocast, or a model in bfloat16"
            )
        if getattr(model, "_comm_hooks", None):
            raise RuntimeError(
                f"{type(self).__name__}: the model has a communication hook already, and torch allows one"
            )
        named = _averaged(model)
        _check(type(self).__name__, model, named)
        parameters: list[Tensor] = list(named.values())
        wire = Wire(model.process_group)
        self.exchange.prepare([p.shape for p in parameters])
        agree(wire, {"model": description(model), **self.exchange.facts})
        model.register_comm_hook(None, lambda state, bucket: self._average(bucket))  # torch reads these names
        self.parameters, self.wire, self._model = parameters, wire, weakref.ref(model)
        self._index = {id(p): i for i, p in enumerate(parameters)}
        self._parcels = Parcels(
            packed(parameters, model.bucket_bytes_cap), [p.device for p in parameters], self._send
        )
        serve(parameters, wire)
        return self

    def _average(self, bucket: Any) -> Future[Tensor]:
        assert self.wire is not None
        if not self._agreed:
            agree(self.wire, {"number of averagings so far": self.step})
            self._agreed = True
        members = bucket.parameters()
        gradients = [_laid_out(g, p) for g, p in zip(bucket.gradients(), members, strict=True)]
        done, last = self._parcels.add(gradients, [self._index[id(p)] for p in members])
        if last:  # in a static graph's first backward no bucket calls itself the last
            self.step += 1
        return done.then(lambda all_done: (all_done.value(), bucket.buffer())[1])

    def _send(self, gradients: Sequence[Tensor], indices: Sequence[int]) -> Future[None]:
        assert self.wire is not None
        return self.exchange.mean(Parcel(gradients, indices, self.step), self.wire)

    @property
    def communication(self) -> Communication:
        """What this worker sent and received so far."""
        return Communication() if self.wire is None else self.wire.communication

    def state_dict(self) -> dict[str, Any]:
        """The number of averagings, and this worker's own memory; load it on the same rank."""
        return {"step": self.step, "exchange": self.exchange.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, on all workers alike; the next ``backward`` checks that they agree.

        Raises:
            ValueError: it is not a hook's, or another exchange's; nothing is changed.
        """
        if set(state_dict) != {"step", "exchange"}:
            raise ValueError(
                f"{type(self).__name__}: a state dict with the keys {sorted(state_dict)} is not allowed; "
                "it must be what state_dict() returned"
            )
        step = int(state_dict["step"])
        self.exchange.load_state_dict(state_dict["exchange"])
        self.step, self._agreed = step, False

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: a hook belongs to the model and the process group of its process and cannot be "
            "copied or pickled; save hook.state_dict() and register a new hook"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.exchange!r})"


def _averaged(model: DistributedDataParallel) -> dict[str, Tensor]:
    """The parameters, by name, that DistributedDataParallel brings to its hook."""
    ignored = model.parameters_to_ignore
    return {n: p for n, p in model.module.named_parameters() if p.requires_grad and n not in ignored}


def _check(owner: str, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Refuse what torch does not hand to a hook as it is."""
    for name, p in parameters.items():
        if p.is_complex():  # of its gradient, torch shows the first half
            raise TypeError(
                f"{owner}: parameter {name!r} is complex, which communication hooks do not support"
            )
    for name, module in model.named_modules():
        sparse = isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
        if sparse and module.weight.requires_grad:
            raise TypeError(
                f"{owner}: {name.removeprefix('module.')!r} has sparse gradients, which are not supported; "
                "make it with sparse=False"
            )


def _laid_out(g: Tensor, p: Tensor) -> Tensor:
    """The gradient with its entries in their places: a bucket holds them in the parameter's layout of memory."""
    if p.is_contiguous() or torch.empty_like(p).stride() != p.stride():
        return g
    return g.as_strided(p.shape, p.stride())


class SubspaceHook(Hook):
    """All-reduces Pᵀg, r floats instead of d, and lifts the mean: the gradients arrive as G = P Pᵀ · mean(g_i).

    Any optimizer can use these gradients as they are. `SubspaceNesterov` and `SubspaceGradientDescent` are told that
    they are sketched already by ``oracle=hook.oracle``, and are then what one process would make of the averaged
    gradient with the same subspaces.

    Args:
        sketch: the family of P; balanced CountSketch with d/r = 64 unless told otherwise.
        exact: which shapes are sent whole, if the sketch is not ``PerLayer``; vectors and scalars by default.
        seed: of the subspaces; the same on every worker.

    Example:
        >>> import hasten, torch
        >>> import torch.distributed as dist
        >>> from hasten.sketches import BalancedCountSketch
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> model = DistributedDataParallel(nn.Linear(64, 1))
        >>> hook = SubspaceHook(BalancedCountSketch(ratio=8), seed=1).register(model)
        >>> opt = hasten.SubspaceNesterov(model, oracle=hook.oracle, smoothness=8.0)
        >>> loss = opt.step(lambda: model(torch.ones(2, 64)).square().mean())
        >>> opt.oracle_calls, opt.communication.parts["gradients"].payload
        (9, 36)
        >>> dist.destroy_process_group()
    """

    exchange: Subspace

    def __init__(
        self, sketch: Sketch | None = None, *, exact: Callable[[Shape], bool] = vectors, seed: int = 0
    ) -> None:
        super().__init__(Subspace(sketch, exact=exact, seed=seed))

    @property
    def oracle(self) -> Received:
        """What arrived, for optimizers of r numbers: ``SubspaceNesterov(model, oracle=hook.oracle)``.

        Raises:
            RuntimeError: the hook is not registered with a model yet.
        """
        if self.wire is None:
            raise RuntimeError(f"{type(self).__name__}: oracle is known after register(model)")
        return Received(sketch=self.exchange.sketch, network=self)

    # -- what the oracle asks ---------------------------------------------------------------------------------------

    def arrival(self, p: Tensor) -> Arrival | None:
        """What arrived last of a parameter's gradient; None for one without entries, or before the first arrival.

        Raises:
            KeyError: it is not a parameter of the model.
        """
        return self.exchange.arrivals.get(self._index[id(p)])

    def mean(self, number: float, part: str) -> float:
        """The mean over all workers, each of which calls this."""
        assert self.wire is not None
        own = torch.tensor([number / self.wire.world], dtype=torch.float64, device=self.parameters[0].device)
        return float(wait(self.wire.sum(own, part)))

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Inside it the model is this worker's alone: nothing is sent, whatever runs forward or backward."""
        model = None if self._model is None else self._model()
        assert model is not None
        synchronised = model.require_forward_param_sync
        model.require_forward_param_sync = False  # no_sync alone would still broadcast the buffers
        try:
            with model.no_sync():
                yield
        finally:
            model.require_forward_param_sync = synchronised
