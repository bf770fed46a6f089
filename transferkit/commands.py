"""What each command of the command line does: results to standard output, progress to standard error."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.errors import CheckpointError, DataError
from transferkit.files import write_text
from transferkit.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from transferkit.datasets.base import Part, Splits
    from transferkit.training.phases import Phase

Options = argparse.Namespace


def tell(options: Options, text: str) -> None:
    """Print a line of progress on standard error, unless the user wants quiet."""
    if not options.quiet:
        print(text, file=sys.stderr)


def show(options: Options, text: str, value: dict[str, Any]) -> None:
    """Print a result on standard output: as text, or as JSON for scripts."""
    print(json.dumps(value, indent=2, ensure_ascii=False) if options.json else text)


def train(options: Options) -> None:
    """Adapt a backbone to a data set, evaluate it and leave a run directory."""
    import torch

    from transferkit.backbones.load import load_backbone
    from transferkit.evaluation.scoring import evaluate as score
    from transferkit.heads import replace_head
    from transferkit.run_outputs import save_figure, write_report
    from transferkit.trainer import Trainer

    out = Path(options.out).expanduser() if options.out else _free_run_directory(options)
    RunDirectory(out)  # a used one is refused before any work is done
    phases = _phases(options)
    splits = _load_data(options)
    tell(options, _describe(splits))
    weights = None if options.weights == "none" else options.weights
    torch.manual_seed(options.seed)
    model = load_backbone(options.backbone, weights=weights, image_size=options.image_size)
    replace_head(model, len(splits.classes), classes=splits.classes)
    trainer = Trainer(
        model,
        recipe=phases,
        lr=options.lr,
        augmentation=options.augmentation,
        batch_size=options.batch_size,
        device=options.device,
        precision=options.precision,
        seed=options.seed,
        run_dir=out,
        workers=options.workers,
        progress=not options.quiet,
    )
    trainer.recipe = options.recipe
    tell(options, f"runs on {trainer.execution}")
    history = trainer.fit(splits, epochs=options.epochs)
    result: dict[str, Any] = {"run": str(out), "epochs": len(history), "best": history.best}
    text = f"run directory: {out}"
    part = splits.val if splits.test is None else splits.test
    if part is not None:
        report = score(model, part, **_run_options(options))
        for note in write_report(report, part, out):
            tell(options, note)
        result["report"] = report.to_dict()
        text = f"{report}\n\n{text}"
    for note in save_figure(out / "history.png", history.plot):
        tell(options, note)
    show(options, text, result)


def evaluate(options: Options) -> None:
    """Score the model of a run on a data set."""
    from transferkit.evaluation.scoring import evaluate as score
    from transferkit.saved_model import load_model

    config = read_config(options.run)
    model = load_model(options.run)
    part = _part_to_evaluate(options, config)
    report = score(model, part, **_run_options(options))
    if options.out:
        write_text(Path(options.out), json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n")
    show(options, str(report), report.to_dict())


def predict(options: Options) -> None:
    """Label images with the model of a run."""
    from transferkit.predictor import Predictor, find_images, predictions_csv
    from transferkit.run_outputs import prediction_grid, save_figure

    paths: list[Path] = []
    for name in options.images:
        path = Path(name).expanduser()
        paths.extend([path] if path.is_file() else find_images(path))
    predictor = Predictor.load(
        options.run, device=options.device, precision=options.precision, batch_size=options.batch_size
    )
    predictions = predictor.predict_many(paths, top_k=options.top_k)
    names = [str(path) for path in paths]
    table = predictions_csv(names, predictions)
    if options.out:
        write_text(Path(options.out), table)
    if options.grid:
        save_figure(Path(options.grid), lambda: prediction_grid(paths[:16], predictions[:16]), required=True)
    result = {"images": len(paths), "out": options.out}
    if options.json:
        rows = [{"path": name, "predictions": found} for name, found in zip(names, predictions, strict=True)]
        show(options, "", result | {"predictions": rows})
    else:
        print(f"{len(paths)} images labelled in {options.out}" if options.out else table.rstrip("\n"))


def quickstart(options: Options) -> None:
    """Fine-tune the embedded backbone on a few digits, beside the same network from random weights."""
    from transferkit.quickstart import run_quickstart

    result = run_quickstart(options.out, device=options.device, tell=lambda line: tell(options, line))
    show(options, str(result), result.to_dict())


def backbones(options: Options) -> None:
    """List the backbones."""
    from transferkit.backbones.registry import list_backbones

    _show_names(options, "backbones", list_backbones(options.pattern))


def datasets(options: Options) -> None:
    """List the data sets that have a name."""
    from transferkit.datasets.registry import list_datasets

    _show_names(options, "datasets", list_datasets())


def augmentations(options: Options) -> None:
    """List the augmentation presets."""
    from transferkit.augmentations import list_augmentations

    _show_names(options, "augmentations", list_augmentations())


def recipes(options: Options) -> None:
    """List the recipes with their phases."""
    from transferkit.training.recipes import list_recipes, recipe_phases

    described = {
        name: [f"{phase.train} for {phase.epochs} epochs" for phase in recipe_phases(name)]
        for name in list_recipes()
    }
    lines = [f"{name}: {', then '.join(phases)}" for name, phases in described.items()]
    show(options, "\n".join(lines), {"recipes": described})


COMMANDS: dict[str, Callable[[Options], None]] = {
    "augmentations": augmentations,
    "backbones": backbones,
    "datasets": datasets,
    "evaluate": evaluate,
    "predict": predict,
    "quickstart": quickstart,
    "recipes": recipes,
    "train": train,
}


def _show_names(options: Options, kind: str, names: Sequence[str]) -> None:
    show(options, "\n".join(names), {kind: list(names)})


def _run_options(options: Options) -> dict[str, Any]:
    return {
        "batch_size": options.batch_size,
        "device": options.device,
        "precision": options.precision,
        "workers": options.workers,
    }


def _free_run_directory(options: Options) -> Path:
    """Return the first of runs/DATA-BACKBONE-1, -2 … that is not there yet."""
    stem = f"{Path(options.data).name or 'data'}-{options.backbone.replace('/', '-')}"
    number = 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number}"


def _phases(options: Options) -> tuple[Phase, ...]:
    """Return the recipe's phases with what the user set; the trainer takes the learning rate."""
    from transferkit.augmentations import list_augmentations
    from transferkit.checks import check_choice
    from transferkit.training.recipes import recipe_phases

    if options.augmentation is not None:
        check_choice("train", "augmentation", options.augmentation, list_augmentations())
    given = {"head_lr": options.head_lr, "layer_decay": options.layer_decay, "optimizer": options.optimizer}
    changes = {name: value for name, value in given.items() if value is not None}
    return tuple(dataclasses.replace(phase, **changes) for phase in recipe_phases(options.recipe))


def _load_data(options: Options) -> Splits:
    from transferkit.datasets.load import load_dataset

    return load_dataset(
        options.data,
        val=options.val,
        label_from=options.label_from,
        subset=options.subset,
        shots=options.shots,
        seed=options.seed,
    )


def _describe(splits: Splits) -> str:
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items() if part is not None)
    return f"{len(splits.classes)} classes; images: {counts}"


def read_config(run: str) -> dict[str, Any]:
    """Return a run's ``config.json``.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    path = Path(run).expanduser() / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"There is no run in {run}: {path} is missing.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    return config


def _part_to_evaluate(options: Options, config: dict[str, Any]) -> Part:
    """Choose the images that the run did not train on.

    A data set's own test part comes first, then its own validation part. A folder without
    parts that the run trained on gives what the run kept for validation; another gives all.
    """
    from transferkit.datasets.load import load_dataset

    record = config["data"]
    label_from = options.label_from if options.label_from is not None else record.get("label_from")
    splits = load_dataset(options.data, val=0, label_from=label_from)
    if splits.test is not None or splits.val is not None:
        return splits.test or splits.val  # type: ignore[return-value]
    part = splits.train
    drawn = record.get("ids") or {}
    trained, kept = set(drawn.get("train") or ()), set(drawn.get("val") or ())
    # Names such as cat/0.jpg say little, so another folder is the same data only if it has all of them.
    same = splits.record["source"] == record.get("source") or (trained | kept) <= set(part.ids)
    seen = [index for index, name in enumerate(part.ids) if same and name in trained]
    if not seen:
        return part.take(range(len(part)), name="all")
    held = [index for index, name in enumerate(part.ids) if name in kept]
    if held:
        return part.take(held, name="val")
    rest = sorted(set(range(len(part))) - set(seen))
    if not rest:
        raise DataError(f"The run was trained on every image in {options.data}; evaluate it on others.")
    return part.take(rest, name="rest")
