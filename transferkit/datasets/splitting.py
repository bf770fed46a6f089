"""Stratified draws: the validation part, a thinner data set, a few images of each class.

Each draw is a function of the targets, in their order, and of a seed, so a data set whose images
are listed in the order of their ids is split alike wherever it lies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from transferkit.seeding import stream

Indices = npt.NDArray[np.int64]


def stratified_draw(targets: Indices, fraction: float, seed: int, *where: int | str) -> Indices:
    """Draw a fraction of the samples, each class in proportion.

    Every class of at least two samples gives at least one and keeps at least one, also where its
    share is less than that; a class of one keeps it.

    Args:
        targets: Class indices, shape ``[N]``.
        fraction: Share to draw, above 0 and below 1.
        seed: The seed of the run.
        where: What tells this draw from others with the same seed.

    Returns:
        Positions of the drawn samples, ascending.

    >>> stratified_draw(np.array([0, 0, 0, 0, 1, 1, 2]), 0.5, 0, "val").size
    3
    """
    from sklearn.model_selection import train_test_split

    shares = np.bincount(targets) * fraction
    kept_shares = np.bincount(targets) - shares
    # train_test_split refuses classes of one, and may take all or nothing of a small class. It moves
    # a class's share by less than 1/2 through the rounding of the total, hence the margin.
    small = (shares < 1.5) | (kept_shares < 1.5)
    large_enough = np.flatnonzero(~small[targets])
    drawn: list[Indices] = []
    if large_enough.size:
        total = int(np.rint(large_enough.size * fraction))
        state = int(stream(seed, *where).integers(2**32))
        labels = targets[large_enough]
        drawn.append(train_test_split(large_enough, test_size=total, stratify=labels, random_state=state)[1])
    for index in np.flatnonzero(small):
        members = np.flatnonzero(targets == index)
        if members.size > 1:
            count = int(np.clip(np.rint(shares[index]), 1, members.size - 1))
            drawn.append(stream(seed, *where, int(index)).permutation(members)[:count])
    return np.sort(np.concatenate(drawn)) if drawn else np.empty(0, dtype=np.int64)


def thin(targets: Indices, fraction: float, seed: int, *where: int | str) -> Indices:
    """Keep a fraction of the samples, each class in proportion and with at least one sample.

    Returns:
        Positions of the kept samples, ascending.

    >>> thin(np.array([0] * 8 + [1] * 4 + [2]), 0.25, 0).size
    4
    """
    if fraction == 1:
        return np.arange(targets.size)
    counts = np.bincount(targets)
    single = np.flatnonzero(counts[targets] == 1) if targets.size else np.empty(0, dtype=np.int64)
    return np.sort(np.concatenate([stratified_draw(targets, fraction, seed, *where), single]))


def draw_shots(targets: Indices, classes: Sequence[str], shots: int, seed: int) -> Indices:
    """Draw ``shots`` samples of each class, or all of a class that has fewer.

    What is drawn of a class depends on its name and samples alone, and five shots are the
    first five of ten, so that learning curves are nested.

    Returns:
        Positions of the drawn samples, ascending.

    >>> targets = np.array([0, 1] * 20)
    >>> five = draw_shots(targets, ["cat", "dog"], 5, seed=0)
    >>> set(five) <= set(draw_shots(targets, ["cat", "dog"], 10, seed=0))
    True
    """
    drawn = [
        stream(seed, "shots", name).permutation(np.flatnonzero(targets == index))[:shots]
        for index, name in enumerate(classes)
    ]
    return np.sort(np.concatenate(drawn))
