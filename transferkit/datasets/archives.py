"""Archives, unpacked so that nothing lands outside of the folder, fills the disk or stays half done.

Names, links, devices and sizes are judged before or while they are unpacked, never afterwards, and
sizes are those of what comes out, not those that a header claims.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from transferkit.checks import check_int, check_positive
from transferkit.errors import ArchiveError, OutputError, TransferkitError

_CHUNK = 2**20
_MAX_SIZE = 200 * 2**30
# An archive of photos unpacks to its own size, one of bitmaps or tables to ten times as much, and
# deflate reaches at most 1032 times: zeros.
_MAX_RATIO = 100.0
# A small archive of plain text may well have a high ratio, and does no harm.
_SLACK = 64 * 2**20
_MAX_DEPTH = 100
# What an entry counts besides its content, so that many empty files add up too.
_ENTRY = 512

_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}

# What the standard library's readers raise on a damaged archive.
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(OSError, EOFError, ValueError, IndexError, RuntimeError),
)


def extract(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    max_size: int = _MAX_SIZE,
    max_ratio: float = _MAX_RATIO,
) -> Path:
    """Unpack an archive into a folder of its own, whole or not at all.

    The format is told from the content. Everything is unpacked into a temporary folder beside
    ``folder``, which takes that name at the end. Files get the permissions that new files get.

    Args:
        archive: A zip file, or a tar file, plain or compressed by gzip, bzip2 or xz.
        folder: Where to; it must not be there yet, or be empty.
        max_size: The most bytes that may come out.
        max_ratio: How many times its own size an archive may unpack to, once that is more than
            64 MiB.

    Returns:
        The folder.

    Raises:
        ArchiveError: The archive is damaged or encrypted, names a file twice, holds a link, a
            device or a name that leads out of the folder, or unpacks to too much; or the folder
            is in use.
        OutputError: A file cannot be written.

    >>> with tempfile.TemporaryDirectory() as place:
    ...     with zipfile.ZipFile(f"{place}/photos.zip", "w") as file:
    ...         file.writestr("ants/1.txt", "an ant")
    ...     (extract(f"{place}/photos.zip", f"{place}/photos") / "ants" / "1.txt").read_text()
    'an ant'
    """
    check_int("extract", "max_size", max_size, 1)
    check_positive("extract", "max_ratio", max_ratio)
    source, target = Path(archive), Path(folder)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ArchiveError(f"'{source}' is not unpacked into '{target}', which is there and not empty.")
    try:
        limit = min(max_size, max(_SLACK, int(max_ratio * source.stat().st_size)))
    except OSError as error:
        raise ArchiveError(f"The archive '{source}' cannot be read: {error.strerror}.") from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise _not_written(target, error) from error
    try:
        content = temporary / "content"
        content.mkdir()
        _unpack(source, _Writer(content, _Budget(source, limit)))
        _take_place(content, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def zip_entries(file: zipfile.ZipFile, archive: Path) -> Iterator[tuple[tuple[str, ...], zipfile.ZipInfo]]:
    """Yield the entries of a zip archive with the parts of their names.

    Raises:
        ArchiveError: An entry must not be unpacked.
    """
    names: set[tuple[str, ...]] = set()
    for info in file.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.flag_bits & 0x1:
            raise _refusal(archive, info.filename, "is encrypted")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refusal(archive, info.filename, "is a link or a device")
        # zipfile limits how much the others unpack at a time by nothing.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refusal(archive, info.filename, "is compressed by another method than deflate")
        parts = _safe_parts(archive, info.filename, is_folder=info.is_dir())
        if parts in names and not info.is_dir():
            raise _refusal(archive, info.filename, "is there twice")
        names.add(parts)
        yield parts, info


def _safe_parts(archive: Path, name: str, *, is_folder: bool) -> tuple[str, ...]:
    """Return the parts of a name that stays below the folder, on every system."""
    windows, parts = PureWindowsPath(name), PurePosixPath(name).parts
    if windows.drive or windows.root or "\\" in name or ".." in parts:
        raise _refusal(archive, name, "has a name that may lead out of the folder")
    if len(parts) > _MAX_DEPTH or not (parts or is_folder):
        raise _refusal(archive, name, "has no name, or lies too deep")
    return parts


def _refusal(archive: Path, name: str, reason: str) -> ArchiveError:
    return ArchiveError(f"'{archive}' is not used: its entry {name!r:.200} {reason}.")


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written: {error.strerror or error}.")


class _Budget:
    """How much may still come out of an archive."""

    def __init__(self, archive: Path, limit: int) -> None:
        self._archive = archive
        self._limit = limit
        self._left = limit

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ArchiveError(
                f"'{self._archive}' is not unpacked: its {self._archive.stat().st_size} bytes become more "
                f"than {self._limit}, as a decompression bomb's would (raise max_size and max_ratio of "
                "extract if it can be trusted)."
            )


class _Writer:
    """Writes entries below a folder; a file is never written over another."""

    def __init__(self, folder: Path, budget: _Budget) -> None:
        self.budget = budget
        self._folder = folder

    def folder(self, parts: tuple[str, ...], archive: Path) -> None:
        path = self._folder.joinpath(*parts)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise _refusal(archive, "/".join(parts), "is there as a file and as a folder") from None
        except OSError as error:
            raise _not_written(path, error) from error

    def file(self, parts: tuple[str, ...], content: IO[bytes], archive: Path, *, counted: bool) -> None:
        """Write one file; ``counted`` says that the budget knows its content already."""
        self.folder(parts[:-1], archive)
        path = self._folder.joinpath(*parts)
        try:
            file = path.open("xb")
        except FileExistsError:  # also where the system takes "A.jpg" and "a.jpg" for one name
            raise _refusal(archive, "/".join(parts), "is there twice") from None
        except OSError as error:
            raise _not_written(path, error) from error
        with file:
            while chunk := content.read(_CHUNK):
                if not counted:
                    self.budget.spend(len(chunk))
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:
                    raise _not_written(path, error) from error


class _Metered(io.RawIOBase):
    """A stream whose every byte counts, and which remembers the last block."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream = stream
        self._budget = budget
        self.last = b""

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(_CHUNK if size < 0 else min(size, _CHUNK))
        self._budget.spend(len(data))
        self.last = (self.last + data[-tarfile.BLOCKSIZE :])[-tarfile.BLOCKSIZE :]
        return data


def _unpack(archive: Path, writer: _Writer) -> None:
    try:
        with archive.open("rb") as file:
            magic = file.read(6)
        if magic.startswith(b"PK"):
            _unpack_zip(archive, writer)
        else:
            _unpack_tar(archive, magic, writer)
    except TransferkitError:
        raise
    except DAMAGE as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise ArchiveError(
            f"'{archive}' is damaged, or neither a zip nor a tar archive ({reason:.200})."
        ) from error


def _unpack_zip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as file:
        for parts, info in zip_entries(file, archive):
            writer.budget.spend(_ENTRY)
            if info.is_dir():
                writer.folder(parts, archive)
            else:
                with file.open(info) as content:
                    writer.file(parts, content, archive, counted=False)


def _unpack_tar(archive: Path, magic: bytes, writer: _Writer) -> None:
    opener: Callable[..., Any] = next(
        (opener for start, opener in _OPENERS.items() if magic.startswith(start)), open
    )
    with opener(archive, "rb") as file:
        stream = _Metered(file, writer.budget)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                parts = _safe_parts(archive, member.name, is_folder=member.isdir())
                if member.isdir():
                    writer.folder(parts, archive)
                    continue
                if not member.isreg() or member.issparse():
                    raise _refusal(archive, member.name, "is a link, a device or a sparse file")
                content = tar.extractfile(member)
                assert content is not None  # a regular file has content
                writer.file(parts, content, archive, counted=True)
            # tarfile takes a damaged or missing header for the end; a real end is zeros up to the last byte.
            # This also reads what compression checks last.
            rest = tar.fileobj
            assert rest is not None
            while data := rest.read(_CHUNK):
                if any(data):
                    raise tarfile.ReadError("a header is damaged")
        if len(stream.last) < tarfile.BLOCKSIZE or any(stream.last):
            raise tarfile.ReadError("it ends early")


def _take_place(content: Path, target: Path) -> None:
    try:
        if target.exists():
            target.rmdir()  # an empty one
        content.rename(target)
    except OSError as error:
        raise _not_written(target, error) from error
