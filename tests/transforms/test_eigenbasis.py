"""Adam in the eigenbasis of Kronecker factors, against a statement of SOAP by itself, and its invariants."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hasten
from hasten.numbers import Names
from hasten.transforms import EMA, EigenbasisAdam, EigenbasisSecondMoment, Scale
from hasten.transforms.eigenbasis import descending_eigenvectors, due, orthogonal_iteration

F64 = torch.float64


def gradients(steps, *shape, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=F64).to(dtype) for _ in range(steps)]


def trajectory(grads, *parts, start=None, lr=0.01, **kwargs):
    """Parameters after every step, fed open loop."""
    start = torch.zeros_like(grads[0]) if start is None else start
    w = start.clone().requires_grad_()
    opt = hasten.Optimizer([w], *parts, lr=lr, **kwargs)
    points = []
    for g in grads:
        w.grad = g.clone()
        opt.step()
        points.append(w.detach().clone())
    return points


def apart(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def first_bases(grad, part):
    """The bases that a part starts with: which vectors span a nullspace is for rounding to say."""
    w = torch.zeros_like(grad).requires_grad_()
    opt = hasten.Optimizer([w], part, lr=0.0)
    w.grad = grad
    opt.step()
    bases = [opt.state[w][name] for name in ("left_basis", "right_basis")]
    for q, factor in zip(bases, (grad @ grad.T, grad.T @ grad), strict=True):
        if q.numel():
            diagonal = torch.linalg.eigvalsh(factor).flip(0)
            torch.testing.assert_close(q.T @ factor @ q, torch.diag(diagonal), atol=1e-12, rtol=0)
    return bases


def soap(w, grads, bases, lr, beta1, beta2, beta_s, eps, decay, f):
    """The authors' step for one matrix, one statement a line; m is rotated back and forth in every step."""
    bases = [q if q.numel() else torch.eye(n, dtype=w.dtype) for q, n in zip(bases, w.shape, strict=True)]
    fixed = [torch.equal(q, torch.eye(len(q), dtype=q.dtype)) for q in bases]
    points = []
    for call, g in enumerate(grads):
        t = call
        if call == 0:
            m, v = torch.zeros_like(g), torch.zeros_like(g)
            factors = [(1 - beta_s) * g @ g.T, (1 - beta_s) * g.T @ g]
            points.append(w.clone())
            continue
        left, right = bases
        rotated = left.T @ g @ right
        m = beta1 * m + (1 - beta1) * rotated
        v = beta2 * v + (1 - beta2) * rotated**2
        alpha = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        w = w - alpha * left @ (m / (v.sqrt() + eps)) @ right.T
        w = w - lr * decay * w
        m = left @ m @ right.T
        factors[0] = beta_s * factors[0] + (1 - beta_s) * g @ g.T
        factors[1] = beta_s * factors[1] + (1 - beta_s) * g.T @ g
        if t % f == 0:
            for side, q in enumerate(bases):
                if fixed[side]:
                    continue
                order = torch.argsort(torch.diag(q.T @ factors[side] @ q), descending=True)
                v = v[order] if side == 0 else v[:, order]
                bases[side] = torch.linalg.qr(factors[side] @ q[:, order]).Q
        m = bases[0].T @ m @ bases[1]
        points.append(w.clone())
    return points


# -- against the statement --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 4), (4, 1)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_authors_steps(shape, decay):
    """With decay the authors' step is ours with u shorter by 1 − lr λ."""
    lr, start = 0.02, gradients(1, *shape, seed=1)[0]
    grads = gradients(25, *shape)
    part = EigenbasisAdam(0.97, 1e-3, 0.9, 3, beta1=0.9)
    found = trajectory(grads, part, Scale(1 - lr * decay), start=start, lr=lr, weight_decay=decay)
    expected = soap(start, grads, first_bases(grads[0], part), lr, 0.9, 0.97, 0.9, 1e-3, decay, 3)
    assert apart(found, expected) < 1e-11


def test_a_side_that_is_too_long_is_not_rotated():
    grads = gradients(12, 6, 4)
    short = EigenbasisAdam(0.95, 1e-3, 0.95, 2, max_preconditioner_dim=4, beta1=0.9)
    smaller = EigenbasisAdam(0.95, 1e-3, 0.95, 2, sides="smaller", beta1=0.9)
    bases = first_bases(grads[0], short)
    assert not bases[0].numel()
    expected = soap(torch.zeros(6, 4, dtype=F64), grads, bases, 0.01, 0.9, 0.95, 0.95, 1e-3, 0.0, 2)
    assert apart(trajectory(grads, short), expected) < 1e-12
    assert apart(trajectory(grads, smaller), expected) < 1e-12


def test_sides_decide_what_is_kept():
    def kept(shape, **options):
        w = torch.ones(shape, requires_grad=True)
        state = hasten.Optimizer([w], EigenbasisAdam(**options), lr=0.1).state[w]
        return [
            tuple(state[name].shape) for name in ("left_factor", "right_factor", "left_basis", "right_basis")
        ]

    assert kept((6, 4)) == [(6, 6), (4, 4), (6, 6), (4, 4)]
    assert kept((6, 4), sides="smaller") == [(0, 0), (4, 4), (0, 0), (4, 4)]
    assert kept((4, 4), sides="smaller") == [(4, 4)] * 4
    assert kept((6, 4), max_preconditioner_dim=5) == [(0, 0), (4, 4), (0, 0), (4, 4)]


@pytest.mark.parametrize("frequency", [1, 4])
def test_momentum_before_is_momentum_in_the_basis(frequency):
    grads = gradients(15, 5, 5)
    options = {"eps": 1e-6, "precondition_frequency": frequency, "prepare": False}
    inside = trajectory(grads, EigenbasisAdam(beta1=0.9, **options))
    before = trajectory(grads, EMA(0.9), EigenbasisSecondMoment(**options))
    assert apart(inside, before) < 1e-12


@pytest.mark.parametrize("eps_on", ["raw", "corrected"])
def test_without_rotation_it_is_adam(eps_on):
    grads, start = gradients(10, 6, 4), gradients(1, 6, 4, seed=1)[0]
    geometry = hasten.transforms.SecondMoment(0.95, 1e-2, eps_on=eps_on)
    adam = trajectory(grads, EMA(0.9), geometry, start=start, weight_decay=0.1)
    part = EigenbasisAdam(0.95, 1e-2, beta1=0.9, max_preconditioner_dim=1, prepare=False, eps_on=eps_on)
    assert apart(trajectory(grads, part, start=start, weight_decay=0.1), adam) < 1e-14


# -- the first step ---------------------------------------------------------------------------------------------------


def test_the_first_step_only_prepares():
    grads = gradients(3, 4, 4)
    w = torch.ones(4, 4, dtype=F64, requires_grad=True)
    opt = hasten.Optimizer([w], EigenbasisAdam(0.95, 0.0, beta1=0.9), lr=0.01, weight_decay=0.5)
    w.grad = grads[0].clone()
    opt.step()
    state = opt.state[w]
    assert torch.equal(w.detach(), torch.ones_like(w))
    assert not state["exp_avg"].any()
    assert not state["exp_avg_sq"].any()
    torch.testing.assert_close(state["left_factor"], 0.05 * grads[0] @ grads[0].T)
    w.grad = grads[1].clone()
    opt.step()
    rotated = state["left_basis"].T @ (1 - w.detach() - 0.005) @ state["right_basis"]
    torch.testing.assert_close(rotated.abs(), torch.full_like(w, 0.01))  # Adam's first step: the sign


def test_without_preparation_the_first_step_is_the_polar_factor():
    """In its own eigenbasis a gradient is diagonal, and Adam's first step is its sign."""
    (g,) = gradients(1, 8, 8)
    for part in (EigenbasisSecondMoment(0.0, 1e-7, prepare=False), EigenbasisAdam(0.9, 1e-7, prepare=False)):
        u, _, vt = torch.linalg.svd(g)
        torch.testing.assert_close(-trajectory([g], part, lr=1.0)[0], u @ vt, atol=1e-5, rtol=0)


# -- invariants -------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 4))
def test_rotations_of_the_gradients_rotate_the_steps(seed, prepare, frequency):
    grads = gradients(8, 4, 4, seed=seed)
    p, q = (torch.linalg.qr(x).Q for x in gradients(2, 4, 4, seed=seed + 1))
    options = {"eps": 1e-4, "precondition_frequency": frequency, "prepare": prepare}
    plain = trajectory(grads, EigenbasisAdam(**options))
    rotated = trajectory([p @ g @ q.T for g in grads], EigenbasisAdam(**options))
    assert apart([p @ w @ q.T for w in plain], rotated) < 1e-7


def test_bases_stay_orthogonal():
    scales = torch.logspace(0, -4, 24)
    grads = [scales[:, None] * g for g in gradients(101, 24, 16, dtype=torch.float32)]
    w = torch.zeros(24, 16, requires_grad=True)
    opt = hasten.Optimizer([w], EigenbasisAdam(precondition_frequency=1), lr=1e-3)
    for g in grads:
        w.grad = g
        opt.step()
    for name in ("left_basis", "right_basis"):
        q = opt.state[w][name]
        assert (q.T @ q - torch.eye(len(q))).norm() < 1e-5


def test_orthogonal_iteration_approaches_the_eigenbasis_and_keeps_it():
    a = torch.diag(torch.logspace(2, -2, 12, dtype=F64))[None]
    turned = torch.linalg.qr(gradients(1, 12, 12)[0]).Q[None]
    a = turned @ a @ turned.mT

    def off_diagonal(q):
        d = q.mT @ a @ q
        return ((d - torch.diag_embed(d.diagonal(dim1=-2, dim2=-1))).norm() / d.norm()).item()

    q = torch.eye(12, dtype=F64)[None]
    seen = []
    for _ in range(60):
        q = orthogonal_iteration(a, q)[0]
        seen.append(off_diagonal(q))
    assert seen[4] < 0.5 * off_diagonal(torch.eye(12, dtype=F64)[None])
    assert seen[-1] < 1e-9
    exact = descending_eigenvectors(a)
    kept, order = orthogonal_iteration(a, exact)
    assert torch.equal(order, torch.arange(12)[None])
    torch.testing.assert_close(kept.abs(), exact.abs(), atol=1e-9, rtol=0)


def test_the_second_moment_is_put_in_the_order_of_its_basis():
    """Where two eigenvalues change places, so do the columns of the basis and the rows and columns of v."""
    part = EigenbasisAdam(precondition_frequency=1, shampoo_beta=0.0)
    one = torch.eye(3, dtype=F64)[None]
    v, m = torch.arange(1.0, 10, dtype=F64).view(1, 3, 3), gradients(1, 1, 3, 3)[0]
    g = torch.diag(torch.tensor([1.0, 5.0, 2.0], dtype=F64))[None]  # eigenvalues of g gᵀ: 1, 25, 4
    s = Names(
        param=0 * g,
        grad=g,
        exp_avg=m,
        exp_avg_sq=v,
        left_factor=one,
        right_factor=one,
        left_basis=one,
        right_basis=one,
    )
    h = Names(beta1=0.5, beta2=0.5, eps=1e-8, shampoo_beta=0.0, precondition_frequency=1)
    unchanged = {"beta": 1.0, "weight": 0.0, "now": 0.0}
    part.direction(g, s, Names(**{**part.numbers(h, 3, Names()), **unchanged}))
    order = [1, 2, 0]
    torch.testing.assert_close(s.left_basis.abs(), one[:, :, order])
    torch.testing.assert_close(s.right_basis.abs(), one[:, :, order])
    torch.testing.assert_close(s.exp_avg_sq, v[:, order][:, :, order])
    torch.testing.assert_close(s.left_basis @ s.exp_avg @ s.right_basis.mT, m)


def test_the_frequency_hardly_matters_on_a_quadratic():
    a, b = (x @ x.T / 8 + torch.eye(8, dtype=F64) for x in gradients(2, 8, 8))
    target = gradients(1, 8, 8, seed=3)[0]

    def solve(frequency):
        w = torch.zeros(8, 8, dtype=F64, requires_grad=True)
        opt = hasten.Optimizer([w], EigenbasisAdam(precondition_frequency=frequency), lr=0.03)
        losses = []
        for _ in range(120):
            opt.zero_grad()
            loss = ((a @ (w - target) @ b) ** 2).sum() / 2
            loss.backward()
            losses.append(loss.item())
            opt.step()
        return losses

    often, seldom = solve(1), solve(10)
    assert often[-1] < 1e-2 * often[0]
    assert 0.5 < sum(often) / sum(seldom) < 2


def test_matrices_of_one_shape_do_not_touch_each_other():
    first, second = gradients(9, 5, 3), [1e3 * g for g in gradients(9, 5, 3, seed=7)]
    part = EigenbasisAdam(precondition_frequency=2)
    alone = [trajectory(first, part)[-1], trajectory(second, part)[-1]]
    params = [torch.zeros(5, 3, dtype=F64, requires_grad=True) for _ in alone]
    opt = hasten.Optimizer(params, part, lr=0.01)
    for pair in zip(first, second, strict=True):
        for p, g in zip(params, pair, strict=True):
            p.grad = g.clone()
        opt.step()
    assert apart([p.detach() for p in params], alone) < 1e-10


# -- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepare", [True, False])
def test_zero_gradients_move_nothing(prepare):
    zero = [torch.zeros(4, 3)] * 5
    part = EigenbasisAdam(precondition_frequency=1, prepare=prepare)
    assert all(not w.any() for w in trajectory(zero, part))
    rank_one = [torch.outer(torch.arange(4.0), torch.ones(3))] * 5
    assert all(torch.isfinite(w).all() for w in trajectory(rank_one, part))


def test_a_gradient_that_is_not_finite_spoils_its_own_matrix_only():
    params = [torch.zeros(4, 3, requires_grad=True) for _ in range(2)]
    opt = hasten.Optimizer(
        params, EigenbasisAdam(precondition_frequency=1), lr=0.01, on_nonfinite="propagate"
    )
    for g in gradients(4, 4, 3, dtype=torch.float32):
        params[0].grad, params[1].grad = torch.full((4, 3), torch.nan), g
        opt.step()
    assert params[0].isnan().all()
    assert params[1].isfinite().all()
    assert params[1].abs().min() > 0


def test_state_of_bfloat16_parameters_is_float32():
    w = torch.ones(4, 3, dtype=torch.bfloat16, requires_grad=True)
    opt = hasten.Optimizer([w], EigenbasisAdam(), lr=0.01, state_dtype=torch.bfloat16)
    dtypes = {
        name: opt.state[w][name].dtype for name in ("exp_avg", "exp_avg_sq", "left_factor", "left_basis")
    }
    assert dtypes == {
        "exp_avg": torch.bfloat16,
        "exp_avg_sq": torch.bfloat16,
        "left_factor": torch.float32,
        "left_basis": torch.float32,
    }


@pytest.mark.parametrize(
    "options",
    [{"sides": "left"}, {"eps_on": 1}, {"prepare": 1}, {"max_preconditioner_dim": 0}, {"debias": None}],
)
def test_options_are_checked(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"EigenbasisAdam: {name} = .* is not allowed; it must be"):
        EigenbasisAdam(**options)


@given(st.integers(1, 50), st.integers(1, 20))
def test_a_whole_frequency_is_due_at_its_multiples(k, f):
    assert due(k, f) == (k % f == 0)
