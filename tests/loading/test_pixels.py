"""Images are decoded once, and only when asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import transferkit as tk
from transferkit.loading import pixels as pixels_module
from transferkit.loading.pixels import Pixels

PREPROCESSING = tk.Preprocessing(size=8, resize=10)


@pytest.fixture
def part():
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 14, 3), dtype=np.uint8)
    return tk.Part(list(images), [0] * 6, ["only"])


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that were decoded, in order."""
    names = []
    original = pixels_module.decode

    def counted(source, *, name=""):
        names.append(name)
        return original(source, name=name)

    monkeypatch.setattr(pixels_module, "decode", counted)
    return names


def test_pixels_are_those_of_the_preprocessing(part):
    rows = Pixels(part, PREPROCESSING)[np.array([4, 1])]
    assert rows.dtype == torch.uint8
    for row, index in zip(rows, (4, 1), strict=True):
        assert torch.equal(row, PREPROCESSING.pixels(part[index][0]))


def test_each_image_is_decoded_once(part, decoded):
    pixels = Pixels(part, PREPROCESSING, workers=0)
    assert decoded == []
    pixels[np.array([3, 3, 5])]
    pixels[np.array([5, 0])]
    pixels[np.arange(6)]
    assert sorted(decoded) == ["0", "1", "2", "3", "4", "5"]


def test_what_does_not_fit_in_memory_is_decoded_each_time(part, decoded, monkeypatch):
    kept = Pixels(part, PREPROCESSING)[np.arange(6)]
    monkeypatch.setattr(pixels_module, "_free_memory", lambda: 0)
    pixels = Pixels(part, PREPROCESSING, workers=0)
    decoded.clear()
    assert torch.equal(pixels[np.arange(6)], kept)
    assert torch.equal(pixels[np.arange(6)], kept)
    assert len(decoded) == 12
