"""The task on which acceleration is hardest to earn: ill-conditioned, one sample at a time."""

from __future__ import annotations

from torch import Tensor, nn

from hasten.problems.least_squares import StreamingLeastSquares
from hasten.race.task import Task


class Point(nn.Module):
    """A model that is nothing but its parameters.

    Example:
        >>> import torch
        >>> Point(torch.zeros(2)).x
        Parameter containing:
        tensor([0., 0.], requires_grad=True)
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(start.clone())


def least_squares(seed: int, *, condition: float = 1e3, batch: int = 1, noise: float = 0.0) -> Task:
    """Streaming linear regression whose evaluation is the exact excess risk.

    Example:
        >>> least_squares(0).evaluate()
        10.0
    """
    problem = StreamingLeastSquares(condition=condition, batch=batch, noise=noise, seed=seed)
    point = Point(problem.start())

    def loss(drawn: tuple[Tensor, Tensor]) -> Tensor:
        return problem.loss(point.x, *drawn)

    return Task(
        model=point,
        loss=loss,
        sample=lambda generator: problem.sample(generator),
        evaluate=lambda: float(problem.excess_risk(point.x.detach())),
        samples_per_step=batch,
        unit="excess risk",
        log_scale=True,
        constants={
            "smoothness": problem.smoothness,
            "strong_convexity": problem.strong_convexity,
            "noise": problem.growth,
        },
    )
