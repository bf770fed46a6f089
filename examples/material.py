"""What the examples run on: real photos and weights where they are, and else what needs no network.

The variable ``TRANSFERKIT_TEST_DATA`` names a folder with ``data/`` and ``weights/``. Without it the
examples take scikit-learn's digits, or pictures that this file draws, and the embedded backbone:
enough to see how things are done, in seconds, and not to learn anything of real photos.

    python examples/material.py FOLDER cat dog

draws forty pictures of each into a folder, as ``cat.0.png`` and so on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

import transferkit as tk

if TYPE_CHECKING:
    from torch import nn

SIDE = 96


def at_hand(place: str) -> Path | None:
    """Return a file or folder of the real data, such as ``data/hymenoptera``, if it is there."""
    folder = os.environ.get("TRANSFERKIT_TEST_DATA")
    path = Path(folder or "", place)
    return path if folder and path.exists() else None


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", help="resnet18 where weights are given or at hand, and else mini")
    parser.add_argument("--weights", help="a .safetensors or .pth file, or default to fetch torchvision's")
    parser.add_argument("--image-size", type=int, help="side of the images in pixels")


def load_model(options: argparse.Namespace, classes: Sequence[str]) -> nn.Module:
    """Return a pretrained backbone with a new head for the classes."""
    weights, size = options.weights, options.image_size
    if weights is None and options.backbone in (None, "resnet18"):
        weights = at_hand("weights/resnet18_imagenet200_64px.pth")
        size = size or (64 if weights else None)
    name = options.backbone or ("mini" if weights is None else "resnet18")
    model = tk.load_backbone(name, weights=weights or "default", image_size=size)
    return tk.replace_head(model, len(classes), classes=classes)


def draw(label: str, generator: np.random.Generator) -> Image.Image:
    """Draw an ant, a bee, a cat or a dog, somewhere, turned a little, before a plain background."""
    picture = Image.new("RGBA", (SIDE, SIDE))
    pen = ImageDraw.Draw(picture)
    shade = tuple(int(value) for value in generator.integers(-30, 30, 3))
    DRAWINGS[label](pen, shade)
    angle = generator.uniform(-180, 180) if label in ("ant", "bee") else generator.uniform(-25, 25)
    scale = generator.uniform(0.6, 1.0)
    picture = picture.rotate(angle, Image.Resampling.BILINEAR).resize((int(SIDE * scale),) * 2)
    background = generator.normal(generator.integers(90, 220, 3), 18, (SIDE, SIDE, 3))
    result = Image.fromarray(background.clip(0, 255).astype(np.uint8))
    left, top = generator.integers(0, SIDE - picture.width + 1, 2)
    result.paste(picture, (int(left), int(top)), picture)
    return result


def _near(color: tuple[int, int, int], shade: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(min(255, max(0, value + change)) for value, change in zip(color, shade, strict=True))


def _ant(pen: ImageDraw.ImageDraw, shade: tuple[int, ...]) -> None:
    for left in (38, 46, 54):
        pen.line((left, 28, left + 4, 48, left, 68), fill="black", width=2)
    color = _near((70, 30, 25), shade)
    for box in ((12, 36, 40, 60), (38, 41, 58, 55), (56, 39, 76, 57)):
        pen.ellipse(box, fill=color)


def _bee(pen: ImageDraw.ImageDraw, shade: tuple[int, ...]) -> None:
    for box in ((30, 14, 52, 44), (46, 14, 68, 44)):
        pen.ellipse(box, fill=(235, 240, 250, 200))
    pen.ellipse((14, 32, 76, 66), fill=_near((225, 180, 40), shade))
    for left in (28, 42, 56):
        pen.rectangle((left, 34, left + 6, 64), fill="black")


def _face(pen: ImageDraw.ImageDraw, color: tuple[int, ...]) -> None:
    pen.ellipse((22, 24, 74, 78), fill=color)
    for left in (36, 54):
        pen.ellipse((left, 42, left + 7, 49), fill="black")
    pen.ellipse((44, 56, 53, 62), fill="black")


def _cat(pen: ImageDraw.ImageDraw, shade: tuple[int, ...]) -> None:
    color = _near((150, 140, 130), shade)
    pen.polygon((24, 44, 26, 6, 48, 28), fill=color)
    pen.polygon((72, 44, 70, 6, 48, 28), fill=color)
    _face(pen, color)


def _dog(pen: ImageDraw.ImageDraw, shade: tuple[int, ...]) -> None:
    color = _near((150, 140, 130), shade)
    _face(pen, color)
    for left in (10, 70):
        pen.ellipse((left, 28, left + 18, 74), fill=_near((110, 95, 85), shade))


DRAWINGS = {"ant": _ant, "bee": _bee, "cat": _cat, "dog": _dog}


def drawn_photos(folder: Path, labels: Sequence[str], **counts: int) -> Path:
    """Draw pictures of each label for each part: with ``train=40``, ``train/ant/0.png`` and so on.

    Without parts the labels stand in the file names, as in ``ant.0.png``, forty of each.
    """
    generator = np.random.default_rng(0)
    for part, count in counts.items() or [("", 40)]:
        for label in labels:
            for number in range(count):
                path = Path(folder, f"{part}/{label}/{number}.png" if part else f"{label}.{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                draw(label, generator).save(path)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("labels", nargs="+", choices=sorted(DRAWINGS))
    options = parser.parse_args()
    drawn_photos(options.folder, options.labels)


if __name__ == "__main__":
    main()
