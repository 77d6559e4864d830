"""Digits whose inputs have moved, and ways to tune a network to them; MeZO is written out here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import hasten
from hasten.oracles import ForwardMode
from hasten.problems.digits import Labelled, digits
from hasten.sketches import Gaussian
from hasten.transforms import HeavyBall

BATCH, RANK = 128, 16
MEZO, NESTEROV, FORWARD_GRADIENT = "MeZO", f"subspace Nesterov, r = {RANK}", "forward gradient, SGD"
DESCENT = f"subspace descent, r = {RANK}"
SINGLE = "subspace Nesterov, r = 1, ℓ tuned"
Closure = Callable[[], Tensor]


class MeZO:
    """x ← x − lr p z, with p = (f(x + εz) − f(x − εz))/2ε and z drawn again from its seed (Malladi et al. 2023)."""

    def __init__(self, model: nn.Module, lr: float, seed: int, epsilon: float = 1e-3) -> None:
        self.parameters, self.lr, self.epsilon = list(model.parameters()), lr, epsilon
        self.seeds = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def step(self, closure: Closure) -> None:
        """Two forward passes."""
        seed = int(torch.randint(2**62, (), generator=self.seeds))
        self._move(seed, self.epsilon)
        ahead = float(closure())
        self._move(seed, -2 * self.epsilon)
        behind = float(closure())
        self._move(seed, self.epsilon - self.lr * (ahead - behind) / (2 * self.epsilon))

    def _move(self, seed: int, length: float) -> None:
        z = torch.Generator().manual_seed(seed)
        for p in self.parameters:
            p.add_(torch.randn(p.shape, generator=z), alpha=length)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to tune: how it is made from a model, a setting and a seed; the settings tried; what a step looks up."""

    name: str
    make: Callable[[nn.Module, float, int], Any]
    grid: tuple[float, ...]
    step: str
    knob: str = "learning rate"


def methods() -> list[Method]:
    """Five settings each, half a decade apart, around the best of a wider search."""
    one = ForwardMode(sketch=Gaussian(rank=1), chunk=1)
    learnt = f"{RANK} + 2 derivatives"
    return [
        Method(MEZO, lambda m, lr, s: MeZO(m, lr, s), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), "2 losses"),
        Method(
            FORWARD_GRADIENT,
            lambda m, lr, s: hasten.Optimizer(m, oracle=one, lr=lr, seed=s),
            (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
            "1 derivative",
        ),
        Method(
            "forward gradient, momentum 0.9",
            lambda m, lr, s: hasten.Optimizer(m, HeavyBall(0.9), oracle=one, lr=lr, seed=s),
            (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
            "1 derivative",
        ),
        Method(
            DESCENT,
            lambda m, lr, s: hasten.SubspaceGradientDescent(
                m, rank=RANK, oracle=ForwardMode(), lr=lr, seed=s
            ),
            (0.03, 0.1, 0.3, 1.0, 3.0),
            learnt,
            "factor on 1/ℓ",
        ),
        Method(
            SINGLE,
            lambda m, lr, s: hasten.SubspaceNesterov(
                m, rank=1, oracle=ForwardMode(chunk=1), smoothness=1.0, lr=lr, seed=s
            ),
            (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
            "1 derivative",
            "1/ℓ",
        ),
        Method(
            NESTEROV,
            lambda m, lr, s: hasten.SubspaceNesterov(m, rank=RANK, oracle=ForwardMode(), lr=lr, seed=s),
            (0.03, 0.1, 0.3, 1.0, 3.0),
            learnt,
            "factor on 1/ℓ",
        ),
        Method(
            "SGD, backpropagation",
            lambda m, lr, s: hasten.SGD(m, lr=lr),
            (1e-2, 3e-2, 0.1, 0.3, 1.0),
            "1 gradient",
        ),
        Method(
            "AdamW, backpropagation",
            lambda m, lr, s: hasten.AdamW(m, lr=lr),
            (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
            "1 gradient",
        ),
    ]


@dataclasses.dataclass(frozen=True)
class Task:
    """A trained network, and data that its inputs have moved away from."""

    model: nn.Module
    data: Labelled
    before: float
    """Validation accuracy before the inputs moved."""

    def few(self) -> Task:
        """The same with `BATCH` examples to learn from, all of them in every batch: a loss without noise."""
        inputs, labels = self.data.train_inputs[:BATCH], self.data.train_labels[:BATCH]
        return dataclasses.replace(
            self, data=dataclasses.replace(self.data, train_inputs=inputs, train_labels=labels)
        )

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`BATCH` examples, drawn anew, or all there are."""
        count = len(self.data.train_labels)
        chosen = torch.randperm(count, generator=generator)[:BATCH] if count > BATCH else torch.arange(count)
        return self.data.train_inputs[chosen], self.data.train_labels[chosen]

    def loss(self, model: nn.Module) -> float:
        """On all of the training data."""
        with torch.no_grad():
            return float(functional.cross_entropy(model(self.data.train_inputs), self.data.train_labels))

    def accuracy(self, model: nn.Module) -> float:
        """On the data held out."""
        with torch.no_grad():
            right = model(self.data.validation_inputs).argmax(1) == self.data.validation_labels
        return float(right.float().mean())


def moved_digits() -> Task:
    """A 64-64-10 network trained on digits, and all inputs moved by one fixed pattern until 0.793 are right."""
    data = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    opt = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        opt.zero_grad()
        functional.cross_entropy(model(data.train_inputs), data.train_labels).backward()
        opt.step()
    pattern = torch.randn(64, generator=torch.Generator().manual_seed(1))
    before = Task(model, data, 0.0).accuracy(model)

    def shifted(size: float) -> Task:
        moved = dataclasses.replace(
            data,
            train_inputs=data.train_inputs + size * pattern,
            validation_inputs=data.validation_inputs + size * pattern,
        )
        return Task(model, moved, before)

    candidates = [shifted(size / 100) for size in range(1, 101)]
    return min(candidates, key=lambda task: abs(task.accuracy(model) - 0.793))
