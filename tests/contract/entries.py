"""The table of the contract suite: every named optimizer, and a few compositions.

A new optimizer gets every test of this folder by being listed in ``hasten.optimizers.CATALOGUE``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import hasten
from hasten.iterates import ScheduleFree
from hasten.optimizers import CATALOGUE
from hasten.oracles import Backpropagation
from hasten.transforms import EMA, Accumulation, ClipNorm, Orthogonalize, SecondMoment, Sign, WeightDecay


@dataclass(frozen=True)
class Entry:
    """One row: how to build the optimizer, and what it needs or cannot do."""

    name: str
    build: Callable[..., hasten.Optimizer]
    kwargs: dict[str, Any] = field(default_factory=dict)
    closure: bool = False
    """Whether ``step`` needs a closure."""

    def __call__(self, params, **kwargs):
        return self.build(params, **{**self.kwargs, **kwargs})

    def __str__(self):
        return self.name


# Values at which every term of the formula counts within a few steps; an optimizer that is not named here is tested at
# its defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    "ScheduleFreeMuon": {"lr": 0.01, "warmup_steps": 3, "weight_decay": 0.1},
    "AdEMAMixMuon": {"lr": 0.01, "betas": (0.9, 0.99), "alpha": 5.0, "weight_decay": 0.1},
    "MARSMuon": {"lr": 0.01, "weight_decay": 0.1},
    "SGD": {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01},
    "HeavyBall": {"lr": 0.05, "weight_decay": 0.01},
    "Nesterov": {"lr": 0.05, "weight_decay": 0.01},
    "QHM": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "AcceleratedSGD": {"lr": 0.05, "weight_decay": 0.01},
    "MaSS": {"lr": 0.05, "weight_decay": 0.01},
    "TripleMomentum": {"smoothness": 10.0, "strong_convexity": 0.1, "weight_decay": 0.01},
    "StochasticNesterov": {"smoothness": 10.0, "strong_convexity": 0.1, "growth": 1.5, "weight_decay": 0.01},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "Adam": {"lr": 0.01, "weight_decay": 0.1},
    "AMSGrad": {"lr": 0.01, "weight_decay": 0.1},
    "AdaMax": {"lr": 0.01, "weight_decay": 0.1},
    "NAdamW": {"lr": 0.01, "weight_decay": 0.1},
    "RAdam": {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1},
    "QHAdam": {"lr": 0.01, "nus": (0.7, 0.9), "weight_decay": 0.1},
    "AdaBound": {"lr": 0.01, "weight_decay": 0.1},
    "AMSBound": {"lr": 0.01, "weight_decay": 0.1},
    "DiffGrad": {"lr": 0.01, "weight_decay": 0.1},
    "Lion": {"lr": 0.01, "weight_decay": 0.1},
    "Signum": {"lr": 0.01, "weight_decay": 0.1},
    "ScheduleFreeSGD": {"lr": 0.1, "warmup_steps": 3, "weight_decay": 0.01},
    "ScheduleFreeAdamW": {"lr": 0.01, "warmup_steps": 3, "weight_decay": 0.1},
    "AdEMAMix": {"lr": 0.01, "betas": (0.9, 0.999, 0.99), "alpha": 5.0, "weight_decay": 0.1},
    "SimplifiedAdEMAMix": {"lr": 0.003, "alpha": 5.0, "weight_decay": 0.1},
    "MARS": {"lr": 0.01, "weight_decay": 0.1},
    "Adafactor": {"lr": 0.01, "weight_decay": 0.1},
    "Prodigy": {"d0": 1e-2, "weight_decay": 0.01},
    "Muon": {"lr": 0.05, "weight_decay": 0.1, "fallback_lr": 0.01},
    "TurboMuon": {"lr": 0.05, "weight_decay": 0.1, "fallback_lr": 0.01},
    "AdaMuon": {"lr": 0.05, "weight_decay": 0.1},
    "SteepestDescent": {"lr": 0.01, "weight_decay": 0.1},
    "Scion": {"lr": 0.01, "radius": 2.0, "head_radius": 3.0, "weight_decay": 0.5},
    "SubspaceNesterov": {"smoothness": 4.0, "strong_convexity": 0.1, "weight_decay": 0.01},
    "Trion": {"lr": 0.05, "rank": 0.5, "weight_decay": 0.1},
    "DCTAdamW": {"lr": 0.01, "rank": 0.5, "weight_decay": 0.1},
    "SubspaceGradientDescent": {"smoothness": 4.0, "weight_decay": 0.01},
    "SOAP": {"lr": 0.01, "precondition_frequency": 2, "weight_decay": 0.1},
    "Shampoo": {"lr": 0.01, "precondition_frequency": 2, "max_preconditioner_dim": 3, "weight_decay": 0.1},
}


def _simplified_sign_schedule_free(params, lr=0.01, weight_decay=0.1, **engine):
    transforms = (Accumulation(0.95, alpha=5.0), Sign())
    iterate = ScheduleFree(lr, momentum=0.9, warmup_steps=3)
    return hasten.Optimizer(params, *transforms, iterate=iterate, weight_decay=weight_decay, **engine)


def _schedule_free_muon(params, lr=0.05, **engine):
    iterate = ScheduleFree(lr, momentum=0.9, warmup_steps=3)
    others = hasten.Sentence(Backpropagation(), (SecondMoment(0.99), WeightDecay(0.1)), iterate)
    return hasten.Optimizer(
        params, Orthogonalize(), iterate=iterate, weight_decay=0.1, vectors=others, **engine
    )


def _clipped_adam(params, lr=0.01, betas=(0.9, 0.999), **engine):
    chain = (ClipNorm(0.5), EMA(betas[0]), SecondMoment(betas[1]))
    return hasten.Optimizer(params, *chain, lr=lr, weight_decay=0.1, **engine)


def _scheduled_adamw(params, lr=0.01, **engine):
    lr = hasten.schedules.cosine(lr, total=40, warmup=4) if isinstance(lr, float) else lr
    return hasten.AdamW(params, lr=lr, **engine)


NAMED = [Entry(name, cls, SETTINGS.get(name, {})) for name, cls in CATALOGUE.items()]

VARIANTS = [
    Entry("QHM decoupled", hasten.QHM, {**SETTINGS["QHM"], "decoupled": True}),
    Entry("AdamW amsgrad", hasten.AdamW, {**SETTINGS["AdamW"], "amsgrad": True}),
    Entry("NAdamW optax", hasten.NAdamW, {**SETTINGS["NAdamW"], "variant": "optax"}),
    Entry("MARS lion", hasten.MARS, {**SETTINGS["MARS"], "flavour": "lion"}),
    Entry("MARS exact", hasten.MARS, {**SETTINGS["MARS"], "exact": True}, closure=True),
    Entry(
        "AcceleratedSGD canonical",
        hasten.AcceleratedSGD.canonical,
        {"smoothness": 10.0, "strong_convexity": 0.1, "noise": 2.0},
    ),
    Entry(
        "AdEMAMix warm-up",
        hasten.AdEMAMix,
        {**SETTINGS["AdEMAMix"], "alpha_warmup": 20, "beta3_warmup": 20},
    ),
    Entry("SteepestDescent max entry", hasten.SteepestDescent, {"lr": 0.01, "norm": "max_entry"}),
    Entry(
        "SteepestDescent sharp", hasten.SteepestDescent, {"lr": 0.01, "mode": "sharp", "norm": "rms_to_rms"}
    ),
    Entry("SteepestDescent modular", hasten.SteepestDescent, {"lr": 0.01, "norm": "modular"}),
    Entry("Muon jordan", hasten.Muon, {"lr": 0.05, "convention": "jordan", "fallback_lr": 0.01}),
    Entry("Muon moonshot exact", hasten.Muon, {"lr": 0.05, "convention": "moonshot", "backend": "svd"}),
    Entry("Muon dion", hasten.Muon, {"lr": 0.05, "convention": "dion", "nesterov": True, "steps": 7}),
    Entry("AdaMuon paper", hasten.AdaMuon, {**SETTINGS["AdaMuon"], "variant": "paper"}),
    Entry("Schedule-Free Muon", _schedule_free_muon),
    Entry("MARS shampoo", hasten.MARS, {**SETTINGS["MARS"], "flavour": "shampoo"}),
    Entry("SOAP smaller side", hasten.SOAP, {**SETTINGS["SOAP"], "sides": "smaller"}),
    Entry(
        "Shampoo of tensors",
        hasten.Shampoo,
        {**SETTINGS["Shampoo"], "order": "tensor", "filter_beta": 0.5, "momentum": 0.9, "dampening": 0.1},
    ),
    Entry("AdamW cosine", _scheduled_adamw),
    Entry("Simplified-AdEMAMix sign Schedule-Free", _simplified_sign_schedule_free),
    Entry("ClipNorm first", _clipped_adam),
]

ENTRIES = [*NAMED, *VARIANTS]


class Task:
    """Least squares with a new target in every step: cheap, deterministic, and closed loop.

    Matrices come first, as in the groups of an optimizer that moves them apart from all others.
    """

    def __init__(self, shapes=((3, 4), (2, 3, 2, 2), (0, 2), (5,), ()), dtype=torch.float64, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.params = [
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
            for shape in shapes
        ]

    def closure(self, k):
        """The loss of step `k`, as a closure that also leaves its gradient."""

        def evaluate():
            generator = torch.Generator().manual_seed(1000 + k)
            total = torch.zeros((), dtype=torch.float64)
            for p in self.params:
                p.grad = None
                if p.requires_grad:
                    target = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
                    loss = (p - target).abs().square().sum() / 2
                    loss.backward()
                    total = total + loss.detach().double()
            return total

        return evaluate

    def values(self):
        """Copies of the parameters."""
        return [p.detach().clone() for p in self.params]


def advance(entry, opt, task, steps, start=0):
    """Take steps `start` … `start + steps − 1`."""
    for k in range(start, start + steps):
        closure = task.closure(k)
        if entry.closure:
            opt.step(closure)
        else:
            closure()
            opt.step()


def same(a, b):
    """Bitwise equality of two lists of tensors, NaN equal to itself."""
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(x.nan_to_num(7e7), y.nan_to_num(7e7))
        for x, y in zip(a, b, strict=True)
    )


def state_of(opt):
    """Every tensor and number of the state, flat, by a readable key."""
    saved = opt.state_dict()
    flat = {(i, name): value for i, entries in saved["state"].items() for name, value in entries.items()}
    for g, group in enumerate(saved["param_groups"]):
        flat.update({("group", g, key): value for key, value in group.items()})
    return flat


def same_state(a, b):
    """Bitwise equality of two states made by :func:`state_of`."""
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


def snapshot(opt):
    """A copy of :func:`state_of` that later steps do not change."""
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state_of(opt).items()}
