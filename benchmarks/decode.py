"""Time decoding and preparing photos on one core, in one process, the ways taking turns.

    python -m benchmarks.decode
    python -m benchmarks.decode --photos photos

- pil: ``Image.open``, then Resize, CenterCrop, ToTensor and Normalize on each image
- exact, fast: transferkit, decoded to uint8 at the size that is needed, normalized as whole batches
- reduced: the same for training with augmentation, where large photos are decoded at a smaller scale
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

import transferkit as tk
from benchmarks import common
from benchmarks.common import cell, statistic
from benchmarks.images import find_photos, make_photos, read_all
from transferkit.loading.normalize import normalized
from transferkit.loading.pixels import Pixels

BATCH = 32
SIZES = ((32, 32), (320, 240), (500, 400), (1600, 1200))
OURS: dict[str, dict[str, Any]] = {
    "exact": {"decode": "exact"},
    "fast": {"decode": "fast"},
    "reduced": {"decode": "fast", "reduced": True},
}

Way = Callable[[npt.NDArray[np.int64]], Tensor]


def usual_way(photos: Sequence[Path], image_size: int) -> Way:
    """Return what tutorials do to a batch of files."""
    transform = transforms.Compose(
        [
            transforms.Resize(image_size * 256 // 224),
            transforms.CenterCrop(image_size),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )

    def batch(indices: npt.NDArray[np.int64]) -> Tensor:
        return torch.stack([transform(Image.open(photos[index]).convert("RGB")) for index in indices])

    return batch


def library_way(photos: Sequence[Path], image_size: int, **options: Any) -> Way:
    """Return what transferkit does to a batch of files."""
    preprocessing = tk.Preprocessing(image_size, image_size * 256 // 224)
    part = tk.Part(photos, [0] * len(photos), ["photo"])
    pixels = Pixels(part, preprocessing, workers=1, keep=False, **options)

    def batch(indices: npt.NDArray[np.int64]) -> Tensor:
        return normalized(pixels[indices], preprocessing, channels_last=True)

    return batch


def rate(way: Way, count: int, _: int) -> float:
    """Return the images per second over all photos."""
    started = time.perf_counter()
    for first in range(0, count, BATCH):
        way(np.arange(first, min(first + BATCH, count)))
    return count / (time.perf_counter() - started)


def measure_folder(folder: Path, label: str, image_size: int, repeats: int) -> list[dict[str, Any]]:
    """Return a row for each way to decode the photos of a folder."""
    read_all(folder)
    photos = find_photos(folder)
    ways = {"pil": usual_way(photos, image_size)}
    ways |= {name: library_way(photos, image_size, **options) for name, options in OURS.items()}
    first = np.arange(min(BATCH, len(photos)))
    prepared = {name: way(first) for name, way in ways.items()}  # warms up, too
    rates = common.alternate({name: partial(rate, way, len(photos)) for name, way in ways.items()}, repeats)
    return [
        {
            "photos": label,
            "count": len(photos),
            "way": name,
            "images_per_second": statistic(rates[name]),
            "ratio_to_pil": common.paired_ratio(rates[name], rates["pil"]),
            # Normalization divides by 255 and by 0.224 to 0.229.
            "difference_in_levels": {
                "largest": (images - prepared["pil"]).abs().amax().item() * 255 * 0.229,
                "mean": (images - prepared["pil"]).abs().mean().item() * 255 * 0.226,
            },
        }
        for name, images in prepared.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument(
        "--photos", type=Path, help="a folder of images; several sizes are made where left out"
    )
    parser.add_argument("--count", type=int, default=200, help="photos of each size")
    parser.add_argument("--image-size", type=int, default=224)
    parser.set_defaults(repeats=5)
    options = common.parse(parser, arguments, count=4, image_size=64)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folders = {} if options.photos is None else {options.photos.name: options.photos}
        for width, height in SIZES if options.photos is None else ():
            label = f"{width} x {height}"
            folders[label] = Path(name) / label
            make_photos(folders[label], max(4, options.count // max(1, width // 500)), (width, height))
        for label, folder in folders.items():
            rows += measure_folder(folder, label, options.image_size, options.repeats)
    lines = [
        [
            f"{row['photos']}, {row['way']}",
            cell(row["images_per_second"]),
            cell(row["ratio_to_pil"], 2),
            cell(row["difference_in_levels"]["largest"]),
            cell(row["difference_in_levels"]["mean"], 3),
        ]
        for row in rows
    ]
    headings = ["photos", "images/s on one core", "x pil", "largest difference", "mean, levels"]
    common.print_table(f"Decoding to {options.image_size} px", headings, lines)
    common.write_results("decode", options, rows=rows)


if __name__ == "__main__":
    main()
