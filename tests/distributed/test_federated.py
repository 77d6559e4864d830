from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hasten
from hasten.distributed import Disagreement
from hasten.distributed.federated import SketchedMean, sketched
from hasten.sketches import BalancedCountSketch

SKETCH = BalancedCountSketch(ratio=4)
SHAPES = {"weight": (6, 5), "bias": (5,), "head.weight": (3, 4), "running_var": (5,)}


def model(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    arrays = {name: torch.randn(s, generator=generator, dtype=dtype) for name, s in SHAPES.items()}
    return {**arrays, "steps": torch.tensor(seed)}


def lifted(name: str, index: int, step: int, mean: Tensor) -> Tensor:
    """P Pᵀ of a matrix, what it is of a vector: stated anew."""
    if mean.dim() < 2:
        return mean
    draw = BalancedCountSketch(rank=-(-mean.numel() // 4)).draw(mean.numel(), seed=7, step=step, block=index)
    P = draw.columns(dtype=torch.float64).T
    return (P @ (P.T @ mean.reshape(-1))).view(mean.shape)


@settings(max_examples=25, deadline=None)
@given(
    examples=st.lists(st.integers(1, 10**6), min_size=1, max_size=5),
    answered=st.sets(st.integers(0, 4)),
    rounds=st.integers(1, 3),
)
def test_the_model_moves_by_the_sketch_of_the_weighted_mean(
    examples: list[int], answered: set[int], rounds: int
) -> None:
    server = SketchedMean(SKETCH, lambda params: hasten.SGD(params, lr=0.5), averaged=["running_var"], seed=7)
    arrays = expected = model(0)
    for step in range(1, rounds + 1):
        told = server.begin(arrays)
        clients = {i: model(10 * step + i) for i in range(len(examples)) if i in answered}
        replies = [(examples[i], sketched(arrays, after, told, SKETCH)) for i, after in clients.items()]
        arrays = server.finish(replies)
        total = sum(examples[i] for i in clients)
        for index, name in enumerate(SHAPES if clients else ()):
            mean = sum(examples[i] * after[name] for i, after in clients.items()) / total
            if name == "running_var":
                moved = mean
            else:
                moved = expected[name] - 0.5 * lifted(name, index, step, expected[name] - mean)
            expected = {**expected, name: moved}
        assert arrays.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(arrays[name], value, rtol=0, atol=1e-12)


def test_clients_send_r_numbers() -> None:
    server = SketchedMean(SKETCH)
    before = model(0, torch.float32)
    told = server.begin(before, clients=3)
    sent = sketched(before, model(1, torch.float32), told, SKETCH)
    assert [(tuple(t.shape), t.dtype) for t in sent.values()] == [((8 + 5 + 3 + 5,), torch.float32)]
    server.finish([(1, sent), (1, sent)])
    received, given_out = (server.communication.parts[name] for name in ("displacements", "model"))
    assert (received.calls, received.payload, received.received, received.sent) == (2, 168, 168.0, 0.0)
    size = 4 * (30 + 5 + 12 + 5) + 8
    assert (given_out.payload, given_out.sent, given_out.received) == (3 * size, 3.0 * size, 0.0)


def test_rounds_draw_subspaces_of_their_own() -> None:
    server = SketchedMean(SKETCH)
    arrays = model(0)
    first = sketched(arrays, model(1), server.begin(arrays), SKETCH)
    second = sketched(arrays, model(1), server.begin(arrays), SKETCH)
    assert not any(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("weight", "spoil", "why"),
    [
        (0.0, {}, "number of examples is 0"),
        (float("nan"), {}, "number of examples is nan"),
        (-3.0, {}, "number of examples is -3"),
        (5.0, {"sketched displacement": torch.full((21,), torch.nan)}, "is not finite"),
        (5.0, {"sketched displacement": torch.ones(20)}, "expected is"),
        (5.0, {"extra": torch.ones(2)}, "expected is"),
    ],
)
def test_a_reply_that_cannot_be_used_is_left_out(weight: float, spoil: dict[str, Tensor], why: str) -> None:
    finished = []
    for bad in (True, False):
        server = SketchedMean(SKETCH)
        told = server.begin(model(0))
        good = [(float(n), sketched(model(0), model(n), told, SKETCH)) for n in (1, 2)]
        odd = (weight, {**sketched(model(0), model(3), told, SKETCH), **spoil})
        finished.append(server.finish([good[0], odd, good[1]] if bad else good))
        assert list(server.refused) == ([1] if bad else [])
        assert why in server.refused.get(1, why)
    assert all(torch.equal(finished[0][name], finished[1][name]) for name in finished[0])


def test_the_model_stays_where_nothing_usable_arrives() -> None:
    server = SketchedMean(SKETCH)
    server.begin(model(0))
    for replies in ([], [(0.0, {})]):
        arrays = server.finish(replies)
        assert all(torch.equal(arrays[name], t) for name, t in model(0).items())


def test_a_client_with_another_sketch_or_model_says_so() -> None:
    told = SketchedMean(SKETCH).begin(model(0))
    with pytest.raises(Disagreement, match=r"the client sketches by .*ratio=8.* the server by .*ratio=4"):
        sketched(model(0), model(1), told, BalancedCountSketch(ratio=8))
    with pytest.raises(ValueError, match="must have the same arrays"):
        sketched(model(0), {"weight": torch.zeros(2)}, told, SKETCH)
    with pytest.raises(ValueError, match="does the server use a SketchStrategy"):
        sketched(model(0), model(1), {}, SKETCH)


def test_a_round_starts_from_the_model_that_it_is_given() -> None:
    server = SketchedMean(outer=lambda params: hasten.SGD(params, lr=1.0, momentum=0.9))
    for start, end in ((0.0, 2.0), (10.0, 11.0)):  # what was between is not the server's work
        before, after = {"bias": torch.full((2,), start)}, {"bias": torch.full((2,), end)}
        moved = server.finish([(1, sketched(before, after, server.begin(before)))])
        assert moved["bias"].tolist() == [end, end]


def test_mistakes_of_the_server_are_answered() -> None:
    with pytest.raises(TypeError, match=r"outer = 3 is not allowed"):
        SketchedMean(outer=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="averaged = 'running_var' is not allowed"):
        SketchedMean(averaged="running_var")
    with pytest.raises(ValueError, match=r"averaged = \['varience'\] is not allowed; the model has"):
        SketchedMean(averaged=["varience"]).begin(model(0))
    with pytest.raises(RuntimeError, match="no round was begun"):
        SketchedMean().finish([])
    with pytest.raises(ValueError, match="no 'step'"):
        SketchedMean().load_state_dict({})


def advance(server: SketchedMean, arrays: dict[str, Tensor], rounds: range) -> dict[str, Tensor]:
    for r in rounds:
        told = server.begin(arrays)
        arrays = server.finish([(n, sketched(arrays, model(9 * r + n), told, SKETCH)) for n in (1, 2)])
    return arrays


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_server_resumes_bit_for_bit(dtype: torch.dtype) -> None:
    def make() -> SketchedMean:
        return SketchedMean(SKETCH, lambda params: hasten.Nesterov(params, lr=0.1))

    start = {name: t.to(dtype) if t.is_floating_point() else t for name, t in model(0).items()}
    whole = make()
    straight = advance(whole, start, range(4))
    first, second = make(), make()
    half = advance(first, start, range(2))
    second.load_state_dict(first.state_dict())
    resumed = advance(second, half, range(2, 4))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_without_flower_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import hasten.distributed.federated as federated

    # As if it were not installed, whoever imported it before.
    for name in ["flwr", *(name for name in sys.modules if name.startswith("flwr."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "hasten.distributed.flower", raising=False)
    with pytest.raises(ImportError, match=r"SketchMod needs Flower: pip install 'hasten\[federated\]'"):
        _ = federated.SketchMod
    with pytest.raises(AttributeError, match="has no attribute 'SketchedMod'"):
        _ = federated.SketchedMod
