"""The data contract: a part is a sequence of images with targets; splits are up to three parts."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from transferkit.errors import ClassMismatchError, DataError, ImageDecodeError
from transferkit.loading.decode import decode

if TYPE_CHECKING:
    from PIL import Image

Source = str | os.PathLike[str] | bytes | npt.NDArray[np.uint8]
"""Where an image is: a file, an encoded image in memory, or pixels [H, W, 3] or [H, W].

What else ``decode`` takes, such as a PIL image, may stand there too.
"""


def class_indices(targets: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return class indices as int64, shape ``[N]``.

    Raises:
        DataError: They are not whole numbers of an integer type, or not one for each image.

    >>> class_indices([0.0, 1.5])
    Traceback (most recent call last):
    ...
    transferkit.errors.DataError: Targets must be integers, one class index for each image. \
Got float64 of shape [2] instead.
    """
    try:
        values = np.asarray(targets)
    except (TypeError, ValueError) as error:  # ragged lists, tensors on another device
        raise DataError(f"Targets must be integers, one class index for each image: {error}.") from error
    if values.size == 0:  # an empty list is float64 to numpy
        values = values.astype(np.int64)
    # Floats are refused even where they are whole: NaN or 0.5 among them would become some class.
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise DataError(
            "Targets must be integers, one class index for each image. "
            f"Got {values.dtype} of shape {list(values.shape)} instead."
        )
    return values.astype(np.int64)


class Part:
    """One part of a data set: images that are decoded when asked for, and their targets.

    Args:
        sources: Where each image is: a path, encoded bytes, or uint8 pixels ``[H, W, 3]``.
        targets: Class index of each image, shape ``[N]``.
        classes: Name of each class, in the order of the indices.
        name: ``"train"``, ``"val"``, ``"test"`` or ``"all"``.
        ids: A name for each image that stays the same when the data set moves: the path
            below its root, or the position in an array.

    Raises:
        DataError: The lengths differ, or a target is not an integer or not the index of a class.
    """

    # Whether an image is the same each time it is asked for, so that it may be decoded once.
    fixed: ClassVar[bool] = True

    def __init__(
        self,
        sources: Sequence[Source] | npt.NDArray[np.uint8],
        targets: npt.ArrayLike,
        classes: Sequence[str],
        *,
        name: str = "all",
        ids: Sequence[str] | None = None,
    ) -> None:
        self.sources = sources
        self.targets = class_indices(targets)
        self.classes = tuple(classes)
        self.name = name
        self.ids = tuple(ids) if ids is not None else tuple(str(index) for index in range(len(sources)))
        if not len(sources) == len(self.targets) == len(self.ids):
            raise DataError(
                f"A part needs as many targets and ids as images. "
                f"Got {len(sources)} images, {len(self.targets)} targets and {len(self.ids)} ids."
            )
        wrong = np.flatnonzero((self.targets < 0) | (self.targets >= len(self.classes)))
        if len(wrong):
            raise DataError(
                f"Every target must be at least 0 and below {len(self.classes)}, the number of classes. "
                f"Got {self.targets[wrong[0]]} for {self.ids[wrong[0]]}, and {len(wrong)} such in all."
            )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return an RGB image and its class index."""
        return decode(self.source(index), name=self.ids[index]), int(self.targets[index])

    def __repr__(self) -> str:
        return f"Part({self.name!r}, {len(self)} images, {len(self.classes)} classes)"

    def source(self, index: int) -> Source:
        """Return where an image is: a path, encoded bytes or uint8 pixels."""
        return self.sources[index]

    def identity(self, index: int) -> str:
        """Return a text that changes when the image does, without decoding it.

        A file's is its path, its size, the times at which its content and the file itself last
        changed, and its number on the disk. Any other image's is what it is (encoded, or pixels of
        a type and shape) and a hash of its bytes; a PIL image is converted to RGB for that.

        Raises:
            ImageDecodeError: A file is missing, or the source is none that ``decode`` takes.
        """
        source = self.source(index)
        if isinstance(source, str | os.PathLike):
            return _file_identity(Path(source))
        if isinstance(source, bytes | bytearray | memoryview):
            return f"encoded|{_hash(source)}"
        # Equal bytes are other images in another shape.
        pixels = (
            source if isinstance(source, np.ndarray) else np.asarray(decode(source, name=self.ids[index]))
        )
        shape = " x ".join(map(str, pixels.shape))
        return f"{pixels.dtype.str} {shape}|{_hash(np.ascontiguousarray(pixels).tobytes())}"

    def take(self, indices: npt.ArrayLike, *, name: str | None = None) -> Part:
        """Return the part that holds only the images at ``indices``, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        sources = (
            self.sources[chosen]
            if isinstance(self.sources, np.ndarray)
            else [self.sources[i] for i in chosen]
        )
        # A copy, so that a subclass stays what it is.
        part = copy.copy(self)
        part.sources, part.targets = sources, self.targets[chosen]
        part.ids = tuple(self.ids[i] for i in chosen)
        part.name = self.name if name is None else name
        return part

    def with_classes(self, classes: Sequence[str], *, name: str | None = None) -> Part:
        """Return the same images with targets that count through other classes, matched by name.

        Raises:
            ClassMismatchError: There are images of a class that is not among ``classes``.
            DataError: Two classes share a name.
        """
        for names in (self.classes, classes):
            if len(set(names)) < len(names):
                raise DataError(f"Classes are matched by name, and two have the same one: {list(names)}.")
        positions = {label: index for index, label in enumerate(classes)}
        moved = np.array([positions.get(label, -1) for label in self.classes], dtype=np.int64)
        part = copy.copy(self)
        part.targets, part.classes = moved[self.targets], tuple(classes)
        part.name = self.name if name is None else name
        extra = [self.classes[index] for index in np.unique(self.targets[part.targets < 0])]
        if extra:
            raise ClassMismatchError(
                f"The {part.name!r} part has {listed(extra, 'class', 'classes')} "
                f"besides the expected {listed(classes, 'class', 'classes')}."
            )
        return part

    def fingerprint(self) -> str:
        """Return a hash of ids and labels: equal for the same images with the same labels.

        Images in memory have no names that tell them apart, so their pixels count too.
        """
        digest = hashlib.sha256()
        for name, index in sorted(zip(self.ids, range(len(self)), strict=True)):
            label = self.classes[self.targets[index]]
            # A data set of the user's own may give other pixels each time, so it is not asked.
            in_memory = self.fixed and not isinstance(self.source(index), str | os.PathLike)
            pixels = self.identity(index) if in_memory else ""
            # File names need not be valid Unicode.
            digest.update(f"{name}\0{label}\0{pixels}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:32]


def _file_identity(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise ImageDecodeError(f"The image '{path}' cannot be read: {error.strerror}.") from error
    # The time of the content alone can be set, as tools that unpack or copy files do.
    changed = f"{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"
    return f"{path.resolve()}|{status.st_size}|{changed}"


def _hash(data: bytes | bytearray | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def listed(names: Sequence[str], singular: str, plural: str = "") -> str:
    """Count names and show up to five of them.

    >>> listed(["a", "b"], "class", "classes")
    "2 classes ('a', 'b')"
    >>> listed(list("abcdefg"), "file")
    "7 files ('a', 'b', 'c', 'd', 'e' and 2 more)"
    """
    noun = singular if len(names) == 1 else plural or f"{singular}s"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} {noun} ({', '.join(repr(name) for name in names[:5])}{more})"


@dataclass(frozen=True)
class Contents:
    """What a source of data holds, before anything is drawn from it.

    Attributes:
        source: How messages and the record call it: a path, a name, or ``"memory"``.
        layout: ``"parts"``, ``"classes"`` or ``"flat"`` for a folder, ``"arrays"``, or ``"registered"``.
        parts: ``"train"`` and, where there are such, ``"val"`` and ``"test"``.
        left_out: What lies there and is no sample.
        remarks: Sentences for the one warning.
        hint: What to try if there turns out to be only one class.
    """

    source: str
    layout: str
    parts: dict[str, Part]
    left_out: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    hint: str = ""


@dataclass(frozen=True)
class Splits:
    """The parts of a data set, and how they came to be.

    Attributes:
        train: The part to train on.
        val: The part on which weights are selected, if there is one.
        test: The part that is looked at last, if there is one.
        record: What ``load_dataset`` was given and what it drew, as values that JSON can hold.
    """

    train: Part
    val: Part | None
    test: Part | None
    record: dict[str, Any] = field(repr=False)  # it may name every image

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class, in the order of the targets."""
        return self.train.classes
