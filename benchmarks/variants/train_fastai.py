"""Train a head (or everything) with fastai's ``vision_learner``, validating at the end only."""

from __future__ import annotations

import time
from typing import Any

import torch
from fastai.vision.all import (
    Callback,
    CancelValidException,
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    imagenet_stats,
    vision_learner,
)

from benchmarks import models
from benchmarks.variants.arguments import held_out, middle_rate, read_options, tell


class Stamps(Callback):  # type: ignore[misc]  # reason: fastai has no types
    """Notes when steps and epochs end, and leaves out the validation after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[float] = []
        self.epochs: list[float] = []

    def before_epoch(self) -> None:
        """Start the clock of an epoch."""
        self.started = time.perf_counter()

    def after_batch(self) -> None:
        """Note the end of a step."""
        if self.training:
            self.steps.append(time.perf_counter())

    def after_train(self) -> None:
        """Note the end of an epoch."""
        self.epochs.append(time.perf_counter() - self.started)

    def before_validate(self) -> None:
        """Skip it, as the other variants do."""
        raise CancelValidException


def main() -> None:
    options = read_options(__doc__)
    torch.manual_seed(0)

    dls = ImageDataLoaders.from_folder(
        options.data,
        train="train",
        valid=held_out(options.data).name,
        item_tfms=Resize(options.image_size),
        batch_tfms=Normalize.from_stats(*imagenet_stats),
        bs=options.batch_size,
        num_workers=options.workers,
        device=torch.device(options.device),
    )

    def backbone(**_: Any) -> torch.nn.Module:
        return models.load(options.backbone, options.weights, options.image_size)

    learner = vision_learner(dls, backbone, metrics=accuracy, normalize=False)
    learner.freeze() if options.train == "head" else learner.unfreeze()
    stamps = Stamps()
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(options.epochs, options.lr or 3e-3, cbs=stamps)
        _, reached = learner.validate()

    tell(
        train_images=len(dls.train_ds),
        test_images=len(dls.valid_ds),
        accuracy=float(reached),
        epoch_seconds=stamps.epochs,
        images_per_second=middle_rate(stamps.steps, options.batch_size),
    )


if __name__ == "__main__":
    main()
