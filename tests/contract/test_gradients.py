"""Gradients are read and never changed; tensors of every kind are stepped."""

import pytest
import torch
from entries import ENTRIES, Task, advance, same, same_state, snapshot, state_of

import hasten
from hasten.oracles import SubspaceOracle

each = pytest.mark.parametrize("entry", ENTRIES, ids=str)
engines = pytest.mark.parametrize("engine", ["eager", "compiled"])


@each
@engines
def test_gradients_are_left_untouched_and_are_not_kept(entry, engine):
    task, twin = Task(), Task()
    opt, other = entry(task.params, engine=engine), entry(twin.params, engine=engine)
    for k in range(3):
        advance(entry, opt, task, 1, start=k)
        advance(entry, other, twin, 1, start=k)
        task.closure(k)
        grads = [p.grad.clone() for p in task.params]
        assert same(grads, [p.grad for p in task.params])
        state = snapshot(opt)
        for p in task.params:
            p.grad.mul_(-3.0).add_(1.0)  # a loop that accumulates in place into the same tensors
        assert same_state(state, snapshot(opt))
    assert same(task.values(), twin.values())


@each
@engines
def test_the_step_does_not_change_the_gradient(entry, engine):
    if entry.closure:
        pytest.skip("the closure sets the gradient within the step")
    task = Task()
    opt = entry(task.params, engine=engine)
    for k in range(2):
        task.closure(k)()
        grads = [p.grad.clone() for p in task.params]
        opt.step()
        assert same(grads, [p.grad for p in task.params])


@each
@engines
def test_maximize_is_minimizing_the_negative(entry, engine):
    class Negative(Task):
        def closure(self, k):
            evaluate = super().closure(k)

            def negated():
                loss = evaluate()
                for p in self.params:
                    p.grad.neg_()
                return -loss

            return negated

    task, twin = Task(), Negative()
    advance(entry, entry(task.params, engine=engine, maximize=True), task, 4)
    advance(entry, entry(twin.params, engine=engine), twin, 4)
    assert same(task.values(), twin.values())


LAYOUTS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "strided slice": lambda x: torch.zeros(x.shape[0], 2 * x.shape[1], dtype=x.dtype)[:, ::2].copy_(x),
    "channels last": lambda x: x.reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
}


@each
@engines
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_that_are_not_contiguous(entry, engine, layout):
    """The same numbers in another memory layout take the same steps."""
    start = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    laid = LAYOUTS[layout](start).detach().requires_grad_()
    assert not laid.is_contiguous()
    plain = laid.detach().contiguous().requires_grad_()
    task, twin = Task(shapes=()), Task(shapes=())
    task.params, twin.params = [laid], [plain]
    opt, other = entry([laid], engine=engine), entry([plain], engine=engine)
    for k in range(3):
        advance(entry, opt, task, 1, start=k)
        advance(entry, other, twin, 1, start=k)
    torch.testing.assert_close(laid.detach(), plain.detach(), rtol=1e-12, atol=1e-14)
    assert laid.stride() == LAYOUTS[layout](start).stride()


@each
def test_gradients_that_are_not_contiguous(entry):
    if entry.closure:
        pytest.skip("the closure sets the gradient within the step")
    task, twin = Task(shapes=((3, 4),)), Task(shapes=((3, 4),))
    opt, other = entry(task.params), entry(twin.params)
    for _ in range(2):
        grad = torch.randn(4, 3, dtype=torch.float64)
        task.params[0].grad, twin.params[0].grad = grad.t(), grad.t().contiguous()
        opt.step()
        other.step()
    assert same(task.values(), twin.values())
    broadcast = torch.ones(1, dtype=torch.float64).expand(3, 4)
    task.params[0].grad, twin.params[0].grad = broadcast, broadcast.contiguous()
    opt.step()
    other.step()
    assert same(task.values(), twin.values())


@each
def test_parameters_without_gradient_are_skipped(entry):
    if entry.closure:
        pytest.skip("the closure gives every parameter a gradient")
    task = Task()
    opt = entry(task.params)
    advance(entry, opt, task, 1)
    task.closure(1)()
    task.params[0].grad = None
    before, state = task.values(), snapshot(opt)
    opt.step()
    after = task.values()
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    assert all(
        torch.equal(v, state[key])
        for key, v in state_of(opt).items()
        if key[0] == 0 and isinstance(v, torch.Tensor)
    )
    advance(entry, opt, task, 1, start=2)
    assert not torch.equal(before[0], task.values()[0])


@each
def test_frozen_parameters_stay_and_may_be_thawed(entry):
    task = Task()
    task.params[1].requires_grad_(False)
    opt = entry(task.params)
    before = task.values()
    advance(entry, opt, task, 2)
    assert torch.equal(before[1], task.params[1])
    opt.load_state_dict(opt.state_dict())
    task.params[1].requires_grad_(True)
    advance(entry, opt, task, 2, start=2)
    assert not torch.equal(before[1], task.params[1])


class Pairs(Task):
    """The same task, its complex parameters held as pairs of real numbers."""

    def closure(self, k):
        outer = self

        class Joined(Task):
            def __init__(self):
                self.params = [torch.view_as_complex(p.detach()).requires_grad_() for p in outer.params]

        def evaluate():
            joined = Joined()
            loss = joined.closure(k)()
            for p, q in zip(self.params, joined.params, strict=True):
                p.grad = torch.view_as_real(q.grad)
            return loss

        return evaluate


@each
@engines
def test_complex_parameters_are_pairs_of_real_ones_or_refused(entry, engine):
    task, twin = Task(shapes=((2, 3), (3, 4)), dtype=torch.complex128), Pairs(shapes=())
    twin.params = [torch.view_as_real(p.detach()).clone().requires_grad_() for p in task.params]
    opt, other = entry(task.params, engine=engine), entry(twin.params, engine=engine)
    moving = opt.composition_of(task.params[0])
    refusing = [part for part in moving.parts if part.grain != "element" or isinstance(part, SubspaceOracle)]
    if refusing:
        before = task.values()
        with pytest.raises(
            RuntimeError, match=f"complex, which {type(refusing[0]).__name__} does not support"
        ):
            advance(entry, opt, task, 1)
        assert same(before, task.values())
        return
    advance(entry, opt, task, 4)
    if moving is not opt.compositions[0]:
        return  # moved by the sentence of all that are no matrices, as the pairs are not
    advance(entry, other, twin, 4)
    for p, q in zip(task.params, twin.params, strict=True):
        torch.testing.assert_close(torch.view_as_real(p.detach()), q.detach(), rtol=1e-12, atol=1e-14)


@each
@engines
def test_dtypes_may_be_mixed_in_one_group(entry, engine):
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    tasks = [Task(shapes=((3, 4), (5,)), dtype=dtype) for dtype in dtypes]
    task = Task(shapes=())
    task.params = [p for t in tasks for p in t.params]
    opt = entry(task.params, engine=engine)
    before = task.values()
    advance(entry, opt, task, 3)
    for p, old in zip(task.params, before, strict=True):
        assert p.dtype is old.dtype
        assert not torch.equal(p, old)
        assert torch.isfinite(p).all()


@each
def test_a_sparse_gradient_is_refused_before_anything_changes(entry):
    task = Task(shapes=((4, 3), (6, 2)))
    opt = entry(task.params)
    advance(entry, opt, task, 1)

    def sparse():
        task.closure(1)()
        task.params[1].grad = task.params[1].grad.to_sparse()
        return torch.zeros(())

    values, state = task.values(), snapshot(opt)
    with pytest.raises(RuntimeError, match=rf"{type(opt).__name__}: parameter 1 .*sparse"):
        opt.step(sparse)
    assert same(values, task.values())
    assert same_state(state, snapshot(opt))


NOT_FINITE = [float("nan"), float("inf")]


@each
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_gradient_that_is_not_finite_raises(entry, bad):
    task = Task()
    opt = entry(task.params, on_nonfinite="raise")
    advance(entry, opt, task, 1)
    values, state = task.values(), snapshot(opt)
    with pytest.raises(hasten.NonFiniteGradient, match=rf"{type(opt).__name__}: .*parameter 1 of group 0"):
        opt.step(spoilt(task, bad))
    assert same(values, task.values())
    assert same_state(state, snapshot(opt))


@each
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(entry, bad):
    task, twin = Task(), Task()
    opt, other = entry(task.params, on_nonfinite="skip"), entry(twin.params)
    advance(entry, opt, task, 2)
    advance(entry, other, twin, 2)
    values, state = task.values(), snapshot(opt)
    opt.step(spoilt(task, bad))
    assert opt.skipped_steps == 1
    assert same(values, task.values())
    counted = {key for key in state if key[-1] == "skipped_steps"}
    after = snapshot(opt)
    assert all(
        torch.equal(v, after[key]) if isinstance(v, torch.Tensor) else v == after[key]
        for key, v in state.items()
        if key not in counted
    )
    advance(entry, opt, task, 2, start=2)
    advance(entry, other, twin, 2, start=2)
    assert same(task.values(), twin.values())


@each
def test_a_gradient_that_is_not_finite_propagates_by_default(entry):
    if (
        type(entry(Task().params)).__name__ in ("Lion", "Signum")
        or "sign" in entry.name
        or "lion" in entry.name
        or "max entry" in entry.name
    ):
        pytest.skip("the sign of NaN is 0 in torch")
    task = Task()
    opt = entry(task.params)
    for _ in range(1 + max(part.preparing for part in opt.sentence.parts)):
        opt.step(spoilt(task, float("nan")))
    assert task.params[1].isnan().any()


def spoilt(task, bad):
    def evaluate():
        loss = task.closure(7)()
        task.params[1].grad.view(-1)[2] = bad
        return loss

    return evaluate
