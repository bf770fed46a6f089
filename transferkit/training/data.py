"""The batch sources of a run, over pixels that are decoded once for all its phases."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from transferkit.augmentations import Augmentation
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.datasets.base import Part
from transferkit.errors import DataError
from transferkit.loading.batches import BatchSource, ImageBatches, Ordered
from transferkit.loading.pixels import Pixels
from transferkit.loading.row_batches import RowBatches
from transferkit.loading.row_store import Rows
from transferkit.loading.sources import batches_of, image_batches, part_of, stored_pixels, warn_if_ready
from transferkit.runtime import Execution


class TrainingData:
    """Training and validation data of one run.

    Args:
        train: A part, a map-style data set or a loader.
        val: The same, or ``None``.
        preprocessing: The model's, or ``None`` where the data is ready for the model.
        execution: Where the batches go, and in what form images reach the model.
        seed: What order and augmentation follow from.
        workers: Number of decoding threads.
        batch_size: Images in a batch.
        keep: Whether decoded images are kept for later epochs and phases.
        num_classes: The model's outputs, which the labels of a loader must stay below.

    Attributes:
        seed: As given.
        workers: As given.
        batch_size: As given; it may be changed before batches are asked for.
        keep: As given; it may be changed before batches are asked for.
        execution: As given; it may be changed before batches are asked for.
    """

    def __init__(
        self,
        train: Any,
        val: Any,
        preprocessing: Preprocessing | None,
        *,
        execution: Execution,
        seed: int = 0,
        workers: int | None = None,
        batch_size: int = 64,
        keep: bool = True,
        num_classes: int | None = None,
    ) -> None:
        self.train = part_of(train, name="train") or train if hasattr(train, "__getitem__") else train
        self.val = part_of(val, name="val") or val if hasattr(val, "__getitem__") else val
        warn_if_ready(train, self.train_part, preprocessing)
        self.seed = seed
        self.batch_size = batch_size
        self.keep = keep
        self._preprocessing = preprocessing
        self.execution = execution
        self.workers = workers
        self._num_classes = num_classes
        self._pixels: dict[tuple[int, Preprocessing, bool], Pixels] = {}

    @property
    def train_part(self) -> Part | None:
        """The training part, unless the data is ready for the model."""
        return self.train if isinstance(self.train, Part) else None

    @property
    def val_part(self) -> Part | None:
        """The validation part, if there is one and it holds images."""
        return self.val if isinstance(self.val, Part) else None

    def training_batches(self, augmentation: Augmentation | None, *, balanced: bool = False) -> BatchSource:
        """Return shuffled batches of the training part, augmented or with balanced classes if asked.

        Raises:
            DataError: Classes are to be balanced, and the data is a loader or ready for the model.
        """
        source = self._batches(self.train, augmentation, shuffle=True)
        if balanced:
            if not isinstance(source, Ordered):
                raise DataError("Balanced sampling needs a part or data set whose targets are known.")
            source.balanced = True
        return source

    def plain_batches(self) -> BatchSource:
        """Return the training part in its own order, unaugmented."""
        return self._batches(self.train, None, shuffle=False)

    def validation_batches(self) -> BatchSource | None:
        """Return the validation part in its own order, or ``None``."""
        return None if self.val is None else self._batches(self.val, None, shuffle=False)

    def prefix_batches(self, part: Part, batch_size: int, augmentation: Augmentation | None) -> ImageBatches:
        """Return a part in its own order, for what is frozen and sees each image, or view of it, once."""
        assert self._preprocessing is not None
        return self._image_batches(part, self._preprocessing, augmentation, batch_size=batch_size)

    def row_batches(
        self,
        rows: Tensor | Rows,
        targets: npt.NDArray[np.int64],
        *,
        shuffle: bool,
        views: int = 1,
        balanced: bool = False,
    ) -> RowBatches:
        """Return batches of what is stored for the images of a part; see ``RowBatches``."""
        source = RowBatches(
            rows,
            targets,
            device=self.execution.device,
            batch_size=self.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            views=views,
        )
        source.balanced = balanced
        return source

    def _batches(self, data: Any, augmentation: Augmentation | None, *, shuffle: bool) -> BatchSource:
        if isinstance(data, Part) and self._preprocessing is not None:
            return self._image_batches(
                data, self._preprocessing, augmentation, batch_size=self.batch_size, shuffle=shuffle
            )
        return batches_of(
            data,
            self._preprocessing,
            device=self.execution.device,
            batch_size=self.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            num_classes=self._num_classes,
        )

    def _image_batches(
        self,
        part: Part,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None,
        *,
        batch_size: int,
        shuffle: bool = False,
    ) -> ImageBatches:
        return image_batches(
            part,
            preprocessing,
            self.execution,
            batch_size=batch_size,
            augmentation=augmentation,
            shuffle=shuffle,
            seed=self.seed,
            pixels=self._pixels_of(part, preprocessing, augmentation),
        )

    def _pixels_of(
        self, part: Part, preprocessing: Preprocessing, augmentation: Augmentation | None
    ) -> Pixels:
        stored = preprocessing if augmentation is None else augmentation.stored
        # Mean and std change nothing of the pixels, so they are left out of the key.
        geometry = dataclasses.replace(stored, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        key = (id(part), geometry, augmentation is not None and augmentation.reduced)
        if key not in self._pixels:
            self._pixels[key] = stored_pixels(
                part,
                preprocessing,
                augmentation,
                workers=self.workers,
                decode=self.execution.decode,
                keep=self.keep,
            )
        return self._pixels[key]
