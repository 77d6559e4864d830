"""Muon: momentum, orthogonalised."""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import Unpack

from hasten.engine import EngineOptions, Optimizer
from hasten.engine.composition import Sentence
from hasten.iterates import Plain
from hasten.oracles import Backpropagation
from hasten.transforms import EMA, SecondMoment, WeightDecay
from hasten.transforms.orthogonal import Orthogonalize
from hasten.words import Value


class Muon(Optimizer):
    """Muon.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.Muon(torch.nn.Linear(4, 2))
    """

    source: ClassVar[str] = "Jordan et al. 2024"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        momentum: Value = 0.95,
        weight_decay: Value = 0.1,
        fallback_lr: Value = 3e-4,
        **engine: Unpack[EngineOptions],
    ) -> None:
        others = (EMA(0.9), SecondMoment(0.95), WeightDecay(weight_decay))
        super().__init__(
            params,
            EMA(momentum).rename(beta1="momentum"),
            Orthogonalize(),
            lr=lr,
            weight_decay=weight_decay,
            vectors=Sentence(Backpropagation(), others, Plain(fallback_lr)),
            **engine,
        )
