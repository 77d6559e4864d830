"""Kronecker geometry by name: SOAP and Shampoo."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from typing_extensions import Unpack

from hasten.checks import check_choice, flag, is_zero, number, optional_number, unpacked
from hasten.engine import EngineOptions, Optimizer
from hasten.optimizers.adam import adamw_sentence
from hasten.transforms import EMA, HeavyBall, Interpolation, Scale, WeightDecay
from hasten.transforms.eigenbasis import AT_LEAST_ONE, EigenbasisAdam
from hasten.transforms.kronecker import GRAFTS, KroneckerRoot, TensorKroneckerRoot
from hasten.words import POSITIVE, UNIT, Transform, Value


class SOAP(Optimizer):
    """Adam in the eigenbasis of Shampoo's preconditioner.

    The learning rate is at AdamW's scale. The first step only sets up the eigenbases: the matrices do not move in it.
    All other parameters (vectors, and what `matrix_groups` leaves out: embeddings, the output layer) are moved by
    AdamW, with the same values unless they are given; the authors' code rotates every matrix with sides up to 10000, so
    to follow it in a model that has embeddings, give ``model.parameters()`` instead of the model.

    Weight decay is ours, ``y − lr (u + λ y)``; the authors decay after the step, (1 − lr λ)(y − lr u), which is the
    same with u shorter by the factor 1 − lr λ (by 3e-5 at the defaults).

    State: two averages, two factors and two bases, 24 bytes a parameter for a square matrix (``sides="smaller"`` keeps
    factor and basis of the smaller side only).

    Args:
        shampoo_beta: decay of the factors; None: betas[1].
        precondition_frequency: steps from one refresh of the bases to the next.
        max_preconditioner_dim: a side longer than this is not rotated.
        sides: ``"smaller"``: rotate only the smaller side.
        bias_correction: of both averages.
        fallback_lr, fallback_betas, fallback_eps, fallback_weight_decay: of AdamW, for all other parameters; None: the
            same as for the matrices.

    Example:
        >>> import torch, hasten
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> opt = hasten.SOAP(model.parameters(), lr=3e-3)
        >>> for _ in range(3):
        ...     opt.zero_grad()
        ...     model(torch.randn(16, 4)).square().mean().backward()
        ...     opt.step()
    """

    source: ClassVar[str] = "Vyas et al. 2024, arXiv:2409.11321"

    def __init__(
        self,
        params: Any,
        lr: Value = 3e-3,
        betas: tuple[Value, Value] = (0.95, 0.95),
        shampoo_beta: Value | None = None,
        eps: Value = 1e-8,
        weight_decay: Value = 0.01,
        precondition_frequency: Value = 10,
        max_preconditioner_dim: int = 10000,
        sides: Literal["both", "smaller"] = "both",
        bias_correction: bool = True,
        fallback_lr: Value | None = None,
        fallback_betas: tuple[Value, Value] | None = None,
        fallback_eps: Value | None = None,
        fallback_weight_decay: Value | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        check_choice("SOAP", "sides", sides, ("both", "smaller"))
        geometry = EigenbasisAdam(
            beta2,
            eps,
            beta2 if shampoo_beta is None else shampoo_beta,
            precondition_frequency,
            int(number(self, "max_preconditioner_dim", max_preconditioner_dim, AT_LEAST_ONE)),
            sides,
            debias=flag(self, "bias_correction", bias_correction),
            beta1=beta1,
        )
        super().__init__(
            params,
            geometry,
            lr=lr,
            weight_decay=weight_decay,
            vectors=adamw_sentence(
                lr if fallback_lr is None else fallback_lr,
                betas if fallback_betas is None else fallback_betas,
                eps if fallback_eps is None else fallback_eps,
                weight_decay if fallback_weight_decay is None else fallback_weight_decay,
                owner=self,
            ),
            **engine,
        )


class Shampoo(Optimizer):
    """Each side of a matrix preconditioned by the inverse fourth root of its statistics.

    The length of every block's step is Adam's (grafting), so that `lr` and `weight_decay` are AdamW's, whatever the
    frequency, the exponent or the size of the blocks; until `start_preconditioning_step` the steps are AdamW's
    altogether. The authors' code has no grafting by default, lr 0.01, and betas (0.9, 1.0), whose sums never forget;
    these values here, and roots in every step, give it exactly. So that float32 statistics do not hand the directions
    that they do not resolve an arbitrary weight, eigenvalues are lifted by 1e-7 of the largest besides eps.

    All other parameters (vectors, and what `matrix_groups` leaves out) are moved by AdamW, with the same values unless
    they are given. ``order="tensor"`` takes tensors with two dimensions or more as they are, with a factor for every
    dimension once small neighbouring ones are merged; groups then have no `matrices`, `layout` or `split`.

    State for a square matrix of one block: two factors, two roots, the filtered gradient and the grafted average, 24
    bytes a parameter.

    Args:
        betas: decays of the filtered gradient, and of the factors (1: sums).
        filter_beta: weight of the filtered gradient against the current one in the direction (the authors' beta3);
            None: betas[0].
        eps, relative_eps: added to the eigenvalues of the factors; the latter in units of the largest.
        precondition_frequency: steps from one computation of the roots to the next.
        start_preconditioning_step: None: `precondition_frequency`.
        max_preconditioner_dim: longer sides are cut into blocks of this size.
        grafting: ``"adam"``, ``"rmsprop"``, ``"adagrad"``, ``"sgd"`` or None, applied to the filtered gradient.
        graft_beta2, graft_eps: of the grafted method.
        exponent: the power of each inverse root; None: 1/4, or 1/(2·order) for tensors.
        order: ``"matrix"``, or ``"tensor"``.
        momentum, dampening, nesterov: of the steps, decay included, with a buffer that starts at zero.
        decoupled: whether weight decay is decoupled, or an L2 penalty.
        bias_correction: of the filtered gradient and of the factors.
        fallback_lr, fallback_betas, fallback_eps, fallback_weight_decay: of AdamW, for all other parameters; None: the
            learning rate and decay of the matrices, (betas[0], graft_beta2), and graft_eps.

    Example:
        >>> import torch, hasten
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> opt = hasten.Shampoo(model.parameters(), lr=1e-3, precondition_frequency=2)
        >>> for _ in range(3):
        ...     opt.zero_grad()
        ...     model(torch.randn(16, 4)).square().mean().backward()
        ...     opt.step()
    """

    source: ClassVar[str] = (
        "Gupta, Koren & Singer 2018, arXiv:1802.09568; Anil et al. 2020, arXiv:2002.09018; Shi et al. 2023, "
        "arXiv:2309.06497"
    )

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        filter_beta: Value | None = None,
        eps: Value = 1e-12,
        relative_eps: Value = 1e-7,
        weight_decay: Value = 0.01,
        precondition_frequency: Value = 10,
        start_preconditioning_step: int | None = None,
        max_preconditioner_dim: int = 1024,
        grafting: Literal["sgd", "adagrad", "rmsprop", "adam"] | None = "adam",
        graft_beta2: Value = 0.999,
        graft_eps: Value = 1e-8,
        exponent: float | None = None,
        order: Literal["matrix", "tensor"] = "matrix",
        momentum: Value = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        decoupled: bool = True,
        bias_correction: bool = True,
        fallback_lr: Value | None = None,
        fallback_betas: tuple[Value, Value] | None = None,
        fallback_eps: Value | None = None,
        fallback_weight_decay: Value | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        check_choice("Shampoo", "order", order, ("matrix", "tensor"))
        check_choice("Shampoo", "grafting", grafting, GRAFTS)
        start = optional_number(self, "start_preconditioning_step", start_preconditioning_step, AT_LEAST_ONE)
        rest = 1 - number(self, "dampening", dampening, UNIT)
        looks_ahead = flag(self, "nesterov", nesterov)
        debias = flag(self, "bias_correction", bias_correction)
        geometry = (KroneckerRoot if order == "matrix" else TensorKroneckerRoot)(
            beta2,
            eps,
            relative_eps,
            precondition_frequency,
            graft_beta2,
            graft_eps,
            None if start is None else int(start),
            grafting,
            int(number(self, "max_preconditioner_dim", max_preconditioner_dim, AT_LEAST_ONE)),
            optional_number(self, "exponent", exponent, POSITIVE),
            debias,
        )
        decay = WeightDecay(weight_decay)
        chain: list[Transform] = [_filter(beta1, filter_beta, debias), geometry]
        chain = [*chain, decay] if flag(self, "decoupled", decoupled) else [decay, *chain]
        if not is_zero(momentum):
            chain += [HeavyBall(momentum, nesterov=looks_ahead), Scale(rest)]
        super().__init__(
            params,
            *chain,
            lr=lr,
            vectors=adamw_sentence(
                lr if fallback_lr is None else fallback_lr,
                (beta1, graft_beta2) if fallback_betas is None else fallback_betas,
                graft_eps if fallback_eps is None else fallback_eps,
                weight_decay if fallback_weight_decay is None else fallback_weight_decay,
                owner=self,
            ),
            **engine,
        )


def _filter(beta1: Value, filter_beta: Value | None, debias: bool) -> Transform:
    """The average of gradients, or, with a third decay, its interpolation with the gradient."""
    if filter_beta is None:
        return EMA(beta1, debias)
    return Interpolation(filter_beta, beta1, debias).rename(beta1="filter_beta", beta2="beta1")
