"""What tells one frozen module from another: its weights, its structure and its code."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

import torch
from torch import fx, nn

# Their code changes with their version, which is part of a feature's key by itself.
_VERSIONED = ("torch", "torchvision", "transferkit")


def module_fingerprint(module: nn.Module) -> str | None:
    """Return a hash that changes when the outputs of a module in inference mode might.

    It covers names, types, shapes and values of parameters and buffers, the structure, and for
    classes from outside torch, torchvision and transferkit the file that defines them.

    Returns:
        32 hexadecimal digits, or ``None`` where the code of a class cannot be found.

    >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> module_fingerprint(first) == module_fingerprint(second)
    False
    """
    digest = hashlib.sha256(repr(module).encode())
    if isinstance(module, fx.GraphModule):
        digest.update(module.code.encode())
    classes = {type(each) for each in module.modules()}
    for kind in sorted(classes, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"):
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        code = _code_of(kind)
        if code is None:
            return None
        digest.update(code)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        plain = value.detach().cpu().contiguous()
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else b"")
    return digest.hexdigest()[:32]


def _code_of(kind: type) -> bytes | None:
    """Return the source on which a class depends, empty where a version stands for it."""
    if kind.__module__.partition(".")[0] in _VERSIONED or issubclass(kind, fx.GraphModule):
        return b""
    try:
        path = inspect.getsourcefile(kind)
        # The whole file: helper functions beside the class count too.
        return Path(path).read_bytes() if path else None
    except (OSError, TypeError):
        pass
    try:
        return inspect.getsource(kind).encode()
    except (OSError, TypeError):
        return None
