"""Checkpoints of a whole run on many workers, which a crash at any moment leaves whole.

HOME/000007-step1400/          one checkpoint; complete, for it was moved here when it was
    manifest.json              what is in it: shapes, sizes and checksums of the files
    shared.pt                  model and optimizer, where all workers have the same
    rank-00000.pt …            what each worker has for itself: buffers, a hook's memory, LocalSteps' inner state
    sharded/                   model and optimizer, where they are sharded (torch.distributed.checkpoint)
HOME/.partial-000008           one being written, or left behind by a crash
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hasten
from hasten.distributed.error_feedback import redistributed
from hasten.distributed.snapshot import Snapshot
from hasten.distributed.stored import (
    Entry,
    check,
    check_plain,
    read,
    read_sharded,
    write,
    write_sharded,
)
from hasten.distributed.together import Together
from hasten.files import flush_folder, write_atomically

MANIFEST, SHARED, SHARDED = "manifest.json", "shared.pt", "sharded"
FORMAT = 1
_NAME = re.compile(r"(\d{6,})(?:-step\d+)?")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, is missing or damaged, or does not fit; raised on every worker."""


@dataclass(frozen=True)
class Checkpoint:
    """What was loaded.

    Attributes:
        folder: of this checkpoint.
        step: as it was given to `save`.
        extra: what this worker gave to `save`.
        world: the number of workers that saved it.
    """

    folder: Path
    step: int | None
    extra: Any
    world: int


def save(
    folder: str | Path,
    model: nn.Module,
    optimizer: Any,
    hook: Any = None,
    *,
    step: int | None = None,
    extra: Any = None,
    keep: int = 2,
    group: Any = None,
) -> Path:
    """Write a checkpoint, all workers together; the ones before it stay whole whatever happens.

    Every worker writes its files into a hidden folder and flushes them to the disk; when all have, the folder is moved
    to its place. A worker that dies on the way leaves the hidden folder behind, which the next `save` removes.

    The parameters are saved as they are: at the training point, for an optimizer that has another to evaluate. This is
    for going on with the training.

    Args:
        folder: of all checkpoints of one run, the same for all workers.
        model: a module, or a DistributedDataParallel around it; with plain or sharded (FSDP2, DTensor) parameters.
        optimizer: any optimizer. Its state and the parameters are saved once, or by every worker if the optimizer
            says that they `differ_by_rank`, as :class:`~hasten.distributed.LocalSteps` does.
        hook: a :class:`~hasten.distributed.Hook`, or whatever else has a state on every worker.
        step: how far the training is, for the folder's name.
        extra: this worker's own numbers, strings, tensors, and lists and dicts of them. Random generators are the
            caller's: ``extra={"rng": torch.get_rng_state()}``.
        keep: how many checkpoints to leave in the folder.
        group: the workers; None for the default group. Without torch.distributed there is one worker.

    Returns:
        The folder of this checkpoint.

    Raises:
        CheckpointError: a worker could not write, does not see the folder, or has an `extra` of something else; named
            on every worker.
        WorkerLost: a worker died meanwhile. The checkpoint before this one is whole.
        ValueError: `keep` or `step` is out of its range.

    Example:
        >>> import tempfile
        >>> net = nn.Linear(2, 1)
        >>> opt = hasten.AdamW(net)
        >>> with tempfile.TemporaryDirectory() as home:
        ...     saved = save(home, net, opt, step=10, extra={"epoch": 3})
        ...     loaded = load(home, net, opt)
        >>> saved.name, loaded.step, loaded.extra
        ('000001-step10', 10, {'epoch': 3})
    """
    _check_count("keep", keep, 1)
    if step is not None:
        _check_count("step", step, 0)
    home, state = Path(folder), Snapshot.of(model, optimizer)
    together = Together(group, CheckpointError, f"a worker was lost while a checkpoint was saved to {folder}")
    number = together.first(lambda: _begun(home))
    if whole := together.first(lambda: str(latest(home) or "")):
        together.loss += f"; the one before it, {whole}, is whole"
    partial, final = home / f".partial-{number}", home / (number if step is None else f"{number}-step{step}")

    def written() -> dict[str, Entry]:
        if not partial.is_dir():
            raise FileNotFoundError(
                f"{home} is not the folder that rank 0 has: there is no {partial.name} in it"
            )
        check_plain("extra", extra)
        hook_state = None if hook is None else hook.state_dict()
        own = {"extra": extra, "hook": hook_state, "buffers": state.buffers}
        contents = {f"rank-{together.rank:05d}.pt": {**own, **(state.parts if state.kind == "own" else {})}}
        if together.rank == 0 and state.kind == "shared":
            contents[SHARED] = state.parts
        return {name: write(partial / name, content) for name, content in contents.items()}

    def written_sharded() -> dict[str, Entry]:
        files = write_sharded(partial / SHARDED, state.parts, group)
        return {f"{SHARDED}/{name}": entry for name, entry in files.items()}

    def completed() -> None:
        manifest = {
            "format": FORMAT,
            "versions": {"torch": torch.__version__, "hasten": hasten.__version__},
            "world": together.world,
            "step": step,
            "kind": state.kind,
            "optimizer": type(optimizer).__name__,
            "hook": None if hook is None else type(hook).__name__,
            "model": state.description,
            "optimizer_state": state.optimizer_description,
            "files": entries,
        }
        write_atomically(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        flush_folder(partial)
        partial.rename(final)
        flush_folder(home)
        for old in _all(home)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)

    try:
        entries = _joined(together.all(written))
        if state.kind == "sharded":
            entries |= _joined(together.all(written_sharded))
        together.first(completed)
    except CheckpointError:
        if together.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def load(
    folder: str | Path, model: nn.Module, optimizer: Any, hook: Any = None, *, group: Any = None
) -> Checkpoint:
    """Load the latest checkpoint in a folder, all workers together; everything is checked before anything is changed.

    On as many workers as saved it, training goes on bit for bit. (Under DistributedDataParallel without a hook, on
    three or more, that takes a ``backward`` for nothing before loading: it packs gradients anew after its first one,
    and where a number lies decides in which order the workers' numbers are added.)

    On another number of workers, exchanges' memories are passed on such that their mean is what it was; of what else
    workers have for themselves, worker i receives that of rank i mod W. Under ``LocalSteps`` call ``opt.sync()`` before
    saving if the number of workers may change: steps of an unfinished round are lost with the workers that took them.

    What was saved of a sharded model also loads into a plain one, on any number of workers, one included.

    Files are read as data (``weights_only=True``); only the index of sharded ones, which torch.distributed.checkpoint
    reads, could bring code along. Load checkpoints of sharded models only from where you trust.

    Args:
        folder: as given to `save`, for the latest; or the folder of one checkpoint.
        model: as for `save`.
        optimizer: as for `save`, made in the same way.
        hook: as for `save`; registered already.
        group: the workers.

    Returns:
        Its folder, step and this worker's `extra`.

    Raises:
        CheckpointError: there is none, a file is missing or damaged, or something does not fit; on every worker, and
            nothing is changed on any.
        WorkerLost: a worker died meanwhile.
    """
    together = Together(
        group, CheckpointError, f"a worker was lost while a checkpoint was loaded from {folder}"
    )
    found = Path(together.first(lambda: str(_found(Path(folder)))))
    manifest: dict[str, Any] = {}
    read_here: dict[str, Any] = {}

    def everything_read() -> None:
        _check_fit(found, manifest, state, hook)
        files: dict[str, Entry] = manifest["files"]

        def own(rank: int) -> Any:
            name = f"rank-{rank:05d}.pt"
            return read(found / name, files[name])

        world = manifest["world"]
        if world == together.world:
            read_here.update(own(together.rank))
        else:
            read_here.update(_share([own(rank) for rank in range(world)], together.rank, together.world))
        read_here.update(step=manifest["step"], world=world)
        if state.kind == "shared":
            read_here.update(read(found / SHARED, files[SHARED]))
        shards = [name for name in files if name.startswith(f"{SHARDED}/")]
        for name in shards[together.rank :: together.world]:
            check(found / name, files[name])

    try:
        together.all(lambda: manifest.update(_manifest(found)))
        state = Snapshot.of(model, optimizer, sharded=manifest["kind"] == "sharded")
        together.all(everything_read)
        if state.kind == "sharded":
            together.all(lambda: read_here.update(read_sharded(found / SHARDED, state.parts, group)))
        _put(together, state, hook, read_here)
    except CheckpointError as error:
        before = [path for path in _all(found.parent) if _number(path) < _number(found)]
        hint = f"; the checkpoint before it is {before[-1]}" if before else ""
        raise CheckpointError(f"{error}. Nothing was changed{hint}") from error
    return Checkpoint(found, read_here["step"], read_here["extra"], read_here["world"])


def latest(folder: str | Path) -> Path | None:
    """The latest whole checkpoint in a folder, or None.

    Example:
        >>> latest("no-such-folder") is None
        True
    """
    return next(reversed(_all(Path(folder))), None)


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"save: {name} = {value!r} is not allowed; it must be an integer ≥ {least}")


# -- folders ----------------------------------------------------------------------------------------------------------


def _all(home: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    found = home.iterdir() if home.is_dir() else ()
    whole = [path for path in found if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file()]
    return sorted(whole, key=_number)


def _number(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    return 0 if match is None else int(match[1])


def _begun(home: Path) -> str:
    """Make the hidden folder of the next checkpoint, and remove those left behind; returns its number."""
    home.mkdir(parents=True, exist_ok=True)
    for leftover in home.glob(".partial-*"):
        shutil.rmtree(leftover)
    taken = [int(match[1]) for path in home.iterdir() if (match := _NAME.fullmatch(path.name))]
    number = f"{max(taken, default=0) + 1:06d}"
    (home / f".partial-{number}").mkdir()
    return number


def _found(folder: Path) -> Path:
    if (folder / MANIFEST).is_file():
        return folder
    found = latest(folder)
    if found is None:
        raise FileNotFoundError(f"{folder} holds no checkpoint")
    return found


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        known = manifest["format"] <= FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {error}") from error
    if not known:
        raise ValueError(
            f"{folder} was written by a later hasten: {manifest['versions']}; upgrade to load it"
        )
    return manifest


def _joined(entries: Sequence[dict[str, Entry]]) -> dict[str, Entry]:
    return {name: entry for each in entries for name, entry in each.items()}


# -- contents ---------------------------------------------------------------------------------------------------------


def _check_fit(found: Path, manifest: dict[str, Any], state: Snapshot, hook: Any) -> None:
    kinds = {"shared": "the same on all workers", "own": "each worker's own", "sharded": "sharded"}
    if manifest["kind"] != state.kind:
        raise ValueError(
            f"{found} does not fit: its parameters are {kinds[manifest['kind']]}, the model's {kinds[state.kind]}"
        )
    if (manifest["hook"] is None) != (hook is None):
        given = "no hook is given" if hook is None else f"a {type(hook).__name__} is given"
        raise ValueError(f"{found} does not fit: it was saved with hook = {manifest['hook']}, and {given}")
    for what, own in (("model", state.description), ("optimizer_state", state.optimizer_description)):
        saved = manifest[what]
        for name in [*saved, *own]:
            if saved.get(name) != own.get(name):
                what = what.removesuffix("_state")
                raise ValueError(
                    f"{found} does not fit the {what}: {name!r} is {saved.get(name, 'not in it')}, "
                    f"in the {what} {own.get(name, 'there is none')}"
                )


def _share(owns: Sequence[dict[str, Any]], rank: int, world: int) -> dict[str, Any]:
    """What one of `world` workers receives of what those who saved had for themselves."""
    mine = dict(owns[rank % len(owns)])
    for name in ("hook", "optimizer"):
        if isinstance(mine.get(name), dict) and "exchange" in mine[name]:
            memories = redistributed([own[name]["exchange"] for own in owns], world)
            mine[name] = {**mine[name], "exchange": memories[rank]}
    return mine


def _put(together: Together, state: Snapshot, hook: Any, found: dict[str, Any]) -> None:
    """Load everything; if something is refused on any worker, all workers have what they had."""
    puts = [(state.put_optimizer, copy.deepcopy(state.parts["optimizer"]), found["optimizer"])]
    if hook is not None:
        puts.append((hook.load_state_dict, copy.deepcopy(hook.state_dict()), found["hook"]))
    begun: list[tuple[Callable[[Any], None], Any]] = []

    def put_all() -> None:
        for put, before, after in puts:
            begun.append((put, before))
            put(after)

    try:
        together.all(put_all)
    except BaseException:  # Ctrl-C, too, leaves nothing half-loaded
        for put, before in begun:
            put(before)
        raise
    together.all(lambda: state.put_model({**found["model"], **found["buffers"]}))
