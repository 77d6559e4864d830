"""Products with the Hessian against the Hessian, and what is estimated from them."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_models import MODELS, flat, problem, same
from torch.autograd.functional import hessian

import hasten
from hasten.oracles import HessianVector, estimate_curvature, estimate_largest, estimate_trace
from hasten.oracles.hessian_vector import signs
from hasten.problems import Quadratic
from hasten.transforms.step import Step

MODES = ["reverse", "forward-over-reverse"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_the_product_is_the_derivative_of_the_gradient(name, mode):
    """Against central differences of backpropagated gradients, in training mode."""
    model, closure = problem(name)
    params = [p for p in model.parameters() if p.requires_grad]
    vectors = signs(params, seed=1, step=0)
    buffers = {k: b.clone() for k, b in model.named_buffers()}
    state = torch.get_rng_state()

    def gradient(shift):
        torch.set_rng_state(state)
        for k, b in model.named_buffers():
            b.copy_(buffers[k])
        with torch.no_grad():
            for p, v in zip(params, vectors, strict=True):
                p += shift * v
        loss = closure()
        found = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for p, v in zip(params, vectors, strict=True):
                p -= shift * v
        return loss.detach(), found

    h = 1e-6
    (_, ahead), (_, behind) = gradient(h), gradient(-h)
    loss, g = gradient(0.0)
    after, once = torch.get_rng_state(), {k: b.clone() for k, b in model.named_buffers()}
    torch.set_rng_state(state)
    for k, b in model.named_buffers():
        b.copy_(buffers[k])
    found = HessianVector(mode).product(closure, model, vectors)
    assert same(found.loss, loss)
    assert same(flat(found.gradients), flat(g))
    assert same(flat(found.products), (flat(ahead) - flat(behind)) / (2 * h), 1e-6)
    assert torch.equal(torch.get_rng_state(), after)
    for k, b in model.named_buffers():
        torch.testing.assert_close(b, once[k])
    assert not any(t.requires_grad for t in (found.loss, *found.gradients, *found.products))
    assert all(p.grad is None for p in params)


@settings(max_examples=20, deadline=None)
@given(d=st.integers(1, 6), mode=st.sampled_from(MODES), seed=st.integers(0, 99))
def test_bare_tensors_against_the_dense_hessian(d, mode, seed):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(d, dtype=torch.float64, generator=generator).requires_grad_()
    v = torch.randn(d, dtype=torch.float64, generator=generator)
    function = lambda w: (w.exp() * w.roll(1)).sum() + (w**3).sum()  # noqa: E731
    _, _, (product,) = HessianVector(mode).product(lambda: function(w), [w], [v])
    assert torch.allclose(product, hessian(function, w.detach()) @ v, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_a_linear_and_an_unused_parameter(mode):
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    found = HessianVector(mode).product(lambda: a.sum() + (b**2).sum(), [a, b, c], [torch.ones(2)] * 3)
    assert [g.tolist() for g in found.gradients] == [[1, 1], [2, 2], [0, 0]]
    assert [h.tolist() for h in found.products] == [[0, 0], [2, 2], [0, 0]]


def test_as_an_oracle_it_hands_the_probe_and_the_product_on():
    @dataclass(frozen=True)
    class Newton(Step):
        """Divides by the diagonal of a diagonal Hessian, which one probe gives exactly."""

        def direction(self, d, s, n):
            return d / (s.probe * s.hessian_vector)

    scales = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for mode in MODES:
        oracle = HessianVector(mode)
        opt = hasten.Optimizer([w], oracle=oracle, lr=1.0)
        found = oracle.observe(opt, lambda: (scales * (w - 3) ** 2).sum() / 2)
        probe, product = found.extras["probe"][w], found.extras["hessian_vector"][w]
        torch.testing.assert_close(probe.abs(), torch.ones_like(w))
        torch.testing.assert_close(found.gradients[w] / (probe * product), w.detach() - 3)
        assert found.numbers["loss"] == pytest.approx(float(2 * scales.sum()))


def test_probes_differ_from_step_to_step_and_repeat_with_the_seed():
    params = [torch.zeros(5, 3), torch.zeros(0), torch.zeros(4)]
    probes = [flat(signs(params, seed, k)) for seed in (0, 1) for k in (0, 1)]
    assert len({tuple(p.tolist()) for p in probes}) == 4
    assert all(set(p.tolist()) == {-1.0, 1.0} for p in probes)
    assert torch.equal(probes[0], flat(signs(params, 0, 0)))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([], "0 vectors for 1 parameters"),
        ([torch.ones(3)], r"vector 0 has shape \(3,\); its parameter has \(2,\)"),
    ],
)
def test_vectors_of_other_shapes(vectors, message):
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        HessianVector().product(lambda: (w**2).sum(), [w], vectors)


def test_mistakes():
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="mode = 'both' is not allowed"):
        HessianVector("both")
    with pytest.raises(RuntimeError, match="does not depend on the parameters"):
        HessianVector().product(lambda: torch.ones(()), [w], [torch.ones(2)])
    with pytest.raises(TypeError, match="it must return the loss itself"):
        HessianVector().product(lambda: 3.0, [w], [torch.ones(2)])
    with pytest.raises(ValueError, match="tensor 0 does not require a gradient"):
        HessianVector().product(lambda: w.sum(), [w.detach()], [torch.ones(2)])
    with pytest.raises(TypeError, match="needs a closure"):
        hasten.Optimizer([w], oracle=HessianVector(), lr=0.1).step()


# -- estimates --------------------------------------------------------------------------------------------------------


def quadratic(eigenvalues, seed=0):
    found = Quadratic(eigenvalues, seed=seed)
    w = torch.zeros(found.dimension, dtype=torch.float64, requires_grad=True)
    return found, w, lambda: found.value(w)


def test_the_trace_within_its_standard_error():
    found, w, closure = quadratic([3.0, 2.0, 1.0, 0.5, 0.1, 0.0])
    exact = float(found.eigenvalues.sum())
    estimates = [estimate_trace(closure, [w], samples=20, seed=k) for k in range(40)]
    misses = sum(abs(e.value - exact) > 2 * e.error for e in estimates)
    assert misses <= 8  # 5 % are expected; P(more than 8 of 40) < 1e-3
    # The error is what the variance 2(‖H‖² − Σh²) of one probe says.
    H = found.hessian
    sigma = float(2 * (H.square().sum() - H.diagonal().square().sum())) ** 0.5
    mean_square = sum(e.error**2 for e in estimates) / len(estimates)
    assert mean_square == pytest.approx(sigma**2 / 20, rel=0.25)
    mean = sum(e.value for e in estimates) / len(estimates)
    assert abs(mean - exact) < 4 * sigma / (20 * 40) ** 0.5


def test_one_sample_has_no_standard_error():
    _, w, closure = quadratic([2.0, 1.0])
    assert estimate_trace(closure, [w], samples=1).error == float("inf")


@settings(max_examples=15, deadline=None)
@given(
    eigenvalues=st.lists(st.floats(-5, 5).map(lambda x: round(x, 2)), min_size=2, max_size=6),
    seed=st.integers(0, 99),
)
def test_the_largest_eigenvalue(eigenvalues, seed):
    """Never above λ_max, and an eigenvalue lies within the residual; Hessians may be indefinite."""
    torch.manual_seed(seed)
    d = len(eigenvalues)
    Q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    H = Q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ Q.T
    w = torch.zeros(d, dtype=torch.float64, requires_grad=True)
    found = estimate_largest(lambda: (w @ H @ w) / 2, [w], iterations=600, tolerance=1e-5, seed=seed)
    assert found.value <= max(eigenvalues) + 1e-9
    assert min(abs(found.value - e) for e in eigenvalues) <= found.error + 1e-9
    gap = max(eigenvalues) - max((e for e in eigenvalues if e < max(eigenvalues)), default=-9.0)
    if gap > 0.5:
        assert found.value == pytest.approx(max(eigenvalues), abs=1e-3)


def test_the_curvature_of_a_network_against_its_dense_hessian():
    model, closure = problem("mlp with dropout")
    params = list(model.parameters())
    state = torch.get_rng_state()
    rows = []
    for i in range(flat(params).numel()):
        torch.set_rng_state(state)
        unit = torch.zeros(flat(params).numel(), dtype=torch.float64)
        unit[i] = 1
        pieces = [u.view_as(p) for u, p in zip(unit.split([p.numel() for p in params]), params, strict=True)]
        rows.append(flat(HessianVector().product(closure, params, pieces).products))
    torch.set_rng_state(state)
    H = torch.stack(rows)
    torch.testing.assert_close(H, H.T)
    curvature = estimate_curvature(closure, model, samples=400, iterations=500)
    assert curvature.dimension == len(H)
    assert curvature.largest == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-3)
    sigma = float(2 * (H.square().sum() - H.diagonal().square().sum())) ** 0.5
    assert abs(curvature.trace - float(H.trace())) < 4 * sigma / 400**0.5
    assert torch.equal(torch.get_rng_state(), state)


def test_estimates_leave_buffers_alone():
    model, closure = problem("convolution with batch norm")
    before = {k: b.clone() for k, b in model.named_buffers()}
    estimate_trace(closure, model, samples=2)
    estimate_largest(closure, model, iterations=2)
    assert all(torch.equal(b, before[k]) for k, b in model.named_buffers())


def test_a_concave_loss_has_no_curvature_to_speak_of():
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="the largest eigenvalue found is -2"):
        estimate_curvature(lambda: -(w**2).sum(), [w])
    with pytest.raises(ValueError, match="samples = 0 is not allowed"):
        estimate_trace(lambda: (w**2).sum(), [w], samples=0)
    with pytest.raises(ValueError, match=r"iterations = 1\.5 is not allowed"):
        estimate_largest(lambda: (w**2).sum(), [w], iterations=1.5)
