"""The claims on orthogonalisation, in quick mode."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.claims import polar_express, turbo_muon


def test_polar_express(tmp_path: Path) -> None:
    claim = polar_express.run(quick=True, folder=tmp_path)
    assert [check.holds for check in claim.checks[:2]] == [True, True]
    assert claim.checks[0].measured == "0.214×"
    assert len(claim.tables[0].rows) == len(polar_express.STEPS)


def test_turbo_muon(tmp_path: Path) -> None:
    claim = turbo_muon.run(quick=True, folder=tmp_path)
    assert len(claim.checks) == 4
    assert claim.checks[1].holds


def test_the_bias_of_rescaled_rows_vanishes_where_rows_are_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64)).Q
    assert turbo_muon.bias(turned) < 1e-12
    rows = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    assert turbo_muon.bias(rows * torch.logspace(0, -2, 24, dtype=torch.float64)[:, None]) > 0.05
