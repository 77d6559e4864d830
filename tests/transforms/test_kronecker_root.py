"""Shampoo's preconditioner, against a statement of it by itself, and its invariants."""

import math

import pytest
import torch

import hasten
from hasten.linalg import inv_root
from hasten.numbers import Names
from hasten.transforms import EMA, KroneckerRoot, SecondMoment, TensorKroneckerRoot

F64 = torch.float64


def gradients(steps, *shape, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=F64).to(dtype) for _ in range(steps)]


def directions(grads, *parts, **kwargs):
    """What the parts make of every gradient: the steps at learning rate 1."""
    w = torch.zeros_like(grads[0]).requires_grad_()
    opt = hasten.Optimizer([w], *parts, lr=1.0, **kwargs)
    found = []
    for g in grads:
        before = w.detach().clone()
        w.grad = g.clone()
        opt.step()
        found.append(before - w.detach())
    return found


def apart(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def power(a, exponent, eps, relative):
    values, vectors = torch.linalg.eigh(a)
    values = values - values.min().clamp(max=0) + eps + relative * values.max()
    return vectors @ torch.diag(values**exponent) @ vectors.T


GRAFTS = {
    "sgd": lambda d, grads, k: d,
    "adagrad": lambda d, grads, k: d / (sum(g**2 for g in grads[:k]).sqrt() + 0.1),
    "rmsprop": lambda d, grads, k: d / (average(grads[:k], 0.8, lambda g: g**2).sqrt() + 0.1),
    "adam": lambda d, grads, k: d / ((average(grads[:k], 0.8, lambda g: g**2) / (1 - 0.8**k)).sqrt() + 0.1),
}


def average(grads, beta, of):
    weight = 1 - beta if beta < 1 else 1.0
    return sum(weight * beta ** (len(grads) - 1 - i) * of(g) for i, g in enumerate(grads))


def shampoo(grads, filtered, limit, beta2, eps, relative, f, start, grafting, exponent=0.25, debias=True):
    """Every block by itself, all sums over all gradients so far written out."""
    found = []
    for k in range(1, len(grads) + 1):
        d = filtered[k - 1]
        graft = GRAFTS[grafting](d, grads, k) if grafting else d
        made = torch.zeros_like(d)
        rooted = k if k == start else max((j for j in range(start, k + 1) if j % f == 0), default=start)
        for rows in torch.arange(d.shape[0]).split(limit):
            for columns in torch.arange(d.shape[1]).split(limit):
                here = [g[rows][:, columns] for g in grads]
                weight = 1 - beta2**rooted if debias and beta2 < 1 else 1.0
                if k < start:
                    u = graft[rows][:, columns]
                else:
                    left = average(here[:rooted], beta2, lambda g: g @ g.T) / weight
                    right = average(here[:rooted], beta2, lambda g: g.T @ g) / weight
                    u = (
                        power(left, -exponent, eps, relative)
                        @ d[rows][:, columns]
                        @ power(right, -exponent, eps, relative)
                    )
                    if grafting:
                        u = u * graft[rows][:, columns].norm() / (u.norm() + 1e-16)
                made[rows[:, None], columns] = u
        found.append(made)
    return found


# -- against the statement --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 5), (4, 7), (1, 5), (4, 4)])
@pytest.mark.parametrize("limit", [10, 4, 2])
@pytest.mark.parametrize("grafting", ["adam", None])
def test_blocks_of_all_shapes(shape, limit, grafting):
    grads = gradients(8, *shape)
    part = KroneckerRoot(0.9, 1e-3, 1e-2, 3, 0.8, 0.1, 2, grafting, limit)
    filtered = directions(grads, EMA(0.7))
    expected = shampoo(grads, filtered, limit, 0.9, 1e-3, 1e-2, 3, 2, grafting)
    assert apart(directions(grads, EMA(0.7), part), expected) < 1e-11


@pytest.mark.parametrize("grafting", [None, "sgd", "adagrad", "rmsprop", "adam"])
@pytest.mark.parametrize("beta2", [1.0, 0.8])
def test_grafts_and_sums(grafting, beta2):
    grads = gradients(6, 5, 4)
    part = KroneckerRoot(beta2, 1e-4, 0.0, 2, 0.8, 0.1, None, grafting, debias=beta2 == 1)
    expected = shampoo(grads, grads, 9, beta2, 1e-4, 0.0, 2, 2, grafting, debias=False)
    assert apart(directions(grads, part), expected) < 1e-11


def test_another_exponent():
    grads = gradients(3, 5, 4)
    part = KroneckerRoot(0.9, 1e-2, exponent=0.5)
    assert (
        apart(directions(grads, part), shampoo(grads, grads, 9, 0.9, 1e-2, 0.0, 1, 1, None, exponent=0.5))
        < 1e-11
    )


def unfold(g, i):
    return g.movedim(i, 0).reshape(g.shape[i], -1)


@pytest.mark.parametrize("shape", [(3, 4, 2), (2, 3, 2, 2), (5,), ()])
def test_tensors_of_any_order(shape):
    grads = gradients(4, *shape)
    sizes = shape or (1,)
    full = [g.reshape(sizes) for g in grads]
    expected = []
    for k in range(1, 5):
        u = full[k - 1]
        for i in range(len(sizes)):
            factor = average(full[:k], 0.9, lambda g, i=i: unfold(g, i) @ unfold(g, i).T)
            root = power(factor / (1 - 0.9**k), -1 / (2 * len(sizes)), 1e-2, 0.0)
            u = torch.tensordot(root, u, dims=([1], [i])).movedim(0, i)
        expected.append((u * full[k - 1].norm() / u.norm()).reshape(shape))
    part = TensorKroneckerRoot(0.9, 1e-2, grafting="sgd", merge=False)
    assert apart(directions(grads, part), expected) < 1e-11


@pytest.mark.parametrize("limit", [10, 3])
def test_a_matrix_is_a_tensor_of_order_two(limit):
    grads = gradients(5, 5, 7)
    options = {"eps": 1e-3, "grafting": "adam", "max_preconditioner_dim": limit, "precondition_frequency": 2}
    found = directions(grads, TensorKroneckerRoot(0.9, merge=False, **options))
    assert apart(found, directions(grads, KroneckerRoot(0.9, **options))) < 1e-13


def test_merged_dimensions_are_one():
    grads = gradients(4, 6, 2, 2, 1)
    options = {"eps": 1e-3, "grafting": "rmsprop", "max_preconditioner_dim": 6}
    tensor = directions(grads, TensorKroneckerRoot(0.9, **options))
    matrix = directions([g.reshape(6, 4) for g in grads], KroneckerRoot(0.9, **options))
    assert apart([d.reshape(6, 4) for d in tensor], matrix) < 1e-13


# -- invariants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_a_single_gradient_becomes_its_polar_factor(shape):
    (g,) = gradients(1, *shape)
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    for beta2 in (1.0, 0.0, 0.9):  # a debiased average of one is that one
        (found,) = directions([g], KroneckerRoot(beta2, eps=1e-14))
        torch.testing.assert_close(found, u @ vt, atol=1e-10, rtol=0)


@pytest.mark.parametrize("grafting", ["sgd", "adagrad", "rmsprop", "adam"])
def test_every_block_is_as_long_as_the_graft(grafting):
    grads = gradients(5, 6, 7)
    grads = [*grads[:4], grads[4] * torch.logspace(-3, 3, 7, dtype=F64)]
    part = KroneckerRoot(0.9, 1e-6, grafting=grafting, max_preconditioner_dim=3)
    graft = KroneckerRoot(0.9, 1e-6, grafting=grafting, start_preconditioning_step=99)
    found, lengths = directions(grads, EMA(0.5), part)[-1], directions(grads, EMA(0.5), graft)[-1]
    for rows in torch.arange(6).split(3):
        for columns in torch.arange(7).split(3):
            norms = [x[rows][:, columns].norm() for x in (found, lengths)]
            torch.testing.assert_close(*norms, rtol=1e-12, atol=0)


def test_until_the_start_it_is_the_grafted_method():
    grads = gradients(5, 4, 3)
    part = KroneckerRoot(0.9, graft_beta2=0.99, graft_eps=1e-3, start_preconditioning_step=4, grafting="adam")
    adam = directions(grads, EMA(0.9), SecondMoment(0.99, 1e-3))
    found = directions(grads, EMA(0.9), part)
    assert apart(found[:3], adam[:3]) < 1e-15
    assert apart(found[3:], adam[3:]) > 1e-2


def test_many_blocks_are_one_for_a_block_diagonal_gradient():
    grads = [
        torch.block_diag(a, b) for a, b in zip(gradients(4, 3, 3), gradients(4, 3, 3, seed=1), strict=True)
    ]
    one, many = (KroneckerRoot(0.9, 1e-3, max_preconditioner_dim=limit) for limit in (6, 3))
    assert apart(directions(grads, one), directions(grads, many)) < 1e-11
    dense = gradients(4, 6, 6)
    assert (
        apart(directions(dense, one), directions(dense, many)) > 1e-2
    )  # where the blocks end matters otherwise


def test_roots_by_eigenvalues_and_by_newton_agree():
    grads = gradients(6, 8, 8)
    w = torch.zeros(8, 8, dtype=F64, requires_grad=True)
    opt = hasten.Optimizer([w], KroneckerRoot(1.0, 1e-6), lr=0.1)
    for g in grads:
        w.grad = g
        opt.step()
    state = opt.state[w]
    newton = inv_root(state["left_factor"], 4, 1e-6, method="newton")
    torch.testing.assert_close(state["left_root"], newton, atol=1e-8, rtol=0)


# -- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part", [KroneckerRoot(grafting="adam"), KroneckerRoot(), TensorKroneckerRoot(grafting="sgd")]
)
def test_zero_gradients_move_nothing(part):
    assert all(not d.any() for d in directions([torch.zeros(4, 3)] * 4, part))
    rank_one = [torch.outer(torch.arange(4.0), torch.ones(3))] * 4
    assert all(torch.isfinite(d).all() for d in directions(rank_one, part))


def test_a_root_that_cannot_be_found_is_the_one_before():
    part = KroneckerRoot(1.0, 1e-3)
    h = Names(
        beta2=1.0, eps=1e-3, relative_eps=0.0, precondition_frequency=1, graft_beta2=0.9, graft_eps=1e-8
    )
    (g,) = gradients(1, 1, 3, 3)
    bad, old = torch.full((1, 3, 3), torch.nan, dtype=F64), 2 * torch.eye(3, dtype=F64)[None]
    s = Names(grad=g, left_factor=bad, right_factor=bad, left_root=old, right_root=old)
    later = part.direction(g, s, Names(**part.numbers(h, 2, Names())))
    torch.testing.assert_close(later, 4 * g)
    s = Names(grad=g, left_factor=bad, right_factor=bad, left_root=0 * old, right_root=0 * old)
    torch.testing.assert_close(part.direction(g, s, Names(**part.numbers(h, 1, Names()))), g)


def test_matrices_of_one_shape_do_not_touch_each_other():
    first, second = gradients(5, 5, 3), [1e3 * g for g in gradients(5, 5, 3, seed=7)]
    part = KroneckerRoot(0.9, 1e-6, grafting="adam", max_preconditioner_dim=4)
    params = [torch.zeros(5, 3, dtype=F64, requires_grad=True) for _ in range(2)]
    opt = hasten.Optimizer(params, part, lr=1.0)
    for pair in zip(first, second, strict=True):
        for p, g in zip(params, pair, strict=True):
            p.grad = g.clone()
        opt.step()
    alone = [sum(directions(own, part)) for own in (first, second)]
    assert apart([-p.detach() for p in params], alone) < 1e-10


def test_grafting_makes_the_step_independent_of_the_size_of_the_gradient():
    grads = gradients(5, 5, 4)
    part = KroneckerRoot(0.9, 0.0, 1e-6, grafting="adam", graft_eps=0.0)
    plain = directions(grads, part)
    assert apart(plain, directions([1e-3 * g for g in grads], part)) < 1e-10


@pytest.mark.parametrize(
    "options",
    [
        {"grafting": "lion"},
        {"exponent": 0},
        {"max_preconditioner_dim": 0},
        {"start_preconditioning_step": 0},
        {"debias": 2},
    ],
)
def test_options_are_checked(options):
    (name,) = options
    for part in (KroneckerRoot, TensorKroneckerRoot):
        with pytest.raises(ValueError, match=rf"{part.__name__}: {name} = .* is not allowed; it must be"):
            part(**options)


def test_a_first_root_needs_a_start():
    part = KroneckerRoot(precondition_frequency=2.5)
    h = Names(
        beta2=1.0, eps=0.0, relative_eps=0.0, precondition_frequency=2.5, graft_beta2=0.9, graft_eps=0.0
    )
    numbers = [part.numbers(h, k, Names()) for k in range(1, 9)]
    assert [n["started"] for n in numbers] == [False, False, *[True] * 6]
    assert [k for k, n in enumerate(numbers, 1) if n["compute"]] == [3, 5, 8]
    assert math.isclose(numbers[0]["correction"], 1.0)
