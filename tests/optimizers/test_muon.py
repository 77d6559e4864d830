"""Muon in four conventions, Turbo-Muon and AdaMuon: against torch's, against recursions stated by themselves."""

import itertools
import json
from pathlib import Path

import matrix_recursions as reference
import pytest
import torch
from torch import nn

import hasten
from hasten.transforms import NesterovEMA, Orthogonalize, QuasiHyperbolic

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "accelerated-sgd.json").read_text())
CASES = {case["name"]: case for case in VECTORS["matrix_cases"]}
SHAPES = [(6, 9), (9, 6), (8, 8), (1, 7), (20, 50)]


def made(shape, count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(count + 1, *shape, generator=generator, dtype=torch.float64)
    return draws[0], list(draws[1:])


def parameter(x):
    return x.detach().clone().requires_grad_()


# -- published trajectories ---------------------------------------------------------------------------------------


def build(name):
    h = CASES[name]["hyper"]
    shared = {"lr": h["lr"], "weight_decay": h["weight_decay"]}
    match name:
        case "muon_float64_ns":
            return lambda p, **k: hasten.Muon(p, momentum=h["momentum"], steps=h["ns_steps"], **shared, **k)
        case "muon_exact_polar":
            return lambda p, **k: hasten.Muon(p, momentum=h["momentum"], backend="svd", **shared, **k)
        case "qh_muon_exact_polar":
            chain = QuasiHyperbolic(h["beta"], h["nu"]), Orthogonalize("svd")
            return lambda p, **k: hasten.Optimizer(p, *chain, **shared, **k)
        case "mars_shampoo_float64_ns":
            given = {"betas": (h["beta1"], 0.99), "gamma": h["gamma"], "eps": h["eps"]}
            return lambda p, **k: hasten.MARS(p, flavour="shampoo", **given, **shared, **k)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("layout", ["alone", "in a stack", "transposed"])
@pytest.mark.parametrize("name", [n for n in CASES if n != "simplified_soap"])
def test_the_published_trajectory_is_followed(name, layout, engine):
    start, gradients = (torch.tensor(VECTORS["matrix"][x], dtype=torch.float64) for x in ("W0", "GM"))
    read = {
        "alone": lambda x: x,
        "in a stack": lambda x: torch.stack([x, -x]),
        "transposed": lambda x: x.T.contiguous(),
    }[layout]
    keys = {"in a stack": {"layout": "stack"}, "transposed": {"layout": "transposed"}}.get(layout, {})
    if name.startswith("mars") and layout == "in a stack":
        pytest.skip("MARS clips the norm of the whole tensor")
    w = parameter(read(start))
    opt = build(name)([{"params": [w], "matrices": True, **keys}], engine=engine)
    expected = torch.tensor(CASES[name]["steps"], dtype=torch.float64)
    for got, want in zip(reference.run(opt, w, [read(g) for g in gradients]), expected, strict=True):
        torch.testing.assert_close(got, read(want), rtol=1e-10, atol=1e-12)


# -- torch.optim.Muon ---------------------------------------------------------------------------------------------


def pair(shape, dtype, nesterov, scale):
    start, gradients = made(shape)
    ours, theirs = parameter(start.to(dtype)), parameter(start.to(dtype))
    options = {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.9, "nesterov": nesterov}
    opt = hasten.Muon([ours], scale=scale, **options)
    other = torch.optim.Muon([theirs], adjust_lr_fn=scale, **options)
    gradients = [g.to(dtype) for g in gradients]
    return reference.run(opt, ours, gradients), reference.run(other, theirs, gradients), opt, other


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_float64_it_is_torchs_recursion(shape, nesterov, scale, monkeypatch):
    # torch iterates in bfloat16 whatever the parameters are; here its iteration is stated in float64.
    def exact(g, quintic, steps, eps):
        return reference.iterated(g, max(float(g.norm()), eps), table=[quintic] * steps)

    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", exact)
    ours, theirs, opt, other = pair(shape, torch.float64, nesterov, scale)
    reference.compare(ours, theirs)
    (a,), (b,) = opt.state.values(), other.state.values()
    torch.testing.assert_close(a["momentum_buffer"], b["momentum_buffer"], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_it_is_torchs_within_the_rounding_of_bfloat16(shape, scale):
    """Both iterate in bfloat16, in another order of products; each is as far from what float64 gives."""
    ours, theirs, _, _ = pair(shape, torch.float32, True, scale)
    exact, _, _, _ = pair(shape, torch.float64, True, scale)
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert (a - c).norm() < 3 * (b - c).norm()
    moved = (exact[0] - made(shape)[0]).norm()
    assert (ours[0] - exact[0]).norm() < 0.04 * moved


def test_a_checkpoint_of_torchs_continues_here(monkeypatch):
    monkeypatch.setattr(
        torch.optim._muon, "_zeropower_via_newtonschulz", lambda g, c, s, e: reference.torchs(g)
    )
    start, gradients = made((5, 8))
    theirs = parameter(start)
    other = torch.optim.Muon([theirs], lr=0.02)
    reference.run(other, theirs, gradients[:3])
    ours = parameter(theirs)
    opt = hasten.Muon([ours], lr=0.5)
    opt.load_state_dict(other.state_dict())
    assert opt.param_groups[0]["lr"] == 0.02
    reference.compare(reference.run(opt, ours, gradients[3:]), reference.run(other, theirs, gradients[3:]))


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("nesterov", {"nesterov": False}),
        ("ns_steps", {"steps": 4}),
        ("ns_coefficients", {"backend": "svd"}),
        ("ns_coefficients", {"coefficients": [(2.0, -1.5, 0.5)] * 5}),
        ("adjust_lr_fn", {"scale": "match_rms_adamw"}),
        ("eps", {"eps": 1e-5}),
    ],
)
def test_a_checkpoint_of_another_formula_is_refused(key, options):
    start, gradients = made((5, 8))
    theirs, ours = parameter(start.float()), parameter(start.float())
    other = torch.optim.Muon([theirs])
    reference.run(other, theirs, [gradients[0].float()])
    opt = hasten.Muon([ours], **options)
    with pytest.raises(
        ValueError, match=rf"^Muon: group 0 of the state dict, of torch.optim.Muon, has {key}"
    ):
        opt.load_state_dict(other.state_dict())
    assert not opt.state[ours]["momentum_buffer"].any()


# -- conventions --------------------------------------------------------------------------------------------------

DION = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def stated(convention, m, n):
    """Each code's own lines: what is subtracted, lr and decay."""
    buffer = []

    def undamped(g):
        buffer.append(0.95 * buffer[-1] + g if buffer else g)
        return buffer[-1]

    def jordan(g, _):
        buffer.append(torch.lerp(buffer[-1] if buffer else torch.zeros_like(g), g, 0.05))
        return max(1, m / n) ** 0.5 * reference.jordan(torch.lerp(g, buffer[-1], 0.95))

    def moonshot(g, _):
        return 0.2 * max(m, n) ** 0.5 * reference.jordan(g + 0.95 * undamped(g))

    def dion(g, _):
        u = undamped(g)
        return (m / n) ** 0.5 * reference.iterated(u, u.norm() * 1.02 + 1e-8, table=DION)

    return {"jordan": (jordan, 0.02, 0.0), "moonshot": (moonshot, 1e-3, 0.1), "dion": (dion, 0.01, 0.01)}[
        convention
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("convention", ["jordan", "moonshot", "dion"])
def test_each_convention_is_its_librarys(convention, shape):
    start, gradients = made(shape)
    w = parameter(start)
    direction, lr, decay = stated(convention, *shape)
    ours = reference.run(hasten.Muon([w], convention=convention), w, gradients)
    # Buffers that are not averages are 20 times larger, and so is the norm beside the eps that is added to it.
    compare_to = reference.trajectory(start, gradients, direction, lr, decay)
    reference.compare(ours, compare_to, 1e-12 if convention == "jordan" else 1e-7)


def test_decay_does_not_see_the_factor_of_the_shape():
    start, _ = made((8, 2))
    w = parameter(start)
    opt = hasten.Muon([w], lr=0.1, weight_decay=0.5, scale="match_rms_adamw")
    (moved,) = reference.run(opt, w, [torch.zeros(8, 2, dtype=torch.float64)])
    torch.testing.assert_close(moved, 0.95 * start, rtol=1e-15, atol=0)


@pytest.mark.parametrize("inside", [1.0, 0.3])
def test_decay_keeps_the_weights_in_a_ball_of_the_spectral_norm(inside):
    """With 0 < lr · λ ≤ 1 and ‖W₀‖₂ ≤ 1/λ: the trust-region view's constraint, whatever the gradients are."""
    start, gradients = made((6, 10), count=200)
    decay = 0.1
    start = start * (inside / decay / torch.linalg.matrix_norm(start, 2))
    w = parameter(start)
    opt = hasten.Muon([w], lr=0.5, weight_decay=decay, backend="svd", scale=None)
    norms = [float(torch.linalg.matrix_norm(x, 2)) for x in reference.run(opt, w, gradients)]
    assert max(norms) <= 1 / decay + 1e-12
    assert max(norms) > 2  # it is not trivially small


# -- all other parameters -----------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)
    ).double()


def trained(model, optimizers, schedulers=(), steps=5):
    torch.manual_seed(1)
    x, y = torch.randn(32, 6, dtype=torch.float64), torch.randint(3, (32,))
    for _ in range(steps):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        for one in (*optimizers, *schedulers):
            one.step()
    return dict(model.named_parameters())


def test_one_optimizer_is_two():
    """Hidden matrices move by Muon, and all others by AdamW with values of their own, each under its scheduler."""
    joint, apart = network(), network()
    one = hasten.Muon(
        joint,
        lr=0.03,
        weight_decay=0.2,
        fallback_lr=0.004,
        fallback_betas=(0.8, 0.9),
        fallback_eps=1e-6,
        fallback_weight_decay=0.3,
    )
    named = dict(apart.named_parameters())
    hidden = [named[n] for n in ("0.weight", "2.weight")]
    others = [p for p in named.values() if not any(p is h for h in hidden)]
    muon = hasten.Muon(hidden, lr=0.03, weight_decay=0.2)
    adamw = hasten.AdamW(others, lr=0.004, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)

    def halving(opt):
        return torch.optim.lr_scheduler.StepLR(opt, 2, 0.5)

    first = trained(joint, [one], [halving(one)])
    second = trained(apart, [muon, adamw], [halving(muon), halving(adamw)])
    assert [g["lr"] for g in one.param_groups] == [0.03 / 4, 0.004 / 4]
    for name, p in first.items():
        torch.testing.assert_close(p, second[name], rtol=1e-12, atol=1e-14)


def test_it_prints_what_moves_all_others_with_their_values():
    text = str(
        hasten.Muon(nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8), nn.LayerNorm(8)), lr=0.03)
    )
    first, second = text.split("all other parameters:")
    assert "Orthogonalize(backend='ns5', scale='original'" in first
    assert "Plain(lr=0.03)" in first
    assert "Plain(lr=0.0003)" in second
    assert "group 1: 2 parameters" in second


def test_where_the_sizes_of_steps_match_adamws_so_does_the_learning_rate():
    assert {g["lr"] for g in hasten.Muon(network(), lr=0.01, scale="match_rms_adamw").param_groups} == {0.01}
    assert {g["lr"] for g in hasten.Muon(network(), lr=0.01, convention="moonshot").param_groups} == {0.01}
    assert {g["lr"] for g in hasten.AdaMuon(network(), lr=0.01).param_groups} == {0.01}
    assert {g["lr"] for g in hasten.Muon(network(), lr=0.01).param_groups} == {0.01, 3e-4}


def test_a_schedule_needs_one_for_the_others_too():
    schedule = hasten.schedules.cosine(0.02, total=10)
    with pytest.raises(ValueError, match="Muon: lr is a schedule, and fallback_lr is not given"):
        hasten.Muon(network(), lr=schedule)
    opt = hasten.Muon(network(), lr=schedule, fallback_lr=hasten.schedules.cosine(0.001, total=10))
    trained(network(), [opt], steps=0)
    assert [g["lr"] for g in opt.param_groups] == [0.02, 0.001]
    both = hasten.Muon(network(), lr=schedule, convention="moonshot")
    assert [g["lr"] for g in both.param_groups] == [0.02, 0.02]


def test_turbo_is_muon_with_another_iteration():
    start, gradients = made((6, 9))
    a, b = parameter(start), parameter(start)
    ours = reference.run(hasten.TurboMuon([a], lr=0.02, momentum=0.9), a, gradients)
    compare_to = reference.run(hasten.Muon([b], lr=0.02, momentum=0.9, backend="turbo"), b, gradients)
    reference.compare(ours, compare_to, 0.0)
    assert hasten.TurboMuon([a], steps=3).sentence.transforms[1].steps == 3


# -- AdaMuon ------------------------------------------------------------------------------------------------------


def adamuon(variant, m, n):
    """The authors' lines: July 2025 (with its bias correction), and their later code."""
    state = {"buf": torch.zeros(m, n, dtype=torch.float64), "v": torch.zeros(m, n, dtype=torch.float64)}

    def direction(g, k):
        state["buf"] = torch.lerp(state["buf"], g, 0.05)
        g = torch.lerp(g, state["buf"], 0.95)
        o = reference.jordan(torch.sign(g) if variant == "paper" else g)
        beta = 0.95 if variant == "paper" else 0.999
        state["v"] = beta * state["v"] + (1 - beta) * o * o
        corrected = state["v"] / (1 - beta**k)
        o = o / (corrected.sqrt() + 1e-8)
        return 0.2 * (m * n) ** 0.5 * o / o.norm()

    return direction


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_adamuon_is_its_authors(variant, shape):
    start, gradients = made(shape)
    w = parameter(start)
    opt = hasten.AdaMuon([w], lr=0.01, weight_decay=0.1, variant=variant)
    ours = reference.run(opt, w, gradients)
    reference.compare(
        ours, reference.trajectory(start, gradients, adamuon(variant, *shape), 0.01, 0.1), 1e-11
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_adamuons_steps_have_the_same_root_mean_square_always(shape, dtype):
    _, gradients = made(shape)
    w = torch.zeros(shape, dtype=dtype, requires_grad=True)
    path = [torch.zeros(shape, dtype=dtype)]
    opt = hasten.AdaMuon([w], lr=1.0, weight_decay=0.0)
    path += reference.run(opt, w, [g.to(dtype) for g in gradients])
    for before, after in itertools.pairwise(path):
        assert (after - before).square().mean().sqrt().item() == pytest.approx(0.2, abs=1e-5)


def test_adamuons_first_step_is_a_sign():
    start, gradients = made((7, 12))
    w = parameter(start)
    (moved,) = reference.run(hasten.AdaMuon([w], lr=1.0, weight_decay=0.0), w, gradients[:1])
    expected = 0.2 * torch.sign(reference.jordan(gradients[0]))
    torch.testing.assert_close(start - moved, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["Muon", "TurboMuon", "AdaMuon"])
def test_the_size_of_gradients_does_not_matter(name):
    start, gradients = made((6, 9))
    cls, options = getattr(hasten, name), {} if name == "AdaMuon" else {"eps": 0.0}
    options = {} if name == "TurboMuon" else options
    a, b = parameter(start), parameter(start)
    ours = reference.run(cls([a], lr=0.05, **options), a, gradients)
    scaled = reference.run(cls([b], lr=0.05, **options), b, [1024 * g for g in gradients])
    # AdaMuon has an eps of 1e-7 beside the norm, as its authors' code; an element of nearly zero feels it.
    reference.compare(ours, scaled, 1e-6 if name == "AdaMuon" else 1e-9)


def test_momentum_before_the_geometry_finds_the_mean_better():
    """Cosines to the polar factor of the mean gradient, under noise: momentum first 0.87, afterwards 0.82."""
    generator = torch.Generator().manual_seed(0)
    mean = 0.5 * torch.randn(32, 32, generator=generator, dtype=torch.float64)
    noise = torch.randn(100, 32, 32, generator=generator, dtype=torch.float64)
    target = reference.polar(mean)
    chains = {
        "before": (NesterovEMA(0.95, nesterov=False), Orthogonalize("svd", scale=None)),
        "after": (Orthogonalize("svd", scale=None), NesterovEMA(0.95, nesterov=False)),
    }
    found = {}
    for order, chain in chains.items():
        w = torch.zeros(32, 32, dtype=torch.float64, requires_grad=True)
        path = reference.run(hasten.Optimizer([w], *chain, lr=1.0), w, [mean + n for n in noise])
        step = path[-2] - path[-1]
        found[order] = float((step * target).sum() / step.norm() / target.norm())
    assert found["before"] > found["after"] + 0.02
