"""Batches of stored rows: features, or what the frozen part of a model gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.loading.batches import Batch, Ordered
from transferkit.loading.device_pixels import to_device
from transferkit.loading.memory import free_memory
from transferkit.loading.row_store import Rows
from transferkit.seeding import uniforms

# Rows are brought to the device whole where they take at most this share of what is free there.
_SHARE = 0.25


def at_hand(rows: Tensor | Rows, device: torch.device) -> Tensor | Rows:
    """Bring rows to the device as a whole where they fit; otherwise leave them where they are."""
    if rows.nbytes > _SHARE * free_memory(device):
        return rows
    return (rows.whole() if isinstance(rows, Rows) else rows).to(device)


class RowBatches(Ordered):
    """Batches of stored rows; where an image has several views, an epoch draws one of them.

    Args:
        rows: What the suffix of a model takes, ``[views * N, ...]``: view 0 of each image, then
            view 1 of each, and so on.
        targets: Class index of each image, shape ``[N]``.
        device: Where the batches go.
        batch_size: Images in a batch.
        shuffle: Whether each epoch has an order of its own.
        seed: What order and views follow from.
        views: Views of each image.
    """

    def __init__(
        self,
        rows: Tensor | Rows,
        targets: npt.NDArray[np.int64],
        *,
        device: str | torch.device,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        views: int = 1,
    ) -> None:
        super().__init__(targets, batch_size, seed, shuffle)
        self._device = torch.device(device)
        self._rows = at_hand(rows, self._device)
        self._labels = self._labels.to(self._device)
        self._views = views

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from batch ``start`` on."""
        for samples in self._indices(number, start):
            places = indices = samples % len(self._labels)
            if self._views > 1:
                drawn = uniforms(self._seed, number, samples, 1)[:, 0]
                places = (drawn * self._views).astype(np.int64) * len(self._labels) + indices
            chosen = to_device(torch.from_numpy(indices), self._device)
            yield Batch(self._gather(places), self._labels.index_select(0, chosen), indices)

    def _gather(self, places: npt.NDArray[np.int64]) -> Tensor:
        if isinstance(self._rows, Rows):
            return to_device(self._rows[places], self._device)
        chosen = to_device(torch.from_numpy(places), self._rows.device)
        return to_device(self._rows.index_select(0, chosen), self._device)
