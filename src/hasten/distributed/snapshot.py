"""Model and optimizer as state dicts that fit together: whole, or sharded as they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hasten.sharding import is_distributed


@dataclass(frozen=True)
class Snapshot:
    """Model and optimizer as they are.

    Attributes:
        model: without DistributedDataParallel and torch.compile around it: how it is run is not part of it.
        optimizer: any.
        kind: whether the workers' state is "shared" (the same), each one's "own", or "sharded" among them.
        parts: the state dicts of both; their tensors are those in use.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 1)
        >>> found = Snapshot.of(net, torch.optim.SGD(net.parameters(), lr=0.1))
        >>> found.kind, found.description
        ('shared', {'weight': '(1, 2) torch.float32', 'bias': '(1,) torch.float32'})
    """

    model: nn.Module
    optimizer: Any
    kind: str
    parts: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, optimizer: Any, *, sharded: bool = False) -> Snapshot:
        """What there is to save; in the form it has for a sharded model also where that is asked for."""
        own = getattr(optimizer, "differ_by_rank", False)
        if not own and (sharded or any(is_distributed(p) for p in model.parameters())):
            from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

            optimizer_state = _quietly(lambda: get_optimizer_state_dict(model, optimizer))
            parts = {"model": get_model_state_dict(model), "optimizer": optimizer_state}
            return cls(model, optimizer, "sharded", parts)
        plain = _unwrapped(model)
        parts = {"model": plain.state_dict(), "optimizer": _quietly(optimizer.state_dict)}
        return cls(plain, optimizer, "own" if own else "shared", parts)

    @property
    def description(self) -> dict[str, str]:
        """The shapes and dtypes of the model's tensors, by name."""
        return {name: _described(value) for name, value in self.parts["model"].items()}

    @property
    def optimizer_description(self) -> dict[str, str]:
        """The same of the optimizer's, if sharded: torch.distributed.checkpoint reads what is asked of it, and never
        says that there is more. Otherwise the optimizer's own checks suffice."""
        if self.kind != "sharded":
            return {}
        states = self.parts["optimizer"]["state"]
        return {
            f"{name} of {p}": _described(value)
            for p, state in states.items()
            for name, value in state.items()
        }

    @property
    def buffers(self) -> dict[str, Any]:
        """What the model's state dict has besides parameters: batch norm's averages differ from worker to worker."""
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return {name: value for name, value in self.parts["model"].items() if name not in parameters}

    def put_optimizer(self, state: dict[str, Any]) -> None:
        """Load what `parts` had of the optimizer."""
        if self.kind == "sharded":
            from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

            set_optimizer_state_dict(self.model, self.optimizer, optim_state_dict=state)
        else:
            self.optimizer.load_state_dict(state)

    def put_model(self, state: dict[str, Any]) -> None:
        """Load what `parts` had of the model."""
        if self.kind == "sharded":
            from torch.distributed.checkpoint.state_dict import set_model_state_dict

            set_model_state_dict(self.model, state)
        else:
            self.model.load_state_dict(state)


def _described(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _unwrapped(model: nn.Module) -> nn.Module:
    while isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        inner: Any = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
        model = inner
    return model


def _quietly(state: Callable[[], Any]) -> Any:
    """Without the warning that the training point is saved: that is what going on with the training needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return state()
