"""An order in which all classes are shown equally often."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def balanced_order(targets: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw as many samples as there are, of each class that has any the same number, give or take one.

    No sample of a class is drawn again before all of them were.

    Args:
        targets: Class index of each sample, shape ``[N]``.
        generator: What the draws come from.

    Returns:
        Numbers, shape ``[N]``, in random order: ``number % N`` is the position of a sample, and
        ``number // N`` how often the order has it besides, at lower numbers.

    Source:
        Kang et al. (2020), https://arxiv.org/abs/1910.09217, section 4.1: class-balanced sampling.

    >>> targets = np.array([0, 0, 0, 0, 0, 1])
    >>> order = balanced_order(targets, np.random.default_rng(0))
    >>> np.bincount(targets[order % 6]).tolist(), len(set(order.tolist()))
    ([3, 3], 6)
    """
    count = len(targets)
    _, sizes = np.unique(targets, return_counts=True)
    members = np.split(np.argsort(targets, kind="stable"), np.cumsum(sizes)[:-1])
    shares = np.full(len(sizes), count // len(sizes))
    shares[generator.permutation(len(sizes))[: count % len(sizes)]] += 1
    drawn = []
    for positions, share in zip(members, shares, strict=True):
        rounds = -(-share // len(positions))
        every = [generator.permutation(positions) + count * number for number in range(rounds)]
        drawn.append(np.concatenate(every)[:share])
    order: npt.NDArray[np.int64] = generator.permutation(np.concatenate(drawn))
    return order
