"""Which parameters are matrices: real modules, names, overrides, groups of the user's own."""

import copy
import pickle

import pytest
import torch
from torch import nn

import hasten
from hasten.engine.structure import Structure
from hasten.iterates import ScheduleFree
from hasten.oracles import Backpropagation
from hasten.problems import LanguageModel
from hasten.transforms import Orthogonalize, WeightDecay


def kinds(model, **overrides):
    return {a.name: a.kind for a in hasten.matrix_groups(model, **overrides).assignments}


def read_as(model, **overrides):
    return {a.name: a.read_as for a in hasten.matrix_groups(model, **overrides).assignments if a.read_as}


def names(groups, matrices):
    return [name for group in groups if group["matrices"] is matrices for name, _ in group["params"]]


def test_a_language_model():
    model = LanguageModel(width=32, depth=2, heads=2)
    found = kinds(model)
    assert {n: k for n, k in found.items() if k in ("embedding", "head")} == {
        "symbol.weight": "embedding",
        "position.weight": "embedding",
        "logits.weight": "head",
    }
    assert {n for n, k in found.items() if k == "vector"} == {
        n for n, p in model.named_parameters() if p.dim() == 1
    }
    assert read_as(model) == {
        f"blocks.{i}.{layer}.weight": text
        for i in range(2)
        for layer, text in {
            "query_key_value": "3 × (32, 32)",
            "attention_out": "(32, 32)",
            "mlp_in": "(128, 32)",
            "mlp_out": "(32, 128)",
        }.items()
    }


def test_every_parameter_is_in_one_group_under_its_name():
    model = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    groups = hasten.matrix_groups(model)
    listed = [member for group in groups for member in group["params"]]
    assert sorted(n for n, _ in listed) == sorted(n for n, _ in model.named_parameters())
    assert all(dict(model.named_parameters())[n] is p for n, p in listed)
    assert [g["matrices"] for g in groups] == [True, True, False]
    assert [g.get("split") for g in groups] == [3, None, None]
    assert kinds(model)["decoder.layers.0.linear2.weight"] == "matrix"  # it is not the last layer of a chain


def test_a_convolutional_network():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 16, 3, groups=2),
        nn.Conv1d(16, 8, 1),
        nn.ConvTranspose2d(8, 4, 2),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 10)),
    )
    assert read_as(model) == {
        "0.weight": "(8, 27)",
        "3.weight": "2 × (8, 36)",
        "4.weight": "(8, 16)",
        "5.weight": "(4, 32)",
    }
    found = kinds(model)
    assert found["2.weight"] == "other"  # depthwise: filters, not a matrix
    assert found["6.1.weight"] == "head"


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), "2.weight"),
        (nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))), "0.2.weight"),
        (
            nn.ModuleDict({"trunk": nn.Linear(4, 8), "lm_head": nn.Linear(8, 3), "extra": nn.LayerNorm(3)}),
            "lm_head.weight",
        ),
        (nn.Linear(4, 8), None),
        (nn.MultiheadAttention(8, 2), None),
        (nn.TransformerEncoderLayer(8, 2), None),
        (nn.LSTM(4, 8), None),
    ],
    ids=["a chain", "a wrapped chain", "by name", "a layer", "attention", "a block", "recurrent"],
)
def test_the_head_is_the_last_layer_of_a_chain_or_named_so(model, head):
    assert [n for n, k in kinds(model).items() if k == "head"] == ([head] if head else [])


def test_gates_of_recurrent_layers_are_apart():
    assert read_as(nn.LSTM(4, 8, proj_size=3)) == {
        "weight_ih_l0": "4 × (8, 4)",
        "weight_hh_l0": "4 × (8, 3)",
        "weight_hr_l0": "(3, 8)",
    }
    assert read_as(nn.GRUCell(4, 8)) == {"weight_ih": "3 × (8, 4)", "weight_hh": "3 × (8, 8)"}


class Conv1D(nn.Module):
    """As GPT-2's: a linear layer stored in × out."""

    def __init__(self, rows, columns):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(columns, rows)), nn.Parameter(torch.zeros(rows))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 12, 6))
        self.scale = nn.Parameter(torch.ones(4, 6, 1))


class Named(nn.Module):
    """Layers named as in public models."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(11, 6)
        self.pos_embed = nn.Parameter(torch.randn(1, 9, 6))
        self.cls_token = nn.Parameter(torch.randn(2, 3))
        self.c_attn = Conv1D(18, 6)
        self.c_proj = Conv1D(6, 12)
        self.qkv = nn.Linear(6, 18)
        self.qkv_proj = nn.Linear(6, 10)  # grouped queries: not three equal parts
        self.experts = Experts()
        self.lm_head = nn.Linear(6, 11, bias=False)


def test_layers_of_public_models():
    model = Named()
    groups = hasten.matrix_groups(model)
    whole = {a.name: a for a in groups.assignments}
    assert {n: a.kind for n, a in whole.items() if a.kind not in ("matrix", "vector")} == {
        "wte.weight": "embedding",
        "pos_embed": "embedding",
        "cls_token": "embedding",
        "experts.scale": "other",
        "lm_head.weight": "head",
    }
    assert whole["c_attn.weight"].structure == Structure("transposed", 3)
    assert whole["c_proj.weight"].structure == Structure("transposed")
    assert whole["qkv.weight"].structure == Structure(split=3)
    assert whole["qkv_proj.weight"].structure == Structure()
    assert "see split" in whole["qkv_proj.weight"].why
    assert whole["experts.gate_up_proj"].structure == Structure("stack")
    assert "see split" in whole["experts.gate_up_proj"].why
    said = {"split": {"qkv_proj.*": (6, 2, 2), "*gate_up*": 2}, "layout": {"c_proj.weight": "flatten"}}
    assert read_as(model, **said) == {
        "c_attn.weight": "3 × (6, 6)",
        "c_proj.weight": "(12, 6)",
        "qkv.weight": "3 × (6, 6)",
        "qkv_proj.weight": "rows 6 + 2 + 2 of (10, 6)",
        "experts.gate_up_proj": "8 × (6, 6)",
    }
    opt = hasten.Muon(hasten.matrix_groups(model, **said), lr=0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    opt.step()
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_heads_interleaved_by_their_library_are_not_split():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query_key_value = nn.Linear(6, 18)

    model = nn.Sequential(Attention(), nn.LayerNorm(18))
    assert read_as(model) == {"0.query_key_value.weight": "3 × (6, 6)"}
    Attention.__module__ = "transformers.models.gpt_neox.modeling_gpt_neox"
    assert read_as(model) == {"0.query_key_value.weight": "(18, 6)"}


def test_a_tied_matrix_counts_once_and_is_known_by_both_names():
    model = nn.ModuleDict(
        {"head": nn.Linear(6, 11, bias=False), "wte": nn.Embedding(11, 6), "norm": nn.LayerNorm(6)}
    )
    model["wte"].weight = model["head"].weight
    (first, *_) = hasten.matrix_groups(model).assignments
    assert (first.name, first.kind) == ("head.weight", "embedding")
    assert sum(len(g["params"]) for g in hasten.matrix_groups(model)) == 3
    assert kinds(model, matrices=["wte.weight"])["head.weight"] == "matrix"


def test_patterns_override_both_ways():
    model = LanguageModel(width=32, depth=2, heads=2)
    groups = hasten.matrix_groups(model, matrices=["logits.*"], fallback=["blocks.0.*", "blocks.?.mlp_in.*"])
    assert "logits.weight" in names(groups, True)
    assert [n for n in names(groups, True) if n.startswith("blocks.0")] == []
    assert "blocks.1.mlp_in.weight" in names(groups, False)
    assert "blocks.1.mlp_out.weight" in names(groups, True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"matrices": ["nothing*"]}, "matrices: no parameter has a name like 'nothing\\*'"),
        ({"fallback": ["0"]}, "fallback: no parameter has a name like '0'"),
        ({"split": {"1.weight": 2}}, "split: no parameter has a name like '1.weight'"),
        ({"layout": {"x": "stack"}}, "layout: no parameter has a name like 'x'"),
        ({"matrices": ["0.*"], "fallback": ["0.weight"]}, "'0.weight' is matched by patterns of both"),
        ({"matrices": ["0.bias"]}, r"'0.bias', of shape \(8,\), cannot be read as a matrix: it has fewer"),
        ({"split": {"0.weight": 3}}, "'0.weight', of shape .* its 8 rows cannot be split into 3 equal parts"),
        ({"split": {"0.weight": (4, 3)}}, r"its 8 rows are not 4 \+ 3"),
        ({"split": {"0.weight": 0}}, "split = 0 is not allowed"),
        ({"layout": {"0.weight": "rows"}}, "layout = 'rows' is not allowed"),
        ({"matrices": "0.weight"}, "matrices = '0.weight' is not allowed; it must be a list of patterns"),
    ],
)
def test_what_cannot_be_meant_is_refused(overrides, message):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=f"^matrix_groups: .*{message}"):
        hasten.matrix_groups(model, **overrides)


def test_lazy_frozen_empty_and_complex_parameters():
    with pytest.raises(ValueError, match=r"'0\.weight' has not got its shape yet"):
        hasten.matrix_groups(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)))
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    model[0].weight.requires_grad_(False)
    model[1].weight = nn.Parameter(torch.zeros(0, 4))
    model[1].register_parameter("phase", nn.Parameter(torch.zeros(3, 3, dtype=torch.complex64)))
    found = kinds(model)
    assert (found["0.weight"], found["1.weight"], found["1.phase"]) == ("matrix", "matrix", "other")
    opt = hasten.Muon(model)
    assert model[0].weight not in opt.state
    model[0].weight.requires_grad_(True)  # and trained from now on
    before = model[0].weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    assert not torch.equal(model[0].weight, before)


def test_of_plain_parameters_only_the_dimensions_count():
    model = LanguageModel(width=32, depth=1, heads=2)
    for given in (list(model.parameters()), iter(model.parameters()), list(model.named_parameters())):
        groups = hasten.matrix_groups(given)
        members = [[m[1] if isinstance(m, tuple) else m for m in group["params"]] for group in groups]
        assert [group["matrices"] for group in groups] == [True, False]
        assert all(p.dim() >= 2 for p in members[0])
        assert all(p.dim() < 2 for p in members[1])
    groups = hasten.matrix_groups(model.named_parameters(), fallback=["symbol.*"])
    assert "symbol.weight" in names(groups, False)
    with pytest.raises(ValueError, match="no parameter has a name like"):
        hasten.matrix_groups(model.parameters(), fallback=["symbol.*"])
    with pytest.raises(TypeError, match="parameter 0 is float, not a tensor"):
        hasten.matrix_groups([1.0])
    with pytest.raises(TypeError, match="params = Tensor is not allowed"):
        hasten.matrix_groups(torch.zeros(3))


def test_groups_of_the_users_stay_as_they_are_or_are_divided():
    a, b, v = (torch.zeros(s, requires_grad=True) for s in ((4, 4), (6, 4), (4,)))
    said = {"params": [a], "matrices": False, "lr": 0.5}
    groups = hasten.matrix_groups([said, {"params": [b, v], "lr": 0.1, "split": 3}])
    assert groups[0] is said
    assert groups[1:] == [
        {"params": [b], "lr": 0.1, "matrices": True, "split": 3},
        {"params": [v], "lr": 0.1, "matrices": False},
    ]
    opt = hasten.Muon([{"params": [b, v], "lr": 0.1, "split": 3}, said])
    assert [(g["matrices"], g["lr"], len(g["params"])) for g in opt.param_groups] == [
        (True, 0.1, 1),
        (False, 0.1, 1),
        (False, 0.5, 1),
    ]
    assert hasten.matrix_groups(groups) == groups


def test_the_table_shows_every_decision():
    groups = hasten.matrix_groups(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
    assert str(groups).splitlines() == [
        "parameter  shape   kind    read as  why",
        "0.weight   (8, 6)  matrix  (8, 6)   in Linear",
        "0.bias     (8,)    vector           1 dimension",
        "2.weight   (3, 8)  head             the last layer",
        "2.bias     (3,)    vector           1 dimension",
    ]
    assert str(copy.deepcopy(groups)) == str(pickle.loads(pickle.dumps(groups))) == str(groups)


def test_a_state_of_several_groups_goes_on_bit_for_bit():
    torch.manual_seed(0)
    model = Named().double()

    def advance(model, opt, steps, start):
        for k in range(start, start + steps):
            for i, p in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * k + i)
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            opt.step()

    opt = hasten.Muon(model, lr=0.1)
    advance(model, opt, 3, 0)
    twin = copy.deepcopy(model)
    other = hasten.Muon(twin, lr=0.7)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    advance(model, opt, 3, 3)
    advance(twin, other, 3, 3)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_groups_remember_their_module():
    """So an optimizer with two points warns when the module is evaluated at the wrong one, as if given the module."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    opt = hasten.ScheduleFreeSGD([{"params": g["params"]} for g in hasten.matrix_groups(model)], lr=0.1)
    assert opt.module is None
    others = hasten.Sentence(Backpropagation(), (WeightDecay(0.0),), ScheduleFree(0.1))
    opt = hasten.Optimizer(
        hasten.matrix_groups(model), Orthogonalize(), iterate=ScheduleFree(0.1), vectors=others
    )
    assert opt.module is model
