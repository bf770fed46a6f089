"""A spec as JSON, and back, after a check of every field: the file may be anyone's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeGuard

from transferkit.backbones.foreign_records import check_library_record
from transferkit.backbones.preprocessing import LARGEST_IMAGE, Preprocessing
from transferkit.backbones.spec import BackboneSpec, Stage
from transferkit.errors import ArgumentError

# What load_backbone is given besides the arguments of a builder, which a record must not replace.
_OWN_ARGUMENTS = {"name", "weights", "num_classes", "preprocessing", "device"}


def spec_to_dict(spec: BackboneSpec) -> dict[str, Any]:
    """Return a spec as values that JSON can hold."""
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    fields["preprocessing"] = spec.preprocessing.to_dict()
    fields["stages"] = [[stage.name, list(stage.members)] for stage in spec.stages]
    fields["classes"] = None if spec.classes is None else list(spec.classes)
    fields["builder_kwargs"] = dict(spec.builder_kwargs)
    fields["auxiliary_heads"] = list(spec.auxiliary_heads)
    return fields


def spec_from_dict(fields: Any) -> BackboneSpec:
    """Build a spec from what ``spec_to_dict`` returned.

    Fields that a later version has added are left out.

    Raises:
        ValueError: A field is missing or is not what ``spec_to_dict`` makes; the message names it. Or
            the model is another library's, and would have to be fetched or run code.
    """
    if not isinstance(fields, dict):
        raise ValueError("its spec is not a record")
    known = {field.name: field for field in dataclasses.fields(BackboneSpec)}
    values = {name: value for name, value in fields.items() if name in known}
    for name in ("name", "head", "preprocessing"):
        if name not in values:
            raise ValueError(f"{name!r} is missing in its spec")
    for name, value in values.items():
        if not _FIELDS[name](value):
            raise ValueError(f"{name!r} in its spec is not what save_model writes")
    check_library_record(values["name"], values.get("builder_kwargs", {}))
    values["preprocessing"] = _preprocessing(values["preprocessing"])
    values["stages"] = tuple(Stage(name, tuple(members)) for name, members in values.get("stages", []))
    classes = values.get("classes")
    if classes is not None:
        if values.get("num_classes") not in (None, len(classes)):
            raise ValueError("'classes' and 'num_classes' in its spec disagree")
        values["classes"] = tuple(classes)
    return BackboneSpec(**values)


def _preprocessing(fields: dict[str, Any]) -> Preprocessing:
    try:
        record = Preprocessing.from_dict(fields)
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"'preprocessing' in its spec makes no sense: {str(error).rstrip('.')}") from error
    if record.resize_to > LARGEST_IMAGE:
        raise ValueError(f"'preprocessing' in its spec makes images of {record.resize_to} pixels")
    return record


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _are_stages(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, list) and len(each) == 2 and isinstance(each[0], str) and _are_texts(each[1])
        for each in value
    )


def _are_classes(value: object) -> bool:
    return value is None or (_are_texts(value) and len(set(value)) == len(value))


def _is_count_or_none(value: object) -> bool:
    return value is None or (type(value) is int and value > 0)


def _are_arguments(value: object) -> bool:
    return isinstance(value, dict) and not _OWN_ARGUMENTS & value.keys()


def _is_probability(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


_FIELDS: dict[str, Callable[[object], bool]] = {
    "name": _is_text,
    "head": _is_text,
    "preprocessing": lambda value: isinstance(value, dict),
    "stages": _are_stages,
    "classes": _are_classes,
    "num_classes": _is_count_or_none,
    "weights": _is_text_or_none,
    "builder_kwargs": _are_arguments,
    "head_kind": lambda value: value in ("original", "linear", "mlp", "custom"),
    "head_dropout": _is_probability,
    "selected_on": _is_text_or_none,
    "auxiliary_heads": _are_texts,
}
"""What each field of a spec is in JSON."""
