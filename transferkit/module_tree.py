"""Names and places in a tree of modules, the wrappers of ``torch.compile`` left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

from torch import nn
from torch.nn.parameter import is_lazy

from transferkit.backbones.spec import unwrapped
from transferkit.errors import ArgumentError

_WRAPPER = re.compile(r"(^|\.)_orig_mod(?=\.|$)")


def plain_name(name: str) -> str:
    """Return a name without what ``torch.compile`` puts into it.

    >>> plain_name("_orig_mod.layer1._orig_mod.0.conv1.weight")
    'layer1.0.conv1.weight'
    """
    return _WRAPPER.sub("", name).removeprefix(".")


def named_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return every name with its parameter; a tied parameter comes once for each of its names.

    Raises:
        ArgumentError: A lazy module has not seen its first batch.
    """
    found = unwrapped(model).named_parameters(remove_duplicate=False)
    parameters = [(plain_name(name), parameter) for name, parameter in found]
    for name, parameter in parameters:
        if is_lazy(parameter):
            raise ArgumentError(
                f"The parameter {name!r} belongs to a lazy module and has no shape yet; "
                "run one batch through the model first."
            )
    return parameters


def named_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children in the order of registration; one that is registered twice comes twice."""
    for name, child in module._modules.items():
        if child is not None:
            yield name, _uncompiled(child)


def _uncompiled(module: nn.Module) -> nn.Module:
    # Data parallelism around an inner module stays: it is part of the names below it.
    while "_orig_mod" in module._modules:
        module = cast(nn.Module, module._modules["_orig_mod"])
    return module


def find_module(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a dotted path, or ``None`` if there is none."""
    module = unwrapped(model)
    for name in path.split(".") if path else ():
        child = module._modules[name] if name in module._modules else None  # noqa: SIM401  # reason: TorchScript has no get
        if child is None:
            return None
        module = _uncompiled(child)
    return module


def set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at a dotted path."""
    parent, _, name = path.rpartition(".")
    holder = find_module(model, parent)
    assert holder is not None
    setattr(holder, name, module)


def can_train(parameter: nn.Parameter) -> bool:
    """Whether a parameter can have a gradient at all; whole numbers cannot."""
    return parameter.is_floating_point() or parameter.is_complex()


def has_parameters(module: nn.Module) -> bool:
    """Whether a module or any of its descendants has a parameter."""
    return next(module.parameters(), None) is not None
