"""Trajectories on a surface: a picture, and the same as a moving one."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hasten.files import write_atomically
from hasten.problems.surfaces import SURFACES, Surface
from hasten.race.entrants import Contender, check, evaluating, parse_entrants, settle
from hasten.race.errors import RaceError, require, unknown
from hasten.race.figures import MAP_LOOK, save
from hasten.race.palette import style
from hasten.race.task import derive_seed
from hasten.race.tasks import SURFACE_ENTRANTS
from hasten.race.tasks.least_squares import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAMES = 60
GRID = 320
LEVELS = 24


@dataclass(frozen=True)
class Trajectory:
    """The way one contender took.

    Attributes:
        label: the contender.
        points: where it was, its evaluation point, shape ``(steps + 1, 2)``; it ends early where
            it stopped being finite.
        heights: the surface there, above its minimum.

    Example:
        >>> Trajectory("SGD", torch.zeros(3, 2), torch.zeros(3)).points.shape
        torch.Size([3, 2])
    """

    label: str
    points: torch.Tensor
    heights: torch.Tensor


def follow(surface: Surface, contender: Contender, steps: int) -> Trajectory:
    """Descend from the surface's start and note every point.

    Example:
        >>> way = settle(parse_entrants("torch.SGD(lr=0.001)")[0], "surface", 20)
        >>> follow(SURFACES["rosenbrock"], way, 20).points.shape
        torch.Size([21, 2])
    """
    point = Point(torch.tensor(surface.start, dtype=torch.float64))
    seed = derive_seed("picture", surface.name, contender.label)
    optimizer, schedule = contender.build(point, steps, seed)
    visited = [point.x.detach().clone()]

    @torch.enable_grad()
    def closure() -> Any:
        optimizer.zero_grad()
        height = surface(point.x)
        torch.autograd.backward(height)
        return height

    for _ in range(steps):
        optimizer.step(closure)
        schedule.step()
        with evaluating(optimizer):
            visited.append(point.x.detach().clone())
        if not bool(visited[-1].isfinite().all()):
            visited.pop()
            break
    points = torch.stack(visited)
    return Trajectory(contender.label, points, surface(points) - surface.minimum)


def picture(
    task: str = "rosenbrock",
    optimizers: str | None = None,
    *,
    steps: int = 500,
    out: str | Path = ".",
    animate: bool = True,
) -> list[Path]:
    """Draw how optimizers descend a surface: ``TASK.png``, and ``TASK.gif`` that moves.

    Args:
        task: a surface, one of `hasten.problems.SURFACES`.
        optimizers: as in `hasten.race.race`.
        steps: how many to take.
        out: folder to write to.
        animate: whether to write the moving picture too.

    Raises:
        RaceError: if something asked for does not exist, or the folder cannot be written.

    Example:
        >>> picture("rosenbrok")
        Traceback (most recent call last):
        ...
        hasten.race.errors.RaceError: unknown surface 'rosenbrok': did you mean 'rosenbrock'?
    """
    require("matplotlib", purpose="hasten picture")
    if animate:
        require("PIL", purpose="hasten picture")
    if task not in SURFACES:
        raise unknown("surface", task, SURFACES)
    if steps < 1:
        raise RaceError(f"steps={steps} must be at least 1")
    surface = SURFACES[task]
    entrants = parse_entrants(SURFACE_ENTRANTS if optimizers is None else optimizers)
    contenders = [settle(entrant, "surface", steps) for entrant in entrants]
    check(contenders)
    trajectories = [follow(surface, contender, steps) for contender in contenders]
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RaceError(f"cannot write to {folder}: {error.strerror or error}") from error
    from matplotlib import rc_context

    with rc_context(MAP_LOOK):
        written = [save(_draw(surface, trajectories, steps), folder / f"{task}.png")]
        if animate:
            written.append(_animate(surface, trajectories, steps, folder / f"{task}.gif"))
    return written


def _draw(surface: Surface, trajectories: list[Trajectory], steps: int) -> Figure:
    """The map with every way on it, and beside it the heights."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 5), layout="constrained")
    axes, heights = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _contours(axes, surface)
    for place, way in enumerate(trajectories):
        colour, _ = style(place)
        xs, ys = way.points.T.numpy()
        axes.plot(xs, ys, color="white", lw=3.2, alpha=0.6)
        axes.plot(xs, ys, color=colour, lw=1.7, label=way.label)
        axes.plot(xs[-1], ys[-1], "o", color=colour, ms=8, mec="white", mew=1.3, zorder=5)
        heights.plot(way.heights.clamp_min(1e-16).numpy(), color=colour, lw=1.8, label=way.label)
    axes.set_title(f"{surface.name}, {steps} steps", loc="left", fontweight="bold")
    heights.set_yscale("log")
    start = float(surface(torch.tensor(surface.start, dtype=torch.float64))) - surface.minimum
    # A way may cross the minimum by chance; the picture is of where it stays.
    ends = [float(way.heights[-1]) for way in trajectories if float(way.heights[-1]) > 0]
    heights.set_ylim(min([start, *ends]) / 10, start * 5)
    heights.set_xlabel("steps")
    heights.set_title("height above the minimum", loc="left", fontsize=10.5)
    heights.grid(visible=True)
    figure.legend(*heights.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def _contours(axes: Axes, surface: Surface) -> None:
    left, right, bottom, top = surface.bounds
    x = torch.linspace(left, right, GRID, dtype=torch.float64)
    y = torch.linspace(bottom, top, GRID, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    # The logarithm shows the floor of a valley and its walls at once.
    height = torch.log10(surface(grid) - surface.minimum + 1e-2)
    axes.contourf(x.numpy(), y.numpy(), height.numpy(), LEVELS, cmap="Greys", alpha=0.45)
    axes.contour(x.numpy(), y.numpy(), height.numpy(), LEVELS, colors="white", linewidths=0.4)
    for minimum in surface.minima:
        axes.plot(*minimum, "*", color="#f5c400", ms=15, mec="#3a3f45", mew=0.8, zorder=6)
    axes.plot(*surface.start, "s", color="#3a3f45", ms=5, zorder=4)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _animate(surface: Surface, trajectories: list[Trajectory], steps: int, path: Path) -> Path:
    """The ways growing step by step, as a GIF."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(6.4, 4.8), dpi=90, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.subplots()
    _contours(axes, surface)
    artists: list[tuple[Any, Any, Any]] = []
    for place, way in enumerate(trajectories):
        colour, _ = style(place)
        xs, ys = way.points.T.numpy()
        (trail,) = axes.plot([], [], color=colour, lw=1.7, label=way.label)
        (head,) = axes.plot([], [], "o", color=colour, ms=8, mec="white", mew=1.3, zorder=5)
        artists.append((trail, head, (xs, ys)))
    axes.legend(loc="upper right", frameon=True, framealpha=0.85, fontsize=8.5)
    title = axes.set_title("", loc="left", fontweight="bold")
    images = []
    for frame in range(FRAMES + 1):
        # Most happens early: steps grow with the square of the frame.
        step = round(steps * (frame / FRAMES) ** 2)
        for trail, head, (xs, ys) in artists:
            until = min(step + 1, len(xs))
            trail.set_data(xs[:until], ys[:until])
            head.set_data(xs[until - 1 : until], ys[until - 1 : until])
        title.set_text(f"{surface.name}, step {step}")
        canvas.draw()
        images.append(Image.fromarray(_pixels(canvas)))
    buffer = io.BytesIO()
    durations = [70] * FRAMES + [2000]
    first, *rest = _few_colours(images, len(trajectories))
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise RaceError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _few_colours(images: list[Any], contenders: int) -> list[Any]:
    """The images in one palette of 255 colours, in which thin lines keep theirs: every contender's
    colour is given an area of its own when the palette is chosen."""
    from PIL import Image

    width, height = images[-1].size
    chart = Image.new("RGB", (width, height + 30 * contenders))
    chart.paste(images[-1], (0, 0))
    for place in range(contenders):
        top = height + 30 * place
        chart.paste(Image.new("RGB", (width, 30), style(place)[0]), (0, top))
    palette = chart.quantize(255, dither=Image.Dither.NONE)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]


def _pixels(canvas: Any) -> Any:
    import numpy

    return numpy.asarray(canvas.buffer_rgba())[..., :3]
