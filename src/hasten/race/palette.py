"""Colours that tell contenders apart on white and on black, in the same order everywhere."""

from __future__ import annotations

COLOURS = (
    "#2f7fd6", "#e2702c", "#17a673", "#9a5fd0", "#e0405e",
    "#12a3b8", "#c98a00", "#d35aa8", "#8c6d5a", "#7a8794",
)  # fmt: skip
DASHES = ("solid", "dash", "dot", "dashdot")


def style(place: int) -> tuple[str, str]:
    """Colour and dash of the contender in a place of the plan; both repeat only together.

    Example:
        >>> style(0), style(10)
        (('#2f7fd6', 'solid'), ('#2f7fd6', 'dash'))
    """
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def translucent(colour: str, alpha: float) -> str:
    """The colour as CSS with an opacity.

    Example:
        >>> translucent("#ff0000", 0.5)
        'rgba(255,0,0,0.5)'
    """
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"
