"""What optimizers race on: a model, batches, a loss, and an evaluation on data held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hasten.problems.convex import ConvexProblem


def no_batch(generator: torch.Generator) -> None:
    """The batch of a deterministic objective: none.

    Example:
        >>> no_batch(torch.Generator()) is None
        True
    """


@dataclass
class Task:
    """One problem, freshly initialised. A function ``seed -> Task`` is all that a race needs.

    Args:
        model: holds the parameters to train.
        loss: training loss of one batch; deterministic given model and batch (an optimizer may
            ask for it twice). The mean over the examples, if several workers are to share batches.
        evaluate: the number to be made small, measured on data held out from training. It runs
            without gradients, with ``model.eval()`` and at the optimizer's evaluation point.
        sample: draws a batch from the generator it is handed; every optimizer is handed the same
            generator, so all of them see the same batches in the same order. Several workers share
            a batch along the first dimension of its tensors.
        samples_per_step: how many examples a batch holds, for the "samples" axis.
        unit: what the evaluation is measured in, for the figures.
        log_scale: whether the evaluation spans decades.
        target: value whose crossing is timed; by default the level that every
            optimizer reached.
        data: fingerprint of the data, where it may differ between machines.
        constants: known constants of the problem (``smoothness``, ``strong_convexity``,
            ``noise``), which methods with formulas for their settings use.
        problem: the convex problem behind the task, if it is one with known constants. Then runs
            are as long as equal oracle calls allow (a whole gradient takes one for each
            parameter), curves are drawn against them, and bounds beside the curves.

    Example:
        >>> def fit_a_line(seed: int) -> Task:
        ...     model = nn.Linear(3, 1)
        ...     x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        ...     y = x.sum(1, keepdim=True)
        ...     def loss(rows): return (model(x[rows]) - y[rows]).square().mean()
        ...     return Task(
        ...         model=model,
        ...         loss=loss,
        ...         sample=lambda generator: torch.randint(80, (8,), generator=generator),
        ...         evaluate=lambda: float(loss(torch.arange(80, 100))),
        ...         samples_per_step=8,
        ...     )
        >>> fit_a_line(0).samples_per_step
        8
    """

    model: nn.Module
    loss: Callable[[Any], Tensor]
    evaluate: Callable[[], float]
    sample: Callable[[torch.Generator], Any] = no_batch
    samples_per_step: int = 1
    unit: str = "validation loss"
    log_scale: bool = False
    target: float | None = None
    data: str = ""
    constants: dict[str, float] | None = None
    problem: ConvexProblem | None = None


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from what a run is, never from when or in which order it is run.

    Example:
        >>> derive_seed("lm", 0, "model") == derive_seed("lm", 0, "model")
        True
        >>> derive_seed("lm", 0, "model") == derive_seed("lm", 1, "model")
        False
    """
    text = "|".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
