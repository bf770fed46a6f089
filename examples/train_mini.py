"""Train the embedded backbone ``mini`` from scratch, and write the two files that ship with the package.

    python examples/train_mini.py TRAIN.zip VAL.zip CLASSES.tsv --epochs 30 --out mini-run

The zip files hold ``CLASS/*.JPEG``; the table names each class on a line: its folder, a tab,
and its name. The run directory gets ``mini.safetensors`` (half precision) and ``mini.json``,
which belong into ``transferkit/backbones/weights/``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import transferkit as tk


def read_zip(path: Path, classes: dict[str, str], name: str) -> tk.Part:
    """Read the encoded images of a zip of class folders into memory."""
    order = {folder: index for index, folder in enumerate(classes)}
    with zipfile.ZipFile(path) as archive:
        names = sorted(entry for entry in archive.namelist() if not entry.endswith("/"))
        sources = [archive.read(entry) for entry in names]
    targets = [order[entry.split("/")[0]] for entry in names]
    return tk.Part(sources, targets, list(classes.values()), name=name, ids=names)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("classes", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--subset", type=int, help="train on this many images of each class only")
    parser.add_argument("--out", type=Path, default=Path("mini-run"))
    options = parser.parse_args()

    lines = options.classes.read_text(encoding="utf-8").splitlines()
    classes = dict(line.split("\t")[:2] for line in lines if line and not line.startswith("#"))
    train = read_zip(options.train, classes, "train")
    val = read_zip(options.val, classes, "val")
    if options.subset:
        train = train.take(
            np.concatenate([np.flatnonzero(train.targets == c)[: options.subset] for c in range(200)])
        )

    torch.manual_seed(0)
    model = tk.load_backbone("mini", weights=None, num_classes=len(classes))
    phase = tk.Phase(
        train="all",
        epochs=options.epochs,
        optimizer="sgd",
        lr=0.3,
        schedule="one-cycle",
        warmup=0.2,
        weight_decay=5e-4,
        label_smoothing=0.1,
        augmentation="light",
    )
    trainer = tk.Trainer(model, recipe=phase, batch_size=256, run_dir=options.out)
    trainer.fit(train, val)
    report = tk.evaluate(model, val, batch_size=256)
    print(report)

    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    save_file({name: value.contiguous() for name, value in state.items()}, options.out / "mini.safetensors")
    digest = hashlib.sha256((options.out / "mini.safetensors").read_bytes()).hexdigest()
    record = {
        "name": "mini",
        "weights": "imagenet200",
        "sha256": digest,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "data": f"{len(train):,} ImageNet photos at 32 px in {len(classes)} classes (those of Tiny ImageNet)",
        "licence_note": (
            "The weights were trained on ImageNet photos, whose terms allow non-commercial research; "
            "the photos are not part of the package."
        ),
        "command": f"python examples/train_mini.py TRAIN.zip VAL.zip CLASSES.tsv --epochs {options.epochs}",
        "figures": {
            "val_accuracy": round(report.accuracy, 4),
            "val_accuracy_interval": [round(bound, 4) for bound in report.accuracy_interval],
            "val_top5_accuracy": round(report.top5_accuracy or 0.0, 4),
            "val_images": report.n,
            "epochs": options.epochs,
            "seconds": round(sum(row["seconds"] for row in trainer.history)),
        },
        "classes": list(classes.values()),
    }
    (options.out / "mini.json").write_text(
        json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
