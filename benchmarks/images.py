"""Photos that a benchmark makes for itself, where none are given."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png"}


def make_photo(generator: np.random.Generator, size: tuple[int, int], hue: float = 0.5) -> Image.Image:
    """Make an image with edges, gradients and some noise, so that its JPEG is as large as a photo's.

    Args:
        generator: Where the randomness comes from.
        size: Width and height in pixels.
        hue: In [0, 1]; moves the colors, so that classes can be told apart.
    """
    width, height = size
    coarse = generator.uniform(0, 255, (max(2, height // 24), max(2, width // 24), 3))
    coarse = 0.6 * coarse + 0.4 * 255 * np.array([hue, 0.5, 1 - hue])
    smooth = Image.fromarray(coarse.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth, dtype=np.float32) + generator.normal(0, 6, (height, width, 3))
    left, top = generator.integers(0, max(1, width // 2)), generator.integers(0, max(1, height // 2))
    pixels[top : top + height // 3, left : left + width // 3] *= 0.5
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_photos(folder: Path, count: int, size: tuple[int, int], *, hue: float = 0.5, seed: int = 0) -> None:
    """Write JPEG files ``0.jpg``, ``1.jpg`` … into a folder."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        make_photo(generator, size, hue).save(folder / f"{number}.jpg", quality=90)


def make_data_set(
    root: Path,
    *,
    train: int,
    test: int,
    classes: int = 10,
    size: tuple[int, int] = (32, 32),
    processes: int = 1,
) -> Path:
    """Write ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``, and return the folder."""
    jobs = []
    for part, (name, count) in enumerate((("train", train), ("test", test))):
        for label in range(classes if count else 0):
            share = count // classes + (label < count % classes)
            options: dict[str, Any] = {"hue": label / max(1, classes - 1), "seed": 1000 * part + label}
            jobs.append(partial(make_photos, root / name / f"class{label}", share, size, **options))
    if processes == 1:
        for job in jobs:
            job()
    else:
        with ProcessPoolExecutor(processes) as pool:
            for made in [pool.submit(job) for job in jobs]:
                made.result()
    return root


def link_copies(source: Path, folder: Path, count: int) -> None:
    """Fill a folder with ``count`` files that have the contents of the images in another, in turn.

    They are hard links where the file system has them, so that they take no space.
    """
    originals = find_photos(source)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        original, path = originals[number % len(originals)], folder / f"{number:06d}.jpg"
        try:
            os.link(original, path)
        except OSError:
            path.write_bytes(original.read_bytes())


def find_photos(folder: Path) -> list[Path]:
    """Return the images in a folder and below it, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def read_all(folder: Path) -> int:
    """Read every image once, so that no variant is the first to wait for the disk; return how many."""
    photos = find_photos(folder)
    for path in photos:
        path.read_bytes()
    return len(photos)


def as_array(path: Path) -> npt.NDArray[np.uint8]:
    """Return the pixels of an image: uint8, shape ``[H, W, 3]``."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
