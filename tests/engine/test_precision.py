"""Low precision: state and arithmetic in float32, steps below half a unit in the last place, loss scaling."""

import pytest
import torch

import hasten
from hasten.optimizers import CATALOGUE
from hasten.sketches import Identity

LOW = [torch.bfloat16, torch.float16]


# Whole gradients and a known ℓ, so that they step on p.grad as all others do.
WHOLE = {
    name: {"sketch": Identity(), "smoothness": 1.0}
    for name in ("SubspaceNesterov", "SubspaceGradientDescent")
}


def param(value, dtype, n=4096):
    return torch.full((n,), value, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", [n for n in CATALOGUE if n not in ("Adafactor", "Prodigy", "MARS")])
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_low_precision_is_the_float32_step_rounded(name, dtype, engine):
    """From equal state, the low-precision parameter is the float32 one, rounded."""
    start = torch.randn(64).to(dtype)
    low, high = start.clone().requires_grad_(), start.float().requires_grad_()
    opt, reference = (CATALOGUE[name]([p], engine=engine, **WHOLE.get(name, {})) for p in (low, high))
    grad = torch.randn(64).to(dtype)
    low.grad, high.grad = grad, grad.float()
    opt.step()
    reference.step()
    assert torch.equal(low, high.to(dtype))
    for key, value in opt.state[low].items():
        assert torch.equal(value, reference.state[high][key])
        assert value.dtype is reference.state[high][key].dtype


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize(
    "name", [n for n in CATALOGUE if n != "Prodigy"]
)  # its way is not proportional to lr
def test_steps_below_half_a_unit_are_lost_without_stochastic_rounding_and_kept_with_it(name, engine):
    """The mean over many entries follows the float32 run; rounded to nearest, bfloat16 would stand still.

    One unit in the last place at 1 is 2^-7 (2^-8 below 1); the whole way of 40 steps is 0.012, each step 0.0003.
    """
    tiny = {"SGD": {}, "AcceleratedSGD": {"xi": 1.0}, "Adafactor": {}, **WHOLE}.get(name, {})

    def run(dtype, stochastic):
        p = param(1.0, dtype)
        opt = CATALOGUE[name]([p], engine=engine, stochastic_rounding=stochastic, **tiny)
        scale(opt, p)
        for _ in range(40):
            p.grad = torch.ones_like(p)
            opt.step()
        with opt.evaluating():
            return p.detach().float().mean().item() - 1

    def scale(opt, p):
        """Choose lr so that 40 steps of the float32 run go about 0.012."""
        probe = param(1.0, torch.float32, n=8)
        other = CATALOGUE[name]([probe], engine="eager", **tiny)
        for _ in range(40):
            probe.grad = torch.ones_like(probe)
            other.step()
        way = abs(probe.detach().mean().item() - 1)
        lr = opt.param_groups[0]["lr"] * 0.012 / max(way, 1e-9)
        opt.param_groups[0]["lr"] = min(lr, 1e3)

    exact = run(torch.float32, False)
    rounded = run(torch.bfloat16, True)
    assert abs(exact) > 1e-3
    # The standard error of the mean is below 2^-8/sqrt(4096)·sqrt(40) = 4e-4; the way is 1.2e-2.
    assert rounded == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_to_nearest_such_steps_are_lost(engine):
    p = param(1.0, torch.bfloat16)
    opt = hasten.SGD([p], lr=2**-11, engine=engine)
    for _ in range(40):
        p.grad = torch.ones_like(p)
        opt.step()
    assert torch.equal(p, param(1.0, torch.bfloat16))


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("name", ["AdamW", "Lion", "AdEMAMix", "NAdamW"])
def test_weight_decay_is_not_lost_either(name, engine):
    p = param(1.0, torch.bfloat16, n=2**14)
    # 1e-4 of decay a step is 1/40 of half a unit in the last place.
    opt = CATALOGUE[name]([p], lr=1e-3, weight_decay=0.1, stochastic_rounding=True, engine=engine)
    for _ in range(100):
        p.grad = torch.zeros_like(p)
        opt.step()
    assert p.detach().float().mean().item() == pytest.approx((1 - 1e-4) ** 100, abs=1.5e-3)


def test_stochastic_rounding_depends_on_the_seed_and_not_on_the_engine():
    def run(seed, engine):
        p = torch.linspace(-1, 1, 5000).bfloat16().requires_grad_()
        opt = hasten.AdamW([p], stochastic_rounding=True, seed=seed, engine=engine)
        for k in range(3):
            p.grad = torch.cos(torch.arange(5000.0) + k).bfloat16()
            opt.step()
        return p.detach()

    assert torch.equal(run(0, "eager"), run(0, "compiled"))
    assert not torch.equal(run(0, "eager"), run(1, "eager"))


EXACT = {
    *("ScheduleFreeSGD", "ScheduleFreeAdamW", "ScheduleFreeMuon", "Prodigy"),
    *("Trion", "DCTAdamW", "SOAP", "Shampoo"),
}


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_averages_may_be_kept_in_bfloat16_but_positions_are_exact(name, engine):
    p = torch.randn(6, 4).requires_grad_()
    opt = CATALOGUE[name]([p], state_dtype=torch.bfloat16, engine=engine, **WHOLE.get(name, {}))
    # Positions, and what bfloat16 cannot hold: Kronecker factors, their bases and roots, indices.
    exact = {slot.name for slot in opt.composition_of(p).slots if slot.buffer.exact}
    assert exact >= {"z", "p0", "previous_param"} & opt.state[p].keys()
    assert bool(exact) == (name in EXACT)
    for _ in range(2):
        p.grad = torch.randn(6, 4)
        opt.step()
    for key, value in opt.state[p].items():
        if value.dim():
            assert value.dtype is (torch.float32 if key in exact else torch.bfloat16), key
    saved = opt.state_dict()
    opt.load_state_dict(saved)
    assert all(v.dtype is saved["state"][0][k].dtype for k, v in opt.state[p].items())


def test_float64_parameters_keep_float64_state():
    p = torch.randn(3, dtype=torch.float64).requires_grad_()
    opt = hasten.AdamW([p], state_dtype=torch.bfloat16)
    assert opt.state[p]["exp_avg"].dtype is torch.float64


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Lion", "ScheduleFreeAdamW", "Prodigy", "Adafactor"])
def test_grad_scaler_unscales_and_skips_infinite_gradients(name):
    """The scaled run is the plain run without the spoilt step."""

    def run(scaled):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        opt = CATALOGUE[name](model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=scaled)
        x = torch.randn(5, 8, 4)
        for k in range(5):
            if k == 2 and not scaled:
                continue
            opt.zero_grad()
            scaler.scale(model(x[k]).square().mean()).backward()
            if k == 2:
                model.weight.grad[0, 0] = float("inf")
            scaler.step(opt)
            scaler.update()
        assert scaler.get_scale() == (2.0**7 if scaled else 1.0)
        return torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    torch.testing.assert_close(run(True), run(False), rtol=1e-6, atol=1e-7)
