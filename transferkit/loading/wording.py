"""What files and other libraries say, as our own sentences can hold it."""

from __future__ import annotations

from transferkit.registry import shown

_LONGEST = 200


def first_line(error: Exception) -> str:
    r"""Return the reason in an error, in one line and without a full stop.

    >>> first_line(ValueError("The header is too large.\nSee https://example.org."))
    'The header is too large'
    """
    # torch puts what happened after advice that does not apply here.
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
    return reason[:_LONGEST].rstrip(".") or type(error).__name__


def printable(name: str) -> str:
    r"""Return a name from a file as it is, unless it would break the line, fill it or steer a terminal.

    >>> printable("fc.weight"), printable("fc\n")
    ('fc.weight', "'fc\\n'")
    """
    return name if name.isprintable() and len(name) <= _LONGEST else shown(name)
