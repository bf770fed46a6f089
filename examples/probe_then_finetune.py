"""CIFAR-10 in three steps, with the accuracy after each: a probe, augmentation, then everything.

    python examples/probe_then_finetune.py --data cifar10 --weights default

1. A linear probe: SGD trains ``model.fc`` on a frozen backbone, on plain images.
2. The same with pad, crop and flip: eight stored views of each image, of which each epoch draws one.
3. Everything unfrozen at a lower rate, which a step schedule lowers further.

Each step goes on from the weights that the one before has left. Then one call predicts an image. The
same call predicts it with a vision transformer of Hugging Face (``pip install 'transferkit[hf]'``).
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from material import add_model_options, at_hand, drawn_photos, load_model

import transferkit as tk
from transferkit.errors import DownloadError, MissingExtraError

if TYPE_CHECKING:
    from torch import nn

VIT = "facebook/deit-tiny-patch16-224"  # 23 MB, trained on ImageNet
STEPS = {
    "linear probe": tk.Phase(train="head", epochs=10, optimizer="sgd", lr=0.02),
    "with pad, crop and flip": tk.Phase(
        train="head", epochs=10, optimizer="sgd", lr=0.01, views=8, augmentation="light"
    ),
    "everything": tk.Phase(
        train="all",
        epochs=10,
        optimizer="sgd",
        lr=2e-3,
        schedule="step",
        step_size=4,
        gamma=0.1,
        augmentation="light",
        freeze_batch_norm=True,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="cifar10, or a folder with train and test")
    parser.add_argument("--epochs", type=int, help="of each step (10)")
    parser.add_argument("--verbose", action="store_true", help="show progress")
    add_model_options(parser)
    options = parser.parse_args()

    data = options.data or at_hand("data/cifar10_10pct")
    if data is None:
        folder = Path(tempfile.mkdtemp(prefix="drawn-"))
        data = drawn_photos(folder, ["ant", "bee", "cat", "dog"], train=40, test=40)
    splits = tk.load_dataset(data, subset=0.1 if data == "cifar10" else None)
    print(splits)
    torch.manual_seed(0)
    model = load_model(options, splits.classes)

    for name, phase in STEPS.items():
        if options.epochs is not None:
            phase = dataclasses.replace(phase, epochs=options.epochs)
        history = tk.Trainer(model, recipe=phase, progress=options.verbose).fit(splits)
        report = tk.evaluate(model, splits.test)
        low, high = report.accuracy_interval
        print(f"\n{name}: {tk.summary(model).trainable:,} parameters train")
        losses = [row["train_loss"] for row in history]
        print(f"loss {losses[0]:.3f} in the first epoch, {losses[-1]:.3f} in the last")
        print(f"test accuracy {report.accuracy:.1%} [{low:.1%}, {high:.1%}]")

    image, target = splits.test[0]
    print(f"\none image, of class {splits.classes[target]!r}")
    for prediction in tk.Predictor(model)(image, top_k=3):
        print(f"{prediction['score']:6.1%}  {prediction['label']}")

    print(f"\nthe same image, by the ViT {VIT} of Hugging Face")
    vit = hugging_face_vit()
    for prediction in [] if vit is None else tk.Predictor(vit)(image, top_k=3):
        print(f"{prediction['score']:6.1%}  {prediction['label']}")


def hugging_face_vit() -> nn.Module | None:
    """Return a ViT from the hub, or where that cannot be reached a tiny one with random weights."""
    try:
        return tk.load_backbone(f"hf/{VIT}")
    except MissingExtraError as error:
        print(error)
        return None
    except DownloadError:
        print("The hub cannot be reached: this is a tiny ViT with random weights, whose labels mean nothing.")
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    names = {number: f"random class {number}" for number in range(10)}
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, id2label=names
    )
    folder = Path(tempfile.mkdtemp(prefix="tiny-vit-"))
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return tk.load_backbone(f"hf/{folder}")


if __name__ == "__main__":
    main()
