"""The claim about matrix square roots in quick mode, and the statements that its errors come from."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="needs the extra: pip install 'hasten[race]'")

from benchmarks.claims import matrix_square_root
from benchmarks.claims.matrix_square_root import EIGHT, MPA, NS5, PADE


def test_claim_in_quick_mode(tmp_path: Path) -> None:
    claim = matrix_square_root.run(quick=True, folder=tmp_path)
    assert claim.quick
    claim.write(tmp_path)
    page = (tmp_path / "matrix_square_root.md").read_text("utf-8")
    assert "Quick mode" in page
    assert "Relative error of the gradient" in page
    assert len(claim.tables) == 5


def test_errors_by_condition() -> None:
    ten, thousand = (matrix_square_root.errors(condition, 2) for condition in (10, 1e3))
    assert ten[MPA].root < ten[NS5].root
    assert thousand[MPA].root > thousand[NS5].root
    assert ten[PADE].root < 1e-3 * ten[MPA].root
    assert thousand[EIGHT].gradient == pytest.approx(thousand[MPA].gradient, rel=1e-2)
    assert matrix_square_root.eight_steps_alone(10, 2) < 1e-5
    assert matrix_square_root.eight_steps_alone(100, 2) > 5e-3
