"""Federated learning with sketched updates, clients sending r numbers instead of d: all of it but Flower.

:class:`SketchMod` and :class:`SketchStrategy` connect it to Flower. They are imported when they are first asked for,
and need ``pip install 'hasten[federated]'``.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.distributed.agreement import Disagreement
from hasten.distributed.anchor import Anchor, Outer, mean_of_workers
from hasten.distributed.exchange import Parcel
from hasten.distributed.linear import Subspace
from hasten.sketches import Sketch
from hasten.sketches.layers import Shape, vectors
from hasten.wire import Communication, Traffic

if TYPE_CHECKING:
    from hasten.distributed.flower import SketchMod, SketchStrategy

__all__ = ["SketchMod", "SketchStrategy", "SketchedMean", "sketched"]

SKETCHED = "sketched displacement"
"""The name of s among the arrays that a client sends."""


def __getattr__(name: str) -> Any:
    if name not in ("SketchMod", "SketchStrategy"):
        raise AttributeError(f"module 'hasten.distributed.federated' has no attribute {name!r}")
    try:
        module = importlib.import_module("hasten.distributed.flower")
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs Flower: pip install 'hasten[federated]' ({error})") from error
    return getattr(module, name)


def sketched(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    sketch: Sketch | None = None,
    *,
    exact: Callable[[Shape], bool] = vectors,
) -> dict[str, Tensor]:
    """What a client sends: s = Pᵀ(θ − θ_i) under one name, r numbers, and what is averaged, whole.

    Args:
        before: the model's arrays as they came from the server; those of a floating dtype are θ unless the settings
            name them as averaged. Arrays of other dtypes are not sent.
        after: the same after training here.
        settings: what :meth:`SketchedMean.begin` returned.
        sketch: the server's family of P; see :class:`~hasten.distributed.Subspace`.
        exact: which shapes are sent whole.

    Raises:
        Disagreement: the server uses another sketch, or another model.
        ValueError: `after` has other names or shapes than `before`, or the settings do not come from a SketchedMean.

    Example:
        >>> from hasten.sketches import BalancedCountSketch
        >>> sketch = BalancedCountSketch(ratio=8)
        >>> server = SketchedMean(sketch)
        >>> model = {"weight": torch.zeros(4, 4), "bias": torch.zeros(4), "steps": torch.tensor(0)}
        >>> settings = server.begin(model)
        >>> sent = sketched(model, {n: t + 1 for n, t in model.items()}, settings, sketch)
        >>> {name: tuple(t.shape) for name, t in sent.items()}
        {'sketched displacement': (6,)}
        >>> server.finish([(10, sent)])["bias"]
        tensor([1., 1., 1., 1.])
    """
    for key in ("sketch", "sketch-digest", "sketch-seed", "sketch-step", "sketch-averaged"):
        if key not in settings:
            raise ValueError(f"sketched: the settings have no {key!r}; does the server use a SketchStrategy?")
    theta, averaged, _ = divided(before, settings["sketch-averaged"])
    own, own_averaged, _ = divided(after, settings["sketch-averaged"])
    if _shapes(theta) != _shapes(own) or _shapes(averaged) != _shapes(own_averaged):
        raise ValueError(
            f"sketched: the trained model has {_shapes({**own, **own_averaged})}, the server's "
            f"{_shapes({**theta, **averaged})}; they must have the same arrays"
        )
    exchange = Subspace(sketch, exact=exact, seed=int(settings["sketch-seed"]))
    exchange.prepare([t.shape for t in theta.values()])
    if digest(exchange, theta) != settings["sketch-digest"]:
        raise Disagreement(
            f"the client sketches by {exchange.sketch.sketch!r}, the server by {settings['sketch']}, with other ranks, "
            "or for other parameters; both need the same sketch, the same `exact`, and the same model"
        )
    ways = [_wide(t) - _wide(own[name]) for name, t in theta.items()]
    parcel = Parcel(ways, range(len(ways)), int(settings["sketch-step"]))
    return {SKETCHED: exchange.project(parcel, exchange.draws(parcel)), **own_averaged}


class SketchedMean:
    """The server's side: the model, the mean of what clients sent, and an outer optimizer that steps on it.

        s = Σ n_i s_i / Σ n_i  over the clients i that answered, of n_i examples each
        θ ← outer step at θ with the gradient P s = P Pᵀ · mean(θ − θ_i)

    P is drawn anew each round, from the seed and the number of the round. Sums of s being sketches of sums, that is
    exactly the sketch of the weighted mean, whoever answered; E[P Pᵀ] = I makes it unbiased.

    What does not fit, is not finite, or has no positive weight is left out of the mean and listed in `refused`. If
    nothing is left, or the mean is not finite, the model stays as it is.

    Args:
        sketch: family of P; balanced CountSketch with d/r = 64 unless given, with vectors sent whole.
        outer: makes the outer optimizer from a list of tensors; SGD(lr=1) unless given: federated averaging. Noise of
            the sketch and momentum multiply: see :class:`~hasten.distributed.LocalSteps`.
        averaged: names of arrays that are averaged whole instead, such as those of ``model.named_buffers()``: an outer
            optimizer makes no sense for running variances.
        exact: which shapes are sent whole.
        seed: of the subspaces.

    Example:
        >>> server = SketchedMean()
        >>> settings = server.begin({"bias": torch.zeros(2)})
        >>> replies = [(n, sketched({"bias": torch.zeros(2)}, {"bias": torch.full((2,), x)}, settings))
        ...            for n, x in ((30, 1.0), (10, 5.0))]
        >>> server.finish(replies)
        {'bias': tensor([2., 2.])}
        >>> server.communication.parts["displacements"].received
        16.0
    """

    def __init__(
        self,
        sketch: Sketch | None = None,
        outer: Outer | None = None,
        *,
        averaged: Collection[str] = (),
        exact: Callable[[Shape], bool] = vectors,
        seed: int = 0,
    ) -> None:
        self.exchange = Subspace(sketch, exact=exact, seed=seed)
        self.outer = mean_of_workers if outer is None else outer
        if not callable(self.outer):
            raise TypeError(
                f"SketchedMean: outer = {outer!r} is not allowed; it must be a function that makes an optimizer"
            )
        if isinstance(averaged, str):
            raise TypeError(
                f"SketchedMean: averaged = {averaged!r} is not allowed; it must be a list of names"
            )
        self.averaged = list(averaged)
        self.step = 0
        """How many rounds were begun."""
        self.refused: dict[int, str] = {}
        """Which replies of the last round were left out of the mean, and why."""
        self.communication = Communication()
        """What the server sent and received: arrays alone, without Flower's own framing."""
        self.anchor: Anchor | None = None
        self._arrays: dict[str, Tensor] = {}
        self._saved: dict[str, Any] | None = None

    def begin(self, arrays: Mapping[str, Tensor], clients: int = 0) -> dict[str, Any]:
        """Start a round from these arrays, the whole model, sent to so many clients; returns what tells clients P."""
        unknown = [name for name in self.averaged if name not in arrays]
        if unknown:
            raise ValueError(
                f"SketchedMean: averaged = {unknown} is not allowed; the model has {list(arrays)}"
            )
        theta = divided(arrays, self.averaged)[0]
        if self.anchor is None or _shapes(theta) != _shapes(divided(self._arrays, self.averaged)[0]):
            self.exchange.prepare([t.shape for t in theta.values()])
            self.anchor = Anchor(list(theta.values()), self.outer)
        if self._saved is not None:
            self.anchor.load_state_dict(self._saved)
            self._saved = None
        self.anchor.move(list(theta.values()))
        self._arrays = dict(arrays)
        self.step += 1
        size = sum(t.nbytes for t in arrays.values())
        self._count("model", Traffic(clients, clients * size, float(clients * size), 0.0))
        return {
            "sketch": repr(self.exchange.sketch.sketch),
            "sketch-digest": digest(self.exchange, theta),
            "sketch-seed": self.exchange.seed,
            "sketch-step": self.step,
            "sketch-averaged": self.averaged,
        }

    def finish(self, replies: Sequence[tuple[float, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
        """The model after the round, from (n_i, what :func:`sketched` returned) of all clients that answered."""
        if self.anchor is None:
            raise RuntimeError("SketchedMean: no round was begun; call begin(arrays) first")
        theta, averaged, _ = divided(self._arrays, self.averaged)
        parcel = Parcel([torch.zeros_like(t) for t in self.anchor.point], range(len(theta)), self.step)
        draws = self.exchange.draws(parcel)
        expected = {SKETCHED: (sum(draw.rank for draw in draws if draw is not None),), **_shapes(averaged)}
        self.refused = {}
        used: list[tuple[float, Mapping[str, Tensor]]] = []
        for i, (weight, sent) in enumerate(replies):
            size = sum(t.nbytes for t in sent.values())
            self._count("displacements", Traffic(1, size, 0.0, float(size)))
            fault = _fault(float(weight), sent, expected)
            if fault:
                self.refused[i] = fault
            else:
                used.append((float(weight), sent))
        if used:
            mean = {name: _weighted(used, name) for name in expected}
            self.exchange.lift(mean.pop(SKETCHED), parcel, draws)
            if self.anchor.step(parcel.tensors):
                moved = {
                    name: point.detach().to(t.dtype, copy=True)
                    for (name, t), point in zip(theta.items(), self.anchor.point, strict=True)
                }
                means = {name: mean[name].to(t.dtype) for name, t in averaged.items()}
                self._arrays = {**self._arrays, **moved, **means}
        return dict(self._arrays)

    def _count(self, part: str, traffic: Traffic) -> None:
        self.communication = self.communication + Communication({part: traffic})

    def state_dict(self) -> dict[str, Any]:
        """The rounds so far, θ and the outer optimizer's state; the model's arrays are saved beside it."""
        return {"step": self.step, "anchor": None if self.anchor is None else self.anchor.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; begin the next round with the arrays that were saved beside it."""
        for key in ("step", "anchor"):
            if key not in state_dict:
                raise ValueError(f"SketchedMean: the state dict has no {key!r}; it is not a SketchedMean's")
        if self.anchor is not None and state_dict["anchor"] is not None:
            self.anchor.load_state_dict(state_dict["anchor"])
        else:
            self._saved = state_dict["anchor"]
        self.step = int(state_dict["step"])


def divided(
    arrays: Mapping[str, Tensor], averaged: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """θ, what is averaged whole, and what is neither (counts, masks), in their order.

    Example:
        >>> arrays = {"weight": torch.zeros(1), "running_mean": torch.zeros(1), "steps": torch.tensor(0)}
        >>> [list(part) for part in divided(arrays, ["running_mean"])]
        [['weight'], ['running_mean'], ['steps']]
    """
    floating = {name: t for name, t in arrays.items() if t.is_floating_point()}
    return (
        {name: t for name, t in floating.items() if name not in averaged},
        {name: t for name, t in floating.items() if name in averaged},
        {name: t for name, t in arrays.items() if name not in floating},
    )


def digest(exchange: Subspace, theta: Mapping[str, Tensor]) -> str:
    """A short text that differs where the sketch, its ranks, the seed, or names and shapes of parameters differ."""
    text = repr((sorted(exchange.facts.items()), list(_shapes(theta).items())))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shapes(arrays: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in arrays.items()}


def _wide(t: Tensor) -> Tensor:
    return t.detach().to(torch.promote_types(t.dtype, torch.float32))


def _fault(weight: float, sent: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> str:
    if not 0 < weight < float("inf"):
        return f"its number of examples is {weight:g}"
    if _shapes(sent) != expected:
        return f"it has {_shapes(sent)}; expected is {expected}"
    spoilt = [name for name, t in sent.items() if not bool(t.isfinite().all())]
    return f"its {spoilt[0]} is not finite" if spoilt else ""


def _weighted(replies: Sequence[tuple[float, Mapping[str, Tensor]]], name: str) -> Tensor:
    """Σ n_i a_i / Σ n_i, in float64, rounded once."""
    total = sum(weight for weight, _ in replies)
    mean = sum(
        (sent[name].double() * weight for weight, sent in replies), torch.zeros((), dtype=torch.float64)
    )
    return (mean / total).to(replies[0][1][name].dtype)
