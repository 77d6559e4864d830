"""Trion and DCT-AdamW: against Muon and AdamW at full rank, against the paper's steps below it; state and groups."""

import copy
import math

import pytest
import torch
from torch import nn

import hasten
from hasten.linalg.cosine import cosine_rows
from hasten.transforms import HeavyBall, Orthogonalize

SHAPES = [(5, 8), (8, 5), (6, 6), (1, 4), (4, 3, 2, 2)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
SCALES = {
    "original": lambda m, n: max(1, m / n) ** 0.5,
    "match_rms_adamw": lambda m, n: 0.2 * max(m, n) ** 0.5,
    "rms_to_rms": lambda m, n: (m / n) ** 0.5,
    None: lambda m, n: 1.0,
}


def start(shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradient(p, k):
    generator = torch.Generator().manual_seed(k)
    return torch.sin(2 * p) + 0.5 * torch.randn(p.shape, dtype=p.dtype, generator=generator)


def path(make, shape, count=10):
    p = start(shape).requires_grad_()
    opt, found = make([p]), []
    for k in range(count):
        p.grad = gradient(p.detach(), k)
        opt.step()
        found.append(p.detach().clone())
    return torch.stack(found)


@each_shape
@pytest.mark.parametrize("backend", ["ns5", "polar_express", "muon_plus", "svd"])
@pytest.mark.parametrize("rank", [1.0, 8])
def test_trion_with_all_directions_is_muon_with_a_heavy_ball(shape, backend, rank):
    low = path(
        lambda p: hasten.Trion(p, 0.05, 0.1, 0.9, rank, backend=backend, scale="match_rms_adamw"), shape
    )
    geometry = Orthogonalize(backend, scale="match_rms_adamw")
    full = path(lambda p: hasten.Optimizer(p, HeavyBall(0.9), geometry, lr=0.05, weight_decay=0.1), shape)
    torch.testing.assert_close(low, full, rtol=0, atol=4e-13)


def test_turbo_is_not_turned_by_the_basis():
    """It rescales rows, which a rotation of them changes: at full rank it is near Muon, not equal to it."""

    def displaced(make):
        return start((5, 8)) - path(make, (5, 8), 1)[0]

    low = displaced(lambda p: hasten.Trion(p, 1.0, rank=1.0, backend="turbo"))
    full = displaced(lambda p: hasten.Optimizer(p, HeavyBall(0.95), Orthogonalize("turbo"), lr=1.0))
    assert 1e-6 < float((low - full).norm() / full.norm()) < 0.2


@each_shape
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("norm", [1, 2])
def test_trion_steps_as_in_the_paper(shape, scale, norm):
    """With products by the whole basis, columns in order of their norms, and the exact polar factor."""
    lr, decay, mu = 0.05, 0.1, 0.9
    m, n = shape[0], math.prod(shape[1:])
    p, r = min(m, n), max(1, round(0.5 * min(m, n)))
    D = cosine_rows(torch.arange(p), p, torch.float64)
    W, M, expected = start(shape), torch.zeros(m, n, dtype=torch.float64), []
    for k in range(10):
        M = M + gradient(W, k).reshape(m, n)
        right = m >= n
        S = M @ D.T if right else D @ M
        J = torch.linalg.vector_norm(S, norm, dim=0 if right else 1).argsort(descending=True)[:r]
        Q, low = D[J].T, (S[:, J] if right else S[J])
        M = M - (1 - mu) * (low @ Q.T if right else Q @ low)
        U, _, Vt = torch.linalg.svd(low, full_matrices=False)
        step = U @ Vt @ Q.T if right else Q @ (U @ Vt)
        W = (1 - lr * decay) * W - lr * SCALES[scale](m, n) * step.reshape(shape)
        expected.append(W)
    found = path(lambda q: hasten.Trion(q, lr, decay, mu, 0.5, norm, "svd", scale=scale), shape)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(64, 160), (160, 64), (96, 96)], ids=str)
def test_singular_values_of_a_step_are_in_muons_band_and_as_many_as_the_rank(shape):
    p = torch.randn(shape, requires_grad=True)
    opt = hasten.Trion([p], 1.0, rank=16, scale=None)
    before, p.grad = p.detach().clone(), torch.randn(shape)
    opt.step()
    s = torch.linalg.svdvals((before - p.detach()).double())
    assert 0.65 < float(s[15]) < float(s[0]) < 1.21
    assert float(s[16]) < 1e-5


def test_the_scale_of_the_gradient_does_not_matter():
    def path_of(size):
        p = start((12, 20)).requires_grad_()
        opt = hasten.Trion([p], 0.1, rank=4)
        for k in range(4):
            p.grad = size * torch.randn(
                12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(k)
            )
            opt.step()
        return p.detach()

    torch.testing.assert_close(path_of(1e-9), path_of(1.0), rtol=0, atol=1e-12)


@each_shape
@pytest.mark.parametrize("error_feedback", [True, False])
def test_dct_adamw_with_all_directions_is_adamw_in_the_basis(shape, error_feedback):
    """Adam of D G, turned back, whichever side D is on; there is no error then."""
    kwargs = {"lr": 0.05, "betas": (0.8, 0.9), "weight_decay": 0.1}
    m, n = shape[0], math.prod(shape[1:])
    D = cosine_rows(torch.arange(min(m, n)), min(m, n), torch.float64)
    turn, back = (lambda x: x @ D.T, lambda x: x @ D) if m >= n else (lambda x: D @ x, lambda x: D.T @ x)
    turned = turn(start(shape).reshape(m, n)).requires_grad_()
    adam, expected = hasten.AdamW([turned], **kwargs), []
    for k in range(10):
        turned.grad = turn(gradient(back(turned.detach()).reshape(shape), k).reshape(m, n))
        adam.step()
        expected.append(back(turned.detach()).reshape(shape))
    found = path(lambda p: hasten.DCTAdamW(p, rank=1.0, error_feedback=error_feedback, **kwargs), shape)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-11)


# Groups, state, memory.


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 96))


def trained(make, count=4):
    net = model()
    opt = make(net)
    for k in range(count):
        opt.zero_grad()
        net(torch.randn(16, 64, generator=torch.Generator().manual_seed(k))).square().mean().backward()
        opt.step()
    return net, opt


@pytest.mark.parametrize("cls", [hasten.Trion, hasten.DCTAdamW])
def test_what_is_no_matrix_moves_by_adamw(cls):
    kwargs = (
        {"fallback_lr": 0.01, "fallback_betas": (0.8, 0.9)}
        if cls is hasten.Trion
        else {"lr": 0.01, "betas": (0.8, 0.9)}
    )
    net, opt = trained(lambda net: cls(net.parameters(), weight_decay=0.1, **kwargs))
    vectors = [p for p in net.parameters() if p.dim() < 2]
    twin = [p.detach().clone().requires_grad_() for p in model().parameters() if p.dim() < 2]
    adam = hasten.AdamW(twin, lr=0.01, betas=(0.8, 0.9), weight_decay=0.1)
    # The gradients that the vectors saw.
    seen = []
    trained(lambda net: Recorder(cls(net.parameters(), weight_decay=0.1, **kwargs), net, seen))
    for grads in seen:
        for p, g in zip(twin, grads, strict=True):
            p.grad = g
        adam.step()
    for p, q in zip(vectors, twin, strict=True):
        torch.testing.assert_close(p, q)
        assert set(opt.state[p]) >= {"exp_avg", "exp_avg_sq"}


class Recorder:
    """Steps an optimizer and keeps the gradients of the vectors."""

    def __init__(self, opt, net, seen):
        self.opt, self.net, self.seen = opt, net, seen

    def zero_grad(self):
        self.opt.zero_grad()

    def step(self):
        self.seen.append([p.grad.clone() for p in self.net.parameters() if p.dim() < 2])
        self.opt.step()


def held(opt, p):
    """Bytes of the tensors kept for a parameter, but for its step count."""
    return sum(t.numel() * t.element_size() for t in opt.state[p].values() if t.dim())


def test_state_is_what_is_promised():
    p = torch.zeros(96, 256, requires_grad=True)
    whole, low, rows = 96 * 256 * 4, 24 * 256 * 4, 24 * 4
    cases = {
        whole + rows: hasten.Trion([p], rank=0.25),
        whole + 2 * low + rows: hasten.DCTAdamW([p], rank=24),
        2 * low + rows: hasten.DCTAdamW([p], rank=0.25, error_feedback=False),
        (whole + 2 * low) // 2 + rows: hasten.DCTAdamW([p], rank=0.25, state_dtype=torch.bfloat16),
        2 * whole: hasten.AdamW([p]),
    }
    for expected, opt in cases.items():
        assert held(opt, p) == expected


@pytest.mark.parametrize("cls", [hasten.Trion, hasten.DCTAdamW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(cls, dtype, tmp_path):
    def steps(p, opt, numbers):
        for k in numbers:
            p.grad = torch.randn(20, 30, generator=torch.Generator().manual_seed(k)).to(dtype)
            opt.step()

    p = torch.ones(20, 30, dtype=dtype, requires_grad=True)
    opt = cls([p], rank=5)
    steps(p, opt, range(5))
    torch.save(opt.state_dict(), tmp_path / "state.pt")
    twin = p.detach().clone().requires_grad_()
    other = cls([twin], rank=5)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    copied = copy.deepcopy(opt)
    third = copied.param_groups[0]["params"][0]
    for params, its in ((p, opt), (twin, other), (third, copied)):
        steps(params, its, range(5, 9))
    assert torch.equal(p, twin)
    assert torch.equal(p, third)


def test_pieces_of_a_split_tensor_have_directions_of_their_own():
    generator = torch.Generator().manual_seed(3)
    gradients = [torch.randn(12, 10, generator=generator, dtype=torch.float64) for _ in range(5)]
    p = torch.zeros(12, 10, dtype=torch.float64, requires_grad=True)
    opt = hasten.DCTAdamW([{"params": [p], "split": (8, 4)}], lr=0.1, rank=0.5)
    parts = [torch.zeros(h, 10, dtype=torch.float64, requires_grad=True) for h in (8, 4)]
    others = [hasten.DCTAdamW([q], lr=0.1, rank=0.5) for q in parts]
    for g in gradients:
        p.grad = g
        opt.step()
        for q, own, piece in zip(parts, others, g.split((8, 4)), strict=True):
            q.grad = piece.clone()
            own.step()
    torch.testing.assert_close(p.detach(), torch.cat(parts).detach(), rtol=0, atol=1e-13)


def test_a_zero_gradient_moves_nothing():
    for cls in (hasten.Trion, hasten.DCTAdamW):
        p = torch.ones(6, 9, requires_grad=True)
        opt = cls([p], weight_decay=0.0)
        p.grad = torch.zeros(6, 9)
        opt.step()
        assert torch.equal(p.detach(), torch.ones(6, 9))


@pytest.mark.parametrize("cls", [hasten.Trion, hasten.DCTAdamW])
def test_bad_arguments_are_refused_by_name(cls):
    p = torch.ones(3, 4, requires_grad=True)
    for kwargs in ({"rank": 0}, {"rank": 1.5}, {"norm": 3}):
        [(name, value)] = kwargs.items()
        with pytest.raises(ValueError, match=f"^{cls.__name__}: {name} = {value} is not allowed; it must be"):
            cls([p], **kwargs)


@pytest.mark.parametrize(("cls", "kwargs"), [(hasten.Trion, {"momentum": 0.5}), (hasten.DCTAdamW, {})])
def test_what_is_left_out_comes_later(cls, kwargs):
    """A linear model is learnt to the end, though every step moves in a quarter of the directions only."""
    generator = torch.Generator().manual_seed(0)
    X, true = torch.randn(256, 12, generator=generator), torch.randn(12, 8, generator=generator)
    w = torch.zeros(12, 8, requires_grad=True)
    opt = cls([w], lr=hasten.schedules.cosine(0.2, total=200), rank=0.25, weight_decay=0.0, **kwargs)
    for _ in range(200):
        opt.zero_grad()
        (X @ w - X @ true).square().mean().backward()
        opt.step()
    assert float((w.detach() - true).norm() / true.norm()) < 0.02
