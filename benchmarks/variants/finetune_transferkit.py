"""Fine-tune everything with transferkit's trainer."""

from __future__ import annotations

import time
from typing import Any

import torch

import transferkit as tk
from benchmarks import measure
from benchmarks.variants.step_options import read_options, tell


class EpochTimes(tk.Callback):
    """Notes how long epochs take."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def epoch_start(self, epoch: int, samples: int | None, steps: int) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def epoch_end(self, row: dict[str, Any]) -> None:
        """Stop it; the loss in the row has been read, so the device is done."""
        self.seconds.append(time.perf_counter() - self._started)


def main() -> None:
    options = read_options(__doc__)
    torch.manual_seed(0)

    train: Any
    if options.data is None:
        train = measure.ReadyBatches(options.batch_size, options.image_size, options.steps, options.device)
        images, classes = options.batch_size * options.steps, 10
    else:
        train = tk.load_dataset(options.data, val=0).train
        images, classes = len(train), len(train.classes)

    model = tk.load_backbone(options.backbone, weights=options.weights, image_size=options.image_size)
    tk.replace_head(model, classes)
    times = EpochTimes()
    trainer = tk.Trainer(
        model,
        recipe="fine-tune",
        batch_size=options.batch_size,
        callbacks=[times],
        device=options.device,
        precision=options.precision,
        compile={"auto": "auto", "yes": True, "no": False}[options.compile],
        progress=False,
    )
    trainer.fit(train, epochs=options.epochs)
    tell(images, times.seconds, precision=trainer.execution.precision, execution=str(trainer.execution))


if __name__ == "__main__":
    main()
