"""Data that is in memory already: arrays, tensors and lists of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.checks import require
from transferkit.datasets.base import Contents, Part, class_indices, listed
from transferkit.errors import ArgumentError, ClassMismatchError, DataError

_PAIR = "a pair (images, targets), or a dict of such pairs with the keys 'train', 'val' and 'test'"


def read_arrays(data: Any, classes: Sequence[str] | None = None) -> Contents:
    """Read ``(images, targets)``, or a dict of such pairs for the parts.

    Args:
        data: Images are uint8 in 0…255, or floats in [0, 1]; shape ``[N, H, W, 3]``,
            ``[N, 3, H, W]``, or ``[N, H, W]`` for grey (or with one channel). Where the shape
            alone does not tell, arrays have their channels last and tensors first. Targets are
            class indices, or names of classes, shape ``[N]``.
        classes: Name of each class. By default the names among the training targets, sorted, or
            the class indices as text.

    Raises:
        ArgumentError: The argument is none of these, or an image has another type or range.
        ClassMismatchError: A target names a class that is not among ``classes``.
        DataError: Targets do not fit the images.
    """
    pairs = data if isinstance(data, Mapping) else {"train": data}
    known = {"train", "val", "test"}
    require("train" in pairs and pairs.keys() <= known, "load_dataset", "name_or_path", _PAIR, list(pairs))
    for pair in pairs.values():
        fits = isinstance(pair, tuple | list) and len(pair) == 2
        require(fits, "load_dataset", "name_or_path", _PAIR, type(pair).__name__)
    pixels = {name: _pixels(images) for name, (images, _) in pairs.items()}
    targets = {name: _to_numpy(labels) for name, (_, labels) in pairs.items()}
    names = classes_of(targets["train"]) if classes is None else tuple(str(label) for label in classes)
    parts = {name: Part(pixels[name], indices_of(targets[name], names), names, name=name) for name in pairs}
    return Contents("memory", "arrays", parts)


def _to_numpy(values: Any) -> npt.NDArray[Any]:
    if hasattr(values, "detach"):  # a tensor, on whatever device; numpy knows no bfloat16
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ArgumentError(
            f"Images and targets in memory must be arrays, tensors or lists of equal shapes: {error}."
        ) from error


def _pixels(images: Any) -> npt.NDArray[np.uint8]:
    """Return uint8, shape ``[N, H, W, 3]`` or ``[N, H, W]``."""
    values = _to_numpy(images)
    shape, first, last = list(values.shape), values.shape[1:2], values.shape[3:]
    is_tensor = hasattr(images, "detach")
    if values.ndim == 4 and first[0] in (1, 3) and (is_tensor or last[0] not in (1, 3)):
        values = values.transpose(0, 2, 3, 1)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    fits = values.size > 0 and (values.ndim == 3 or (values.ndim == 4 and values.shape[3] == 3))
    forms = "of shape [N, H, W, 3], [N, 3, H, W] or [N, H, W], and not empty"
    require(fits, "load_dataset", "images", forms, shape)
    kind = "uint8, or floats in [0, 1]"
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        got = f"floats from {low:g} to {high:g}"
        require(low >= 0 and high <= 1, "load_dataset", "images", kind, got)  # NaN fails both
        values = np.rint(values * 255).astype(np.uint8)
    require(values.dtype == np.uint8, "load_dataset", "images", kind, str(values.dtype))
    return np.ascontiguousarray(values)


def classes_of(targets: npt.NDArray[Any]) -> tuple[str, ...]:
    """Return the classes that the training targets name."""
    if targets.dtype.kind == "U":
        return tuple(sorted(set(targets.tolist())))
    indices = class_indices(targets)
    count = int(indices.max(initial=-1)) + 1
    missing = np.setdiff1d(np.arange(min(count, 1_000_000)), indices)
    if missing.size:
        raise DataError(
            f"Class {missing[0]} has no training images, though targets reach {count - 1}; "
            "number the classes from 0 without gaps, or give classes=[...], one name for each index."
        )
    return tuple(str(index) for index in range(count))


def indices_of(targets: npt.NDArray[Any], classes: Sequence[str]) -> npt.NDArray[Any]:
    """Return class indices for targets that are names; others are left as they are."""
    if targets.dtype.kind != "U":
        return targets
    positions = {label: index for index, label in enumerate(classes)}
    unknown = sorted(set(targets.ravel().tolist()) - set(classes))
    if unknown:
        known = listed(classes, "class", "classes")
        raise ClassMismatchError(f"Targets name {listed(unknown, 'class', 'classes')} outside of {known}.")
    return np.array([positions[label] for label in targets.ravel().tolist()]).reshape(targets.shape)
