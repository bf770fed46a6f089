"""The data contract: a part is a sequence of images with targets; splits are up to three parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from transferkit.errors import DataError
from transferkit.loading.decode import decode

if TYPE_CHECKING:
    from PIL import Image

Source = Path | bytes | npt.NDArray[np.uint8]
"""Where an image is: a file, an encoded image in memory, or pixels [H, W, 3] or [H, W]."""


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
        DataError: The lengths differ, or a target is not the index of a class.
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
        self.targets: npt.NDArray[np.int64] = np.asarray(targets, dtype=np.int64)
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
        return decode(self.sources[index], name=self.ids[index]), int(self.targets[index])

    def __repr__(self) -> str:
        return f"Part({self.name!r}, {len(self)} images, {len(self.classes)} classes)"

    def source(self, index: int) -> Source:
        """Return where an image is: a path, encoded bytes or uint8 pixels."""
        return self.sources[index]

    def identity(self, index: int) -> str:
        """Return a text that changes when the image does, without decoding it.

        A file's is its path, size and time of change; any other image's a hash of its bytes.
        """
        source = self.sources[index]
        if isinstance(source, Path):
            status = source.stat()
            return f"{source.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        data = source if isinstance(source, bytes) else np.ascontiguousarray(source).tobytes()
        return hashlib.blake2b(data, digest_size=16).hexdigest()

    def take(self, indices: npt.ArrayLike, *, name: str | None = None) -> Part:
        """Return the part that holds only the images at ``indices``, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        sources = (
            self.sources[chosen]
            if isinstance(self.sources, np.ndarray)
            else [self.sources[i] for i in chosen]
        )
        return Part(
            sources,
            self.targets[chosen],
            self.classes,
            name=self.name if name is None else name,
            ids=[self.ids[i] for i in chosen],
        )

    def fingerprint(self) -> str:
        """Return a hash of the ids and targets: equal for the same images with the same labels."""
        digest = hashlib.sha256()
        for name, target in sorted(zip(self.ids, self.targets.tolist(), strict=True)):
            digest.update(f"{name}\0{self.classes[target]}\n".encode())
        return digest.hexdigest()[:32]


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
    record: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class, in the order of the targets."""
        return self.train.classes
