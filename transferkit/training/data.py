"""The batch sources of a run, over pixels that are decoded once for all its phases."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from transferkit.augmentations import Augmentation
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.datasets.base import Part
from transferkit.loading.batches import BatchSource
from transferkit.loading.pixels import Pixels
from transferkit.loading.sources import batches_of, part_of, warn_if_ready


class TrainingData:
    """Training and validation data of one run.

    Args:
        train: A part, a map-style data set or a loader.
        val: The same, or ``None``.
        preprocessing: The model's, or ``None`` where the data is ready for the model.
        device: Where the batches go.
        batch_size: Images in a batch.
        seed: What order and augmentation follow from.
        workers: Number of decoding threads.
    """

    def __init__(
        self,
        train: Any,
        val: Any,
        preprocessing: Preprocessing | None,
        *,
        device: str | torch.device,
        batch_size: int,
        seed: int,
        workers: int | None,
    ) -> None:
        self.train = part_of(train, name="train") or train if hasattr(train, "__getitem__") else train
        self.val = part_of(val, name="val") or val if hasattr(val, "__getitem__") else val
        warn_if_ready(train, self.train_part, preprocessing)
        self._preprocessing = preprocessing
        self._options: dict[str, Any] = {
            "device": device, "batch_size": batch_size, "seed": seed, "workers": workers
        }  # fmt: skip
        self._workers = workers
        self._pixels: dict[tuple[int, Preprocessing], Pixels] = {}

    @property
    def train_part(self) -> Part | None:
        """The training part, unless the data is ready for the model."""
        return self.train if isinstance(self.train, Part) else None

    @property
    def val_part(self) -> Part | None:
        """The validation part, if there is one and it holds images."""
        return self.val if isinstance(self.val, Part) else None

    def training_batches(self, augmentation: Augmentation | None) -> BatchSource:
        """Return shuffled batches of the training part, augmented if asked."""
        return self._batches(self.train, augmentation, shuffle=True)

    def plain_batches(self) -> BatchSource:
        """Return the training part in its own order, unaugmented."""
        return self._batches(self.train, None, shuffle=False)

    def validation_batches(self) -> BatchSource | None:
        """Return the validation part in its own order, or ``None``."""
        return None if self.val is None else self._batches(self.val, None, shuffle=False)

    def _batches(self, data: Any, augmentation: Augmentation | None, *, shuffle: bool) -> BatchSource:
        pixels = None
        if isinstance(data, Part) and self._preprocessing is not None:
            stored = self._preprocessing if augmentation is None else augmentation.stored
            # Mean and std change nothing of the pixels, so they are left out of the key.
            geometry = dataclasses.replace(stored, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
            key = (id(data), geometry)
            if key not in self._pixels:
                self._pixels[key] = Pixels(data, stored, workers=self._workers)
            pixels = self._pixels[key]
        return batches_of(
            data,
            self._preprocessing,
            augmentation=augmentation,
            shuffle=shuffle,
            pixels=pixels,
            **self._options,
        )
