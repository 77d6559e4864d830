"""The kernels in ``kernels/``, compiled once a machine; without a compiler tensor code does the same."""

from __future__ import annotations

import ctypes
import sys
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from hasten.hashing import FMIX32
from hasten.shared_object import NoCompiler, build

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_PARTS = ("numbers", "tiles", "hashed", "hadamard")
_SERIAL_BELOW = 1 << 16
"""Fewer entries than this are not worth waking other threads for."""


class Kernels:
    """The functions of the shared object, taking tensors on a CPU that are contiguous."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, whole, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        signatures: dict[str, list[type]] = {
            "project": [pointer, pointer, number, pointer, number, number],
            "lift": [pointer, pointer, number, pointer, number, number],
            "columns": [pointer, whole, whole, pointer, number, number],
            "sign_numbers": [ctypes.c_uint64, whole, whole, pointer],
            "normal_numbers": [ctypes.c_uint64, whole, whole, pointer],
            "uniform_numbers": [ctypes.c_uint64, whole, whole, pointer],
            "apply_signs": [
                ctypes.c_uint64,
                pointer,
                number,
                pointer,
                number,
                whole,
                ctypes.c_double,
                number,
            ],
            "in_large_pages": [pointer, whole],
            "spread": [ctypes.c_uint64, pointer, number, whole, pointer, number, number, number],
            "gathered": [
                ctypes.c_uint64,
                pointer,
                number,
                number,
                pointer,
                number,
                whole,
                ctypes.c_double,
                number,
            ],
            "choose": [ctypes.c_uint64, whole, whole, whole, pointer],
        }
        for name, arguments in signatures.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        library.project.restype = number
        self._library = library
        self._types = dict(_TYPES)
        if not library.has_half():
            del self._types[torch.float16]

    def takes(self, *tensors: Tensor) -> bool:
        """Whether these tensors can be handed to C."""
        for tensor in tensors:
            if not tensor.is_cpu or tensor.dtype not in self._types or not tensor.is_contiguous():
                return False
        return True

    def project(self, plan: Sequence[int], g: Tensor, s: Tensor, parts: int) -> None:
        """Write Pᵀg into s (float32 or float64), summed in `parts` stretches (0: without a buffer)."""
        keep = array("Q", plan)
        failed = self._library.project(
            keep.buffer_info()[0],
            g.data_ptr(),
            self._types[g.dtype],
            s.data_ptr(),
            parts,
            _threads(g),
        )
        if failed:
            raise MemoryError(f"no room for {parts} × {s.numel()} sums of a projection")

    def lift(self, plan: Sequence[int], s: Tensor, out: Tensor) -> None:
        """Write P s into out, for s of float32 or float64."""
        keep = array("Q", plan)
        self._library.lift(
            keep.buffer_info()[0],
            s.data_ptr(),
            self._types[s.dtype],
            out.data_ptr(),
            self._types[out.dtype],
            _threads(out),
        )

    def columns(self, plan: Sequence[int], start: int, stop: int, out: Tensor) -> None:
        """Write columns of P into the rows of out, which holds zeros."""
        keep = array("Q", plan)
        self._library.columns(
            keep.buffer_info()[0], start, stop, out.data_ptr(), self._types[out.dtype], _threads(out)
        )

    def signs(self, key: int, start: int, count: int) -> Tensor:
        """±1 at positions start … start + count − 1, float64."""
        out = torch.empty(count, dtype=torch.float64)
        self._library.sign_numbers(key, start, count, out.data_ptr())
        return out

    def normals(self, key: int, start: int, count: int) -> Tensor:
        """Standard normal numbers at positions start … start + count − 1, float64."""
        out = torch.empty(count, dtype=torch.float64)
        self._library.normal_numbers(key, start, count, out.data_ptr())
        return out

    def uniforms(self, key: int, start: int, count: int) -> Tensor:
        """Uniform numbers in [0, 1) at positions start … start + count − 1, float64."""
        out = torch.empty(count, dtype=torch.float64)
        self._library.uniform_numbers(key, start, count, out.data_ptr())
        return out

    def apply_signs(self, key: int, x: Tensor, out: Tensor, factor: float) -> None:
        """Write factor · signs · x into out, for the entries of the shorter of them."""
        kind, kind_out = self._types[x.dtype], self._types[out.dtype]
        count = min(x.numel(), out.numel())
        self._library.apply_signs(
            key, x.data_ptr(), kind, out.data_ptr(), kind_out, count, factor, _threads(out)
        )

    def empty(self, size: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised vector that is used up soon; a long one lies in large pages where the system has them."""
        x = torch.empty(size, dtype=dtype)
        self._library.in_large_pages(x.data_ptr(), x.numel() * x.element_size())
        return x

    def spread(self, key: int, g: Tensor, x: Tensor) -> None:
        """Write the Walsh–Hadamard transform (without a factor) of signs · g, continued by zeros, into x.

        x is float32 or float64 (if g is), with a power of two of entries.
        """
        kind, kind_x, bits = self._types[g.dtype], self._types[x.dtype], x.numel().bit_length() - 1
        self._library.spread(key, g.data_ptr(), kind, g.numel(), x.data_ptr(), kind_x, bits, _threads(x))

    def gathered(self, key: int, x: Tensor, out: Tensor, factor: float) -> None:
        """Write factor · signs · transform of x into out, which may be shorter; x is overwritten."""
        kind, kind_x, bits = self._types[out.dtype], self._types[x.dtype], x.numel().bit_length() - 1
        self._library.gathered(
            key, x.data_ptr(), kind_x, bits, out.data_ptr(), kind, out.numel(), factor, _threads(x)
        )

    def chosen(self, key: int, size: int, rows: int, count: int) -> Tensor:
        """`count` different positions below `size`, from a permutation of a grid with so many rows."""
        out = torch.empty(count, dtype=torch.int64)
        self._library.choose(key, size, rows, count, out.data_ptr())
        return out


def _threads(vector: Tensor) -> int:
    return torch.get_num_threads() if vector.numel() >= _SERIAL_BELOW else 1


@lru_cache
def kernels() -> Kernels | None:
    """The compiled kernels, or None where nothing can be compiled."""
    if sys.platform == "win32":
        return None
    try:
        folder = Path(__file__).with_name("kernels")
        source = FMIX32 + "".join((folder / f"{name}.c").read_text(encoding="utf-8") for name in _PARTS)
        return Kernels(build(source, entry="project"))
    except NoCompiler:
        return None
