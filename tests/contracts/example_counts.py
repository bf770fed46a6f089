"""How many examples a property is tried on: the same ones each time, and many more on demand."""

from __future__ import annotations

import os

from hypothesis import settings

TORTURE = os.environ.get("TRANSFERKIT_TORTURE") == "1"


def examples(count: int) -> settings:
    """Return settings for ``count`` examples, 20 times as many with ``TRANSFERKIT_TORTURE=1``.

    The examples follow from the test itself, so that a failure comes back.
    """
    return settings(max_examples=20 * count if TORTURE else count, derandomize=True, deadline=None)
