"""Data sets that need no folder: scikit-learn's digits, and CIFAR-10 through torchvision."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from transferkit.datasets.base import Part
from transferkit.datasets.registry import register_dataset
from transferkit.datasets.splitting import stratified_draw
from transferkit.errors import DataError, DownloadError

CACHE = "~/.cache/transferkit/datasets"
_TEST_FRACTION = 0.3
_TEST_SEED = 0


@register_dataset("digits")
def digits() -> dict[str, Part]:
    """Return 1,797 handwritten digits of 8 x 8 pixels, which scikit-learn ships: no network.

    The test part is the same 30% for every seed, so that numbers from different runs compare.

    Source:
        https://archive.ics.uci.edu/dataset/80, through ``sklearn.datasets.load_digits``.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    whole = Part(images, data.target, [str(digit) for digit in range(10)])
    drawn = stratified_draw(whole.targets, _TEST_FRACTION, _TEST_SEED, "digits", "test")
    kept = np.setdiff1d(np.arange(len(whole)), drawn)
    return {"train": whole.take(kept, name="train"), "test": whole.take(drawn, name="test")}


@register_dataset("cifar10")
def cifar10(*, root: str | os.PathLike[str] = CACHE, download: bool = True) -> dict[str, Part]:
    """Return CIFAR-10: 50,000 training and 10,000 test photos of 32 x 32 pixels in 10 classes.

    Args:
        root: The folder that holds the data set, or will hold it: about 340 MB.
        download: Whether to fetch what is not there yet.

    Raises:
        DownloadError: It could not be fetched.
        DataError: It is not there, and was not to be fetched.

    Source:
        Krizhevsky (2009), https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    from torchvision.datasets import CIFAR10

    folder = Path(root).expanduser()
    parts = {}
    for name in ("train", "test"):
        try:
            data = CIFAR10(folder, train=name == "train", download=download)
        except (OSError, RuntimeError) as error:  # what urllib and torchvision raise
            if not download:
                raise DataError(
                    f"'{folder}' does not hold CIFAR-10, or a damaged copy of it; "
                    "name its folder with root=..., or let it be fetched with download=True."
                ) from error
            reason = str(error).strip().splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise DownloadError(
                f"CIFAR-10 could not be fetched into '{folder}' ({reason}); "
                f"connect to the network, or put {CIFAR10.url} there yourself."
            ) from error
        ids = [f"{name}/{index}" for index in range(len(data.data))]
        parts[name] = Part(data.data, data.targets, data.classes, name=name, ids=ids)
    return parts
