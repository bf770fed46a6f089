"""CIFAR-10 with ResNet-18, as feature extraction and as fine-tuning.

    python examples/cifar10_resnet18.py --data cifar10 --weights default --out cifar10-runs

A tenth of CIFAR-10 is enough for a pretrained network. Feature extraction trains the head alone on a
frozen backbone; fine-tuning trains everything. Both start from the same weights, see the same images,
and are scored once on the test part, which had no say in either.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from material import add_model_options, at_hand, load_model

import transferkit as tk


def load_data(options: argparse.Namespace) -> tk.Splits:
    """Load CIFAR-10, a folder like it, or the digits; thin the whole of CIFAR-10 to a tenth."""
    data = options.data or at_hand("data/cifar10_10pct") or "digits"
    subset = options.subset or (0.1 if data == "cifar10" else None)
    return tk.load_dataset(data, subset=subset, seed=0)


def adapt(recipe: str, splits: tk.Splits, options: argparse.Namespace) -> tk.Report:
    """Train by a recipe, print the loss of each epoch, and score on the test part."""
    torch.manual_seed(0)
    model = load_model(options, splits.classes)
    augmentation = "none" if splits.record["source"] == "digits" else None  # a mirrored 2 is no digit
    out = options.out / recipe
    trainer = tk.Trainer(
        model, recipe=recipe, augmentation=augmentation, seed=0, run_dir=out, progress=options.verbose
    )
    history = trainer.fit(splits, epochs=options.epochs)
    print(f"\n{recipe}, of {tk.summary(model).trainable:,} parameters\n{history}\n")
    history.plot().savefig(out / "history.png", dpi=120)

    report = tk.evaluate(model, splits.test)
    print(report)
    report.to_json(out / "report.json")
    report.plot_confusion_matrix().savefig(out / "confusion_matrix.png", dpi=120)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="cifar10, a folder with train and test, or digits")
    parser.add_argument("--subset", type=float, help="share of every part (0.1 of cifar10, else all)")
    parser.add_argument("--epochs", type=int, default=10, help="of each of the two")
    parser.add_argument("--out", type=Path, help="where the two runs go (a temporary folder)")
    parser.add_argument("--verbose", action="store_true", help="show progress")
    add_model_options(parser)
    options = parser.parse_args()
    options.out = options.out or Path(tempfile.mkdtemp(prefix="cifar10-"))

    splits = load_data(options)
    print(splits)
    reports = {recipe: adapt(recipe, splits, options) for recipe in ("linear-probe", "fine-tune")}

    print("\ntest accuracy with its 95% interval")
    for recipe, report in reports.items():
        low, high = report.accuracy_interval
        print(f"{recipe:<12}  {report.accuracy:.1%} [{low:.1%}, {high:.1%}]")
    print(f"figures and models are in {options.out}")


if __name__ == "__main__":
    main()
