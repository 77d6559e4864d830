"""A network on handwritten digits whose features are decorrelated through an inverse square root."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hasten.linalg import inv_sqrtm
from hasten.problems import digits

BATCH, MOMENTUM, RIDGE = 256, 0.9, 1e-3
RATES = (0.1, 0.3, 1.0, 3.0)
TUNING_SEED = 100
PLAIN = "batch norm, not decorrelated"
Inverse = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What training with one way of whitening came to, over the seeds."""

    rate: float
    losses: list[float]
    """Mean cross-entropy of the training set after the last step, in nats."""
    errors: list[float]
    """Share of the held-out digits that are misread."""
    condition: float
    """Median condition number of the matrices that were inverted."""


class Whitened(nn.Module):
    """64 inputs, `width` features with the identity as their covariance, and 10 logits."""

    def __init__(self, width: int, inverse: Inverse | None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 10)
        self.inverse = inverse
        self.conditions: list[float] = []

    def whitening(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the features, and the matrix that decorrelates them."""
        centred = h - h.mean(0)
        covariance = centred.mT @ centred / len(h)
        if self.inverse is None:
            return h.mean(0), torch.diag((covariance.diagonal() + 1e-5).rsqrt())
        ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance))
        values = torch.linalg.eigvalsh((covariance + ridge).detach())
        self.conditions.append(float(values[-1] / values[0]))
        return h.mean(0), self.inverse(covariance + ridge)

    def forward(self, x: Tensor, population: Tensor) -> Tensor:
        """Logits of `x`, whitened by the statistics of `population`."""
        mean, matrix = self.whitening(self.first(population))
        logits: Tensor = self.last(((self.first(x) - mean) @ matrix).tanh())
        return logits


def trained(
    inverse: Inverse | None, rate: float, seed: int, steps: int, width: int
) -> tuple[float, float, float]:
    """Training loss and held-out error after the steps, and the median condition number."""
    torch.manual_seed(seed)
    model, data = Whitened(width, inverse), digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)
    for _ in range(steps):
        drawn = torch.randint(len(data.train_inputs), (BATCH,))
        x = data.train_inputs[drawn]
        loss = nn.functional.cross_entropy(model(x, x), data.train_labels[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        everything = data.train_inputs
        final = nn.functional.cross_entropy(model(everything, everything), data.train_labels)
        read = model(data.validation_inputs, everything).argmax(1)
    wrong = (read != data.validation_labels).double().mean()
    return float(final), float(wrong), statistics.median(model.conditions or [1.0])


def compare(methods: dict[str, Inverse | None], seeds: int, steps: int, width: int) -> dict[str, Outcome]:
    """Every method at the rate that left it the lowest loss on a seed of its own."""
    found = {}
    for name, inverse in methods.items():
        tried = {rate: trained(inverse, rate, TUNING_SEED, steps, width)[0] for rate in RATES}
        rate = min(tried, key=lambda r: tried[r] if tried[r] == tried[r] else float("inf"))
        runs = [trained(inverse, rate, seed, steps, width) for seed in range(seeds)]
        losses, errors, conditions = (list(column) for column in zip(*runs, strict=True))
        found[name] = Outcome(rate, losses, errors, statistics.median(conditions))
    return found


def methods() -> dict[str, Inverse | None]:
    """Ways to decorrelate, by name; the first does not."""

    def by(method: str, steps: int | None = None) -> Inverse:
        return lambda a: inv_sqrtm(a, method, steps)

    return {
        PLAIN: None,
        "eigenvalues": by("eigh"),
        "MPA": by("mpa"),
        "Padé at the mean eigenvalue": by("pade"),
        "MTP": by("mtp"),
        "Newton–Schulz, 5 steps": by("newton_schulz", 5),
        "Newton–Schulz, settled": by("newton_schulz"),
    }
