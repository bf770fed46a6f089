"""Files that are written whole or not at all, and standard output, which may be cut off."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from transferkit.errors import OutputError


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in the place of ``path``.

    Raises:
        OutputError: It cannot be written; the message names the path and the reason.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        # Some writers make files that only their owner can read, whatever the umask says.
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; see ``write_whole``.

    File names need not be valid Unicode; in the text they keep the bytes that they have on disk.
    """

    def write(temporary: Path) -> None:
        temporary.write_bytes(text.encode("utf-8", errors="surrogateescape"))

    write_whole(path, write)


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
