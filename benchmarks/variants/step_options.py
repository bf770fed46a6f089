"""The options of the fine-tuning scripts, and the line of JSON that each ends with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def read_options(description: str | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--weights", type=Path, required=True, help="a torchvision state dict")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument(
        "--data", type=Path, help="holds train/CLASS/*; batches that are ready where left out"
    )
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="in an epoch, where the batches are ready")
    parser.add_argument("--epochs", type=int, default=3, help="the first of them warms up")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", choices=("auto", "yes", "no"), default="auto")
    parser.add_argument("--device", required=True)
    return parser.parse_args()


def tell(images: int, epoch_seconds: Sequence[float], **fields: object) -> None:
    """Print the rates of the first epoch and of the later ones, in images per second."""
    later = images * (len(epoch_seconds) - 1) / sum(epoch_seconds[1:])
    print(json.dumps({"first_rate": images / epoch_seconds[0], "rate": later} | fields))
