"""Checks of arguments, in the one sentence form that every message of transferkit has."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TYPE_CHECKING, TypeGuard

from transferkit.errors import ArgumentError, MissingExtraError
from transferkit.registry import nearest

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
        shown = repr(got)
        shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
        raise ArgumentError(
            f"The {parameter!r} parameter of {owner} must be {requirement}. Got {shown} instead."
        )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))


def check_positive(owner: str, parameter: str, value: object) -> float:
    """Return ``value`` as a float if it is a positive finite number."""
    require(_is_number(value) and float(value) > 0, owner, parameter, "a positive float", value)
    return float(value)  # type: ignore[arg-type]  # a number, or require has raised


def check_non_negative(owner: str, parameter: str, value: object) -> float:
    """Return ``value`` as a float if it is a finite number of at least 0."""
    require(_is_number(value) and float(value) >= 0, owner, parameter, "a float of at least 0", value)
    return float(value)  # type: ignore[arg-type]  # a number, or require has raised


def check_between(owner: str, parameter: str, value: object, low: float, high: float) -> float:
    """Return ``value`` as a float if ``low <= value < high``."""
    inside = _is_number(value) and low <= float(value) < high
    require(inside, owner, parameter, f"a float of at least {low:g} and below {high:g}", value)
    return float(value)  # type: ignore[arg-type]  # a number, or require has raised


def check_int(owner: str, parameter: str, value: object, minimum: int = 0) -> int:
    """Return ``value`` as an int if it is a whole number of at least ``minimum``."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    require(whole and int(value) >= minimum, owner, parameter, f"an int of at least {minimum}", value)  # type: ignore[call-overload]  # whole is True only of an Integral
    return int(value)  # type: ignore[call-overload, no-any-return]  # as above


def check_choice(owner: str, parameter: str, value: object, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``; otherwise suggest the nearest."""
    known = list(choices)
    if not (isinstance(value, str) and value in known):
        listed = ", ".join(repr(choice) for choice in known)
        hint = f" {nearest(value, known)}" if isinstance(value, str) else ""
        hint = hint if "mean" in hint else ""
        raise ArgumentError(
            f"The {parameter!r} parameter of {owner} must be one of {listed}. Got {value!r} instead.{hint}"
        )
    return value


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
