"""The methods of `minimize` in SciPy's own `minimize`, on NumPy functions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hasten.solvers.driver import minimize, takes_intermediate_result
from hasten.solvers.method import find
from hasten.solvers.options import declared, read
from hasten.solvers.result import OptimizeResult
from hasten.solvers.stopping import Stopping

__all__ = ["scipy_method"]


def scipy_method(name: str, **options: Any) -> Callable[..., Any]:
    """A method for ``scipy.optimize.minimize(fun, x0, method=scipy_method("l-bfgs"), ...)``.

    SciPy hands over NumPy functions, bounds, callbacks of both signatures, `tol` and `options`, and gets its own
    ``OptimizeResult`` back. Without `jac` the gradient is taken by forward differences, as SciPy's methods do it, which
    costs an evaluation for each variable and half of the digits. The work is done in float64.

    Args:
        name: of the method, as in :func:`hasten.minimize`.
        options: of the method and its stopping rules; SciPy's ``options=`` add to them and win.

    Raises:
        ValueError: for a name or an option that is not known, at once; for constraints, and for bounds that the method
            does not take, when SciPy calls.

    Example:
        >>> from scipy.optimize import minimize, rosen, rosen_der
        >>> result = minimize(rosen, [-1.2, 1.0], jac=rosen_der, method=scipy_method("l-bfgs"), tol=1e-8)
        >>> bool(result.success), result.x.round(6).tolist()
        (True, [1.0, 1.0])
    """
    kind = find(name)

    def checked(options: dict[str, Any]) -> dict[str, Any]:
        own, common = read(f"scipy_method({name!r})", options, kind.options(), declared(Stopping))
        return {**own, **common}

    always = checked(options)

    def method(
        fun: Callable[..., Any],
        x0: Any,
        args: tuple[Any, ...] = (),
        jac: Callable[..., Any] | None = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Callable[..., Any] | None = None,
        tol: float | None = None,
        **given: Any,
    ) -> Any:
        for unused, value in (("hess", hess), ("hessp", hessp)):
            if value is not None:
                warnings.warn(
                    f"Method {kind.name} does not use Hessian information ({unused}).",
                    RuntimeWarning,
                    stacklevel=3,
                )
        problem = _NumpyFunction(fun, args, jac)
        found = minimize(
            problem.value,
            torch.as_tensor(x0, dtype=torch.float64),
            kind.name,
            jac=problem.gradient,
            bounds=bounds,
            constraints=constraints,
            callback=None if callback is None else _in_numpy(callback),
            tol=tol,
            options={**always, **checked(given)},
        )
        if jac is None:
            found.nfev, found.njev = problem.calls, 0
        return _to_scipy(found)

    method.__name__ = kind.name
    method.__doc__ = f"SciPy's protocol for {kind.__name__}."
    return method


class _NumpyFunction:
    """A NumPy function and its gradient, called with copies as SciPy's own methods call it."""

    def __init__(self, fun: Callable[..., Any], args: Any, jac: Callable[..., Any] | None) -> None:
        self.fun = fun
        self.args = args if isinstance(args, tuple) else (args,)
        self.jac = jac
        self.calls = 0

    def value(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self._evaluated(x.numpy().copy()), dtype=torch.float64)

    def gradient(self, x: Tensor) -> Tensor:
        point = x.numpy().copy()
        if self.jac is not None:
            return torch.as_tensor(self.jac(point, *self.args), dtype=torch.float64).reshape(x.shape)
        from scipy.optimize import approx_fprime

        return torch.as_tensor(approx_fprime(point, self._scalar), dtype=torch.float64)

    def _scalar(self, point: Any) -> float:
        return float(torch.as_tensor(self._evaluated(point)))

    def _evaluated(self, point: Any) -> Any:
        self.calls += 1
        return self.fun(point, *self.args)


def _in_numpy(callback: Callable[..., Any]) -> Callable[..., Any]:
    if takes_intermediate_result(callback):

        def by_result(intermediate_result: OptimizeResult) -> Any:
            return callback(intermediate_result=_to_scipy(intermediate_result))

        return by_result
    return lambda x: callback(x.numpy())


def _to_scipy(found: OptimizeResult) -> Any:
    from scipy.optimize import OptimizeResult as ScipyResult

    converted = {name: v.numpy() if isinstance(v, Tensor) else v for name, v in found.items()}
    if "status" in converted:
        converted["status"] = int(converted["status"])
    return ScipyResult(**converted)
