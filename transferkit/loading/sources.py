"""Whatever a user calls data, as a source of batches."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from transferkit.augmentations import Augmentation
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.checks import warn_caller
from transferkit.datasets.base import Part, class_indices
from transferkit.datasets.huggingface import is_huggingface, read_huggingface
from transferkit.errors import DataError
from transferkit.loading.batches import BatchSource, ImageBatches
from transferkit.loading.loader_batches import LoaderBatches
from transferkit.loading.pixels import Pixels
from transferkit.runtime import Execution


class _Images(Sequence[Any]):
    """The images of a map-style data set, as a sequence that ``Part`` can take."""

    def __init__(self, dataset: Any, indices: npt.NDArray[np.int64]) -> None:
        self._dataset = dataset
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def take(self, chosen: npt.NDArray[np.int64]) -> _Images:
        """Return some of the images, without loading any."""
        return _Images(self._dataset, self._indices[chosen])

    def __getitem__(self, index: Any) -> Any:
        image = self._dataset[int(self._indices[index])][0]
        if isinstance(image, Tensor):
            return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        return image


class DatasetPart(Part):
    """A map-style data set of the user's own that gives (image, class index).

    Its images may be transformed at random inside, so they are asked for anew in each epoch.
    """

    fixed: ClassVar[bool] = False

    def __init__(self, dataset: Any, *, name: str = "all") -> None:
        transformed = getattr(dataset, "target_transform", None) is not None
        targets = None if transformed else getattr(dataset, "targets", None)
        if targets is None:
            labels = [dataset[index][1] for index in range(len(dataset))]
            targets = [label.item() if isinstance(label, Tensor) else label for label in labels]
        indices = class_indices(targets)
        classes = getattr(dataset, "classes", None)
        self.has_names = classes is not None
        if classes is None:
            classes = [str(number) for number in range(int(indices.max(initial=-1)) + 1)]
        # torchvision's Imagenette has tuples of several names.
        names = [each if isinstance(each, str) else str(each) for each in classes]
        super().__init__(_Images(dataset, np.arange(len(dataset))), indices, names, name=name)

    def name_of(self, index: int) -> str:
        """Return the id of an image, without loading it."""
        return self.ids[index]

    def take(self, indices: npt.ArrayLike, *, name: str | None = None) -> DatasetPart:
        """Return the part that holds only the images at ``indices``, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        part = copy.copy(self)
        assert isinstance(self.sources, _Images)
        part.sources, part.targets = self.sources.take(chosen), self.targets[chosen]
        part.ids = tuple(self.ids[index] for index in chosen)
        part.name = self.name if name is None else name
        return part


def part_of(data: Any, *, name: str = "all") -> Part | None:
    """Return data as a part, or ``None`` where its samples are tensors ready for the model.

    Raises:
        DataError: It is neither a part nor a map-style data set of images.
    """
    if isinstance(data, Part):
        return data
    sized = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not sized or isinstance(data, (str, bytes, Tensor, np.ndarray, tuple)):
        raise DataError(
            "Data must be a part of load_dataset(...), a map-style dataset of (image, class index) pairs "
            f"or a DataLoader. Got {type(data).__name__} instead."
        )
    if is_huggingface(data):
        return read_huggingface(data).parts["train"]
    if len(data) == 0:
        raise DataError("The data set is empty; at least one image is needed.")
    sample = data[0]
    if not (isinstance(sample, (tuple, list)) and len(sample) >= 2):
        raise DataError(
            f"A sample must be a pair of an image and a class index. Got {type(sample).__name__} instead."
        )
    image = sample[0]
    return None if isinstance(image, Tensor) and image.is_floating_point() else DatasetPart(data, name=name)


def batches_of(
    data: Any,
    preprocessing: Preprocessing | None,
    *,
    device: str | torch.device,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    num_classes: int | None = None,
) -> BatchSource:
    """Return the float32 batches of a part, a map-style data set or a loader; see ``image_batches`` too.

    Args:
        data: A part of ``load_dataset``, a map-style data set of (image, class index), or an
            iterable of batches that are ready for the model, such as a ``DataLoader``.
        preprocessing: The model's; needed unless the data is ready for the model.
        device: Where the batches go.
        batch_size: Images in a batch; a loader has its own.
        shuffle: Whether each epoch has an order of its own; a loader sees to it itself.
        seed: What the order follows from.
        num_classes: Number of the model's outputs, which labels that are met on the way must be below.

    Raises:
        DataError: The data gives images, and there is no preprocessing for them.
    """
    if isinstance(data, DataLoader) or (isinstance(data, Iterable) and not hasattr(data, "__getitem__")):
        return LoaderBatches(data, device=device, num_classes=num_classes)
    part = part_of(data)
    if part is None:
        # A generator of its own keeps the order apart from the user's random state.
        generator = torch.Generator().manual_seed(seed)
        loader: DataLoader[Any] = DataLoader(
            data, batch_size=batch_size, shuffle=shuffle, generator=generator
        )
        return LoaderBatches(loader, device=device, num_classes=num_classes)
    if preprocessing is None:
        raise DataError(
            "The model has no preprocessing for these images; "
            "give it one with transferkit.attach_spec(model, head=..., preprocessing=...)."
        )
    plain = Execution(str(device), "fp32", channels_last=False)
    return image_batches(part, preprocessing, plain, batch_size=batch_size, shuffle=shuffle, seed=seed)


def stored_pixels(
    part: Part,
    preprocessing: Preprocessing,
    augmentation: Augmentation | None,
    *,
    workers: int | None = None,
    decode: str = "fast",
    keep: bool = True,
) -> Pixels:
    """Return the pixels that an augmentation starts from, or those of the preprocessing itself."""
    stored = preprocessing if augmentation is None else augmentation.stored
    reduced = augmentation is not None and augmentation.reduced
    return Pixels(part, stored, workers=workers, decode=decode, keep=keep, reduced=reduced)


def image_batches(
    part: Part,
    preprocessing: Preprocessing,
    execution: Execution,
    *,
    batch_size: int,
    augmentation: Augmentation | None = None,
    shuffle: bool = False,
    seed: int = 0,
    workers: int | None = None,
    pixels: Pixels | None = None,
    keep: bool = True,
) -> ImageBatches:
    """Return the batches of a part in the form in which a model runs.

    Args:
        part: The images.
        preprocessing: The model's.
        execution: Where the batches go, in what form, and how images are decoded.
        batch_size: Images in a batch.
        augmentation: How training images vary; its stored size is what is decoded.
        shuffle: Whether each epoch has an order of its own.
        seed: What order and augmentation follow from.
        workers: Number of decoding threads; ``None`` stands for one for each processor.
        pixels: Images that were decoded before, for the same part and stored size.
        keep: Whether decoded images are kept for later epochs.
    """
    if pixels is None:
        pixels = stored_pixels(
            part, preprocessing, augmentation, workers=workers, decode=execution.decode, keep=keep
        )
    return ImageBatches(
        pixels,
        part.targets,
        preprocessing,
        device=execution.device,
        batch_size=batch_size,
        augmentation=augmentation,
        shuffle=shuffle,
        seed=seed,
        dtype=execution.dtype,
        channels_last=execution.channels_last,
    )


def warn_if_ready(data: Any, part: Part | None, preprocessing: Preprocessing | None) -> None:
    """Say that a data set of float tensors is taken as it is, past the model's own preprocessing."""
    if part is None and preprocessing is not None and hasattr(data, "__getitem__"):
        warn_caller(
            "The data set gives float tensors, which are taken as ready for the model: neither its "
            "preprocessing nor an augmentation is applied. Return PIL images or uint8 tensors instead "
            "to have both."
        )
