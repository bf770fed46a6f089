"""What a user calls data, and who reads it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from transferkit.checks import require
from transferkit.datasets.arrays import read_arrays
from transferkit.datasets.base import Contents, Part
from transferkit.datasets.folder import read_folder
from transferkit.datasets.huggingface import is_huggingface, read_huggingface
from transferkit.datasets.registry import DATASETS
from transferkit.datasets.table import DELIMITERS, read_table
from transferkit.errors import ArgumentError, DataError, UnknownNameError
from transferkit.registry import nearest, shown


class MapStyle(Protocol):
    """What can be asked for its length and for an item."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


Data = str | os.PathLike[str] | MapStyle
"""A path, a name, arrays, a Hugging Face data set, or a map-style data set."""

_FORMS = (
    "a folder, a .zip, .csv or .tsv file, the name of a data set, a pair (images, targets), a map-style data "
    "set, or a dict of such pairs or data sets"
)


def read_data(data: Data, label_from: str | None, kwargs: dict[str, Any]) -> Contents:
    """Read whichever ``data`` means; see ``load_dataset``."""
    if is_huggingface(data):
        _refuse_label_from(label_from, "a Hugging Face data set")
        _check_call("a Hugging Face data set", read_huggingface, (data,), kwargs)
        return read_huggingface(data, **kwargs)
    if _is_map_style(data):
        _refuse_label_from(label_from, "a map-style data set")
        _refuse_arguments(kwargs, "a map-style data set")
        return _read_map_style(data)
    if isinstance(data, Mapping | tuple | list):
        _refuse_label_from(label_from, "arrays")
        _check_call("arrays", read_arrays, (data,), kwargs)
        return read_arrays(data, **kwargs)
    if isinstance(data, str | os.PathLike) and os.fspath(data):
        return _read_path_or_name(data, label_from, kwargs)
    raise ArgumentError(
        f"The 'name_or_path' parameter of load_dataset must be {_FORMS}. Got {shown(data)} instead."
    )


def _read_path_or_name(
    data: str | os.PathLike[str], label_from: str | None, kwargs: dict[str, Any]
) -> Contents:
    path = Path(data).expanduser()
    if os.path.exists(path):
        path = Path(os.path.abspath(path))
        if path.suffix.lower() in DELIMITERS and path.is_file():
            _refuse_label_from(label_from, "a table")
            _check_call("a table", read_table, (path,), kwargs)
            return read_table(path, **kwargs)
        _refuse_arguments(kwargs, "a folder or archive")
        return read_folder(path, label_from)
    separators = {"/", os.sep, os.altsep or os.sep}
    name = os.fspath(data)
    if path.suffix.lower() in (".zip", *DELIMITERS):
        raise DataError(f"There is no file {name!r}.")
    if not isinstance(data, str) or name.startswith((".", "~")) or any(sep in name for sep in separators):
        raise DataError(f"There is no folder {name!r}.")
    if name not in DATASETS:
        raise UnknownNameError(
            f"There is no folder and no data set {name!r}. {nearest(name.lower(), DATASETS)}"
        )
    _refuse_label_from(label_from, f"the data set {name!r}")
    _check_call(f"the data set {name!r}", DATASETS[name], (), kwargs)
    return Contents(name, "registered", _checked(name, DATASETS[name](**kwargs)))


def _is_map_style(data: Any) -> bool:
    """Whether data is a data set that gives samples, or a dict of them; tuples and lists are arrays."""
    if isinstance(data, Mapping):
        return bool(data) and all(map(_is_map_style, data.values()))
    other = (str, bytes, bytearray, memoryview, tuple, list, os.PathLike, np.ndarray)
    # A tensor has a length and items too, but is only half of a pair.
    return (
        hasattr(data, "__len__")
        and hasattr(data, "__getitem__")
        and not isinstance(data, other)
        and not hasattr(data, "detach")
    )


def _read_map_style(data: Any) -> Contents:
    # Only here: loading.sources needs the parts that this package defines.
    from transferkit.loading.sources import part_of

    datasets = data if isinstance(data, Mapping) else {"train": data}
    known = {"train", "val", "test"}
    form = "a dict with the keys 'train' and, where there are such, 'val' and 'test'"
    require(
        "train" in datasets and datasets.keys() <= known, "load_dataset", "name_or_path", form, list(datasets)
    )
    parts: dict[str, Part] = {}
    for name, dataset in datasets.items():
        part = part_of(dataset, name=name)
        if part is None:
            raise DataError(
                "The data set gives float tensors, which are taken as ready for the model; pass it to "
                "Trainer.fit itself, or let it give PIL images or uint8 tensors."
            )
        parts[name] = part.take(np.arange(len(part)), name=name)
    return Contents("memory", "dataset", parts)


def _refuse_label_from(label_from: str | None, what: str) -> None:
    if label_from is not None:
        raise ArgumentError(
            f"The 'label_from' parameter of load_dataset must be None for {what}, where labels are given. "
            f"Got {shown(label_from)} instead."
        )


def _refuse_arguments(kwargs: Mapping[str, Any], what: str) -> None:
    if kwargs:
        raise ArgumentError(f"The function load_dataset takes no argument {next(iter(kwargs))!r} for {what}.")


def _check_call(what: str, function: Any, positional: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        inspect.signature(function).bind(*positional, **kwargs)
    except TypeError as error:
        raise ArgumentError(f"Arguments of load_dataset for {what}: {error}.") from error


def _checked(name: str, parts: Any) -> dict[str, Part]:
    """Return what a registered factory made, if it keeps to the contract."""
    keeps = isinstance(parts, Mapping) and {"train"} <= parts.keys() <= {"train", "val", "test"}
    if not keeps or not all(isinstance(part, Part) for part in parts.values()):
        raise DataError(f"The data set {name!r} must give a dict of Parts: 'train' and maybe 'val', 'test'.")
    return dict(parts)
