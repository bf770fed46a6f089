"""Random numbers that are data: each is a function of a seed and of where it is used."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stream(seed: int, *where: int | str) -> np.random.Generator:
    """Return a generator for one use of ``seed``, independent of every other use.

    Args:
        seed: The seed of the run.
        where: What tells this use from others, such as ``"order"`` and an epoch.

    >>> float(stream(0, "order", 3).random()) == float(stream(0, "order", 3).random())
    True
    >>> float(stream(0, "order", 3).random()) == float(stream(0, "order", 4).random())
    False
    """
    keys = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in where]
    return np.random.default_rng([seed, *keys])


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble 64-bit counters (the output function of SplitMix64)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniforms(seed: int, epoch: int, indices: npt.ArrayLike, count: int) -> npt.NDArray[np.float32]:
    """Draw numbers in [0, 1) for each sample from (seed, epoch, sample index) alone.

    A sample's numbers do not depend on the batch, worker or device that asks for them,
    which a generator that is advanced from sample to sample could not promise.

    Args:
        seed: The seed of the run.
        epoch: The epoch, counted over the whole run.
        indices: Positions of the samples in the data set, shape ``[N]``.
        count: How many numbers each sample gets.

    Returns:
        float32, shape ``[N, count]``.

    Source:
        Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators.

    >>> both = uniforms(0, 1, [5, 9], 3)
    >>> bool((both[1] == uniforms(0, 1, [9], 3)[0]).all())
    True
    """
    run = np.array([seed, epoch], dtype=np.int64).astype(np.uint64)
    samples = np.asarray(indices, dtype=np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        key = _mix(_mix(run[:1] + _GOLDEN) + run[1:] * _GOLDEN + _GOLDEN)
        row = _mix(key + samples * _GOLDEN)[:, None]
        numbers = _mix(row + np.arange(1, count + 1, dtype=np.uint64)[None, :] * _GOLDEN)
    # The top 24 bits are what a float32 in [0, 1) can hold exactly.
    return ((numbers >> np.uint64(40)).astype(np.float32)) * np.float32(2**-24)
