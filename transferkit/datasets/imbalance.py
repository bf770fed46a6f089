"""Classes with unequal numbers of images: counted, reported, and made on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from transferkit.checks import check_int, check_positive, require
from transferkit.seeding import stream

if TYPE_CHECKING:
    from transferkit.datasets.base import Part

REPORTED_RATIO = 3.0
"""From this ratio of the largest class to the smallest on, a data set's text tells of it."""


def class_counts(part: Part) -> dict[str, int]:
    """Return how many images each class has, in the order of the classes.

    >>> from transferkit.datasets.base import Part
    >>> class_counts(Part(np.zeros((3, 2, 2), dtype=np.uint8), [0, 0, 1], ["ant", "bee", "wasp"]))
    {'ant': 2, 'bee': 1, 'wasp': 0}
    """
    counts = np.bincount(part.targets, minlength=len(part.classes)).tolist()
    return dict(zip(part.classes, counts, strict=True))


def imbalance_note(part: Part) -> str:
    """Return how unequal the classes are, or ``""`` below a ratio of ``REPORTED_RATIO``.

    >>> from transferkit.datasets.base import Part
    >>> imbalance_note(Part(np.zeros((7, 2, 2), dtype=np.uint8), [0] * 6 + [1], ["ant", "bee"]))
    'classes from 1 to 6 images (6:1)'
    """
    counts = class_counts(part).values()
    least, most = min(counts, default=0), max(counts, default=0)
    if most < REPORTED_RATIO * least or not most:
        return ""
    ratio = f" ({most / least:.3g}:1)" if least else ""
    return f"classes from {least} to {most} images{ratio}"


def long_tailed(part: Part, ratio: float, seed: int = 0) -> Part:
    """Keep fewer images of each class than of the one before, as data from the wild often has.

    Class ``i`` of ``C`` keeps ``n_i * ratio ** (-i / (C - 1))`` of its ``n_i`` images, rounded and
    at least one: the first class keeps all, and the last one image in ``ratio``. Where the classes
    were equal, ``ratio`` is that of the largest to the smallest. What is kept at a higher ratio is
    among what is kept at a lower one.

    Args:
        part: What to take the images from.
        ratio: At least 1.
        seed: Same seed, same images.

    Returns:
        The images kept, in their order.

    Raises:
        ArgumentError: The ratio is less than 1.

    Source:
        Cui et al. (2019), https://arxiv.org/abs/1901.05555, section 5.1: the exponential profile.

    >>> from transferkit.datasets.base import Part
    >>> even = Part(np.zeros((300, 2, 2), dtype=np.uint8), [0, 1, 2] * 100, ["ant", "bee", "wasp"])
    >>> class_counts(long_tailed(even, 25))
    {'ant': 100, 'bee': 20, 'wasp': 4}
    """
    share = check_positive("long_tailed", "ratio", ratio)
    require(share >= 1, "long_tailed", "ratio", "a float of at least 1", ratio)
    check_int("long_tailed", "seed", seed)
    last = max(len(part.classes) - 1, 1)
    kept = []
    for index, name in enumerate(part.classes):
        members = np.flatnonzero(part.targets == index)
        count = max(int(np.rint(members.size * share ** (-index / last))), 1)
        kept.append(stream(seed, "long-tailed", name).permutation(members)[:count])
    return part.take(np.sort(np.concatenate(kept)))
