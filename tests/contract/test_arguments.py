"""Mistakes are answered before anything is changed: the optimizer, the argument, the value, and what is allowed."""

import inspect
import math

import pytest
import torch
from entries import ENTRIES, NAMED, Task, advance, same_state, snapshot

import hasten

each = pytest.mark.parametrize("entry", ENTRIES, ids=str)


NOT_NUMBERS = {"params", "sketch", "oracle", "mirror", "smoothness"}
"""Arguments that take, or may also take, objects; tests/optimizers/test_subspace_optimizers.py spoils them."""


def is_numeric(parameter):
    """Whether an argument is declared to be a number, or a tuple of them."""
    kinds = str(parameter.annotation)
    return "Sequence" not in kinds and any(kind in kinds for kind in ("Value", "float", "int"))


def numeric_arguments():
    """Every numeric constructor argument of every named optimizer, and every member of the tuples."""
    for entry in NAMED:
        for name, parameter in inspect.signature(entry.build).parameters.items():
            default = entry.kwargs.get(name, parameter.default)
            if (
                name in NOT_NUMBERS
                or parameter.kind is parameter.VAR_KEYWORD
                or not is_numeric(parameter)
                or isinstance(default, bool | str)
            ):
                continue
            yield entry, name, default


ARGUMENTS = list(numeric_arguments())
BAD = [float("nan"), "0.1", True, 1j, torch.tensor([1.0, 2.0]), torch.tensor(float("nan"))]


def ids(argument):
    return f"{argument[0].name}-{argument[1]}"


def spoilings(default):
    """The argument with one bad number in it, and where that number stands."""
    for bad in BAD:
        if isinstance(default, tuple):
            for i in range(len(default)):
                yield bad, (*default[:i], bad, *default[i + 1 :])
        else:
            yield bad, bad


@pytest.mark.parametrize("argument", ARGUMENTS, ids=ids)
def test_what_is_no_number_is_rejected(argument):
    entry, name, default = argument
    for bad, value in spoilings(default):
        with pytest.raises(
            ValueError, match=rf"^{entry.name}: {name}.* is not allowed; it must be"
        ) as caught:
            entry(Task().params, **{name: value})
        shown = bad.item() if isinstance(bad, torch.Tensor) and bad.dim() == 0 else bad
        assert repr(shown) in str(caught.value)


@pytest.mark.parametrize("argument", ARGUMENTS, ids=ids)
def test_what_is_out_of_range_is_rejected(argument):
    """Both infinities are outside of every range but those that say otherwise."""
    entry, name, default = argument
    allowed = {("Prodigy", "growth_rate"): [math.inf]}.get((entry.name, name), [])
    for bad in (-math.inf, math.inf):
        if bad in allowed:
            continue
        value = (bad,) * len(default) if isinstance(default, tuple) else bad
        with pytest.raises(ValueError, match=rf"^{entry.name}: {name}.*inf.* is not allowed; it must be"):
            entry(Task().params, **{name: value})


@pytest.mark.parametrize("entry", NAMED, ids=str)
def test_every_declared_range_is_checked_at_both_ends(entry):
    opt = entry(Task().params)
    groups = len(opt.param_groups)
    for composition in opt.compositions:
        for name, hyper in composition.hypers.items():
            place = opt.places[name]
            group = opt.param_groups[0]
            for edge, inside in [(hyper.allowed.low, False), (hyper.allowed.high, False)]:
                if math.isinf(edge) or edge in hyper.allowed:
                    continue
                with pytest.raises(ValueError, match=f"{entry.name}: .* is not allowed; it must be in"):
                    opt.add_param_group(
                        {"params": [torch.zeros(1, requires_grad=True)], **changed(group, place, edge)}
                    )
                assert not inside
            below = hyper.allowed.low - 1
            if math.isfinite(below):
                with pytest.raises(ValueError, match="is not allowed"):
                    opt.add_param_group(
                        {"params": [torch.zeros(1, requires_grad=True)], **changed(group, place, below)}
                    )
    assert len(opt.param_groups) == groups


def changed(group, place, value):
    if place.index is None:
        return {place.key: value}
    old = group[place.key]
    return {place.key: (*old[: place.index], value, *old[place.index + 1 :])}


@each
def test_a_value_moved_out_of_range_is_refused_at_the_step(entry):
    task = Task()
    opt = entry(task.params)
    advance(entry, opt, task, 1)
    if opt.param_groups[0]["schedules"]:
        pytest.skip("the schedule gives the lr")
    opt.param_groups[0]["lr"] = float("nan")
    before = {k: v for k, v in snapshot(opt).items() if k[-1] != "lr"}
    with pytest.raises(
        ValueError, match=rf"^{type(opt).__name__}: lr = nan is not allowed; it must be in \[0, inf\)"
    ):
        advance(entry, opt, task, 1, start=1)
    assert same_state(before, {k: v for k, v in snapshot(opt).items() if k[-1] != "lr"})


@pytest.mark.parametrize("entry", NAMED, ids=str)
def test_an_unknown_keyword_is_answered_with_the_nearest(entry):
    for wrong, right in [("weight_decy", "weight_decay"), ("maximise", "maximize"), ("learning_rate_", None)]:
        with pytest.raises(TypeError, match=rf"{entry.name} has no argument '{wrong}'") as caught:
            entry(Task().params, **{wrong: 0.1})
        if right:
            assert f"did you mean {right!r}?" in str(caught.value)


@each
def test_a_misspelt_group_key_is_answered_with_the_nearest(entry):
    opt = entry(Task().params)
    groups = len(opt.param_groups)
    key = next(k for k in opt.param_groups[0] if k in {p.key for p in opt.places.values()} and len(k) > 4)
    for wrong in (key + "s", key[:-1]):
        with pytest.raises(
            ValueError, match=rf"{type(opt).__name__}: .*unknown key '{wrong}'; did you mean '{key}'"
        ):
            entry([{"params": Task().params, wrong: 0.1}])
        with pytest.raises(ValueError, match="did you mean"):
            opt.add_param_group({"params": [torch.zeros(2, requires_grad=True)], wrong: 0.1})
    assert len(opt.param_groups) == groups


@each
def test_a_bad_group_changes_nothing(entry):
    task = Task()
    opt = entry(task.params)
    before = snapshot(opt)
    for bad in (
        {"params": [torch.zeros(2, requires_grad=True)], "lr": -1.0},
        {"params": [task.params[0]]},
        {"params": [torch.zeros(2, requires_grad=True), "no tensor"]},
        {"params": [torch.zeros(2, requires_grad=True) * 2]},
        {"params": []} | {"lr": float("nan")},
    ):
        with pytest.raises((ValueError, TypeError)):
            opt.add_param_group(bad)
        assert same_state(before, snapshot(opt))
        assert opt.parameter_count == sum(p.numel() for p in task.params)
    with pytest.raises(TypeError, match="must be a dict"):
        opt.add_param_group(task.params)


@each
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("maximize", "yes"),
        ("maximize", 1),
        ("engine", "jit"),
        ("on_nonfinite", "ignore"),
        ("stochastic_rounding", None),
        ("state_dtype", "bfloat16"),
        ("state_dtype", torch.int8),
        ("seed", 0.5),
        ("seed", True),
    ],
)
def test_engine_options_are_checked(entry, option, value):
    with pytest.raises(ValueError, match=rf"{option} = .* is not allowed; it must be"):
        entry(Task().params, **{option: value})


@each
def test_parameters_that_are_none_are_refused(entry):
    for bad in ([], torch.zeros(3, requires_grad=True), [torch.zeros(3, requires_grad=True) * 2], [3.0]):
        with pytest.raises((ValueError, TypeError)):
            entry(bad)


def test_choices_are_checked():
    w = [torch.zeros(2, requires_grad=True)]
    with pytest.raises(
        ValueError, match="NAdamW: variant = 'keras' is not allowed; it must be one of 'torch', 'optax'"
    ):
        hasten.NAdamW(w, variant="keras")
    with pytest.raises(ValueError, match="MARS: flavour = 'shampo' is not allowed"):
        hasten.MARS(w, flavour="shampo")
    for name in ("convention", "backend", "scale"):
        with pytest.raises(ValueError, match=f"Muon: {name} = 'best' is not allowed; it must be one of"):
            hasten.Muon(w, **{name: "best"})
    with pytest.raises(ValueError, match="AdaMuon: variant = 'best' is not allowed; it must be one of"):
        hasten.AdaMuon(w, variant="best")
    for cls, name in [
        (hasten.SGD, "nesterov"),
        (hasten.AdamW, "amsgrad"),
        (hasten.Adam, "amsgrad"),
        (hasten.QHM, "decoupled"),
        (hasten.NAdamW, "decoupled"),
        (hasten.RAdam, "decoupled"),
        (hasten.QHAdam, "decoupled"),
        (hasten.AdaBound, "amsbound"),
        (hasten.Muon, "nesterov"),
        (hasten.AdaMuon, "nesterov"),
        (hasten.MARS, "exact"),
        (hasten.MARS, "optimize_1d"),
        (hasten.Prodigy, "use_bias_correction"),
        (hasten.Prodigy, "safeguard_warmup"),
        (hasten.SimplifiedAdEMAMix, "bias_correction1"),
        (hasten.SimplifiedAdEMAMix, "bias_correction2"),
    ]:
        with pytest.raises(ValueError, match=f"{cls.__name__}: {name} = 'no' is not allowed"):
            cls(w, **{name: "no"})


def test_parts_that_do_not_belong_are_refused():
    w = [torch.zeros(2, requires_grad=True)]
    with pytest.raises(TypeError, match="must be a transform"):
        hasten.Optimizer(w, hasten.iterates.Plain())
    with pytest.raises(TypeError, match="must be an iterate"):
        hasten.Optimizer(w, iterate=hasten.transforms.EMA())
    with pytest.raises(TypeError, match="must be an oracle"):
        hasten.Optimizer(w, oracle=0.1)
    with pytest.raises(ValueError, match="two parts declare 'beta1'"):
        hasten.Optimizer(w, hasten.transforms.EMA(0.9), hasten.transforms.EMA(0.8))
    with pytest.raises(ValueError, match="weight_decay is given twice"):
        hasten.Optimizer(w, hasten.transforms.WeightDecay(0.1), weight_decay=0.1)
