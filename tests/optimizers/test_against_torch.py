"""The same trajectories as torch's optimizers, on a small network with fixed data."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import hasten

STEPS = 200

SGD = (hasten.SGD, torch.optim.SGD, {"lr": 0.05})
ADAM = {"lr": 0.003}
CASES = {
    "sgd": SGD,
    "sgd momentum": (*SGD[:2], {"lr": 0.02, "momentum": 0.9}),
    "sgd dampening": (*SGD[:2], {"lr": 0.05, "momentum": 0.9, "dampening": 0.5}),
    "sgd nesterov": (*SGD[:2], {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    "adam": (hasten.Adam, torch.optim.Adam, ADAM),
    "adamw": (hasten.AdamW, torch.optim.AdamW, ADAM),
    "adam amsgrad": (hasten.Adam, torch.optim.Adam, {**ADAM, "amsgrad": True}),
    "adamw amsgrad": (hasten.AdamW, torch.optim.AdamW, {**ADAM, "amsgrad": True}),
    "amsgrad": (hasten.AMSGrad, lambda p, **k: torch.optim.Adam(p, amsgrad=True, **k), ADAM),
    "adamax": (hasten.AdaMax, torch.optim.Adamax, ADAM),
    "nadam": (lambda p, **k: hasten.NAdamW(p, decoupled=False, **k), torch.optim.NAdam, ADAM),
    "nadamw": (hasten.NAdamW, lambda p, **k: torch.optim.NAdam(p, decoupled_weight_decay=True, **k), ADAM),
    "radam": (hasten.RAdam, torch.optim.RAdam, ADAM),
    "radam decoupled": (
        lambda p, **k: hasten.RAdam(p, decoupled=True, **k),
        lambda p, **k: torch.optim.RAdam(p, decoupled_weight_decay=True, **k),
        ADAM,
    ),
    "adafactor": (hasten.Adafactor, torch.optim.Adafactor, {"lr": 0.01}),
}
SCHEDULERS = {
    "constant": lambda opt: None,
    "one cycle": lambda opt: lr_scheduler.OneCycleLR(
        opt, max_lr=2 * opt.param_groups[0]["lr"], total_steps=STEPS + 1, cycle_momentum=False
    ),
    "cosine": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=STEPS),
}


def network(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    return model.to(dtype)


@pytest.fixture(autouse=True)
def _default_dtype():
    yield
    torch.set_default_dtype(torch.float32)


def train(make, dtype, scheduler, maximize=False, steps=STEPS):
    """The parameters after every step, as one vector."""
    torch.set_default_dtype(dtype)  # in which torch keeps NAdam's running product
    model = network(dtype)
    x, y = torch.randn(64, 8, dtype=dtype), torch.randint(3, (64,))
    opt = make(model.parameters())
    schedule = SCHEDULERS[scheduler](opt)
    path = []
    for k in range(steps):
        rows = slice(16 * (k % 4), 16 * (k % 4) + 16)
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        (-loss if maximize else loss).backward()
        opt.step()
        if schedule is not None:
            schedule.step()
        path.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
    return torch.stack(path)


def distance(ours, theirs):
    """The largest relative difference over the trajectory, norm of the difference over norm."""
    return ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max().item()


QUICK = {(0.0, False, "constant"), (0.1, False, "one cycle"), (0.1, True, "constant")}
SETTINGS = [
    pytest.param(*setting, marks=[] if setting in QUICK else pytest.mark.slow)
    for setting in itertools.product((0.0, 0.1), (False, True), SCHEDULERS)
]


@pytest.mark.parametrize(("weight_decay", "maximize", "scheduler"), SETTINGS)
@pytest.mark.parametrize("name", CASES)
def test_the_trajectory_is_torchs(name, weight_decay, maximize, scheduler):
    ours, theirs, kwargs = CASES[name]
    kwargs = {**kwargs, "weight_decay": weight_decay, "maximize": maximize}
    for dtype, tolerance in [(torch.float32, 1e-6), (torch.float64, 1e-12)]:
        a = train(lambda p: ours(p, **kwargs), dtype, scheduler, maximize)
        b = train(lambda p: theirs(p, **kwargs), dtype, scheduler, maximize)
        assert distance(a, b) < tolerance, dtype


@pytest.mark.parametrize("name", CASES)
def test_the_compiled_trajectory_is_torchs(name):
    ours, theirs, kwargs = CASES[name]
    kwargs = {**kwargs, "weight_decay": 0.1}
    a = train(lambda p: ours(p, engine="compiled", **kwargs), torch.float32, "one cycle")
    b = train(lambda p: theirs(p, **kwargs), torch.float32, "one cycle")
    assert distance(a, b) < 1e-6


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("adam") and n != "adamax"])
def test_a_checkpoint_of_torchs_continues_here(name):
    ours, theirs, kwargs = CASES[name]
    model = network(torch.float64)
    x, y = torch.randn(32, 8, dtype=torch.float64), torch.randint(3, (32,))

    def steps(model, opt, count):
        for _ in range(count):
            opt.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    opt = theirs(model.parameters(), **{**kwargs, "lr": 0.01, "weight_decay": 0.2})
    steps(model, opt, 10)
    twin = copy.deepcopy(model)
    other = ours(twin.parameters(), **{k: v for k, v in kwargs.items() if k == "amsgrad"})
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["lr"] == 0.01
    assert distance(steps(twin, other, 20)[None], steps(model, opt, 20)[None]) < 1e-12
