"""What the documentation says about the code, read off the code: pages and tables as Markdown."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import tables
import torch
from markup import code, plain, summary, table
from tables import BENCHMARKS

import hasten
from hasten import (
    distributed,
    equivalence,
    iterates,
    linalg,
    oracles,
    problems,
    sketches,
    solvers,
    theory,
    transforms,
)
from hasten.engine.composition import Place
from hasten.optimizers import CATALOGUE
from hasten.race import catalogue
from hasten.words import Part

PACKAGES = {"oracles": oracles, "transforms": transforms, "iterates": iterates}
ROOMS = {
    **PACKAGES,
    "sketches": sketches,
    "theory": theory,
    "solvers": solvers,
    "problems": problems,
    "distributed": distributed,
    "linalg": linalg,
}
WORDS = {
    "oracle": oracles,
    "momentum": transforms,
    "geometry": transforms,
    "step": transforms,
    "iterate": iterates,
}


def page_name(optimizer: str) -> str:
    """The file of an optimizer's page."""
    return f"{optimizer.lower()}.md"


def sample(name: str) -> hasten.Optimizer:
    """A named optimizer at its defaults, over one matrix."""
    return CATALOGUE[name]([torch.zeros(2, 2, requires_grad=True)], engine="eager")


# -- optimizers -----------------------------------------------------------------------------------------


def optimizer_page(name: str) -> str:
    """Everything about an optimizer: what it does, its sentence, arguments, state, source, relatives."""
    kind, optimizer = CATALOGUE[name], sample(name)
    prose, _, example = plain(kind.__doc__ or "").partition("\nExample:\n")
    prose = prose.partition("\nArgs:\n")[0]  # arguments are in the tables, and in the reference below
    description = hasten.describe(optimizer)
    buffers = [buffer for part in description.parts for buffer in part.buffers]
    kept = f": {', '.join(f'`{buffer}`' for buffer in buffers)}" if buffers else ""
    related = ", ".join(f"[{other}]({page_name(other)})" for other in catalogue.relatives(name)) or "none"
    return "\n\n".join(
        [
            f"# {name}",
            prose.strip(),
            f"*Source: {kind.source}.*",
            "```pycon\n" + inspect.cleandoc(example).strip() + "\n```",
            "## The sentence",
            f"```text\n{description}\n```",
            "## Hyperparameters",
            _hyperparameters(kind, optimizer),
            _choices(kind, optimizer),
            "Every optimizer also takes `maximize`, `engine`, `on_nonfinite`, `stochastic_rounding`, "
            "`state_dtype` and `seed`: see [the engine](../engine.md).",
            "## State",
            f"{description.floats_per_parameter:g} floats per parameter{kept}.",
            _point_to_evaluate(optimizer),
            _unified(name),
            f"**Relatives:** {related}.",
            "## Reference",
            f"::: {kind.__module__}.{name}\n    options:\n      show_docstring_examples: false",
        ]
    )


def _hyperparameters(kind: type, optimizer: hasten.Optimizer) -> str:
    composition_of = {name: c for c in reversed(optimizer.compositions) for name in c.hypers}
    rows = []
    for name, place in sorted(optimizer.places.items(), key=lambda item: _order(kind, item[1])):
        hyper = composition_of[name].hypers[name]
        value = optimizer.defaults[place.key]
        default = value if place.index is None else value[place.index]
        rows.append([code(str(place)), code(_shown(default)), str(hyper.allowed), hyper.meaning])
    return table(["in a parameter group", "default", "allowed", "meaning"], rows)


def _order(kind: type, place: Place) -> tuple[int, str, int]:
    names = list(inspect.signature(kind).parameters)
    return (names.index(place.key) if place.key in names else len(names), place.key, place.index or 0)


def _choices(kind: type, optimizer: hasten.Optimizer) -> str:
    keys = {place.key for place in optimizer.places.values()}
    rows = [
        [code(p.name), code(_shown(p.default)), code(str(p.annotation))]
        for p in inspect.signature(kind).parameters.values()
        if p.name not in keys and p.default is not p.empty and p.annotation != "Value"
    ]
    return (
        "Arguments of the constructor that choose between formulas, or set a schedule:\n\n"
        + table(["argument", "default", "type"], rows)
        if rows
        else ""
    )


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _point_to_evaluate(optimizer: hasten.Optimizer) -> str:
    if not optimizer.has_evaluation_point:
        return ""
    return (
        "Training and evaluation happen at different points: evaluate and save inside "
        "`with opt.evaluating():`, see [training and evaluation points](../schedule-free.md)."
    )


def _unified(name: str) -> str:
    row = next(row for row in equivalence.table() if row["optimizer"] == name)
    if "nu" not in row:
        return ""
    return (
        f"In [the unified view](../unified-view.md), at the defaults: β = {row['beta']:.4g}, "
        f"ν = {row['nu']:.4g}, α = {row['alpha']:.4g} ({row['remarks']})."
    )


def design_space() -> str:
    """Every named optimizer as a point of the design space, linked from the folder of their pages."""
    rows = []
    for name in CATALOGUE:
        optimizer = sample(name)
        cells = [
            ", ".join(part for part in parts if part not in catalogue.EVERYDAY) or "·"
            for parts in catalogue.words_of(optimizer).values()
        ]
        rows.append([f"[{name}]({page_name(name)})", *cells, f"{catalogue.floats_of(optimizer):.3g}"])
    return table(["optimizer", *catalogue.WORDS, "floats"], rows)


def equivalences() -> str:
    """The unified view: the coefficients of accelerated SGD that each optimizer uses."""
    rows, outside = [], []
    for row in equivalence.table():
        link = f"[{row['optimizer']}](optimizers/{page_name(row['optimizer'])})"
        if "nu" not in row:
            outside.append(f"- {link}: {row['remarks']}")
            continue
        numbers = [
            f"{row[key]:.4g}".replace("inf", "∞") for key in ("beta", "nu", "lr", "alpha", "current weight")
        ]
        rows.append([link, *numbers, row["slot"], row["evaluate at"], row["remarks"]])
    heads = ["optimizer", "β", "ν", "lr", "α", "1 − νβ", "geometry", "evaluate at", "remarks"]
    listed = "\n\nOutside the family:\n\n" + "\n".join(outside) if outside else ""
    return table(heads, rows) + listed


# -- parts ----------------------------------------------------------------------------------------------


def parts_of(package: ModuleType, word: str) -> str:
    """The parts of a package that answer to a word."""
    rows = []
    for kind in (getattr(package, name) for name in package.__all__):
        if not inspect.isclass(kind) or not issubclass(kind, Part) or inspect.isabstract(kind):
            continue
        if kind.word == word:
            hypers = ", ".join(f"{h.name} = {_default(h.default)}" for h in kind.hypers())
            link = f"[{kind.__name__}][{kind.__module__}.{kind.__name__}]"
            rows.append([link, code(kind.formula), code(hypers), summary(kind)])
    return table(["part", "formula", "hyperparameters", "what it is"], rows)


def _default(value: Any) -> str:
    return "required" if value is dataclasses.MISSING else _shown(value)


def reference_of(package: ModuleType) -> str:
    """Everything public of a package, functions first; methods of `minimize` are on its own page."""
    methods = {kind.__name__ for kind in solvers.METHODS.values()} if package is solvers else set()
    names = sorted(set(package.__all__) - methods, key=lambda name: (not name[0].islower(), name))
    return "\n\n".join(f"::: {package.__name__}.{name}" for name in names)


def readme_excerpt() -> str:
    """The unified view in short, for the README."""
    rows = {row["optimizer"]: row for row in equivalence.table()}
    chosen = ("HeavyBall", "Nesterov", "AdamW", "Lion", "AdEMAMix", "MARS", "ScheduleFreeAdamW")
    cells = [
        [
            name,
            *(f"{rows[name][key]:.4g}" for key in ("beta", "nu")),
            rows[name]["slot"],
            rows[name]["evaluate at"],
        ]
        for name in chosen
    ]
    return table(["optimizer", "β", "ν", "geometry", "evaluate at"], cells)


# -- benchmarks -----------------------------------------------------------------------------------------


def benchmark_files() -> list[Path]:
    """The result tables that benchmarks have left, in a fixed order."""
    return [
        *sorted((BENCHMARKS / "results").glob("*.md")),
        *sorted((BENCHMARKS / "claims" / "results").glob("*.md")),
    ]


def benchmarks() -> str:
    """The results of the benchmarks, as they wrote them, one heading deeper."""
    texts = [re.sub(r"^#", "##", path.read_text(), flags=re.MULTILINE) for path in benchmark_files()]
    texts = [re.sub(r"\]\(([\w.-]+\.png)\)", r"](images/\1)", text) for text in texts]
    return "\n\n".join(texts) or "No results yet: run the programs above."


def benchmark_images() -> list[Path]:
    """The figures that the results show."""
    folders = sorted({path.parent for path in benchmark_files()})
    return [image for folder in folders for image in sorted(folder.glob("*.png"))]


GENERATED: dict[str, Callable[[], str]] = {
    "design space": design_space,
    "unified view": equivalences,
    "benchmarks": benchmarks,
    "benchmark commands": tables.benchmark_commands,
    "sketch families": tables.sketch_families,
    "methods": tables.methods,
    "stopping": tables.stopping,
    "statuses": tables.statuses,
    "convex problems": tables.convex_problems,
    "thin network bytes": partial(tables.thin_network, "the least bytes"),
    "thin network growth": partial(tables.thin_network, "Steps of SubspaceNesterov"),
    "thin network speeds": partial(tables.thin_network, "At which link speed"),
    "muon conventions": tables.muon_conventions,
    "norms": tables.norms,
    "norm correspondences": tables.norm_correspondences,
    "matrix training": partial(tables.matrix_training, checks=False),
    "matrix training checks": partial(tables.matrix_training, checks=True),
    "least squares problems": tables.least_squares_problems,
    **{f"parts {word}": partial(parts_of, package, word) for word, package in WORDS.items()},
    **{f"reference {name}": partial(reference_of, package) for name, package in ROOMS.items()},
}
"""What ``<!-- generated: NAME -->`` in a page stands for."""

_MARK = re.compile(r"^<!-- generated: ([\w ]+) -->$", re.MULTILINE)


def filled(markdown: str) -> str:
    """A page with its marks replaced.

    Raises:
        KeyError: a mark that nothing stands behind.
    """
    return _MARK.sub(lambda mark: GENERATED[mark[1]](), markdown)
