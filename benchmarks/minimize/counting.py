"""The function every contender is given: it counts, keeps the values, and stops who goes on too long."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.minimize.tasks import Task


class Exhausted(Exception):
    """The evaluations or the seconds are used up."""


class Counted:
    """A task's function with a counter in front; gradients are torch's for everyone.

    The limit on seconds is of processor time, so that a busy machine changes no verdict.

    Attributes:
        values: the value of every evaluation, in order.
        products: Hessian-vector products; a Hessian is as many as there are variables.
    """

    def __init__(self, task: Task, most_evaluations: float = math.inf, seconds: float = math.inf) -> None:
        self.task = task
        self.values: list[float] = []
        self.products = 0
        self._most = most_evaluations
        self._end = time.process_time() + seconds

    @property
    def evaluations(self) -> int:
        """How often the function was evaluated."""
        return len(self.values)

    def value(self, x: Tensor) -> Tensor:
        """The function for those who differentiate by themselves."""
        if self.evaluations >= self._most:
            raise Exhausted(f"{self.evaluations} evaluations")
        if time.process_time() > self._end:
            raise Exhausted("out of time")
        value = self.task.value(x)
        self.values.append(value.item())
        return value

    def value_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """The function for NumPy, ``jac=True``."""
        point = torch.from_numpy(x).requires_grad_()
        value = self.value(point)
        (gradient,) = torch.autograd.grad(value, point)
        return self.values[-1], gradient.numpy()

    def hessian(self, x: np.ndarray) -> np.ndarray:
        """The Hessian for NumPy."""
        self.products += len(x)
        return torch.autograd.functional.hessian(self.task.value, torch.from_numpy(x), vectorize=True).numpy()

    def hessian_product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The Hessian times a vector for NumPy."""
        self.products += 1
        point, direction = torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(v))
        _, product = torch.autograd.functional.vhp(self.task.value, point, direction)
        return product.numpy()

    def evaluations_to_target(self) -> int | None:
        """After how many evaluations a target had been reached."""
        for number, value in enumerate(self.values, 1):
            if self.task.reached(value, self.values[0]):
                return number
        return None


def tensor(x: Any) -> Tensor:
    """What a contender returns, as a float64 tensor."""
    return torch.as_tensor(x, dtype=torch.float64)
