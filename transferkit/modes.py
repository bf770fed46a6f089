"""Frozen means inference mode: the rule, and what makes it hold whatever ``model.train()`` is called.

The rule. A module whose parameters, descendants included, are all frozen is in inference mode.
A module without parameters follows its parent where that is in inference mode for good; in a
parent of which a part trains, it is in inference mode only if a frozen sibling with parameters
is registered after it, so that nothing random stands before what is frozen. Every other module
keeps the caller's mode. A module without parameters that is registered in several places is in
inference mode if one of them says so.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from transferkit.backbones.spec import unwrapped
from transferkit.checks import require
from transferkit.module_tree import can_train, named_children

M = TypeVar("M", bound=nn.Module)

# Entries of a held module's __dict__, so that deepcopy, pickling, .to() and torch.fx carry them
# along. The second is the mode that the caller last asked for, which a release gives back.
_OVERRIDE = "train"
_ASKED = "_transferkit_asked_mode"

_FROZEN, _TRAINS, _EMPTY = "frozen", "trains", "empty"


def hold_frozen_modules(model: M) -> M:
    """Make every module of which the rule says so stay in inference mode, and release all others."""
    root = unwrapped(model)
    held = _held_by_rule(root)
    modules = [module for module in root.modules() if unwrapped(module) is module]
    asked = {module: asked_mode(module) for module in modules}
    for module in modules:
        _release(module)
        if module in held:
            # A partial survives what a closure (pickling) and a bound method (deepcopy) do not.
            object.__setattr__(module, _OVERRIDE, functools.partial(_stay_in_inference_mode, module))
            object.__setattr__(module, _ASKED, asked[module])
    # A parent comes before its children and changes their mode too; each then gets its own.
    for module in modules:
        mode = asked[module] and module not in held
        if module.training != mode:
            type(module).train(module, mode)
    for module in held:
        object.__setattr__(module, _ASKED, asked[module])
    return model


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module its own mode back at the end, where a caller has chosen some by hand too."""
    modes = [(module, module.training, module.__dict__.get(_ASKED)) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode, asked in modes:
            module.training = mode
            if asked is not None and _ASKED in module.__dict__:
                object.__setattr__(module, _ASKED, asked)


def is_held(module: nn.Module) -> bool:
    """Whether a module stays in inference mode whatever its ``train`` is called with."""
    override = unwrapped(module).__dict__.get(_OVERRIDE)
    return isinstance(override, functools.partial) and override.func is _stay_in_inference_mode


def asked_mode(module: nn.Module) -> bool:
    """Return the mode that the caller asked for last: ``True`` for training."""
    return bool(module.__dict__.get(_ASKED, module.training))


def _release(module: nn.Module) -> None:
    if is_held(module):
        del module.__dict__[_OVERRIDE]
        module.__dict__.pop(_ASKED, None)


def _stay_in_inference_mode(module: M, mode: bool = True) -> M:
    """Stand in for the ``train`` of a held module."""
    require(isinstance(mode, bool), f"{type(module).__name__}.train", "mode", "True or False", mode)
    if any(parameter.requires_grad for parameter in module.parameters()):
        # Someone has made it trainable by other means, so the rule holds it no longer.
        return hold_frozen_modules(module).train(mode)
    type(module).train(module, False)
    for each in module.modules():
        if _ASKED in each.__dict__:
            object.__setattr__(each, _ASKED, mode)
    return module


def _held_by_rule(root: nn.Module) -> set[nn.Module]:
    """Return the modules that the rule puts into inference mode."""
    states: dict[nn.Module, str] = {}
    held: set[nn.Module] = set()

    def state_of(module: nn.Module) -> str:
        if module not in states:
            own = [each for each in module._parameters.values() if each is not None and can_train(each)]
            found = {_TRAINS if each.requires_grad else _FROZEN for each in own}
            found |= {state_of(child) for _, child in named_children(module)}
            states[module] = next((state for state in (_TRAINS, _FROZEN) if state in found), _EMPTY)
        return states[module]

    def visit(module: nn.Module, follows: bool) -> None:
        state = state_of(module)
        holds = state == _FROZEN or (state == _EMPTY and follows)
        if holds:
            held.add(module)
        children = [child for _, child in named_children(module)]
        for position, child in enumerate(children):
            before_frozen = any(state_of(sibling) == _FROZEN for sibling in children[position + 1 :])
            visit(child, holds or (state == _TRAINS and before_frozen))

    visit(root, False)
    return held
