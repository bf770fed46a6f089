"""Time whole training runs on the same images and weights: from the start of a process to its exit.

    python -m benchmarks.probe --data photos --weights resnet18.pth
    python -m benchmarks.probe --data photos --weights resnet18.pth --plain-epochs 1 --repeats 1

``photos`` holds ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/``). Without ``--data`` the benchmark
makes photos of its own; without ``--weights`` all variants share random ones. Each variant trains a
head for ``--epochs`` epochs and measures its accuracy on the test images at the end:

- plain: a PyTorch loop as tutorials write it
- fastai, huggingface: skipped by name where they are not installed
- transferkit-cold: with empty caches
- transferkit-warm: another head on the same images, after a first run
- transferkit-unadapted: with empty caches, and batch norm's statistics left alone where they are foreign to
  the images; the plain loop's training mode adapts them, and transferkit does in such a case
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import ChildRun, Statistic, cell, note, statistic
from benchmarks.images import make_data_set, read_all

# What a variant needs beside torch, torchvision and transferkit.
SLOW = {"plain": (), "fastai": ("fastai",), "huggingface": ("transformers", "accelerate")}
VARIANTS = (*SLOW, "transferkit-cold", "transferkit-warm", "transferkit-unadapted")


def build_parser(description: str | None) -> argparse.ArgumentParser:
    parser = common.make_parser(description)
    parser.add_argument("--data", type=Path, help="a folder with train/ and test/ (or val/)")
    parser.add_argument("--images", type=int, default=5000, help="training images to make, without --data")
    parser.add_argument("--weights", help='a torchvision state dict, or "default"; random where left out')
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--plain-epochs", type=int, help="run the slow loops for so many and extrapolate")
    parser.add_argument("--train", choices=("head", "all"), default="head", help="all: fine-tune everything")
    parser.add_argument("--lr", type=float, help="of the slow loops; each has its own where left out")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="of their loaders")
    parser.add_argument("--precision", default="auto", help="of transferkit")
    parser.add_argument("--solver", help="of transferkit's head; the recipe's own where left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS, metavar="NAME")
    return parser


def available(names: Sequence[str]) -> list[str]:
    """Leave out what is not installed, and say so."""
    kept = []
    for name in names:
        missing = [package for package in SLOW.get(name, ()) if find_spec(package) is None]
        if missing:
            note(f"{name} is skipped: {', '.join(missing)} not installed")
        else:
            kept.append(name)
    return kept


def shared_options(options: argparse.Namespace, data: Path, weights: Path) -> dict[str, object]:
    """Return the options that every variant gets."""
    names = ("backbone", "image_size", "batch_size", "epochs", "train", "workers", "device")
    return {"data": data, "weights": weights, **{name: getattr(options, name) for name in names}}


class TransferkitRuns:
    """Runs of transferkit; each cold one has caches of its own, which the warm one after it uses.

    Args:
        shared: The options that every variant gets.
        folder: Where the caches are.
        own: Options that only transferkit has.
    """

    def __init__(self, shared: dict[str, object], folder: Path, own: dict[str, object]) -> None:
        self._options = shared | own
        self._folder = folder
        self._filled: set[int] = set()

    def cold(self, number: int) -> ChildRun:
        """Run with empty caches."""
        self._filled.add(number)
        return common.run_variant("train_transferkit", self._options, env=self._caches(number))

    def warm(self, number: int) -> ChildRun:
        """Run with another head and rate; whatever it does not find in the caches, it computes."""
        if number not in self._filled:
            self.cold(number)
        other = self._options | {"head": "mlp", "lr": 1e-3}
        return common.run_variant("train_transferkit", other, env=self._caches(number))

    def unadapted(self, number: int) -> ChildRun:
        """Run with empty caches and with the statistics of batch norm that were loaded."""
        caches = common.cache_variables(self._folder / f"unadapted{number}")
        return common.run_variant("train_transferkit", self._options | {"adapt": "no"}, env=caches)

    def _caches(self, number: int) -> dict[str, str]:
        return common.cache_variables(self._folder / f"round{number}")


def runners(
    options: argparse.Namespace, shared: dict[str, object], folder: Path
) -> dict[str, Callable[[int], ChildRun]]:
    """Return what runs each variant that was asked for and is installed."""
    own = {"precision": options.precision, "solver": options.solver}
    ours = TransferkitRuns(shared, folder, own)
    found: dict[str, Callable[[int], ChildRun]] = {}
    for name in available([name for name in VARIANTS if name in options.only]):
        if name in SLOW:
            epochs = min(options.plain_epochs or options.epochs, options.epochs)
            slow = shared | {"epochs": epochs, "lr": options.lr}
            found[name] = partial(_run_slow, name, slow)
        else:
            found[name] = getattr(ours, name.removeprefix("transferkit-"))
    return found


def _run_slow(name: str, options: dict[str, object], _: int) -> ChildRun:
    return common.run_variant(f"train_{name}", options)


def extrapolated(run: ChildRun, epochs: int) -> float:
    """Return the seconds of a whole run of ``epochs`` epochs, each further one as long as the later ones."""
    measured = run.report["epoch_seconds"]
    # The first epoch starts the loader's processes and warms up.
    later = measured[1:] or measured
    return run.seconds + (epochs - len(measured)) * statistics.fmean(later)


def describe(name: str, runs: Sequence[ChildRun], epochs: int) -> dict[str, Any]:
    """Return what the rounds of one variant say, as it goes into the table and the JSON."""
    reports = [run.report for run in runs]
    measured = len(reports[0].get("epoch_seconds", ())) or epochs
    shortened = name in SLOW and measured < epochs
    seconds = [extrapolated(run, epochs) if shortened else run.seconds for run in runs]
    rates = [report["images_per_second"] for report in reports]
    parts = None
    if "parts" in reports[0]:
        # What is left of the whole process is its start, with the imports, and its exit.
        starts = [run.seconds - sum(run.report["parts"].values()) for run in runs]
        parts = {key: statistic([report["parts"][key] for report in reports]) for key in reports[0]["parts"]}
        parts = {"start": statistic(starts), **parts}
    return {
        "variant": name,
        "seconds": statistic(seconds),
        "extrapolated": shortened,
        "measured_epochs": measured,
        "measured_seconds": statistic([run.seconds for run in runs]),
        "steady_images_per_second": None if None in rates else statistic(rates),
        "accuracy": statistic([report["accuracy"] for report in reports]),
        "train_images": reports[0]["train_images"],
        "test_images": reports[0]["test_images"],
        "parts": parts,
        "execution": reports[0].get("execution"),
        "notes": reports[0].get("notes"),
    }


def speed_up(rows: Sequence[dict[str, Any]]) -> dict[str, Statistic]:
    """Return by how much each variant is faster than the plain loop in the same round."""
    plain = next((row for row in rows if row["variant"] == "plain"), None)
    if plain is None:
        return {}
    base = plain["seconds"]["values"]
    return {row["variant"]: common.paired_ratio(base, row["seconds"]["values"]) for row in rows}


def show(rows: Sequence[dict[str, Any]], ratios: dict[str, Statistic], epochs: int) -> None:
    """Print the table."""
    lines = []
    for row in rows:
        short = row["extrapolated"]
        lines.append(
            [
                row["variant"],
                ("~ " if short else "") + cell(row["seconds"]),
                ("~ " if short else "") + cell(ratios.get(row["variant"])),
                cell(row["steady_images_per_second"]),
                f"{row['accuracy']['median']:.1%}" + (f" after {row['measured_epochs']}" if short else ""),
            ]
        )
    headings = ["variant", "whole process, s", "x plain", "steady images/s", "test accuracy"]
    images = f"{rows[0]['train_images']:,} training and {rows[0]['test_images']:,} test images"
    common.print_table(f"{images}, {epochs} epochs", headings, lines)
    if any(row["extrapolated"] for row in rows):
        print(f"~ extrapolated to {epochs} epochs from the {rows[0]['measured_epochs']} that were run")
    for row in rows:
        if row["parts"]:
            spent = ", ".join(f"{name} {cell(value)} s" for name, value in row["parts"].items())
            print(f"{row['variant']}: {spent}")
            print(f"  {'; '.join(row['notes'])}")


def main(arguments: Sequence[str] | None = None) -> None:
    options = common.parse(
        build_parser(__doc__),
        arguments,
        images=20,
        backbone="resnet18",
        image_size=32,
        epochs=2,
        batch_size=8,
        workers=0,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = options.data.resolve() if options.data else folder / "photos"
        if not options.data:
            make_data_set(data, train=options.images, test=max(10, options.images // 5))
        from benchmarks import models  # imports torch

        weights = models.write_weights(options.backbone, options.image_size, options.weights, folder)
        read_all(data)
        shared = shared_options(options, data, weights)
        results = common.alternate(runners(options, shared, folder), options.repeats)
    rows = [describe(variant, runs, options.epochs) for variant, runs in results.items()]
    ratios = speed_up(rows)
    show(rows, ratios, options.epochs)
    common.write_results("probe", options, rows=rows, speed_up_over_plain=ratios)


if __name__ == "__main__":
    main()
