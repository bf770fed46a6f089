"""Checkpoints on disk: each a folder that is whole or not there, its manifest written last."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.checks import warn_caller
from transferkit.errors import CheckpointCorruptError, CheckpointError, CheckpointWriteError
from transferkit.files import parse_json, sync_file, sync_folder
from transferkit.loading.tensor_files import read_tensors, write_tensors
from transferkit.loading.weights import file_digest

_FORMAT = 1
_MANIFEST = "manifest.json"
_STATE = "state.json"
_TENSORS = "tensors.safetensors"
_BEST = "best.safetensors"
# What a manifest may name: a file elsewhere is never opened for it.
_FILES = frozenset({_STATE, _TENSORS, _BEST})


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, read and checked.

    Attributes:
        path: Its folder.
        number: Counts the checkpoints of a run.
        state: Where the run was, as values that JSON can hold.
        tensors: Weights, buffers and the optimizer's state, by name.
        best: The best weights so far, by name; empty where there are none.
    """

    path: Path
    number: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]
    best: dict[str, Tensor]

    @property
    def config(self) -> dict[str, Any]:
        """What the run began with, and what it filled in.

        Raises:
            CheckpointCorruptError: It is not there.
        """
        config = self.state.get("config") if isinstance(self.state, dict) else None
        if not isinstance(config, dict):
            raise CheckpointCorruptError(f"The checkpoint {self.path} is damaged: it has no configuration.")
        return config


class CheckpointFolder:
    """The checkpoints of a run, of which the newest few are kept.

    A checkpoint is written into a folder under another name, every file and the folder itself are
    brought to the disk, and only then is it renamed, so that a crash at any moment leaves the
    checkpoints before it as they were. Older ones are removed after the new one was seen to be whole.

    Args:
        path: Made when something is first written.
        keep: How many are kept.
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path = path
        self._keep = keep

    def write(
        self, state: Mapping[str, Any], tensors: Mapping[str, Tensor], best: Mapping[str, Tensor]
    ) -> Path:
        """Write a checkpoint and remove those that are too many.

        Args:
            state: Values that JSON can hold.
            tensors: Contiguous, on the CPU, none sharing memory with another.
            best: The same, for the best weights.

        Returns:
            Its folder.

        Raises:
            CheckpointWriteError: It cannot be written; those before it are as they were.
        """
        number = max((number for number, _ in self._numbered()), default=0) + 1
        final = self.path / f"{number:06d}"
        temporary = self.path / f".{number:06d}.{os.getpid()}.tmp"
        try:
            # Each file is closed and on the disk before the manifest tells of it.
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            _write(temporary / _STATE, json.dumps(state, allow_nan=False).encode())
            _write_tensors(temporary / _TENSORS, tensors)
            if best:
                _write_tensors(temporary / _BEST, best)
            files = {each.name: _entry(each) for each in sorted(temporary.iterdir())}
            manifest = {"format": _FORMAT, "number": number, "files": files}
            _write(temporary / _MANIFEST, json.dumps(manifest, indent=2).encode())
            sync_folder(temporary)
            temporary.replace(final)
            sync_folder(self.path)
            self._rotate(final)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            raise CheckpointWriteError(
                f"The checkpoint {final} cannot be written: {error.strerror or error} (error {error.errno})."
            ) from error
        return final

    def _rotate(self, newest: Path) -> None:
        """Keep the newest whole checkpoints, once the new one is seen to be one of them."""
        paths = [path for _, path in self._numbered()]
        whole = [path for path in paths if _is_whole(path)]
        if newest not in whole:
            raise OSError(errno.EIO, "it was not found whole after it was written")
        for path in set(paths) - set(whole[-self._keep :]):
            shutil.rmtree(path, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what writers that were killed have left."""
        for path in self.path.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def clear(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.path, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """Return the newest valid checkpoint, by its recorded number; a warning tells of damaged ones.

        Raises:
            CheckpointCorruptError: There are checkpoints, and all of them are damaged.
        """
        failure: CheckpointError | None = None
        for _, path in reversed(self._numbered()):
            try:
                checkpoint = read_checkpoint(path)
            except CheckpointError as error:
                failure = failure or error
                continue
            if failure is not None:
                warn_caller(f"{failure} The run goes on from the one before it, {path}.")
            return checkpoint
        if failure is not None:
            raise CheckpointCorruptError(
                f"{failure} No checkpoint before it is valid; start again in another run directory."
            )
        return None

    def _numbered(self) -> list[tuple[int, Path]]:
        """Return all checkpoints, damaged ones too, in the order in which they were written."""
        found = []
        for path in self.path.glob("[0-9]*"):
            if not path.name.isdecimal() or not path.is_dir():
                continue  # not ours
            try:
                found.append((int(_manifest_of(path)["number"]), path))
            except CheckpointError:
                # Its place is where its name puts it: it may be the newest.
                found.append((int(path.name), path))
        return sorted(found)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, after every file was compared with the manifest.

    Raises:
        CheckpointError: There is none.
        CheckpointCorruptError: A file is missing, damaged, or is not what the manifest says.
    """
    folder = Path(path).expanduser()
    manifest = _manifest_of(folder)
    for name, entry in manifest["files"].items():
        if _entry_or_none(folder / name) != entry:
            raise CheckpointCorruptError(
                f"The checkpoint {folder} is damaged: {name} has changed or is missing."
            )
    try:
        state = parse_json((folder / _STATE).read_bytes())
        tensors = read_tensors(folder / _TENSORS)
        best = read_tensors(folder / _BEST) if _BEST in manifest["files"] else {}
    except (OSError, ValueError) as error:
        raise CheckpointCorruptError(f"The checkpoint {folder} is damaged: {error}.") from error
    return Checkpoint(folder, manifest["number"], state, tensors, best)


def _manifest_of(folder: Path) -> dict[str, Any]:
    try:
        manifest = parse_json((folder / _MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if not folder.is_dir():
            raise CheckpointError(f"There is no checkpoint {folder}.") from None
        raise CheckpointCorruptError(f"The checkpoint {folder} is damaged: {_MANIFEST} is missing.") from None
    except (OSError, ValueError) as error:
        raise CheckpointCorruptError(f"The checkpoint {folder} is damaged: {_MANIFEST}: {error}.") from error
    valid = (
        isinstance(manifest, dict)
        and manifest.get("format") == _FORMAT
        and isinstance(manifest.get("number"), int)
        and isinstance(manifest.get("files"), dict)
        and {_STATE, _TENSORS} <= manifest["files"].keys() <= _FILES
    )
    if not valid:
        raise CheckpointCorruptError(
            f"The checkpoint {folder} is damaged: {_MANIFEST} is not what a run writes."
        )
    return dict(manifest)


def _is_whole(folder: Path) -> bool:
    try:
        files = _manifest_of(folder)["files"]
        return all((folder / name).stat().st_size == entry["size"] for name, entry in files.items())
    except (CheckpointError, OSError, KeyError, TypeError):
        return False


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def _entry_or_none(path: Path) -> dict[str, Any] | None:
    try:
        return _entry(path)
    except OSError:
        return None


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    sync_file(path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_tensors(path, tensors)
    sync_file(path)
