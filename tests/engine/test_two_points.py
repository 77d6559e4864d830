"""The switch between the training point and the point to evaluate."""

import copy
import io
import pickle
import warnings

import pytest
import torch

import hasten
from hasten.optimizers import CATALOGUE

TWO = [n for n, cls in CATALOGUE.items() if cls([torch.zeros(1, requires_grad=True)]).has_evaluation_point]
two = pytest.mark.parametrize("name", TWO)


def trained(name, steps=4, dtype=torch.float64):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2).to(dtype)
    opt = CATALOGUE[name](model)
    run(model, opt, steps)
    return model, opt


def run(model, opt, steps):
    for _ in range(steps):
        opt.step(lambda: model(torch.ones(3, 4, dtype=model.weight.dtype)).square().mean())


def vector(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def test_schedule_free_and_the_accelerated_methods_have_two_points():
    assert {"ScheduleFreeSGD", "ScheduleFreeAdamW", "MaSS", "TripleMomentum", "StochasticNesterov"} <= set(
        TWO
    )
    assert not {"AdamW", "SGD", "AcceleratedSGD"} & set(TWO)


@two
def test_step_in_eval_mode_is_refused(name):
    model, opt = trained(name)
    opt.eval()
    before = vector(model)
    with pytest.raises(RuntimeError, match=rf"{name}: .*evaluation point; call opt.train\(\)"):
        opt.step()
    assert torch.equal(before, vector(model))
    opt.train()
    run(model, opt, 1)
    assert not torch.equal(before, vector(model))


@two
def test_switching_twice_changes_nothing_more(name):
    model, opt = trained(name)
    opt.train()
    y = vector(model)
    opt.eval()
    x = vector(model)
    opt.eval()
    assert torch.equal(x, vector(model))
    assert not torch.equal(x, y)


@two
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2**-7)]
)
def test_the_round_trip_is_within_rounding(name, dtype, bound):
    model, opt = trained(name, dtype=dtype)
    before = vector(model)
    for _ in range(10):
        with opt.evaluating():
            pass
    assert (vector(model) - before).abs().max() <= 10 * bound * before.abs().max()


@two
def test_evaluating_restores_the_mode_it_found_even_after_an_error(name):
    _, opt = trained(name)
    with pytest.raises(KeyError), opt.evaluating():
        raise KeyError
    assert opt.training
    opt.eval()
    with opt.evaluating():
        pass
    assert not opt.training


@two
def test_a_checkpoint_from_eval_mode_resumes_in_eval_mode(name):
    model, opt = trained(name)
    opt.eval()
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    twin = torch.nn.Linear(4, 2).double()
    twin.load_state_dict(saved["model"])
    other = CATALOGUE[name](twin)
    other.load_state_dict(saved["opt"])
    assert not other.training
    opt.train()
    other.train()
    run(model, opt, 3)
    run(twin, other, 3)
    assert torch.equal(vector(model), vector(twin))


@two
def test_saving_in_training_mode_warns_once(name):
    _, fresh = trained(name, steps=0)
    _, opt = trained(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.state_dict()
        with opt.evaluating():
            opt.state_dict()
    with pytest.warns(UserWarning, match=f"{name}: saved in training mode"):
        opt.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.state_dict()


@two
def test_evaluating_a_model_at_the_training_point_warns_once(name):
    model, opt = trained(name)
    model.eval()
    x = torch.ones(1, 4, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with opt.evaluating():
            model(x)
    with pytest.warns(UserWarning, match=f"{name}: the model is in eval mode"):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
        model.train()
        model(x)


def test_a_watched_module_can_be_copied_and_pickled_and_outlives_its_optimizer():
    model, opt = trained("ScheduleFreeSGD")
    x = torch.ones(1, 4, dtype=torch.float64)
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(
                other(x), other(x)
            )  # a copy belongs to no optimizer, so nothing is said about it
        del opt
        model(x)


def test_optimizers_with_one_point_stay_silent():
    model, opt = trained("AdamW")
    before = vector(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.eval()
        model.eval()
        model(torch.ones(1, 4, dtype=torch.float64))
        assert torch.equal(before, vector(model))
        opt.step()
        opt.train()
        opt.state_dict()
    assert opt.training


def test_the_evaluation_point_of_schedule_free_is_the_average_of_z():
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    opt = hasten.ScheduleFreeSGD([w], lr=0.1)
    points = []
    for k in range(6):
        w.grad = torch.cos(w.detach() * k)
        opt.step()
        points.append(opt.state[w]["z"].clone())
        with opt.evaluating():
            torch.testing.assert_close(w.detach(), torch.stack(points).mean(0), rtol=1e-12, atol=0)
