"""A model as two files: weights in safetensors, and a JSON record that rebuilds the rest."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.parameter_limit import limit_parameters
from transferkit.backbones.record import spec_from_dict
from transferkit.backbones.record import spec_to_dict as spec_to_dict
from transferkit.backbones.registry import BACKBONES
from transferkit.backbones.spec import BackboneSpec, set_spec, spec_of, unwrapped
from transferkit.checks import check_module, check_path, require
from transferkit.errors import (
    ArgumentError,
    CheckpointCorruptError,
    CheckpointError,
    TransferkitError,
    UnknownNameError,
    WeightsMismatchError,
)
from transferkit.heads import class_names, head_module, head_out_features, replace_head
from transferkit.loading.model_folder import (
    RECORD,
    ModelRecord,
    find_model,
    read_record,
    weights_of,
    write_model,
)
from transferkit.loading.tensor_files import DTYPES, read_tensors, tensors_in
from transferkit.loading.wording import first_line
from transferkit.module_tree import find_module
from transferkit.registry import shown


def save_model(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write a model with a spec to a folder, as ``weights.safetensors`` and ``model.json``.

    Whatever goes wrong meanwhile, the folder holds the model that it held before, or this one.

    Args:
        model: A model with a spec; nothing of it changes.
        folder: Made if it does not exist; files of an earlier model in it are replaced.

    Returns:
        The folder.

    Raises:
        ArgumentError: The model has no spec, or an argument makes no sense.
        OutputError: The folder cannot be written.
    """
    check_module("save_model", model)
    folder = check_path("save_model", "folder", folder)
    model = unwrapped(model)
    spec = spec_of(model)
    outputs = head_out_features(head_module(model))
    classes = class_names(model)
    count = outputs or (len(classes) if classes else spec.num_classes)
    spec = dataclasses.replace(spec, classes=classes, num_classes=count)
    tensors, aliases = _tensors_of(model)
    written = _written(spec)
    try:
        again = spec_from_dict(written)
    except ValueError as error:
        raise ArgumentError(f"This {spec.name!r} cannot be saved: {error}.") from error
    write_model(
        folder,
        tensors,
        written,
        aliases=aliases,
        rebuildable=_is_as_its_spec_says(model, again),
        channels_last=_is_channels_last(model),
    )
    return folder


def check_saveable(model: nn.Module) -> None:
    """Make sure that a model can be saved, before it is trained.

    Raises:
        ArgumentError: Its state is not made of tensors of types that safetensors has, or its builder
            arguments are not what JSON can hold.
    """
    for name, value in unwrapped(model).state_dict().items():
        if not isinstance(value, Tensor) or value.dtype not in DTYPES:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(
                "A model that is to be saved must have a state of plain tensors. "
                f"Got {kind} for {name!r} instead."
            )
    _written(spec_of(unwrapped(model)))


def _written(spec: BackboneSpec) -> dict[str, Any]:
    """Return a spec as JSON gives it back."""
    try:
        written: dict[str, Any] = json.loads(json.dumps(spec_to_dict(spec), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"The builder arguments of this {spec.name!r} must be numbers, texts, lists or dicts to be saved "
            f"in {RECORD}: {error}. Save its state_dict() instead."
        ) from error
    return written


def _tensors_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return copies of a model's tensors, and for each name of one that has several the one it is under.

    safetensors refuses views, and one tensor under two names: each is written once, contiguous.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors, aliases


def _is_channels_last(model: nn.Module) -> bool:
    """Whether all kernels of a model lie in memory with the channels last; some sums depend on it."""
    kernels = [each for each in model.state_dict().values() if each.ndim == 4]
    # By the strides: a kernel of 1 x 1 counts as contiguous in both formats.
    return bool(kernels) and all(
        each.stride() == torch.empty_like(each, device="meta", memory_format=torch.channels_last).stride()
        for each in kernels
    )


def _lay_out(model: nn.Module, *, channels_last: bool) -> None:
    """Put the kernels of a model into a memory format, in place."""
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    for each in (*model.parameters(), *model.buffers()):
        if each.ndim == 4:
            each.data = each.data.to(memory_format=wanted)


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
    except (TransferkitError, RuntimeError):  # not every architecture can be built without numbers
        return False


def load_model(folder: str | os.PathLike[str], *, into: nn.Module | None = None) -> nn.Module:
    """Rebuild a model from the folder that ``save_model`` wrote.

    The folder may come from anyone: nothing in it is run, only a registered backbone is built, and
    what the files ask for is compared with what they hold before memory is taken.

    Args:
        folder: Holds ``weights.safetensors`` and ``model.json``; a run directory is understood too.
        into: A module of the same architecture that takes the weights; needed for a model
            that was not built by ``load_backbone``, or whose head was a module of its own.

    Returns:
        The model in inference mode, in the memory format in which it was saved: a new one on the CPU,
        or ``into`` where it is.

    Raises:
        ArgumentError: An argument makes no sense, or the model cannot be built from its record, and
            ``into`` is not given.
        CheckpointError: There is no model there, it cannot be read, or it is of a backbone that is not
            registered here.
        CheckpointCorruptError: A file is damaged, or does not belong to the other.
        WeightsMismatchError: ``into`` has other keys, shapes or types.
    """
    require(
        into is None or isinstance(into, nn.Module), "load_model", "into", "a torch.nn.Module or None", into
    )
    folder = find_model(check_path("load_model", "folder", folder))
    record = read_record(folder)
    if into is None and not record.rebuildable:
        raise ArgumentError(
            f"{folder} holds a model or head that transferkit cannot build; "
            "build it and pass it as load_model(folder, into=model)."
        )
    path, identity = weights_of(folder, record)
    try:
        held = _with_aliases(tensors_in(path), record, folder)
        if into is None:
            _check_fits(held, _widened(_build_without_memory(record.spec, len(held), folder), held), folder)
            into = _widened(_build(record.spec), held)
        _check_fits(held, into, folder)
        state = _with_aliases(read_tensors(path), record, folder)
        if not os.path.samestat(identity, path.stat()):
            raise CheckpointError(f"{path} was replaced while it was read; load it again.")
    except TransferkitError:  # some are an OSError too, and say more
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    # The model's own state dict carries the version of each module, which a plain dict lacks.
    for name, value in into.state_dict().items():
        value.copy_(state[name])
    if record.channels_last is not None:
        _lay_out(into, channels_last=record.channels_last)
    set_spec(into, record.spec)
    return into.eval()


def _widened(model: nn.Module, held: Mapping[str, Tensor]) -> nn.Module:
    """Make a model hold 64-bit numbers where a file has them; others fit in the 32 bits that it has."""
    return model.double() if any(tensor.dtype == torch.float64 for tensor in held.values()) else model


def _with_aliases(tensors: Mapping[str, Tensor], record: ModelRecord, folder: Path) -> dict[str, Tensor]:
    for name, source in record.aliases.items():
        if name in tensors or source not in tensors:
            raise CheckpointCorruptError(
                f"{folder / RECORD} is damaged: it gives {shown(name)} the weights of {shown(source)}."
            )
    return {**tensors, **{name: tensors[source] for name, source in record.aliases.items()}}


def _build_without_memory(spec: BackboneSpec, tensors: int, folder: Path) -> nn.Module:
    """Build the architecture of which a spec tells on the device ``"meta"``, where it holds no numbers.

    Args:
        spec: From a file.
        tensors: How many the file of weights has.
        folder: Where the spec is from, for messages.

    Raises:
        CheckpointError: The backbone is not registered.
        CheckpointCorruptError: It cannot be built like this.
    """
    path = folder / RECORD
    try:
        BACKBONES[spec.name]
    except UnknownNameError as error:
        raise CheckpointError(
            f"{path} is of a backbone that is not registered here; import what registers it first. {error}"
        ) from error
    try:
        with torch.device("meta"), limit_parameters(tensors):
            model = _build(spec)
    except Exception as error:  # arguments that make no sense can fail in any way
        if isinstance(error, TransferkitError) and not isinstance(error, ArgumentError):
            raise
        reason = first_line(error)
        raise CheckpointCorruptError(
            f"{path} is damaged: the {spec.name!r} in it cannot be built ({reason})."
        ) from error
    for module in (spec.head, *(member for stage in spec.stages for member in stage.members)):
        if find_module(model, module) is None:
            raise CheckpointCorruptError(f"{path} is damaged: a {spec.name!r} has no module {shown(module)}.")
    return model


def _check_fits(held: Mapping[str, Tensor], model: nn.Module, folder: Path) -> None:
    """Raise ``WeightsMismatchError`` unless a model takes all the tensors of a file without loss."""
    own = model.state_dict()
    wrong = sorted(held.keys() ^ own.keys()) + [
        name
        for name, tensor in own.items()
        if name in held and (tensor.shape != held[name].shape or not _takes(tensor.dtype, held[name].dtype))
    ]
    if wrong:
        raise WeightsMismatchError(
            f"The weights in {folder} do not fit the model, first at {shown(wrong[0])}."
        )


def _takes(own: torch.dtype, held: torch.dtype) -> bool:
    """Whether numbers of the one type can hold those of the other without loss."""
    if own == held:
        return True
    floats = own.is_floating_point and held.is_floating_point
    return floats and torch.finfo(held).bits < torch.finfo(own).bits
