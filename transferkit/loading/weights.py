"""Weights from files that others wrote: read without running code, checked, and put into a model."""

from __future__ import annotations

import hashlib
import os
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from transferkit.errors import (
    CheckpointCorruptError,
    CheckpointError,
    UnsafeCheckpointError,
    WeightsMismatchError,
)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")

_ZIP = b"PK\x03\x04"
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
# Parts of torch's messages where it met something that loading weights alone does not need.
_REFUSALS = ("allowed global", "is blocked", "allowlist", "call reduce", "must be imported", ".tar format")
_SHOWN = 8


def is_path(weights: str | os.PathLike[str]) -> bool:
    """Tell a file of weights from a name of weights.

    >>> is_path("resnet18.pth"), is_path("IMAGENET1K_V1")
    (True, False)
    """
    if not isinstance(weights, str):
        return True
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return weights.lower().endswith(SUFFIXES) or any(separator in weights for separator in separators)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from a file, without running anything that is in it.

    A state dict inside ``{"state_dict": ...}`` or ``{"model": ...}`` is found, and the prefixes
    that data parallelism (``module.``) and ``torch.compile`` (``_orig_mod.``) add are removed.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote (``.pth``, ``.pt``, ...).

    Returns:
        Tensors on the CPU by name. The versions of modules that ``torch.save`` kept are in the
        attribute ``_metadata``, as in any state dict.

    Raises:
        CheckpointError: There is no such file, it cannot be read, or holds no state dict.
        CheckpointCorruptError: It is damaged, or not of the format that its name promises.
        UnsafeCheckpointError: It would have to run code; nothing of it was run.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; pass the path of a .safetensors or .pth file.")
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}; pass the path of a .safetensors or .pth file.")
    if not path.name.lower().endswith(SUFFIXES):
        raise CheckpointError(
            f"{path} must have a name that ends in one of {', '.join(SUFFIXES)}, which tells its format."
        )
    read = _read_safetensors if path.suffix.lower() == ".safetensors" else _read_torch
    try:
        content = read(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    return _state_dict_in(content, path)


def load_weights(
    module: nn.Module, state: dict[str, Tensor], *, source: str | os.PathLike[str], without: str | None = None
) -> None:
    """Copy a state dict into a module of the same architecture.

    Args:
        module: Takes the values; its own types and devices stay.
        state: Tensors by name, as ``read_weights`` returns them.
        source: What the tensors come from, for messages.
        without: Path of a module that keeps its own values, whatever the state dict has for it.

    Raises:
        WeightsMismatchError: Keys, shapes or kinds of number differ; the message lists them.
    """
    chosen = _with_versions(state, module)
    for name in [name for name in chosen if _is_in(name, without)]:
        del chosen[name]
    own = module.state_dict()
    kinds = [
        f"{name} ({tensor.dtype} in the file, {own[name].dtype} in the model)"
        for name, tensor in chosen.items()
        if name in own and tensor.is_floating_point() != own[name].is_floating_point()
    ]
    missing: list[str] = []
    unexpected: list[str] = []
    shapes: list[str] = []
    try:
        # Not strict: modules bring old keys up to date by themselves while they load.
        missing, unexpected = module.load_state_dict(chosen, strict=False) if not kinds else ([], [])
    except RuntimeError as error:
        shapes = [
            f"{name} ({list(tensor.shape)} in the file, {list(own[name].shape)} in the model)"
            for name, tensor in chosen.items()
            if name in own and tensor.shape != own[name].shape
        ]
        missing = [name for name in own if name not in chosen]
        unexpected = [name for name in chosen if name not in own]
        if not shapes:
            raise WeightsMismatchError(
                f"{source} does not fit this {type(module).__name__}: {error}."
            ) from error
    missing = [name for name in missing if not _is_in(name, without)]
    found = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "of another kind": kinds,
    }
    if any(found.values()):
        listed = "; ".join(f"{what}: {_listed(names)}" for what, names in found.items() if names)
        raise WeightsMismatchError(f"{source} does not fit this {type(module).__name__}; {listed}.")


def _is_in(name: str, path: str | None) -> bool:
    return path is not None and name.startswith(f"{path}.")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _with_versions(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return a state dict that says which version of each module it is from.

    A plain dict, such as a safetensors file gives, does not; it counts as of today's version,
    which MNASNet insists on. Only batch norm without ``num_batches_tracked`` must be older.
    """
    own = module.state_dict()
    versions = OrderedDict(own._metadata)  # type: ignore[attr-defined]  # torch sets it, undeclared
    for name in own.keys() - state.keys():
        if name.endswith(".num_batches_tracked"):
            del versions[name.rpartition(".")[0]]
    versioned = OrderedDict(state)
    versioned._metadata = versions | getattr(state, "_metadata", {})  # type: ignore[attr-defined]  # as above
    return versioned


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointCorruptError(f"{path} is damaged, or is no safetensors file: {error}.") from error


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    if start == _ZIP:
        _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        foreign = sorted(set(_foreign_names(path)))
        refused = any(refusal in str(error) for refusal in _REFUSALS)
        # A file of nothing but zeros, as a crash may leave it, passes for an archive of tar.
        if foreign or (refused and start[:1] != b"\0"):
            what = f"run {', '.join(foreign[:_SHOWN])}" if foreign else "run code"
            raise UnsafeCheckpointError(
                f"{path} was not loaded, because it would have to {what}; "
                "save the model's state_dict() and load that."
            ) from error
        # torch puts what happened after advice that does not apply here.
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        reason = reason.rstrip(".") or type(error).__name__
        raise CheckpointCorruptError(
            f"{path} is damaged, or was not written by torch.save: {reason}."
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse what torch.load would not notice: flipped bits, and archives that unpack to more."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise UnsafeCheckpointError(
                    f"{path} was not loaded, because it is a TorchScript program; "
                    "save the model's state_dict() and load that."
                )
            plain = all(_is_plain(entry) for entry in entries)
            if not plain or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CheckpointCorruptError(
                    f"{path} is damaged, or was not written by torch.save: its parts and its size disagree."
                )
            wrong = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError) as error:
        raise CheckpointCorruptError(f"{path} is damaged: {error}.") from error
    if wrong is not None:
        raise CheckpointCorruptError(f"{path} is damaged: the checksum of {wrong!r} in it is wrong.")


def _is_plain(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry of an archive is as torch.save writes it.

    For others, such as one that is marked as a folder, torch.load returns numbers that nobody wrote.
    """
    marked_as_folder = entry.external_attr & 0x10
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
    return stored and not marked_as_folder


def _foreign_names(path: Path) -> Iterator[str]:
    """Yield what the pickles in a file name that is of no use for weights; nothing is loaded."""
    with path.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            with zipfile.ZipFile(path) as archive:
                for entry in archive.namelist():
                    if entry.endswith("/data.pkl"):
                        with archive.open(entry) as pickled:
                            yield from _foreign_names_in(pickled)
        else:
            file.seek(0)
            yield from _foreign_names_in(file)


def _foreign_names_in(file: IO[bytes]) -> Iterator[str]:
    recent: list[str] = []
    try:
        for _ in range(5):  # the older format is a series of pickles
            for operation, argument, _ in pickletools.genops(file):
                name = ""
                if operation.name in ("GLOBAL", "INST"):
                    name = str(argument).replace(" ", ".")
                elif operation.name == "STACK_GLOBAL":
                    name = ".".join(recent[-2:])
                elif isinstance(argument, str):
                    recent = [*recent[-1:], argument]
                if name and name.partition(".")[0] not in ("torch", "collections"):
                    yield name
    except Exception:  # what follows is no pickle
        return


def _state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a file held, and check that it is one."""
    while isinstance(content, dict):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no state dict, but {_kind(content)}.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds no state dict: its entry {name!r} is {_kind(value)}, where a tensor should be."
            )
        _check_tensor(name, value, path)
    for prefix in _present(content, _PREFIXES):
        consume_prefix_in_state_dict_if_present(content, prefix)
    return content


def _kind(value: object) -> str:
    return "an empty dict" if value == {} else f"a {type(value).__name__}"


def _check_tensor(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse a tensor that does not have the numbers that its shape promises."""
    plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    if plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes():
        return
    raise CheckpointCorruptError(
        f"{path} does not hold the numbers of {name!r}, {tensor.dtype} of shape {list(tensor.shape)}."
    )


def _present(state: dict[str, Tensor], prefixes: Iterable[str]) -> Iterator[str]:
    """Yield the prefixes that every key has, for as long as one is found; the keys change meanwhile."""
    while prefix := next((each for each in prefixes if all(key.startswith(each) for key in state)), None):
        yield prefix
