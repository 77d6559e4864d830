"""Copies and checkpoints go on exactly as the original would have."""

import copy
import io
import pickle

import pytest
import torch
from entries import ENTRIES, Task, advance, same, same_state, snapshot, state_of

each = pytest.mark.parametrize("entry", ENTRIES, ids=str)
LOW = torch.bfloat16


def transported(opt, way):
    """The optimizer and its parameters, sent through a copy."""
    if way == "deepcopy":
        return copy.deepcopy(opt)
    buffer = io.BytesIO()
    pickle.dump(opt, buffer)
    buffer.seek(0)
    return pickle.load(buffer)


@each
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_copy_goes_on_as_the_original(entry, way, steps):
    task = Task()
    opt = entry(task.params)
    advance(entry, opt, task, steps)
    other = transported(opt, way)
    twin = Task()
    twin.params = [p for group in other.param_groups for p in group["params"]]
    advance(entry, opt, task, 3, start=steps)
    advance(entry, other, twin, 3, start=steps)
    assert same(task.values(), twin.values())
    assert same_state(state_of(opt), state_of(other))


@each
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_a_copy_of_a_scheduled_optimizer_steps_itself(entry, way):
    """Torch's schedulers wrap ``step`` on the instance; a copy must not step the original through it."""
    task = Task()
    opt = entry(task.params)
    torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1.0)
    advance(entry, opt, task, 1)
    other = transported(opt, way)
    twin = Task()
    twin.params = [p for group in other.param_groups for p in group["params"]]
    before = task.values()
    advance(entry, other, twin, 2, start=1)
    assert same(before, task.values())
    advance(entry, opt, task, 2, start=1)
    assert same(task.values(), twin.values())


def reloaded(state_dict):
    """A state dict through the file that ``torch.load`` allows without running any code."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("stochastic", [False, True])
def test_resuming_is_exact_to_the_bit(entry, dtype, stochastic):
    if stochastic and dtype is not LOW:
        pytest.skip("only bfloat16 parameters are rounded at random")
    task, options = Task(dtype=dtype), {"stochastic_rounding": stochastic}
    opt = entry(task.params, **options)
    advance(entry, opt, task, 3)
    saved, values = reloaded(opt.state_dict()), task.values()
    advance(entry, opt, task, 3, start=3)

    twin = Task(dtype=dtype, seed=9)
    other = entry(twin.params, **options)
    with torch.no_grad():
        for p, value in zip(twin.params, values, strict=True):
            p.copy_(value)
    other.load_state_dict(saved)
    advance(entry, other, twin, 3, start=3)
    assert same(task.values(), twin.values())
    assert same_state(state_of(opt), state_of(other))


@each
def test_state_of_low_precision_parameters_stays_float32(entry):
    task = Task(dtype=LOW)
    opt = entry(task.params)
    advance(entry, opt, task, 2)
    opt.load_state_dict(reloaded(opt.state_dict()))
    for state in opt.state.values():
        assert {v.dtype for name, v in state.items() if v.dim()} <= {torch.float32}
        assert all(v.dtype is torch.float64 for name, v in state.items() if name == "step")


@each
def test_state_is_complete_before_the_first_step(entry):
    task = Task()
    opt = entry(task.params)
    before = {key: getattr(v, "shape", None) for key, v in snapshot(opt).items()}
    advance(entry, opt, task, 2)
    assert before == {key: getattr(v, "shape", None) for key, v in snapshot(opt).items()}


@each
def test_a_state_from_before_the_first_step_resumes(entry):
    task, twin = Task(), Task()
    opt, other = entry(task.params), entry(twin.params)
    other.load_state_dict(reloaded(opt.state_dict()))
    advance(entry, opt, task, 3)
    advance(entry, other, twin, 3)
    assert same(task.values(), twin.values())


def plain(value):
    if isinstance(value, dict):
        return all(isinstance(k, str | int) and plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)


@each
def test_a_checkpoint_holds_tensors_and_plain_data_only(entry):
    task = Task()
    opt = entry(task.params)
    advance(entry, opt, task, 1)
    assert plain(opt.state_dict())


@each
def test_loading_what_does_not_fit_changes_nothing(entry):
    task = Task()
    opt = entry(task.params)
    advance(entry, opt, task, 2)
    good, before, values = opt.state_dict(), snapshot(opt), task.values()

    def spoilt(spoil):
        bad = copy.deepcopy(good)
        spoil(bad)
        return bad

    first, *_ = [i for i, state in good["state"].items() if any(v.dim() for v in state.values())] or [None]
    bad = [
        spoilt(lambda s: s.pop("state")),
        spoilt(lambda s: s.pop("param_groups")),
        spoilt(lambda s: s["param_groups"][0]["params"].pop()),
        spoilt(lambda s: s["param_groups"].append(s["param_groups"][0])),
        spoilt(lambda s: s["param_groups"][0].update(learning_rate=0.1)),
        spoilt(lambda s: s["param_groups"][0].update(lr=float("nan"))),
        spoilt(lambda s: s["state"][0].update(stranger=torch.zeros(3, 4))),
    ]
    if len(good["state"][0]) > 1:  # without any state it would be that of a frozen parameter
        bad.append(spoilt(lambda s: s["state"][0].pop("step")))
    if first is not None:
        name = next(n for n, v in good["state"][first].items() if v.dim())
        bad.append(spoilt(lambda s: s["state"][first].pop(name)))
        bad.append(spoilt(lambda s: s["state"][first].update({name: torch.zeros(7, 7)})))
    for state_dict in bad:
        with pytest.raises(ValueError, match=f"^{type(opt).__name__}: "):
            opt.load_state_dict(state_dict)
        assert same_state(before, snapshot(opt))
        assert same(values, task.values())


@each
def test_loading_does_not_alias_the_loaded_state(entry):
    task = Task()
    opt = entry(task.params)
    advance(entry, opt, task, 2)
    saved = copy.deepcopy(opt.state_dict())
    kept = copy.deepcopy(saved)
    opt.load_state_dict(saved)
    advance(entry, opt, task, 2, start=2)
    for i, state in saved["state"].items():
        for name, value in state.items():
            assert torch.equal(value, kept["state"][i][name])


@each
def test_loading_its_own_state_changes_nothing(entry):
    """What ``state_dict`` returns shares its tensors with the optimizer; loaders in place hand it straight back."""
    task = Task()
    opt = entry(task.params)
    advance(entry, opt, task, 3)
    before = snapshot(opt)
    opt.load_state_dict(opt.state_dict())
    assert same_state(before, state_of(opt))
