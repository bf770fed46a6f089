"""Seeded damage to bytes, as disks, networks and attackers do it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_EXTREMES = (
    0,
    1,
    -1,
    2**15 - 1,
    2**16 - 1,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**62,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
)
_ENDS = 512  # headers stand at the start of a file, directories of archives at its end


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a damaged copy of ``data``: one to three damages, at least one byte changed.

    Args:
        data: At least one byte.
        rng: Says what is damaged, and where.

    >>> mutated(b"safe and sound", np.random.default_rng(0)) != b"safe and sound"
    True
    """
    damaged = bytearray(data)
    while bytes(damaged) == data:
        for _ in range(rng.integers(1, 4)):
            if damaged:
                _DAMAGES[rng.integers(len(_DAMAGES))](damaged, rng)
    return bytes(damaged)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """Draw a position: as often near the start and near the end as anywhere."""
    near = min(_ENDS, len(data))
    area = rng.integers(3)
    return int(
        rng.integers(near)
        if area == 0
        else len(data) - 1 - rng.integers(near)
        if area == 1
        else rng.integers(len(data))
    )


def _range(data: bytearray, rng: np.random.Generator) -> slice:
    """Draw a range: mostly of a few bytes, sometimes of a large part."""
    start = _place(data, rng)
    length = int(2 ** rng.uniform(0, np.log2(len(data) + 1)))
    return slice(start, start + length)


def _truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[_place(data, rng) :]


def _flip_bits(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 9)):
        data[_place(data, rng)] ^= 1 << int(rng.integers(8))


def _zero_range(data: bytearray, rng: np.random.Generator) -> None:
    part = _range(data, rng)
    data[part] = bytes(len(data[part]))


def _scramble_range(data: bytearray, rng: np.random.Generator) -> None:
    part = _range(data, rng)
    data[part] = rng.bytes(len(data[part]))


def _duplicate_range(data: bytearray, rng: np.random.Generator) -> None:
    place = _place(data, rng)
    data[place:place] = data[_range(data, rng)]


def _remove_range(data: bytearray, rng: np.random.Generator) -> None:
    del data[_range(data, rng)]


def _write_extreme(data: bytearray, rng: np.random.Generator) -> None:
    """Write an extreme integer, of 1 to 8 bytes and either byte order, over what stands there."""
    size = int(rng.choice([1, 2, 4, 8]))
    order = "little" if rng.integers(2) else "big"
    value = _EXTREMES[rng.integers(len(_EXTREMES))] % 2 ** (8 * size)
    place = _place(data, rng)
    data[place : place + size] = value.to_bytes(size, order)


_DAMAGES: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    _truncate,
    _flip_bits,
    _flip_bits,  # twice: what a single bit changes is the hardest to notice
    _zero_range,
    _scramble_range,
    _duplicate_range,
    _remove_range,
    _write_extreme,
)
