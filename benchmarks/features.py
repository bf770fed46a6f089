"""Time how fast frozen backbones give features, against the fastest form written by hand.

    python -m benchmarks.features
    python -m benchmarks.features --models resnet50 vit_b_16 --device cuda

All forms of a model take turns in one process, on batches that lie ready in memory, except for the
last: transferkit from small images, which are enlarged, normalized and stored on the way. The first
batches are left out, with the compiling that happens in them.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import transferkit as tk
from benchmarks import common, measure, models
from benchmarks.common import cell, note, statistic
from benchmarks.handwritten import Forward, feature_forms
from transferkit.features.split import split_model
from transferkit.features.stored import BATCH_SIZE
from transferkit.inference import FastForward, choose_form
from transferkit.runtime import resolve_execution, why_not_compile

MODELS = ("resnet18", "resnet50", "vit_b_16", "convnext_tiny", "efficientnet_b0", "mobilenet_v3_large")
READY, FROM_IMAGES = "transferkit", "transferkit, from images"


def library_form(
    model: nn.Module, device: str, precision: str, *, compiled: bool, batch_size: int
) -> FastForward:
    """Return the frozen part of a model as transferkit runs it on many images."""
    execution = resolve_execution(model, device=device, precision=precision, compile=compiled)
    split = split_model(tk.freeze(execution.place(model)).eval())
    form = choose_form(split.prefix, execution, operations=0, batch_size=batch_size)
    return FastForward(split.prefix, form, execution)


class Extraction:
    """Runs ``extract_features`` on small images in memory, with an empty cache each time.

    Args:
        model: A model with a spec.
        count: Number of images, of 32 px.
        device: Where it runs.
        compiled: Whether the frozen part is compiled.
    """

    def __init__(self, model: nn.Module, count: int, device: str, *, compiled: bool) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self._part = tk.Part(pixels, np.arange(count) % 2, ["a", "b"])
        self._model = model
        self._options: dict[str, Any] = {"device": device, "compile": compiled}

    def __call__(self, _: int) -> float:
        """Return the images per second between the batches after the warm-up and the last."""
        calls: list[tuple[float, int]] = []
        compute = FastForward.__call__

        def watched(forward: FastForward, images: Tensor) -> Tensor:
            calls.append((time.perf_counter(), len(images)))
            return compute(forward, images)

        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict(os.environ, TRANSFERKIT_CACHE=folder),
            mock.patch.object(FastForward, "__call__", watched),
        ):
            features = tk.extract_features(self._model, self._part, **self._options)
            del features  # before its file goes
        # The first call checks the cut on a few images.
        steady = calls[1 + measure.WARM_UP :]
        images = sum(count for _, count in steady[:-1])
        return images / (steady[-1][0] - steady[0][0])


def ready_rate(forward: Forward, batches: measure.ReadyBatches, device: str, _: int) -> float:
    """Return the images per second of a form on batches that are ready."""

    def run() -> None:
        for images, _ in batches:
            forward(images)

    return len(batches) * batches.batch_size / measure.seconds_of(run, device)


def warm_up(forms: Mapping[str, Forward], images: Tensor, device: str) -> dict[str, float]:
    """Call each form a few times, and return the seconds of its first call, which compiles."""
    seconds = {}
    for name, forward in forms.items():
        note(f"warming up: {name}")
        seconds[name] = measure.seconds_of(partial(forward, images), device)
        for _ in range(measure.WARM_UP):
            forward(images)
    return seconds


def measure_model(options: argparse.Namespace, backbone: str, weights: Path) -> list[dict[str, Any]]:
    """Return a row for each form of a model."""
    device, size = options.device, options.image_size
    batches = measure.ReadyBatches(options.batch_size, size, options.batches, device)
    bf16 = measure.computes_bf16(device)
    compiled = not options.no_compile and why_not_compile(torch.device(device)) is None
    plain = models.load(backbone, weights, size)
    needed = measure.operations(plain, size)

    def ours() -> nn.Module:
        return tk.load_backbone(backbone, weights=weights, image_size=size)

    forms: dict[str, Forward] = dict(feature_forms(plain, device, bf16=bf16, compiled=compiled))
    # On a CPU transferkit packs, in less than a second, and has nothing to gain from a compiler.
    ours_compiled = compiled and torch.device(device).type != "cpu"
    form_options = {"compiled": ours_compiled, "batch_size": options.batch_size}
    forms[f"{READY} fp32"] = library_form(ours(), device, "fp32", **form_options)
    automatic = library_form(ours(), device, "auto", **form_options)
    forms[READY] = automatic
    images = batches.batches[0][0]
    first_calls = warm_up(forms, images, device)
    expected = forms["plain fp32"](images).flatten(1)
    errors = {name: measure.relative_error(form(images).flatten(1), expected) for name, form in forms.items()}

    runs: dict[str, Callable[[int], float]] = {
        name: partial(ready_rate, form, batches, device) for name, form in forms.items()
    }
    # The library takes batches of its own; a rate needs some of them.
    count = max(options.batch_size, BATCH_SIZE) * (options.batches + measure.WARM_UP + 1)
    runs[FROM_IMAGES] = Extraction(ours(), count, device, compiled=ours_compiled)
    rates = common.alternate(runs, options.repeats)
    by_hand = [name for name in forms if not name.startswith(READY)]
    best = max(by_hand, key=lambda name: statistic(rates[name])["median"])
    peak = measure.matrix_peak(device, torch.bfloat16, side=256 if options.smoke else None)
    return [
        {
            "model": backbone,
            "form": name,
            "executed": str(automatic.form) if name in (READY, FROM_IMAGES) else name,
            "images_per_second": statistic(values),
            "ratio_to_plain": common.paired_ratio(values, rates["plain fp32"]),
            "fastest_by_hand": best,
            "share_of_fastest_by_hand": common.paired_ratio(values, rates[best]),
            "share_of_bf16_peak": statistic([value * needed / peak for value in values]),
            "first_call_seconds": first_calls.get(name),
            "relative_error": errors.get(name),
        }
        for name, values in rates.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--weights", help='"default" for torchvision\'s, or a file; random where left out')
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64, help="of the batches that lie ready")
    parser.add_argument("--batches", type=int, default=6, help="in each turn")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled forms out")
    parser.add_argument("--device", default="cpu")
    options = common.parse(parser, arguments, models=["resnet18"], image_size=32, batches=2, no_compile=True)
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, common.cache_variables(Path(folder))),
    ):
        for backbone in options.models:
            weights = models.write_weights(backbone, options.image_size, options.weights, Path(folder))
            rows += measure_model(options, backbone, weights)
            torch.compiler.reset()
            gc.collect()
    lines = [
        [
            f"{row['model']}, {row['form']}" + (" *" if row["form"] == row["fastest_by_hand"] else ""),
            cell(row["images_per_second"]),
            cell(row["ratio_to_plain"], 2),
            f"{row['share_of_fastest_by_hand']['median']:.0%}",
            f"{row['share_of_bf16_peak']['median']:.0%}",
            cell(row["first_call_seconds"]),
            "-" if row["relative_error"] is None else f"{row['relative_error']:.1e}",
        ]
        for row in rows
    ]
    headings = ["model, form", "images/s", "x plain", "of *", "of bf16 peak", "first call, s", "error"]
    common.print_table("Features of frozen backbones", headings, lines)
    print("* the fastest by hand; the error is the norm of the difference to plain fp32 by its norm")
    common.write_results("features", options, rows=rows)


if __name__ == "__main__":
    main()
