"""The unified view: every map of the theory, over random coefficients, on a noisy quadratic."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hasten
from hasten import schedules
from hasten.iterates import Coupling, LinearCoupling, ThreeSequences
from hasten.oracles import Mars
from hasten.sketches import Identity, ImportanceCoordinates
from hasten.transforms import (
    EMA,
    Accumulation,
    Interpolation,
    QuasiHyperbolic,
    SecondMoment,
    Sign,
    TwoMomenta,
)

DIMENSION, STEPS = 20, 150
torch.manual_seed(0)
Q = torch.linalg.qr(torch.randn(DIMENSION, DIMENSION, dtype=torch.float64)).Q
H = Q @ torch.diag(torch.logspace(-3, 0, DIMENSION, dtype=torch.float64)) @ Q.T
TARGET = torch.randn(DIMENSION, dtype=torch.float64)
NOISE = 0.3 * torch.randn(STEPS, DIMENSION, dtype=torch.float64)
START = torch.randn(DIMENSION, dtype=torch.float64)


def gradient(y, k):
    return H @ y - TARGET + NOISE[k]


def trajectory(build, decay=0.0):
    """The training points and the points to evaluate of an optimizer, closed loop."""
    w = START.clone().requires_grad_()
    opt = build([w])
    ys, xs = [], []
    for k in range(STEPS):
        w.grad = gradient(w.detach(), k)
        opt.step()
        ys.append(w.detach().clone())
        with opt.evaluating():
            xs.append(w.detach().clone())
    return torch.stack(ys), torch.stack(xs)


def recurrence(build):
    """The same from the coefficients alone: m ← ρm + sd; y ← y − Am − Bd; x."""
    opt = build([START.clone().requires_grad_()])
    y, x, m = START.clone(), START.clone(), torch.zeros_like(START)
    ys, xs = [], []
    for k in range(STEPS):
        e = hasten.equivalent(opt, step=k + 1)
        d = gradient(y, k)
        m = e.rho * m + e.s * d
        y = y - e.A * m - e.B * d
        x = y + e.E * m if e.average is None else x + e.average * (y - x)
        ys.append(y)
        xs.append(x)
    return torch.stack(ys), torch.stack(xs)


def agree(a, b, tolerance=1e-10):
    for p, q in zip(a, b, strict=True):
        scale = max(1.0, float(p.abs().max()), float(q.abs().max()))
        assert float((p - q).abs().max()) <= tolerance * scale


def composition(*transforms, lr, **kwargs):
    return lambda p: hasten.Optimizer(p, *transforms, lr=lr, engine="eager", **kwargs)


def named(cls, *args, **kwargs):
    return lambda p: cls(p, *args, engine="eager", **kwargs)


unit = st.floats(0.05, 0.98)
rate = st.floats(1e-3, 0.3)
few = settings(max_examples=12, deadline=None)

LINEAR = {
    "SGD": lambda a, b, lr: named(hasten.SGD, lr=lr),
    "HeavyBall": lambda a, b, lr: named(hasten.HeavyBall, lr=lr * (1 - a), momentum=a),
    "Nesterov": lambda a, b, lr: named(hasten.Nesterov, lr=lr * (1 - a), momentum=a),
    "QHM": lambda a, b, lr: named(hasten.QHM, lr=lr, momentum=a, nu=b),
    "QHM debiased": lambda a, b, lr: composition(QuasiHyperbolic(a, b, debias=True), lr=lr),
    "EMA": lambda a, b, lr: composition(EMA(a), lr=lr),
    "Interpolation": lambda a, b, lr: composition(Interpolation(a * b, b), lr=lr),
    "Accumulation": lambda a, b, lr: composition(Accumulation(a, alpha=5 * b), lr=lr * (1 - a)),
    "Accumulation debiased": lambda a, b, lr: composition(Accumulation(a, alpha=b, debias=True), lr=lr),
    "TwoMomenta, one": lambda a, b, lr: composition(TwoMomenta(0.0, a, alpha=4 * b, fast=False), lr=lr / 4),
    "Mars": lambda a, b, lr: composition(EMA(a, debias=False), lr=lr, oracle=Mars(b, a)),
    "AcceleratedSGD": lambda a, b, lr: named(hasten.AcceleratedSGD, lr=lr, kappa=50 / a, xi=1 + 5 * b),
    "canonical": lambda a, b, lr: named(hasten.AcceleratedSGD.canonical, 1.0, 0.5 * a**2, 1 + 9 * b),
    "canonical, convex": lambda a, b, lr: named(hasten.AcceleratedSGD.canonical, 1.0, 0.0, 1 + 9 * b),
    "Jain": lambda a, b, lr: named(hasten.AcceleratedSGD.jain, 1.0, 2 + 1e3 * a, 2 + 30 * b),
    "MaSS": lambda a, b, lr: named(hasten.MaSS, lr=lr, alpha=a, kappa_t=1 + 10 * b),
    "TripleMomentum": lambda a, b, lr: named(hasten.TripleMomentum, 1.5, 0.3 * a),
    "StochasticNesterov": lambda a, b, lr: named(
        hasten.StochasticNesterov, 1.0, 0.1 * a, 1 + b, gamma0=2 * b
    ),
    "LinearCoupling": lambda a, b, lr: lambda p: hasten.Optimizer(p, iterate=LinearCoupling(0.1 * a, 1.0)),
    "ScheduleFreeSGD": lambda a, b, lr: named(
        hasten.ScheduleFreeSGD, lr=lr, momentum=a, warmup_steps=int(40 * b), r=b
    ),
    "ScheduleFreeSGD refined": lambda a, b, lr: named(
        hasten.ScheduleFreeSGD, lr=lr, momentum=a, refined=1 + 50 * b
    ),
    "SubspaceGradientDescent": lambda a, b, lr: subspace(
        hasten.SubspaceGradientDescent, smoothness=1 + b, lr=a
    ),
    "SubspaceNesterov": lambda a, b, lr: subspace(
        hasten.SubspaceNesterov, smoothness=1 + b, strong_convexity=0.1 * a, nu=2.0, warm_start=b > 0.5
    ),
    "SubspaceNesterov, convex": lambda a, b, lr: subspace(
        hasten.SubspaceNesterov, smoothness=1 + b, schedule="convex", restart=40, lr=a
    ),
    "NAdam's momentum": lambda a, b, lr: composition(_nadam(a, b), lr=lr),
}


def subspace(cls, **arguments):
    """Over the whole space: the recurrence is in whatever gradient the subspaces let through."""
    return named(cls, sketch=Identity(), **arguments)


def _nadam(a, b):
    from hasten.transforms import NesterovMoment

    return NesterovMoment(a, momentum_decay=0.01 * b)


@pytest.mark.parametrize("name", LINEAR)
@few
@given(a=unit, b=unit, lr=rate)
def test_the_coefficients_reproduce_the_optimizer(name, a, b, lr):
    build = LINEAR[name](a, b, lr)
    assert hasten.equivalent(build([START.clone().requires_grad_()])).remarks == ()
    agree(trajectory(build), recurrence(build))


# -- one method in the parameters of another ---------------------------------------------------------------------------


def qhm(lr, nu, beta):
    return named(hasten.QHM, lr=lr, momentum=beta, nu=nu)


def same_training_points(left, right, tolerance=1e-10):
    agree(trajectory(left)[:1], trajectory(right)[:1], tolerance)


@few
@given(beta=unit, lr=rate)
def test_nesterov_and_heavy_ball_are_quasi_hyperbolic(beta, lr):
    same_training_points(named(hasten.Nesterov, lr=lr * (1 - beta), momentum=beta), qhm(lr, beta, beta))
    same_training_points(named(hasten.HeavyBall, lr=lr * (1 - beta), momentum=beta), qhm(lr, 1.0, beta))
    # theory style: the weight of the current gradient is 1/beta
    theory = composition(Accumulation(beta, alpha=1 / beta), lr=lr * (1 - beta) * beta)
    same_training_points(named(hasten.Nesterov, lr=lr * (1 - beta), momentum=beta), theory)


@few
@given(c=st.floats(0.3, 1.0), xi=st.floats(5.0, 20.0), kappa=st.floats(100.0, 1e4), lr=st.floats(1e-3, 0.05))
def test_accelerated_sgd_is_quasi_hyperbolic(c, xi, kappa, lr):
    left = named(hasten.AcceleratedSGD, lr=lr, kappa=kappa, xi=xi, small_const=c)
    right = qhm(
        lr * c * (1 + xi) / (1 + c), (c * xi - 1) / (c * (1 + xi)), (kappa - c**2 * xi) / (kappa + c * xi)
    )
    same_training_points(left, right)


@few
@given(mu=st.floats(1e-3, 0.5), rho=st.floats(1.0, 50.0))
def test_the_canonical_triple_is_vaswani_mass_and_agnes(mu, rho):
    canonical = named(hasten.AcceleratedSGD.canonical, 1.0, mu, rho)
    mass = named(hasten.MaSS, lr=1 / rho, alpha=1 / math.sqrt(rho / mu * rho), kappa_t=rho)
    agree(trajectory(canonical), trajectory(mass))
    q, s2 = math.sqrt(mu), rho - 1
    correction, beta = 1 / (1 + s2), (1 + s2 - q) / (1 + s2 + q)
    a, b = correction * (1 - q) / (1 - q + s2) * beta, correction
    if s2 > 0:
        lr = b + a / (1 - beta)
        same_training_points(canonical, qhm(lr, a / ((1 - beta) * lr), beta))
        assert hasten.equivalent(canonical([START.clone().requires_grad_()])).alpha == pytest.approx(
            (rho + q) / (1 - q)
        )


@few
@given(mu=st.floats(1e-3, 0.3), growth=st.floats(1.0, 4.0))
def test_stochastic_nesterov_is_nesterov_with_a_shorter_step(mu, growth):
    theta = math.sqrt(mu / growth)
    momentum = (1 - theta) / (1 + theta)
    left = named(hasten.StochasticNesterov, 1.0, mu, growth)
    same_training_points(left, named(hasten.Nesterov, lr=1 / growth, momentum=momentum))


@few
@given(mu=st.floats(1e-2, 0.5))
def test_triple_momentum_is_quasi_hyperbolic(mu):
    r = 1 - math.sqrt(mu)
    step, beta = 1 + r, r**2 / (2 - r)
    gamma = r**2 / ((1 + r) * (2 - r))
    b = step * gamma / beta
    a = step * (1 + gamma - gamma / beta)
    lr = b + a / (1 - beta)
    same_training_points(named(hasten.TripleMomentum, 1.0, mu), qhm(lr, 1 - b / lr, beta))


@dataclass(frozen=True)
class ConstantAverage(ThreeSequences):
    """Schedule-Free with a constant averaging weight, for the test of its limit."""

    lr: float = hasten.words.hyper(0.1, hasten.words.NONNEGATIVE, "step")
    beta: float = 0.9
    c: float = 0.1

    def coupling(self, h, k, counters):
        return Coupling(1 - self.beta, 0.0, h.lr, 0.0, 1 - self.c, self.c), 1 - self.beta


@few
@given(beta=unit, c=unit, lr=rate)
def test_schedule_free_with_a_constant_weight_is_quasi_hyperbolic(beta, c, lr):
    same_training_points(
        lambda p: hasten.Optimizer(p, iterate=ConstantAverage(lr, beta=beta, c=c)), qhm(lr, beta, 1 - c)
    )


@dataclass(frozen=True)
class GrowingAverage(ConstantAverage):
    """Schedule-Free in the general three-sequence form."""

    def coupling(self, h, k, counters):
        return Coupling(1 - self.beta, 0.0, h.lr, 0.0, 1 - 1 / k, 1 / k), 1 - self.beta


@few
@given(beta=unit, lr=rate)
def test_schedule_free_is_a_point_of_the_three_sequences(beta, lr):
    general = lambda p: hasten.Optimizer(p, iterate=GrowingAverage(lr, beta=beta))  # noqa: E731  # a builder like the rest
    agree(trajectory(general), trajectory(named(hasten.ScheduleFreeSGD, lr=lr, momentum=beta)))


@few
@given(b1=unit, b2=unit, lr=st.floats(1e-4, 1e-1))
def test_lion_is_the_sign_of_quasi_hyperbolic_momentum(b1, b2, lr):
    small, large = sorted((b1, b2))
    right = composition(QuasiHyperbolic(large, small / large), Sign(), lr=lr)
    same_training_points(named(hasten.Lion, lr=lr, betas=(small, large)), right)
    same_training_points(named(hasten.Signum, lr=lr, momentum=b1), named(hasten.Lion, lr=lr, betas=(b1, b1)))


@few
@given(b=unit, gamma=st.floats(0.0, 0.9), lr=st.floats(1e-4, 1e-1))
def test_mars_without_clipping_is_quasi_hyperbolic_and_mars_lion_is_lion(b, gamma, lr):
    mars = composition(EMA(b, debias=False), lr=lr, oracle=Mars(gamma, b))
    same_training_points(mars, qhm(lr, 1 - gamma, b))
    lion = composition(EMA(b, debias=False), Sign(), lr=lr, oracle=Mars(gamma, b))
    same_training_points(lion, named(hasten.Lion, lr=lr, betas=(b * (1 - gamma), b)))


@few
@given(
    b3=st.floats(0.5, 0.999), alpha=st.floats(0.5, 10.0), lr=st.floats(1e-4, 1e-2), decay=st.floats(0.0, 0.1)
)
def test_ademamix_without_its_fast_average_is_simplified(b3, alpha, lr, decay):
    left = named(hasten.AdEMAMix, lr=lr, betas=(0.0, 0.95, b3), alpha=alpha, weight_decay=decay)
    factor = alpha * (1 - b3)
    right = named(
        hasten.SimplifiedAdEMAMix,
        lr=lr * factor,
        betas=(b3, 0.95),
        alpha=1 / factor,
        weight_decay=decay / factor,
    )
    same_training_points(left, right)


@few
@given(b1=st.floats(0.1, 0.95), b3=st.floats(0.96, 0.999), alpha=st.floats(0.5, 8.0))
def test_the_linear_part_of_ademamix_is_accelerated_sgd_on_the_fast_average(b1, b3, alpha):
    """Open loop, without the bias correction of the fast average."""
    through = (1 - b3) * b1 / ((1 - b1) * b3)
    slow = (1 - b1 / b3) / (1 - b1)
    f, m2, e = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for k in range(100):
        g = NOISE[k, 0]
        f = b1 * f + (1 - b1) * g
        m2 = b3 * m2 + (1 - b3) * g
        e = b3 * e + (1 - b3) * f
        left, right = f + alpha * m2, (1 + alpha * through) * f + alpha * slow * e
        assert float((left - right).abs()) < 1e-10
    opt = hasten.AdEMAMix([torch.zeros(2, requires_grad=True)], lr=1.0, betas=(b1, 0.9, b3), alpha=alpha)
    found = hasten.equivalent(opt)
    assert pytest.approx(1 + alpha * through) == found.B
    assert pytest.approx(alpha * slow * (1 - b3)) == found.A


@few
@given(b1=unit, b2=st.floats(0.5, 0.999), lr=st.floats(1e-4, 1e-2), decay=st.floats(0.0, 0.1))
def test_simplified_without_current_gradient_is_adamw(b1, b2, lr, decay):
    left = named(
        hasten.SimplifiedAdEMAMix, lr=lr, betas=(b1, b2), alpha=0.0, weight_decay=decay, bias_correction1=True
    )
    same_training_points(left, named(hasten.AdamW, lr=lr, betas=(b1, b2), weight_decay=decay))
    uncorrected = composition(EMA(b1, debias=False), SecondMoment(b2), lr=lr, weight_decay=decay)
    plain = named(hasten.SimplifiedAdEMAMix, lr=lr * (1 - b1), betas=(b1, b2), weight_decay=decay / (1 - b1))
    same_training_points(plain, uncorrected)


@few
@given(b1=unit, nu1=st.floats(0.1, 0.9), lr=st.floats(1e-4, 1e-2))
def test_qhadam_is_simplified_under_a_schedule(b1, nu1, lr):
    def simplified(p):
        return hasten.SimplifiedAdEMAMix(
            p,
            lr=lambda t: lr * nu1 * (1 - b1) / (1 - b1 ** (t + 1)),
            alpha=lambda t: (1 - nu1) * (1 - b1 ** (t + 1)) / (nu1 * (1 - b1)),
            betas=(b1, 0.95),
            engine="eager",
        )

    same_training_points(named(hasten.QHAdam, lr=lr, betas=(b1, 0.95), nus=(nu1, 1.0)), simplified)


@few
@given(beta=unit, lr=st.floats(1e-4, 1e-2), decay=st.floats(0.0, 0.1))
def test_schedule_free_adamw_is_accelerated_sgd_on_preconditioned_gradients(beta, lr, decay):
    """The recurrence driven by d = g/(√v̂ + ε) + λy, with geometry before it."""
    opt = hasten.ScheduleFreeAdamW(
        [START.clone().requires_grad_()], lr=lr, betas=(beta, 0.95), weight_decay=decay
    )
    y, x = START.clone(), START.clone()
    m, v = torch.zeros_like(y), torch.zeros_like(y)
    ys, xs = [], []
    for k in range(STEPS):
        g = gradient(y, k)
        v = 0.95 * v + 0.05 * g**2
        d = g / ((v / (1 - 0.95 ** (k + 1))).sqrt() + 1e-8) + decay * y
        e = hasten.equivalent(opt, k + 1)
        m = e.rho * m + e.s * d
        y = y - e.A * m - e.B * d
        x = x + e.average * (y - x)
        ys.append(y)
        xs.append(x)
    found = hasten.equivalent(opt)
    assert found.slot == "before"
    assert found.remarks == ("SecondMoment before the recurrence",)
    build = named(hasten.ScheduleFreeAdamW, lr=lr, betas=(beta, 0.95), weight_decay=decay)
    agree(trajectory(build), (torch.stack(ys), torch.stack(xs)))


def test_adaptive_geometry_before_and_after_the_recurrence_differ():
    before = composition(SecondMoment(0.99), QuasiHyperbolic(0.99, 0.9), lr=1e-2)
    after = composition(QuasiHyperbolic(0.99, 0.9), SecondMoment(0.99), lr=1e-2)
    assert hasten.equivalent(before([START.clone().requires_grad_()])).slot == "before"
    assert hasten.equivalent(after([START.clone().requires_grad_()])).slot == "after"
    difference = (trajectory(before)[0][-1] - trajectory(after)[0][-1]).norm()
    movement = (trajectory(after)[0][-1] - START).norm()
    assert 1e-3 < difference / movement < 0.5


def test_what_is_not_of_the_family_says_why():
    w = [torch.zeros(3, requires_grad=True)]
    with pytest.raises(ValueError, match="Prodigy is not of the accelerated-SGD family"):
        hasten.equivalent(hasten.Prodigy(w))
    with pytest.raises(ValueError, match="2 momenta in series"):
        hasten.equivalent(hasten.Optimizer(w, EMA(), QuasiHyperbolic()))
    with pytest.raises(ValueError, match="step = 0 is not allowed"):
        hasten.equivalent(hasten.SGD(w), step=0)
    with pytest.raises(ValueError, match="depend on the curvature measured"):
        hasten.equivalent(hasten.SubspaceNesterov(w, smoothness="estimate"))
    with pytest.raises(ValueError, match="depend on the coordinates drawn"):
        hasten.equivalent(
            hasten.SubspaceNesterov(w, smoothness=1.0, sketch=ImportanceCoordinates(torch.ones(3)))
        )
    with pytest.raises(ValueError, match="averages x inside"):
        hasten.equivalent(hasten.Optimizer(w, iterate=ConstantAverage(0.1)))


def test_a_schedule_is_read_at_the_step_asked_for():
    opt = hasten.SGD([torch.zeros(3, requires_grad=True)], lr=schedules.linear(1.0, 0.0, steps=10))
    assert hasten.equivalent(opt, step=6).lr == pytest.approx(0.5)


def test_the_table_has_every_optimizer():
    from hasten.equivalence import table

    rows = {row["optimizer"]: row for row in table()}
    assert set(rows) == set(hasten.optimizers.CATALOGUE)
    assert rows["Lion"]["alpha"] == pytest.approx(10.0)
    assert rows["MARS"]["alpha"] == pytest.approx(0.51, abs=0.01)
    assert rows["AcceleratedSGD"]["nu"] == pytest.approx(0.779, abs=1e-3)
    assert rows["AcceleratedSGD"]["alpha"] == pytest.approx(24, abs=0.1)
