"""Files that are written whole or not at all, and standard output, which may be cut off."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transferkit.errors import OutputError

# How file systems say that they cannot put the names in a folder on the disk when asked.
_REFUSALS = {
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EBADF,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
}


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in the place of ``path``.

    The file is on the disk before it takes that place, and the place is on the disk before this
    returns: after a crash, at whatever moment, ``path`` is the old file or the new one, whole.

    Raises:
        OutputError: It cannot be written; the message names the path and the reason. Nothing is
            left beside it, and the old file is as it was, unless the last step failed, which has
            the new name on the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        write(temporary)
        # Some writers make files that only their owner can read, whatever the umask says.
        temporary.chmod(mode)
        sync_file(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error


def is_leftover(path: Path) -> bool:
    """Whether a file is what ``write_whole`` leaves when its process is killed.

    >>> is_leftover(Path("run/.config.json.77-0a1b2c3d.tmp")), is_leftover(Path("run/config.json"))
    (True, False)
    """
    return re.fullmatch(r"\..+\.\d+-[0-9a-f]{8}\.tmp", path.name) is not None


def sync_file(path: Path) -> None:
    """Have on the disk what was written to a file, whoever wrote it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the file system lets it be asked for.

    Windows does not, and does so by itself.
    """
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; see ``write_whole``.

    File names need not be valid Unicode; in the text they keep the bytes that they have on disk.
    """

    def write(temporary: Path) -> None:
        temporary.write_bytes(text.encode("utf-8", errors="surrogateescape"))

    write_whole(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON that people can read; see ``write_text``.

    Raises:
        OutputError: The file cannot be written.
        TypeError: JSON cannot hold the value.
        ValueError: A number in it is NaN or infinite.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text of unknown origin holds.

    Raises:
        ValueError: It is not JSON, is nested too deeply, or a number in it is NaN, infinite or of more
            than 64 bits.

    >>> parse_json('{"mean": [0.5, 1e999]}')
    Traceback (most recent call last):
    ...
    ValueError: it holds the number 1e999
    """
    try:
        return json.loads(text, parse_float=_number, parse_int=_number, parse_constant=_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _number(text: str) -> int | float:
    if len(text) < 400:  # as long as the longest that Python writes
        value: int | float = int(text) if text.lstrip("-").isdecimal() else float(text)
        if math.isfinite(value) and (isinstance(value, float) or -(2**63) <= value < 2**63):
            return value
    raise ValueError(f"it holds the number {text[:20]}")


def write_stdout(text: str) -> None:
    """Write to standard output at once. If its reader has left, there is nobody to tell.

    Raises:
        OutputError: It cannot be written, such as on a full disk.
    """
    try:
        print(text, end="", flush=True)
    except OSError as error:
        # What is left would be written, and fail, once more when the interpreter ends.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise OutputError(f"Standard output cannot be written: {error.strerror or error}.") from error
