"""The data contract: a part is a sequence of images with targets; splits are up to three parts."""

from __future__ import annotations

import copy
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from transferkit.checks import require
from transferkit.datasets.imbalance import imbalance_note
from transferkit.errors import ClassMismatchError, DataError, ImageDecodeError
from transferkit.loading.decode import decode

if TYPE_CHECKING:
    from PIL import Image

Source = str | os.PathLike[str] | bytes | npt.NDArray[np.uint8]
"""Where an image is: a file, an encoded image in memory, or pixels [H, W, 3] or [H, W].

What else ``decode`` takes, such as a PIL image, may stand there too.
"""

PART_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What a part may be called where data lies, and what it is called here."""


class StoredImage(ABC):
    """An image that has to be fetched from something larger, such as an archive, when it is asked for.

    Attributes:
        named: Whether its id tells it apart, as that of a file does; a number in a table does not.
    """

    named: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str:
        """What an error calls it."""

    @abstractmethod
    def read(self) -> Source:
        """Return it in a form that ``decode`` takes. Any number of threads may ask at once."""

    @abstractmethod
    def identity(self) -> str:
        """Return a text that changes when the image does."""


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
        sources: Where each image is: a path, encoded bytes, uint8 pixels ``[H, W, 3]``, or a
            ``StoredImage``, which is read each time that the image is asked for.
        targets: Class index of each image, shape ``[N]``.
        classes: Name of each class, in the order of the indices.
        name: ``"train"``, ``"val"``, ``"test"`` or ``"all"``.
        ids: A name for each image that stays the same when the data set moves: the path
            below its root, or the position in an array.

    Raises:
        ArgumentError: An argument is of another type.
        DataError: The lengths differ, or a target is not an integer or not the index of a class.
    """

    # Whether an image is the same each time it is asked for, so that it may be decoded once.
    fixed: ClassVar[bool] = True

    def __init__(
        self,
        sources: Sequence[Source | StoredImage] | npt.NDArray[np.uint8],
        targets: npt.ArrayLike,
        classes: Sequence[str],
        *,
        name: str = "all",
        ids: Sequence[str] | None = None,
    ) -> None:
        _check_arguments(sources, classes, name, ids)
        self.sources = sources
        self.targets = class_indices(targets)
        self.classes = tuple(classes)
        self.name = name
        self.ids = tuple(ids) if ids is not None else tuple(str(index) for index in range(len(sources)))
        if not len(sources) == len(self.targets) == len(self.ids):
            raise DataError(
                f"A part needs as many targets and ids as images in its sources. "
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
        return decode(self.source(index), name=self.name_of(index)), int(self.targets[index])

    def __repr__(self) -> str:
        return f"Part({self.name!r}, {len(self)} images, {len(self.classes)} classes)"

    def source(self, index: int) -> Source:
        """Return where an image is: a path, encoded bytes or uint8 pixels.

        Raises:
            ImageDecodeError: It lies in an archive and cannot be read from there.
        """
        source = self.sources[index]
        return source.read() if isinstance(source, StoredImage) else source

    def name_of(self, index: int) -> str:
        """Return what an error calls an image: where it is stored, or else its id."""
        stored = self._stored(index)
        return self.ids[index] if stored is None else stored.name

    def _stored(self, index: int) -> StoredImage | None:
        # Another sequence may have to load an image only to tell what it is.
        source = self.sources[index] if isinstance(self.sources, list | tuple) else None
        return source if isinstance(source, StoredImage) else None

    def identity(self, index: int) -> str:
        """Return a text that changes when the image does, without decoding it.

        A file's is its path, its size, the times at which its content and the file itself last
        changed, and its number on the disk. Any other image's is what it is (encoded, or pixels of
        a type and shape) and a hash of its bytes; a PIL image is converted to RGB for that.

        Raises:
            ImageDecodeError: A file is missing, or the source is none that ``decode`` takes.
        """
        stored = self._stored(index)
        return identity_of(self.source(index), self.ids[index]) if stored is None else stored.identity()

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
            pixels = self.identity(index) if self.fixed and not self._has_name(index) else ""
            # File names need not be valid Unicode.
            digest.update(f"{name}\0{label}\0{pixels}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:32]

    def _has_name(self, index: int) -> bool:
        """Whether the id of an image tells it apart, as that of a file does."""
        stored = self._stored(index)
        return isinstance(self.source(index), str | os.PathLike) if stored is None else stored.named


def _check_arguments(sources: object, classes: object, name: object, ids: object) -> None:
    is_list = hasattr(sources, "__len__") and hasattr(sources, "__getitem__")
    fits = is_list and not isinstance(sources, str | bytes | Mapping)
    if isinstance(sources, np.ndarray):
        fits = sources.dtype == np.uint8 and sources.ndim in (3, 4)
    form = "a sequence of paths, encoded images or uint8 arrays, or one array [N, H, W, 3] or [N, H, W]"
    require(fits, "Part", "sources", form, sources)
    require(_are_texts(classes), "Part", "classes", "a sequence of texts", classes)
    require(isinstance(name, str), "Part", "name", "a text", name)
    require(ids is None or _are_texts(ids), "Part", "ids", "a sequence of texts, or None", ids)


def _are_texts(values: Any) -> bool:
    is_list = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str | bytes)
    return is_list and all(isinstance(value, str) for value in values)


def identity_of(source: Source, name: str) -> str:
    """Return a text that changes when an image does; see ``Part.identity``."""
    if isinstance(source, str | os.PathLike):
        return file_identity(Path(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return f"encoded|{_hash(source)}"
    # Equal bytes are other images in another shape.
    pixels = source if isinstance(source, np.ndarray) else np.asarray(decode(source, name=name))
    shape = " x ".join(map(str, pixels.shape))
    return f"{pixels.dtype.str} {shape}|{_hash(np.ascontiguousarray(pixels).tobytes())}"


def file_identity(path: Path) -> str:
    """Return a text that changes when a file does.

    Raises:
        ImageDecodeError: It is missing.
    """
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
        layout: ``"parts"``, ``"classes"`` or ``"flat"`` for a folder or a zip archive, ``"table"``,
            ``"arrays"``, ``"dataset"``, ``"huggingface"`` or ``"registered"``.
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
    record: dict[str, Any] = field(default_factory=dict, repr=False)  # it may name every image

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class, in the order of the targets."""
        return self.train.classes

    def __str__(self) -> str:
        """Return one line: classes, images, and how unequal the classes are if that may matter."""
        names = ", ".join(self.classes[:10]) + (" …" if len(self.classes) > 10 else "")
        parts = {"train": self.train, "val": self.val, "test": self.test}
        counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items() if part is not None)
        note = imbalance_note(self.train)
        return f"{len(self.classes)} classes ({names}); images: {counts}{f'; {note}' if note else ''}"
