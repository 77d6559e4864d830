"""Parts in the leading cosine directions: what is kept, what is left for later, and what is carried over."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hasten
from hasten.linalg.cosine import cosine_rows
from hasten.transforms import (
    EMA,
    Accumulation,
    ClipTensorNorm,
    FactoredSecondMoment,
    HeavyBall,
    Orthogonalize,
    Projected,
    SecondMoment,
    Sign,
    TwoMomenta,
)
from hasten.words import Buffer, Geometry, Transform

SHAPES = [(5, 8), (8, 5), (6, 6), (1, 7), (7, 1)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def basis(p):
    return cosine_rows(torch.arange(p), p, torch.float64)


def steps(part, gradients, start=None, **kwargs):
    """Displacements of a parameter at each step, by plain descent along what the part makes, and the optimizer."""
    p = torch.zeros_like(gradients[0]) if start is None else start.clone()
    p.requires_grad_()
    opt = hasten.Optimizer([p], part, lr=1.0, weight_decay=0.0, **kwargs)
    found = []
    for g in gradients:
        before, p.grad = p.detach().clone(), g.clone()
        opt.step()
        found.append(before - p.detach())
    return found, opt


def state(opt):
    return opt.state[opt.param_groups[0]["params"][0]]


def drawn(shape, count=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    trend = torch.linspace(0, 2, math.prod(shape), dtype=torch.float64).reshape(shape)
    return [
        (trend + torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for _ in range(count)
    ]


matrices = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda shape: st.lists(
        st.floats(-4, 4, width=32), min_size=math.prod(shape), max_size=math.prod(shape)
    ).map(lambda entries: torch.tensor(entries, dtype=torch.float64).reshape(shape))
)


# What is kept and what is left.


@given(matrices, st.integers(1, 7))
@settings(deadline=None)
def test_at_most_its_share_of_the_energy_is_left(A, rank):
    """‖A − D_Jᵀ S_J‖² ≤ (1 − r/p) ‖A‖² for norm 2; with r = p nothing is left."""
    (kept,), opt = steps(Projected((), rank, norm=2), [A])
    error, p = state(opt)["error"], min(A.shape)
    square = float(A.square().sum())
    assert float(error.square().sum()) <= (1 - min(rank, p) / p + 1e-12) * square
    torch.testing.assert_close(
        kept.square().sum() + error.square().sum(), A.square().sum(), rtol=0, atol=1e-11 * square + 1e-300
    )


def test_no_other_rows_of_the_basis_keep_more():
    A, (p, r) = drawn((5, 8))[0], (5, 2)
    _, opt = steps(Projected((), r, norm=2), [A])
    energies = (basis(p) @ A).square().sum(1)
    best = max(float(energies[i] + energies[j]) for i in range(p) for j in range(i))
    kept = float(A.square().sum() - state(opt)["error"].square().sum())
    assert kept == pytest.approx(best, rel=1e-12)


@given(matrices, st.integers(1, 7), st.sampled_from([1, 2]))
@settings(deadline=None)
def test_what_is_left_and_what_is_applied_make_the_whole(A, rank, norm):
    """Over several steps: Σ u + E = Σ g."""
    gradients = [A, A.flip(0), 0.5 * A.flip(1)]
    applied, opt = steps(Projected((), rank, norm=norm), gradients)
    torch.testing.assert_close(
        sum(applied) + state(opt)["error"], sum(gradients), rtol=0, atol=1e-12 * (1 + float(A.norm()))
    )


def test_rows_are_chosen_by_the_norm_that_is_asked_for():
    """Row 1 of S has the larger sum, row 2 the larger square."""
    S = torch.zeros(4, 6, dtype=torch.float64)
    S[1], S[2, 0] = 1.0, 3.0
    A = basis(4).T @ S
    for norm, row in ((1, 1), (2, 2)):
        _, opt = steps(Projected((), 1, norm=norm), [A])
        assert state(opt)["rows"].tolist() == [row]


@each_shape
@pytest.mark.parametrize("mu", [0.0, 0.6])
def test_momentum_feedback_is_that_of_the_paper(shape, mu):
    """M ← M + G;  M ← M − (1−μ) m_r Q_rᵀ, against products with the whole basis."""
    gradients, (p, r) = drawn(shape), (min(shape), 2)
    Q = basis(p).T
    part = Projected((Sign(),), r, mu, "momentum")
    found, opt = steps(part, gradients)
    M = torch.zeros(shape, dtype=torch.float64)
    for u, g in zip(found, gradients, strict=True):
        M = M + g
        right = shape[0] >= shape[1]
        S = M @ Q if right else Q.T @ M
        J = S.abs().sum(0 if right else 1).argsort(descending=True)[:r]
        P = Q[:, J]
        m = M @ P if right else P.T @ M
        torch.testing.assert_close(u, m.sign() @ P.T if right else P @ m.sign(), rtol=0, atol=1e-12)
        M = M - (1 - mu) * (m @ P.T if right else P @ m)
    torch.testing.assert_close(state(opt)["error"], M, rtol=0, atol=1e-12)


# Which rows, and what is carried over.


def test_rows_stay_until_they_are_refreshed():
    gradients = drawn((6, 9), 7)
    rows = []
    p = torch.zeros(6, 9, dtype=torch.float64, requires_grad=True)
    opt = hasten.Optimizer([p], Projected((EMA(),), 2, refresh=3, feedback=None), lr=0.1)
    for k, g in enumerate(gradients):
        g = (
            basis(6).T
            @ torch.roll(torch.diag(torch.arange(6.0, 0, -1)).double(), k, 0)
            @ torch.eye(6, 9).double()
            + 1e-3 * g
        )
        p.grad = g
        opt.step()
        rows.append(opt.state[p]["rows"].tolist())
    assert rows[0] == rows[1] == rows[2] != rows[3] == rows[4] == rows[5] != rows[6]


@each_shape
@pytest.mark.parametrize("refresh", [1, 2])
@pytest.mark.parametrize("feedback", ["error", None])
def test_carrying_by_index_is_the_rotation_by_products(shape, refresh, feedback):
    """Adam with m ← m R, v ← |v R|, R = Q_oldᵀ Q_new, as the authors' code has it."""
    gradients, (p, r) = drawn(shape, 12), (min(shape), min(3, *shape))
    found, _ = steps(
        Projected((EMA(0.8), SecondMoment(0.9)), r, feedback=feedback, refresh=refresh), gradients
    )
    right, Q = shape[0] >= shape[1], basis(p).T
    E, m, v, old = torch.zeros(shape, dtype=torch.float64), None, None, None
    changes = 0
    for k, (u, g) in enumerate(zip(found, gradients, strict=True), start=1):
        A = g + E if feedback else g
        if (k - 1) % refresh == 0:
            S = A @ Q if right else Q.T @ A
            J = S.abs().sum(0 if right else 1).argsort(descending=True)[:r]
            P = Q[:, J]
            if m is not None:
                R = old.T @ P
                torch.testing.assert_close(R, R.round(), rtol=0, atol=1e-14)
                R = R.round()  # its rounding errors count where squares are small
                changes += r - int(R.abs().sum())
                m, v = (m @ R, (v @ R).abs()) if right else (R.T @ m, (R.T @ v).abs())
        a = A @ P if right else P.T @ A
        E = A - (a @ P.T if right else P @ a)
        m = 0.2 * a if m is None else 0.8 * m + 0.2 * a
        v = 0.1 * a * a if v is None else 0.9 * v + 0.1 * a * a
        old = P
        low = m / (1 - 0.8**k) / ((v / (1 - 0.9**k)).sqrt() + 1e-8)
        torch.testing.assert_close(u, low @ P.T if right else P @ low, rtol=0, atol=1e-11)
    assert changes > 0 or r == p  # some direction was exchanged, or the test says nothing


def test_a_direction_that_comes_back_starts_anew():
    """Its average is not that of before: a leading row of 1, then another one, then the first again."""
    gradients = [torch.zeros(4, 6, dtype=torch.float64) for _ in range(3)]
    for g, row in zip(gradients, (1, 2, 1), strict=True):
        g += basis(4)[row].unsqueeze(1)
    _, opt = steps(Projected((Accumulation(0.5),), 1, feedback=None), gradients)
    torch.testing.assert_close(state(opt)["exp_avg"], torch.ones(1, 6, dtype=torch.float64))


def test_rows_are_exact_in_a_low_precision_state():
    """300 integers, of which bfloat16 holds no more than 256 apart."""
    p = torch.zeros(600, 600, requires_grad=True)
    opt = hasten.Optimizer([p], Projected((EMA(),), 500), lr=0.1, state_dtype=torch.bfloat16)
    p.grad = torch.randn(600, 600)
    opt.step()
    rows, kept = opt.state[p]["rows"], opt.state[p]
    assert (rows.dtype, kept["error"].dtype, kept["exp_avg"].dtype) == (torch.float32, *(torch.bfloat16,) * 2)
    assert len(set(rows.tolist())) == 500
    assert rows.tolist() == sorted(rows.tolist())


# Composition.


@each_shape
def test_all_rows_and_parts_without_memory_of_a_basis_change_nothing(shape):
    """Linear momentum commutes with an orthogonal basis."""
    gradients = drawn(shape)
    found, _ = steps(Projected((HeavyBall(0.9),), 1.0, feedback=None), gradients)
    plain, _ = steps(HeavyBall(0.9), gradients)
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@given(matrices, st.floats(0.05, 1.0))
@settings(deadline=None, max_examples=30)
def test_the_transpose_moves_as_the_transpose(A, rank):
    if A.shape[0] == A.shape[1]:
        return
    part = Projected((TwoMomenta(0.9, 0.99, 2.0), SecondMoment(0.9)), rank)
    gradients = [A, A.flip(0) + 1, A.flip(1) - 1]
    found, _ = steps(part, gradients)
    turned, _ = steps(part, [g.T.contiguous() for g in gradients])
    for a, b in zip(found, turned, strict=True):
        assert torch.equal(a, b.T)


def test_each_matrix_of_a_stack_by_itself():
    part = Projected((EMA(0.8), SecondMoment(0.9), Orthogonalize("svd", scale=None)), 2, refresh=2)
    gradients = drawn((3, 5, 8))
    p = torch.zeros(3, 5, 8, dtype=torch.float64, requires_grad=True)
    opt = hasten.Optimizer([{"params": [p], "layout": "stack"}], part, lr=1.0)
    alone = [steps(part, [g[i] for g in gradients])[0] for i in range(3)]
    for k, g in enumerate(gradients):
        before, p.grad = p.detach().clone(), g.clone()
        opt.step()
        for i in range(3):
            torch.testing.assert_close(before[i] - p.detach()[i], alone[i][k], rtol=0, atol=1e-12)


def test_hyperparameters_of_the_parts_inside_are_the_optimizers():
    part = Projected((EMA(0.8), SecondMoment(0.9).rename(eps="tiny")), 2, 0.5, "momentum")
    p = torch.zeros(4, 6, requires_grad=True)
    opt = hasten.Optimizer([p], part, lr=0.1)
    group = opt.param_groups[0]
    assert (group["betas"], group["tiny"], group["momentum"]) == ((0.8, 0.9), 1e-8, 0.5)
    with pytest.raises(ValueError, match=r"beta1 = 2\.0 is not allowed"):
        hasten.Optimizer([p], Projected((EMA(2.0),)), lr=0.1)
    group["betas"] = (0.0, 0.9)
    for g in drawn((4, 6), 3, dtype=torch.float32):
        p.grad = g
        opt.step()
    rows = state(opt)["rows"].long()
    assert state(opt)["exp_avg"].shape == (2, 6)
    # Without memory the average is the direction itself: the share μ that stays is in E.
    left = basis(4)[rows].float() @ state(opt)["error"]
    torch.testing.assert_close(left, 0.5 * state(opt)["exp_avg"])


def test_equal_names_inside_are_one_hyperparameter_or_refused():
    Projected((EMA(0.9), Accumulation(0.9)))
    with pytest.raises(ValueError, match=r"two parts declare 'beta1', with values 0\.9 and 0\.5"):
        Projected((EMA(0.9), Accumulation(0.5)))


def test_buffers_of_one_name_are_kept_apart():
    part = Projected((EMA(0.9), Accumulation(0.9)), 2, feedback=None)
    assert set(part.buffers()) == {"rows", "exp_avg", "exp_avg_2"}
    assert set(part.counters()) == {"weight_sum"}
    gradients = drawn((4, 5))
    found, _ = steps(part, gradients)
    once, _ = steps(Projected((EMA(0.9),), 2, feedback=None), gradients)
    assert not torch.allclose(found[-1], once[-1])


@dataclass(frozen=True)
class Preparing(Geometry):
    grain = "matrix"
    preparing = 2


@dataclass(frozen=True)
class Pulled(Transform):
    def direction(self, d, s, n):
        return d + s.param


@dataclass(frozen=True)
class Shaped(Transform):
    grain = "matrix"

    def buffers(self):
        return {"left": Buffer(shape=lambda size: (size[0], size[0]))}


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (ClipTensorNorm(), "it sums over tensors"),
        (FactoredSecondMoment(), "it needs whole tensors"),
        (Preparing(), "its first steps only fill buffers"),
        (Shaped(), "it keeps what is not carried over row by row"),
        (Projected(), "it keeps what is not carried over row by row"),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, str) else "",
)
def test_parts_that_cannot_be_inside_are_refused(inside, reason):
    with pytest.raises(ValueError, match=f"{type(inside).__name__} is not allowed inside: {reason}"):
        Projected((inside,))


def test_a_part_that_reads_the_parameter_is_refused_at_once():
    with pytest.raises(AttributeError, match="a part inside Projected has no 'param'"):
        hasten.Optimizer([torch.zeros(3, 3, requires_grad=True)], Projected((Pulled(),)), lr=0.1)
    with pytest.raises(TypeError, match="must be a transform"):
        Projected((hasten.iterates.Plain(),))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("rank", bad) for bad in (0, -1, True, 0.0, 1.5, float("nan"), "2", None)),
        *(("refresh", bad) for bad in (0, 1.5, True)),
        *(("norm", bad) for bad in (0, 3, "nuc", True)),
        ("feedback", "errors"),
        ("scale", "kimi"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"Projected: {name} = {value!r} is not allowed; it must be"):
        Projected(**{name: value})


@pytest.mark.parametrize(
    ("rank", "p", "r"),
    [(3, 8, 3), (9, 8, 8), (0.25, 8, 2), (0.01, 8, 1), (1.0, 8, 8), (1, 8, 1), (0.5, 5, 2)],
)
def test_a_rank_is_a_number_of_rows_or_a_share_of_them(rank, p, r):
    assert Projected(rank=rank).rows(p) == r


# Special matrices.


def test_zero_moves_nothing_and_nan_stays_nan():
    part = Projected((EMA(), SecondMoment(), Orthogonalize(scale=None)), 2)
    (u,), _ = steps(part, [torch.zeros(4, 6)])
    assert torch.equal(u, torch.zeros(4, 6))
    (u,), _ = steps(part, [torch.full((4, 6), math.nan)], on_nonfinite="propagate")
    assert bool(u.isnan().all())


def test_a_matrix_without_entries_is_left_alone():
    _, opt = steps(Projected((EMA(),), 2), [torch.zeros(0, 6), torch.zeros(0, 6)])
    assert state(opt)["error"].shape == (0, 6)


def test_only_a_step_that_chooses_rows_every_time_can_be_traced():
    assert Projected().traceable
    p = torch.zeros(4, 6, requires_grad=True)
    p.grad = torch.ones(4, 6)
    opt = hasten.Optimizer([p], Projected(refresh=2), lr=0.1)
    with pytest.raises(Exception, match="a step with Projected cannot be compiled as a whole"):
        torch.compile(opt.step, fullgraph=True, backend="eager")()
