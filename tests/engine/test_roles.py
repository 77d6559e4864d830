"""Sentences by name: parameter groups say which one moves them."""

import copy

import pytest
import torch

import hasten
from hasten.iterates import Plain
from hasten.oracles import Backpropagation
from hasten.transforms import EMA, SecondMoment, Sign, WeightDecay

SIGN = hasten.Sentence(Backpropagation(), (Sign(), WeightDecay(0.0)), Plain(0.5))
ADAM = hasten.Sentence(Backpropagation(), (EMA(0.8), SecondMoment(0.9), WeightDecay(0.1)), Plain(0.01))


def built(**group):
    params = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    w, v, u = params
    groups = [{"params": [w]}, {"params": [v], "role": "sign", **group}, {"params": [u], "role": "adam"}]
    return params, hasten.Optimizer(groups, EMA(0.9), lr=0.1, roles={"sign": SIGN, "adam": ADAM})


def step(params, opt, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    opt.step()


def test_each_group_has_the_defaults_and_the_state_of_its_sentence():
    params, opt = built()
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.5, 0.01]
    assert [group["weight_decay"] for group in opt.param_groups] == [0.0, 0.0, 0.1]
    kept = [set(opt.state[p]) - {"step"} for p in params]
    assert kept == [{"exp_avg"}, set(), {"exp_avg", "exp_avg_sq"}]


def test_each_group_moves_as_an_optimizer_of_its_own():
    params, opt = built(lr=0.25)
    twins = [p.detach().clone().requires_grad_() for p in params]
    alone = [
        hasten.Optimizer([twins[0]], EMA(0.9), lr=0.1),
        hasten.Optimizer([twins[1]], Sign(), lr=0.25),
        hasten.AdamW([twins[2]], lr=0.01, betas=(0.8, 0.9), weight_decay=0.1),
    ]
    for k in range(4):
        step(params, opt, k)
        for p, twin, own in zip(params, twins, alone, strict=True):
            twin.grad = p.grad.clone()
            own.step()
    for p, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(p, twin, rtol=0, atol=0)


def test_copies_and_checkpoints_keep_the_roles():
    params, opt = built()
    step(params, opt)
    others, again = built()
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.data)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    twin = copy.deepcopy(opt)
    copied = [p for group in twin.param_groups for p in group["params"]]
    for moved, own in ((params, opt), (others, again), (copied, twin)):
        step(moved, own, 1)
    for p, q, r in zip(params, others, copied, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


def test_a_role_that_is_not_there_is_refused_by_name():
    _, opt = built()
    before = str(opt.param_groups)
    late = torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match="role = 'sing' is not allowed; did you mean 'sign'"):
        opt.add_param_group({"params": [late], "role": "sing"})
    with pytest.raises(ValueError, match=r"role = \['sign'\] is not allowed"):
        opt.add_param_group({"params": [late], "role": ["sign"]})
    with pytest.raises(ValueError, match="AdamW: role = 'sign' is not allowed; it has one sentence for all"):
        hasten.AdamW([{"params": [late], "role": "sign"}])
    saved = copy.deepcopy(opt.state_dict())
    saved["param_groups"][1]["role"] = "sing"
    with pytest.raises(ValueError, match="role = 'sing' is not allowed"):
        opt.load_state_dict(saved)
    assert str(opt.param_groups) == before


def test_a_schedule_belongs_to_its_role():
    decaying = hasten.Sentence(
        Backpropagation(), (Sign(), WeightDecay(0.0)), Plain(hasten.schedules.cosine(1.0, total=10))
    )
    w, v = (torch.zeros(3, requires_grad=True) for _ in range(2))
    opt = hasten.Optimizer(
        [{"params": [w]}, {"params": [v], "role": "sign"}], Sign(), lr=0.1, roles={"sign": decaying}
    )
    step([w, v], opt)
    first = v.detach().clone()
    for _ in range(6):
        step([w, v], opt)
    torch.testing.assert_close(first.abs(), torch.ones(3))
    assert opt.param_groups[0]["lr"] == 0.1
    assert opt.param_groups[1]["lr"] < 0.5


def test_the_description_names_the_roles():
    _, opt = built()
    text = str(opt)
    assert "role 'sign':" in text
    assert "role 'adam':" in text
    assert "group 1: 1 parameters, role='sign', lr=0.5" in text
