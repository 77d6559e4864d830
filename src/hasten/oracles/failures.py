"""Why a closure could not be differentiated, said in the user's terms."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from types import FrameType

import torch
from torch import nn

_OPERATION = re.compile(
    r"forward AD with (\S+) that does not support|derivative for '?(\S+?)'? is not implemented"
)


@contextlib.contextmanager
def explaining(owner: str, module: nn.Module | None) -> Iterator[None]:
    """Errors of differentiation inside it name what the user can change; all others pass."""
    try:
        yield
    except Exception as error:
        named = _explained(owner, error, module)
        if named is error:
            raise
        raise named from error


def _explained(owner: str, error: Exception, module: nn.Module | None) -> Exception:
    frames = list(_frames(error))
    message = str(error)
    if any(_is_backward(frame) for frame in frames):
        return RuntimeError(
            f"{owner}: the closure called backward(); there is no graph to go back through. It must only return the "
            "loss: opt.step(lambda: loss_fn(model(x), y))"
        )
    if "calling .item()" in message:
        return RuntimeError(
            f"{owner}: the closure called .item() on a value that differs from direction to direction; return the loss "
            "itself, or set chunk=1"
        )
    if "mutate a captured Tensor" in message:
        return RuntimeError(
            f"{owner}: {_place(frames, module)} changes a tensor in place that is not one of the module's buffers; "
            "give the optimizer the module instead of its parameters, or set chunk=1"
        )
    function = _custom_function(frames)
    found = _OPERATION.search(message)
    if function is None and found is None and not isinstance(error, NotImplementedError):
        return error
    operation = function or (next(name for name in found.groups() if name) if found else "an operation")
    kind = (
        "forward-mode derivative" if function or "forward AD" in message else "derivative of the order needed"
    )
    return NotImplementedError(
        f"{owner}: {_place(frames, module)} uses {operation}, which has no {kind} ({_first(message)})"
    )


def _frames(error: BaseException) -> list[FrameType]:
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames


def _is_backward(frame: FrameType) -> bool:
    return frame.f_code.co_name == "backward" and frame.f_globals.get("__name__") in (
        "torch._tensor",
        "torch.autograd",
    )


def _custom_function(frames: list[FrameType]) -> str | None:
    """The innermost ``torch.autograd.Function`` that was being applied."""
    for frame in reversed(frames):
        cls = frame.f_locals.get("cls")
        if (
            frame.f_code.co_name == "apply"
            and isinstance(cls, type)
            and issubclass(cls, torch.autograd.Function)
        ):
            return f"the autograd function {cls.__name__}"
    return None


def _place(frames: list[FrameType], module: nn.Module | None) -> str:
    """The innermost module that was running, by its path."""
    names = {} if module is None else {id(m): name for name, m in module.named_modules()}
    for frame in reversed(frames):
        running = frame.f_locals.get("self")
        if isinstance(running, nn.Module):
            kind = type(running).__name__
            path = names.get(id(running))
            return f"module {path!r} ({kind})" if path else f"the module {kind}"
    return "the closure"


def _first(message: str) -> str:
    return message.strip().splitlines()[0] if message.strip() else "no reason given"
