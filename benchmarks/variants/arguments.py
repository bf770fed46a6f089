"""The options of the scripts, and the line of JSON that each ends with; nothing here touches speed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def read_options(description: str | None) -> argparse.Namespace:
    """Parse the options that the training scripts share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="holds train/CLASS/* and test/ or val/")
    parser.add_argument("--weights", type=Path, required=True, help="a torchvision state dict")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--train", choices=("head", "all"), default="head")
    parser.add_argument("--head", default="linear", help="of transferkit")
    parser.add_argument("--adapt", default="auto", help="auto, yes or no: adapt_batch_norm of transferkit")
    parser.add_argument("--solver", help="of transferkit; the recipe's own where left out")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", required=True)
    return parser.parse_args()


def held_out(data: Path) -> Path:
    """Return the folder of images that are kept for the end: ``test``, or else ``val``."""
    return data / ("test" if (data / "test").is_dir() else "val")


def middle_rate(stamps: Sequence[float], batch_size: int) -> float | None:
    """Return the images per second between the first and the last quarter of the steps.

    Args:
        stamps: When each step ended, in seconds.
        batch_size: Images in a step.
    """
    first, last = len(stamps) // 4, len(stamps) - 1 - len(stamps) // 4
    if last <= first:
        return None
    return (last - first) * batch_size / (stamps[last] - stamps[first])


def tell(**fields: object) -> None:
    """Print the result."""
    print(json.dumps(fields))
