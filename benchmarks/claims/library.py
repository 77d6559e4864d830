"""The library's own optimizers on the streaming problem, on the very data of the recursions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import hasten
from benchmarks.claims.recursions import Setting, Stream, TailAverage
from hasten.problems.least_squares import StreamingLeastSquares


def optimizer(problem: StreamingLeastSquares, setting: Setting, parameter: Tensor) -> hasten.Optimizer:
    """The named optimizer that a setting of the recursions stands for."""
    parameters = [parameter]
    beta, a, b = setting.beta, setting.momentum_weight, setting.gradient_weight
    if setting.method.startswith("canonical"):
        return hasten.AcceleratedSGD.canonical(
            parameters,
            smoothness=problem.smoothness,
            strong_convexity=problem.strong_convexity,
            noise=problem.growth,
            engine="eager",
        )
    if setting.method == "SGD":
        return hasten.SGD(parameters, lr=b, engine="eager")
    if setting.method == "heavy ball":
        return hasten.HeavyBall(parameters, lr=a, momentum=beta, engine="eager")
    if setting.method == "Nesterov":
        return hasten.Nesterov(parameters, lr=b, momentum=beta, engine="eager")
    if setting.method == "Schedule-Free":
        return hasten.ScheduleFreeSGD(parameters, lr=b, momentum=beta, engine="eager")
    lr = b + a / (1 - beta)
    return hasten.QHM(parameters, lr=lr, nu=1 - b / lr, momentum=beta, engine="eager")


def run(
    problem: StreamingLeastSquares,
    setting: Setting,
    samples: Sequence[int],
    seeds: int,
    seed: int,
    tail_average: bool = False,
) -> Tensor:
    """Excess risk ``(checkpoint, seed)``: every seed is a row of one parameter.

    Every compared method works entry by entry, so the rows do not see each other.
    """
    parameter = torch.nn.Parameter(problem.start(seeds))
    stepper = optimizer(problem, setting, parameter)
    tail = TailAverage(problem, samples) if tail_average and not setting.schedule_free else None
    stream = Stream(problem, seeds, seed)
    checkpoints = [count // problem.batch for count in samples]
    risks = []
    for step in range(1, checkpoints[-1] + 1):
        parameter.grad = problem.gradient(parameter.detach(), *stream.draw())
        stepper.step()
        if tail:
            tail.add(step, parameter.detach())
        if step in checkpoints:
            output = tail.mean(step) if tail else parameter.detach()
            if setting.schedule_free:
                with stepper.evaluating():
                    output = parameter.detach().clone()
            risks.append(problem.excess_risk(output))
    return torch.stack(risks)
