"""Parts of matrix grain give the same whatever runs them: by hand, eager, compiled, traced, stacked or alone."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from matrix_parts import Refreshed, Whiten, by_hand
from torch import Tensor

import hasten
from hasten.engine import matrix
from hasten.engine.composition import Sentence
from hasten.engine.matrix import alike
from hasten.iterates import DistanceEstimate, Plain, ScheduleFree
from hasten.oracles import Backpropagation
from hasten.transforms import EMA, ClipNorm, Sign
from hasten.words import Buffer

KINDS: dict[str, dict[str, Any]] = {
    "flatten": {"shapes": [(3, 5), (5, 3), (3, 5), (4, 2, 3), (1, 6), (3, 5)]},
    "even split": {"shapes": [(6, 4), (6, 4), (6, 2, 2)], "split": 3},
    "uneven split": {"shapes": [(6, 4), (6, 4), (6, 3)], "split": (3, 1, 2)},
    "stack": {"shapes": [(2, 3, 4), (2, 3, 4), (2, 2, 3, 3)], "layout": "stack"},
    "split stack": {"shapes": [(2, 5, 3), (2, 5, 3)], "layout": "stack", "split": (2, 3)},
    "transposed": {"shapes": [(4, 6), (4, 6), (3, 6, 2)], "layout": "transposed", "split": 2},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def matrices(kind: str, t: Tensor) -> Iterator[Tensor]:
    """Views of the matrices in a tensor, written out for each of the kinds above."""
    if kind == "flatten":
        yield t.view(t.shape[0], -1)
    elif kind == "even split":
        yield from t.view(3, 2, -1)
    elif kind == "uneven split":
        yield from (t[0:3], t[3:4], t[4:6])
    elif kind == "stack":
        yield from t.view(-1, *t.shape[-2:])
    elif kind == "split stack":
        yield from (t[j, rows] for rows in (slice(0, 2), slice(2, 5)) for j in range(2))
    elif t.dim() == 2:
        yield from (t.T[0:3], t.T[3:6])
    else:
        raise AssertionError


def start(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def gradient(k: int, i: int, shape: Any) -> Tensor:
    generator = torch.Generator().manual_seed(100 * k + i)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def optimizer(params: list[Tensor], kind: str, *before: Any, **options: Any) -> hasten.Optimizer:
    group = {key: value for key, value in KINDS[kind].items() if key != "shapes"}
    chain = (*before, EMA(0.9), Whiten())
    return hasten.Optimizer([{"params": params, **group}], *chain, lr=0.1, weight_decay=0.01, **options)


def advance(
    opt: Any, params: list[Tensor], steps: range, missing: Any = (), step: Any = None
) -> list[Tensor]:
    for k in steps:
        for i, p in enumerate(params):
            p.grad = None if (k, i) in missing else gradient(k, i, p.shape).to(p.dtype)
        (step or opt.step)()
    return [p.detach().clone() for p in params]


def close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


@each_kind
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_every_matrix_is_moved_as_if_it_were_alone(kind: str, engine: str) -> None:
    shapes = [s for s in KINDS[kind]["shapes"] if kind != "transposed" or len(s) == 2]
    params = start(shapes)
    missing = {(1, 0), (2, 1)}
    expected = by_hand(
        params,
        lambda i, t: matrices(kind, t),
        lambda k, i: None if (k, i) in missing else gradient(k, i, shapes[i]),
        5,
    )
    opt = optimizer(params, kind, engine=engine)
    close(advance(opt, params, range(5), missing), expected)


@each_kind
def test_the_engines_agree(kind: str) -> None:
    found = []
    for engine in ("eager", "compiled"):
        params = start(KINDS[kind]["shapes"])
        found.append(advance(optimizer(params, kind, engine=engine), params, range(4)))
    close(found[1], found[0], 1e-14)


def test_a_users_compiled_step_agrees() -> None:
    torch._dynamo.reset()
    shapes = KINDS["split stack"]["shapes"][:1]
    params, twins = start(shapes), start(shapes)
    opt, other = optimizer(params, "split stack"), optimizer(twins, "split stack", engine="eager")
    step = torch.compile(opt.step, fullgraph=True, backend="eager")
    close(advance(opt, params, range(3), step=step), advance(other, twins, range(3)), 1e-13)


def test_a_step_reads_its_norm_over_all_parameters_before_the_matrices() -> None:
    shapes = KINDS["flatten"]["shapes"]
    params = start(shapes)
    expected = by_hand(
        params, lambda i, t: matrices("flatten", t), lambda k, i: gradient(k, i, shapes[i]), 3, clip=0.5
    )
    close(advance(optimizer(params, "flatten", ClipNorm(0.5)), params, range(3)), expected)


@pytest.mark.parametrize("lot", [1, 2, 40, 2**20])
def test_how_many_are_stacked_changes_nothing(lot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matrix.LOT, "cpu", lot)
    params = start([(3, 5)] * 7 + [(2, 2)] * 3)
    whole = advance(optimizer(params, "flatten"), params, range(3))
    monkeypatch.undo()
    alone = []
    for i, p in enumerate(start([(3, 5)] * 7 + [(2, 2)] * 3)):
        opt = optimizer([p], "flatten")
        for k in range(3):
            p.grad = gradient(k, i, p.shape)
            opt.step()
        alone.append(p.detach())
    close(whole, alone, 1e-13)


def test_lots_hold_what_they_may() -> None:
    shapes = [torch.Size(s) for s in [(2, 3)] * 5 + [(3, 2)] + [(0, 4)] + [(10, 10)]]
    lots = list(alike(shapes, [0, 0, 1, 0, 0, 0, 0, 0]))
    assert lots == [[0, 1, 3, 4], [2], [5], [7]]
    big = [torch.Size((1024, 1024))] * 3
    assert list(alike(big, [0] * 3)) == [[0], [1], [2]]
    assert list(alike(big, [0] * 3, "cuda")) == [[0, 1, 2]]
    assert list(alike([torch.Size((2048, 1024)), *big], [0] * 4)) == [[0], [1, 2], [3]]


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_maximize_ascends(engine: str) -> None:
    found = []
    for sign in (1.0, -1.0):
        params = start([(3, 4), (2, 3, 2)])
        opt = optimizer(params, "flatten", maximize=sign < 0, engine=engine)
        for k in range(3):
            for i, p in enumerate(params):
                p.grad = sign * gradient(k, i, p.shape)
            opt.step()
        found.append([p.detach() for p in params])
    close(*found)


def test_what_is_read_is_never_changed() -> None:
    """With no element part before, the direction is the gradient itself."""
    params = start([(3, 4)])
    opt = hasten.Optimizer(params, Whiten(), lr=0.1)
    params[0].grad = gradient(0, 0, (3, 4))
    before = params[0].grad.clone()
    opt.step()
    assert torch.equal(params[0].grad, before)


def test_matrices_without_entries_stay() -> None:
    params = start([(0, 3), (3, 0), (2, 2)])
    for engine in ("eager", "compiled"):
        opt = optimizer(params, "flatten", engine=engine)
        advance(opt, params, range(2))
    torch._dynamo.reset()
    advance(opt, params, range(1), step=torch.compile(opt.step, fullgraph=True, backend="eager"))
    other = optimizer(params, "flatten")
    other.load_state_dict(opt.state_dict())


def test_frozen_parameters_stay() -> None:
    params = start([(3, 4), (3, 4)])
    params[0].requires_grad_(False)
    opt = optimizer(params, "flatten")
    before = params[0].detach().clone()
    params[1].grad = gradient(0, 1, (3, 4))
    opt.step()
    assert torch.equal(params[0], before)
    assert params[0] not in opt.state


def laid(t: Tensor, how: str) -> Tensor:
    if how == "transposed":
        return t.detach().T.contiguous().T.requires_grad_()
    return torch.zeros(t.shape[0], 2 * t.shape[1], dtype=t.dtype)[:, ::2].copy_(t.detach()).requires_grad_()


@pytest.mark.parametrize("how", ["transposed", "sliced"])
def test_parameters_need_not_be_contiguous(how: str) -> None:
    plain = start([(3, 5), (3, 5)])
    odd = [laid(p, how) for p in plain]
    assert not odd[0].is_contiguous()
    close(
        advance(optimizer(odd, "flatten"), odd, range(3)),
        advance(optimizer(plain, "flatten"), plain, range(3)),
    )


def test_low_precision_parameters_are_rounded_at_random() -> None:
    """Steps far below half a unit in the last place add up to their sum, and are the same in every run."""
    moved = []
    for _ in range(2):
        p = torch.ones(64, 64, dtype=torch.bfloat16).requires_grad_()
        opt = hasten.Optimizer([p], Doubled(), lr=2**-14, stochastic_rounding=True, seed=3)
        for _ in range(64):
            p.grad = torch.ones_like(p)
            opt.step()
        moved.append(p.detach().clone())
    assert torch.equal(*moved)
    assert float(moved[0].float().mean()) == pytest.approx(1 - 2 * 64 * 2**-14, abs=5e-4)


class Doubled(Whiten):
    """u = 2 d, in bfloat16: what a part gives back may be of another precision."""

    def buffers(self) -> dict[str, Buffer]:
        return {}

    def direction(self, d: Any, s: Any, n: Any) -> Any:
        return 2 * d.bfloat16()


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_direction_may_come_in_another_dtype(engine: str) -> None:
    p = torch.ones(3, 4, requires_grad=True)
    opt = hasten.Optimizer([p], Doubled(), lr=0.5, engine=engine)
    p.grad = torch.full((3, 4), 0.25)
    opt.step()
    assert torch.equal(p.detach(), torch.full((3, 4), 0.75))


class Mistaken(Whiten):
    """Forgets to transpose back, or to keep what it keeps in its shape."""

    def buffers(self) -> dict[str, Buffer]:
        return {"left": Buffer(shape=lambda size: (size[0], size[0]))}

    def direction(self, d: Any, s: Any, n: Any) -> Any:
        if d.shape[-1] == 5:
            s.left = s.left[..., :1]
            return d
        return d.mT


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 4), r"Mistaken: the direction that it makes has the shape \(1, 4, 3\); it must be \(1, 3, 4\)"),
        ((3, 5), r"Mistaken: 'left' that it makes has the shape \(1, 3, 1\); it must be \(1, 3, 3\)"),
    ],
)
def test_a_part_that_makes_a_wrong_shape_is_named(shape: tuple[int, int], message: str) -> None:
    p = torch.ones(shape, requires_grad=True)
    opt = hasten.Optimizer([p], Mistaken())
    p.grad = torch.ones(shape)
    with pytest.raises(ValueError, match=message):
        opt.step()


def test_steps_that_prepare_move_nothing() -> None:
    params = start([(3, 4), (2, 2)])
    opt = hasten.Optimizer(params, EMA(0.5), Refreshed(), Whiten(), lr=0.1, weight_decay=0.1)
    before = [p.detach().clone() for p in params]
    after = advance(opt, params, range(1))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    d = gradient(0, 0, (3, 4))
    torch.testing.assert_close(opt.state[params[0]]["gram"], d @ d.T / (1 + d.square().sum()))
    assert not opt.state[params[0]]["left"].any()
    assert float(opt.state[params[0]]["step"]) == 1
    moved = advance(opt, params, range(1, 2))
    assert not any(torch.equal(a, b) for a, b in zip(before, moved, strict=True))
    with pytest.raises(Exception, match="a step with Refreshed cannot be compiled as a whole"):
        torch.compile(opt.step, fullgraph=True, backend="eager")()


def test_only_parts_that_are_not_of_entries_prepare() -> None:
    class Waiting(Sign):
        @property
        def preparing(self) -> int:
            return 2

    with pytest.raises(
        ValueError, match="Waiting is not allowed: a part of element grain has nothing to prepare"
    ):
        hasten.Optimizer([torch.ones(2, requires_grad=True)], Waiting())


def test_two_points_with_matrix_geometry() -> None:
    """Schedule-Free by hand around `Whiten`: z ← z − lr u, x ← (1 − 1/k) x + z/k, y = β x + (1 − β) z."""
    (p,) = start([(3, 4)])
    opt = hasten.Optimizer([p], Whiten(), iterate=ScheduleFree(0.1, momentum=0.7), weight_decay=0.0)
    x, y, z = (p.detach().clone() for _ in range(3))
    left, mean = torch.zeros(3, 3).double(), torch.zeros(3, 4).double()
    for k in range(1, 5):
        g = gradient(k, 0, (3, 4))
        p.grad = g
        opt.step()
        left = 0.8 * left + g @ g.T
        mean = 0.8 * mean + g.abs()
        inner = 0.5 * torch.eye(3).double() + left / left.norm()
        z = z - 0.1 * (torch.linalg.inv(inner) @ (g + 0.1 * y)) / (1 + mean)
        x = (1 - 1 / k) * x + z / k
        y = 0.7 * x + 0.3 * z
        close([p.detach()], [y])
        with opt.evaluating():
            close([p.detach()], [x])


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_an_iterate_that_measures_sees_the_direction_of_the_matrices(engine: str) -> None:
    """As if `Whiten` by hand had made the gradients that Prodigy gets."""
    params, twins = start([(3, 4), (3, 4), (2, 5)]), start([(3, 4), (3, 4), (2, 5)])
    iterate = DistanceEstimate(d0=1e-2)
    opt = hasten.Optimizer(params, Whiten(), iterate=iterate, engine=engine)
    other = hasten.Optimizer(twins, iterate=iterate, engine="eager")
    lefts = [torch.zeros(p.shape[0], p.shape[0]).double() for p in twins]
    means = [torch.zeros_like(p) for p in twins]
    for _ in range(8):
        for p, q, left, mean in zip(params, twins, lefts, means, strict=True):
            p.grad, g = p.detach() - 3.0, q.detach() - 3.0
            left.mul_(0.8).add_(g @ g.T)
            mean.data.mul_(0.8).add_(g.abs())
            inner = 0.5 * torch.eye(q.shape[0]).double() + left / left.norm()
            q.grad = (torch.linalg.inv(inner) @ (g + 0.1 * q.detach()) / (1 + mean)).detach()
        opt.step()
        other.step()
        close([p.detach() for p in params], [q.detach() for q in twins])
    assert opt.param_groups[0]["d"] == pytest.approx(other.param_groups[0]["d"], rel=1e-12)
    assert opt.param_groups[0]["d"] > 2e-2


@pytest.mark.parametrize("way", ["state dict", "pickle", "deepcopy"])
@each_kind
def test_a_resumed_run_goes_on_to_the_bit(kind: str, way: str) -> None:
    params = start(KINDS[kind]["shapes"], torch.float32)
    opt = optimizer(params, kind)
    advance(opt, params, range(2))
    if way == "state dict":
        buffer = io.BytesIO()
        torch.save((opt.state_dict(), [p.detach() for p in params]), buffer)
        buffer.seek(0)
        saved, values = torch.load(buffer, weights_only=True)
        others = [v.requires_grad_() for v in values]
        other = optimizer(others, kind)
        other.load_state_dict(saved)
    else:
        other = copy.deepcopy(opt) if way == "deepcopy" else pickle.loads(pickle.dumps(opt))
        others = other.param_groups[0]["params"]
    a, b = advance(opt, params, range(2, 4)), advance(other, others, range(2, 4))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_two_sentences_keep_to_their_groups() -> None:
    """Vectors and ``matrices=False`` move by the second sentence, each group with its own lr."""
    w, e, b = start([(3, 4), (5, 2), (3,)])
    others = Sentence(Backpropagation(), (Sign(),), Plain(0.5))
    groups = [{"params": [w], "matrices": True}, {"params": [e, b], "matrices": False}]
    opt = hasten.Optimizer(groups, EMA(0.9), Whiten(), lr=0.1, weight_decay=0.01, vectors=others)
    alone = start([(3, 4), (5, 2), (3,)])
    expected_w = advance(optimizer(alone[:1], "flatten"), alone[:1], range(3))
    before = [e.detach().clone(), b.detach().clone()]
    advance(opt, [w, e, b], range(3))
    close([w.detach()], expected_w)
    for i, (p, old) in enumerate(zip((e, b), before, strict=True), start=1):
        signs = sum(gradient(k, i, p.shape).sign() for k in range(3))
        close([p.detach()], [old - 0.5 * signs])
    text = repr(opt)
    assert "Whiten" in text
    assert "Sign" in text
    assert "group 1: 2 parameters, matrices=False, lr=0.5" in text
