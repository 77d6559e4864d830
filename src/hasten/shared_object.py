"""Building C source into a shared object, once a machine.

Objects are kept in a per-user cache folder: ``$HASTEN_CACHE_DIR``, else ``hasten`` under
``$XDG_CACHE_HOME`` or ``~/.cache``.  Loading one runs its code, so a folder that another user
owns or can write to is refused, and a private temporary folder serves instead.  The name of an
object holds a digest of what it was built from and a digest of its content: a damaged file is
built again, and a file is only ever replaced whole.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

import torch

_FLAGS = (
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-std=gnu11",
    "-shared",
    "-fPIC",
)
_VECTOR_MATH = ["-DHASTEN_MVEC", "-Wl,--as-needed", "-lmvec"]


class Unsupported(Exception):
    """This way of running something cannot run this one; the message says why in one line."""


class NoCompiler(Unsupported):
    """No compiler on this machine can build it; the message says why in one line."""


def build(source: str, entry: str) -> ctypes.CDLL:
    """Compile C ``source``, or find it compiled, and load it.

    Raises:
        NoCompiler: No C compiler was found, or none of the ways of calling it worked.
    """
    compiler = _compiler()
    digest = hashlib.sha256()
    for part in (source, _version(compiler), _cpu(), *_FLAGS, *_openmp_library()):
        digest.update(part.encode() + b"\0")
    name = digest.hexdigest()[:32]
    folder = _folder()
    for path in folder.glob(f"{name}-*.so"):
        library = _load(path, entry)
        if library is not None:
            return library
        path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as workshop:
        made = Path(workshop) / "object.so"
        _compile(compiler, source, made)
        path = folder / f"{name}-{_digest(made)}.so"
        os.replace(made, path)
    library = _load(path, entry)
    if library is None:
        raise NoCompiler(f"the object that {' '.join(compiler)} built cannot be loaded")
    return library


def _compile(compiler: tuple[str, ...], source: str, target: Path) -> None:
    """Try the ways of calling a compiler, best first."""
    openmp = ["-fopenmp", *_openmp_library()]
    ways: tuple[list[str], ...] = (
        ["-march=native", *openmp, *_VECTOR_MATH],
        ["-march=native", *openmp],
        ["-march=native"],
        [],
    )
    glibc = platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"
    text = target.with_suffix(".c")
    text.write_text(source)
    complaint = ""
    for way in ways if glibc else ways[1:]:
        command = [*compiler, *_FLAGS, str(text), "-o", str(target), *way, "-lm"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoCompiler(f"{compiler[0]} cannot be run: {error}") from error
        if result.returncode == 0:
            return
        complaint = next((line for line in result.stderr.splitlines() if "error" in line), "")
    raise NoCompiler(f"{' '.join(compiler)} does not compile: {complaint or 'no message'}")


def _load(path: Path, entry: str) -> ctypes.CDLL | None:
    """Load an object whose content matches its name; ``None`` if it is damaged."""
    try:
        # A truncated object can end the process when it is mapped, so look before loading.
        if path.stem.rpartition("-")[2] != _digest(path):
            return None
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    return library if hasattr(library, entry) else None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _compiler() -> tuple[str, ...]:
    """The C compiler that the user has chosen, else the first of the usual ones."""
    chosen = shlex.split(os.environ.get("CC", ""))
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise NoCompiler(f"CC={chosen[0]!r} is not a program that can be run")
        return tuple(chosen)
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name) is not None:
            return (name,)
    raise NoCompiler("no C compiler found: none of cc, gcc, clang is on PATH, and CC is not set")


@lru_cache
def _version(compiler: tuple[str, ...]) -> str:
    try:
        run = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"{compiler[0]} cannot be run: {error}") from error
    return f"{shutil.which(compiler[0])} {' '.join(compiler)} {run.stdout}"


@lru_cache
def _cpu() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    seen = {line.partition("\t")[0]: line for line in lines if line.startswith(wanted)}
    return platform.machine() + "".join(seen.values())


@lru_cache
def _openmp_library() -> tuple[str, ...]:
    """The OpenMP runtime that torch has loaded: a second one would bring a second set of threads.

    Linking against its file records its soname, under which the loader finds it already there. Other packages
    (scikit-learn) bring a runtime of their own; torch's is the one whose threads the passes share.
    """
    if sys.platform != "linux":
        return ()
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return ()
    paths = sorted({line.split(maxsplit=5)[-1] for line in maps.splitlines() if ".so" in line})
    runtimes = [p for p in paths if Path(p).name.startswith(("libgomp", "libiomp5", "libomp"))]
    torchs = [p for p in runtimes if Path(torch.__file__).parent in Path(p).parents]
    return tuple((torchs or runtimes)[:1])


def _folder() -> Path:
    chosen = os.environ.get("HASTEN_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return _checked_folder(Path(chosen) if chosen else home / "hasten")


def _checked_folder(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if not os.access(folder, os.W_OK | os.X_OK):
            reason = "cannot be written"
        elif not stat.S_ISDIR(status.st_mode):
            reason = "is not a folder"
        elif status.st_uid != os.geteuid():
            reason = "belongs to another user"
        elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            reason = "can be written by other users"
        else:
            return folder
    except OSError as error:
        reason = f"cannot be made: {error.strerror}"
    return _private_folder(str(folder), reason)


@lru_cache
def _private_folder(refused: str, reason: str) -> Path:
    warnings.warn(
        f"the cache folder {refused} {reason}; compiled passes are kept for this process only",
        RuntimeWarning,
        stacklevel=2,
    )
    folder = tempfile.mkdtemp(prefix="hasten-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
