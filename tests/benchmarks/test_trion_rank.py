"""The claim on low rank: what it measures, and the whole of it in quick mode."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")

from benchmarks.claims import trion_rank
from hasten.linalg.cosine import cosine_rows


def test_shares_are_known_where_the_singular_vectors_are() -> None:
    """Three rows of the basis with weights 3, 2 and 1: 13/14 of the energy in two, for both bases of theirs."""
    D = cosine_rows(torch.tensor([1, 4, 6]), 16, torch.float64)
    left = torch.linalg.qr(torch.randn(30, 3, dtype=torch.float64)).Q
    dct, svd, random = trion_rank.kept(left * torch.tensor([3.0, 2.0, 1.0]) @ D, 2)
    assert dct == pytest.approx(13 / 14, abs=1e-12)
    assert svd == pytest.approx(13 / 14, abs=1e-12)
    assert random < svd


def test_every_share_is_at_most_that_of_the_singular_vectors() -> None:
    for G in trion_rank.matrices().values():
        dct, svd, random = trion_rank.kept(G, 32)
        assert max(dct, random) <= svd <= 1
        assert dct >= 32 / 256 - 0.05


def test_ratios_are_taken_round_by_round() -> None:
    found = {trion_rank.MUON: [1.0, 2.0, 4.0], "half": [0.5, 1.0, 2.0]}
    assert trion_rank.ratios(found, "half") == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_trion_rank_in_quick_mode(tmp_path: Path) -> None:
    claim = trion_rank.run(quick=True, folder=tmp_path)
    claim.write(tmp_path)
    assert claim.quick
    assert claim.checks[0].holds, claim.checks[0]  # Trion at full rank is Muon without Nesterov
    assert "every row a random walk" in (tmp_path / "trion_rank.md").read_text("utf-8")
