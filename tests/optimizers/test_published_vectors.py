"""Every published trajectory of the family, from the authors' code or from the recursion in 50 digits.

The vectors are fed open loop: the gradients do not depend on the parameters. Matrix methods are not in this family.
"""

import json
from pathlib import Path

import pytest
import torch

import hasten
from hasten import schedules
from hasten.iterates import Jain, LinearCoupling, ScheduleFree
from hasten.transforms import EMA, QuasiHyperbolic, SecondMoment, WeightDecay

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "accelerated-sgd.json").read_text())
CASES = {case["name"]: case for case in VECTORS["cases"]}
START = VECTORS["theta0"]


def schedule_free(h, *transforms, lr=None, **iterate):
    iterate = {
        "weight_lr_power": 2.0,
        "momentum": h["betas"][0],
        "warmup_steps": h.get("warmup_steps", 0),
        **iterate,
    }
    it = ScheduleFree(h["lr"] if lr is None else lr, **iterate)
    return lambda p, **k: hasten.Optimizer(p, *transforms, WeightDecay(h["weight_decay"]), iterate=it, **k)


def build(name):
    """The optimizer that a case describes, as a function of its parameters."""
    h = CASES[name]["hyper"]
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in h.items()}

    def pick(cls, *keys, **extra):
        return lambda p, **k: cls(p, **{key: given[key] for key in keys}, **extra, **k)

    adam = ("lr", "betas", "eps", "weight_decay")
    match name:
        case "sgd" | "heavy_ball":
            return pick(hasten.SGD, *h) if name == "sgd" else pick(hasten.SGD, "lr", "momentum", "dampening")
        case "sgd_l2":
            return pick(hasten.SGD, "lr", "weight_decay")
        case "heavy_ball_dampened" | "nesterov":
            return pick(hasten.SGD, *h)
        case "qhm":
            return pick(hasten.QHM, *h)
        case "qhm_wd_grad" | "qhm_wd_direct":
            return pick(
                hasten.QHM,
                "lr",
                "momentum",
                "nu",
                "weight_decay",
                decoupled=h["weight_decay_type"] == "direct",
            )
        case "qhadam" | "qhadam_nu2":
            return pick(hasten.QHAdam, *h)
        case "qhadamw":
            return pick(hasten.QHAdam, "lr", "betas", "nus", "weight_decay", "eps", decoupled=True)
        case "accsgd":
            return pick(hasten.AcceleratedSGD, "lr", "kappa", "xi", small_const=h["smallConst"])
        case "agnes" | "agnes_wd":
            # AGNES is quasi-hyperbolic momentum with A = lr·momentum, B = correction.
            a, b, beta = h["lr"] * h["momentum"], h["correction"], h["momentum"]
            lr = b + a / (1 - beta)
            decay = h.get("weight_decay", 0.0)
            nu = a / ((1 - beta) * lr)
            return lambda p, **k: hasten.QHM(p, lr=lr, momentum=beta, nu=nu, weight_decay=decay, **k)
        case "adamw":
            return pick(hasten.AdamW, *adam)
        case "nadamw_torch":
            return pick(hasten.NAdamW, *adam, "momentum_decay")
        case "nadamw_optax":
            return pick(hasten.NAdamW, *adam, variant="optax")
        case "lion":
            return pick(hasten.Lion, *h)
        case "signum":
            return pick(hasten.Signum, "lr", "momentum", "weight_decay")
        case "schedulefree_sgd" | "schedulefree_sgd_warmup_wd_r":
            return pick(hasten.ScheduleFreeSGD, *h)
        case "schedulefree_sgd_optax":
            return pick(hasten.ScheduleFreeSGD, "lr", "weight_lr_power", momentum=h["b1"])
        case "schedulefree_adamw" | "schedulefree_adamw_warmup_wd":
            return pick(hasten.ScheduleFreeAdamW, *h)
        case "schedulefree_adamw_reference_decay_at_z":
            g = {**h, "weight_decay": 0.0}
            return schedule_free(g, SecondMoment(h["betas"][1], h["eps"]), decay_at_z=h["weight_decay"])
        case "schedulefree_adamw_paper":
            beta2 = h["betas"][1]
            lr = schedules.warmup(h["lr"], steps=h["warmup_steps"])
            geometry = SecondMoment(beta2, h["eps"], debias=False, eps_on="raw")
            return schedule_free(
                h, geometry, lr=lambda t: lr(t) * (1 - beta2 ** (t + 1)) ** 0.5, warmup_steps=0
            )
        case "schedulefree_adamw_inner_momentum":
            return schedule_free(h, EMA(h["inner_momentum"]), SecondMoment(h["betas"][1], h["eps"]))
        case "schedulefree_radam":
            lr = schedules.rectified(h["lr"], beta2=h["betas"][1])
            return schedule_free(h, SecondMoment(h["betas"][1], h["eps"]), lr=lr)
        case "schedulefree_qh_adamw":
            g = {**h, "betas": [h["beta_sf"], h["beta2"]]}
            inner = QuasiHyperbolic(h["beta_inner"], h["nu_inner"]).rename(momentum="inner_momentum")
            return schedule_free(g, inner, SecondMoment(h["beta2"], h["eps"]))
        case "ademamix" | "ademamix_sched" | "ademamix_b1_zero" | "ademamix_optax":
            return pick(hasten.AdEMAMix, *h)
        case "ademamix_optax_sched":
            b1, b2, b3 = h["betas"]
            slow = schedules.half_life(b1, b3, steps=h["beta3_warmup"], log_offset=0.0, first=0)
            alpha = schedules.linear(0.0, h["alpha"], steps=h["alpha_warmup"])
            return lambda p, **k: hasten.AdEMAMix(
                p, h["lr"], (b1, b2, slow), alpha, h["eps"], h["weight_decay"], **k
            )
        case n if n.startswith("simplified_ademamix"):
            return pick(hasten.SimplifiedAdEMAMix, *h)
        case n if n.startswith("mars_1d"):
            return pick(hasten.MARS, *h)
        case n if n.startswith("mars"):
            flavour = h["mars_type"].removeprefix("mars-")
            return pick(hasten.MARS, *adam, "gamma", "optimize_1d", flavour=flavour)
        case "jain_asgd":
            jain = Jain(1.0, h["R2"], h["kappa"], h["kappa_tilde"])
            return lambda p, **k: hasten.Optimizer(p, iterate=jain, **k)
        case "vaswani_sc" | "canonical_asgd":
            return lambda p, **k: hasten.AcceleratedSGD.canonical(p, h["L"], h["mu"], h["rho"], **k)
        case "vaswani_convex":
            return lambda p, **k: hasten.AcceleratedSGD.canonical(p, h["L"], 0.0, h["rho"], **k)
        case "mass":
            return pick(hasten.MaSS, *h)
        case "triple_momentum":
            return lambda p, **k: hasten.TripleMomentum(p, h["L"], h["mu"], **k)
        case "sagd_interpolation":
            return lambda p, **k: hasten.StochasticNesterov(
                p, smoothness=1.0, strong_convexity=h["mu"], growth=1 / h["eta"], gamma0=h["gamma0"], **k
            )
        case "linear_coupling":
            return lambda p, **k: hasten.Optimizer(p, iterate=LinearCoupling(1.0, h["L"]), **k)
    raise AssertionError(f"no optimizer for the vector {name}")


def gradients(case):
    return [g for name in case["grads"].split("+") for g in VECTORS["grads"][name]]


def shaped(values, shape):
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def parameters(layout):
    """Parameters that together, or each, hold the starting point; with a selector of the vector in each."""
    whole, entries = slice(0, 3), [slice(i, i + 1) for i in range(3)]
    shapes = {
        "single": [((3,), whole)],
        "many": [((1, 3), whole), *[((), e) for e in entries], ((3,), whole)],
    }[layout]
    params = [shaped(START[s], shape).requires_grad_() for shape, s in shapes]
    selectors = [s for _, s in shapes]
    if layout == "many":
        params.append(torch.zeros(0, 4, dtype=torch.float64, requires_grad=True))
        selectors.append(slice(0, 0))
    return params, selectors


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("name", CASES)
def test_a_single_tensor_follows_the_vector(name, engine):
    follow(name, "single", engine)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("mars")])
def test_many_tensors_follow_the_vector(name, engine):
    follow(name, "many", engine)


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("mars")])
def test_mars_clips_every_tensor_on_its_own(name):
    # Entries of one vector in tensors of their own would be clipped apart, so whole copies are used.
    case, options = CASES[name], {"engine": "eager"}
    params = [shaped(START, (3,)).requires_grad_() for _ in range(3)]
    run(build(name)(params, **options), params, [slice(0, 3)] * 3, case)


def follow(name, layout, engine):
    params, selectors = parameters(layout)
    run(build(name)(params, engine=engine), params, selectors, CASES[name])


def run(opt, params, selectors, case):
    scale = max(abs(x) for step in case["steps"] for x in step)
    for k, g in enumerate(gradients(case)):
        for p, s in zip(params, selectors, strict=True):
            p.grad = shaped(g[s], p.shape)
        opt.step()
        check(params, selectors, case["steps"][k], scale)
        if "eval_steps" in case:
            with opt.evaluating():
                check(params, selectors, case["eval_steps"][k], scale)
            check(params, selectors, case["steps"][k], scale)


def check(params, selectors, expected, scale):
    for p, s in zip(params, selectors, strict=True):
        torch.testing.assert_close(p.detach(), shaped(expected[s], p.shape), rtol=1e-10, atol=1e-12 * scale)


def test_every_vector_has_an_optimizer():
    assert len(CASES) == 52
    for name in CASES:
        build(name)


def test_the_vectors_are_those_published():
    published = Path(__file__).parents[3] / "shared" / "vectors" / "accelerated-sgd.json"
    if not published.exists():
        pytest.skip("the published vectors are not beside the project")
    assert json.loads(published.read_text()) == VECTORS
