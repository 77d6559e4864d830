"""The engine's choices: compiled or eager, and plans that are made anew when something was replaced."""

import copy
import warnings

import pytest
import torch

import hasten
from hasten.engine import fused, passes
from hasten.shared_object import NoCompiler


@pytest.fixture
def no_compiler(monkeypatch):
    def refuse(formula, layout):
        raise NoCompiler("no C compiler found")

    monkeypatch.setattr(passes, "compiled_pass", refuse)
    monkeypatch.setattr(fused._Fallback, "happened", False)


def large():
    torch.manual_seed(0)
    p = torch.randn(fused.COMPILE_FROM["cpu"]).requires_grad_()
    p.grad = torch.ones_like(p)
    return p


def test_without_a_compiler_auto_falls_back_with_one_clear_warning(no_compiler):
    p, q = large(), large()
    with pytest.warns(
        UserWarning, match="hasten runs without compiling, which is slower: no C compiler found"
    ) as caught:
        hasten.AdamW([p]).step()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hasten.Lion([large()]).step()
        hasten.AdamW([q], engine="eager").step()
    assert torch.equal(p, q)


def test_without_a_compiler_compiled_raises_and_changes_nothing(no_compiler):
    p = large()
    opt = hasten.AdamW([p], engine="compiled")
    before, state = p.detach().clone(), copy.deepcopy(opt.state_dict())
    with pytest.raises(NoCompiler, match="no C compiler found"):
        opt.step()
    assert torch.equal(p, before)
    for name, value in opt.state[p].items():
        assert torch.equal(value, state["state"][0][name])


def test_auto_compiles_from_a_size_and_not_below(monkeypatch):
    asked = []
    original = passes.compiled_pass
    monkeypatch.setattr(passes, "compiled_pass", lambda f, la: asked.append(f) or original(f, la))
    monkeypatch.setattr(fused._Fallback, "happened", False)
    small = torch.ones(3, requires_grad=True)
    small.grad = torch.ones(3)
    hasten.AdamW([small]).step()
    assert not asked
    hasten.AdamW([large()]).step()
    assert asked


def pair():
    ps = [torch.linspace(-1, 1, n, dtype=torch.float64).requires_grad_() for n in (4, 6)]
    return ps, hasten.AdamW(ps, lr=0.1)


def advance(params, opt, k):
    for p in params:
        p.grad = torch.sin(p.detach() + k)
    opt.step()


def replace_state(opt):
    """As loaders that move the state to another device do."""
    for p, state in list(opt.state.items()):
        opt.state[p] = {name: value.clone() for name, value in state.items()}


def replace_one_buffer(opt):
    p = opt.param_groups[0]["params"][0]
    opt.state[p]["exp_avg"] = opt.state[p]["exp_avg"].clone()


def swap_data(opt):
    for p in opt.param_groups[0]["params"]:
        p.data = p.data.clone()


def swap_state_data(opt):
    for state in opt.state.values():
        state["exp_avg_sq"].data = state["exp_avg_sq"].clone()


def reload(opt):
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))


def change_engine(opt):
    opt.engine = "compiled"


@pytest.mark.parametrize(
    "disturb", [replace_state, replace_one_buffer, swap_data, swap_state_data, reload, change_engine]
)
def test_replaced_tensors_are_noticed(disturb):
    (a, opt), (b, other) = pair(), pair()
    for k in range(6):
        if k == 3:
            disturb(opt)
        advance(a, opt, k)
        advance(b, other, k)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for x, y in zip(a, b, strict=True):
        assert all(torch.equal(opt.state[x][name], other.state[y][name]) for name in opt.state[x])


def test_a_step_count_set_by_hand_is_obeyed():
    (a, opt), (b, other) = pair(), pair()
    advance(a, opt, 0)
    advance(b, other, 0)
    for p in a:
        opt.state[p]["step"].fill_(100.0)
    saved = copy.deepcopy(other.state_dict())
    for state in saved["state"].values():
        state["step"] = torch.tensor(100.0)
    other.load_state_dict(saved)
    advance(a, opt, 1)
    advance(b, other, 1)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert float(opt.state[a[0]]["step"]) == 101


def test_parameters_may_take_turns():
    """Each parameter counts its own steps, whichever of them have a gradient."""
    (a, opt) = pair()
    for k in range(6):
        for i, p in enumerate(a):
            p.grad = torch.sin(p.detach() + k) if (k + i) % 2 or k > 3 else None
        opt.step()
    b = [torch.linspace(-1, 1, n, dtype=torch.float64).requires_grad_() for n in (4, 6)]
    for i, p in enumerate(b):
        alone = hasten.AdamW([p], lr=0.1)
        for k in range(6):
            if (k + i) % 2 or k > 3:
                p.grad = torch.sin(p.detach() + k)
                alone.step()
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_parameter_in_half_the_dtype_after_a_move():
    p = torch.ones(4, requires_grad=True)
    opt = hasten.SGD([p], lr=0.5)
    p.grad = torch.ones(4)
    opt.step()
    p.data = p.data.bfloat16()
    p.grad = torch.ones(4, dtype=torch.bfloat16)
    opt.step()
    assert torch.equal(p.detach(), torch.zeros(4, dtype=torch.bfloat16))


def test_a_sum_over_all_parameters_must_stand_before_one_over_a_tensor():
    w = [torch.ones(3, requires_grad=True)]
    every, single = hasten.transforms.ClipNorm(1.0), hasten.transforms.ClipTensorNorm(1.0)
    hasten.Optimizer(w, every, single)
    with pytest.raises(ValueError, match="ClipNorm is not allowed after ClipTensorNorm"):
        hasten.Optimizer(w, single, every)
