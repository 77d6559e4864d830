"""Tables of sketches, methods, stopping rules, problems and benchmarks, read off the code."""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

from markup import code, plain, summary, table

from hasten import sketches
from hasten.optimizers import correspondences
from hasten.optimizers.muon import CONVENTIONS
from hasten.problems import CONVEX_PROBLEMS, spectrum
from hasten.problems.more_garbow_hillstrom import MORE_GARBOW_HILLSTROM
from hasten.sketches import (
    BalancedCountSketch,
    Identity,
    ImportanceBlocks,
    ImportanceCoordinates,
    PerLayer,
    Sketch,
)
from hasten.sketches.dense import DenseDraw
from hasten.solvers import METHODS, Method, Status
from hasten.solvers.options import Option, declared
from hasten.solvers.stopping import Stopping
from hasten.theory import predict
from hasten.transforms import NORMS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# -- sketches -------------------------------------------------------------------------------------------

DIMENSION, RANK = 256, 16
CHOOSE = {
    "BalancedCountSketch": "the default: O(d) work, exact at r = d",
    "StridedSigns": "about as fast as copying; for curvature spread evenly over the index",
    "AffineCountSketch": "cheaper to draw than the balanced one, almost the same constants",
    "CountSketch": "the textbook one; not exact at r = d",
    "SparseSign": "several entries in a row; the same constants as CountSketch",
    "SRHT": "mixes all coordinates in O(d log d)",
    "RandomSignDCT": "the same for any dimension, without padding",
    "Haar": "theory, and dimensions up to some thousands",
    "Gaussian": "theory; not exact at r = d",
    "Rademacher": "theory; not exact at r = d",
    "RandomLowRank": "the matrices of a network, by `PerLayer`: a random factor on the longer side",
    "Coordinates": "where single partial derivatives are what is cheap",
    "IndependentCoordinates": "where every coordinate answers with its own probability",
    "ImportanceCoordinates": "where partial derivatives are cheap and the diagonal of L is known",
    "ImportanceBlocks": "the same, by blocks",
    "PerLayer": "the parameters of a network: each by itself, vectors whole",
    "Identity": "the full method, for comparison",
}
"""When to take which family."""


def families() -> dict[str, type[Sketch]]:
    """The families that can be constructed, those to choose first in front."""
    found = {name: getattr(sketches, name) for name in sketches.__all__}
    usable = {
        n: k
        for n, k in found.items()
        if inspect.isclass(k) and issubclass(k, Sketch) and not inspect.isabstract(k)
    }
    return {name: usable[name] for name in sorted(usable, key=list(CHOOSE).index)}


def example(kind: type[Sketch]) -> Sketch:
    """A sketch of the family over 256 variables whose curvature is diag(i⁻²)."""
    L = spectrum("inverse-square", DIMENSION)
    special = {
        ImportanceCoordinates: lambda: ImportanceCoordinates(L),
        ImportanceBlocks: lambda: ImportanceBlocks(L, [RANK] * (DIMENSION // RANK)),
        PerLayer: lambda: PerLayer(BalancedCountSketch(rank=RANK)).bind([(DIMENSION // RANK, RANK)]),
        Identity: Identity,
    }
    return special[kind]() if kind in special else kind(rank=RANK)


def sketch_families() -> str:
    """Every family: construction, constants at an example, and when to choose it."""
    L, rows = spectrum("inverse-square", DIMENSION), []
    for name, kind in families().items():
        sketch = example(kind)
        found = predict(L, sketch, accuracy=1e-2)
        dense = isinstance(sketch.draw(DIMENSION), DenseDraw)
        rows.append(
            [
                f"[{name}][hasten.sketches.{name}]",
                code(kind.formula),
                f"{sketch.cost(DIMENSION):.3g}",
                f"{found.nu:.4g}",
                f"{found.constant:.4g}",
                f"{found.speed_up:.3g}",
                "no" if dense else "yes",
                CHOOSE[name],
            ]
        )
    return table(["family", "construction", "r", "ν", "C", "S", "matrix-free", "choose it"], rows)


# -- minimize -------------------------------------------------------------------------------------------


def methods() -> str:
    """Every method in a row, then the options of each."""
    rows = []
    for name, kind in METHODS.items():
        takes = [
            word
            for word, able in (
                ("bounds", kind.takes_bounds),
                ("prox", kind.takes_prox),
                ("batched", kind.takes_batches),
            )
            if able
        ]
        sentence = re.split(r"(?<=[.]) (?=[A-Z])", summary(kind))[0]
        rows.append([f"[`{name}`](#{name})", sentence, ", ".join(takes), kind.source])
    listed = [table(["method", "what it is", "takes", "source"], rows)]
    return "\n\n".join(listed + [f"### {name}\n\n{about(kind)}" for name, kind in METHODS.items()])


def about(kind: type[Method]) -> str:
    """What a method is, its options, and the stopping rules whose defaults it changes."""
    prose = plain(kind.__doc__ or "").partition("\nExample:\n")[0].strip()
    changed = ", ".join(f"`{name}={value!r}`" for name, value in kind.stopping.items())
    note = f"\n\nStopping rules with other defaults: {changed}." if changed else ""
    return f"{prose}\n\n{options(kind.options())}{note}"


def stopping() -> str:
    """The options that every method takes."""
    return options(declared(Stopping))


def options(declarations: tuple[Option, ...]) -> str:
    """Declared options as a table."""
    rows = [
        [
            ", ".join(code(name) for name in (option.name, *option.also)),
            code(_value(option.default)),
            _allowed(option),
            option.meaning,
        ]
        for option in declarations
    ]
    return table(["option", "default", "allowed", "meaning"], rows)


def _allowed(option: Option) -> str:
    members = option.allowed if isinstance(option.allowed, tuple) else (option.allowed,)
    listed = ", ".join(
        member.__name__ if isinstance(member, type) else member if isinstance(member, str) else str(member)
        for member in members
    )
    return f"whole, {listed}" if option.integer else listed


def _value(value: Any) -> str:
    return "∞" if value == math.inf else value if isinstance(value, str) else f"{value}"


def statuses() -> str:
    """Why a run can end."""
    rows = [
        [str(int(status)), f"`Status.{status.name}`", "yes" if status.success else "no", status.message]
        for status in Status
        if status is not Status.RUNNING
    ]
    return table(["status", "name", "success", "message"], rows)


# -- problems -------------------------------------------------------------------------------------------


def convex_problems() -> str:
    """The convex problems with their constants."""
    rows = []
    for name, build in CONVEX_PROBLEMS.items():
        problem = build()
        L = problem.curvature
        rows.append(
            [
                code(name),
                str(L.dimension),
                f"{L.largest:.4g}",
                f"{problem.strong_convexity:.3g}",
                f"{L.effective_rank:.4g}",
            ]
        )
    return table(["problem", "d", "λ_max", "μ", "effective rank ρ"], rows)


def least_squares_problems() -> str:
    """The collection of Moré, Garbow and Hillstrom."""
    rows = []
    for problem in MORE_GARBOW_HILLSTROM.values():
        if problem.least == problem.most:
            other = ""
        else:
            upper = "" if problem.most == math.inf else f" to {problem.most:.0f}"
            parts = f", multiples of {problem.multiple}" if problem.multiple > 1 else ""
            other = f"from {problem.least}{upper}{parts}"
        least = "" if math.isnan(problem.minimum) else f"{problem.minimum:.6g}"
        rows.append(
            [
                str(problem.number),
                code(problem.name),
                str(problem.dimension),
                str(problem.terms),
                least,
                other,
            ]
        )
    return table(["no.", "problem", "n", "m", "least value", "other n"], rows)


# -- benchmarks -----------------------------------------------------------------------------------------


def benchmark_commands() -> str:
    """Every program of the benchmarks that can be run, with the first sentence of its docstring."""
    rows = []
    programs = [
        path for pattern in ("*.py", "*/__main__.py", "claims/*.py") for path in BENCHMARKS.glob(pattern)
    ]
    for path in sorted(programs):
        text = path.read_text()
        place = path.relative_to(BENCHMARKS.parent).with_suffix("")
        if path.name == "__main__.py":
            place = place.parent
        elif 'if __name__ == "__main__":' not in text:
            continue
        about = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0].partition(": ``")[0].rstrip(".")
        rows.append([code(f"python -m {'.'.join(place.parts)}"), about])
    return table(["program", "what it measures"], rows)


def thin_network(title: str) -> str:
    """Those tables of the claim on bytes between workers whose titles have these words, under their titles."""
    record = json.loads((BENCHMARKS / "claims" / "results" / "thin_network_bytes.json").read_text())
    found = [t for t in record["tables"] if title in t["title"]]
    return "\n\n".join(f"**{t['title']}**\n\n{table(t['columns'], t['rows'])}" for t in found)


# -- matrices -------------------------------------------------------------------------------------------


def muon_conventions() -> str:
    """What each convention of Muon sets."""
    heads = ["convention", "lr", "weight decay", "scale", "Nesterov", "iteration", "lr of the rest"]
    rows = [
        [
            code(repr(name)),
            f"{c.lr:g}",
            f"{c.weight_decay:g}",
            code(repr(c.scale)),
            "yes" if c.nesterov else "no",
            code(repr(c.backend)),
            "the same" if c.fallback_lr is None else f"{c.fallback_lr:g}",
        ]
        for name, c in CONVENTIONS.items()
    ]
    return table(heads, rows)


def norms() -> str:
    """Every norm, its dual, and the step of length one that goes furthest."""
    rows = [[code(name), *norm.formulas, norm.meaning] for name, norm in NORMS.items()]
    return table(["norm", "of a step", "dual, of the gradient g", "the step", "suits"], rows)


def norm_correspondences() -> str:
    """Old optimizers and their norms, each row run."""
    return correspondences.table(markdown=True)


def matrix_training(checks: bool) -> str:
    """The tables of the study on training with matrix geometry, or what was claimed and found."""
    path = BENCHMARKS / "claims" / "results" / "matrix_training.json"
    record = json.loads(path.read_text())
    if not checks:
        return "\n\n".join(f"**{t['title']}**\n\n{table(t['columns'], t['rows'])}" for t in record["tables"])
    rows = [
        [c["statement"], c["expected"], c["measured"], "yes" if c["holds"] else "**no**"]
        for c in record["checks"]
    ]
    return table(["claim", "expected", "measured", "holds"], rows)
