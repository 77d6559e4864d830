"""The files of a checkpoint: written through to the disk, and read only if they are what was written."""

from __future__ import annotations

import io
import os
import warnings
import zlib
from pathlib import Path
from typing import IO, Any, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor

from hasten.files import flush_folder


class Entry(TypedDict):
    """What is known of a file."""

    bytes: int
    crc32: int


class _Summed:
    """A file for writing that keeps the checksum of what went through."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.crc32, self.bytes = file, 0, 0

    def write(self, data: Any) -> int:
        self.crc32 = zlib.crc32(data, self.crc32)
        self.bytes += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write(path: Path, content: Any) -> Entry:
    """Save an object with torch.save, flushed to the disk.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     entry = write(Path(folder) / "a.pt", {"w": torch.ones(2)})
        ...     read(Path(folder) / "a.pt", entry)
        {'w': tensor([1., 1.])}
    """
    with path.open("wb") as file:
        summed = _Summed(file)
        torch.save(content, summed)  # type: ignore[arg-type]  # it asks for write and flush
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": summed.bytes, "crc32": summed.crc32}


def check(path: Path, entry: Entry) -> None:
    """Raise unless a file is there and is, byte for byte, the one that was written.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is another.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise ValueError(f"{path} is damaged: it has {size} bytes, {entry['bytes']} were written")
    if _entry(path)["crc32"] != entry["crc32"]:
        raise ValueError(f"{path} is damaged: its content is not what was written (the checksums differ)")


def read(path: Path, entry: Entry) -> Any:
    """Load a file that `write` wrote, onto the CPU; nothing in it is executed.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not what was written.
    """
    check(path, entry)
    return torch.load(path, map_location="cpu", weights_only=True)


def check_plain(name: str, value: Any) -> None:
    """Raise TypeError unless a value comes back from torch.load(weights_only=True).

    Example:
        >>> check_plain("extra", {"epoch": 3, "rng": torch.get_rng_state()})
        >>> check_plain("extra", Path("a"))
        Traceback (most recent call last):
        TypeError: extra = PosixPath('a') is not allowed; it must be of numbers, strings, tensors, lists and dicts
    """
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception as error:
        raise TypeError(
            f"{name} = {value!r:.200} is not allowed; it must be of numbers, strings, tensors, lists and dicts"
        ) from error


def write_sharded(folder: Path, state: dict[str, Any], group: Any) -> dict[str, Entry]:
    """Save sharded tensors, all workers together, each its shards; returns what this worker wrote, by file name."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(state, storage_writer=FileSystemWriter(folder, sync_files=True), process_group=group)
    flush_folder(folder)
    rank = dist.get_rank() if dist.is_initialized() else 0
    mine = [*folder.glob(f"__{rank}_*"), *([folder / ".metadata"] if _is_first(group) else [])]
    return {path.name: _entry(path) for path in mine}


def read_sharded(folder: Path, state: dict[str, Any], group: Any) -> dict[str, Any]:
    """The tensors named in a state, sharded as they are there, with the values in the folder. The state is left alone.

    Raises:
        RuntimeError: a tensor is not in the folder, or has another shape there.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    found: dict[str, Any] = _emptied(state)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to", category=UserWarning)
        load(found, storage_reader=FileSystemReader(folder), process_group=group)
    return found


def _is_first(group: Any) -> bool:
    return not dist.is_initialized() or dist.get_rank(group) == 0


def _entry(path: Path) -> Entry:
    crc32 = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            crc32 = zlib.crc32(piece, crc32)
    return {"bytes": path.stat().st_size, "crc32": crc32}


def _emptied(value: Any) -> Any:
    """Nested dicts and lists with new tensors in place of the tensors."""
    if isinstance(value, dict):
        return {key: _emptied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_emptied(each) for each in value]
    return torch.empty_like(value) if isinstance(value, Tensor) else value
