"""A model as two files: weights in safetensors, and a JSON record that rebuilds the rest."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.spec import BackboneSpec, Stage, set_spec, spec_of, unwrapped
from transferkit.errors import (
    ArgumentError,
    CheckpointCorruptError,
    CheckpointError,
    TransferkitError,
    WeightsMismatchError,
)
from transferkit.files import write_text, write_whole
from transferkit.heads import class_names, head_module, head_out_features, replace_head

_FORMAT = 1
_RECORD = "model.json"
_WEIGHTS = "weights.safetensors"


def spec_to_dict(spec: BackboneSpec) -> dict[str, Any]:
    """Return a spec as values that JSON can hold."""
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    fields["preprocessing"] = spec.preprocessing.to_dict()
    fields["stages"] = [[stage.name, list(stage.members)] for stage in spec.stages]
    fields["classes"] = None if spec.classes is None else list(spec.classes)
    fields["builder_kwargs"] = dict(spec.builder_kwargs)
    return fields


def spec_from_dict(fields: dict[str, Any]) -> BackboneSpec:
    """Build a spec from what ``spec_to_dict`` returned."""
    known = {field.name for field in dataclasses.fields(BackboneSpec)}
    values = {name: value for name, value in fields.items() if name in known}
    values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
    values["stages"] = tuple(Stage(name, tuple(members)) for name, members in values["stages"])
    values["classes"] = None if values["classes"] is None else tuple(values["classes"])
    return BackboneSpec(**values)


def save_model(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write a model with a spec to a folder, as ``weights.safetensors`` and ``model.json``.

    Args:
        model: A model with a spec; nothing of it changes.
        folder: Made if it does not exist; files of an earlier model in it are replaced.

    Returns:
        The folder.

    Raises:
        ArgumentError: The model has no spec.
        OutputError: The folder cannot be written.
    """
    from safetensors.torch import save_file

    folder = Path(folder).expanduser()
    model = unwrapped(model)
    spec = spec_of(model)
    outputs = head_out_features(head_module(model))
    spec = dataclasses.replace(spec, classes=class_names(model), num_classes=outputs or spec.num_classes)
    # safetensors refuses views, and one tensor under two names: each is written once, contiguous.
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            tensors[name] = value.detach().cpu().contiguous().clone()
    record = {
        "format": _FORMAT,
        "spec": spec_to_dict(spec),
        "aliases": aliases,
        "rebuildable": _is_as_its_spec_says(model, spec),
    }
    try:
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    except TypeError as error:
        raise ArgumentError(
            f"The builder arguments of this {spec.name!r} must be numbers, texts, lists or dicts to be saved "
            f"in {_RECORD}: {error}. Save its state_dict() instead."
        ) from error
    write_whole(folder / _WEIGHTS, lambda path: save_file(tensors, path))
    write_text(folder / _RECORD, text)
    return folder


def _build(spec: BackboneSpec) -> nn.Module:
    """Build the architecture of which a spec tells, with random weights."""
    from transferkit.backbones.load import load_backbone

    model = load_backbone(
        spec.name,
        weights=None,
        num_classes=spec.num_classes,
        preprocessing=spec.preprocessing,
        **spec.builder_kwargs,
    )
    if spec.head_kind != "original" and spec.num_classes is not None:
        replace_head(model, spec.num_classes, head=spec.head_kind, dropout=spec.head_dropout)
    return model


def _is_as_its_spec_says(model: nn.Module, spec: BackboneSpec) -> bool:
    """Whether a model can be built from its spec: nothing in it was put in or swapped by hand."""
    if spec.name == "custom" or spec.head_kind == "custom":
        return False
    try:
        with torch.device("meta"):
            return repr(_build(spec)) == repr(model)
    except (TransferkitError, NotImplementedError):
        return False


def load_model(folder: str | os.PathLike[str], *, into: nn.Module | None = None) -> nn.Module:
    """Rebuild a model from the folder that ``save_model`` wrote.

    Args:
        folder: Holds ``weights.safetensors`` and ``model.json``; a run directory is understood too.
        into: A module of the same architecture that takes the weights; needed for a model
            that was not built by ``load_backbone``, or whose head was a module of its own.

    Returns:
        The model in inference mode, on the CPU.

    Raises:
        CheckpointError: There is no model there.
        CheckpointCorruptError: A file is damaged.
        WeightsMismatchError: ``into`` has other keys or shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder).expanduser()
    if not (folder / _RECORD).is_file() and (folder / "model" / _RECORD).is_file():
        folder = folder / "model"
    if not (folder / _RECORD).is_file() or not (folder / _WEIGHTS).is_file():
        raise CheckpointError(f"There is no model in {folder}; {_RECORD} and {_WEIGHTS} are needed.")
    try:
        record = json.loads((folder / _RECORD).read_text("utf-8", errors="surrogateescape"))
        spec = spec_from_dict(record["spec"])
        aliases = dict(record["aliases"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointCorruptError(f"{folder / _RECORD} is damaged: {error}.") from error
    try:
        state = load_file(folder / _WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointCorruptError(f"{folder / _WEIGHTS} is damaged: {error}.") from error
    state |= {name: state[source] for name, source in aliases.items() if source in state}
    if into is None:
        if not record.get("rebuildable", True):
            raise ArgumentError(
                f"{folder} holds a model or head that transferkit cannot build; "
                "build it and pass it as load_model(folder, into=model)."
            )
        into = _build(spec)
    own = into.state_dict()
    wrong = sorted(set(own) ^ set(state)) + [
        name for name in own if name in state and own[name].shape != state[name].shape
    ]
    if wrong:
        raise WeightsMismatchError(f"The weights in {folder} do not fit the model, first at {wrong[0]!r}.")
    # The model's own state dict carries the version of each module, which a plain dict lacks.
    for name, value in own.items():
        value.copy_(state[name])
    set_spec(into, spec)
    return into.eval()
