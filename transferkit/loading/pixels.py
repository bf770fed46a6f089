"""Images decoded once, to uint8 pixels of the size that preprocessing or augmentation needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.checks import check_choice, warn_caller
from transferkit.datasets.base import Part
from transferkit.errors import OutputError
from transferkit.loading.image_pixels import fitted, read_pixels
from transferkit.loading.memory import available_memory, free_memory
from transferkit.loading.row_segments import RowType
from transferkit.loading.row_store import Rows, RowStore
from transferkit.runtime import DECODINGS, available_processors

# Pixels are kept where they take at most this share of the memory that is free at the start.
_SHARE_OF_MEMORY = 0.5
# They are kept on a device too where they take at most this share of what is free there.
_SHARE_OF_DEVICE = 0.25
# So many images tell how much memory all of them take, where that is not certain to be there.
_SAMPLE = 32
# So many are decoded at a time on their way to the disk.
_BLOCK = 256


class Group(NamedTuple):
    """Images of one size in a batch.

    Attributes:
        positions: Where they are in the batch, shape ``[n]``.
        images: uint8, shape ``[n, H, W, 3]``.
    """

    positions: npt.NDArray[np.int64]
    images: Tensor


class Pixels:
    """The pixels of a part under one preprocessing, decoded when first asked for.

    They are kept in memory while they fit in half of what is free, so that later epochs decode
    nothing; images that are small before they are enlarged are kept as they are, and take less.
    What does not fit is kept in the cache on disk, where later runs find it too; what does not
    fit there either is decoded each time. Images that may differ from one access to the next are
    never kept, and come one after another from the calling thread.

    Args:
        part: The images.
        preprocessing: How each is resized and cropped; its mean and std play no role here.
        workers: Number of decoding threads; ``None`` stands for one for each processor.
        decode: ``"fast"``, or ``"exact"`` for the pixels of ``preprocessing.pixels`` to the bit.
        keep: Whether to keep them; ``False`` for a single pass, which then needs no memory.
        reduced: Whether large photos may be decoded at a reduced scale; see ``read_pixels``.

    Attributes:
        preprocessing: As given.
        fixed: Whether an image is the same each time.
    """

    def __init__(
        self,
        part: Part,
        preprocessing: Preprocessing,
        *,
        workers: int | None = None,
        decode: str = "fast",
        keep: bool = True,
        reduced: bool = False,
    ) -> None:
        check_choice("Pixels", "decode", decode, DECODINGS)
        self.preprocessing = preprocessing
        self.fixed = part.fixed
        self._part = part
        self._exact = decode == "exact"
        self._reduced = reduced
        self._workers = available_processors() if workers is None else workers
        if not part.fixed:
            self._workers = 0
        self._pool: ThreadPoolExecutor | None = None
        # Two threads may read at once, and what is kept must be set up once.
        self._lock = threading.Lock()
        self._placed = not (keep and part.fixed)
        self._free = 0  # bytes that small images may still take
        self._whole: npt.NDArray[np.uint8] | None = None
        self._has_whole = np.zeros(len(part), dtype=bool)
        self._small: dict[int, npt.NDArray[np.uint8]] = {}
        self._rows: Rows | None = None
        self._copies: dict[torch.device, list[Group]] = {}

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Return the pixels of the images at ``indices``.

        Returns:
            uint8, shape ``[N, 3, size, size]``, the channels last in memory; a copy.
        """
        return self._gathered(indices).permute(0, 3, 1, 2)

    def groups(self, indices: npt.NDArray[np.int64]) -> list[Group]:
        """Return the same images grouped by size, small ones as they are before they are enlarged."""
        self._place()
        if self._rows is not None or self._has_whole[indices].all():
            return [Group(np.arange(len(indices)), self._gathered(indices))]
        images = self._each(self._image, indices)
        positions: dict[tuple[int, ...], list[int]] = {}
        for position, image in enumerate(images):
            positions.setdefault(image.shape, []).append(position)
        return [
            Group(np.array(same), torch.from_numpy(np.stack([images[position] for position in same])))
            for same in positions.values()
        ]

    def kept_on(self, device: torch.device) -> list[Group] | None:
        """Return all images on a device, once they are all in memory and if they fit there.

        They are copied once. Positions are those in the part.
        """
        complete = len(self._small) + int(self._has_whole.sum()) == len(self)
        if complete and device not in self._copies:
            size = int(self._has_whole.sum()) * 3 * self.preprocessing.size**2
            size += sum(image.nbytes for image in self._small.values())
            if size <= _SHARE_OF_DEVICE * free_memory(device):
                everything = np.arange(len(self))
                if self._whole is not None and self._has_whole.all():
                    groups = [Group(everything, torch.from_numpy(self._whole))]
                else:
                    groups = self.groups(everything)
                self._copies[device] = [group._replace(images=group.images.to(device)) for group in groups]
        return self._copies.get(device)

    def _gathered(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Return ``[N, size, size, 3]``."""
        self._place()
        if self._rows is not None:
            return self._rows[indices]
        if self._whole is not None and self._has_whole[indices].all():
            return torch.from_numpy(np.take(self._whole, indices, axis=0))
        size = self.preprocessing.size
        result = np.empty((len(indices), size, size, 3), dtype=np.uint8)

        def fill(position: int) -> None:
            result[position] = fitted(self._image(int(indices[position])), self.preprocessing)

        self._each(fill, range(len(indices)))
        return torch.from_numpy(result)

    def _image(self, index: int) -> npt.NDArray[np.uint8]:
        """Return an image as it is kept, and keep it if it is to be."""
        if index in self._small:
            return self._small[index]
        if self._whole is not None and self._has_whole[index]:
            whole: npt.NDArray[np.uint8] = self._whole[index]
            return whole
        pixels = self._read(index)
        if len(pixels) == self.preprocessing.size:
            if self._whole is not None:
                self._whole[index] = pixels
                self._has_whole[index] = True
        elif pixels.nbytes <= self._free:
            self._free -= pixels.nbytes
            self._small[index] = pixels
        return pixels

    def _read(self, index: int) -> npt.NDArray[np.uint8]:
        return read_pixels(
            self._part.source(index),
            self.preprocessing,
            name=self._part.name_of(index),
            exact=self._exact,
            reduced=self._reduced,
        )

    def _each(self, work: Callable[[int], Any], items: Sequence[int] | npt.NDArray[np.int64]) -> list[Any]:
        """Do some work on each of the items, in threads where that helps; results come in order."""
        workers = min(self._workers, len(items))
        if workers <= 1:
            return [work(int(item)) for item in items]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        # In pieces: handing over every image by itself takes as long as decoding a small one.
        piece = -(-len(items) // (16 * workers))
        pieces = [items[start : start + piece] for start in range(0, len(items), piece)]
        done = self._pool.map(lambda few: [work(int(item)) for item in few], pieces)
        return [result for results in done for result in results]

    def _place(self) -> None:
        """Decide where pixels are kept, before the first is read."""
        with self._lock:
            if self._placed:
                return
            size, count = self.preprocessing.size, len(self)
            budget = int(_SHARE_OF_MEMORY * available_memory())
            if count * 3 * size * size <= budget:
                # The system hands out memory only when it is written to.
                self._whole = np.empty((count, size, size, 3), dtype=np.uint8)
                self._free = budget
            else:
                self._place_outside(budget)
            self._placed = True

    def _place_outside(self, budget: int) -> None:
        """Place what may not fit in memory at full size: on the disk, unless it is small as it is."""
        store = RowStore("pixels", self._recipe())
        ids = [self._part.identity(index) for index in range(len(self))]
        missing = store.missing(ids)
        if len(missing):
            sample = np.linspace(0, len(self) - 1, min(len(self), _SAMPLE)).astype(np.int64)
            if len(self) * np.mean([image.nbytes for image in self._each(self._read, sample)]) <= budget:
                self._free = budget
                return
            wanted = {ids[index]: int(index) for index in missing}  # equal images count once
            if not self._written(store, wanted):
                return
        self._rows = store.rows(ids)

    def _written(self, store: RowStore, wanted: dict[str, int]) -> bool:
        """Decode images into the store, given by id and position; return whether they fit."""
        size = self.preprocessing.size
        if not store.fits(len(wanted), RowType(torch.uint8, (size, size, 3))):
            return False
        try:
            return store.add(list(wanted), self._blocks(np.array(list(wanted.values()))))
        except OutputError as error:
            warn_caller(f"Images are decoded anew in each epoch: {error}")
            return False

    def _blocks(self, indices: npt.NDArray[np.int64]) -> Iterator[Tensor]:
        for start in range(0, len(indices), _BLOCK):
            images = self._each(self._read, indices[start : start + _BLOCK])
            yield torch.from_numpy(np.stack([fitted(image, self.preprocessing) for image in images]))

    def _recipe(self) -> dict[str, Any]:
        """Return everything that changes the pixels, besides the images themselves."""
        import PIL
        import torchvision

        from transferkit import __version__

        record = self.preprocessing
        return {
            "size": f"{record.size} of {record.resize_to} px",
            "crop": record.crop,
            "interpolation": record.interpolation,
            "decode": "exact" if self._exact else "fast",
            "reduced": self._reduced,
            "kernels": torch.backends.cpu.get_cpu_capability(),
            "versions": {
                "transferkit": __version__,
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "pillow": PIL.__version__,
            },
        }
