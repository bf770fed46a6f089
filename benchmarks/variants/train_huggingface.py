"""Train a head (or everything) with the Trainer of Hugging Face, around a torchvision model."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import datasets, transforms
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks import models
from benchmarks.variants.arguments import held_out, middle_rate, read_options, tell


class Classifier(nn.Module):
    """A torchvision model that returns what the Trainer expects."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return loss and logits."""
        logits = self.model(pixel_values)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Stamps(TrainerCallback):  # type: ignore[misc]  # reason: where transformers is not installed, it has no types
    """Notes when steps and epochs end."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.epochs: list[float] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock of an epoch."""
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the end of a step."""
        self.steps.append(time.perf_counter())

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Note the end of an epoch."""
        self.epochs.append(time.perf_counter() - self.started)


def collate(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def main() -> None:
    options = read_options(__doc__)
    torch.manual_seed(0)

    transform = transforms.Compose(
        [
            transforms.Resize(options.image_size),
            transforms.CenterCrop(options.image_size),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    train_data = datasets.ImageFolder(options.data / "train", transform)
    test_data = datasets.ImageFolder(held_out(options.data), transform)

    model = models.load(options.backbone, options.weights, options.image_size)
    model.requires_grad_(options.train == "all")
    models.new_head(model, len(train_data.classes))

    stamps = Stamps()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.lr or (3e-3 if options.train == "head" else 1e-4),
            dataloader_num_workers=options.workers,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=options.device == "cpu",
        )
        trainer = Trainer(
            model=Classifier(model),
            args=arguments,
            train_dataset=train_data,
            eval_dataset=test_data,
            data_collator=collate,
            callbacks=[stamps],
        )
        trainer.train()
        prediction = trainer.predict(test_data)

    correct = prediction.predictions.argmax(axis=1) == prediction.label_ids
    tell(
        train_images=len(train_data),
        test_images=len(test_data),
        accuracy=float(correct.mean()),
        epoch_seconds=stamps.epochs,
        images_per_second=middle_rate(stamps.steps, options.batch_size),
    )


if __name__ == "__main__":
    main()
