"""Ants and bees: train with augmentation and a step schedule, keep the best weights, look at the result.

    python examples/ants_and_bees.py --data hymenoptera --weights default --out ants-and-bees

The data is a folder with ``train/`` and ``val/``. Each epoch trains on the one and is scored on the
other; the weights of the best epoch are kept. Since they are chosen on the validation part, the
accuracy there is somewhat too good, and the report says so.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from material import add_model_options, at_hand, drawn_photos, load_model

import transferkit as tk


def look_at_training_images(splits: tk.Splits, preprocessing: tk.Preprocessing, out: Path) -> None:
    """Save what the model is shown: labels that are shifted are seen here and nowhere else."""
    augmentation = tk.augmentation("standard", preprocessing)
    figure = tk.plot_training_images(splits.train, preprocessing, augmentation, seed=0)
    figure.savefig(out / "training_images.png", dpi=120)


def phase(epochs: int) -> tk.Phase:
    """Train everything by SGD, at a rate that falls to a tenth after each third of the epochs."""
    return tk.Phase(
        train="all",
        epochs=epochs,
        optimizer="sgd",
        lr=2e-3,
        head_lr=2e-2,
        schedule="step",
        gamma=0.1,
        warmup=0.0,
        augmentation="standard",
        freeze_batch_norm=True,
    )


def look_at_predictions(report: tk.Report, part: tk.Part, out: Path) -> None:
    """Save a grid of predictions, some of each class, and the mistakes of which the model was surest."""
    chosen = np.linspace(0, report.n - 1, min(12, report.n)).astype(int)
    predicted = report.predictions[chosen]
    tk.plot_predictions(
        [part[index][0] for index in chosen],
        [report.classes[label] for label in predicted],
        report.probabilities[chosen, predicted].tolist(),
        [report.classes[label] for label in report.targets[chosen]],
    ).savefig(out / "predictions.png", dpi=120)
    if report.accuracy < 1:
        tk.plot_mistakes(report, part, most=8).savefig(out / "mistakes.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder with train/CLASS and val/CLASS")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", type=Path, help="where the figures go (a temporary folder)")
    parser.add_argument("--verbose", action="store_true", help="show progress")
    add_model_options(parser)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="ants-and-bees-"))
    out.mkdir(parents=True, exist_ok=True)
    data = options.data or at_hand("data/hymenoptera")
    if data is None:
        data = drawn_photos(out / "drawn", ["ant", "bee"], train=40, val=20)

    splits = tk.load_dataset(data)
    print(splits)
    torch.manual_seed(0)
    model = load_model(options, splits.classes)
    look_at_training_images(splits, tk.spec_of(model).preprocessing, out)

    trainer = tk.Trainer(model, recipe=phase(options.epochs), batch_size=16, progress=options.verbose)
    history = trainer.fit(splits)
    print(history)
    print(f"kept: the weights of epoch {history.best['epoch']}\n")
    history.plot().savefig(out / "history.png", dpi=120)

    report = tk.evaluate(model, splits.val)
    print(report)
    look_at_predictions(report, splits.val, out)
    tk.save_model(model, out / "model")
    print(f"figures and model are in {out}")


if __name__ == "__main__":
    main()
