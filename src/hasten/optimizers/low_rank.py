"""Low rank without singular values: matrices move in the leading directions of a cosine basis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from typing_extensions import Unpack

from hasten.checks import check_choice, flag, unpacked
from hasten.engine import EngineOptions, Optimizer
from hasten.optimizers.adam import adamw_sentence
from hasten.transforms import EMA, Orthogonalize, Projected, SecondMoment
from hasten.transforms.orthogonal import SCALES, Scaling, check_iteration
from hasten.transforms.projected import check_projection
from hasten.words import Value


class Trion(Optimizer):
    """Muon at low rank: of the momentum, the r leading cosine directions are orthogonalised and applied.

    What is not applied stays in the momentum (error feedback), at full weight; what is decays by μ as in Muon. With
    ``rank=1.0`` it is Muon with a heavy-ball momentum; with a fraction ρ of the directions, gradients are remembered
    for about 1/(ρ(1−μ)) steps, 1/ρ times longer. Newton–Schulz works on r × max(m, n) matrices; the state is Muon's,
    one number per parameter, and r for each matrix. See :class:`~hasten.transforms.Projected` for the formula. All
    parameters that are not matrices move by AdamW.

    Args:
        params: a module, parameters, named parameters or groups; see :func:`~hasten.matrix_groups`.
        lr: learning rate of the matrices.
        weight_decay: decoupled, not multiplied by the scale; also of the others, unless `fallback_weight_decay`.
        momentum: μ.
        rank: r, at most min(m, n); or a fraction of it in (0, 1].
        norm: 1 or 2: that of the coefficients of a direction, over the longer side, by which the leading ones are
            chosen. The authors' code has 1; 2 keeps the most energy.
        backend, steps, coefficients: of :class:`~hasten.transforms.Orthogonalize`.
        scale: as there, for the m × n matrix: the spectral norm of the step is as Muon's, but only r of its singular
            values are not zero, so that with ``"match_rms_adamw"`` the entries have root mean square
            0.2 √(r/min(m, n)).
        fallback_lr, fallback_betas, fallback_eps, fallback_weight_decay: of AdamW, for all other parameters.

    Raises:
        ValueError: an option or a value that is not allowed.

    Example:
        >>> import torch, hasten
        >>> model = torch.nn.Linear(16, 8)
        >>> opt = hasten.Trion(model, lr=0.02, rank=0.25)
        >>> before = model.weight.detach().clone()
        >>> model(torch.randn(32, 16)).square().mean().backward()
        >>> opt.step()
        >>> torch.linalg.matrix_rank(before - model.weight.detach(), rtol=1e-3)
        tensor(2)
    """

    source: ClassVar[str] = "Modoranu et al. 2025, arXiv:2505.17967"

    def __init__(
        self,
        params: Any,
        lr: Value = 0.02,
        weight_decay: Value = 0.0,
        momentum: Value = 0.95,
        rank: int | float = 0.25,
        norm: int = 1,
        backend: str = "ns5",
        steps: int | None = None,
        coefficients: Sequence[tuple[float, float, float]] | None = None,
        scale: Scaling | None = "original",
        fallback_lr: Value = 3e-4,
        fallback_betas: tuple[Value, Value] = (0.9, 0.95),
        fallback_eps: Value = 1e-8,
        fallback_weight_decay: Value | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        check_projection("Trion", rank, 1, norm)
        check_iteration("Trion", backend, steps, coefficients)
        check_choice("Trion", "scale", scale, SCALES)
        given = None if coefficients is None else tuple(coefficients)
        orthogonal = Orthogonalize(backend, steps, given, scale=None)
        decay = weight_decay if fallback_weight_decay is None else fallback_weight_decay
        super().__init__(
            params,
            Projected((orthogonal,), rank, momentum, "momentum", norm=norm, scale=scale),
            lr=lr,
            weight_decay=weight_decay,
            vectors=adamw_sentence(fallback_lr, fallback_betas, fallback_eps, decay, owner=self),
            **engine,
        )


class DCTAdamW(Optimizer):
    """AdamW in the r leading cosine directions of each gradient matrix, with its averages in those directions only.

    What is left out is added to the next gradient (error feedback). State per matrix m × n: 2 r max(m, n) + r numbers,
    and m n for the error, which `error_feedback=False` saves (AdamW: 2 m n). With ``state_dtype=torch.bfloat16`` all
    of it but the r is halved. When the directions change, the averages of those that stay are kept; the others start
    from zero (with the bias correction of the step, as in the authors' code). With ``rank=1.0`` it is AdamW in the
    cosine basis. See :class:`~hasten.transforms.Projected` for the formula. All parameters that are not matrices move
    by AdamW with the same hyperparameters.

    Args:
        params: a module, parameters, named parameters or groups; see :func:`~hasten.matrix_groups`.
        lr, betas, eps, weight_decay: as AdamW's.
        rank: r, at most min(m, n); or a fraction of it in (0, 1].
        error_feedback: whether what is left out is kept.
        refresh: the directions are chosen in every step, or in one of so many.
        norm: 1 or 2: that of the coefficients of a direction, over the longer side, by which the leading ones are
            chosen. The authors' code has 1; 2 keeps the most energy.

    Raises:
        ValueError: an option or a value that is not allowed.

    Example:
        >>> import torch, hasten
        >>> model = torch.nn.Linear(16, 8)
        >>> opt = hasten.DCTAdamW(model, rank=0.25, error_feedback=False)
        >>> {name: tuple(value.shape) for name, value in opt.state[model.weight].items() if value.dim()}
        {'rows': (2,), 'exp_avg': (2, 16), 'exp_avg_sq': (2, 16)}
    """

    source: ClassVar[str] = "Modoranu et al. 2025, arXiv:2505.17967"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 1e-2,
        rank: int | float = 0.25,
        error_feedback: bool = True,
        refresh: int = 1,
        norm: int = 1,
        **engine: Unpack[EngineOptions],
    ) -> None:
        check_projection("DCTAdamW", rank, refresh, norm)
        beta1, beta2 = unpacked(self, "betas", betas, 2)
        super().__init__(
            params,
            Projected(
                (EMA(beta1), SecondMoment(beta2, eps)),
                rank,
                feedback="error" if flag(self, "error_feedback", error_feedback) else None,
                refresh=refresh,
                norm=norm,
            ),
            lr=lr,
            weight_decay=weight_decay,
            vectors=adamw_sentence(lr, betas, eps, weight_decay, owner=self),
            **engine,
        )
