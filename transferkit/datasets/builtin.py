"""The data set that needs neither a folder nor a network: scikit-learn's digits."""

from __future__ import annotations

import numpy as np

from transferkit.datasets.base import Part
from transferkit.datasets.registry import register_dataset
from transferkit.datasets.splitting import stratified_draw

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
