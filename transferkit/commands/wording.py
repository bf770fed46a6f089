"""What the library says of its parameters, in the words of the command line."""

from __future__ import annotations

import argparse
import re

# Parameters whose option has another name.
_OPTIONS = {"seconds": "checkpoint_seconds", "steps": "checkpoint_steps"}
# What is given by its place, and so has no option.
_PLACED = ("command", "data", "run", "images", "pattern", "action")

_PARAMETER = re.compile(r"The '(\w+)' parameter(?: of [\w.]+(?:\(('[^']*')\))?)? must ")
_ABSENT = re.compile(r" must be (?:None|False)(?=[ ,])")
# In hints alone, because a path that a message quotes may look like anything.
_ASSIGNED = re.compile(r"(?:(?<=[Gg]ive )|(?<=example )|(?<=pass ))(\w+)=r?(?=['<])")
_NAMED = re.compile(r"(?<=[Gg]ive )label_from(?=[ ,.;])")


def in_options(message: str, options: argparse.Namespace) -> str:
    """Return a message with the options that a user types in the place of parameters.

    What is no option of the command stays as it is.

    >>> options = argparse.Namespace(command="train", lr=-1.0, label_from=None)
    >>> in_options("The 'lr' parameter of Trainer must be a positive float. Got -1.0 instead.", options)
    '--lr must be a positive float. Got -1.0 instead.'
    >>> in_options("Give label_from, for example label_from=r'^(.)'.", options)
    "Give --label-from, for example --label-from '^(.)'."
    """

    def option_of(parameter: str) -> str | None:
        name = _OPTIONS.get(parameter, parameter)
        known = name not in _PLACED and name in vars(options)
        return f"--{name.replace('_', '-')}" if known else None

    def named(match: re.Match[str]) -> str:
        option, whose = option_of(match[1]), f" of {match[2]}" if match[2] else ""
        return match[0] if option is None else f"{option}{whose} must "

    def assigned(match: re.Match[str]) -> str:
        option = option_of(match[1])
        return match[0] if option is None else f"{option} "

    start = _PARAMETER.match(message)
    text = message if start is None else named(start) + message[start.end() :]
    if text != message:
        # What is None or False in Python is an option that is not given.
        text = _ABSENT.sub(" must be left out", text, count=1).replace(", or None. Got", ". Got", 1)
    text = _ASSIGNED.sub(assigned, text).replace(" or weights=None", " or --weights none")
    return _NAMED.sub(option_of("label_from") or "label_from", text)
