"""Images decoded once, to uint8 pixels of the size that preprocessing or augmentation needs."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.datasets.base import Part
from transferkit.loading.decode import decode

# Pixels are kept where they take at most this share of the memory that is free at the start.
_SHARE_OF_MEMORY = 0.5


def _free_memory() -> int:
    """Return the free memory in bytes, or a careful guess where the system does not tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2 * 1024**3


class Pixels:
    """The pixels of a part under one preprocessing, decoded when first asked for.

    They are kept in memory while they fit in half of what is free, so that later epochs
    decode nothing; otherwise each access decodes anew. Images that may differ from one access
    to the next are never kept, and come one after another from the calling thread.

    Args:
        part: The images.
        preprocessing: How each is resized and cropped; its mean and std play no role here.
        workers: Number of decoding threads; ``None`` stands for one for each processor.
    """

    def __init__(self, part: Part, preprocessing: Preprocessing, *, workers: int | None = None) -> None:
        self._part = part
        self._preprocessing = preprocessing
        self._workers = (os.cpu_count() or 1) if workers is None else workers
        if not part.fixed:
            self._workers = 0
        side = preprocessing.size
        self._kept: Tensor | None = None
        if part.fixed and len(part) * 3 * side * side <= _SHARE_OF_MEMORY * _free_memory():
            self._kept = torch.empty((len(part), 3, side, side), dtype=torch.uint8)
        self._decoded = np.zeros(len(part), dtype=bool)

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Return the pixels of the images at ``indices``: uint8, shape ``[N, 3, size, size]``."""
        if self._kept is None:
            return torch.stack(self._decode(indices))
        missing = np.unique(indices[~self._decoded[indices]])
        for index, pixels in zip(missing, self._decode(missing), strict=True):
            self._kept[index] = pixels
        self._decoded[missing] = True
        return self._kept[torch.from_numpy(indices)]

    def _decode(self, indices: npt.NDArray[np.int64]) -> list[Tensor]:
        # Pillow and torch release the interpreter's lock, so threads decode side by side.
        if self._workers > 1 and len(indices) > 1:
            with ThreadPoolExecutor(self._workers) as pool:
                return list(pool.map(self._decode_one, indices))
        return [self._decode_one(index) for index in indices]

    def _decode_one(self, index: np.int64) -> Tensor:
        image = decode(self._part.source(int(index)), name=self._part.ids[index])
        return self._preprocessing.pixels(image)
