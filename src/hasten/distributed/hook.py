"""Communication hooks of DistributedDataParallel that average gradients by an exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from hasten.distributed.agreement import agree, description
from hasten.distributed.exchange import Exchange, Parcel
from hasten.distributed.linear import Subspace
from hasten.sketches import Sketch
from hasten.sketches.layers import Shape, vectors
from hasten.wire import Communication, Wire, serve


class Hook:
    """Averages the gradients of a DistributedDataParallel model by an exchange.

    Gradients accumulated under ``model.no_sync()`` go out whole with the next synchronised ``backward``; call
    ``zero_grad`` between synchronised ones.

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
        self._index: dict[int, int] = {}

    def register(self, model: nn.Module) -> Any:
        """Attach to a DistributedDataParallel model; returns the hook.

        Raises:
            TypeError: the model is not a DistributedDataParallel.
            RuntimeError: the hook is attached already.
            Disagreement: a worker has another model, seed or exchange; names it. Raised on every worker.
        """
        if not isinstance(model, DistributedDataParallel):
            raise TypeError(
                f"{type(self).__name__}: model = {type(model).__name__} is not allowed; "
                "it must be a torch.nn.parallel.DistributedDataParallel"
            )
        if self.wire is not None:
            raise RuntimeError(f"{type(self).__name__}: attached already; make a hook for each model")
        wire = Wire(model.process_group)
        parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.exchange.prepare([p.shape for p in parameters])
        agree(wire, {"model": description(model), **self.exchange.facts})
        model.register_comm_hook(None, lambda state, bucket: self._average(bucket))  # torch reads these names
        self.parameters, self.wire = parameters, wire
        self._index = {id(p): i for i, p in enumerate(parameters)}
        serve(parameters, wire)
        return self

    def _average(self, bucket: Any) -> Future[Tensor]:
        assert self.wire is not None
        indices = [self._index[id(p)] for p in bucket.parameters()]
        parcel = Parcel(bucket.gradients(), indices, self.step)
        if bucket.is_last():
            self.step += 1
        return self.exchange.mean(parcel, self.wire).then(lambda done: (done.value(), bucket.buffer())[1])

    @property
    def communication(self) -> Communication:
        """What this worker sent and received so far."""
        return Communication() if self.wire is None else self.wire.communication

    def state_dict(self) -> dict[str, Any]:
        """The number of averagings, and this worker's own memory; load it on the same rank."""
        return {"step": self.step, "exchange": self.exchange.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.exchange.load_state_dict(state_dict["exchange"])
        self.step = int(state_dict["step"])


class SubspaceHook(Hook):
    """All-reduces Pᵀg, r floats instead of d, and lifts the mean: the gradients arrive as G = P Pᵀ · mean(g_i).

    Example:
        >>> from hasten.sketches import BalancedCountSketch
        >>> SubspaceHook(BalancedCountSketch(ratio=64), seed=1).exchange
        Subspace(BalancedCountSketch(rank=None, ratio=64), seed=1)
    """

    exchange: Subspace

    def __init__(
        self, sketch: Sketch | None = None, *, exact: Callable[[Shape], bool] = vectors, seed: int = 0
    ) -> None:
        super().__init__(Subspace(sketch, exact=exact, seed=seed))
