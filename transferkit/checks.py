"""Checks of arguments, in the one sentence form that every message of transferkit has; and warnings."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from transferkit.errors import ArgumentError, MissingExtraError
from transferkit.registry import nearest, shown

if TYPE_CHECKING:
    from types import ModuleType


def require(condition: bool, owner: str, parameter: str, requirement: str, got: object) -> None:
    """Raise ``ArgumentError`` unless ``condition`` holds.

    >>> require(False, "Trainer", "lr", "a positive float", -1)
    Traceback (most recent call last):
    ...
    transferkit.errors.ArgumentError: The 'lr' parameter of Trainer must be a positive float. Got -1 instead.
    """
    if not condition:
        raise ArgumentError(
            f"The {parameter!r} parameter of {owner} must be {requirement}. Got {shown(got)} instead."
        )


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number, and no bool."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an int that is larger than any float
        return False


def check_positive(owner: str, parameter: str, value: Any) -> float:
    """Return ``value`` as a float if it is a positive finite number."""
    require(is_number(value) and float(value) > 0, owner, parameter, "a positive float", value)
    return float(value)


def check_non_negative(owner: str, parameter: str, value: Any) -> float:
    """Return ``value`` as a float if it is a finite number of at least 0."""
    require(is_number(value) and float(value) >= 0, owner, parameter, "a float of at least 0", value)
    return float(value)


def check_between(owner: str, parameter: str, value: Any, low: float, high: float) -> float:
    """Return ``value`` as a float if ``low <= value < high``."""
    inside = is_number(value) and low <= float(value) < high
    require(inside, owner, parameter, f"a float of at least {low:g} and below {high:g}", value)
    return float(value)


def check_int(owner: str, parameter: str, value: Any, minimum: int = 0) -> int:
    """Return ``value`` as an int if it is a whole number of at least ``minimum``, of 64 bits."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    require(whole and int(value) >= minimum, owner, parameter, f"an int of at least {minimum}", value)
    # Of a larger one torch and numpy would complain in words of their own.
    require(int(value) < 2**63, owner, parameter, "an int below 2**63", value)
    return int(value)


def check_choice(owner: str, parameter: str, value: object, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``; otherwise suggest the nearest."""
    known = list(choices)
    if not (isinstance(value, str) and value in known):
        listed = ", ".join(repr(choice) for choice in known)
        hint = f" {nearest(value, known)}" if isinstance(value, str) else ""
        hint = hint if "mean" in hint else ""
        raise ArgumentError(
            f"The {parameter!r} parameter of {owner} must be one of {listed}. "
            f"Got {shown(value)} instead.{hint}"
        )
    return value


def check_module(owner: str, value: object) -> None:
    """Raise ``ArgumentError`` unless ``value``, the ``model`` of ``owner``, is a module."""
    from torch import nn

    require(isinstance(value, nn.Module), owner, "model", "a torch.nn.Module", value)


def check_path(owner: str, parameter: str, value: object) -> Path:
    """Return ``value`` as a path, the user's home folder filled in, if it is one."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    require(isinstance(text, str) and text != "" and "\0" not in text, owner, parameter, "a path", value)
    # The method of Path of that name raises where there is no such user; then it is a name like others.
    return Path(os.path.expanduser(str(text)))


# Besides the package itself: what calls its functions on the way, as decorators and context managers do.
_ON_THE_WAY = ("transferkit", "torch", "contextlib")


def warn_caller(message: str) -> None:
    """Warn, and point at the line outside of transferkit that led here."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and _is_on_the_way(frame.f_globals.get("__name__")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_on_the_way(module: object) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in _ON_THE_WAY


def import_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or say which extra of transferkit brings it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{purpose} needs {package}, which is not installed; "
            f"install it with: pip install 'transferkit[{extra}]'"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its kind where it has none.

    >>> first_line(ValueError())
    'ValueError'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
