"""Time whole processes of a probe against the number of images, their size and the epochs.

    python -m benchmarks.scale --only transferkit-cold plain

From a base, one of the three changes at a time. Photos are made; weights are random unless given.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common, probe
from benchmarks.common import cell
from benchmarks.images import make_data_set


def grid(options: argparse.Namespace) -> Iterator[dict[str, int]]:
    """Yield the base, whose values are the first of each option, and what differs from it in one."""
    values = {"images": options.counts, "image_size": options.sizes, "epochs": options.epoch_counts}
    base = {name: given[0] for name, given in values.items()}
    yield base
    for name, given in values.items():
        for value in given[1:]:
            yield base | {name: value}


def measure_point(options: argparse.Namespace, point: dict[str, int], folder: Path) -> list[dict[str, Any]]:
    """Run the variants at one point of the grid, and return a row for each."""
    from benchmarks import models  # imports torch

    count, size = point["images"], point["image_size"]
    data = folder / f"photos{count}"
    if not data.exists():
        make_data_set(data, train=count, test=max(10, count // 5), size=(options.side, options.side))
    weights = models.write_weights(options.backbone, size, options.weights, folder)
    point_options = argparse.Namespace(**vars(options) | {"image_size": size, "epochs": point["epochs"]})
    shared = probe.shared_options(point_options, data, weights)
    caches = folder / f"caches{count}-{size}-{point['epochs']}"
    runs = common.alternate(probe.runners(point_options, shared, caches), options.repeats)
    return [point | probe.describe(name, done, point["epochs"]) for name, done in runs.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = probe.build_parser(__doc__)
    parser.add_argument("--counts", nargs="+", type=int, default=[500, 1000, 4000], help="training images")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 64, 128], help="that the model takes")
    parser.add_argument("--epoch-counts", nargs="+", type=int, default=[10, 1, 40])
    parser.add_argument("--side", type=int, default=64, help="of the photos, in pixels")
    parser.set_defaults(only=("transferkit-cold",), repeats=1)
    options = common.parse(
        parser, arguments, counts=[12], sizes=[32], epoch_counts=[1, 2], side=32, batch_size=4, workers=0
    )
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for point in grid(options):
            common.note(", ".join(f"{key} {value}" for key, value in point.items()))
            rows += measure_point(options, point, Path(name))
    lines = [
        [
            row["variant"],
            *(f"{row[key]:,}" for key in ("images", "image_size", "epochs")),
            ("~ " if row["extrapolated"] else "") + cell(row["seconds"]),
            cell(row["parts"] and row["parts"]["fit"]),
        ]
        for row in rows
    ]
    headings = ["variant", "images", "image size", "epochs", "whole process, s", "fit, s"]
    common.print_table("A probe against its size", headings, lines)
    if any(row["extrapolated"] for row in rows):
        print("~ extrapolated from fewer epochs")
    common.write_results("scale", options, rows=rows)


if __name__ == "__main__":
    main()
