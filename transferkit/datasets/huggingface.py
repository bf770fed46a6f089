"""Hugging Face's ``datasets``: a ``Dataset`` of images and labels, or a ``DatasetDict`` of such.

They are known by what they have, so the package itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from transferkit.checks import require
from transferkit.datasets.arrays import classes_of, indices_of
from transferkit.datasets.base import PART_NAMES, Contents, Part, Source, StoredImage, identity_of, listed
from transferkit.errors import DataError

_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "class", "target")


def is_huggingface(data: Any) -> bool:
    """Whether data is a Hugging Face ``Dataset``, or a dict of them."""
    if isinstance(data, Mapping):
        return bool(data) and all(is_huggingface(each) for each in data.values())
    return isinstance(getattr(data, "features", None), Mapping)


class HuggingFaceImage(StoredImage):
    """An image in a row of a ``Dataset``; it is read still encoded where the data set allows."""

    # A number of a row says nothing of the image.
    named: ClassVar[bool] = False

    def __init__(self, dataset: Any, column: str, row: int) -> None:
        self.dataset = dataset
        self.column = column
        self.row = row

    @property
    def name(self) -> str:
        """The column and the row."""
        return f"{self.column}[{self.row}]"

    def read(self) -> Source:
        """Return encoded bytes, a path, or what the data set gives."""
        value = self.dataset[self.row][self.column]
        if isinstance(value, dict):
            content: bytes | None = value.get("bytes")
            return Path(value["path"]) if content is None else content
        image: Source = value
        return image

    def identity(self) -> str:
        """Return what the image is and a hash of it."""
        return identity_of(self.read(), self.name)


def read_huggingface(data: Any, *, image: str | None = None, label: str | None = None) -> Contents:
    """Read a ``Dataset``, or a dict of the splits train, validation (or val, valid) and test.

    Args:
        data: The data set. Its labels are a ``ClassLabel`` (the names are kept), integers or
            texts. A transform of its own is refused, since it may give other images each time.
        image: The column of images. By default the only one of that type, or image or img.
        label: The column of labels. By default the only ``ClassLabel``, or label, labels, class
            or target.

    Raises:
        ArgumentError: There is no column of that name.
        DataError: The data set is a stream, has no such columns, or has a transform.
    """
    splits = data if isinstance(data, Mapping) else {"train": data}
    remarks: list[str] = []
    found: dict[str, tuple[str, Any]] = {}
    for name, dataset in splits.items():
        part = PART_NAMES.get(str(name).lower())
        if part is None:
            remarks.append(f"left out the split {name!r}, which is none of {', '.join(PART_NAMES)}")
        elif part in found:
            raise DataError(f"The data set has two {part!r} splits, {found[part][0]!r} and {name!r}.")
        else:
            found[part] = (str(name), dataset)
    if "train" not in found:
        raise DataError(
            f"The data set has no 'train' split, only {list(splits)}; to use one of them, pass that alone."
        )
    names: tuple[str, ...] | None = None
    parts = {}
    for part in sorted(found, key=("train", "val", "test").index):
        split, dataset = found[part]
        columns, targets = _columns(dataset, image, label)
        if part != "train" and targets.dtype.kind == "i" and targets.size and (targets == -1).all():
            remarks.append(f"took no {part!r} part, since its labels are all -1, which stands for unknown")
            continue
        own = getattr(dataset.features[columns[1]], "names", None)
        if own is None:
            names = classes_of(targets) if names is None else names
            targets = indices_of(targets, names)
        images = _encoded(dataset, columns[0])
        sources = [HuggingFaceImage(images, columns[0], row) for row in range(len(targets))]
        ids = [f"{split}/{row}" for row in range(len(targets))]
        parts[part] = Part(sources, targets, tuple(own or names or ()), name=part, ids=ids)
    return Contents("memory", "huggingface", parts, remarks=tuple(remarks))


def _columns(dataset: Any, image: str | None, label: str | None) -> tuple[tuple[str, str], Any]:
    """Return the names of both columns, and the labels."""
    if not hasattr(dataset, "__len__"):
        raise DataError(
            "The data set is a stream, whose images cannot be drawn from and shuffled; load it without "
            "streaming=True."
        )
    if (getattr(dataset, "format", None) or {}).get("type") == "custom":
        raise DataError(
            "The data set has a transform of its own; take it off with dataset.with_format(None) and give "
            "the trainer an augmentation."
        )
    features = dataset.features
    pair = (
        _column(features, "image", image, "Image", _IMAGE_NAMES),
        _column(features, "label", label, "ClassLabel", _LABEL_NAMES),
    )
    plain = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    return pair, np.asarray(list(plain[pair[1]]))


def _column(
    features: Mapping[str, Any], role: str, given: str | None, kind: str, names: tuple[str, ...]
) -> str:
    if given is not None:
        require(given in features, "load_dataset", role, f"one of the columns {list(features)}", given)
        return given
    typed = [column for column, feature in features.items() if type(feature).__name__ == kind]
    named = [column for column in names if column in (typed or features)]
    if len(typed) == 1 or named:
        return typed[0] if len(typed) == 1 else named[0]
    what = listed(typed, "column") if typed else "no such column"
    raise DataError(
        f"The data set has {what} of {role}s among its columns {list(features)}; name one with {role}=..."
    )


def _encoded(dataset: Any, column: str) -> Any:
    """Return the column of images alone, not decoded, where the data set can do that."""
    if not hasattr(dataset, "cast_column"):
        return dataset
    images = dataset.with_format(None).select_columns([column])
    feature = images.features[column]
    if type(feature).__name__ == "Image":
        images = images.cast_column(column, type(feature)(decode=False))
    return images
