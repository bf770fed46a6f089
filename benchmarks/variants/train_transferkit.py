"""Train a head (or everything) with transferkit."""

from __future__ import annotations

import time

import torch

import transferkit as tk
from benchmarks.variants.arguments import read_options, tell


class Notes(tk.Callback):
    """Keeps the lines that tell how each phase runs."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def phase_start(self, number: int, phase: tk.Phase, note: str) -> None:
        """Keep the line."""
        self.lines.append(note)


def main() -> None:
    options = read_options(__doc__)
    torch.manual_seed(0)
    started = time.perf_counter()

    splits = tk.load_dataset(options.data, val=0)
    held_out = splits.val if splits.test is None else splits.test
    model = tk.load_backbone(
        options.backbone,
        weights=options.weights,
        # The shorter side to the size of the crop, as in the other variants.
        preprocessing=tk.Preprocessing(size=options.image_size),
    )
    tk.replace_head(model, len(splits.classes), classes=splits.classes, head=options.head)
    recipe: str | tk.Phase = "linear-probe" if options.train == "head" else "fine-tune"
    if options.solver is not None:
        recipe = tk.Phase(train="head", epochs=options.epochs, solver=options.solver)
    notes = Notes()
    trainer = tk.Trainer(
        model,
        recipe=recipe,
        lr=options.lr,
        batch_size=options.batch_size,
        callbacks=[notes],
        device=options.device,
        precision=options.precision,
        adapt_batch_norm={"yes": True, "no": False}.get(options.adapt, "auto"),
        progress=False,
    )
    loaded = time.perf_counter()
    history = trainer.fit(splits.train, epochs=options.epochs)
    fitted = time.perf_counter()
    report = tk.evaluate(model, held_out, device=options.device, precision=options.precision)

    rates = [row["images_per_second"] for row in history if row.get("images_per_second")]
    tell(
        train_images=len(splits.train),
        test_images=report.n,
        accuracy=report.accuracy,
        execution=str(trainer.execution),
        notes=notes.lines,
        # Epochs of a head run on stored features, so their rate says nothing of the backbone's.
        images_per_second=rates[-1] if rates and options.train == "all" else None,
        parts={
            "load": loaded - started,
            "fit": fitted - loaded,
            "evaluate": time.perf_counter() - fitted,
        },
    )


if __name__ == "__main__":
    main()
