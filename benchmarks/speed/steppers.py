"""How a contender's step is called, and how its state is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class Stepper(Protocol):
    """One optimizer over given parameters and gradients."""

    def step(self) -> None:
        """Advance all parameters by one step and return when it is done."""

    def state_bytes(self) -> int:
        """Bytes held between steps, parameters and gradients excluded."""

    def values(self) -> Tensor:
        """The first parameter as it is now."""


class TorchStepper:
    """Anything that follows ``torch.optim.Optimizer``."""

    def __init__(self, optimizer: torch.optim.Optimizer, step: Callable[[], object] | None = None) -> None:
        self._optimizer, self._step = optimizer, step or optimizer.step

    def step(self) -> None:
        """Step, ignoring the closure's value."""
        self._step()

    def values(self) -> Tensor:
        """The first parameter."""
        parameter: Tensor = self._optimizer.param_groups[0]["params"][0]
        return parameter.detach()

    def state_bytes(self) -> int:
        """Bytes of the distinct storages in ``optimizer.state``."""
        parameters = {
            p.untyped_storage().data_ptr() for g in self._optimizer.param_groups for p in g["params"]
        }
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in tensors_in(self._optimizer.state)
        }
        return sum(size for pointer, size in storages.items() if pointer not in parameters)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor inside nested dictionaries and sequences."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tensors_in(value)


class InPlaceMultiply:
    """The memory limit: read and write every parameter once, two streams."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._parameters = [p.detach() for p in parameters]

    def step(self) -> None:
        """Multiply in place by almost one."""
        for p in self._parameters:
            p.mul_(1.0000001)

    def values(self) -> Tensor:
        """The first parameter."""
        return self._parameters[0]

    def state_bytes(self) -> int:
        """None."""
        return 0


class OptaxStepper:
    """An optax transformation, jitted with parameters and state donated."""

    def __init__(self, parameters: list[Tensor], make: Callable[[Any], Any]) -> None:
        import jax
        import optax

        transformation = make(optax)
        self._block = jax.block_until_ready
        self._parameters = [jax.numpy.array(p.detach().numpy()) for p in parameters]
        self._gradients = [jax.numpy.array(p.grad.numpy()) for p in parameters if p.grad is not None]
        self._state = transformation.init(self._parameters)
        self._leaves = jax.tree_util.tree_leaves

        def update(values: Any, state: Any, gradients: Any) -> Any:
            updates, state = transformation.update(gradients, state, values)
            return optax.apply_updates(values, updates), state

        self._update = jax.jit(update, donate_argnums=(0, 1))

    def step(self) -> None:
        """One jitted update, waited for."""
        self._parameters, self._state = self._block(
            self._update(self._parameters, self._state, self._gradients)
        )

    def values(self) -> Tensor:
        """A copy of the first parameter: the original is donated at the next step."""
        return torch.tensor(self._parameters[0].tolist())

    def state_bytes(self) -> int:
        """Bytes of the state's leaves."""
        return sum(leaf.nbytes for leaf in self._leaves(self._state))
