"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transferkit.datasets.base import Part
from transferkit.registry import Registry

Factory = Callable[..., Mapping[str, Part]]

DATASETS: Registry[Factory] = Registry("data set")


def register_dataset(name: str) -> Callable[[Factory], Factory]:
    """Decorate a factory of a data set, so that ``load_dataset`` finds it by name.

    The factory takes keyword arguments, which ``load_dataset`` passes on, and returns parts by
    name: ``"train"`` and, where the data set has them, ``"val"`` and ``"test"``. It draws
    nothing: splitting, thinning and seeding are done by ``load_dataset``.

    Raises:
        ArgumentError: The name is taken, or is empty.

    >>> import numpy as np
    >>> @register_dataset("black-and-white")
    ... def black_and_white(*, size: int = 8) -> dict[str, Part]:
    ...     images = np.zeros((20, size, size, 3), dtype=np.uint8)
    ...     images[10:] = 255
    ...     return {"train": Part(images, [0] * 10 + [1] * 10, ["black", "white"])}
    >>> sorted(black_and_white(size=4))
    ['train']
    """
    return DATASETS.register(name)


def list_datasets() -> list[str]:
    """Return the names of all registered data sets, sorted.

    >>> "digits" in list_datasets()
    True
    """
    return sorted(DATASETS)
