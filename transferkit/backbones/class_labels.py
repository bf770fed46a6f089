"""Classes as other libraries have them: names that tell them apart, and weights that know of none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from transferkit.checks import warn_caller


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of which no two are the same; ImageNet has two cranes.

    >>> distinct(["crane", "kite", "crane"])
    ('crane (0)', 'kite', 'crane (2)')
    """
    counts = Counter(names)
    return tuple(f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names))


def warn_of_new_head(name: str, outputs: int) -> None:
    """Say that a model cannot classify yet, where nobody has asked for a new head.

    Args:
        name: The backbone.
        outputs: Of the head that it has got.
    """
    warn_caller(
        f"The weights of {name!r} have no head; the new one is random, with {outputs} outputs, until it is "
        "trained: give num_classes, or replace it."
    )
