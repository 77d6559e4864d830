"""Everything around ``step`` behaves as users of torch's optimizers expect."""

import math

import pytest
import torch
from entries import ENTRIES, Task, advance, same
from torch.optim import lr_scheduler

import hasten

each = pytest.mark.parametrize("entry", ENTRIES, ids=str)
unscheduled = pytest.mark.parametrize("entry", [e for e in ENTRIES if e.name != "AdamW cosine"], ids=str)


def start_lr(opt):
    return opt.param_groups[0]["lr"]


def follow(other, opt, *keys):
    """Give every group of `other` the values that it has in `opt`."""
    for group, given in zip(other.param_groups, opt.param_groups, strict=True):
        group.update({key: given[key] for key in keys})


@unscheduled
def test_lr_as_a_tensor_equals_lr_as_a_float(entry):
    task, twin = Task(), Task()
    opt = entry(task.params)
    lr = start_lr(opt)
    tensor = torch.tensor(lr, dtype=torch.float64)
    other = entry(twin.params, lr=tensor)
    advance(entry, opt, task, 4)
    advance(entry, other, twin, 4)
    assert same(task.values(), twin.values())
    tensor.mul_(0.5)  # a user may change it in place, as torch's capturable optimizers allow
    for group, given in zip(opt.param_groups, other.param_groups, strict=True):
        group["lr"] = float(given["lr"])
    assert opt.param_groups[0]["lr"] == lr / 2
    advance(entry, opt, task, 2, start=4)
    advance(entry, other, twin, 2, start=4)
    assert same(task.values(), twin.values())


@unscheduled
@pytest.mark.parametrize("kind", ["lambda", "cosine", "plateau"])
def test_torch_schedulers_are_obeyed(entry, kind):
    task, twin = Task(), Task()
    opt, other = entry(task.params), entry(twin.params)
    lr = start_lr(opt)
    scheduler = {
        "lambda": lambda: lr_scheduler.LambdaLR(opt, lambda t: 1 / (1 + t)),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(opt, T_max=5),
        "plateau": lambda: lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=0),
    }[kind]()
    expected = {
        "lambda": [lr / (1 + t) for t in range(5)],
        "cosine": [lr * (1 + math.cos(math.pi * t / 5)) / 2 for t in range(5)],
        "plateau": [lr, lr, lr / 2, lr / 4, lr / 8],
    }[kind]
    for k, value in enumerate(expected):
        assert start_lr(opt) == pytest.approx(value, rel=1e-12)
        follow(other, opt, "lr")
        advance(entry, opt, task, 1, start=k)
        advance(entry, other, twin, 1, start=k)
        scheduler.step(*([1.0] if kind == "plateau" else []))
    assert same(task.values(), twin.values())


@unscheduled
def test_a_step_at_zero_lr_does_not_move_the_parameters(entry):
    task = Task()
    opt = entry(task.params)
    for group in opt.param_groups:
        group["lr"] = 0.0
    before = task.values()
    advance(entry, opt, task, 2)
    assert same(before, task.values())


@unscheduled
def test_one_cycle_moves_lr_and_momentum(entry):
    task, twin = Task(), Task()
    opt, other = entry(task.params), entry(twin.params)
    group = opt.param_groups[0]
    keys = [k for k in ("betas", "momentum") if k in group]
    lr = start_lr(opt)
    # torch finds the momentum in ``defaults``, under the name "betas" or "momentum".
    scheduler = lr_scheduler.OneCycleLR(
        opt, max_lr=2 * lr, total_steps=8, cycle_momentum=bool(keys), base_momentum=0.8, max_momentum=0.9
    )
    seen = set()
    for k in range(7):
        follow(other, opt, "lr", *keys)
        seen.add((float(group["lr"]), *(str(group[key]) for key in keys)))
        advance(entry, opt, task, 1, start=k)
        advance(entry, other, twin, 1, start=k)
        scheduler.step()
    assert len(seen) == 7
    assert same(task.values(), twin.values())


@each
def test_a_scheduler_and_its_optimizer_resume_together(entry):
    if entry.name == "AdamW cosine":
        pytest.skip("has a schedule of its own")
    runs = []
    for interrupted in (False, True):
        task = Task()
        opt = entry(task.params)
        scheduler = lr_scheduler.OneCycleLR(opt, max_lr=start_lr(opt), total_steps=9, cycle_momentum=False)
        for k in range(6):
            if interrupted and k == 3:
                saved = opt.state_dict(), scheduler.state_dict()
                opt = entry(task.params)
                scheduler = lr_scheduler.OneCycleLR(opt, max_lr=1.0, total_steps=9, cycle_momentum=False)
                opt.load_state_dict(saved[0])
                scheduler.load_state_dict(saved[1])
            advance(entry, opt, task, 1, start=k)
            scheduler.step()
        runs.append(task.values())
    assert same(*runs)


@each
def test_groups_override_hyperparameters(entry):
    """Two groups, one with half the lr, move as two optimizers would; unless a part looks at all parameters."""
    opt = entry(Task().params)
    if any(part.measures == "all" for part in opt.sentence.parts):
        pytest.skip("the parameters are coupled through a sum over all of them")
    if entry.name == "AdamW cosine":
        pytest.skip("the schedule gives the lr")
    together, first, second = Task(), Task(), Task()
    half = start_lr(opt) / 2
    joint = entry([{"params": together.params[:2]}, {"params": together.params[2:], "lr": half}])
    a, b = entry(first.params[:2]), entry([{"params": second.params[2:], "lr": half}])
    advance(entry, joint, together, 3)
    advance(entry, a, first, 3)
    advance(entry, b, second, 3)
    assert same(together.values(), first.values()[:2] + second.values()[2:])


@each
def test_a_group_added_later_steps_from_then_on(entry):
    task = Task()
    opt = entry(task.params[:2])
    advance(entry, opt, task, 2)
    before = task.values()
    opt.add_param_group({"params": task.params[2:]})
    assert all(p in opt.state for p in task.params)
    advance(entry, opt, task, 2, start=2)
    for p, old in zip(task.params, before, strict=True):
        assert p.numel() == 0 or not torch.equal(p, old)


@each
def test_parameters_may_be_named_or_given_as_a_module(entry):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    for params in (model, model.named_parameters(), list(model.named_parameters())):
        opt = entry(params)
        found = [name for group in opt.param_groups for name in group["param_names"]]
        assert sorted(found) == sorted(name for name, _ in model.named_parameters())
    opt.load_state_dict(opt.state_dict())


@each
def test_zero_grad_as_torch(entry):
    task = Task()
    opt = entry(task.params)
    advance(entry, opt, task, 1)
    opt.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in task.params)
    opt.zero_grad()
    assert all(p.grad is None for p in task.params)
    before = task.values()
    if not entry.closure:
        opt.step()
        assert same(before, task.values())


@each
def test_step_returns_the_loss_of_the_closure(entry):
    task = Task()
    opt = entry(task.params)
    expected = task.closure(0)()
    assert torch.equal(opt.step(task.closure(0)), expected)
    if not entry.closure:
        assert opt.step() is None


@each
def test_hooks_are_called(entry):
    task = Task()
    opt = entry(task.params)
    called = []
    opt.register_step_pre_hook(lambda *_: called.append("step pre"))
    opt.register_step_post_hook(lambda *_: called.append("step post"))
    opt.register_state_dict_pre_hook(lambda *_: called.append("save pre"))
    opt.register_state_dict_post_hook(
        lambda _, saved: {**saved, "note": 1} if called.append("save post") is None else 0
    )
    opt.register_load_state_dict_pre_hook(
        lambda _, saved: (
            {k: v for k, v in saved.items() if k != "note"} if called.append("load pre") is None else 0
        )
    )
    opt.register_load_state_dict_post_hook(lambda *_: called.append("load post"))
    advance(entry, opt, task, 1)
    saved = opt.state_dict()
    assert saved["note"] == 1
    opt.load_state_dict(saved)
    assert called == ["step pre", "step post", "save pre", "save post", "load pre", "load post"]


@each
def test_it_is_an_optimizer_of_torch_and_prints_itself(entry):
    opt = entry(Task().params)
    assert isinstance(opt, torch.optim.Optimizer)
    description = hasten.describe(opt)
    assert repr(opt) == str(description)
    assert "lr=" in repr(opt)
    assert str(description).startswith(description.name)
    assert len(description.parts) == len(opt.sentence.parts)
    assert all(part.formula for part in description.parts)
    assert description.floats_per_parameter == description.floats_per_parameter >= 0


@each
def test_a_changed_parameter_is_noticed_by_autograd(entry):
    task = Task(shapes=((3,),))
    opt = entry(task.params)
    advance(entry, opt, task, 1)
    (p,) = task.params
    loss = (p * p).sum()
    advance(entry, opt, task, 1, start=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each
def test_train_eval_and_evaluating_exist_everywhere(entry):
    task = Task()
    opt = entry(task.params)
    advance(entry, opt, task, 3)
    before = task.values()
    with opt.evaluating():
        moved = not same(before, task.values())
    for p, old in zip(task.params, before, strict=True):
        torch.testing.assert_close(p.detach(), old, rtol=1e-12, atol=1e-13)
    assert moved == opt.has_evaluation_point
