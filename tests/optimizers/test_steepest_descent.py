"""Steepest descent by norm, layer by layer, and Scion."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

import hasten
from hasten.optimizers.layers import norm_groups
from hasten.optimizers.steepest_descent import SCION
from hasten.problems import LanguageModel
from hasten.transforms import EMA, NORMS, NormGeometry

DOUBLE = torch.float64


def changes(opt: hasten.Optimizer, params: list[Tensor]) -> list[Tensor]:
    """What one step along random gradients adds to the parameters."""
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.randn_like(p)
    opt.step()
    return [p.detach() - q for p, q in zip(params, before, strict=True)]


def network() -> nn.Module:
    layers = (
        nn.Embedding(11, 6),
        nn.Linear(6, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
        nn.ReLU(),
        nn.Linear(4, 7, False),
    )
    return nn.Sequential(*layers).to(DOUBLE)


# -- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_a_step_has_the_length_asked_for(norm: str) -> None:
    w = torch.randn(5, 8, dtype=DOUBLE, requires_grad=True)
    opt = hasten.SteepestDescent([w], lr=0.3, norm=norm, radius=2.0, backend="svd")
    for _ in range(3):
        (step,) = changes(opt, [w])
        torch.testing.assert_close(NORMS[norm].norm(step[None]), torch.tensor([0.6], dtype=DOUBLE))


def test_modular_every_layer_moves_by_one_radius_of_its_own() -> None:
    model = network()
    opt = hasten.SteepestDescent(model, lr=0.1, norm="modular", backend="svd")
    found = dict(zip(dict(model.named_parameters()), changes(opt, list(model.parameters())), strict=True))
    norms = {name: group["norm"] for group in opt.param_groups for name in group["param_names"]}
    assert norms == {
        "0.weight": "embedding",
        "1.weight": "rms_to_rms",
        "3.weight": "rms_to_rms",
        "1.bias": "rms",
        "3.bias": "rms",
        "5.weight": "rms_to_max",
    }
    for name, step in found.items():
        torch.testing.assert_close(NORMS[norms[name]].norm(step[None]), torch.tensor([0.1], dtype=DOUBLE))


def test_sharp_steps_are_in_proportion_to_the_gradient() -> None:
    w, v = (torch.zeros(4, 6, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    g = torch.randn(4, 6, dtype=DOUBLE)
    for p, scale in ((w, 1.0), (v, 3.0)):
        opt = hasten.SteepestDescent([p], 0.1, 0.0, "spectral", mode="sharp", backend="svd")
        p.grad = scale * g
        opt.step()
    torch.testing.assert_close(v.detach(), 3 * w.detach())
    nuclear = torch.linalg.svdvals(g).sum()
    torch.testing.assert_close(-(g * w.detach()).sum(), 0.1 * nuclear**2)  # the decrease to first order


# -- the ball ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_parameters_stay_in_the_ball(norm: str) -> None:
    """With weight decay λ and lr · λ ≤ 1, ‖W‖ ≤ radius/λ for ever if it holds at first."""
    radius, decay = 2.0, 0.5
    w = torch.randn(4, 6, dtype=DOUBLE)
    w = (w * (radius / decay) / NORMS[norm].norm(w[None])).requires_grad_()
    opt = hasten.SteepestDescent([w], 0.0, 0.5, norm, weight_decay=decay, radius=radius, backend="svd")
    drift = torch.randn(4, 6, dtype=DOUBLE)  # gradients that push it out
    largest = 0.0
    for k in range(60):
        opt.param_groups[0]["lr"] = (0.1, 1.0, 2.0)[k % 3]
        w.grad = drift + torch.randn(4, 6, dtype=DOUBLE)
        opt.step()
        largest = max(largest, float(NORMS[norm].norm(w.detach()[None])))
    assert largest <= radius / decay * (1 + 1e-9)
    assert largest > 0.9 * radius / decay


def test_momentum_before_the_norm_points_better_than_after() -> None:
    """Kovalev's order, LMO of the average, against the average of LMOs."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(12, 12, generator=generator, dtype=DOUBLE) / 4
    target = NORMS["spectral"].lmo(mean[None])[0]
    found = {}
    for name, chain in {
        "before": (EMA(0.95), NormGeometry("spectral", backend="svd")),
        "after": (NormGeometry("spectral", backend="svd"), EMA(0.95)),
    }.items():
        w = torch.zeros(12, 12, dtype=DOUBLE, requires_grad=True)
        opt = hasten.Optimizer([w], *chain, lr=1.0)
        cosines = []
        for k in range(200):
            w.grad = mean + torch.randn(12, 12, generator=generator, dtype=DOUBLE)
            before = w.detach().clone()
            opt.step()
            step = before - w.detach()
            if k >= 100:
                cosines.append(float((step * target).sum() / (step.norm() * target.norm())))
        found[name] = sum(cosines) / len(cosines)
    assert found["before"] > found["after"] + 0.02


# -- Scion ------------------------------------------------------------------------------------------------------------


def polar(x: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return u @ v


SCION_STEPS = {
    "0.weight": (50.0, lambda g: g / g.square().mean(1, keepdim=True).sqrt()),
    "1.weight": (50.0, lambda g: math.sqrt(10 / 6) * polar(g)),
    "1.bias": (5.0, lambda g: g / g.square().mean().sqrt()),
    "3.weight": (50.0, lambda g: math.sqrt(4 / 10) * polar(g)),
    "3.bias": (5.0, lambda g: g / g.square().mean().sqrt()),
    "5.weight": (300.0, lambda g: torch.sign(g) / 4),
}


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_scion_as_published(decay: float) -> None:
    """d ← (1−α) d + α g;  W ← (1−γ) W − γ ρ lmo(d), or without the shrinking."""
    model = network()
    opt = hasten.Scion(
        model, 0.01, 0.8, head_radius=300.0, vector_radius=5.0, weight_decay=decay, backend="svd"
    )
    ours = {name: p.detach().clone() for name, p in model.named_parameters()}
    averages = {name: torch.zeros_like(p) for name, p in ours.items()}
    for _ in range(6):
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p)
            averages[name] = 0.8 * averages[name] + 0.2 * p.grad
            radius, lmo = SCION_STEPS[name]
            ours[name] = (1 - 0.01 * decay) * ours[name] - 0.01 * radius * lmo(averages[name])
        opt.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), ours[name], rtol=0, atol=1e-11)


def test_scion_takes_convolutions_as_matrices() -> None:
    conv = nn.Conv2d(3, 8, 3, bias=False).to(DOUBLE)
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(8, 2, bias=False).to(DOUBLE))
    opt = hasten.Scion(model, 0.1, radius=1.0, backend="svd")
    step = changes(opt, [conv.weight])[0] + 0.1 * (conv.weight.detach() * 0)  # decay is in the change as well
    before = conv.weight.detach() - step
    lmo = -(step + 0.1 * before).reshape(8, 27) / 0.1
    values = torch.linalg.svdvals(lmo)
    torch.testing.assert_close(values, torch.full_like(values, math.sqrt(8 / 27)))


def test_a_tied_head_is_a_head() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 9, bias=False))
    model[2].weight = model[0].weight
    opt = hasten.Scion(model)
    assert [(group["norm"], group["radius"]) for group in opt.param_groups] == [
        ("mean_to_max", 3000.0),
        ("rms_to_rms", 50.0),
    ]


# -- groups -----------------------------------------------------------------------------------------------------------


def test_a_language_model() -> None:
    groups = norm_groups(LanguageModel(width=32, depth=1, heads=2), SCION, {"head": 7.0})
    found = {name: (group["norm"], group.get("split")) for group in groups for name, _ in group["params"]}
    assert found["symbol.weight"] == found["position.weight"] == ("embedding", None)
    assert found["blocks.0.query_key_value.weight"] == ("rms_to_rms", 3)
    assert found["blocks.0.mlp_in.weight"] == ("rms_to_rms", None)
    assert found["logits.weight"] == ("mean_to_max", None)
    assert found["norm.weight"] == found["norm.bias"] == ("rms", None)
    assert [group.get("radius") for group in groups if group["norm"] == "mean_to_max"] == [7.0]
    assert len(found) == len(list(LanguageModel(width=32, depth=1, heads=2).parameters()))


def test_kinds_by_name() -> None:
    groups = norm_groups(network(), kinds={"1.*": "embedding", "5.weight": "hidden"})
    found = {name: group["norm"] for group in groups for name, _ in group["params"]}
    assert found["1.weight"] == "embedding"
    assert found["5.weight"] == found["3.weight"] == "rms_to_rms"
    with pytest.raises(ValueError, match="no parameter has a name like 'head"):
        norm_groups(network(), kinds={"head*": "head"})
    with pytest.raises(ValueError, match="kind = 'tail' is not allowed; it must be one of 'hidden'"):
        norm_groups(network(), kinds={"5*": "tail"})
    with pytest.raises(ValueError, match="kinds is not allowed without a module"):
        norm_groups(list(network().parameters()), kinds={"5*": "head"})
    with pytest.raises(ValueError, match="the norm of kind 'embedding' = None is not allowed"):
        norm_groups(network(), {"hidden": "spectral"})


def test_positions_of_three_dimensions_are_normalised_row_by_row() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.randn(1, 5, 4, dtype=DOUBLE))
            self.head = nn.Linear(4, 2).to(DOUBLE)

    model = Positions()
    opt = hasten.SteepestDescent(model, 0.1, norm="modular")
    step = changes(opt, [model.pos_embed])[0]
    torch.testing.assert_close(step[0].square().mean(-1).sqrt(), torch.full((5,), 0.1, dtype=DOUBLE))


def test_groups_name_their_norms() -> None:
    first, second = nn.Linear(4, 6).to(DOUBLE), nn.Linear(6, 5).to(DOUBLE)
    opt = hasten.SteepestDescent(
        [
            {"params": first.parameters(), "norm": "row", "lr": 0.2},
            {"params": second.parameters(), "norm": "max_entry"},
        ],
        lr=0.1,
        backend="svd",
    )
    late = torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)
    opt.add_param_group({"params": [late], "norm": "nuclear", "lr": 0.5})
    params = [first.weight, first.bias, second.weight, second.bias, late]
    steps = changes(opt, params)
    expected = [("row", 0.2), ("rms", 0.2), ("max_entry", 0.1), ("max_entry", 0.1), ("nuclear", 0.5)]
    for step, (norm, length) in zip(steps, expected, strict=True):
        torch.testing.assert_close(NORMS[norm].norm(step[None]), torch.tensor([length], dtype=DOUBLE))
    assert "norm 'row':" in str(opt)

    saved = opt.state_dict()
    groups = [{**g, "params": opt.param_groups[i]["params"]} for i, g in enumerate(saved["param_groups"])]
    again = hasten.SteepestDescent(
        [{key: g[key] for key in ("params", "norm", "matrices") if key in g} for g in groups],
        lr=0.1,
        backend="svd",
    )
    again.load_state_dict(saved)
    assert [g["norm"] for g in again.param_groups] == [g["norm"] for g in opt.param_groups]
    assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in opt.param_groups]


def test_a_norm_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = dataclasses.replace(NORMS["frobenius"], factor=lambda m, n: 2.0)
    monkeypatch.setitem(NORMS, "norm_of_ones_own", twice)
    w, b = (torch.randn(*shape, dtype=DOUBLE, requires_grad=True) for shape in ((3, 4), (4,)))
    opt = hasten.SteepestDescent([w, b], lr=0.1, norm="norm_of_ones_own")
    for step in changes(opt, [w, b]):
        torch.testing.assert_close(step.norm(), torch.tensor(0.05, dtype=DOUBLE))


def test_mistakes_are_named_and_change_nothing() -> None:
    w, b = (torch.randn(*shape, requires_grad=True) for shape in ((3, 4), (4,)))
    with pytest.raises(
        ValueError, match="SteepestDescent: norm = 'spectrl' is not allowed; it must be one of 'modular'"
    ):
        hasten.SteepestDescent([w], norm="spectrl")
    with pytest.raises(
        ValueError, match="SteepestDescent: vector_norm = 'row' is not allowed; it must be one of"
    ):
        hasten.SteepestDescent([w], vector_norm="row")
    with pytest.raises(ValueError, match="norm = 'spectrl' is not allowed; did you mean 'spectral'"):
        hasten.SteepestDescent([{"params": [w], "norm": "spectrl"}])
    opt = hasten.SteepestDescent([w])
    before = str(opt.param_groups)
    with pytest.raises(ValueError, match="norm = 'spectrl' is not allowed; did you mean 'spectral'"):
        opt.add_param_group({"params": [b], "norm": "spectrl"})
    with pytest.raises(ValueError, match="is not a matrix: it has fewer than two dimensions"):
        opt.add_param_group({"params": [b], "norm": "row"})
    assert str(opt.param_groups) == before
    saved = opt.state_dict()
    saved["param_groups"][0]["norm"] = "spectrl"
    with pytest.raises(ValueError, match="norm = 'spectrl' is not allowed"):
        opt.load_state_dict(saved)


def test_modules_and_their_parameters_agree_where_the_layer_does_not_matter() -> None:
    torch.manual_seed(1)
    model, twin = network(), network()
    twin.load_state_dict(model.state_dict())
    given = {"norm": "frobenius", "momentum": 0.5, "weight_decay": 0.1}
    opt, other = hasten.SteepestDescent(model, **given), hasten.SteepestDescent(twin.parameters(), **given)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    opt.step()
    other.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
