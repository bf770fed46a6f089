"""Where the cache is, how large it may be, what it holds, and how it is thinned out.

The layout, in which every name follows from what is stored::

    ROOT/KIND/ENTRY/recipe.json                             how the rows of an entry were made
    ROOT/KIND/ENTRY/SEGMENT/{rows.npy,ids.npy,index.json}   rows that were written together
    ROOT/KIND/.writing-MACHINE-PROCESS-TOKEN/               a segment that is not finished

Nothing else in these folders is touched, and no link is followed below the root.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import stat
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from transferkit.checks import require
from transferkit.errors import ArgumentError, OutputError

KINDS = ("features", "pixels")
RECIPE, INDEX, IDS, ROWS = "recipe.json", "index.json", "ids.npy", "rows.npy"

_DEFAULT_LIMIT = 10 * 10**9
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

_KIND = re.compile("|".join(KINDS))
_ENTRY = re.compile(r"[0-9a-f]{20}")
_SEGMENT = re.compile(r"[0-9a-f]{32}")
_WRITING = re.compile(r"\.writing-([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}")
_DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Entry:
    """What the cache holds of one recipe.

    Attributes:
        kind: ``"features"`` or ``"pixels"``.
        description: What the rows are, in a few words of the recipe.
        rows: How many there are.
        nbytes: What they take on disk.
        last_used: When they were last read or written, in seconds since 1970.
        path: The folder that holds them.
    """

    kind: str
    description: str
    rows: int
    nbytes: int
    last_used: float
    path: Path


def cache_root() -> Path:
    """Return the folder of the cache; it need not exist.

    The variable ``TRANSFERKIT_CACHE`` names it; a relative path counts from the folder in which
    the process works when it first asks for it, and stays there. Otherwise it is ``transferkit`` in
    ``$XDG_CACHE_HOME`` or, without that, in the system's place for caches.

    Raises:
        ArgumentError: Neither variable is set, and there is no home directory.
    """
    named = os.environ.get("TRANSFERKIT_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    local = os.environ.get("LOCALAPPDATA")
    try:
        if named:
            return _absolute(Path(named).expanduser())
        if shared and Path(shared).is_absolute():  # its specification has relative paths ignored
            return Path(shared) / "transferkit"
        if sys.platform == "win32" and local:
            return Path(local) / "transferkit" / "Cache"
        caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
        return Path.home() / caches / "transferkit"
    except RuntimeError:
        raise ArgumentError(
            "There is no home directory to keep the cache in; "
            "the variable TRANSFERKIT_CACHE must name a folder for it."
        ) from None


@functools.cache  # a process that goes to another folder later keeps its cache
def _absolute(path: Path) -> Path:
    return path.absolute()


def cache_limit() -> int:
    """Return how many bytes the cache may hold: 10 GB, or what ``TRANSFERKIT_CACHE_SIZE`` says.

    Raises:
        ArgumentError: The variable is not a size.
    """
    text = os.environ.get("TRANSFERKIT_CACHE_SIZE", "").strip()
    if not text:
        return _DEFAULT_LIMIT
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", text.upper(), re.ASCII)
    requirement = "a size such as '20GB', '500MB' or '0'"
    require(match is not None, "the environment", "TRANSFERKIT_CACHE_SIZE", requirement, text)
    assert match is not None
    units = _BINARY_UNITS if match[3] else _UNITS
    return int(Decimal(match[1]) * units[match[2]])


def readable_size(nbytes: int) -> str:
    """Return a number of bytes as people read it.

    >>> readable_size(512), readable_size(5_120_000), readable_size(10 * 10**9)
    ('512 B', '5.1 MB', '10.0 GB')
    """
    for unit in ("TB", "GB", "MB", "kB"):
        factor = _UNITS[unit[0].upper()]
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes} B"


def entries(root: Path, kind: str | None = None) -> list[Entry]:
    """Return what the cache holds, of one kind or all, the last used first."""
    found = []
    for folder in _entry_folders(root, kind):
        segments = segment_folders(folder)
        if segments:
            usage = [_usage(segment) for segment in segments]
            found.append(
                Entry(
                    kind=folder.parent.name,
                    description=_description(_read_json(folder / RECIPE)),
                    rows=sum(_row_count(segment) for segment in segments),
                    nbytes=sum(nbytes for nbytes, _ in usage),
                    last_used=max(used for _, used in usage),
                    path=folder,
                )
            )
    return sorted(found, key=lambda entry: -entry.last_used)


def clear(root: Path, kind: str | None = None) -> None:
    """Remove what the store has written, of one kind or all; the folders of the kinds stay.

    A process that reads rows keeps them until it ends. What cannot be removed stays, and
    ``entries`` still lists it: files of another user, and on Windows files that are being read.
    """
    _sweep(root)
    for folder in _entry_folders(root, kind):
        for segment in segment_folders(folder):
            remove_segment(segment)
        _remove_if_empty(folder)


def evict(root: Path, limit: int, *, keep: Collection[Path] = ()) -> None:
    """Remove the segments that were used least recently, until the cache is within its limit.

    What dead writers have left is removed too.

    Args:
        root: The folder of the cache.
        limit: Bytes that may stay.
        keep: Folders of segments that must stay.
    """
    _sweep(root)
    segments = [
        (*_usage(segment), segment) for folder in _entry_folders(root) for segment in segment_folders(folder)
    ]
    total = sum(nbytes for nbytes, _, _ in segments)
    for nbytes, _, segment in sorted(segments, key=lambda item: item[1]):
        if total <= limit:
            break
        if segment not in keep and remove_segment(segment):
            total -= nbytes
            _remove_if_empty(segment.parent)


def segment_folders(entry: Path) -> list[Path]:
    """Return the folders of the segments of an entry, sorted by name."""
    return _folders(entry, _SEGMENT)


def remove_segment(folder: Path) -> bool:
    """Remove the files of a segment, and its folder if nothing else is in it.

    Returns:
        Whether all of its files are gone. The rows go first: where Windows holds them
        because they are being read, the segment stays whole.
    """
    for name in (ROWS, IDS, INDEX, RECIPE):
        if not _unlink(folder / name):
            return False
    with contextlib.suppress(OSError):
        folder.rmdir()
    return True


def remove_damaged(folder: Path) -> None:
    """Remove a segment that cannot be used, with what stands in its place or in that of its files."""
    if folder.is_symlink() or not folder.is_dir():  # what a link leads to is not the cache's
        with contextlib.suppress(OSError):
            folder.unlink()
        return
    for name in (ROWS, IDS, INDEX):
        make_way(folder / name)
    remove_segment(folder)


def make_way(path: Path) -> None:
    """Remove what stands where a file belongs and is none: a pipe, a link or an empty folder."""
    with contextlib.suppress(OSError):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            path.rmdir()
        elif not stat.S_ISREG(mode):
            path.unlink()


def open_file(path: Path) -> IO[bytes]:
    """Open a file to read it.

    Raises:
        ValueError: It is no file; to open a pipe would wait for ever.
        OSError: It cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is no file")
    return path.open("rb")


@contextlib.contextmanager
def writing_folder(place: Path) -> Iterator[Path]:
    """Make a folder for a segment that is not finished; what is left of it goes in the end."""
    folder = place / f".writing-{_machine()}-{os.getpid()}-{os.urandom(4).hex()}"
    with output_errors(place):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        remove_segment(folder)


@contextlib.contextmanager
def output_errors(place: Path) -> Iterator[None]:
    """Turn an error of the system into one sentence that names the place and the reason."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"The cache in {place} cannot be written: {error.strerror or error}; "
            "the variable TRANSFERKIT_CACHE can name another place."
        ) from error


def _folders(place: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Return the folders whose names the store gives; a link is none of them."""
    try:
        with os.scandir(place) as found:
            names = [
                item.name
                for item in found
                if pattern.fullmatch(item.name) and item.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []
    return [place / name for name in sorted(names)]


def _entry_folders(root: Path, kind: str | None = None) -> list[Path]:
    kinds = [folder for folder in _folders(root, _KIND) if kind in (None, folder.name)]
    return [entry for folder in kinds for entry in _folders(folder, _ENTRY)]


def _usage(segment: Path) -> tuple[int, float]:
    """Return the bytes of a segment and when it was last used; one without an index never was."""
    nbytes, used = 0, 0.0
    for name in (ROWS, IDS, INDEX):
        with contextlib.suppress(OSError):
            status = (segment / name).lstat()
            nbytes += status.st_size
            used = status.st_mtime if name == INDEX else used
    return nbytes, used


def _read_json(path: Path) -> Any:
    try:
        with open_file(path) as file:
            return json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return None


def _row_count(segment: Path) -> int:
    index = _read_json(segment / INDEX)
    rows = index.get("rows") if isinstance(index, Mapping) else None
    return rows if isinstance(rows, int) else 0


def _description(recipe: Any) -> str:
    """Return the first three short texts and numbers of a recipe; hashes and lists tell nobody anything."""
    words = []
    for name, value in recipe.items() if isinstance(recipe, Mapping) else ():
        if isinstance(value, str) and 0 < len(value) <= 24:
            words.append(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            words.append(f"{name} {value}")
    return ", ".join(words[:3]) or "unknown"


def _unlink(path: Path) -> bool:
    """Remove a regular file; return whether there is none any more."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _remove_if_empty(entry: Path) -> None:
    if not segment_folders(entry) and _unlink(entry / RECIPE):
        with contextlib.suppress(OSError):
            entry.rmdir()


def _sweep(root: Path) -> None:
    """Remove what writers have left that did not live to the end."""
    for kind in _folders(root, _KIND):
        for folder in _folders(kind, _WRITING):
            if _is_abandoned(folder):
                remove_segment(folder)


def _is_abandoned(folder: Path) -> bool:
    match = _WRITING.fullmatch(folder.name)
    assert match is not None
    if match[1] == _machine() and not _is_running(int(match[2])):
        return True
    try:
        newest = max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:  # its writer has just finished
        return False
    return newest < time.time() - _DAY


def _machine() -> str:
    """Return a tag of this machine; in a container, of the space in which its process numbers count."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return hashlib.blake2b(f"{platform.node()} {space}".encode(), digest_size=4).hexdigest()


def _is_running(process: int) -> bool:
    if sys.platform == "win32":  # there, signal 0 is not a question but Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, for another user
        return True
    return True
