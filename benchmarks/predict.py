"""Time predictions for a folder of photos: whole processes, and the rate once the model is loaded.

    python -m benchmarks.predict --photos photos --weights resnet18.pth

- one-by-one: a plain float32 loop over single images
- batches: a plain float32 loop over a DataLoader
- transferkit: ``Predictor`` on the folder
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import ChildRun, cell, statistic
from benchmarks.images import make_photos, read_all

VARIANTS = ("one-by-one", "batches", "transferkit")


def build_parser() -> argparse.ArgumentParser:
    parser = common.make_parser(__doc__)
    parser.add_argument(
        "--photos", type=Path, help="a folder of images; 256 of 500 x 400 are made where left out"
    )
    parser.add_argument("--weights", help='a torchvision state dict, or "default"; random where left out')
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--workers", type=int, default=min(4, os.cpu_count() or 1), help="of the plain loader"
    )
    parser.add_argument("--precision", default="auto", help="of transferkit")
    parser.add_argument("--device", default="cpu")
    return parser


def describe(name: str, runs: Sequence[ChildRun], plain: Sequence[ChildRun]) -> dict[str, Any]:
    """Return the row of a variant."""
    rates, base = ([run.report["images_per_second"] for run in each] for each in (runs, plain))
    labels, expected = runs[0].report["labels"], plain[0].report["labels"]
    equal = sum(one == other for one, other in zip(labels, expected, strict=True))
    return {
        "variant": name,
        "images": len(labels),
        "process_seconds": statistic([run.seconds for run in runs]),
        "images_per_second": statistic(rates),
        "ratio_to_one_by_one": common.paired_ratio(rates, base),
        "same_label_as_one_by_one": equal / len(labels),
    }


def _run(variant: str, shared: dict[str, object], folder: Path, number: int) -> ChildRun:
    env = common.cache_variables(folder / f"{variant}{number}")
    return common.run_variant(f"predict_{variant.replace('-', '_')}", shared, env=env)


def main(arguments: Sequence[str] | None = None) -> None:
    options = common.parse(build_parser(), arguments, image_size=32, batch_size=4, workers=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = options.photos.resolve() if options.photos else folder / "photos"
        if not options.photos:
            count, size = (6, (50, 40)) if options.smoke else (256, (500, 400))
            make_photos(photos, count, size)
        read_all(photos)
        from benchmarks import models  # imports torch

        weights = models.write_weights(options.backbone, options.image_size, options.weights, folder)
        names = ("backbone", "image_size", "batch_size", "workers", "precision", "device")
        shared = {"photos": photos, "weights": weights, **{key: getattr(options, key) for key in names}}
        runs = {variant: partial(_run, variant, shared, folder) for variant in VARIANTS}
        results = common.alternate(runs, options.repeats)
    rows = [describe(variant, done, results["one-by-one"]) for variant, done in results.items()]
    lines = [
        [
            row["variant"],
            cell(row["process_seconds"]),
            cell(row["images_per_second"]),
            cell(row["ratio_to_one_by_one"], 2),
            f"{row['same_label_as_one_by_one']:.1%}",
        ]
        for row in rows
    ]
    headings = ["variant", "whole process, s", "images/s", "x one by one", "same label"]
    common.print_table(f"Predicting {rows[0]['images']} photos", headings, lines)
    common.write_results("predict", options, rows=rows)


if __name__ == "__main__":
    main()
