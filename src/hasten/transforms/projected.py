"""Parts applied in a few directions of a matrix, chosen anew in every step without a singular value decomposition."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hasten.checks import check_choice
from hasten.linalg.cosine import cosine_rows, cosine_transform, leading
from hasten.numbers import Names, Number, where
from hasten.transforms.geometry import SecondMoment
from hasten.transforms.momentum import EMA
from hasten.transforms.orthogonal import SCALES, Scaling
from hasten.words import UNIT, Buffer, Entry, Geometry, Hyper, Step, Transform, Value, hyper


@dataclass(frozen=True)
class Projected(Geometry):
    """Other parts, applied to the r rows of a matrix's cosine transform that are largest.

    With W the direction, transposed unless it has more columns than rows, p × q, and D the orthonormal cosine basis
    (DCT-II) of order p,

        A = E + W;   S = D A;   J = the r rows of S of largest norm;   E ← A − (1−μ) D_Jᵀ S_J;   u = D_Jᵀ f(S_J),

    f being the parts, whose buffers have r rows: those of a row that stays in J are carried over, the others start
    anew (a rotation from the old subspace to the new one does just that, as both are rows of one orthogonal matrix).
    With ``norm=2``, ‖A − D_Jᵀ S_J‖² ≤ (1 − r/p) ‖A‖². State: E (p q numbers), r q for each buffer of the parts, and r.

    D approximates the singular vectors of gradients that are smooth along the index; for others its rows are as good
    as random ones, and it is the feedback of what was left out that makes the method work.

    Args:
        parts: f, of element or matrix grain; what they see as the gradient is S_J. They may neither measure norms nor
            read the parameter.
        rank: r, at most p; or a fraction of p in (0, 1] (at least one row).
        feedback: ``"momentum"``: as above. ``"error"``: with μ = 0, so E is what was left out. None: no E, A = W.
        refresh: J is chosen in every step, or in one of so many.
        norm: 1 or 2: that of the rows by which they are chosen.
        scale: factor on u by the shape of the whole matrix, as :class:`~hasten.transforms.Orthogonalize` has it.

    Source: Modoranu et al. 2025, arXiv:2505.17967. Its authors' code rotates the moments by a product of bases, and
    for wide matrices of one of its two methods transforms by the inverse of the basis that it uses otherwise.

    Example:
        >>> import torch, hasten
        >>> from hasten.transforms import Accumulation, Projected, Sign
        >>> lion = Projected((Accumulation(0.95, alpha=2.0), Sign()), rank=0.25)
        >>> opt = hasten.Optimizer([torch.ones(8, 16, requires_grad=True)], lion, lr=1e-3)
        >>> {name: tuple(t.shape) for name, t in opt.state[opt.param_groups[0]["params"][0]].items() if t.dim()}
        {'error': (8, 16), 'rows': (2,), 'exp_avg': (2, 16)}
    """

    parts: tuple[Transform, ...] = (EMA(), SecondMoment())
    rank: int | float = 0.25
    momentum: Value = hyper(0.0, UNIT, "share of the chosen rows that stays for the next step")
    feedback: Literal["momentum", "error"] | None = "error"
    refresh: int = 1
    norm: int = 1
    scale: Scaling | None = None
    grain: ClassVar[Literal["element", "tensor", "matrix"]] = "matrix"
    formula: ClassVar[str] = "A = E + d;  S = D A;  E ← A − (1−μ) D_Jᵀ S_J;  u = D_Jᵀ f(S_J),  J leading rows"

    def __post_init__(self) -> None:
        check_projection("Projected", self.rank, self.refresh, self.norm)
        check_choice("Projected", "feedback", self.feedback, ("momentum", "error", None))
        check_choice("Projected", "scale", self.scale, SCALES)
        for part in self.parts:
            _check_inner(part)
        self._values()

    # -- the parts inside ---------------------------------------------------------------------------------------------

    def _values(self) -> dict[str, tuple[Hyper, Any]]:
        """Every declared hyperparameter, with what it is set to."""
        own = (
            {h.name: (h, getattr(self, h.name)) for h in self.hypers()} if self.feedback == "momentum" else {}
        )
        for part in self.parts:
            for h in part.declared:
                name, value = part.key(h.name), part.value(h.name)
                if name in own and own[name][1] is not value and own[name][1] != value:
                    raise ValueError(
                        f"Projected: two parts declare {name!r}, with values {own[name][1]!r} and {value!r}; give both "
                        f"the same value, or keep them apart with {type(part).__name__}(...)"
                        f".rename({h.name}='another_name')"
                    )
                own.setdefault(name, (Hyper(name, h.default, h.allowed, h.meaning), value))
        return own

    @property
    def declared(self) -> tuple[Hyper, ...]:
        """Those of the parts, and μ."""
        return tuple(h for h, _ in self._values().values())

    def value(self, name: str) -> Any:
        """What a declared hyperparameter is set to."""
        return self._values()[name][1]

    @property
    def traceable(self) -> bool:  # type: ignore[override]  # here it depends on the options
        """Whether nothing branches on numbers."""
        return self.refresh == 1 and all(part.traceable for part in self.parts)

    def rows(self, p: int) -> int:
        """r for matrices whose lesser side is `p`."""
        return min(self.rank, p) if isinstance(self.rank, int) else max(1, round(self.rank * p))

    def buffers(self) -> dict[str, Buffer]:
        """E, J (as numbers; −1: none yet), and those of the parts."""
        found = {} if self.feedback is None else {"error": Buffer()}
        found["rows"] = Buffer(start=-1.0, exact=True, shape=lambda size: (self.rows(min(size)),))
        for inner in self._inner:
            for formal, buffer in inner.part.buffers().items():
                found[inner.buffers[formal]] = Buffer(buffer.start, buffer.exact, self._inner_shape)
        return found

    def _inner_shape(self, size: torch.Size) -> tuple[int, ...]:
        return self.rows(min(size)), max(size)

    def counters(self) -> dict[str, float]:
        """Those of the parts."""
        return {
            inner.counters[formal]: start
            for inner in self._inner
            for formal, start in inner.part.counters().items()
        }

    @cached_property
    def _inner(self) -> tuple[_Inner, ...]:
        """The parts, each with what is its own."""
        buffers = _distinct([part.buffers() for part in self.parts], {"error", "rows"})
        counters = _distinct([part.counters() for part in self.parts], set())
        return tuple(
            _Inner(
                i,
                part,
                {h.name: part.key(h.name) for h in part.declared},
                own,
                {formal: float(buffer.start) for formal, buffer in part.buffers().items()},
                counts,
            )
            for i, (part, own, counts) in enumerate(zip(self.parts, buffers, counters, strict=True))
        )

    # -- the formula --------------------------------------------------------------------------------------------------

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        """1−μ, whether J is chosen anew, and the numbers of the parts."""
        taken = 1 - h.momentum if self.feedback == "momentum" else 1.0
        found = {"taken": taken, "fresh": where((k - 1) % self.refresh == 0, 1.0, 0.0)}
        for inner in self._inner:
            found.update(inner.numbers(h, k, c))
        return found

    def direction(self, d: Entry, s: Any, n: Any) -> Entry:
        """What the parts make of the leading rows, lifted."""
        tall = d.shape[-2] >= d.shape[-1]
        A = d if self.feedback is None else s.error + d
        W, moved = A.mT if tall else A, None
        if self.refresh == 1 or n.fresh:
            S = cosine_transform(W.mT)  # transposed, [k, q, p]
            scores = S.abs().sum(-2) if self.norm == 1 else S.square().sum(-2)
            J = leading(scores, self.rows(W.shape[-2]))
            rows = S.mT.take_along_dim(J.unsqueeze(-1), -2)
            D = cosine_rows(J, W.shape[-2], W.dtype)
            moved = _Moved(s.rows.long(), J, W.shape[-2])
            s.rows = J.to(W.dtype)
        else:
            D = cosine_rows(s.rows.long(), W.shape[-2], W.dtype)
            rows = D @ W
        low = SCALES[self.scale](*d.shape[-2:]) * self._inside(rows, moved, s, n)
        if self.feedback is not None:
            left, right = _factors(D, rows * -n.taken, tall)
            s.error = torch.baddbmm(A, left, right)
        left, right = _factors(D, low, tall)
        return left @ right

    def _inside(self, rows: Tensor, moved: _Moved | None, s: Any, n: Any) -> Tensor:
        """f: each part in turn, on its own buffers."""
        d, grad, leads = rows, rows, True
        for inner in self._inner:
            d = inner.direction(d, grad, moved, s, n)
            leads = leads and isinstance(inner.part, Step)
            grad = d if leads else grad
        return d


@dataclass(frozen=True)
class _Inner:
    """A part inside, and under which names its hyperparameters, buffers and counters are known outside."""

    number: int
    part: Transform
    hypers: dict[str, str]
    buffers: dict[str, str]
    starts: dict[str, float]
    counters: dict[str, str]

    def numbers(self, h: Names, k: Number, c: Names) -> dict[str, Number]:
        own = Names(**{formal: getattr(h, name) for formal, name in self.hypers.items()})
        counts = Names(**{formal: getattr(c, name) for formal, name in self.counters.items()})
        found = self.part.numbers(own, k, counts)
        for formal, name in self.counters.items():
            setattr(c, name, getattr(counts, formal))
        return {f"{name}_{self.number}": value for name, value in found.items()}

    def direction(self, d: Tensor, grad: Tensor, moved: _Moved | None, s: Any, n: Any) -> Tensor:
        kept = {formal: getattr(s, name) for formal, name in self.buffers.items()}
        if moved is not None:
            kept = {formal: moved(buffer, self.starts[formal]) for formal, buffer in kept.items()}
        own = _Rows(grad=grad, **kept)
        found: Tensor = self.part.direction(d, own, _Numbers(n, self.number))
        for formal, name in self.buffers.items():
            setattr(s, name, getattr(own, formal))
        return found


def _factors(D: Tensor, rows: Tensor, tall: bool) -> tuple[Tensor, Tensor]:
    """Of D_Jᵀ rows, or of its transpose."""
    return (rows.mT, D) if tall else (D.mT, rows)


class _Moved:
    """Buffers of the rows `before`, [k, r] of p, as buffers of the rows `now`: a partial permutation."""

    def __init__(self, before: Tensor, now: Tensor, p: int) -> None:
        count, r = now.shape
        numbered = torch.arange(r, device=now.device).expand(count, r)
        # One place more than there are rows, for those before the first step, which are −1.
        places = torch.full((count, p + 1), -1, device=now.device).scatter(-1, before + 1, numbered)
        self.place = places.gather(-1, now + 1).unsqueeze(-1)

    def __call__(self, buffer: Tensor, start: float) -> Tensor:
        return torch.where(self.place < 0, start, buffer.take_along_dim(self.place.clamp(min=0), -2))


class _Rows(Names):
    """What a part inside sees: the chosen rows as the gradient, and its buffers."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a part inside Projected has no {name!r}: it sees some rows of the gradient only"
        )


class _Numbers:
    """The numbers of one of the parts."""

    def __init__(self, n: Any, i: int) -> None:
        self._n, self._i = n, i

    def __getattr__(self, name: str) -> Any:
        return getattr(self._n, f"{name}_{self._i}")


def _distinct(own: Iterable[Iterable[str]], taken: set[str]) -> list[dict[str, str]]:
    """Names that are all different: as they are, or numbered."""
    taken, found = set(taken), []
    for names in own:
        mapped = {}
        for name in names:
            number, free = 2, name
            while free in taken:
                number, free = number + 1, f"{name}_{number}"
            taken.add(free)
            mapped[name] = free
        found.append(mapped)
    return found


def check_projection(owner: str, rank: Any, refresh: Any, norm: Any) -> None:
    """Raise ValueError unless these options of :class:`Projected` are allowed."""
    of_rows = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    if not of_rows and not (isinstance(rank, float) and 0 < rank <= 1):
        raise ValueError(
            f"{owner}: rank = {rank!r} is not allowed; it must be a whole number from 1, or a fraction in (0, 1]"
        )
    if isinstance(refresh, bool) or not isinstance(refresh, int) or refresh < 1:
        raise ValueError(f"{owner}: refresh = {refresh!r} is not allowed; it must be a whole number from 1")
    check_choice(owner, "norm", norm, (1, 2))


def _check_inner(part: Any) -> None:
    """Raise unless a part can be applied to some rows of a matrix."""
    if not isinstance(part, Transform):
        raise TypeError(f"Projected: {part!r} is not allowed; it must be a transform")
    shaped = any(b.shape is not None or b.start == "param" for b in part.buffers().values())
    reasons = {
        "it sums over tensors": bool(part.measures),
        "it needs whole tensors": part.grain == "tensor",
        "its first steps only fill buffers": part.preparing > 0,
        "it keeps what is not carried over row by row": shaped,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"Projected: {type(part).__name__} is not allowed inside: {reason}")
