"""Trajectories computed in 50-digit arithmetic, and limits in which the method is another one."""

import math

import pytest
import torch
from given_sketch import given

import hasten
from hasten.sketches import BalancedCountSketch, Haar

F64 = torch.float64


def vector(*values):
    return torch.tensor(values, dtype=F64)


def close(found, expected, rtol=1e-12):
    """Equal to 1e-12, or to the digits that are printed."""
    expected = torch.as_tensor(expected, dtype=F64)
    torch.testing.assert_close(torch.as_tensor(found, dtype=F64), expected, rtol=rtol, atol=1e-12)


def run(f, d, sketch, steps, **options):
    """x, z and f(x) after every step, from zero."""
    w = torch.zeros(d, dtype=F64, requires_grad=True)
    opt = hasten.SubspaceNesterov([w], sketch=sketch, **options)
    trace = []
    for _ in range(steps):
        opt.step(lambda: f(w))
        with opt.evaluating(), torch.no_grad():
            x = w.detach().clone()
            trace.append((x, x + opt.state[w]["difference"], float(f(x))))
    return trace, opt


def test_convex_schedule_on_a_quadratic():
    L, target = vector(4, 2, 1, 0.5), vector(1, -2, 3, -1)
    signs = [(1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1)]
    sketch = given([vector(*p)[:, None] for p in signs], nu=4.0, smoothness=7.5)

    def f(x):
        return 0.5 * (L * (x - target) ** 2).sum()

    trace, _ = run(f, 4, sketch, 4, smoothness=7.5, schedule="convex")
    expected = [
        ([1 / 3] * 4, [1 / 12] * 4, 10.33333333333),
        (
            [1.644444444444, -1.311111111111, 1.644444444444, -1.311111111111],
            [0.6375, -0.4708333333333, 0.6375, -0.4708333333333],
            2.248148148148,
        ),
        (
            [0.5294444444444, -1.5025, 1.7525, -0.2794444444444],
            [0.3317361111111, -0.7765972222222, 0.9432638888889, -0.1650694444444],
            1.598279513889,
        ),
        (
            [0.6930185185185, -1.454796296296, 1.186148148148, 0.008962962962963],
            [0.4833969907407, -0.9282581018519, 0.7916030092593, -0.01340856481481],
            2.385253173868,
        ),
    ]
    for found, printed in zip(trace, expected, strict=True):
        for a, b in zip(found, printed, strict=True):
            close(a, b)


def test_strongly_convex_schedule_with_count_sketches():
    L = torch.diag(2 + torch.arange(6, dtype=F64) / 2) - torch.diag(torch.ones(5, dtype=F64), 1)
    L = L - torch.diag(torch.ones(5, dtype=F64), -1)
    b = vector(1, 0, -1, 2, 0, 1)
    rows = [
        ((0, 1, 0, 1, 0, 1), (1, 1, -1, 1, -1, -1)),
        ((0, 0, 0, 1, 1, 1), (1, -1, 1, 1, 1, -1)),
        ((1, 0, 0, 1, 1, 0), (-1, 1, 1, -1, 1, 1)),
        ((1, 1, 0, 0, 0, 1), (1, 1, 1, -1, 1, 1)),
    ]
    matrices = []
    for buckets, signs in rows:
        P = torch.zeros(6, 2, dtype=F64)
        P[range(6), buckets] = vector(*signs)
        matrices.append(P)
    c = 0.4
    moment = (1 + c) * L + c * torch.trace(L) * torch.eye(6, dtype=F64) - 2 * c * torch.diag(L.diagonal())
    smoothness = float(torch.linalg.eigvalsh(moment)[-1])
    assert smoothness == pytest.approx(12.439267263126, rel=1e-13)
    close(BalancedCountSketch(rank=2).expected_smoothness(L), smoothness)

    def f(x):
        return 0.5 * x @ L @ x - b @ x

    minimum = float(f(torch.linalg.solve(L, b)))
    trace, _ = run(
        f,
        6,
        given(matrices, nu=3.0, smoothness=smoothness),
        4,
        smoothness=smoothness,
        strong_convexity=0.25,
        schedule="strongly convex",
    )
    points = [
        [
            0.160781174461,
            0.08039058723051,
            -0.160781174461,
            0.08039058723051,
            -0.160781174461,
            -0.08039058723051,
        ],
        [
            0.2578931371105,
            0.0393409753762,
            -0.1384190128718,
            0.1635387414942,
            -0.1336953709925,
            -0.1635387414942,
        ],
        [
            0.371475042408,
            0.1597062461721,
            -0.03786040775022,
            0.2623588946435,
            -0.2184064885856,
            -0.07599112269532,
        ],
        [
            0.5347254827893,
            0.2976458948987,
            -0.01485746973833,
            0.2937209298831,
            -0.2377943647808,
            0.03409660214085,
        ],
    ]
    gaps = [0.8494031622168, 0.786171854579, 0.6283472751513, 0.5083212921691]
    for (x, _, value), point, gap in zip(trace, points, gaps, strict=True):
        close(x, point)
        close(value - minimum, gap)
    close(
        trace[-1][1],
        [
            1.480284596934,
            0.9592771629606,
            0.1567081257399,
            0.7320031008529,
            -0.5417544950766,
            0.3832944675916,
        ],
    )


def test_unified_schedule_on_ridge_logistic_regression():
    rows = torch.tensor([[1, 2, 0], [0, 1, -1], [2, 0, 1], [-1, 1, 1]], dtype=F64)
    labels = vector(1, -1, 1, -1)
    units = [
        (1 / 3, 2 / 3, 2 / 3),
        (2 / 3, 1 / 3, -2 / 3),
        (2 / 3, -2 / 3, 1 / 3),
        (0, 0.6, 0.8),
        (6 / 7, -2 / 7, 3 / 7),
    ]
    L = rows.T @ rows / 16 + 0.1 * torch.eye(3, dtype=F64)
    smoothness = Haar(rank=1).expected_smoothness(L)
    assert smoothness == pytest.approx(1.3971314297883, rel=1e-12)
    sketch = given([math.sqrt(3) * vector(*u)[:, None] for u in units], nu=3.0, smoothness=smoothness)

    def f(w):
        return torch.log1p(torch.exp(-labels * (rows @ w))).mean() + 0.05 * w @ w

    trace, opt = run(f, 3, sketch, 5, smoothness=L, strong_convexity=0.1)
    points = [
        [0.1789380688672, 0.3578761377344, 0.3578761377344],
        [0.4051547754398, 0.3608470302251, -0.08861549042936],
        [0.8474133251122, -0.2369381279208, 0.1977553870017],
        [0.7574623292169, -0.1274212525535, 0.2921353989444],
        [1.026237120948, -0.2225572683227, 0.4358560253611],
    ]
    for (x, _, _), point in zip(trace, points, strict=True):
        close(x, point)
    close(trace[-1][1], [0.9406401197732, -0.2055549434871, 0.4124666351658])
    close(trace[-1][2], 0.3917038922796)
    close(opt.param_groups[0]["A"], 2.924359823324)


def test_single_coordinates_drawn_by_importance():
    L = torch.tensor([[4, 1, 0], [1, 1, 0.25], [0, 0.25, 0.25]], dtype=F64)
    b, p = vector(1, 1, 1), vector(4, 2, 1) / 7
    drawn = [0, 1, 0, 2, 1]
    columns = [torch.eye(3, dtype=F64)[:, [i]] / p[i].sqrt() for i in drawn]
    steps = tuple(float(p[i] / L[i, i]) for i in drawn)
    trace, _ = run(
        lambda x: 0.5 * x @ L @ x - b @ x,
        3,
        given(columns, nu=12.25, smoothness=1.0, short_steps=steps),
        5,
        smoothness=1.0,
        schedule="convex",
    )
    close(trace[-1][0], [0.08768221574344, 0.2234147230321, 2.755612244898])
    close(trace[-1][1], [0.07725947521866, 0.1613234069138, 1.252551020408])


def nesterov(gradient, x, largest, mu, steps, schedule):
    """The classical method in two sequences, stated on its own."""
    y, t, points = x.clone(), 1.0, []
    root = math.sqrt(mu / largest)
    for k in range(steps):
        after = y - gradient(y) / largest
        if schedule == "strongly convex":
            momentum = (1 - root) / (1 + root)
        elif schedule == "convex":
            momentum = k / (k + 3)  # θ_{k+1}(1/θ_k − 1) with θ_k = 2/(k+2)
        else:
            t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
            momentum, t = (t - 1) / t_next, t_next
        y, x = after + momentum * (after - x), after
        points.append(x)
    return points


@pytest.mark.parametrize("schedule", ["unified", "convex", "strongly convex"])
@pytest.mark.parametrize("family", [Haar, BalancedCountSketch])
def test_in_the_whole_space_it_is_nesterovs_method(schedule, family):
    d, steps = 40, 500
    generator = torch.Generator().manual_seed(3)
    A = torch.randn(d, d, generator=generator, dtype=F64)
    L = A @ A.T / d + 0.05 * torch.eye(d, dtype=F64)
    target = torch.randn(d, generator=generator, dtype=F64)
    eigenvalues = torch.linalg.eigvalsh(L)
    largest, mu = float(eigenvalues[-1]), float(eigenvalues[0])

    def f(x):
        return 0.5 * (x - target) @ L @ (x - target)

    convexity = mu if schedule == "strongly convex" else 0.0
    trace, _ = run(f, d, family(rank=d), steps, smoothness=L, strong_convexity=convexity, schedule=schedule)
    classical = nesterov(lambda x: L @ (x - target), torch.zeros(d, dtype=F64), largest, mu, steps, schedule)
    worst = max(float((a[0] - b).abs().max()) for a, b in zip(trace, classical, strict=True))
    assert worst < 1e-12
