from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.distributed import Compressor, DCTColumns, LowRank, Sign, Sketched, TopK
from hasten.distributed.compressors import (
    Average,
    Gather,
    Message,
    averaged,
    finish,
    largest,
    packed,
    unpacked,
)
from hasten.sketches import BalancedCountSketch, CountSketch, Haar, PerLayer, StridedSigns

EVERY = [TopK(4), Sign(), Sketched(BalancedCountSketch(ratio=4)), LowRank(2), DCTColumns(2)]
SHAPES = [(6, 4), (3, 7), (5, 2, 3), (9,), (1, 1)]


def name(compressor: Compressor) -> str:
    return type(compressor).__name__


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def exchange(
    compressor: Compressor, workers: Sequence[Sequence[Tensor]], step: int = 0
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The means (equal to the bit on all workers), and by worker and tensor m − C(m)."""
    messages = [
        [Message(m.clone(), torch.full_like(m, math.nan), i, step) for i, m in enumerate(ms)]
        for ms in workers
    ]
    averaged(compressor, messages)
    for theirs in messages:
        for a, b in zip(messages[0], theirs, strict=True):
            assert torch.equal(a.mean, b.mean) or not a.mean.isfinite().all()
    return [message.mean for message in messages[0]], [[message.m for message in ms] for ms in messages]


def squared(m: Tensor) -> float:
    return float(m.square().sum())


entries = st.floats(-1e6, 1e6, allow_nan=False, width=64).map(lambda x: x if abs(x) > 1e-6 else 0.0)
vectors = st.lists(entries, min_size=1, max_size=30).map(lambda xs: torch.tensor(xs, dtype=torch.float64))


@st.composite
def matrices(draw: Callable, number: int = 1) -> Tensor:
    shape = number, draw(st.integers(1, 6)), draw(st.integers(1, 6))
    count = math.prod(shape)
    return torch.tensor(draw(st.lists(entries, min_size=count, max_size=count)), dtype=torch.float64).view(
        shape
    )


@given(vectors, st.integers(1, 8))
@settings(deadline=None)
def test_top_k_contracts_by_its_share(m: Tensor, ratio: int) -> None:
    _, [[error]] = exchange(TopK(ratio), [[m]])
    k = math.ceil(m.numel() / ratio)
    assert squared(error) <= (1 - k / m.numel()) * squared(m) * (1 + 1e-12)
    assert int((error != m).sum()) <= k


@given(vectors)
@settings(deadline=None)
def test_signs_contract_by_the_density(m: Tensor) -> None:
    _, [[error]] = exchange(Sign(), [[m]])
    d = m.numel()
    expected = squared(m) - float(m.abs().sum()) ** 2 / d
    assert abs(squared(error) - expected) <= 1e-12 * squared(m)


@given(matrices(2), st.integers(1, 6))
@settings(deadline=None)
def test_cosine_columns_contract_over_all_workers_together(Ms: Tensor, rank: int) -> None:
    _, errors = exchange(DCTColumns(rank), [[M] for M in Ms])
    left = 1 - min(1, rank / min(Ms[0].shape))
    assert sum(squared(e) for (e,) in errors) <= (left + 1e-12) * squared(Ms)


@given(matrices(), st.integers(1, 6), st.integers(0, 5))
@settings(deadline=None)
def test_low_rank_is_a_projection(Ms: Tensor, rank: int, seed: int) -> None:
    M = Ms[0]
    [C], [[error]] = exchange(LowRank(rank, seed=seed), [[M]])
    assert abs(squared(C) + squared(error) - squared(M)) <= 1e-9 * squared(M)
    [again], _ = exchange(LowRank(rank, seed=seed), [[C]])
    torch.testing.assert_close(again, C, rtol=0, atol=1e-9 * math.sqrt(squared(M)) + 1e-12)


def test_low_rank_contracts_by_its_share_from_a_random_start() -> None:
    M = normal(6, 8) * torch.arange(1.0, 9.0)
    found = torch.tensor([squared(exchange(LowRank(2, seed=s), [[M]])[1][0][0]) for s in range(300)])
    assert float(found.mean()) <= (1 - 2 / 8) * squared(M)


@pytest.mark.parametrize(
    "sketch", [BalancedCountSketch(ratio=4), CountSketch(ratio=4), StridedSigns(ratio=4), Haar(ratio=4)]
)
def test_shrunken_sketches_contract_in_expectation(sketch: object) -> None:
    m, draws = normal(24) + 1, 600
    found = torch.tensor([squared(exchange(Sketched(sketch), [[m]], step)[1][0][0]) for step in range(draws)])
    bound = (1 - 1 / sketch.nu(24)) * squared(m)
    assert float(found.mean()) <= bound + 5 * float(found.std()) / math.sqrt(draws)


@given(st.integers(1, 3).flatmap(matrices), st.sampled_from(EVERY), st.integers(0, 9))
@settings(deadline=None)
def test_what_arrives_is_what_the_workers_no_longer_have(
    Ms: Tensor, compressor: Compressor, step: int
) -> None:
    [mean], errors = exchange(compressor, [[M] for M in Ms], step)
    taken = sum(M - e for M, (e,) in zip(Ms, errors, strict=True)) / len(Ms)
    torch.testing.assert_close(mean, taken, rtol=0, atol=1e-14 * float(Ms.abs().sum()) + 1e-15)


# Independent statements of C, for all workers' tensors of one parameter.


def dense_top_k(ms: list[Tensor], index: int, step: int) -> list[Tensor]:
    found = []
    for m in ms:
        values = m.flatten().tolist()
        k = -(-len(values) // 4)
        kept = sorted(range(len(values)), key=lambda j: -abs(values[j]))[:k]
        found.append(m * torch.tensor([j in kept for j in range(len(values))]).view(m.shape))
    return found


def dense_sign(ms: list[Tensor], index: int, step: int) -> list[Tensor]:
    return [m.abs().sum() / m.numel() * m.sign() for m in ms]


def dense_sketched(ms: list[Tensor], index: int, step: int) -> list[Tensor]:
    n = ms[0].numel()
    sketch = BalancedCountSketch(rank=-(-n // 4))
    P = sketch.draw(n, seed=0, step=step, block=index).columns(dtype=torch.float64).T
    return [(P @ P.T @ m.flatten() / sketch.nu(n)).view(m.shape) for m in ms]


def dense_low_rank(ms: list[Tensor], index: int, step: int) -> list[Tensor]:
    """The projection on the range of mean(M) Q, from the singular vectors of it."""
    matrices = [m.reshape(m.shape[0], -1) for m in ms]
    rank = min(2, *matrices[0].shape)
    Q = LowRank(2).start(Message(ms[0], ms[0], index, step))
    U = torch.linalg.svd(sum(matrices) / len(ms) @ Q, full_matrices=False)[0][:, :rank]
    return [(U @ U.T @ M).view(m.shape) for M, m in zip(matrices, ms, strict=True)]


def dense_cosine(ms: list[Tensor], index: int, step: int) -> list[Tensor]:
    matrices = [m.reshape(m.shape[0], -1) for m in ms]
    turned = matrices[0].shape[0] < matrices[0].shape[1]
    matrices = [M.T if turned else M for M in matrices]
    n = matrices[0].shape[1]
    D = torch.tensor(
        [
            [math.sqrt((1 if k == 0 else 2) / n) * math.cos(math.pi * k * (j + 0.5) / n) for j in range(n)]
            for k in range(n)
        ],
        dtype=torch.float64,
    )
    energy = sum((M @ D.T).square().sum(0) for M in matrices).tolist()
    kept = sorted(range(n), key=lambda k: -energy[k])[:2]
    projected = [M @ D[kept].T @ D[kept] for M in matrices]
    return [(C.T if turned else C).reshape(m.shape) for C, m in zip(projected, ms, strict=True)]


DENSE = dict(
    zip(
        map(name, EVERY), [dense_top_k, dense_sign, dense_sketched, dense_low_rank, dense_cosine], strict=True
    )
)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("compressor", EVERY, ids=name)
def test_means_and_errors_are_those_of_a_dense_statement(compressor: Compressor, world: int) -> None:
    workers = [[normal(*shape, seed=10 * w + i) for i, shape in enumerate(SHAPES)] for w in range(world)]
    means, errors = exchange(compressor, workers, step=3)
    for i in range(len(SHAPES)):
        expected = DENSE[name(compressor)]([ms[i] for ms in workers], i, 3)
        torch.testing.assert_close(means[i], sum(expected) / world, rtol=0, atol=1e-12)
        for w in range(world):
            torch.testing.assert_close(errors[w][i], workers[w][i] - expected[w], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "compressor",
    [TopK(1), Sketched(BalancedCountSketch(ratio=1)), LowRank(30), DCTColumns(30)],
    ids=name,
)
def test_without_compression_the_mean_is_exact_and_nothing_is_left(compressor: Compressor) -> None:
    workers = [[normal(*shape, seed=10 * w + i) for i, shape in enumerate(SHAPES)] for w in range(3)]
    means, errors = exchange(compressor, workers)
    for i, mean in enumerate(means):
        torch.testing.assert_close(mean, sum(ms[i] for ms in workers) / 3, rtol=0, atol=1e-12)
        own = [left[i] for left in errors]
        # The range of mean(M) need not hold every worker's columns, so of LowRank only the mean is nothing.
        left = [sum(own)] if isinstance(compressor, LowRank) else own
        assert all(float(e.abs().max()) < 1e-12 for e in left)


def test_warm_started_low_rank_finds_the_leading_singular_vectors() -> None:
    left, right = (torch.linalg.qr(normal(n, n, seed=n))[0] for n in (8, 6))
    spectrum = torch.tensor([5.0, 3.0, 1.0, 0.5, 0.2, 0.1], dtype=torch.float64)
    M = left[:, :6] @ torch.diag(spectrum) @ right.T
    memory = None
    for step in range(40):
        message = Message(M.clone(), torch.empty_like(M), 0, step, memory)
        averaged(LowRank(2), [[message]])
        memory = message.memory
    assert squared(message.m) == pytest.approx(float(spectrum[2:].square().sum()), rel=1e-12)


def test_low_rank_keeps_its_start_while_there_is_nothing_to_send() -> None:
    kept = torch.ones(3, 1, dtype=torch.float64)
    message = Message(torch.zeros(4, 3, dtype=torch.float64), torch.empty(4, 3).double(), memory=kept)
    averaged(LowRank(1), [[message]])
    assert torch.equal(message.memory, kept)
    assert not message.mean.any()
    assert Message(normal(4, 3), normal(4, 3)).memory is None
    cold = Message(normal(4, 3), normal(4, 3))
    averaged(LowRank(1, warm_start=False), [[cold]])
    assert cold.memory is None


def test_low_rank_draws_another_start_for_each_parameter_and_exchange() -> None:
    M = normal(8, 6)
    cold = LowRank(1, warm_start=False)
    (first, second), (third, _) = (exchange(cold, [[M, M]], step)[0] for step in (0, 1))
    for other in (second, third):
        assert squared(first - other) > 1e-3 * squared(M)
    assert torch.equal(first, exchange(cold, [[M, M]])[0][0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("compressor", EVERY, ids=name)
@given(st.integers(0, 1), st.integers(0, 39))
@settings(max_examples=20, deadline=None)
def test_what_is_not_finite_on_one_worker_is_not_finite_in_the_mean(
    compressor: Compressor, value: float, worker: int, place: int
) -> None:
    workers = [[normal(8, 5, seed=w)] for w in range(2)]
    workers[worker][0].view(-1)[place] = value
    [mean], _ = exchange(compressor, workers)
    assert not mean.isfinite().all()


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("compressor", [*EVERY, TopK(4, torch.bfloat16)], ids=repr)
def test_payload_is_what_is_asked_for(compressor: Compressor, itemsize: int) -> None:
    dtype = {4: torch.float32, 8: torch.float64}[itemsize]
    messages = [
        Message(normal(*s, dtype=dtype), torch.empty(s, dtype=dtype), i) for i, s in enumerate(SHAPES)
    ]
    rounds, asked = compressor.exchange(messages), 0
    question = next(rounds)
    for last in [False] * (compressor.rounds - 1) + [True]:
        assert isinstance(question, Gather if compressor.gathers else Average)
        asked += sum(t.nbytes for t in question.tensors)
        answer = [question.tensors] if compressor.gathers else question.tensors
        if last:
            finish(compressor, rounds, answer)
        else:
            question = rounds.send(answer)
    assert asked == sum(compressor.payload(shape, itemsize) for shape in SHAPES)
    remembered = [None if m.memory is None else tuple(m.memory.shape) for m in messages]
    assert remembered == [compressor.remembered(shape) for shape in SHAPES]


def test_a_compressor_that_asks_too_much_is_told() -> None:
    class Curious(TopK):
        def exchange(self, messages):
            yield from super().exchange(messages)
            yield Average([])

    with pytest.raises(RuntimeError, match="asks more than 1 questions"):
        exchange(Curious(2), [[normal(4)]])


def test_values_may_travel_in_half_the_bits() -> None:
    m = normal(40, dtype=torch.float32)
    [mean], [[error]] = exchange(TopK(4, torch.bfloat16), [[m]])
    at = m.abs().topk(10).indices
    assert torch.equal(mean[at], m[at].bfloat16().float())
    assert torch.equal(mean + error, m)
    assert error[at].any()


@given(st.integers(1, 20_000), st.integers(1, 5000), st.sampled_from(["normal", "ties", "comb", "zeros"]))
@settings(max_examples=60, deadline=None)
def test_the_largest_are_the_largest(entries: int, k: int, kind: str) -> None:
    k = min(k, entries)
    m = normal(entries, seed=entries)
    if kind == "ties":
        m = m.round()
    elif kind == "comb":  # what a sample at regular places sees is not like the rest
        m[::64] *= 1e3
    elif kind == "zeros":
        m[entries // 100 :] = 0
    found = largest(m, k)
    assert found.unique().numel() == k
    assert torch.equal(m.abs()[found].sort().values, m.abs().sort().values[entries - k :])


def test_what_is_not_a_number_is_largest() -> None:
    m = normal(10_000)
    m[77] = math.nan
    assert 77 in largest(m, 5)


@given(st.lists(st.booleans(), max_size=40))
@settings(deadline=None)
def test_bits_are_packed_and_unpacked(bits: list[bool]) -> None:
    given = torch.tensor(bits, dtype=torch.bool)
    found = packed(given)
    assert (found.dtype, found.numel()) == (torch.uint8, -(-len(bits) // 8))
    assert torch.equal(unpacked(found, len(bits)), given)


def test_saving_depends_on_how_the_message_travels() -> None:
    assert TopK(10).saves((100, 100), 4, 1)
    assert TopK(10).saves((100, 100), 4, 9)  # 2·8·0.1·d = 9·8·... of an all-reduce's 8 d
    assert not TopK(10).saves((100, 100), 4, 10)
    assert LowRank(4).saves((100, 100), 4, 1000)
    assert not LowRank(50).saves((100, 100), 4, 2)
    assert not LowRank(1).saves((100,), 4, 2)
    assert not Sign().saves((0, 3), 4, 2)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            lambda: TopK(0.5),
            ValueError,
            "TopK: ratio = 0.5 is not allowed; it must be a number of at least 1",
        ),
        (lambda: TopK(math.nan), ValueError, "ratio = nan"),
        (lambda: TopK(10, torch.int8), ValueError, "values = torch.int8"),
        (lambda: LowRank(0), ValueError, "LowRank: rank = 0 is not allowed"),
        (lambda: LowRank(1.5), ValueError, "rank = 1.5"),
        (lambda: LowRank(1, warm_start=1), ValueError, "warm_start = 1"),
        (lambda: LowRank(1, seed=0.5), TypeError, "seed = 0.5"),
        (lambda: DCTColumns(True), ValueError, "rank = True"),
        (lambda: Sketched(3), TypeError, "Sketched: sketch = 3 is not allowed"),
        (lambda: Sketched(BalancedCountSketch(rank=3)), TypeError, "with a ratio"),
        (lambda: Sketched(PerLayer(BalancedCountSketch(ratio=3))), TypeError, "by itself"),
        (lambda: Sketched(seed="x"), TypeError, "seed = 'x'"),
    ],
)
def test_bad_arguments_are_named(make: Callable, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()
