"""Choosing how a formula is run when it shall be compiled."""

from __future__ import annotations

from hasten.shared_object import NoCompiler, Unsupported

from .formula import Formula, Layout, Pass, built_once
from .inductor import inductor_pass
from .native import native_pass


@built_once
def compiled_pass(formula: Formula, layout: Layout) -> Pass:
    """The native pass on a CPU, otherwise ``torch.compile``'s; built before it is returned.

    Raises:
        NoCompiler: Neither can be built here.

    Example:
        >>> import torch
        >>> def descend(entry, number):
        ...     return {"param": entry["param"] - number["lr"] * entry["grad"]}, {}
        >>> formula = Formula(("param", "grad"), ("lr",), ("param",), (), descend, "descend")
        >>> step = compiled_pass(formula, Layout((torch.float32,) * 2, torch.float32, "cpu"))
    """
    try:
        return native_pass(formula, layout)
    except NoCompiler:
        # torch.compile's CPU kernels need a compiler as well, and take seconds to find out.
        raise
    except Unsupported as unsupported:
        try:
            return inductor_pass(formula, layout)
        except NoCompiler as error:
            raise NoCompiler(f"{unsupported}, and {error}") from error
