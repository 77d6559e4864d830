"""``minimize``: SciPy's interface for torch tensors, and the loop that runs every method.

What a method is asked for, and what the loop does for it, is written down in :mod:`hasten.solvers.method`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hasten.numbers import Number, where
from hasten.solvers.bounds import read_bounds
from hasten.solvers.method import METHODS, Method, find
from hasten.solvers.objective import Objective
from hasten.solvers.options import declared, read
from hasten.solvers.progress import Progress
from hasten.solvers.result import OptimizeResult, Status
from hasten.solvers.space import invert
from hasten.solvers.stopping import Ledger, Stopping
from hasten.solvers.structure import Structure
from hasten.solvers.terms import FlatBox, FlatTerm, Term

__all__ = ["minimize"]


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    method: str | Method | None = None,
    *,
    jac: Callable[..., Any] | bool | None = None,
    hess: Any = None,
    prox: Callable[[Any, Any], Any] | None = None,
    bounds: Any = None,
    constraints: Any = None,
    tol: float | None = None,
    options: Mapping[str, Any] | None = None,
    callback: Callable[..., Any] | None = None,
    progress: bool = False,
    batched: bool = False,
    args: tuple[Any, ...] = (),
) -> OptimizeResult:
    """Minimise a function of tensors.

    Args:
        fun: ``fun(x, *args)`` returns a scalar, computed from `x` by torch operations (or by anything, with `jac`).
        x0: where to start, not changed: a floating-point tensor of any shape, or dictionaries, lists, tuples of them.
        method: by name (see :data:`hasten.solvers.METHODS`), or one of their classes with its options, such as
            ``LBFGS(memory=20)``. None: ``"l-bfgs"``; with `prox` ``"fista"``; with `bounds` ``"nesterov"``.
        jac: the gradient. None: by automatic differentiation; True: `fun` returns ``(value, gradient)``; or a function.
        hess: not used by any method yet.
        prox: the proximal operator of a further term h: ``prox(v, step) = argmin_u h(u) + ‖u − v‖²/(2 step)``. If it
            has an attribute `value` (a function of x, as :class:`hasten.solvers.L1` has), h is part of the result's
            `fun`.
        bounds: SciPy's ``Bounds``, a sequence of ``(low, high)``, or a pair of tensors; None is no bound.
        constraints: not used by any method yet.
        tol: another way to set the option `gtol`.
        options: the method's own options and the stopping rules: `gtol` (1e-5, on the largest entry of the gradient),
            `ftol`, `xtol`, `maxiter`, `max_evaluations`, `seconds`, and `history`.
        callback: called after every iteration, as ``callback(x)``, or as ``callback(intermediate_result=...)`` if that
            is its argument's name; it may raise StopIteration to end the run.
        progress: whether to show a line of progress (needs rich).
        batched: `x0` stacks independent problems along the first dimension and `fun` returns one value for each; they
            are solved together, and each stops by itself.
        args: further arguments of `fun` and `jac`.

    Returns:
        An :class:`OptimizeResult`; `x` has the structure, dtype and device of `x0`. A run that ends without success
        returns the best point it found.

    Raises:
        ValueError, TypeError: for arguments that are not allowed, before `fun` is called; or for what `fun` returns.

    Example:
        >>> from hasten.solvers import minimize
        >>> result = minimize(lambda x: (x - 3).square().sum(), torch.zeros(2))
        >>> result.success, [round(v, 6) for v in result.x.tolist()]
        (True, [3.0, 3.0])
    """
    if not callable(fun):
        raise TypeError(f"minimize: fun = {fun!r} is not allowed; it must be a function of x")
    if jac is not None and jac is not True and not callable(jac):
        raise ValueError(f"minimize: jac = {jac!r} is not allowed; it must be None, True or a function")
    if prox is not None and not callable(prox):
        raise ValueError(f"minimize: prox = {prox!r} is not allowed; it must be a function of (v, step)")
    if method is None:
        method = "fista" if prox is not None else "nesterov" if bounds is not None else "l-bfgs"
    kind = type(method) if isinstance(method, Method) else find(method)
    _refuse_unusable(kind, hess=hess, prox=prox, bounds=bounds, constraints=constraints, batched=batched)
    solver, stopping = _configured(kind, method, options, tol)
    with torch.inference_mode(False), Progress(solver.name, progress or stopping.disp) as shown:
        structure, flat = Structure.of(x0, batched)
        term: Term | None = None
        if prox is not None:
            term = FlatTerm(prox, structure)
        elif bounds is not None:
            box = read_bounds(bounds, structure, flat)
            flat, term = box(flat, 1.0), FlatBox(box)
        objective = Objective(fun, structure, flat, jac=jac, args=args, term=term)
        return _run(solver, stopping, objective, flat, _wrapped(callback), shown)


def _run(
    method: Method,
    stopping: Stopping,
    objective: Objective,
    x0: Tensor,
    callback: Callable[[OptimizeResult], Any] | None,
    progress: Progress,
) -> OptimizeResult:
    begin, space = time.perf_counter(), objective.space
    history: dict[str, list[Number]] = {}
    with torch.no_grad():
        state = method.start(objective, x0)
        ledger = Ledger(space, stopping, state)
        if stopping.history:
            _record(history, objective, ledger, state, time.perf_counter() - begin)
        objective.running = ledger.running
        while space.any(objective.running):
            state = method.step(objective, state)
            ledger.judge(objective, state, time.perf_counter() - begin)
            if stopping.history:
                _record(history, objective, ledger, state, time.perf_counter() - begin)
            if callback is not None and space.any(state.stepped & objective.running):
                try:
                    callback(_intermediate(objective, ledger, state))
                except StopIteration:
                    ledger.end(Status.CALLBACK)
            progress.show(state, objective)
            objective.running = ledger.running
        _finish(method, objective, state, ledger)
    return _result(objective, ledger, history if stopping.history else None)


def _record(
    history: dict[str, list[Number]], objective: Objective, ledger: Ledger, state: Any, seconds: float
) -> None:
    """Add a round. A problem that ended in an earlier one keeps its last entry."""
    row = {"nit": ledger.iterations, "fun": state.f, "residual": state.residual, **objective.counts}
    for name, value in row.items():
        column = history.setdefault(name, [])
        column.append(where(objective.running, value, column[-1]) if column else value)
    history.setdefault("seconds", []).append(seconds)


def _intermediate(objective: Objective, ledger: Ledger, state: Any) -> OptimizeResult:
    """What a callback gets: the state, or the result of a problem that ended in an earlier round."""
    x = objective.space.select(objective.running, state.x, ledger.x)
    return OptimizeResult(
        x=objective.structure.copy(x),
        fun=where(objective.running, state.f, ledger.f),
        nit=_whole(ledger.iterations),
    )


def _finish(method: Method, objective: Objective, state: Any, ledger: Ledger) -> None:
    """Evaluate what the method reports instead of the points shown, and the gradient where it is not known."""
    space = objective.space
    met = (ledger.outcome == Status.GRADIENT) | (ledger.outcome == Status.START)
    objective.running = invert(met)
    candidate = method.output(state)
    if candidate is not None and space.any(objective.running):
        smooth, g = objective.value_and_gradient(candidate)
        f = objective.whole(smooth, candidate)
        ledger.take(objective.running & (f < ledger.f), candidate, f, g)
    if ledger.g is None:
        objective.running = space.number(1.0) > 0
        _, ledger.g = objective.value_and_gradient(ledger.x)


def _result(objective: Objective, ledger: Ledger, history: dict[str, list[Number]] | None) -> OptimizeResult:
    structure, outcome = objective.structure, ledger.outcome
    if objective.space.batched:
        statuses = [Status(int(code)) for code in outcome.tolist()]
        ending = {
            "success": torch.tensor([s.success for s in statuses], device=outcome.device),
            "status": outcome.long(),
            "message": [s.message for s in statuses],
        }
    else:
        status = Status(int(outcome))
        ending = {"success": status.success, "status": status, "message": status.message}
    assert ledger.g is not None
    counts = {name: _whole(n) for name, n in objective.counts.items()}
    result = OptimizeResult(
        **ending,
        fun=ledger.f,
        x=structure.copy(ledger.x),
        nit=_whole(ledger.iterations),
        jac=structure.copy(ledger.g),
        **counts,
    )
    if history is not None:
        result.history = history
    return result


def _whole(count: Number) -> Any:
    return count.long() if isinstance(count, Tensor) else int(count)


def _refuse_unusable(kind: type[Method], **given: Any) -> None:
    able = {"prox": "takes_prox", "bounds": "takes_bounds", "batched": "takes_batches"}
    for name, value in given.items():
        if value is None or value is False or (name == "constraints" and not value):
            continue
        if name not in able:
            raise ValueError(f"minimize: no method takes {name} yet")
        if not getattr(kind, able[name]):
            others = ", ".join(n for n, m in METHODS.items() if getattr(m, able[name]))
            raise ValueError(f"minimize: method {kind.name!r} does not take {name}; these do: {others}")
    if given["prox"] is not None and given["bounds"] is not None:
        raise ValueError("minimize: give prox or bounds, not both; a prox may include the bounds")


def _configured(
    kind: type[Method], method: str | Method, options: Mapping[str, Any] | None, tol: float | None
) -> tuple[Method, Stopping]:
    owner = f"minimize(method={kind.name!r})"
    rules = declared(Stopping)
    own, common = read(owner, options or {}, kind.options(), rules)
    defaults = dict(kind.stopping)
    if tol is not None:
        defaults["gtol"] = next(o for o in rules if o.name == "gtol").check(f"{owner}: tol sets gtol", tol)
    if isinstance(method, Method) and own:
        raise ValueError(
            f"{owner}: option {next(iter(own))} belongs to the method; set it as {kind.__name__}(...)"
        )
    solver = method if isinstance(method, Method) else kind(**own)
    return solver, Stopping(**{**defaults, **common})


def _wrapped(callback: Callable[..., Any] | None) -> Callable[[OptimizeResult], Any] | None:
    """A callback of either signature, by SciPy's rule: the argument's name decides."""
    if callback is None:
        return None
    if not callable(callback):
        raise TypeError(f"minimize: callback = {callback!r} is not allowed; it must be a function")
    if takes_intermediate_result(callback):
        return lambda found: callback(intermediate_result=found)
    return lambda found: callback(found.x)


def takes_intermediate_result(callback: Callable[..., Any]) -> bool:
    """Whether a callback wants the keyword `intermediate_result`: it does if that is its only argument."""
    try:
        return set(inspect.signature(callback).parameters) == {"intermediate_result"}
    except ValueError:  # some built-in functions have no signature
        return False
