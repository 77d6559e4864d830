"""Steepest descent under a norm of one's choice, and Scion, which chooses it by the layer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn
from typing_extensions import Unpack

from hasten.checks import check_choice, check_value, is_zero
from hasten.engine import EngineOptions, Optimizer, Sentence
from hasten.iterates import Plain
from hasten.optimizers.layers import MODULAR, Kind, norm_groups
from hasten.oracles import Backpropagation
from hasten.transforms import EMA, NORMS, NormGeometry, Scale, WeightDecay
from hasten.transforms.orthogonal import check_iteration
from hasten.words import NONNEGATIVE, Hyper, Transform, Value


class SteepestDescent(Optimizer):
    """Momentum, then of all steps of length lr · radius, in a norm, the one that goes furthest along it.

    "Old optimizer, new norm": with ``norm="max_entry"`` this is signSGD (Signum with momentum), with ``"spectral"``
    Muon, with ``"frobenius"`` normalised SGD; :mod:`hasten.optimizers.correspondences` is the table, and runs it. A
    parameter group may name its own norm under the key ``norm``, and have its own `radius`; the length of a step over
    all layers is then the largest of ‖step‖/radius.

    With weight decay λ the step is one of Frank and Wolfe's, over the ball of radius `radius`/λ: while lr · λ ≤ 1, a
    parameter that starts in the ball stays in it (with a `backend` whose singular values reach 1.2, in one that much
    larger). Without, it is a trust-region step.

    Args:
        params: a module, parameters, named parameters or groups.
        lr: length of a step, in units of the radius; or 1/sharpness with ``mode="sharp"``.
        momentum: decay of the average of gradients; 0: none is kept.
        norm: of matrices: a name in :data:`hasten.transforms.NORMS`, which all have, embeddings and heads too; or
            ``"modular"``: of every layer the one that suits it, see :func:`~hasten.norm_groups`.
        vector_norm: of parameters with fewer than two dimensions; None: `norm` where that is one for any tensor,
            ``"rms"`` otherwise.
        weight_decay: decoupled.
        radius: factor on the step.
        mode: ``"lmo"``: the length is lr · radius, whatever the gradient's. ``"sharp"``: in proportion to the dual norm
            of each tensor's gradient.
        backend, steps: of the spectral norms, see :class:`~hasten.transforms.NormGeometry`.

    Raises:
        ValueError: an unknown norm (with those known), or one of matrices for a parameter that is none.

    Example:
        >>> import torch, hasten
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
        >>> head = {"params": model[2].parameters(), "norm": "max_entry", "radius": 0.1}
        >>> opt = hasten.SteepestDescent([{"params": model[0].parameters()}, head], lr=0.1, norm="spectral")
        >>> model(torch.randn(32, 8)).square().mean().backward()
        >>> before = model[2].weight.detach().clone()
        >>> _ = opt.step()
        >>> print(f"{(model[2].weight - before).abs().max().item():.3f}")
        0.010
    """

    source: ClassVar[str] = "Bernstein & Newhouse 2024, arXiv:2409.20325; Kovalev 2025, arXiv:2503.12645"
    role_key: ClassVar[str] = "norm"

    def __init__(
        self,
        params: Any,
        lr: Value = 1e-2,
        momentum: Value = 0.9,
        norm: str = "spectral",
        vector_norm: str | None = None,
        weight_decay: Value = 0.0,
        radius: Value = 1.0,
        mode: Literal["lmo", "sharp"] = "lmo",
        backend: str = "polar_express",
        steps: int | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        check_choice(type(self).__name__, "norm", norm, ("modular", *NORMS))
        check_choice(type(self).__name__, "mode", mode, ("lmo", "sharp"))
        check_iteration(type(self).__name__, backend, steps, None)
        of_any_tensor = [name for name, row in NORMS.items() if not row.matrices]
        if vector_norm is None:
            vector_norm = norm if norm in of_any_tensor else "rms"
        check_choice(type(self).__name__, "vector_norm", vector_norm, of_any_tensor)

        def transforms(name: str) -> tuple[Transform, ...]:
            average = EMA(momentum, debias=False).rename(beta1="momentum")
            memory = () if is_zero(momentum) else (average,)
            return (
                *memory,
                NormGeometry(name, mode, backend, steps),
                Scale(radius).rename(factor="radius"),
            )

        def sentence(name: str) -> Sentence:
            return Sentence(Backpropagation(), (*transforms(name), WeightDecay(weight_decay)), Plain(lr))

        norms = MODULAR if norm == "modular" else dict.fromkeys(MODULAR, norm)
        super().__init__(
            norm_groups(params, {**norms, "vector": vector_norm}),
            *transforms(norms["hidden"]),
            lr=lr,
            weight_decay=weight_decay,
            vectors=sentence(vector_norm),
            roles={name: sentence(name) for name in NORMS},
            **engine,
        )
        self.module = params if isinstance(params, nn.Module) else None


class Scion(SteepestDescent):
    """Every layer moves within the unit ball of its own norm; one learning rate for all.

    Hidden matrices have the RMS → RMS norm, embeddings that of their rows, the head the largest entry times its number
    of inputs, biases and gains their root mean square: learning rates found on a small model serve a wide one. With
    ``weight_decay=1`` (the default) this is the constrained variant: parameters that start in the balls of their radii
    stay there. 0 is the unconstrained one.

    The radii are those of the authors' transformer whose head is tied to its embedding, 50 and 3000; embeddings and
    vectors have `radius` if nothing is said. Their image models have 1 and 100, with ``lr=2**-4, momentum=0.5``.
    Convolutions are taken as matrices of out × in·h·w, for which the authors' steps are √(hw) times shorter. Their
    `momentum` is one minus ours. Their nonlinearities are scaled to keep the variance, and their weights start on
    the balls; neither is done here.

    Args:
        params: a module, where kinds of layers are found (:func:`~hasten.norm_groups` takes other
            wishes); or groups, each with its `norm` and `radius`; or parameters: matrices are hidden ones.
        lr: length of a step, in units of the radius.
        momentum: decay of the average of gradients.
        radius: of hidden layers.
        head_radius, embedding_radius, vector_radius: of the others; None: `radius`.
        weight_decay: decoupled; 1: constrained.
        backend, steps: of the spectral norm, see :class:`~hasten.transforms.NormGeometry`.

    Raises:
        ValueError: as :class:`SteepestDescent`.

    Example:
        >>> import torch, hasten
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> opt = hasten.Scion(model, lr=2**-6, radius=1.0, head_radius=100.0)
        >>> [(group["norm"], group["radius"]) for group in opt.param_groups]
        [('rms_to_rms', 1.0), ('rms', 1.0), ('mean_to_max', 100.0)]
    """

    source: ClassVar[str] = "Pethick et al. 2025, arXiv:2502.07529"

    def __init__(
        self,
        params: Any,
        lr: Value = 2**-12,
        momentum: Value = 0.9,
        radius: Value = 50.0,
        head_radius: Value | None = 3000.0,
        embedding_radius: Value | None = None,
        vector_radius: Value | None = None,
        weight_decay: Value = 1.0,
        backend: str = "polar_express",
        steps: int | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        for name, value in (
            ("head", head_radius),
            ("embedding", embedding_radius),
            ("vector", vector_radius),
        ):
            if value is not None:
                check_value(
                    type(self).__name__, f"{name}_radius", value(0) if callable(value) else value, _RADIUS
                )
        given: dict[Kind, Value | None]
        given = {"head": head_radius, "embedding": embedding_radius, "vector": vector_radius}
        radii = {kind: value for kind, value in given.items() if value is not None}
        super().__init__(
            norm_groups(params, SCION, radii),
            lr,
            momentum,
            SCION["hidden"],
            SCION["vector"],
            weight_decay,
            radius,
            backend=backend,
            steps=steps,
            **engine,
        )
        self.module = params if isinstance(params, nn.Module) else None


_RADIUS = Hyper("radius", 1.0, NONNEGATIVE, "factor on the step")
SCION = {**MODULAR, "head": "mean_to_max"}
"""Scion's norms by kind of layer."""
