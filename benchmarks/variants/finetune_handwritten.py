"""Fine-tune everything in the best loop that one would write by hand (benchmarks/handwritten.py)."""

from __future__ import annotations

import time

import torch

from benchmarks import measure, models
from benchmarks.handwritten import TrainingLoop
from benchmarks.variants.step_options import read_options, tell


def main() -> None:
    options = read_options(__doc__)
    torch.manual_seed(0)
    batches = measure.ReadyBatches(options.batch_size, options.image_size, options.steps, options.device)

    model = models.load(options.backbone, options.weights, options.image_size)
    models.new_head(model, 10)
    bf16 = (
        measure.computes_bf16(options.device) if options.precision == "auto" else options.precision == "bf16"
    )
    loop = TrainingLoop(
        model,
        options.device,
        bf16=bf16,
        total_steps=options.steps * options.epochs,
        compiled=options.compile == "yes",
    )

    epoch_seconds = []
    for _ in range(options.epochs):
        started = time.perf_counter()
        for images, targets in batches:
            loop.step(images, targets)
        float(loop.loss_sum)  # reading it waits for the device
        epoch_seconds.append(time.perf_counter() - started)

    tell(options.batch_size * options.steps, epoch_seconds, precision="bf16" if bf16 else "fp32")


if __name__ == "__main__":
    main()
