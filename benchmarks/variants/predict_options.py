"""The options of the prediction scripts, and the line of JSON that each ends with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def read_options(description: str | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of images")
    parser.add_argument("--weights", type=Path, required=True, help="a torchvision state dict")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", required=True)
    return parser.parse_args()


def tell(labels: Sequence[int | str], seconds: float) -> None:
    """Print the best label of each image, and the images per second once the model was loaded."""
    numbers = [int(label) for label in labels]
    print(json.dumps({"labels": numbers, "images_per_second": len(numbers) / seconds}))
