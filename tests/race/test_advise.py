"""``hasten advise``: a table, a pick and a sentence; mistakes on one line."""

from __future__ import annotations

import pytest

from hasten.race.advice import advice, table
from hasten.race.cli import main
from hasten.theory import advise as theory_advise


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["advise", *arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), " ".join(out.split()), err


@pytest.mark.parametrize("cost", ["forward", "bytes", "reverse"])
def test_advice_on_the_digits(capsys: pytest.CaptureFixture[str], cost: str) -> None:
    pytest.importorskip("sklearn", reason="the data are scikit-learn's")
    status, out, err = call(capsys, "--problem", "digits", "--accuracy", "1e-2", "--cost", cost)
    assert (status, err) == (0, "")
    assert "d = 640 · λ_max = 5.22865 · effective rank 13.04 · μ = 0.001 · to 0.01" in out
    # The rule: r ≈ ρ = 13.04. The sketch does not pay where reverse mode is to be had.
    verdict = "Use the full method" if cost == "reverse" else "Use BalancedCountSketch of rank 13"
    assert verdict in out
    assert ("MB sent" in out) == (cost == "bytes")
    assert out.count("← pick") == 1


def test_advice_from_a_few_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(
        capsys, "--dimension", "1e6", "--largest", "2", "--effective-rank", "50", "--strong-convexity", "1e-5"
    )
    assert (status, err) == (0, "")
    assert "d = 1,000,000 · λ_max = 2 · effective rank 50 · μ = 1e-05 · to 0.0001" in out
    assert "BalancedCountSketch 50" in out
    assert "Coordinates" not in out  # which would need the diagonal


def test_the_table_shows_what_the_theory_says() -> None:
    found = advice(None, 1e-3, "forward", dimension=400.0, effective_rank=9.0)
    shown = table(found)
    columns = [list(column.cells) for column in shown.columns]
    assert shown.row_count == len(found.predictions)
    for k, prediction in enumerate(found.predictions):
        row = [str(column[k]) for column in columns]
        assert row[1:4] == [
            f"{prediction.rank:,}", f"{prediction.iterations:,}", f"{prediction.oracle_calls:,}"
        ]  # fmt: skip
        assert ("← pick" in row[-1]) == (prediction is found.pick)
        assert ("cheapest" in row[-1]) == (prediction is found.cheapest)
    assert columns[0][0].plain == "full Nesterov"
    again = theory_advise(found.predictions[0].known, 1e-3)
    assert [p.iterations for p in again.predictions] == [p.iterations for p in found.predictions]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --problem, or else --dimension and --effective-rank"),
        (["--dimension", "10"], "give --problem, or else --dimension and --effective-rank"),
        (["--problem", "digist"], "unknown problem 'digist': did you mean 'digits'?"),
        (["--problem", "digits", "--dimension", "3"], "leave out --dimension"),
        (["--problem", "quadratic-inverse", "--accuracy", "2"], "accuracy = 2.0"),
        (["--problem", "quadratic-inverse", "--cost", "byte"], "unknown cost 'byte': did you mean 'bytes'?"),
        (["--dimension", "2.5", "--effective-rank", "2"], "--dimension 2.5 must be a whole number"),
        (["--dimension", "nan", "--effective-rank", "2"], "--dimension nan must be a whole number"),
        (
            ["--dimension", "10", "--effective-rank", "11"],
            "--effective-rank 11 must be from 1 to the dimension",
        ),
        (["--dimension", "10", "--effective-rank", "2", "--largest", "-1"], "largest = -1.0"),
        (["--dimension", "10", "--effective-rank", "2", "--strong-convexity", "1"], "strong_convexity = 1.0"),
        (["--dimension", "10", "--effective-rank", "2", "--gap", "9"], "gap = 9.0"),
        (["--accuracy", "small"], "'--accuracy'"),
    ],
)
def test_a_mistake_is_one_line_and_a_failure(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, _, err = call(capsys, *arguments)
    assert status == 2
    assert message in err
    assert err.startswith("hasten: ")
    assert err.count("\n") == 1
