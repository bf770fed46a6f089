"""The fields of a report that is read from JSON, each checked: the file may be damaged, or no report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.loading.checked import Skipped


def report_fields(fields: Any) -> dict[str, Any]:
    """Return the arguments of ``Report`` from what its ``to_dict`` returned.

    Raises:
        ValueError: A field is missing, or is not what ``to_dict`` returns; the message names it.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"it is a {type(fields).__name__}")
    for name, valid in _FIELDS.items():
        if not valid(fields.get(name)):
            raise ValueError(f"its field {name!r} is missing or makes no sense")
    classes, count = fields["classes"], fields["n"]
    matrix = _array(fields, "confusion_matrix", np.int64, (len(classes), len(classes)))
    if matrix.min() < 0 or matrix.max() > count or int(matrix.sum()) != count:
        raise ValueError("its field 'confusion_matrix' does not count its images")
    if int(matrix.trace()) != round(fields["accuracy"] * count):
        raise ValueError("its field 'accuracy' is not what its confusion matrix says")
    ids = fields.get("ids")
    return {
        **{name: fields[name] for name in _PLAIN},
        "classes": tuple(classes),
        "accuracy_interval": tuple(fields["accuracy_interval"]),
        "confusion_matrix": matrix,
        "skipped": tuple(Skipped(each["id"], each["path"], each["reason"]) for each in fields["skipped"]),
        "ids": None if ids is None else tuple(ids),
        "targets": _samples(fields, "targets", np.int64, (count,)),
        "predictions": _samples(fields, "predictions", np.int64, (count,)),
        "probabilities": _samples(fields, "probabilities", np.float32, (count, len(classes))),
    }


def _samples(
    fields: dict[str, Any], name: str, kind: type[np.generic], shape: tuple[int, ...]
) -> npt.NDArray[Any] | None:
    return None if fields.get(name) is None else _array(fields, name, kind, shape)


def _array(
    fields: dict[str, Any], name: str, kind: type[np.generic], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Return a field as an array.

    Raises:
        ValueError: It is not one of that shape and kind of number.
    """
    try:
        array = np.array(fields.get(name))
    except ValueError:  # lists of different lengths
        array = np.array(None)
    if array.shape != shape or array.dtype.kind not in ("i" if issubclass(kind, np.integer) else "if"):
        raise ValueError(f"its field {name!r} is no array of shape {list(shape)}")
    return array.astype(kind)


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _are_skipped(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) and _are_texts([each.get(name) for name in ("id", "path", "reason")])
        for each in value
    )


_PLAIN: dict[str, Callable[[Any], bool]] = {
    "split": lambda value: isinstance(value, str),
    "n": lambda value: type(value) is int and value > 0,
    "selected": lambda value: value is None or isinstance(value, bool),
    "accuracy": _is_share,
    "top5_accuracy": lambda value: value is None or _is_share(value),
    "log_loss": lambda value: type(value) in (int, float) and value >= 0,
    "calibration_error": _is_share,
}
_FIELDS: dict[str, Callable[[Any], bool]] = {
    **_PLAIN,
    "classes": lambda value: _are_texts(value) and len(value) > 0,
    "accuracy_interval": lambda value: (
        isinstance(value, list) and len(value) == 2 and all(_is_share(each) for each in value)
    ),
    "skipped": _are_skipped,
    "ids": lambda value: value is None or _are_texts(value),
}
"""What each field of a report is in JSON."""
