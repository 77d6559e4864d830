"""What importing a library adds to ``import torch``, in fresh processes."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys

PROGRAM = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import {module}
print(middle - start, time.perf_counter() - middle)
"""


def added_by(modules: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of ``import torch``, of the module after it, and their median ratio."""
    present = [module for module in modules if importlib.util.find_spec(module) is not None]
    times: dict[str, list[tuple[float, float]]] = {module: [] for module in present}
    # One round first, unmeasured: it fills the file cache and writes byte code.
    for number in range(rounds + 1):
        for module in present:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM.format(module=module)],
                capture_output=True,
                text=True,
                check=True,
            )
            torch_seconds, added = done.stdout.split()[-2:]
            if number:
                times[module].append((float(torch_seconds), float(added)))
    return {
        module: {
            "torch_seconds": statistics.median(t for t, _ in pairs),
            "added_seconds": statistics.median(a for _, a in pairs),
            "added_ratio": statistics.median(a / t for t, a in pairs),
        }
        for module, pairs in times.items()
    }
