"""Every way of running a formula gives the same bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine import eager, native
from hasten.engine.eager import eager_pass
from hasten.engine.formula import Constant, Formula, Layout, trace
from hasten.engine.inductor import inductor_pass
from hasten.engine.native import native_pass
from hasten.engine.passes import compiled_pass
from hasten.engine.square_root import _corrected, sqrt
from hasten.shared_object import Unsupported

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
SIZES = (0, 1, 2, 7, 64, 70_000)


@pytest.fixture(autouse=True, scope="module")
def cache_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HASTEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def adamw(entry, number):
    param, grad = entry["param"], entry["grad"]
    exp_avg = number["beta1"] * entry["exp_avg"] + number["rest1"] * grad
    exp_avg_sq = number["beta2"] * entry["exp_avg_sq"] + number["rest2"] * (grad * grad)
    param = param * number["decay"] - number["lr"] * exp_avg / (
        exp_avg_sq.sqrt() / number["root"] + number["eps"]
    )
    return {"param": param, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, {}


ADAMW = Formula(
    ("param", "grad", "exp_avg", "exp_avg_sq"),
    ("beta1", "rest1", "beta2", "rest2", "decay", "lr", "root", "eps"),
    ("param", "exp_avg", "exp_avg_sq"),
    (),
    adamw,
    "adamw",
)
ADAMW_NUMBERS = [0.9, 0.1, 0.999, 0.001, 1 - 1e-5, 1e-3, 0.0316, 1e-8]


def drawn(dtypes, sizes, seed=0, positive=()):
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            (v.abs() if i in positive else v).to(dtype)
            for v in (torch.randn(size, generator=generator, dtype=F64) for size in sizes)
        ]
        for i, dtype in enumerate(dtypes)
    ]


def copied(slots):
    return [[tensor.clone() for tensor in slot] for slot in slots]


def assert_same(left, right, rtol=0.0, atol=0.0):
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=rtol, atol=atol, equal_nan=True)


def entrywise(function, inputs=("param", "grad"), numbers=("x", "y"), sums=()):
    """A formula that updates ``param``; each has a key of its own."""

    def whole(entry, number):
        values = function(entry, number)
        return (
            ({"param": values[0]}, dict(zip(sums, values[1:], strict=True)))
            if sums
            else ({"param": values}, {})
        )

    return Formula(tuple(inputs), tuple(numbers), ("param",), tuple(sums), whole, object())


# --- random formulas -------------------------------------------------------------------------

BINARY = ["add", "sub", "mul", "div", "maximum", "minimum", "where"]
UNARY = ["neg", "abs", "sqrt", "sign", "square", "clamp", "cube", "finite"]
LINES = st.lists(
    st.tuples(st.sampled_from(BINARY * 2 + UNARY), st.integers(0, 15), st.integers(0, 15)),
    min_size=6,
    max_size=14,
)


def line(name, a, b, number):
    """One line of a random formula.

    Denominators are kept from zero, so that the sign of a zero, which torch leaves open where
    maximum, minimum and clamp meet a tie, never grows into the sign of an infinity.
    """
    match name:
        case "add":
            return a + b
        case "sub":
            return number["x"] * a - b
        case "mul":
            return a * b * number["y"]
        case "div":
            return a / (abs(b) + 0.5)
        case "where":
            return torch.where((a > b) & ~(b == 0.25) | (a < -1), a, 1 - b)
        case "maximum" | "minimum":
            return getattr(torch, name)(a, b)
        case "sqrt":
            return a.abs().sqrt()
        case "clamp":
            return a.clamp(min=-0.75, max=number["y"].abs() * 8)
        case "cube":
            return a**3 - a**2 + abs(a) ** 0.5
        case "finite":
            return torch.where(torch.isfinite(a), a, b)
    return getattr(torch, name)(a)


def random_formula(lines):
    """Straight-line programs, each line using any two values before it: long, and rarely constant."""

    def function(entry, number):
        values = [entry["param"], entry["grad"], entry["state"]]
        for name, i, j in lines:
            values.append(line(name, values[-1 - i % len(values)], values[-1 - j % len(values)], number))
        param, state = values[-1], values[-2]
        return {"param": param, "state": state}, {"positive": param > 0}

    return Formula(
        ("param", "grad", "state"), ("x", "y"), ("param", "state"), ("positive",), function, tuple(lines)
    )


@settings(max_examples=30, deadline=None)
@given(
    lines=LINES,
    layout=st.one_of(
        st.tuples(st.lists(st.sampled_from([F32, BF16, F16]), min_size=3, max_size=3), st.just(F32)),
        st.tuples(st.lists(st.sampled_from([F32, F64, BF16]), min_size=3, max_size=3), st.just(F64)),
    ),
    stochastic=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_native_equals_eager_bitwise_for_random_formulas(lines, layout, stochastic, seed):
    dtypes, compute = layout
    formula = random_formula(lines)
    layout = Layout(tuple(dtypes), compute, "cpu", stochastic and dtypes[0] is BF16)
    slots = drawn(dtypes, SIZES, seed)
    slots[1][-1][:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    noise = [seed + t for t in range(len(SIZES))]
    left, right = copied(slots), copied(slots)
    sums = eager_pass(formula, layout)(left, [0.3, -1.7], noise)
    assert native_pass(formula, layout)(right, [0.3, -1.7], noise) == sums
    assert_same(left, right)
    assert all(torch.equal(a, b) or torch.isnan(a).any() for a, b in zip(left[1], slots[1], strict=True))


# --- known formulas --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [eager_pass, native_pass])
def test_adamw_in_float64_agrees_with_plain_torch(make):
    slots = drawn((F64,) * 4, SIZES, positive=(3,))
    expected = copied(slots)
    step = make(ADAMW, Layout((F64,) * 4, F64, "cpu"))
    beta1, rest1, beta2, rest2, decay, lr, root, eps = ADAMW_NUMBERS
    for _ in range(3):
        step(slots, ADAMW_NUMBERS, None)
        for p, g, m, v in zip(*expected, strict=True):
            m.mul_(beta1).add_(g, alpha=rest1)
            v.mul_(beta2).addcmul_(g, g, value=rest2)
            p.mul_(decay).addcdiv_(m, v.sqrt().div_(root).add_(eps), value=-lr)
    # Where the two terms of an average cancel, its error is relative to the terms, which are about 1.
    assert_same(slots, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("make", [eager_pass, native_pass])
def test_result_does_not_depend_on_how_the_tensors_are_grouped(make, monkeypatch):
    sizes = (5, 200, 9000, 40_000, 3, 130_001)
    layout = Layout((BF16, F32, F32, F32), F32, "cpu", stochastic=True)
    slots = drawn(layout.dtypes, sizes, positive=(3,))
    together, apart = copied(slots), copied(slots)
    step, noise = make(ADAMW, layout), [7**t for t in range(len(sizes))]
    step(together, ADAMW_NUMBERS, noise)
    monkeypatch.setattr(eager, "TILE", 1024)
    monkeypatch.setattr(eager, "SMALL", 10)
    for t in range(len(sizes)):
        step([[slot[t]] for slot in apart], ADAMW_NUMBERS, noise[t : t + 1])
    assert_same(together, apart)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    "function",
    [
        lambda e, n: torch.exp(e["grad"]),
        lambda e, n: e["param"] * torch.sigmoid(-8 * e["grad"]),
        lambda e, n: torch.tanh(e["grad"]) + 2,
        lambda e, n: torch.log(e["param"].abs() + 3),
        lambda e, n: torch.pow(e["param"].abs() + 0.5, n["x"]) + n["y"] ** e["param"],
        lambda e, n: torch.rsqrt(e["param"].abs() + 0.5) * (1 + e["grad"].square()).reciprocal(),
        lambda e, n: torch.expm1(e["grad"]) / 3 + torch.log1p(e["grad"].abs()) + 2,
    ],
)
def test_transcendental_functions_agree_to_1e_6(function, dtype):
    formula, layout = entrywise(function), Layout((dtype,) * 2, dtype, "cpu")
    slots = drawn((dtype,) * 2, (70_000, 3))
    left, right = copied(slots), copied(slots)
    eager_pass(formula, layout)(left, [1.3, 0.7], None)
    native_pass(formula, layout)(right, [1.3, 0.7], None)
    assert_same(left, right, rtol=1e-6 if dtype is F32 else 1e-12)
    plain = function(dict(zip(("param", "grad"), (s[0] for s in slots), strict=True)), {"x": 1.3, "y": 0.7})
    torch.testing.assert_close(right[0][0], plain, rtol=2e-6 if dtype is F32 else 1e-12, atol=0.0)


SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 1e-40, -2.0, 3e38])


@pytest.mark.parametrize("make", [eager_pass, native_pass])
@pytest.mark.parametrize(
    "function",
    [
        lambda e, n: torch.maximum(e["param"], e["grad"]),
        lambda e, n: torch.minimum(e["param"], e["grad"]),
        lambda e, n: torch.sign(e["grad"]),
        lambda e, n: e["grad"].clamp(-1.0, 1.0),
        lambda e, n: e["grad"].clamp(max=0.5),
        lambda e, n: torch.clamp_min(e["grad"], n["x"]),
        lambda e, n: torch.relu(e["grad"]),
        lambda e, n: torch.where(torch.isnan(e["grad"]) | torch.isinf(e["param"]), e["param"], 0.0),
        lambda e, n: torch.where(e["grad"].isfinite() ^ (e["grad"] != e["param"]), 1.0, -e["grad"]),
        lambda e, n: torch.copysign(e["param"], e["grad"]),
        lambda e, n: abs(e["grad"]) / e["param"],
        lambda e, n: e["grad"].sqrt(),
        lambda e, n: torch.sigmoid(e["grad"]),
    ],
)
def test_special_values_are_treated_as_torch_does(make, function):
    left = SPECIAL.repeat_interleave(len(SPECIAL)).repeat(20)
    right = SPECIAL.repeat(len(SPECIAL)).repeat(20)
    expected = function({"param": left, "grad": right}, {"x": torch.tensor(0.5)})
    make(entrywise(function), Layout((F32, F32), F32, "cpu"))([[left], [right]], [0.5, 0.0], None)
    torch.testing.assert_close(left, expected, rtol=1e-6, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_every_sixteen_bit_pattern_is_loaded_and_stored_as_torch_does(dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    other = torch.linspace(-3, 3, 2**16)
    result = every.clone()
    formula = entrywise(lambda e, n: e["param"] * e["grad"])
    native_pass(formula, Layout((dtype, F32), F32, "cpu"))([[result], [other]], [0.0, 0.0], None)
    torch.testing.assert_close(result, (every.float() * other).to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("make", [eager_pass, native_pass])
def test_sums_are_accumulated_in_float64(make):
    formula = entrywise(
        lambda e, n: (e["param"] + n["x"], e["grad"] * e["grad"], e["param"], ~torch.isfinite(e["grad"])),
        sums=("square", "old", "bad"),
    )
    slots = drawn((F32, F32), SIZES)
    slots[1][-1][17] = 2e19
    old = copied(slots)
    for t, found in enumerate(make(formula, Layout((F32, F32), F32, "cpu"))(slots, [1.0, 0.0], None)):
        square, first = (old[1][t] * old[1][t]).double().sum().item(), old[0][t].double().sum().item()
        assert found == pytest.approx([square, first, 0.0], rel=1e-12, abs=1e-12)
    assert_same([slots[0]], [[tensor + 1.0 for tensor in old[0]]])


def test_native_sums_do_not_depend_on_the_number_of_threads():
    formula = entrywise(lambda e, n: (e["param"], e["param"] * e["grad"]), sums=("dot",))
    step, slots = native_pass(formula, Layout((F32, F32), F32, "cpu")), drawn((F32, F32), (300_001, 5))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(step(slots, [0.0, 0.0], None))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("make", [eager_pass, native_pass])
def test_exchange_of_two_inputs(make):
    formula = Formula(
        ("a", "b"), (), ("a", "b"), (), lambda e, n: ({"a": e["b"], "b": e["a"]}, {}), "exchange"
    )
    slots = drawn((F32, F32), (5, 20_000))
    old = copied(slots)
    make(formula, Layout((F32, F32), F32, "cpu"))(slots, [], None)
    assert_same(slots, old[::-1])


def test_eager_runs_formulas_that_cannot_be_traced():
    def function(entry, number):
        return entry["param"].cumsum(0) if entry["grad"].sum() > 1e9 else entry["param"] - entry["grad"]

    formula, layout = entrywise(function), Layout((F32, F32), F32, "cpu")
    with pytest.raises(Unsupported, match="cannot be traced"):
        native_pass(formula, layout)
    slots = drawn((F32, F32), SIZES)
    expected = [[p - g for p, g in zip(*slots, strict=True)]]
    eager_pass(formula, layout)(slots, [0.0, 0.0], None)
    assert_same(slots[:1], expected)


# --- the correctly rounded square root -------------------------------------------------------


def test_square_roots_are_correctly_rounded():
    numpy = pytest.importorskip("numpy")
    generator = torch.Generator().manual_seed(0)
    x = 10.0 ** (torch.rand(100_000, generator=generator, dtype=F64) * 628 - 320)
    x = torch.cat([x, torch.tensor([0.0, float("inf"), 5e-324, 1.7e308], dtype=F64)])
    exact = torch.from_numpy(numpy.sqrt(x.numpy()))
    assert torch.equal(sqrt(x), exact)
    assert torch.equal(_corrected(x), exact)
    single = x.float()
    exact = torch.from_numpy(numpy.sqrt(single.numpy()))
    assert torch.equal(sqrt(single), exact)
    assert torch.equal(torch.sqrt(single.double()).float(), exact)


# --- what cannot be compiled -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda e, n: torch.lerp(e["param"], e["grad"], 0.5), "lerp"),
        (lambda e, n: e["param"].cumsum(0), "cumsum"),
        (lambda e, n: torch.add(e["param"], e["grad"], alpha=2), "alpha"),
        (lambda e, n: torch.div(e["param"], e["grad"], rounding_mode="floor"), "rounding_mode"),
        (lambda e, n: e["param"] & e["grad"], "logical_and"),
        (lambda e, n: (e["param"] > 0) + (e["grad"] > 0), "add"),
        (lambda e, n: e["param"] if e["grad"] > 0 else e["grad"], "traced"),
        (lambda e, n: e["missing"], "missing"),
    ],
)
def test_what_is_not_elementwise_is_named(function, reason):
    with pytest.raises(Unsupported, match=reason):
        native_pass(entrywise(function), Layout((F32, F32), F32, "cpu"))


def test_constants_and_synonyms_are_lowered():
    program = trace(entrywise(lambda e, n: torch.zeros_like(e["param"])))
    assert program.writes == (Constant(0.0),)
    program = trace(entrywise(lambda e, n: e["param"].clip(min=0) ** 2))
    assert [i.operation for i in program.instructions] == ["clamp", "square"]
    assert program.instructions[0].operands == (0, Constant(0.0), Constant(None))


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (Layout((F32,), F32, "cpu"), "2 inputs"),
        (Layout((F32, F32), F16, "cpu"), "float16"),
        (Layout((F32, F32), F32, "cpu", stochastic=True), "bfloat16"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout, reason):
    for make in (eager_pass, native_pass, inductor_pass):
        with pytest.raises(ValueError, match=reason):
            make(entrywise(lambda e, n: e["param"] + e["grad"]), layout)


# --- torch.compile ---------------------------------------------------------------------------


def assert_inductor_agrees(formula, layout, numbers, sizes=(1, 0, 7, 40_000, 2, 70_000)):
    slots = drawn(layout.dtypes, sizes, positive=(3,))
    step = inductor_pass(formula, layout)
    noise = [3**t for t in range(len(sizes))]
    torch._dynamo.utils.counters.clear()
    for count in (len(sizes), 1, 4, 3):
        part = [slot[:count] for slot in slots]
        left, right = copied(part), copied(part)
        found = step(left, numbers, noise[:count])
        for a, b in zip(eager_pass(formula, layout)(right, numbers, noise[:count]), found, strict=True):
            assert a == pytest.approx(b, rel=1e-12)
        assert_same(left, right)
    assert not torch._dynamo.utils.counters["stats"], "a new shape compiled a new graph"


def test_inductor_equals_eager_bitwise():
    assert_inductor_agrees(ADAMW, Layout((F32,) * 4, F32, "cpu"), ADAMW_NUMBERS)


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", [(BF16, F32, F32, F32), (BF16, BF16, BF16, F32), (F64,) * 4])
def test_inductor_equals_eager_bitwise_in_other_dtypes(dtypes):
    compute = F64 if dtypes[0] is F64 else F32
    assert_inductor_agrees(ADAMW, Layout(dtypes, compute, "cpu", dtypes[0] is BF16), ADAMW_NUMBERS)


@pytest.mark.slow
def test_inductor_sums():
    formula = entrywise(
        lambda e, n: (e["param"] + n["x"], e["grad"] * e["grad"], e["param"] > 0), sums=("square", "count")
    )
    assert_inductor_agrees(formula, Layout((F32, F32), F32, "cpu"), [0.5, 0.0])


@pytest.mark.slow
def test_compiled_pass_turns_to_inductor_for_what_has_no_native_form():
    formula = entrywise(lambda e, n: torch.lerp(e["param"], e["grad"], 0.25))
    slots = drawn((F32, F32), (5,))
    expected = [[torch.lerp(p, g, 0.25) for p, g in zip(*slots, strict=True)]]
    compiled_pass(formula, Layout((F32, F32), F32, "cpu"))(slots, [0.0, 0.0], None)
    assert_same(slots[:1], expected, rtol=1e-6)


def test_blocks_never_straddle_a_multiple_of_2_to_the_32():
    assert 2**32 % native.BLOCK == 0
