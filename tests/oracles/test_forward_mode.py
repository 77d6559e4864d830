"""Forward mode learns what backpropagation and a projection would, without a graph and without a trace."""

import copy
import gc
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_models import MODELS, backpropagated, flat, observed, problem, same
from torch import nn
from torch.profiler import ProfilerActivity, profile

import hasten
from hasten.oracles import FiniteDifference, ForwardMode, directional_derivatives
from hasten.sketches import BalancedCountSketch, Coordinates, Gaussian, Haar, Identity, PerLayer
from hasten.transforms import EMA


def expected(sketch, gradients, weights=()):
    """P Pᵀg and ‖Pᵀg‖² by the whole gradient."""
    g = flat(gradients)
    draw = sketch.draw(g.numel(), seed=0, step=0)
    s = draw.project(g)
    return draw.lift(s), float(s.square().sum())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_it_learns_the_projected_gradient(name, training):
    model, closure = problem(name)
    model.train(training)
    params = list(model.parameters())
    reference = copy.deepcopy(dict(model.named_buffers()))
    gradients, loss, after = backpropagated(closure, params)
    once = {k: b.clone() for k, b in model.named_buffers()}
    for k, b in model.named_buffers():
        b.copy_(reference[k])
    for chunk in (1, 3, None):
        for k, b in model.named_buffers():
            b.copy_(reference[k])
        state = torch.get_rng_state()
        found, _ = observed(ForwardMode(rank=7, chunk=chunk), model, closure)
        assert same(found.loss, loss)
        lifted, square = expected(BalancedCountSketch(rank=7), gradients)
        assert same(flat(found.gradients[p] for p in params), lifted)
        assert found.numbers["squared_norm"] == pytest.approx(square, rel=1e-12)
        assert found.numbers["directional_derivatives"] == 7
        assert found.numbers["evaluations"] == {1: 7, 3: 3, None: 1}[chunk]
        # Everything else is as after one ordinary forward pass.
        assert torch.equal(torch.get_rng_state(), after)
        torch.set_rng_state(state)
        for k, b in model.named_buffers():
            torch.testing.assert_close(b, once[k], rtol=1e-12, atol=0)
        assert not found.loss.requires_grad


def test_all_directions_see_the_same_dropout_masks_in_any_layout():
    """With batch_first, torch draws masks in the order of the memory, which in chunks differs from an ordinary pass."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True).double()
    x, y = torch.randn(3, 6, 8).double(), torch.randn(3, 6, 8).double()
    closure = lambda: (layer(x) - y).square().mean()  # noqa: E731  # as users write it
    params, results = list(layer.parameters()), []
    torch.manual_seed(5)
    gradients, _, _ = backpropagated(closure, params)
    for chunk in (2, 3, 8):  # the last chunk of 3 holds one direction
        torch.manual_seed(5)
        found, _ = observed(ForwardMode(rank=7, chunk=chunk), layer, closure)
        results.append(flat(found.gradients.values()))
    assert all(same(r, results[0]) for r in results)
    torch.manual_seed(5)
    found, _ = observed(ForwardMode(rank=7, chunk=1), layer, closure)
    lifted, _ = expected(BalancedCountSketch(rank=7), gradients)
    assert same(flat(found.gradients[p] for p in params), lifted)


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=4),
    rank=st.integers(1, 9),
    chunk=st.one_of(st.none(), st.integers(1, 10)),
    seed=st.integers(0, 99),
)
def test_bare_tensors_of_any_shape(shapes, rank, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]
    d = sum(p.numel() for p in params)
    if d == 0:
        return
    rank = min(rank, d)
    coefficients = torch.linspace(-1, 1, d, dtype=torch.float64)

    def closure():
        x = torch.cat([p.reshape(-1) for p in params])
        return (coefficients * x + x.sin() * x.roll(1)).sum()

    gradients, loss, _ = backpropagated(closure, params)
    found, _ = observed(ForwardMode(rank=rank, chunk=chunk), params, closure)
    lifted, _ = expected(BalancedCountSketch(rank=rank), gradients)
    assert same(found.loss, loss)
    got = [found.gradients.get(p, torch.zeros_like(p)) for p in params]
    assert [g.shape for g in got] == [p.shape for p in params]
    assert torch.allclose(flat(got), lifted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("sketch", [Haar(rank=4), Gaussian(rank=4), Coordinates(rank=4), Identity()])
def test_any_sketch(sketch):
    model, closure = problem("mlp with dropout")
    params = list(model.parameters())
    gradients, _, _ = backpropagated(closure, params)
    found, _ = observed(ForwardMode(sketch=sketch), model, closure)
    lifted, square = expected(sketch, gradients)
    assert same(flat(found.gradients[p] for p in params), lifted)
    assert found.numbers["squared_norm"] == pytest.approx(square, rel=1e-12)


def test_layer_by_layer_keeps_vectors_whole():
    model, closure = problem("mlp with dropout")
    params = list(model.parameters())
    gradients, _, _ = backpropagated(closure, params)
    sketch = PerLayer(BalancedCountSketch(ratio=5))
    found, _ = observed(ForwardMode(sketch=sketch), model, closure)
    assert same(found.gradients[params[1]], gradients[1])
    draw = BalancedCountSketch(rank=7).draw(35, seed=0, step=0, block=0)
    assert same(found.gradients[params[0]].flatten(), draw.lift(draw.project(gradients[0])))
    assert found.numbers["directional_derivatives"] == 7 + 7 + 5 + 3


def test_weight_decay_is_part_of_the_objective():
    model, closure = problem("mlp with dropout")
    params = list(model.parameters())
    gradients, loss, _ = backpropagated(closure, params)
    groups = [{"params": params[:2], "weight_decay": 0.5}, {"params": params[2:], "weight_decay": 0.1}]
    state = torch.get_rng_state()
    found, _ = observed(ForwardMode(rank=6, weight_decay=0.1, curvature=True), groups, closure)
    torch.set_rng_state(state)
    decays = [0.5, 0.5, 0.1, 0.1]
    whole = [g + c * p.detach() for g, c, p in zip(gradients, decays, params, strict=True)]
    lifted, _ = expected(BalancedCountSketch(rank=6), whole)
    assert same(flat(found.gradients[p] for p in params), lifted)
    ridge = sum(c / 2 * float(p.detach().square().sum()) for c, p in zip(decays, params, strict=True))
    assert found.numbers["loss"] == pytest.approx(float(loss) + ridge, rel=1e-12)
    assert same(found.loss, loss)
    G = [found.gradients[p] for p in params]
    bend = sum(c * float(g.square().sum()) for c, g in zip(decays, G, strict=True))
    assert found.numbers["curvature"] == pytest.approx(curvature_along(closure, params, G) + bend, rel=1e-7)


def curvature_along(closure, params, direction):
    """Gᵀ∇²f G by differentiating backpropagation."""
    state = torch.get_rng_state()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradients = torch.autograd.grad(closure(), params, create_graph=True, materialize_grads=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    products = torch.autograd.grad(slope, params, materialize_grads=True)
    torch.set_rng_state(state)
    return sum(float((h * d).sum()) for h, d in zip(products, direction, strict=True))


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_curvature_along_the_direction(name, chunk):
    """In training mode, so that batch norm's statistics are differentiated too."""
    model, closure = problem(name)
    params = list(model.parameters())
    before = {k: b.clone() for k, b in model.named_buffers()}
    state = torch.get_rng_state()
    found, _ = observed(ForwardMode(rank=5, curvature=True, chunk=chunk), model, closure)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    assert found.numbers["evaluations"] == (5 if chunk == 1 else 2) + 2
    statistics = {k: b.clone() for k, b in model.named_buffers()}
    for k, b in model.named_buffers():
        b.copy_(before[k])
    exact = curvature_along(closure, params, [found.gradients[p] for p in params])
    assert found.numbers["curvature"] == pytest.approx(exact, rel=1e-6)
    for k, b in model.named_buffers():  # once, not three times
        torch.testing.assert_close(b, statistics[k])
    torch.set_rng_state(state)
    closure()
    assert torch.equal(torch.get_rng_state(), after)


def test_steps_of_forward_gradient_descent_are_those_of_the_projected_gradient():
    (model, closure), (twin, twins_closure) = (problem("tied embeddings") for _ in range(2))
    opt = hasten.Optimizer(model, EMA(0.9), oracle=ForwardMode(rank=8), lr=1e-2, seed=3)
    params, momentum = list(twin.parameters()), 0.0
    for k in range(5):
        loss = opt.step(closure)
        gradients = torch.autograd.grad(twins_closure(), params)
        draw = BalancedCountSketch(rank=8).draw(flat(params).numel(), seed=3, step=k)
        G = draw.lift(draw.project(flat(gradients)))
        assert same(loss, twins_closure().detach())
        momentum = 0.9 * momentum + 0.1 * G
        step = 1e-2 * momentum / (1 - 0.9 ** (k + 1))
        with torch.no_grad():
            for p, u in zip(params, step.split([p.numel() for p in params]), strict=True):
                p -= u.view_as(p)
    assert same(flat(model.parameters()), flat(params), 1e-10)


# -- what the user need not care about --------------------------------------------------------------------------------


def test_parameters_captured_outside_the_module_count():
    model, closure = problem("mlp with dropout")
    params = list(model.parameters())

    def penalised():
        return closure() + sum((p**2).sum() for p in params)

    gradients, _, _ = backpropagated(penalised, params)
    found, _ = observed(ForwardMode(rank=5), model, penalised)
    assert same(flat(found.gradients[p] for p in params), expected(BalancedCountSketch(rank=5), gradients)[0])


def test_frozen_and_unused_parameters():
    model, closure = problem("mlp with dropout")
    model[0].weight.requires_grad_(False)
    model[1].spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
    params = [p for p in model.parameters() if p.requires_grad]
    gradients, _, _ = backpropagated(closure, params)
    found, _ = observed(ForwardMode(rank=5), model, closure)
    assert model[0].weight not in found.gradients
    assert set(found.gradients) == set(params)
    assert same(flat(found.gradients[p] for p in params), expected(BalancedCountSketch(rank=5), gradients)[0])


def test_low_precision_parameters_get_directions_of_their_own_type():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6).bfloat16(), nn.Linear(6, 2))
    x = torch.randn(5, 4)
    closure = lambda: model[1](model[0](x.bfloat16()).float()).square().mean()  # noqa: E731  # a closure as users write it
    params = list(model.parameters())
    gradients, _, _ = backpropagated(closure, params)
    found, _ = observed(ForwardMode(rank=44), model, closure)
    assert [found.gradients[p].dtype for p in params] == [p.dtype for p in params]
    lifted, _ = expected(BalancedCountSketch(rank=44), [g.float() for g in gradients])
    assert same(flat(found.gradients[p].float() for p in params), lifted, 0.02)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("chunk", [1, None])
def test_recurrent_layers_in_float32_leave_kernels_without_a_forward_derivative(kind, chunk):
    torch.manual_seed(0)
    model, x = kind(4, 8, batch_first=True), torch.randn(6, 5, 4)
    enabled = torch.backends.mkldnn.enabled

    def closure():
        return model(x)[0].square().mean()

    gradients, _, _ = backpropagated(closure, list(model.parameters()))
    found, _ = observed(ForwardMode(rank=7, chunk=chunk), model, closure)
    lifted, _ = expected(BalancedCountSketch(rank=7), gradients)
    torch.testing.assert_close(
        flat(found.gradients[p] for p in model.parameters()), lifted, rtol=1e-4, atol=1e-5
    )
    assert torch.backends.mkldnn.enabled == enabled


def test_a_compiled_model_runs_eagerly():
    model, _ = problem("mlp with dropout")
    x = torch.randn(6, 5, dtype=torch.float64)

    def refuse(graph, inputs):
        raise AssertionError("compiled")

    compiled = torch.compile(model, backend=refuse)
    params = list(model.parameters())
    for chunk in (1, 3):
        torch.manual_seed(0)
        gradients, _, _ = backpropagated(lambda: model(x).square().mean(), params)
        found, _ = observed(ForwardMode(rank=5, chunk=chunk), model, lambda: compiled(x).square().mean())
        lifted, _ = expected(BalancedCountSketch(rank=5), gradients)
        assert same(flat(found.gradients[p] for p in params), lifted)


@pytest.mark.parametrize("chunk", [1, 3])
def test_the_fused_inference_path_of_transformers_is_left(chunk):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    x, y = torch.randn(3, 6, 8).double(), torch.randn(3, 6, 8).double()
    closure = lambda: (layer(x) - y).square().mean()  # noqa: E731  # as users write it
    params = list(layer.parameters())
    gradients, _, _ = backpropagated(closure, params)
    found, _ = observed(ForwardMode(rank=7, chunk=chunk), layer, closure)
    lifted, _ = expected(BalancedCountSketch(rank=7), gradients)
    assert same(flat(found.gradients[p] for p in params), lifted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_goes_one_direction_at_a_time():
    model, _ = problem("mlp with dropout")
    scripted = nn.Sequential(torch.jit.script(model[0]), nn.Tanh())
    x = torch.randn(6, 5, dtype=torch.float64)
    params = list(scripted.parameters())
    gradients, _, _ = backpropagated(lambda: scripted(x).square().mean(), params)
    found, _ = observed(ForwardMode(rank=5, chunk=1), scripted, lambda: scripted(x).square().mean())
    assert same(flat(found.gradients[p] for p in params), expected(BalancedCountSketch(rank=5), gradients)[0])
    with pytest.raises(NotImplementedError, match="module '0' is a script"):
        observed(ForwardMode(rank=5, chunk=2), scripted, lambda: scripted(x).square().mean())


class Remembering(nn.Module):
    """Its buffers are replaced, and one grows."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("calls", torch.zeros(0))

    def forward(self, x):
        y = self.linear(x)
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        self.calls = torch.cat([self.calls, torch.ones(1)])
        return y


@pytest.mark.parametrize(
    "oracle", [ForwardMode(rank=4, chunk=1), ForwardMode(rank=4, chunk=2), FiniteDifference(rank=4)]
)
def test_buffers_that_are_replaced(oracle):
    torch.manual_seed(0)
    model, x = Remembering(), torch.randn(6, 5)
    expected_mean = 0.1 * model.linear(x).detach().mean(0)
    opt = hasten.Optimizer(model, oracle=oracle, lr=0.0)
    for k in range(2):
        opt.step(lambda: model(x).square().mean())
        assert len(model.calls) == k + 1
    torch.testing.assert_close(model.mean, 1.9 * expected_mean, rtol=1e-2, atol=1e-2)
    assert not model.mean.requires_grad
    assert "GradTracking" not in repr(model.mean)  # an ordinary tensor, not one of a transform that has ended
    assert set(model.state_dict()) == {"linear.weight", "linear.bias", "mean", "calls"}


def test_a_network_with_an_own_autograd_function():
    class Square(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x, w):
            return x * w**2

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g * w**2, 2 * g * x * w

        @staticmethod
        def jvp(ctx, dx, dw):
            x, w = ctx.saved_tensors
            return (0 if dx is None else dx * w**2) + 2 * x * w * dw

    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, dtype=torch.float64)
    for chunk in (1, 4):
        found, _ = observed(
            ForwardMode(sketch=Identity(), chunk=chunk), [w], lambda: Square.apply(x, w).sum()
        )
        assert same(found.gradients[w], 2 * x * w.detach())


def test_a_loss_that_is_not_finite_is_left_to_the_optimizer():
    w = torch.ones(3, requires_grad=True)
    opt = hasten.Optimizer([w], oracle=ForwardMode(rank=2), lr=0.1, on_nonfinite="skip")
    opt.step(lambda: (w - 1).sqrt().sum())
    assert opt.skipped_steps == 1
    assert torch.equal(w, torch.ones(3))
    opt = hasten.Optimizer([w], oracle=ForwardMode(rank=2), lr=0.1, on_nonfinite="raise")
    with pytest.raises(hasten.NonFiniteGradient):
        opt.step(lambda: (w - 1).sqrt().sum())


def test_every_step_draws_another_matrix_and_a_seed_repeats_them():
    w = torch.ones(8, requires_grad=True)

    def gradients(seed):
        opt = hasten.Optimizer([w], oracle=ForwardMode(rank=2), lr=0.0, seed=seed)
        found = []
        for _ in range(3):
            found.append(opt.sentence.oracle.observe(opt, lambda: (w * torch.arange(8)).sum()).gradients[w])
            opt.step(lambda: (w * torch.arange(8)).sum())
        return torch.stack(found)

    first = gradients(0)
    assert torch.equal(first, gradients(0))
    assert not torch.equal(first, gradients(1))
    assert not torch.equal(first[0], first[1])


# -- memory -----------------------------------------------------------------------------------------------------------


def peak_memory(function):
    """Bytes that were allocated at once on the CPU, above those at the start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            function()
    held = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_memory_does_not_grow_with_depth():
    def network(depth):
        torch.manual_seed(0)
        return nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(16, 16), nn.Tanh())))

    x = torch.randn(4096, 16)
    activation = x.numel() * 4
    forward, backward = [], []
    for depth in (4, 24):
        model = network(depth)
        oracle = ForwardMode(rank=1)
        opt = hasten.Optimizer(model, oracle=oracle, lr=0.1)
        oracle.observe(opt, lambda m=model: m(x).square().mean())
        forward.append(
            peak_memory(lambda o=oracle, t=opt, m=model: o.observe(t, lambda: m(x).square().mean()))
        )
        backward.append(peak_memory(lambda m=model: m(x).square().mean().backward()))
    assert backward[1] - backward[0] > 15 * activation
    assert forward[1] - forward[0] < activation
    assert forward[1] < 8 * activation


def test_no_graph_is_built():
    model, closure = problem("transformer")
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        found, _ = observed(ForwardMode(rank=3, curvature=True), model, closure)
    assert not saved
    assert not any(g.requires_grad for g in found.gradients.values())
    assert all(p.grad is None for p in model.parameters())


# -- mistakes ---------------------------------------------------------------------------------------------------------


class Stuck(nn.Module):
    """Its operation has no forward derivative."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return NoForward.apply(x * self.weight)


class NoForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


def test_a_module_without_a_forward_derivative_is_named():
    model = nn.Sequential()
    model.encoder = nn.Sequential(nn.Linear(4, 4), Stuck(), nn.BatchNorm1d(4))
    x = torch.ones(3, 4)
    opt = hasten.Optimizer(model, oracle=ForwardMode(rank=2), lr=0.1)
    with pytest.raises(
        NotImplementedError, match=r"module 'encoder.1' \(Stuck\) uses the autograd function NoForward"
    ):
        opt.step(lambda: model(x).sum())


def test_an_operation_without_a_forward_derivative_is_named():
    w = torch.eye(3, requires_grad=True)
    opt = hasten.Optimizer([w], oracle=ForwardMode(rank=2), lr=0.1)
    with pytest.raises(
        NotImplementedError, match=r"the closure uses \S*embedding_bag\S*, which has no forward-mode"
    ):
        opt.step(lambda: torch.nn.functional.embedding_bag(torch.tensor([[0, 1]]), w, mode="max").sum())


BATCHES = torch.Generator()


def parameters_of_one():
    w = torch.ones(4, requires_grad=True)
    return w, hasten.Optimizer([w], oracle=ForwardMode(rank=2, chunk=1), lr=0.1)


@pytest.mark.parametrize(
    ("closure", "error", "message"),
    [
        (None, TypeError, "needs a closure that returns the loss"),
        (lambda w: w.sum().backward(), RuntimeError, r"the closure called backward\(\)"),
        (lambda w: w.sum().item(), TypeError, "returned float; it must return the loss itself"),
        (lambda w: w * 2, ValueError, r"a loss of shape \(4,\); it must have one entry"),
        (lambda w: (w > 0).sum(), TypeError, "a loss of dtype torch.int64"),
        (lambda w: w.sum() * 1j, TypeError, "a loss of dtype torch.complex64"),
        (lambda w: w.sum().detach(), RuntimeError, "does not depend on the parameters"),
        (lambda w: torch.ones(()), RuntimeError, "does not depend on the parameters"),
        (lambda w: w.sum() * torch.randint(9**9, (), generator=BATCHES), RuntimeError, "must use one batch"),
    ],
)
def test_a_closure_that_does_something_else(closure, error, message):
    w, opt = parameters_of_one()
    with pytest.raises(error, match=f"ForwardMode: .*{message}"):
        opt.step(None if closure is None else lambda: closure(w))
    assert torch.equal(w, torch.ones(4))


def test_buffers_of_a_module_the_optimizer_does_not_know():
    model, closure = problem("convolution with batch norm")
    with pytest.raises(
        RuntimeError, match=r"the module BatchNorm2d changes a tensor in place .* give the optimizer the"
    ):
        observed(ForwardMode(rank=2, chunk=2), model.parameters(), closure)
    gradients, _, _ = backpropagated(closure, list(model.parameters()))
    found, _ = observed(ForwardMode(rank=2, chunk=1), model.parameters(), closure)
    lifted, _ = expected(BalancedCountSketch(rank=2), gradients)
    assert same(flat(found.gradients[p] for p in model.parameters()), lifted)


def test_item_in_a_batched_pass_is_answered():
    w = torch.ones(4, requires_grad=True)
    opt = hasten.Optimizer([w], oracle=ForwardMode(rank=2, chunk=2), lr=0.1)
    with pytest.raises(TypeError, match="returned float"):
        opt.step(lambda: w.sum().item())


@pytest.mark.parametrize(
    "arguments",
    [{"rank": 0}, {"rank": 2.0}, {"chunk": 0}, {"chunk": 1.5}, {"rank": 2, "sketch": Haar(rank=3)}],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="is not allowed"):
        ForwardMode(**arguments)


def test_a_rank_above_the_dimension():
    w = torch.ones(4, requires_grad=True)
    opt = hasten.Optimizer([w], oracle=ForwardMode(rank=5), lr=0.1)
    with pytest.raises(ValueError, match=r"rank = 5 is not allowed in dimension 4"):
        opt.step(lambda: w.sum())


def test_complex_parameters_are_refused_by_name():
    w = torch.ones(4, dtype=torch.complex64, requires_grad=True)
    opt = hasten.Optimizer([("spectrum", w)], oracle=ForwardMode(rank=2), lr=0.1)
    with pytest.raises(RuntimeError, match="parameter 'spectrum' is complex"):
        opt.step(lambda: w.abs().sum())


@pytest.mark.parametrize("chunk", [1, 4])
def test_after_an_error_everything_is_as_before(chunk):
    model, closure = problem("convolution with batch norm")
    model.insert(2, nn.Dropout(0.5))
    calls = []

    def broken():
        calls.append(closure())
        if len(calls) > 1:
            raise KeyError("data")
        return calls[-1]

    before = copy.deepcopy(model.state_dict())
    identities = [id(t) for t in (*model.parameters(), *model.buffers())]
    state, fused = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    opt = hasten.Optimizer(model, oracle=ForwardMode(rank=8, chunk=chunk), lr=0.1)
    with pytest.raises(KeyError):
        opt.step(broken)
    assert len(calls) == 2
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert identities == [id(t) for t in (*model.parameters(), *model.buffers())]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert model.training
    assert opt.param_groups[0]["step"] == 0


# -- functions --------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(d=st.integers(1, 12), rank=st.integers(1, 12), chunk=st.one_of(st.none(), st.integers(1, 13)))
def test_directional_derivatives_of_a_function(d, rank, chunk):
    rank = min(rank, d)
    x = torch.linspace(-1, 1, d, dtype=torch.float64)
    draw = Haar(rank=rank).draw(d, seed=1, step=2)
    value, s = directional_derivatives(lambda x: (x.exp() * x.roll(1)).sum(), x, draw, chunk)
    point = x.clone().requires_grad_()
    exact = (point.exp() * point.roll(1)).sum()
    (gradient,) = torch.autograd.grad(exact, point)
    assert same(value, exact.detach())
    assert torch.allclose(s, draw.project(gradient), rtol=1e-11, atol=1e-13)


def test_a_function_that_ignores_its_point():
    with pytest.raises(RuntimeError, match="does not depend on the point"):
        directional_derivatives(lambda x: torch.ones(()), torch.ones(3), Haar(rank=2).draw(3))


def test_no_direction_is_held_while_the_model_runs():
    model = nn.Linear(301, 1, bias=False)
    x = torch.randn(4, 301)
    held = []

    def loss():
        gc.collect()
        tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
        own = model.weight.data_ptr()
        held.append(sum(t.numel() == 301 and t.data_ptr() != own for t in tensors))
        return model(x).square().mean()

    hasten.SubspaceGradientDescent(model, rank=1, oracle=ForwardMode(chunk=1)).step(loss)
    assert held == [0, 1, 1]  # at the curvature's two passes, the point that was moved
