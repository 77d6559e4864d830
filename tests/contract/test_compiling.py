"""Compiled by the engine, or by a user's ``torch.compile`` of the whole step: one kernel, the same result."""

import pytest
import torch
from entries import ENTRIES, Task, advance, same
from torch._dynamo.testing import CompileCounter

import hasten
from hasten.engine import passes

each = pytest.mark.parametrize("entry", ENTRIES, ids=str)
QUICK = ("SGD", "AdamW", "Lion", "ScheduleFreeAdamW", "MARS", "Prodigy")
REFUSED = [e for e in ENTRIES if any(not p.traceable for c in e(Task().params).compositions for p in c.parts)]
"""They choose between formulas by the number of the step."""
traceable = pytest.mark.parametrize(
    "entry",
    [
        pytest.param(e, marks=[] if e.name in QUICK else pytest.mark.slow)
        for e in ENTRIES
        if not (e.closure or e.name.startswith("Subspace") or e in REFUSED)
    ],
    ids=str,
)

ROUNDED = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Where a formula holds exp or a sum over a tensor, the order of operations may differ in the last bits."""
NOT_BITWISE = {
    "DiffGrad",
    "MARS",
    "MARS lion",
    "MARS exact",
    "MARS shampoo",
    "MARSMuon",
    "ClipNorm first",
    "Prodigy",
}


def nudge(opt, k):
    """Another lr and other betas in every step, as schedulers set them."""
    group = opt.param_groups[0]
    if not group["schedules"]:
        group["lr"] = group["lr"] * (1 - 0.01 * k)
    if "betas" in group and "betas[2]" not in group["schedules"]:
        group["betas"] = tuple(b * (1 - 0.001 * k) for b in group["betas"])


@traceable
def test_a_users_compiled_step_is_one_graph_and_equals_eager(entry):
    torch._dynamo.reset()
    shapes = ((3, 4), (5,)) if entry.name.startswith(("MARS", "Adafactor")) else ((3, 4),)
    task, twin = Task(shapes), Task(shapes)
    opt, other = entry(task.params, engine="eager"), entry(twin.params)
    counter = CompileCounter()
    step = torch.compile(other.step, fullgraph=True, backend=counter)
    for k in range(20):
        nudge(opt, k)
        nudge(other, k)
        advance(entry, opt, task, 1, start=k)
        twin.closure(k)()
        step()
    assert counter.frame_count <= 2
    for a, b in zip(task.values(), twin.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    advance(entry, opt, task, 1, start=20)
    advance(entry, other, twin, 1, start=20)  # not compiled again: the state is the same
    for a, b in zip(task.values(), twin.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    with opt.evaluating(), other.evaluating():
        for a, b in zip(task.values(), twin.values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_a_step_that_needs_more_than_gradients_is_not_traced():
    opt = hasten.SubspaceNesterov([torch.ones(3, requires_grad=True)])
    with pytest.raises(Exception, match="a step with Sketched cannot be compiled as a whole"):
        torch.compile(opt.step, fullgraph=True, backend="eager")()


@pytest.mark.parametrize("entry", REFUSED, ids=str)
def test_a_step_that_branches_on_its_number_is_not_traced(entry):
    opt = entry([torch.ones(3, 4, requires_grad=True)])
    with pytest.raises(Exception, match="cannot be compiled as a whole; compile the model instead"):
        torch.compile(opt.step, fullgraph=True, backend="eager")()


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_compiled_engine_equals_the_eager_one(entry, dtype):
    shapes = ((3, 4), (5,), (), (0, 2), (2, 3, 2, 2), (300, 40))
    task, twin = Task(shapes, dtype), Task(shapes, dtype)
    opt, other = entry(task.params, engine="eager"), entry(twin.params, engine="compiled")
    for k in range(5):
        nudge(opt, k)
        nudge(other, k)
        advance(entry, opt, task, 1, start=k)
        advance(entry, other, twin, 1, start=k)
    if entry.name in NOT_BITWISE:
        for a, b in zip(task.values(), twin.values(), strict=True):
            tolerance = ROUNDED.get(dtype, 2**-7)
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    else:
        assert same(task.values(), twin.values())


@each
def test_the_engine_compiles_a_formula_once(entry, monkeypatch):
    """Over twenty values of lr and betas, and in a second optimizer with other shapes."""
    built = []
    native = passes.native_pass
    monkeypatch.setattr(
        passes,
        "native_pass",
        lambda formula, layout: built.append((formula.identity(), layout)) or native(formula, layout),
    )
    for shapes in [((3, 4),), ((7, 2),), ((5, 5, 5),)]:
        task = Task(shapes)
        opt = entry(task.params, engine="compiled")
        for k in range(20):
            nudge(opt, k)
            advance(entry, opt, task, 1, start=k)
        assert len(set(built)) <= 1 + len(opt.compositions[0].measuring)
