"""Compare transferkit's training loop with the best hand-written one, step by step in one process.

    python -m benchmarks.overhead

Both fine-tune the same weights on the same batches, which lie ready in memory: float32 or bfloat16
alike, channels last, the same parameters frozen. Epochs of a few steps take turns; the result is the
median of the ratios of neighbours.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import transferkit as tk
from benchmarks import common, measure, models
from benchmarks.common import cell, statistic
from benchmarks.handwritten import TrainingLoop


class TakingTurns(tk.Callback):
    """Times each epoch of the trainer, and after it as many steps of the hand-written loop."""

    def __init__(self, loop: TrainingLoop, batches: measure.ReadyBatches) -> None:
        self._loop, self._batches = loop, batches
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def epoch_start(self, epoch: int, samples: int | None, steps: int) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def epoch_end(self, row: dict[str, Any]) -> None:
        """Stop it, and give the other loop its turn."""
        self.ours.append(time.perf_counter() - self._started)
        started = time.perf_counter()
        for images, targets in self._batches:
            self._loop.step(images, targets)
        float(self._loop.loss_sum), int(self._loop.correct)  # as the trainer reads them: once an epoch
        self.theirs.append(time.perf_counter() - started)


def compare(
    backbone: str, weights: Path, *, image_size: int, batch_size: int, steps: int, repeats: int, device: str
) -> dict[str, Any]:
    """Let both loops take turns, and return the row of a model."""
    batches = measure.ReadyBatches(batch_size, image_size, steps, device)
    epochs = repeats + 1  # the first warms up
    bf16 = measure.computes_bf16(device)
    theirs = models.load(backbone, weights, image_size)
    models.new_head(theirs, 10)
    loop = TrainingLoop(theirs, device, bf16=bf16, total_steps=steps * epochs)

    ours = tk.load_backbone(backbone, weights=weights, image_size=image_size)
    tk.replace_head(ours, 10)
    turns = TakingTurns(loop, batches)
    trainer = tk.Trainer(
        ours,
        recipe=tk.Phase(train="all", epochs=epochs, freeze_batch_norm=True),
        callbacks=[turns],
        device=device,
        precision="bf16" if bf16 else "fp32",
        progress=False,
    )
    trainer.fit(batches)
    trained = [
        sum(each.numel() for each in model.parameters() if each.requires_grad) for model in (ours, theirs)
    ]
    if trained[0] != trained[1]:
        raise SystemExit(f"{backbone}: the loops train {trained[0]:,} and {trained[1]:,} parameters")
    return {
        "model": backbone,
        "precision": trainer.execution.precision,
        "transferkit_step_seconds": statistic([seconds / steps for seconds in turns.ours[1:]]),
        "handwritten_step_seconds": statistic([seconds / steps for seconds in turns.theirs[1:]]),
        "ratio": common.paired_ratio(turns.ours[1:], turns.theirs[1:]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18"], metavar="NAME")
    parser.add_argument("--weights", help='"default" for torchvision\'s, or a file; random where left out')
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="in each turn")
    parser.add_argument("--device", default="cpu")
    parser.set_defaults(repeats=10)
    options = common.parse(parser, arguments, image_size=32, batch_size=4, steps=2)
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for backbone in options.models:
            weights = models.write_weights(backbone, options.image_size, options.weights, Path(folder))
            names = ("image_size", "batch_size", "steps", "repeats", "device")
            rows.append(compare(backbone, weights, **{name: getattr(options, name) for name in names}))
    lines = [
        [
            f"{row['model']} {row['precision']}",
            cell(_milliseconds(row["handwritten_step_seconds"])),
            cell(_milliseconds(row["transferkit_step_seconds"])),
            f"{row['ratio']['median'] - 1:+.1%}",
            f"{row['ratio']['min'] - 1:+.1%} to {row['ratio']['max'] - 1:+.1%}",
        ]
        for row in rows
    ]
    headings = ["model", "by hand, ms a step", "transferkit, ms a step", "longer by", "least and most"]
    common.print_table("The loop's overhead", headings, lines)
    common.write_results("overhead", options, rows=rows)


def _milliseconds(value: common.Statistic) -> common.Statistic:
    return statistic([seconds * 1000 for seconds in value["values"]])


if __name__ == "__main__":
    main()
