"""Zip archives of photos, read where they are: nothing is unpacked to the disk."""

from __future__ import annotations

import os
import threading
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from transferkit.datasets.archives import DAMAGE, zip_entries
from transferkit.datasets.base import PART_NAMES, StoredImage, file_identity
from transferkit.datasets.scan import HIDDEN, is_hidden_folder, is_image, why_no_image
from transferkit.errors import ArchiveError, ImageDecodeError

# No photo that Pillow's own limit of pixels lets pass takes more.
_MAX_BYTES = 2**28


class _Opened(NamedTuple):
    process: int
    file: zipfile.ZipFile
    lock: threading.Lock


class ZipArchive:
    """A zip archive that any number of threads and processes read from.

    Args:
        path: The archive.

    Attributes:
        path: As given.
        identity: A text that changes when the archive does.

    Raises:
        ArchiveError: It is damaged, or holds what must not be unpacked; see ``extract``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity = file_identity(path)
        self._opened: _Opened | None = None
        try:
            with zipfile.ZipFile(path) as file:
                entries = list(zip_entries(file, path))
        except DAMAGE as error:
            raise ArchiveError(f"'{path}' is damaged, or no zip archive ({error}).") from error
        self.folders = [parts for parts, info in entries if info.is_dir()]
        self.files = {parts: info.filename for parts, info in entries if not info.is_dir()}
        self._checksums = {info.filename: info.CRC for _, info in entries if not info.is_dir()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def checksum(self, name: str) -> int:
        """Return the CRC-32 of an entry's content, as the archive records it."""
        return self._checksums[name]

    def read(self, name: str) -> bytes:
        """Return the content of an entry.

        Raises:
            ImageDecodeError: The entry is damaged or far too large, or the archive has changed.
        """
        try:
            opened = self._file()
            info = opened.file.getinfo(name)
            if info.file_size > _MAX_BYTES:
                raise ValueError(f"its {info.file_size} bytes exceed the limit of {_MAX_BYTES}")
            with opened.lock:  # a ZipFile counts its readers without a lock; they may read at once
                stream = opened.file.open(info)
            try:
                # With a size, no more than that is unpacked, whatever the header claims.
                return stream.read(info.file_size + 1)
            finally:
                with opened.lock:
                    stream.close()
        except (*DAMAGE, KeyError, MemoryError) as error:
            reason = str(error).strip().rstrip(".") or type(error).__name__
            raise ImageDecodeError(f"The image '{self.path}/{name}' cannot be read: {reason}.") from error

    def _file(self) -> _Opened:
        """Return the archive opened by this process; a position in a file would be shared with others."""
        opened, process = self._opened, os.getpid()
        if opened is None or opened.process != process:
            if file_identity(self.path) != self.identity:
                raise ValueError("the archive has changed since it was listed")
            opened = self._opened = _Opened(process, zipfile.ZipFile(self.path), threading.Lock())
        return opened


class ZipEntry(StoredImage):
    """An image in a zip archive."""

    def __init__(self, archive: ZipArchive, entry: str) -> None:
        self.archive = archive
        self.entry = entry

    @property
    def name(self) -> str:
        """The path of the archive, a slash, and the name of the entry."""
        return f"{self.archive.path}/{self.entry}"

    def read(self) -> bytes:
        """Return the encoded image."""
        return self.archive.read(self.entry)

    def identity(self) -> str:
        """Return what tells the archive, the entry and the checksum of its content."""
        return f"{self.archive.identity}|{self.entry}|{self.archive.checksum(self.entry):08x}"


class ZipTree:
    """Lists the folders in a zip archive, as ``Scan`` does those of a real folder.

    A single folder around everything else, as archives often have, is passed over.

    Args:
        path: The archive.

    Attributes:
        root: As given.
        left_out: What is hidden or no image file, as ids; and why.
    """

    def __init__(self, path: Path) -> None:
        self.root = path
        self.left_out: dict[str, str] = {}
        self._archive = ZipArchive(path)
        self._entries: dict[str, str] = {}
        self._tree: dict[str, tuple[list[str], list[str]]] = {"": ([], [])}
        self._listings: dict[str, tuple[list[str], list[str]]] = {}
        for parts in self._archive.folders:
            self._add_folder(parts)
        for parts, entry in self._archive.files.items():
            self._add_folder(parts[:-1])
            self._entries["/".join(parts)] = entry
            self._tree[_below(parts[:-1])][0].append(parts[-1])
        self._outer = ""
        self._outer = self._wrapper()

    def _add_folder(self, parts: tuple[str, ...]) -> None:
        for depth, name in enumerate(parts):
            above = _below(parts[:depth])
            if f"{above}{name}/" not in self._tree:
                self._tree[f"{above}{name}/"] = ([], [])
                self._tree[above][1].append(name)

    def _wrapper(self) -> str:
        """Return the folder that holds everything, unless it is a part or the only class."""
        outer = ""
        while True:
            files, folders = self._tree[outer]
            inner = [name for name in folders if not is_hidden_folder(name)]
            if len(inner) != 1 or inner[0].lower() in PART_NAMES or any(map(is_image, files)):
                return outer
            if not self._tree[f"{outer}{inner[0]}/"][1]:
                return outer
            outer = f"{outer}{inner[0]}/"

    def listing(self, below: str) -> tuple[list[str], list[str]]:
        """Return the ids of the images and of the folders directly in a folder, sorted."""
        if below not in self._listings:
            files, folders = self._tree[self._outer + below]
            images = [below + name for name in files if is_image(name)]
            shown = [f"{below}{name}/" for name in folders if not is_hidden_folder(name)]
            other = {below + name: why_no_image(name) for name in files if not is_image(name)}
            other |= {f"{below}{name}/": HIDDEN for name in folders if is_hidden_folder(name)}
            self.left_out |= dict(sorted(other.items()))
            self._listings[below] = sorted(images), sorted(shown)
        return self._listings[below]

    def source(self, image: str) -> ZipEntry:
        """Return where an image is, given its id."""
        return ZipEntry(self._archive, self._entries[self._outer + image])


def _below(parts: tuple[str, ...]) -> str:
    return "".join(f"{part}/" for part in parts)
