"""Muon and its relatives: momentum, orthogonalised, for matrices; AdamW for all other parameters.

Any momentum, oracle and iterate goes before and after the geometry, so accelerated dynamics need no class of their own.
AuON, sometimes named beside them, is no orthogonalisation: see :class:`~hasten.transforms.FrobeniusLMO`.

Example:
    Muon on AdEMAMix's two momenta, MARS-Muon on variance-reduced gradients, and Schedule-Free Muon; vectors by AdamW.

    >>> import torch, hasten
    >>> from hasten.iterates import ScheduleFree
    >>> from hasten.oracles import Backpropagation, Mars
    >>> from hasten.optimizers.adam import adamw_sentence
    >>> from hasten.transforms import EMA, ClipTensorNorm, Orthogonalize, SecondMoment, TwoMomenta, WeightDecay
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    >>> matched = Orthogonalize("ns5", scale="match_rms_adamw")
    >>> adamw = adamw_sentence(1e-3, (0.9, 0.95), 1e-8, 0.1)
    >>> opt = hasten.Optimizer(model, TwoMomenta(0.9, 0.999, 4.0), matched, lr=1e-3, weight_decay=0.1, vectors=adamw)

    >>> corrected = Mars(gamma=0.025, beta1=0.95)
    >>> chain = ClipTensorNorm(1.0), EMA(0.95, debias=False), matched
    >>> opt = hasten.Optimizer(model, *chain, oracle=corrected, lr=1e-3, weight_decay=0.1, vectors=adamw)

    >>> others = hasten.Sentence(Backpropagation(), (SecondMoment(0.95), WeightDecay(0.1)), ScheduleFree(1e-3))
    >>> opt = hasten.Optimizer(model, matched, iterate=ScheduleFree(1e-3), weight_decay=0.1, vectors=others)
    >>> model(torch.randn(32, 8)).square().mean().backward()
    >>> opt.step()
    >>> opt.eval()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from typing_extensions import Unpack

from hasten.checks import check_choice, flag, number
from hasten.engine import EngineOptions, Optimizer
from hasten.linalg.coefficients import Coefficients, polar_express, shrunk
from hasten.optimizers.adam import adamw_sentence
from hasten.transforms import AlignedSecondMoment, NesterovEMA, Orthogonalize
from hasten.transforms.orthogonal import SCALES, Scaling, check_iteration
from hasten.words import NONNEGATIVE, Value


@dataclass(frozen=True)
class Convention:
    """What a library means by Muon: defaults, and the factor on the orthogonal factor.

    Args:
        lr, weight_decay: of the matrices; decay is decoupled and does not see the factor.
        nesterov: look ahead along the average.
        backend: the iteration, of five steps; Dion's has coefficients of its own.
        eps, eps_on: see :class:`~hasten.transforms.Orthogonalize`.
        scale: as there.
        fallback_lr: of all other parameters; None: the same.
        fallback_eps: AdamW's eps.
    """

    lr: float
    weight_decay: float
    nesterov: bool
    backend: str
    eps: float
    eps_on: Literal["floor", "sum"]
    scale: Scaling
    fallback_lr: float | None
    fallback_eps: float


CONVENTIONS = {
    "torch": Convention(1e-3, 0.1, True, "ns5", 1e-7, "floor", "original", 3e-4, 1e-8),
    "jordan": Convention(2e-2, 0.0, True, "ns5", 1e-7, "sum", "original", 3e-4, 1e-10),
    "moonshot": Convention(1e-3, 0.1, True, "ns5", 1e-7, "sum", "match_rms_adamw", None, 1e-8),
    "dion": Convention(1e-2, 0.01, False, "ns5", 1e-8, "sum", "rms_to_rms", 3e-4, 1e-8),
}
"""By name: torch.optim.Muon of torch 2.13; Keller Jordan's; Moonlight's; microsoft/dion's of July 2026."""


def dion_quintics(steps: int) -> Coefficients:
    """Polar Express as in Dion's code: room for rounding in every step, and the norm 1.02 times larger before."""
    first, *others = polar_express(steps, safety=1.02, cushion=0.02)
    return (shrunk([first, first], 1.02)[0], *others)


Named = Literal["torch", "jordan", "moonshot", "dion"]


class Muon(Optimizer):
    """Muon: hidden matrices move along their orthogonalised momentum, all other parameters by AdamW.

    ``hasten.Muon(model)`` finds out which is which and prints it on demand: see :func:`~hasten.matrix_groups`. Each
    kind is in parameter groups of its own, with its own `lr` and `weight_decay`; schedulers scale each.

    Libraries mean different things by this name. `convention` sets what is left at None:

    ============  ====  ============  ===================  ========  ==================  ======================
    `convention`  lr    weight_decay  scale                nesterov  backend             fallback lr, eps
    ============  ====  ============  ===================  ========  ==================  ======================
    ``torch``     1e-3  0.1           ``original``         yes       ``ns5``             3e-4, 1e-8
    ``jordan``    2e-2  0             ``original``         yes       ``ns5``             3e-4, 1e-10
    ``moonshot``  1e-3  0.1           ``match_rms_adamw``  yes       ``ns5``             the same lr, 1e-8
    ``dion``      1e-2  0.01          ``rms_to_rms``       no        Polar Express, 5    3e-4, 1e-8
    ============  ====  ============  ===================  ========  ==================  ======================

    The momentum is an average in all of them, as torch's; Moonshot's and Dion's codes keep it 1/(1−μ) times larger,
    which the geometry does not see. In float64 the iteration runs in float64; float32 and bfloat16 matrices are
    iterated in bfloat16, as in torch. A state dict of ``torch.optim.Muon`` loads.

    Args:
        params: a module, parameters, named parameters or groups; see :func:`~hasten.matrix_groups`.
        lr: learning rate of the matrices.
        weight_decay: decoupled, not multiplied by the scale; also of the others, unless `fallback_weight_decay`.
        momentum: decay of the average of gradients.
        nesterov: look ahead along the average.
        convention: see above.
        backend, steps, coefficients, scale, eps: of :class:`~hasten.transforms.Orthogonalize`; ``scale=None``: no
            factor.
        fallback_lr: learning rate of all other parameters; with ``scale="match_rms_adamw"`` the same as lr, if None.
        fallback_betas: AdamW's decays, for all other parameters.
        fallback_eps: AdamW's eps.
        fallback_weight_decay: decay of all other parameters.

    Raises:
        ValueError: an option or a value that is not allowed; or `lr` is a schedule and nothing says what the
            learning rate of the other parameters is.

    Example:
        >>> import torch, hasten
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
        >>> opt = hasten.Muon(model, lr=0.02, fallback_lr=1e-3)
        >>> model(torch.randn(32, 8)).square().mean().backward()
        >>> opt.step()
        >>> [(group["matrices"], group["lr"]) for group in opt.param_groups]
        [(True, 0.02), (False, 0.001)]
    """

    source: ClassVar[str] = (
        "Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982"
    )

    def __init__(
        self,
        params: Any,
        lr: Value | None = None,
        weight_decay: Value | None = None,
        momentum: Value = 0.95,
        nesterov: bool | None = None,
        convention: Named = "torch",
        backend: str | None = None,
        steps: int | None = None,
        coefficients: Sequence[tuple[float, float, float]] | None = None,
        scale: Scaling | Literal["convention"] | None = "convention",
        eps: float | None = None,
        fallback_lr: Value | None = None,
        fallback_betas: tuple[Value, Value] = (0.9, 0.95),
        fallback_eps: Value | None = None,
        fallback_weight_decay: Value | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        check_choice(type(self).__name__, "convention", convention, CONVENTIONS)
        of = CONVENTIONS[convention]
        scaling: Scaling | None = of.scale if scale == "convention" else scale
        iteration = of.backend if backend is None else backend
        check_iteration(type(self).__name__, iteration, steps, coefficients)
        if convention == "dion" and backend is None and coefficients is None:
            coefficients = dion_quintics(5 if steps is None else steps)
        check_choice(type(self).__name__, "scale", scaling, SCALES)
        geometry = Orthogonalize(
            iteration,
            steps,
            None if coefficients is None else tuple(coefficients),
            scaling,
            of.eps if eps is None else number(self, "eps", eps, NONNEGATIVE),
            of.eps_on,
        )
        look_ahead = of.nesterov if nesterov is None else flag(self, "nesterov", nesterov)
        rate: Value = of.lr if lr is None else lr
        decay: Value = of.weight_decay if weight_decay is None else weight_decay
        same = fallback_lr is None and (scaling == "match_rms_adamw" or of.fallback_lr is None)
        others = adamw_sentence(
            rate if same else _rate_of_others(self, rate, fallback_lr, of.fallback_lr),
            fallback_betas,
            of.fallback_eps if fallback_eps is None else fallback_eps,
            decay if fallback_weight_decay is None else fallback_weight_decay,
            owner=self,
        )
        super().__init__(
            params,
            NesterovEMA(momentum, look_ahead),
            geometry,
            lr=rate,
            weight_decay=decay,
            vectors=others,
            **engine,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, or the state of a ``torch.optim.Muon`` with the same formula.

        Raises:
            ValueError: groups, sizes, names or shapes do not fit, or torch's options differ from those of this
                optimizer; names the first that does not fit. Nothing is changed.
        """
        super().load_state_dict(_counted(self, state_dict))


def _rate_of_others(owner: Optimizer, lr: Value, given: Value | None, default: float | None) -> Value:
    if given is not None:
        return given
    if callable(lr):
        raise ValueError(
            f"{owner.name}: lr is a schedule, and fallback_lr is not given; give the learning rate of the parameters "
            "that are not matrices too, or a schedule of it"
        )
    assert default is not None
    return default


def _counted(optimizer: Muon, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict of torch's Muon, checked, and completed by the step counts it lacks; another one as it is."""
    groups = state_dict.get("param_groups", ())
    if not any("ns_steps" in group for group in groups):
        return state_dict
    momentum, geometry = optimizer.sentence.transforms[:2]
    assert isinstance(momentum, NesterovEMA)
    assert isinstance(geometry, Orthogonalize)
    quintics = geometry.quintics if geometry.backend in ("ns5", "muon_plus") else None
    own = {
        "nesterov": momentum.nesterov,
        "ns_coefficients": None if quintics is None or len(set(quintics)) > 1 else quintics[0],
        "ns_steps": None if quintics is None else len(quintics),
        "adjust_lr_fn": geometry.scale,
        "eps": geometry.eps if geometry.eps_on == "floor" else None,
    }
    for i, group in enumerate(groups):
        theirs = {**group, "adjust_lr_fn": group["adjust_lr_fn"] or "original"}
        for key, value in own.items():
            if theirs[key] != value:
                raise ValueError(
                    f"{optimizer.name}: group {i} of the state dict, of torch.optim.Muon, has {key} = {theirs[key]!r}; "
                    f"this optimizer has {value!r}"
                )
    # Nothing in Muon's formula depends on the number of steps, which torch's does not keep.
    states = {index: {"step": 0.0, **state} for index, state in state_dict["state"].items()}
    kept = [{key: value for key, value in group.items() if key not in own} for group in groups]
    return {**state_dict, "state": states, "param_groups": kept}


class TurboMuon(Muon):
    """Muon with Turbo's iteration: rows are scaled towards orthogonality first, which saves one step of five.

    Everything else is :class:`Muon`. The rescaling of rows changes the limit of the iteration slightly, and with it
    the symmetries: turning the columns' space turns the step, turning the rows' space does not exactly.

    Example:
        >>> import torch, hasten
        >>> opt = hasten.TurboMuon(torch.nn.Linear(8, 4), lr=0.02)
        >>> opt.sentence.transforms[1].backend
        'turbo'
    """

    source: ClassVar[str] = "Boissin et al. 2025, Turbo-Muon, arXiv:2512.04632"

    def __init__(
        self,
        params: Any,
        lr: Value | None = None,
        weight_decay: Value | None = None,
        momentum: Value = 0.95,
        nesterov: bool | None = None,
        convention: Named = "torch",
        steps: int | None = None,
        scale: Scaling | Literal["convention"] | None = "convention",
        fallback_lr: Value | None = None,
        fallback_betas: tuple[Value, Value] = (0.9, 0.95),
        fallback_eps: Value | None = None,
        fallback_weight_decay: Value | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            weight_decay,
            momentum,
            nesterov,
            convention,
            "turbo",
            steps,
            None,
            scale,
            None,
            fallback_lr,
            fallback_betas,
            fallback_eps,
            fallback_weight_decay,
            **engine,
        )


class AdaMuon(Optimizer):
    """Muon with Adam's diagonal on the orthogonalised momentum, and steps of root mean square 0.2 · lr.

    Learning rates and decay are therefore AdamW's, and `lr` is that of all other parameters too, if `fallback_lr` is
    None. Two algorithms were published under this name:

    ``"code"``: the authors' first code (July 2025) and pytorch-optimizer's: the momentum is orthogonalised; beta2
    0.999. ``"paper"``: versions 2 and 3 of the paper, and the authors' later code: the *signs* of the momentum are
    orthogonalised, which is another direction; beta2 is the momentum. Bias corrections of either cancel.

    Args:
        params: a module, parameters, named parameters or groups; see :func:`~hasten.matrix_groups`.
        lr: learning rate; the authors' codes start from 0.02, AdamW's own rates are where it does best.
        weight_decay: decoupled.
        momentum: decay of the average of gradients.
        beta2: decay of the average of squares; None: that of the variant.
        eps: added to the root of the average of squares; also AdamW's.
        variant: see above.
        nesterov: look ahead along the average.
        backend, steps, coefficients: of :class:`~hasten.transforms.Orthogonalize`.
        fallback_lr, fallback_betas, fallback_weight_decay: of AdamW, for all other parameters.

    Example:
        >>> import torch, hasten
        >>> model = torch.nn.Linear(8, 4)
        >>> opt = hasten.AdaMuon(model, lr=1e-3, variant="paper")
        >>> before = model.weight.detach().clone()
        >>> model(torch.randn(32, 8)).square().mean().backward()
        >>> opt.step()
        >>> round((before - model.weight.detach()).square().mean().sqrt().item(), 5)
        0.0002
    """

    source: ClassVar[str] = "Si, Zhang & Shen 2025, arXiv:2507.11005"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-3,
        weight_decay: Value = 0.01,
        momentum: Value = 0.95,
        beta2: Value | None = None,
        eps: Value = 1e-8,
        variant: Literal["code", "paper"] = "code",
        nesterov: bool = True,
        backend: str = "ns5",
        steps: int | None = None,
        coefficients: Sequence[tuple[float, float, float]] | None = None,
        fallback_lr: Value | None = None,
        fallback_betas: tuple[Value, Value] = (0.9, 0.95),
        fallback_weight_decay: Value | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        check_choice("AdaMuon", "variant", variant, ("code", "paper"))
        if beta2 is None:
            beta2 = 0.999 if variant == "code" else momentum
        check_iteration("AdaMuon", backend, steps, coefficients)
        given = None if coefficients is None else tuple(coefficients)
        geometry = Orthogonalize(backend, steps, given, None, 1e-7, "sum", sign_stabilized=variant == "paper")
        decay = weight_decay if fallback_weight_decay is None else fallback_weight_decay
        super().__init__(
            params,
            NesterovEMA(momentum, flag(self, "nesterov", nesterov)),
            geometry,
            AlignedSecondMoment(beta2, eps).rename(beta2="beta2_update"),
            lr=lr,
            weight_decay=weight_decay,
            vectors=adamw_sentence(
                lr if fallback_lr is None else fallback_lr, fallback_betas, eps, decay, owner=self
            ),
            **engine,
        )
