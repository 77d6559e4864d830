"""Who takes part: our optimizers, torch's, and those of the peers that are installed."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.steppers import InPlaceMultiply, OptaxStepper, Stepper, TorchStepper

Build = Callable[[list[Tensor]], Stepper]
REFERENCE = "torch AdamW fused"
LIMIT = "memory limit"

ADAM: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 1e-2}
LION: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 1e-2}
ADEMAMIX: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999, 0.9999), "weight_decay": 1e-2}


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to run one method."""

    library: str
    method: str
    mode: str
    build: Build
    module: str = "torch"

    @property
    def name(self) -> str:
        """Library, method and mode, as the tables print them."""
        return " ".join(part for part in (self.library, self.method, self.mode) if part)

    @property
    def installed(self) -> bool:
        """Whether the library can be imported here."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def compiled(self) -> bool:
        """Whether the first step compiles something worth timing."""
        return self.mode.startswith("compiled") or self.library in ("optax", "heavyball")


def class_of(module: str, name: str, wrap: str = "", **arguments: Any) -> Build:
    """A builder for ``module.name(params, **arguments)``; ``wrap="compile"`` compiles the step."""

    def build(parameters: list[Tensor]) -> Stepper:
        optimizer = getattr(importlib.import_module(module), name)(parameters, **arguments)
        if hasattr(optimizer, "train"):
            optimizer.train()
        return TorchStepper(optimizer, torch.compile(optimizer.step) if wrap == "compile" else None)

    return build


def transformation(make: Callable[[Any], Any]) -> Build:
    """A builder for an optax transformation."""
    return lambda parameters: OptaxStepper(parameters, make)


def torch_contenders() -> list[Contender]:
    """``torch.optim``: every method that we have too, and AdamW in every way it can be run."""

    def contender(method: str, mode: str, name: str, **arguments: Any) -> Contender:
        wrap = "compile" if mode.startswith("compiled") else ""
        return Contender("torch", method, mode, class_of("torch.optim", name, wrap, **arguments))

    found = [
        contender("AdamW", "fused", "AdamW", fused=True, **ADAM),
        contender("AdamW", "compiled for-loop", "AdamW", foreach=False, **ADAM),
        contender("AdamW", "compiled foreach", "AdamW", foreach=True, **ADAM),
        contender("SGD", "fused", "SGD", lr=1e-3, fused=True),
        contender("HeavyBall", "fused", "SGD", lr=1e-3, momentum=0.9, fused=True),
        contender("Nesterov", "fused", "SGD", lr=1e-3, momentum=0.9, nesterov=True, fused=True),
        contender("Adam", "fused", "Adam", lr=1e-3, fused=True),
        contender("AMSGrad", "fused", "Adam", lr=1e-3, amsgrad=True, fused=True),
    ]
    plain: list[tuple[str, str, dict[str, Any]]] = [
        ("AdamW", "AdamW", ADAM),
        ("SGD", "SGD", {"lr": 1e-3}),
        ("HeavyBall", "SGD", {"lr": 1e-3, "momentum": 0.9}),
        ("Nesterov", "SGD", {"lr": 1e-3, "momentum": 0.9, "nesterov": True}),
        ("Adam", "Adam", {"lr": 1e-3}),
        ("AMSGrad", "Adam", {"lr": 1e-3, "amsgrad": True}),
        ("AdaMax", "Adamax", {"lr": 1e-3}),
        ("NAdamW", "NAdam", {"lr": 1e-3, "decoupled_weight_decay": True}),
        ("RAdam", "RAdam", {"lr": 1e-3}),
        ("Adafactor", "Adafactor", {"lr": 1e-3}),
    ]
    for method, name, arguments in plain:
        found.append(contender(method, "for-loop", name, foreach=False, **arguments))
        found.append(contender(method, "foreach", name, foreach=True, **arguments))
    return found


def peer_contenders() -> list[Contender]:
    """The other libraries, under our names of the methods."""
    po, hb, sf = "pytorch_optimizer", "heavyball", "schedulefree"
    found = [
        Contender(
            sf,
            "ScheduleFreeAdamW",
            "for-loop",
            class_of(sf, "AdamWScheduleFree", foreach=False, **ADAM),
            sf,
        ),
        Contender(
            sf,
            "ScheduleFreeAdamW",
            "foreach",
            class_of(sf, "AdamWScheduleFree", foreach=True, **ADAM),
            sf,
        ),
        Contender(
            sf,
            "ScheduleFreeSGD",
            "for-loop",
            class_of(sf, "SGDScheduleFree", foreach=False, lr=1e-3),
            sf,
        ),
        Contender(
            sf,
            "ScheduleFreeSGD",
            "foreach",
            class_of(sf, "SGDScheduleFree", foreach=True, lr=1e-3),
            sf,
        ),
        Contender(hb, "AdamW", "compiled", class_of(hb, "AdamW", **ADAM), hb),
        Contender(hb, "ScheduleFreeAdamW", "compiled", class_of(hb, "SFAdamW", **ADAM), hb),
        Contender(hb, "AdEMAMix", "compiled", class_of(hb, "AdEMAMix", **ADEMAMIX), hb),
    ]
    named: list[tuple[str, str, dict[str, Any]]] = [
        # Its AdamW is torch's; this is the nearest of its own, and does more (clipping, Kahan).
        ("AdamW", "StableAdamW", ADAM),
        ("Lion", "Lion", LION),
        ("Signum", "SignSGD", {"lr": 1e-3}),
        ("QHM", "QHM", {"lr": 1e-3, "momentum": 0.9, "nu": 0.7}),
        ("QHAdam", "QHAdam", {"lr": 1e-3, "nus": (0.7, 1.0)}),
        ("ScheduleFreeAdamW", "ScheduleFreeAdamW", ADAM),
        ("ScheduleFreeSGD", "ScheduleFreeSGD", {"lr": 1e-3}),
        ("AdEMAMix", "AdEMAMix", {**ADEMAMIX, "weight_decouple": True}),
        ("SimplifiedAdEMAMix", "SimplifiedAdEMAMix", {"lr": 1e-4}),
        ("MARS", "MARS", {"lr": 1e-3}),
        ("Prodigy", "Prodigy", {}),
        ("Adafactor", "AdaFactor", {"lr": 1e-3}),
        ("AdaBound", "AdaBound", {"lr": 1e-3}),
        ("AMSBound", "AdaBound", {"lr": 1e-3, "ams_bound": True}),
        ("DiffGrad", "DiffGrad", {"lr": 1e-3}),
    ]
    loop_only = {"Adafactor", "AdaBound", "AMSBound", "DiffGrad"}
    for method, name, arguments in named:
        mode = arguments if method in loop_only else {**arguments, "foreach": False}
        found.append(Contender(po, method, "for-loop", class_of(po, name, **mode), po))
        if method not in loop_only:
            mode = {**arguments, "foreach": True}
            found.append(Contender(po, method, "foreach", class_of(po, name, **mode), po))
        if method in ("Lion", "AdEMAMix", "ScheduleFreeAdamW"):
            build = class_of(po, name, "compile", **{**arguments, "foreach": False})
            found.append(Contender(po, method, "compiled", build, po))
    return found + optax_contenders()


def optax_contenders() -> list[Contender]:
    """optax under ``jax.jit``."""
    makers: dict[str, Callable[[Any], Any]] = {
        "AdamW": lambda o: o.adamw(1e-3, weight_decay=1e-2),
        "Lion": lambda o: o.lion(1e-4, weight_decay=1e-2),
        "SGD": lambda o: o.sgd(1e-3),
        "HeavyBall": lambda o: o.sgd(1e-3, momentum=0.9),
        "Nesterov": lambda o: o.sgd(1e-3, momentum=0.9, nesterov=True),
        "AMSGrad": lambda o: o.amsgrad(1e-3),
        "AdaMax": lambda o: o.adamax(1e-3),
        "NAdamW": lambda o: o.nadamw(1e-3),
        "RAdam": lambda o: o.radam(1e-3),
        "Adafactor": lambda o: o.adafactor(1e-3),
        "ScheduleFreeAdamW": lambda o: o.contrib.schedule_free_adamw(1e-3, weight_decay=1e-2),
        "ScheduleFreeSGD": lambda o: o.contrib.schedule_free_sgd(1e-3),
        "AdEMAMix": lambda o: o.contrib.ademamix(1e-3, weight_decay=1e-2),
        "SimplifiedAdEMAMix": lambda o: o.contrib.simplified_ademamix(1e-4),
        "Prodigy": lambda o: o.contrib.prodigy(1.0),
    }
    return [
        Contender("optax", method, "jit", transformation(make), "optax") for method, make in makers.items()
    ]


def our_contenders() -> list[Contender]:
    """Every optimizer of the catalogue, compiled and eager."""
    import hasten

    given: dict[str, dict[str, Any]] = {
        "AdamW": ADAM,
        "Lion": LION,
        "ScheduleFreeAdamW": ADAM,
        "AdEMAMix": ADEMAMIX,
    }
    known: dict[str, Any] = {"smoothness": 1e3, "strong_convexity": 1.0}
    given["TripleMomentum"] = known
    given["StochasticNesterov"] = {**known, "growth": 4.0}
    given["SubspaceNesterov"] = given["SubspaceGradientDescent"] = {"smoothness": 1e3}
    return [
        Contender(
            "hasten",
            method,
            mode,
            class_of("hasten", method, engine=mode, **given.get(method, {})),
            "hasten",
        )
        for method in hasten.optimizers.CATALOGUE
        for mode in ("compiled", "eager")
    ]


def all_contenders() -> list[Contender]:
    """Everyone, methods together, the memory limit first."""
    limit = Contender(LIMIT, "", "", InPlaceMultiply)
    everyone = our_contenders() + torch_contenders() + peer_contenders()
    order = list(dict.fromkeys(c.method for c in everyone))
    return [limit, *sorted(everyone, key=lambda c: order.index(c.method))]


def named(name: str) -> Contender:
    """The contender of that exact name."""
    return next(c for c in all_contenders() if c.name == name)


def selected(patterns: list[str]) -> list[Contender]:
    """Contenders whose name matches any pattern: shell wildcards, or a piece of the name.

    Raises:
        ValueError: for a pattern that matches nobody.
    """
    everyone = all_contenders()
    for pattern in patterns:
        if not any(matches(c, pattern) for c in everyone):
            raise ValueError(f"--contenders: {pattern!r} matches no contender; see --list")
    return [c for c in everyone if not patterns or any(matches(c, p) for p in patterns)]


def matches(contender: Contender, pattern: str) -> bool:
    """Whether a pattern names the contender, its method or its library."""
    if any(sign in pattern for sign in "*?["):
        return fnmatch.fnmatch(contender.name.lower(), pattern.lower())
    return pattern.lower() in (
        contender.name.lower(),
        contender.method.lower(),
        contender.library.lower(),
    )
