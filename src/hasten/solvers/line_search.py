"""Strong-Wolfe line search as a state machine: one evaluation, one decision.

A step α along a descent direction d is accepted when, with φ(α) = f(x + α d) − f(x),

    φ(α) ≤ c1 α φ'(0)     and     |φ'(α)| ≤ c2 |φ'(0)|.

Trial steps follow Moré & Thuente (1994, doi:10.1145/192115.192132): an interval of uncertainty between the best step
so far and another, shrunk by cubic and quadratic interpolation, extended by at most 4 while it has no far end. Two
things are added. A trial that is not finite only says "too far". And where φ is so small that round-off decides its
value, the trapezoidal rule α (φ'(0) + φ'(α))/2 states it instead: the first condition then is Hager & Zhang's
approximate Wolfe condition φ'(α) ≤ (2 c1 − 1) φ'(0) (2005, doi:10.1137/030601880), which only needs gradients.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hasten.numbers import Number, maximum, minimum, sqrt, where
from hasten.solvers.space import Mask, divide, invert, isfinite

FARTHEST = 1e20
"""The longest trial step."""


@dataclass
class Search:
    """A search under way: the trial step, and the interval [low, high] of steps with their φ and φ'."""

    step: Number
    slope0: Number
    flat: Number
    low: Number
    low_rise: Number
    low_slope: Number
    high: Number
    high_rise: Number
    high_slope: Number
    bracketed: Mask
    first_stage: Mask
    last: Mask
    width: Number
    width_before: Number
    trials: Number

    def where(self, mask: Mask, other: Search) -> Search:
        """This search where the mask holds, otherwise the other."""
        if isinstance(mask, bool):
            return self if mask else other
        return Search(
            **{
                f.name: where(mask, getattr(self, f.name), getattr(other, f.name))
                for f in dataclasses.fields(self)
            }
        )


@dataclass(frozen=True)
class StrongWolfe:
    """The rule of a search: c1, c2, the relative width of the interval at which it settles, and most trials."""

    c1: float
    c2: float
    width: float
    trials: int

    def begin(self, f: Number, slope: Number, step: Number, epsilon: float) -> Search:
        """A search from a point of value f with the derivative `slope` < 0, first trying `step`."""
        zero, never = 0.0 * step, step != step
        return Search(
            step=step,
            slope0=slope,
            flat=16 * epsilon * abs(f),
            low=zero,
            low_rise=zero,
            low_slope=slope,
            high=zero,
            high_rise=zero,
            high_slope=slope,
            bracketed=never,
            first_stage=invert(never),
            last=never,
            width=zero + FARTHEST,
            width_before=zero + 2 * FARTHEST,
            trials=zero,
        )

    def learn(self, s: Search, rise: Number, slope: Number) -> tuple[Mask, Mask]:
        """Judge the trial from φ and φ' there: is it accepted, has the search failed; otherwise set the next trial."""
        step = s.step
        lower = rise < 0
        rise = where(abs(rise) <= s.flat, 0.5 * step * (s.slope0 + slope), rise)
        finite = isfinite(rise) & isfinite(slope)
        enough = finite & (rise <= self.c1 * step * s.slope0)
        accepted = enough & ((abs(slope) <= -self.c2 * s.slope0) | (s.last & lower))
        s.trials = s.trials + 1
        done = accepted | s.last
        if _all(done):
            return accepted, done & invert(accepted)
        s.first_stage = s.first_stage & invert(enough & (slope >= 0))
        self._shrink(s, rise, slope, finite, enough)
        tight = s.bracketed & (abs(s.high - s.low) <= self.width * maximum(s.low, s.high))
        s.last = tight | (s.trials >= self.trials - 1)
        # Where the search is over, the step stays the one that was judged.
        s.step = where(done, step, where(s.last, s.low, s.step))
        # With no better step than 0 to settle on, there is nothing left to try.
        return accepted, (done & invert(accepted)) | (s.last & (s.low == 0) & invert(accepted))

    def _shrink(self, s: Search, rise: Number, slope: Number, finite: Mask, enough: Mask) -> None:
        """The new interval, and the next trial step in it."""
        # Until the first condition can be met with a slope ≥ 0, the search is for a minimum of φ(α) − c1 α φ'(0).
        shifted = s.first_stage & finite & (rise <= s.low_rise) & invert(enough)
        shift = where(shifted, self.c1 * s.slope0, 0.0 * s.slope0)
        step, low, high = s.step, s.low, s.high
        f, f_low, f_high = rise - step * shift, s.low_rise - low * shift, s.high_rise - high * shift
        d, d_low, d_high = slope - shift, s.low_slope - shift, s.high_slope - shift

        higher = invert(finite) | (f > f_low)
        turned = invert(higher) & (d * d_low < 0)
        flatter = invert(higher | turned) & (abs(d) < abs(d_low))
        onward = invert(higher | turned | flatter)

        least = where(s.bracketed, minimum(low, high), step + 1.1 * (step - low))
        most = where(s.bracketed, maximum(low, high), step + 4.0 * (step - low))
        ahead = where(step > low, most, least)
        other, f_other, d_other = (
            where(onward, high, low),
            where(onward, f_high, f_low),
            where(onward, d_high, d_low),
        )
        # The interpolations start from the end of lower value, which keeps their relative precision.
        cubic = _cubic(
            where(higher, low, step), where(higher, f_low, f), where(higher, d_low, d),
            where(higher, step, other), where(higher, f, f_other), where(higher, d, d_other),
        )  # fmt: skip
        secant = step + divide(d, d - d_low) * (low - step)
        parabola = low + 0.5 * divide(d_low, divide(f_low - f, step - low) + d_low) * (step - low)

        past = isfinite(cubic) & ((cubic - step) * (step - low) > 0)
        beyond = where(past, cubic, ahead)
        nearer, farther = _by_distance(step, beyond, secant)
        limit = step + 0.66 * (high - step)
        inside = where(step > low, minimum(limit, nearer), maximum(limit, nearer))
        after_higher = where(abs(cubic - low) < abs(parabola - low), cubic, cubic + 0.5 * (parabola - cubic))
        after_turned = _by_distance(step, cubic, secant)[1]
        after_flatter = where(s.bracketed, inside, minimum(maximum(farther, least), most))
        after_onward = where(s.bracketed, cubic, ahead)
        guess = where(
            higher, after_higher, where(turned, after_turned, where(flatter, after_flatter, after_onward))
        )

        s.high = where(higher, step, where(turned, low, high))
        s.high_rise = where(higher, rise, where(turned, s.low_rise, s.high_rise))
        s.high_slope = where(higher, slope, where(turned, s.low_slope, s.high_slope))
        s.low = where(higher, low, step)
        s.low_rise = where(higher, s.low_rise, rise)
        s.low_slope = where(higher, s.low_slope, slope)
        s.bracketed = s.bracketed | higher | turned
        self._safeguard(s, guess, finite)

    @staticmethod
    def _safeguard(s: Search, guess: Number, finite: Mask) -> None:
        """Keep the trial in the interval, and bisect an interval that does not shrink fast enough."""
        span = s.high - s.low
        middle = s.low + where(finite, 0.5, 0.1) * span
        slow = s.bracketed & (abs(span) >= 0.66 * s.width_before)
        guess = where(slow | (s.bracketed & invert(isfinite(guess))), middle, guess)
        s.width_before = where(s.bracketed, s.width, s.width_before)
        s.width = where(s.bracketed, abs(span), s.width)
        within = minimum(maximum(guess, minimum(s.low, s.high)), maximum(s.low, s.high))
        # An interpolation that lands on an end would repeat it.
        within = where((within == s.low) | (within == s.high), middle, within)
        s.step = where(s.bracketed, within, minimum(guess, FARTHEST + 0.0 * guess))


def _cubic(a: Number, fa: Number, da: Number, b: Number, fb: Number, db: Number) -> Number:
    """The minimiser of the cubic with these values and derivatives at a and b; nan if it has none."""
    theta = 3 * divide(fa - fb, b - a) + da + db
    scale = maximum(maximum(abs(theta), abs(da)), abs(db))
    t, p, q = divide(theta, scale), divide(da, scale), divide(db, scale)
    gamma = scale * sqrt(maximum(t * t - p * q, 0.0 * t))
    gamma = where(b > a, gamma, -gamma)
    return a + divide(gamma - da + theta, gamma - da + gamma + db) * (b - a)


def _by_distance(point: Number, a: Number, b: Number) -> tuple[Number, Number]:
    """The nearer and the farther of two numbers."""
    first = abs(a - point) < abs(b - point)
    return where(first, a, b), where(first, b, a)


def _all(mask: Mask) -> bool:
    return mask if isinstance(mask, bool) else bool(mask.all())
