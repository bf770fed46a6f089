"""The two files of a saved model, written so that a crash leaves one whole model, and checked when read.

``model.json`` tells the size and SHA-256 of the weights that belong to it, and has a checksum of its
own. It is the file that makes a model: new weights are written beside the old ones, then
``model.json`` is replaced, and only then do the new weights take the place of the old. Whenever a
process is killed, the folder holds the old model or the new one, and is read as that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.backbones.record import spec_from_dict
from transferkit.backbones.spec import BackboneSpec
from transferkit.errors import CheckpointCorruptError, CheckpointError, OutputError
from transferkit.files import parse_json, sync_folder, write_json, write_whole
from transferkit.loading.tensor_files import write_tensors
from transferkit.loading.weights import file_digest
from transferkit.loading.wording import first_line
from transferkit.registry import shown

_FORMAT = 2  # the first had no checksums
RECORD = "model.json"
WEIGHTS = "weights.safetensors"
# Weights that model.json may tell of already, while the place above is still that of the old ones.
_NEXT = "weights.next.safetensors"
_LONGEST_RECORD = 2**26  # bytes: a million class names are half of that


@dataclass(frozen=True)
class ModelRecord:
    """What ``model.json`` says.

    Attributes:
        spec: What is known of the model.
        aliases: For each name of a tensor that has several, the one under which the file has it.
        rebuildable: Whether the model can be built from its spec.
        weights: ``{"bytes", "sha256"}`` of the weights; ``None`` in the first format.
        channels_last: Whether the kernels of the model lay in memory with the channels last, while the
            file has them contiguous; ``None`` where that is not known, as in older files.
    """

    spec: BackboneSpec
    aliases: dict[str, str]
    rebuildable: bool
    weights: dict[str, Any] | None
    channels_last: bool | None


def write_model(
    folder: Path,
    tensors: Mapping[str, Tensor],
    spec: Mapping[str, Any],
    *,
    aliases: Mapping[str, str],
    rebuildable: bool,
    channels_last: bool,
) -> None:
    """Write the files of a model, in place of those of an earlier one.

    Args:
        folder: Made if it does not exist.
        tensors: Contiguous, none sharing memory with another.
        spec: As ``spec_to_dict`` returns it.
        aliases: See ``ModelRecord``.
        rebuildable: See ``ModelRecord``.
        channels_last: See ``ModelRecord``.

    Raises:
        OutputError: The folder cannot be written; it holds the earlier model, or this one.
    """
    _finish(folder)
    try:
        write_whole(folder / _NEXT, lambda path: write_tensors(path, tensors))
        record: dict[str, Any] = {
            "format": _FORMAT,
            "spec": dict(spec),
            "aliases": dict(aliases),
            "rebuildable": rebuildable,
            "channels_last": channels_last,
            "weights": _entry(folder / _NEXT),
        }
        write_json(folder / RECORD, record | {"checksum": _checksum(record)})
    except BaseException:
        if not _is_next_told_of(folder):
            with contextlib.suppress(OSError):
                (folder / _NEXT).unlink()
        raise
    _put_in_place(folder)


def find_model(folder: Path) -> Path:
    """Return the folder that holds a model: this one, or ``model`` in a run directory.

    Raises:
        CheckpointError: There is none, or the folder cannot be read.
    """
    try:
        for place in (folder, folder / "model"):
            if (place / RECORD).is_file() and any((place / name).is_file() for name in (WEIGHTS, _NEXT)):
                return place
        unfinished = (folder / "checkpoints").is_dir()
    except OSError as error:  # a name that is too long, or a folder that is closed to this user
        raise CheckpointError(f"{shown(str(folder))} cannot be read: {error.strerror or error}.") from error
    if unfinished:
        raise CheckpointError(
            f"The run in {shown(str(folder))} is not over, so that there is no model yet; "
            "go on with it by the same command and --resume, or fit(resume=True)."
        )
    raise CheckpointError(f"There is no model in {shown(str(folder))}; {RECORD} and {WEIGHTS} are needed.")


def read_record(folder: Path) -> ModelRecord:
    """Return what the ``model.json`` in a folder says, after a check of every field.

    Raises:
        CheckpointError: It cannot be read, or a later version has written it.
        CheckpointCorruptError: It is damaged.
    """
    path = folder / RECORD
    try:
        if path.stat().st_size > _LONGEST_RECORD:
            raise ValueError("it is too long")
        record = parse_json(path.read_text("utf-8", errors="surrogateescape"))
        if not isinstance(record, dict) or type(record.get("format")) is not int or record["format"] < 1:
            raise ValueError("it is not what save_model writes")
        if record["format"] > _FORMAT:
            raise CheckpointError(
                f"{path} was written by a later version of transferkit, in format {record['format']}; "
                f"this one reads formats up to {_FORMAT}."
            )
        _check_checksum(record)
        spec = spec_from_dict(record.get("spec"))
        for name, valid in _FIELDS.items():
            if not valid(record.setdefault(name, _MISSING.get(name))):
                raise ValueError(f"{name!r} in it is not what save_model writes")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise CheckpointCorruptError(f"{path} is damaged: {first_line(error)}.") from error
    return ModelRecord(
        spec, record["aliases"], record["rebuildable"], record["weights"], record["channels_last"]
    )


def weights_of(folder: Path, record: ModelRecord) -> tuple[Path, os.stat_result]:
    """Return the file of weights that a record tells of, after its size and checksum were compared.

    Returns:
        Its path, and what file it was when it was compared, which tells whether it was replaced since.

    Raises:
        CheckpointError: It cannot be read.
        CheckpointCorruptError: It is damaged, or is of another model.
    """
    entry = record.weights
    for name in (WEIGHTS, _NEXT, WEIGHTS):  # again, since a writer may be about to move them
        path = folder / name
        try:
            identity = path.stat()
            if entry is None:
                return path, identity
            if identity.st_size == entry["bytes"] and file_digest(path) == entry["sha256"]:
                return path, identity
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    raise CheckpointCorruptError(
        f"{folder / WEIGHTS} is damaged, or is not of the model in {RECORD}: its checksum is another."
    )


def _canonical(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, allow_nan=False)


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(record).encode()).hexdigest()


def _entry(path: Path) -> dict[str, Any]:
    """Return what ``model.json`` tells of a file of weights."""
    try:
        return {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror or error}.") from error


def _put_in_place(folder: Path) -> None:
    try:
        (folder / _NEXT).replace(folder / WEIGHTS)
        sync_folder(folder)
    except OSError as error:
        raise OutputError(f"{folder / WEIGHTS} cannot be written: {error.strerror or error}.") from error


def _finish(folder: Path) -> None:
    """Put weights in their place where their writer did not live to do so."""
    if (folder / _NEXT).is_file() and _is_next_told_of(folder):
        _put_in_place(folder)


def _is_next_told_of(folder: Path) -> bool:
    """Whether the new weights, not yet in their place, are those that ``model.json`` tells of."""
    if not (folder / RECORD).is_file():
        return False
    try:
        path, _ = weights_of(folder, read_record(folder))
    except CheckpointError:
        return False
    return path.name == _NEXT


def _check_checksum(record: dict[str, Any]) -> None:
    """Raise ``ValueError`` if a record was changed; the first format had no checksum."""
    if record["format"] < 2 and "checksum" not in record:
        return
    if "checksum" not in record or "weights" not in record:
        raise ValueError("it is not whole")
    given = record.pop("checksum")
    if given is not None and given != _checksum(record):
        raise ValueError(
            'it was changed after it was written (if that was meant, set its "checksum" to null)'
        )


def _are_names(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def _is_entry(value: object) -> bool:
    """Whether a value tells of a file of weights, or is missing, as in the first format."""
    if not isinstance(value, dict):
        return value is None
    return type(value.get("bytes")) is int and isinstance(value.get("sha256"), str)


_FIELDS: dict[str, Callable[[object], bool]] = {
    "aliases": _are_names,
    "rebuildable": lambda value: isinstance(value, bool),
    "weights": _is_entry,
    "channels_last": lambda value: value is None or isinstance(value, bool),
}
_MISSING = {"rebuildable": True}  # in the oldest files
