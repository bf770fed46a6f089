"""Measure the peak of memory when features are extracted, against the number of images.

    python -m benchmarks.memory

The benchmark makes some small JPEG files and links them under as many names as it needs. Each
extraction is a process of its own with empty caches; its peak of resident memory counts what is
mapped from files too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common
from benchmarks.common import ChildRun, cell, statistic
from benchmarks.images import link_copies, make_photos

MIB = 2**20


class Extraction:
    """Extracts features in a process of its own, with empty caches each time."""

    def __init__(self, data: Path, caches: Path, backbone: str, device: str) -> None:
        self._options = {"data": data, "backbone": backbone, "device": device}
        self._caches = caches

    def __call__(self, number: int) -> ChildRun:
        """Run once."""
        with tempfile.TemporaryDirectory(dir=self._caches) as folder:
            env = common.cache_variables(Path(folder))
            return common.run_variant("extract_features", self._options, env=env)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--counts", nargs="+", type=int, default=[5000, 50000], help="numbers of images")
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--side", type=int, default=32, help="of the photos, in pixels")
    parser.add_argument("--device", default="cpu")
    parser.set_defaults(repeats=1)
    options = common.parse(parser, arguments, counts=[8, 16])

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label in ("one", "two"):
            make_photos(folder / "photos" / label, 20, (options.side, options.side))
        runs = {}
        for count in options.counts:
            for label in ("one", "two"):
                link_copies(folder / "photos" / label, folder / str(count) / label, count // 2)
            runs[str(count)] = Extraction(folder / str(count), folder, options.backbone, options.device)
        results = common.alternate(runs, options.repeats)

    rows = []
    for count, done in results.items():
        seconds = [run.report["seconds"] for run in done]
        rows.append(
            {
                "images": done[0].report["images"],
                "peak_bytes": statistic([run.report["peak"] for run in done]),
                "before_extraction_bytes": statistic([run.report["peak_before"] for run in done]),
                "seconds": statistic(seconds),
                "images_per_second": statistic([int(count) / each for each in seconds]),
                "runs": [run.report for run in done],
            }
        )
    lines = [
        [
            f"{row['images']:,}",
            *(cell(row[name]["median"] / MIB, 0) for name in ("before_extraction_bytes", "peak_bytes")),
            cell(row["seconds"]),
            cell(row["images_per_second"], 0),
        ]
        for row in rows
    ]
    headings = ["images", "MiB before", "MiB at the peak", "seconds", "images/s"]
    common.print_table(f"Extracting features with {options.backbone}", headings, lines)
    difference = rows[-1]["peak_bytes"]["median"] - rows[0]["peak_bytes"]["median"]
    print(f"from {rows[0]['images']:,} to {rows[-1]['images']:,} images: {difference / MIB:+,.0f} MiB")
    common.write_results("memory", options, rows=rows, difference_bytes=difference)


if __name__ == "__main__":
    main()
