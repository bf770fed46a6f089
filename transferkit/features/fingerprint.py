"""What tells one frozen module from another: its weights, its structure, its settings and its code."""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

# Their code changes with their version, which is part of a feature's key by itself.
_VERSIONED = ("torch", "torchvision", "transferkit")
# What every module keeps for itself; modes follow from what is frozen.
_OWN = set(vars(nn.Module())) | {"train", "_transferkit_spec", "_transferkit_asked_mode", "_transferkit_head"}
# Fields of a config of transformers on which no output depends: labels, and where a model is from.
_OF_NO_EFFECT = {
    *("_name_or_path", "architectures", "dtype", "id2label", "label2id", "name_or_path", "num_labels"),
    *("problem_type", "torch_dtype", "transformers_version"),
}
_HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


class _Unknown(Exception):
    """Something on which outputs may depend cannot be told by its value."""


def module_fingerprint(module: nn.Module, *, without: nn.Module | None = None) -> str | None:
    """Return a hash of everything of a frozen module on which its outputs may depend.

    It covers names, types, shapes and values of frozen parameters and buffers, the structure, the
    attributes of each module, and for classes and functions from outside torch, torchvision and
    transferkit the file that defines them. What these import from other files is left out.

    Args:
        module: What is to be told from others.
        without: A part of it that plays no role.

    Returns:
        32 hexadecimal digits, or ``None`` where something cannot be told: hooks, a ``forward``
        that was put on an instance, an attribute of an unknown kind, code without a file.

    >>> first, second = (nn.Linear(2, 2).requires_grad_(False) for _ in range(2))
    >>> module_fingerprint(first) == module_fingerprint(second)
    False
    """
    digest = hashlib.sha256()
    left_out = set() if without is None else {*without.modules(), *without.parameters(), *without.buffers()}
    try:
        for name, each in module.named_modules():
            if each in left_out:
                continue
            digest.update(
                f"{name} {type(each).__module__}.{type(each).__qualname__} {each.extra_repr()}".encode()
            )
            digest.update(_code_of(type(each)))
            digest.update(_settings_of(each))
    except _Unknown:
        return None
    parameters = [(name, each) for name, each in module.named_parameters() if not each.requires_grad]
    for name, value in [*parameters, *module.named_buffers()]:
        if value in left_out:
            continue
        digest.update(name.encode() + _of_value(value))
    return digest.hexdigest()[:32]


def is_versioned(module: nn.Module) -> bool:
    """Whether versions stand for all code of a module: it is torch's, torchvision's or transferkit's."""
    return all(type(each).__module__.partition(".")[0] in _VERSIONED for each in module.modules())


def _settings_of(module: nn.Module) -> bytes:
    """Return the attributes of a module itself, as bytes."""
    if any(getattr(module, name) for name in _HOOKS if "forward" in name):
        raise _Unknown
    if isinstance(module, fx.GraphModule):
        return module.code.encode()
    settings = {name: value for name, value in vars(module).items() if name not in _OWN}
    if type(module).__module__.startswith("transformers."):
        settings.pop("name_or_path", None)  # where its weights are from
    if any(callable(value) and hasattr(type(module), name) for name, value in settings.items()):
        raise _Unknown  # a method that was replaced on the instance
    return _of_value(settings)


def _of_value(value: Any) -> bytes:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | enum.Enum):
        return f"{type(value).__name__} {value!r};".encode()
    if isinstance(value, torch.dtype | torch.device | torch.Size | torch.memory_format | slice | range):
        return f"{value!r};".encode()
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous().reshape(-1)
        data = plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        return f"{value.dtype} {tuple(value.shape)};".encode() + data
    if isinstance(value, dict):
        return b"{" + b"".join(_of_value(key) + _of_value(item) for key, item in value.items()) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b"".join(_of_value(item) for item in value) + b"]"
    if isinstance(value, set | frozenset):
        return b"<" + b"".join(sorted(_of_value(item) for item in value)) + b">"
    if isinstance(value, functools.partial):
        return _of_value([value.func, value.args, value.keywords])
    if isinstance(value, nn.Module):  # in a list or beside the tree
        found = module_fingerprint(value)
        if found is None:
            raise _Unknown
        return found.encode()
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__};".encode() + _code_of(value)
    if hasattr(value, "to_json_string") and hasattr(
        value, "to_dict"
    ):  # the configuration that modules of transformers hold
        fields = {name: each for name, each in value.to_dict().items() if name not in _OF_NO_EFFECT}
        kernel = getattr(value, "_attn_implementation", None)  # they differ in the last bits
        return _of_value([type(value), sorted(fields.items()), kernel])
    raise _Unknown


def _code_of(what: Any) -> bytes:
    """Return the source on which a class or function depends, empty where a version stands for it."""
    name = what.__module__ or ""
    if name.partition(".")[0] in (*_VERSIONED, "builtins", "math", "operator", "functools", "collections"):
        return b""
    if isinstance(what, FunctionType) and (what.__closure__ or what.__name__ == "<lambda>"):
        raise _Unknown  # what a closure has caught does not show in its source
    try:
        path = inspect.getsourcefile(what)
        # The whole file: helper functions beside it count too.
        return Path(path).read_bytes() if path else b""
    except (OSError, TypeError):
        pass
    try:
        return inspect.getsource(what).encode()
    except (OSError, TypeError):
        raise _Unknown from None
