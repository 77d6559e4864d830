"""Trajectories on a contour plot, still and moving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hasten.problems.surfaces import SURFACES
from hasten.race.entrants import parse_entrants, settle
from hasten.race.errors import RaceError
from hasten.race.picture import FRAMES, follow, picture


def test_a_picture_and_a_moving_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.race.picture.FRAMES", 5)
    still, moving = picture("himmelblau", "AdamW,ScheduleFreeSGD,SGD(lr=1e9)", steps=30, out=tmp_path / "new")
    from PIL import Image

    assert FRAMES > 5
    with Image.open(still) as image:
        assert image.format == "PNG"
        assert image.width > 1000
    with Image.open(moving) as image:
        assert image.format == "GIF"
        assert image.n_frames == 6


def test_the_way_is_the_optimizers() -> None:
    surface = SURFACES["valley"]
    contender = settle(parse_entrants("SGD(lr=0.005)")[0], "surface", 3)
    way = follow(surface, contender, 3)
    x, y = surface.start
    for point in way.points:
        assert point.tolist() == pytest.approx([x, y])
        x, y = x - 0.005 * x, y - 0.005 * 100 * y
    assert torch.equal(way.heights, surface(way.points))


def test_a_diverging_way_ends_early() -> None:
    contender = settle(parse_entrants("SGD(lr=10)")[0], "surface", 50)
    way = follow(SURFACES["rosenbrock"], contender, 50)
    assert len(way.points) < 51
    assert bool(way.points.isfinite().all())


def test_only_surfaces_can_be_pictured(tmp_path: Path) -> None:
    with pytest.raises(RaceError, match="did you mean 'rosenbrock'"):
        picture("rosenbrook", out=tmp_path)
    with pytest.raises(RaceError, match="steps=0"):
        picture(steps=0, out=tmp_path)
    with pytest.raises(RaceError, match="cannot write"):
        picture("valley", steps=1, out="/proc/nowhere")
