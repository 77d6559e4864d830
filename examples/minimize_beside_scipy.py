"""``hasten.minimize`` beside ``scipy.optimize.minimize``: the same arguments, and each inside the other.

Run with ``python examples/minimize_beside_scipy.py``; needs ``pip install 'hasten[race]'``, which brings SciPy. The
problem is ridge logistic regression on scikit-learn's biopsies, whose minimum is known.
"""

from __future__ import annotations

import numpy as np
import scipy.optimize
import torch

import hasten
from hasten.problems import RidgeLogistic

PROBLEM = RidgeLogistic.breast_cancer()
OPTIONS = {"gtol": 1e-6, "maxiter": 20_000}


def value(x: np.ndarray) -> float:
    """The objective as NumPy sees it."""
    return float(PROBLEM.value(torch.from_numpy(x)))


def gradient(x: np.ndarray) -> np.ndarray:
    """Its gradient as NumPy sees it."""
    return PROBLEM.gradient(torch.from_numpy(x)).numpy()


def show(name: str, result: hasten.OptimizeResult | scipy.optimize.OptimizeResult) -> None:
    """One line: what was found, and at what price."""
    print(f"{name:<42} f − f* {float(result.fun) - PROBLEM.minimum:8.1e}  evaluations {int(result.nfev):5d}")


def main() -> None:
    """The same problem four ways, then many problems at once."""
    start = PROBLEM.start
    show("scipy L-BFGS-B", scipy.optimize.minimize(value, start.numpy(), jac=gradient, options=OPTIONS))
    for method in ("l-bfgs", "ncg", "nesterov"):
        show(f"hasten {method}", hasten.minimize(PROBLEM.value, start, method=method, options=OPTIONS))
    inside = scipy.optimize.minimize(
        value, start.numpy(), jac=gradient, method=hasten.scipy_method("l-bfgs"), options=OPTIONS
    )
    show("hasten l-bfgs, run by scipy", inside)

    few = hasten.minimize(
        PROBLEM.value,
        start,
        method="subspace-nesterov",
        options={
            "rank": 4,
            "smoothness": PROBLEM.curvature,
            "strong_convexity": PROBLEM.strong_convexity,
            **OPTIONS,
        },
    )
    full = hasten.minimize(
        PROBLEM.value, start, method="nesterov", options={"smoothness": PROBLEM.smoothness, **OPTIONS}
    )
    print(
        f"r = 4 numbers an iteration: {few.nproj} of them, f − f* {few.fun - PROBLEM.minimum:.1e}; "
        f"with whole gradients: {full.njev * PROBLEM.dimension}"
    )

    ridges = torch.logspace(-3, 0, 50, dtype=torch.float64)[:, None]
    stack = hasten.minimize(
        lambda x: PROBLEM.value(x) + ((ridges - PROBLEM.ridge) / 2 * x.square()).sum(-1),
        start.expand(50, -1).clone(),
        batched=True,
        options=OPTIONS,
    )
    print(
        f"50 ridges at once: {int(stack.success.sum())} solved, in at most {int(stack.nit.max())} iterations"
    )


if __name__ == "__main__":
    main()
