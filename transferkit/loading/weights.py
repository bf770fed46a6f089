"""Weights from files that others wrote: read without running code, checked, and put into a model."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from transferkit.errors import (
    CheckpointCorruptError,
    CheckpointError,
    WeightsMismatchError,
)
from transferkit.loading.known_weights import model_of
from transferkit.loading.tensor_files import read_tensors
from transferkit.loading.torch_files import read_torch_file
from transferkit.loading.wording import first_line, printable
from transferkit.registry import shown

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 3
_MOST_WRAPPERS = 8  # around one another; a file can put a dict into itself


def is_path(weights: str | os.PathLike[str]) -> bool:
    """Tell a file of weights from a name of weights.

    >>> is_path("resnet18.pth"), is_path("IMAGENET1K_V1")
    (True, False)
    """
    if not isinstance(weights, str):
        return True
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return weights.lower().endswith(SUFFIXES) or any(separator in weights for separator in separators)


def weights_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file of weights, without reading it.

    Raises:
        CheckpointError: There is no such file, or its name does not tell its format.
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
    return path


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
    path = weights_file(path)
    read = read_tensors if path.suffix.lower() == ".safetensors" else read_torch_file
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
        WeightsMismatchError: Keys, shapes or kinds of number differ; the message lists some of them, and
            says which of torchvision's models the tensors are of, if that is another one.
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
    except (RuntimeError, ValueError) as error:  # of another shape, or of a version that a module cannot read
        shapes = [
            f"{name} ({list(tensor.shape)} in the file, {list(own[name].shape)} in the model)"
            for name, tensor in chosen.items()
            if name in own and tensor.shape != own[name].shape
        ]
        missing = [name for name in own if name not in chosen]
        unexpected = [name for name in chosen if name not in own]
        if not shapes:
            raise WeightsMismatchError(
                f"{source} does not fit this {type(module).__name__}: {first_line(error)}."
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
        hint = "" if kinds else _hint(state, own)
        raise WeightsMismatchError(f"{source} does not fit this {type(module).__name__}; {listed}.{hint}")


def _hint(state: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """Say which other model the tensors are of, where that can be told."""
    found = model_of(state)
    return "" if found in (None, model_of(own)) else f" The file looks like the weights of {found!r}."


def _is_in(name: str, path: str | None) -> bool:
    return path is not None and name.startswith(f"{path}.")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more


def _with_versions(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return a state dict that says which version of each module it is from.

    A plain dict, such as a safetensors file gives, does not; it counts as of today's version,
    which MNASNet insists on. Only batch norm without ``num_batches_tracked`` must be older.
    """
    own: Any = module.state_dict()
    versions = OrderedDict(own._metadata)
    for name in own.keys() - state.keys():
        if name.endswith(".num_batches_tracked"):
            del versions[name.rpartition(".")[0]]
    versioned: Any = OrderedDict(state)
    versioned._metadata = versions | getattr(state, "_metadata", {})
    found: dict[str, Tensor] = versioned
    return found


def _state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a file held, and check that it is one."""
    # By dict.get and dict.items: a file can give an OrderedDict attributes of these names.
    for _ in range(_MOST_WRAPPERS):
        inner = None
        if isinstance(content, dict):
            found = (dict.get(content, key) for key in _WRAPPERS)
            inner = next((each for each in found if isinstance(each, dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no state dict, but {_kind(content)}.")
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, value in dict.items(content):
        if not isinstance(name, str) or type(value) not in (Tensor, nn.Parameter):
            entry = shown(name) if isinstance(name, (str, int)) else _kind(name)
            raise CheckpointError(
                f"{path} holds no state dict: its entry {entry} is {_kind(value)}, where a tensor should be."
            )
        state[name] = _plain_tensor(name, value, path)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()
    }
    if sum(storages.values()) > path.stat().st_size:
        raise CheckpointCorruptError(f"{path} is damaged: its tensors are larger than the file.")
    if hasattr(content, "_metadata"):
        state._metadata = _versions(content._metadata, path)  # type: ignore[attr-defined]  # reason: torch sets it, undeclared
    for prefix in _present(state, _PREFIXES):
        consume_prefix_in_state_dict_if_present(state, prefix)
    return state


def _versions(metadata: Any, path: Path) -> OrderedDict[str, dict[str, int]]:
    """Return the versions of modules that ``torch.save`` keeps, after a check that they are such."""
    modules = list(dict.items(metadata)) if isinstance(metadata, dict) else [(None, None)]
    kept: OrderedDict[str, dict[str, int]] = OrderedDict()
    for name, entry in modules:
        version = dict.get(entry, "version") if isinstance(entry, dict) else ""
        if not isinstance(name, str) or not (version is None or type(version) is int):
            raise CheckpointCorruptError(f"{path} is damaged: it does not tell the versions of its modules.")
        kept[name] = {} if version is None else {"version": version}
    return kept


def _kind(value: object) -> str:
    return "an empty dict" if value == {} else f"a {type(value).__name__}"


def _plain_tensor(name: str, value: Tensor, path: Path) -> Tensor:
    """Return a tensor without what a file may have hung on it, and refuse one without its numbers."""
    try:
        tensor = Tensor.detach(value)
        described = f"{tensor.dtype} of shape {list(tensor.shape)}"
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        plain = plain and not (tensor.is_nested or tensor.is_quantized)
        # A few bytes can be given any number of rows and columns.
        if plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes():
            return tensor
    except RuntimeError:  # such as a nested one, which has no shape
        described = "a tensor without a shape"
    raise CheckpointCorruptError(f"{path} does not hold the numbers of {shown(name)}, {described}.")


def _present(state: dict[str, Tensor], prefixes: Iterable[str]) -> Iterator[str]:
    """Yield the prefixes that every key has, one after the other; the keys change meanwhile."""
    for _ in range(_MOST_WRAPPERS):
        prefix = next((each for each in prefixes if all(key.startswith(each) for key in state)), None)
        if prefix is None:
            return
        yield prefix
