"""MARS: variance-reduced gradients under any momentum and geometry."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from typing_extensions import Unpack

from hasten.checks import check_choice, flag, number, unpacked
from hasten.engine import EngineOptions, Optimizer, Sentence
from hasten.iterates import Plain
from hasten.oracles import Backpropagation, Mars, RememberedPoint
from hasten.transforms import (
    EMA,
    ClipTensorNorm,
    HeavyBall,
    Orthogonalize,
    Scale,
    SecondMoment,
    Sign,
    WeightDecay,
)
from hasten.words import NONNEGATIVE, Transform, Value


class MARS(Optimizer):
    """MARS-AdamW, MARS-Lion and MARS-Shampoo: momentum and geometry of a gradient corrected by its change.

    The corrected gradient of every tensor is clipped to norm 1, and is also what the second moment is taken of (as in
    the authors' code; their README says otherwise). Tensors with fewer than two dimensions get plain AdamW with
    `lr_1d` (relative to lr), `betas_1d` and `weight_decay_1d`, unless `optimize_1d`. `exact=True` evaluates the batch
    again at the previous parameters; ``step`` then needs a closure. Only the AdamW flavour was tuned by its authors.

    The Shampoo flavour is Muon's geometry in all but name: five Newton–Schulz steps on the average of the corrected
    gradient, times √max(1, m/n). Which parameters are matrices is told from a module (:func:`~hasten.matrix_groups`);
    convolutions are flattened; all others get AdamW as above.

    Example:
        >>> import torch, hasten
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = hasten.MARS(model.parameters(), lr=3e-3, gamma=0.025)
    """

    source: ClassVar[str] = "Yuan et al. 2024, arXiv:2411.10438"

    def __init__(
        self,
        params: Any,
        lr: Value = 3e-3,
        betas: tuple[Value, Value] = (0.95, 0.99),
        gamma: Value = 0.025,
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        flavour: Literal["adamw", "lion", "shampoo"] = "adamw",
        exact: bool = False,
        optimize_1d: bool = False,
        lr_1d: float = 3e-3,
        betas_1d: tuple[Value, Value] = (0.9, 0.95),
        weight_decay_1d: Value = 0.1,
        **engine: Unpack[EngineOptions],
    ) -> None:
        check_choice("MARS", "flavour", flavour, ("adamw", "lion", "shampoo"))
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        oracle = Mars(gamma, beta1, flag(self, "exact", exact))
        chain: list[Transform] = [ClipTensorNorm(1.0)]
        if flavour == "shampoo":
            # The sum, 1/(1−β₁) times the average: eps is in its units.
            sum_of_gradients = HeavyBall(beta1).rename(momentum="beta1")
            added = number(self, "eps", eps, NONNEGATIVE)
            chain += [sum_of_gradients, Orthogonalize("ns5", eps=added, eps_on="sum")]
        else:
            chain.append(EMA(beta1, debias=flavour == "adamw"))
            chain.append(SecondMoment(beta2, eps) if flavour == "adamw" else Sign())
        vectors = None
        if flag(self, "optimize_1d", optimize_1d) and flavour == "shampoo":
            raise ValueError(
                "MARS: optimize_1d = True is not allowed with flavour='shampoo', which has no step for vectors"
            )
        if not optimize_1d:
            vectors = self._adamw(lr, lr_1d, betas_1d, weight_decay_1d, eps, exact)
        super().__init__(
            params, *chain, oracle=oracle, lr=lr, weight_decay=weight_decay, vectors=vectors, **engine
        )

    def _adamw(
        self,
        lr: Value,
        lr_1d: float,
        betas_1d: tuple[Value, Value],
        weight_decay_1d: Value,
        eps: Value,
        exact: bool,
    ) -> Sentence:
        """Plain AdamW, at a learning rate in fixed proportion to the other."""
        beta1, beta2 = unpacked(self, "betas_1d", betas_1d, 2)
        start = float(lr(0)) if callable(lr) else number(self, "lr", lr, NONNEGATIVE)
        transforms = (
            EMA(beta1).rename(beta1="beta1_1d"),
            SecondMoment(beta2, eps).rename(beta2="beta2_1d", eps="eps"),
            WeightDecay(weight_decay_1d).rename(weight_decay="weight_decay_1d"),
            Scale(number(self, "lr_1d", lr_1d, NONNEGATIVE) / (start or 1.0)).rename(factor="lr_1d_ratio"),
        )
        oracle = RememberedPoint() if exact else Backpropagation()
        return Sentence(oracle, transforms, Plain(lr))
