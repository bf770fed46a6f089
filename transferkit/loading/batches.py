"""Where the batches of a phase come from; the training step is the same for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.augmentations import Augmentation
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.loading.balanced import balanced_order
from transferkit.loading.device_pixels import batches_on_device, to_device
from transferkit.loading.normalize import normalized
from transferkit.loading.pixels import Pixels
from transferkit.seeding import stream


class Batch(NamedTuple):
    """What one step sees.

    Attributes:
        inputs: What the model takes: images ``[N, 3, H, W]`` or features ``[N, D]``.
        targets: Class indices, shape ``[N]``, int64.
        indices: Positions of the samples in their part, shape ``[N]``.
    """

    inputs: Tensor
    targets: Tensor
    indices: npt.NDArray[np.int64]


class BatchSource(Protocol):
    """Gives the batches of an epoch, in an order that follows from the seed alone.

    Attributes:
        targets: Class index of each sample, where they are known.
        replayed: Whether a batch is the same only where all before it in the epoch were asked for, as
            with a data set of the user's own, which may draw random numbers.
    """

    targets: npt.NDArray[np.int64] | None
    replayed: bool

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def samples(self) -> int | None:
        """Return the number of samples in an epoch, where it is known."""
        ...

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from batch ``start`` on; epochs are counted over the whole run."""
        ...


def batch_slices(samples: int, batch_size: int, *, at_least_two: bool = False) -> list[slice]:
    """Cut ``samples`` into batches; every sample is in exactly one.

    Args:
        samples: How many there are.
        batch_size: How many a batch holds; the last may hold fewer.
        at_least_two: Whether a last batch of one joins the one before it, because batch
            norm cannot train on a single value.

    >>> [part.stop - part.start for part in batch_slices(9, 4)]
    [4, 4, 1]
    >>> [part.stop - part.start for part in batch_slices(9, 4, at_least_two=True)]
    [4, 5]
    """
    starts = list(range(0, samples, batch_size))
    if at_least_two and len(starts) > 1 and samples - starts[-1] == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], samples], strict=True)]


class Ordered:
    """The order of samples and its cut into batches, shared by the sources that can be indexed.

    Attributes:
        balanced: Whether a shuffled epoch shows all classes equally often; see ``balanced_order``.
    """

    def __init__(self, targets: npt.NDArray[np.int64], batch_size: int, seed: int, shuffle: bool) -> None:
        self.targets: npt.NDArray[np.int64] | None = targets
        self.replayed = False
        self._labels = torch.from_numpy(targets)
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self.balanced = False
        self._slices = batch_slices(len(targets), batch_size, at_least_two=shuffle)

    def __len__(self) -> int:
        return len(self._slices)

    def samples(self) -> int | None:
        """Return the number of samples in an epoch."""
        return len(self._labels)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        count = len(self._labels)
        if not self._shuffle:
            return np.arange(count)
        generator = stream(self._seed, "order", epoch)
        if self.balanced and self.targets is not None:
            return balanced_order(self.targets, generator)
        return generator.permutation(count)

    def _indices(self, epoch: int, start: int) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the samples of each batch; one that an epoch shows again has another number, modulo ``N``."""
        order = self._order(epoch)
        return (order[part] for part in self._slices[start:])


class ImageBatches(Ordered):
    """Images of a part: decoded once, augmented and normalized as whole batches on the device.

    Args:
        pixels: The decoded images.
        targets: Class index of each, shape ``[N]``.
        preprocessing: Its mean and std normalize the images.
        device: Where the batches go.
        batch_size: Images in a batch.
        augmentation: How the images vary; ``None`` leaves them as they are.
        shuffle: Whether each epoch has an order of its own.
        seed: What order and augmentation follow from.
        dtype: Of the images; other types than float32 are that, rounded.
        channels_last: Whether the channels of the images lie last in memory.
    """

    def __init__(
        self,
        pixels: Pixels,
        targets: npt.NDArray[np.int64],
        preprocessing: Preprocessing,
        *,
        device: str | torch.device,
        batch_size: int,
        augmentation: Augmentation | None = None,
        shuffle: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        super().__init__(targets, batch_size, seed, shuffle)
        self.replayed = not pixels.fixed
        self._pixels = pixels
        self._preprocessing = preprocessing
        self._augmentation = augmentation
        self._device = torch.device(device)
        self._dtype = dtype
        self._channels_last = channels_last

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from batch ``start`` on."""
        return self._batches(self._indices(number, start), number)

    def visit(self, positions: npt.NDArray[np.int64], epoch: int = 0) -> Iterator[Batch]:
        """Yield batches of the images at ``positions``, in that order.

        Args:
            positions: Positions in the part, shape ``[n]``.
            epoch: The epoch whose augmentation the images get.
        """
        slices = batch_slices(len(positions), self._batch_size)
        return self._batches((positions[part] for part in slices), epoch)

    def _batches(self, chosen: Iterator[npt.NDArray[np.int64]], epoch: int) -> Iterator[Batch]:
        # By its number, an image that is shown again is augmented in another way.
        numbers = list(chosen)
        positions = (each % len(self._labels) for each in numbers)
        shown = batches_on_device(self._pixels, positions, self._device)
        for number, (indices, images) in zip(numbers, shown, strict=True):
            if self._augmentation is not None:
                drawn = self._augmentation.draw(self._seed, epoch, number)
                images = self._augmentation.apply(images, to_device(drawn, self._device))
            inputs = normalized(
                images, self._preprocessing, dtype=self._dtype, channels_last=self._channels_last
            )
            yield Batch(inputs, to_device(self._labels[indices], self._device), indices)


class TensorBatches(Ordered):
    """Tensors that are ready for the model: features, or images that are already normalized.

    Args:
        inputs: float32, shape ``[N, ...]``; moved to the device a batch at a time.
        targets: Class index of each, shape ``[N]``.
        device: Where the batches go.
        batch_size: Samples in a batch.
        shuffle: Whether each epoch has an order of its own.
        seed: What the order follows from.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: npt.NDArray[np.int64],
        *,
        device: str | torch.device,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(targets, batch_size, seed, shuffle)
        self._inputs = inputs
        self._device = torch.device(device)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from batch ``start`` on."""
        for indices in self._indices(number, start):
            labels = to_device(self._labels[indices], self._device)
            yield Batch(to_device(self._inputs[indices], self._device), labels, indices)
