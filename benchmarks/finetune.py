"""Time training steps of fine-tuning everything, on batches that are ready and from image files.

    python -m benchmarks.finetune
    python -m benchmarks.finetune --models resnet50 --data photos --device cuda --batch-size 128

Each variant is a process of its own; the first epoch is set apart, so that starting, compiling and
decoding for the first time do not count towards the steady rate.

- plain: float32, as tutorials write it
- handwritten: the best loop written by hand, on ready batches only
- transferkit: the trainer with the recipe ``fine-tune``
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
from benchmarks.images import make_data_set, read_all

MODELS = ("resnet18", "resnet50", "vit_b_16", "convnext_tiny", "efficientnet_b0", "mobilenet_v3_large")
INPUTS = {"ready": ("plain", "handwritten", "transferkit"), "files": ("plain", "transferkit")}


def build_parser() -> argparse.ArgumentParser:
    parser = common.make_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--inputs", nargs="+", choices=tuple(INPUTS), default=tuple(INPUTS))
    parser.add_argument(
        "--data", type=Path, help="a folder with train/CLASS/*; photos are made where left out"
    )
    parser.add_argument("--images", type=int, default=128, help="photos to make, without --data")
    parser.add_argument("--weights", help='"default" for torchvision\'s, or a file; random where left out')
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="in an epoch on ready batches")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--workers", type=int, default=min(4, os.cpu_count() or 1), help="of the plain loader"
    )
    parser.add_argument("--precision", default="auto", help="of transferkit and the loop by hand")
    parser.add_argument(
        "--compile",
        choices=("auto", "yes", "no"),
        default="auto",
        help="of transferkit; the loop by hand is compiled with yes alone",
    )
    parser.add_argument("--device", default="cpu")
    return parser


def measure_model(
    options: argparse.Namespace, backbone: str, weights: Path, data: Path, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """Run all variants of one model in turns, and return a row for each."""
    names = ("image_size", "batch_size", "steps", "epochs", "workers", "precision", "compile", "device")
    shared = {"weights": weights, "backbone": backbone, **{name: getattr(options, name) for name in names}}
    runs = {}
    for source in options.inputs:
        given = shared | {"data": data if source == "files" else None}
        for variant in INPUTS[source]:
            runs[f"{source} {variant}"] = partial(_run, variant, given)
    results = common.alternate(runs, options.repeats)
    rates = {name: [run.report["rate"] for run in done] for name, done in results.items()}
    needed = 3 * facts["operations_per_image"][backbone]  # forward, and twice as much backward
    rows = []
    for name, done in results.items():
        source, variant = name.split()
        base = rates.get(f"{source} plain")
        rows.append(
            {
                "model": backbone,
                "input": source,
                "variant": variant,
                "precision": done[0].report.get("precision", "fp32"),
                "execution": done[0].report.get("execution"),
                "images_per_second": statistic(rates[name]),
                "first_epoch_images_per_second": statistic([run.report["first_rate"] for run in done]),
                "process_seconds": statistic([run.seconds for run in done]),
                "ratio_to_plain": common.paired_ratio(rates[name], base) if base else None,
                "ratio_to_ready": _ratio_to(rates, name, f"ready {variant}"),
                "ratio_to_handwritten": _ratio_to(rates, name, f"{source} handwritten"),
                "share_of_bf16_peak": statistic(
                    [rate * needed / facts["peak"]["bf16"] for rate in rates[name]]
                ),
            }
        )
    return rows


def _run(variant: str, options: dict[str, object], _: int) -> ChildRun:
    with tempfile.TemporaryDirectory() as folder:
        env = common.cache_variables(Path(folder))
        return common.run_variant(f"finetune_{variant}", options, env=env)


def _ratio_to(rates: dict[str, list[float]], name: str, other: str) -> dict[str, Any] | None:
    return common.paired_ratio(rates[name], rates[other]) if other in rates and other != name else None


def show(rows: Sequence[dict[str, Any]], peak: dict[str, float]) -> None:
    """Print the table."""
    headings = [
        "model",
        "input",
        "variant",
        "steady images/s",
        "x plain",
        "x by hand",
        "x ready",
        "first epoch",
    ]
    lines = [
        [
            row["model"],
            row["input"],
            f"{row['variant']} {row['precision']}",
            cell(row["images_per_second"]),
            cell(row["ratio_to_plain"], 2),
            cell(row["ratio_to_handwritten"], 2),
            cell(row["ratio_to_ready"], 2),
            cell(row["first_epoch_images_per_second"]),
            f"{row['share_of_bf16_peak']['median']:.0%}",
        ]
        for row in rows
    ]
    common.print_table("Fine-tuning everything", [*headings, "of bf16 peak"], lines)
    shown = ", ".join(f"{name} {value / 1e9:,.0f}" for name, value in peak.items())
    print(f"matrix peak measured here, in GFLOP/s: {shown}")


def main(arguments: Sequence[str] | None = None) -> None:
    options = common.parse(
        build_parser(),
        arguments,
        models=["resnet18"],
        images=8,
        image_size=32,
        batch_size=4,
        steps=1,
        epochs=2,
        workers=0,
    )
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = options.data.resolve() if options.data else folder / "photos"
        if not options.data and "files" in options.inputs:
            size = (40, 32) if options.smoke else (500, 400)
            make_data_set(data, train=options.images, test=0, classes=4, size=size)
        if "files" in options.inputs:
            read_all(data)
        from benchmarks import models  # imports torch

        facts = common.run_variant(
            "device_facts",
            {
                "backbones": ",".join(options.models),
                "image_size": options.image_size,
                "side": 256 if options.smoke else None,
                "device": options.device,
            },
        ).report
        for backbone in options.models:
            weights = models.write_weights(backbone, options.image_size, options.weights, folder)
            rows += measure_model(options, backbone, weights, data, facts)
    show(rows, facts["peak"])
    common.write_results("finetune", options, rows=rows, facts=facts)


if __name__ == "__main__":
    main()
