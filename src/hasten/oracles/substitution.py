"""A closure's loss as a function of the values of chosen tensors.

The user writes ``lambda: loss_fn(model(x), y)``; forward-mode differentiation needs a function of the parameters.
Nothing is rewritten and no parameter is touched: while the closure runs, every torch function that is handed one of
the chosen tensors is handed another value in its place.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hasten.oracles.attention import differentiable_attention


class Substitution(TorchFunctionMode):
    """Inside it, torch functions see `values` in place of `tensors`.

    Every way of reaching a tensor is covered: attributes of modules, captured variables, lists, tied parameters.

    Example:
        >>> w = torch.zeros(2)
        >>> with Substitution([w], [torch.ones(2)]):
        ...     total = w.sum()
        >>> total, w
        (tensor(2.), tensor([0., 0.]))
    """

    def __init__(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        super().__init__()
        self.values = {id(t): v for t, v in zip(tensors, values, strict=True)}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function with other arguments."""
        func = _REWRITTEN.get(func, func)
        return func(*self._replaced(args), **{k: self._replaced(v) for k, v in (kwargs or {}).items()})

    def _replaced(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return self.values.get(id(argument), argument)
        if type(argument) in (tuple, list):
            return type(argument)(self._replaced(member) for member in argument)
        return argument


def _mean_squared_error(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``mse_loss`` whose mean is taken outside."""
    asked = {name for name, value in kwargs.items() if value is not None} - {"reduction"}
    if args or asked or kwargs.get("reduction", "mean") != "mean":
        return F.mse_loss(input, target, *args, **kwargs)
    return F.mse_loss(input, target, reduction="none").mean()


# torch's mean fails ("ZeroTensors are immutable") where its gradient is differentiated forward and the target is fixed.
_REWRITTEN: dict[Any, Callable[..., Any]] = {F.mse_loss: _mean_squared_error}


class State:
    """What a forward pass changes besides its result: the random number generators and the module's buffers.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> start = State(model, [torch.device("cpu")])
        >>> _ = model(torch.randn(4, 2))
        >>> start.restore()
        >>> model.num_batches_tracked
        tensor(0)
    """

    def __init__(self, module: nn.Module | None, devices: Iterable[torch.device]) -> None:
        self._random = torch.get_rng_state()
        self._cuda = {d: torch.cuda.get_rng_state(d) for d in set(devices) if d.type == "cuda"}
        self._buffers = [(owner, name, b, b.detach().clone()) for owner, name, b in buffers_of(module)]

    def restore(self) -> None:
        """Put everything back."""
        torch.set_rng_state(self._random)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)
        for owner, name, buffer, value in self._buffers:
            with torch.no_grad():
                buffer.copy_(value)
            owner._buffers[name] = buffer


def buffers_of(module: nn.Module | None) -> list[tuple[nn.Module, str, Tensor]]:
    """Every buffer with its place; shared ones at each of their places."""
    members = () if module is None else module.modules()
    return [(m, name, b) for m in members for name, b in m._buffers.items() if b is not None]


class Loss:
    """The loss of a closure as a function of the values of `variables`.

    Args:
        closure: returns the loss.
        variables: the tensors it depends on.
        module: whose buffers the closure may change; they then change as in one ordinary forward pass.
        owner: who asks, for messages.
    """

    def __init__(
        self,
        closure: Callable[[], Any],
        variables: Sequence[Tensor],
        module: nn.Module | None = None,
        owner: str = "Loss",
    ) -> None:
        self.closure = closure
        self.variables = list(variables)
        self.module = module
        self.owner = owner

    def __call__(self, values: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the buffers after it; a pure function, as ``torch.func``'s transforms need it."""
        self._refuse_scripts()
        places = buffers_of(self.module)
        own = {id(buffer): buffer.clone() for _, _, buffer in places}
        try:
            substitution = Substitution(self.variables, values)
            substitution.values.update(own)
            with substitution:
                result = self.closure()
            found = [holder._buffers[name] for holder, name, _ in places]
        finally:
            for holder, name, buffer in places:
                holder._buffers[name] = buffer
        after = [
            own.get(id(b), b) if b is not None else own[id(p[2])] for b, p in zip(found, places, strict=True)
        ]
        return scalar(self.owner, result), after

    def _refuse_scripts(self) -> None:
        for name, member in () if self.module is None else self.module.named_modules():
            if isinstance(member, torch.jit.ScriptModule):
                raise NotImplementedError(
                    f"{self.owner}: module {name!r} is a script, whose parameters cannot be replaced; use the module "
                    "itself, or chunk=1 in forward mode"
                )

    def write(self, after: Sequence[Tensor]) -> None:
        """Keep the buffers of an evaluation."""
        for (holder, name, buffer), value in zip(buffers_of(self.module), after, strict=True):
            if buffer.shape == value.shape:
                buffer.detach().copy_(value)
            else:
                holder._buffers[name] = value.detach().clone()


def scalar(owner: str, loss: Any) -> Tensor:
    """The loss as a 0-d tensor.

    Raises:
        TypeError: it is not a real floating-point tensor.
        ValueError: it has more than one entry.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"{owner}: the closure returned {type(loss).__name__}; it must return the loss itself, a tensor of one "
            "entry (not loss.item())"
        )
    if not loss.is_floating_point():
        raise TypeError(
            f"{owner}: the closure returned a loss of dtype {loss.dtype}; it must be real and floating"
        )
    if loss.numel() != 1:
        raise ValueError(
            f"{owner}: the closure returned a loss of shape {tuple(loss.shape)}; it must have one entry "
            "(take its mean or sum)"
        )
    return loss.reshape(())


@contextlib.contextmanager
def differentiable_kernels(module: nn.Module | None) -> Iterator[None]:
    """Kernels that have forward derivatives in place of faster ones that have none.

    Attention by the math backend in blocks, transformer layers without their fused inference path, cuDNN's and
    oneDNN's recurrent layers by torch's own, and compiled modules run eagerly.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    recurrent = module is not None and any(isinstance(m, nn.RNNBase) for m in module.modules())
    with contextlib.ExitStack() as stack:
        stack.enter_context(differentiable_attention())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        if recurrent:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        if recurrent and torch.cuda.is_available():
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if (
            "torch._dynamo" in sys.modules
        ):  # otherwise nothing can be compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
