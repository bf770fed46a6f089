"""A walk through a data set's folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from transferkit.datasets.base import Source, StoredImage
from transferkit.errors import DataError

# A .gif is left out: in scraped data sets it is a placeholder ("imageNotFound.gif"), not a photo.
EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
    )
)

# What macOS and Synology put beside photos; the files in them have the same extensions.
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir"})

HIDDEN = "hidden"


class Tree(Protocol):
    """Folders with images in them, on the disk or in an archive."""

    root: Path
    left_out: dict[str, str]

    def listing(self, below: str) -> tuple[list[str], list[str]]:
        """Return the ids of the images and of the folders directly in a folder, sorted."""

    def source(self, image: str) -> Source | StoredImage:
        """Return where an image is, given its id."""


def images_below(tree: Tree, below: str) -> list[str]:
    """Return the ids of all images in a folder, however deep."""
    found: list[str] = []
    waiting = [below]
    while waiting:
        images, folders = tree.listing(waiting.pop())
        found += images
        waiting += reversed(folders)
    return found


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def why_no_image(name: str) -> str:
    """Return why a file of this name is left out."""
    return HIDDEN if name.startswith(".") else "no image file"


def is_hidden_folder(name: str) -> bool:
    """Whether a folder of this name is passed over."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


class Scan:
    """Lists a data set's folders, and meets each real one at most once, whatever links there are.

    Args:
        root: The data set's folder.

    Attributes:
        left_out: What is hidden, no image file, or a link to a folder met before, as ids, which
            are paths below the root, with slashes; and why.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.left_out: dict[str, str] = {}
        self._met = {_identity(root)}
        self._listings: dict[str, tuple[list[str], list[str]]] = {}

    def listing(self, below: str) -> tuple[list[str], list[str]]:
        """Return the ids of the images and of the folders directly in a folder, sorted.

        Args:
            below: The id of the folder, which ends in a slash; ``""`` for the root.

        Raises:
            DataError: The folder cannot be read.
        """
        if below not in self._listings:
            try:
                self._listings[below] = self._read(below)
            except OSError as error:
                folder = self.root / below
                raise DataError(f"The folder '{folder}' cannot be read: {error.strerror}.") from error
        return self._listings[below]

    def images(self, below: str) -> list[str]:
        """Return the ids of all images in a folder, however deep."""
        return images_below(self, below)

    def source(self, image: str) -> Path:
        """Return where an image is, given its id."""
        return self.root / image

    def _read(self, below: str) -> tuple[list[str], list[str]]:
        images: list[str] = []
        folders: list[str] = []
        links: list[str] = []
        other: dict[str, str] = {}
        with os.scandir(self.root / below) as entries:
            for entry in entries:
                name = below + entry.name
                # Neither asks for the file's status, unless it is a link.
                if _is(entry, folder=True):
                    if is_hidden_folder(entry.name):
                        other[f"{name}/"] = HIDDEN
                    else:
                        (links if entry.is_symlink() else folders).append(f"{name}/")
                elif not is_image(entry.name) or not _is(entry, folder=False):
                    other[name] = why_no_image(entry.name)
                else:
                    images.append(name)
        self.left_out |= dict(sorted(other.items()))
        # Real folders first: where a link leads to one of them, the link is what is left out.
        kept = [folder for folder in sorted(folders) + sorted(links) if self._meet(folder)]
        return sorted(images), sorted(kept)

    def _meet(self, folder: str) -> bool:
        identity = _identity(self.root / folder)
        if identity in self._met:
            self.left_out[folder] = "met before"
            return False
        self._met.add(identity)
        return True


def _is(entry: os.DirEntry[str], *, folder: bool) -> bool:
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:  # a link to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
