"""What each command of the command line does: results to standard output, progress to standard error."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.errors import CheckpointError, DataError
from transferkit.files import write_stdout, write_text
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
    shown = json.dumps(value, indent=2, ensure_ascii=False) if options.json else text
    write_stdout(f"{shown}\n")


def train(options: Options) -> None:
    """Adapt a backbone to a data set, evaluate it and leave a run directory."""
    import torch

    from transferkit.backbones.load import load_backbone
    from transferkit.backbones.spec import spec_of
    from transferkit.checks import check_int, require
    from transferkit.evaluation.scoring import evaluate as score
    from transferkit.heads import replace_head
    from transferkit.run_outputs import save_figure, write_report
    from transferkit.trainer import Trainer

    out = Path(options.out).expanduser() if options.out else _free_run_directory(options)
    RunDirectory(out)  # a used one is refused before any work is done
    # As the trainer does, but before the seed is used for the first time.
    require(
        check_int("Trainer", "seed", options.seed) < 2**63,
        "Trainer",
        "seed",
        "an int below 2**63",
        options.seed,
    )
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
    size = spec_of(model).preprocessing.size
    tell(options, f"runs on {trainer.execution}; images of {size} px")
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
    predictor = Predictor.load(options.run, **_run_options(options))
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
        show(
            options,
            f"{len(paths)} images labelled in {options.out}" if options.out else table.rstrip("\n"),
            {},
        )


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
    phases = tuple(dataclasses.replace(phase, **changes) for phase in recipe_phases(options.recipe))
    if options.augmentation not in (None, "none") and all(phase.head_only for phase in phases):
        warnings.warn(
            f"--augmentation {options.augmentation} is not used: "
            f"no phase of the recipe {options.recipe!r} trains the backbone.",
            UserWarning,
            stacklevel=2,
        )
    return phases


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
    names = ", ".join(splits.classes[:10]) + (" …" if len(splits.classes) > 10 else "")
    return f"{len(splits.classes)} classes ({names}); images: {counts}"


def read_config(run: str) -> dict[str, Any]:
    """Return a run's ``config.json``.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    folder = Path(run).expanduser()
    path = folder / "config.json"
    try:
        # The names of images need not be valid Unicode; see write_text.
        config = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except (FileNotFoundError, NotADirectoryError):
        parent = folder.absolute().parent
        meant = (folder / "model.json").is_file() and (parent / "config.json").is_file()
        hint = f" This is the model of a run; give the run directory, {parent}." if meant else ""
        raise CheckpointError(f"There is no run in {run}: {path} is missing.{hint}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if not _is_config(config):
        raise CheckpointError(f"{path} is damaged: it is not what a run writes.")
    return dict(config)


def _is_config(config: object) -> bool:
    """Whether what ``evaluate`` needs of a configuration is there and of the right types."""
    if not isinstance(config, dict) or not isinstance(config.get("data"), dict):
        return False
    record, parts = config["data"], config.get("parts", {})
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        return False
    drawn = record.get("ids") or {}
    if not isinstance(drawn, dict):
        return False
    lists = [*drawn.values(), *(part.get("ids", []) for part in parts.values())]
    return all(isinstance(record.get(key), str | None) for key in ("source", "label_from")) and all(
        isinstance(ids, list) and all(isinstance(name, str) for name in ids) for ids in lists
    )


def _part_to_evaluate(options: Options, config: Mapping[str, Any]) -> Part:
    """Choose the images that the run did not train on.

    A data set's own test part comes first, then its own validation part. A folder without
    parts that the run trained on gives what the run kept for validation, or else the rest;
    another gives all.
    """
    from transferkit.datasets.load import load_dataset

    record = config["data"]
    label_from = options.label_from if options.label_from is not None else record.get("label_from")
    splits = load_dataset(options.data, val=0, label_from=label_from)
    own = splits.val if splits.test is None else splits.test
    if own is not None:
        return own
    part = splits.train
    trained, kept = (_recorded_ids(config, name) for name in ("train", "val"))
    seen = _places(part, trained, record.get("source"))
    held = _places(part, kept, record.get("source"))
    if not seen and not held:
        # Names such as cat/0.jpg say little: a copy of the data has most of them, other data a few.
        seen = {index for index, name in enumerate(part.ids) if name in trained}
        if 0 < 2 * len(seen) < len(trained):
            warnings.warn(
                f"{len(seen)} of {len(part)} images in {options.data} have the file name of a training image "
                "of the run; they are taken for others and evaluated too.",
                UserWarning,
                stacklevel=2,
            )
            seen = set()
        held = {index for index, name in enumerate(part.ids) if seen and name in kept}
    if held:
        return part.take(sorted(held), name="val")
    if not seen:
        return part.take(range(len(part)), name="all")
    rest = sorted(set(range(len(part))) - seen)
    if not rest:
        raise DataError(f"The run was trained on every image in {options.data}; evaluate it on others.")
    return part.take(rest, name="rest")


def _recorded_ids(config: Mapping[str, Any], name: str) -> set[str]:
    """Return the ids of the images that a run trained on or kept for validation."""
    ids = config.get("parts", {}).get(name, {}).get("ids")
    return set((config["data"].get("ids") or {}).get(name) or () if ids is None else ids)


def _places(part: Part, ids: set[str], source: str | None) -> set[int]:
    """Return where a part has the very images that ``ids`` name in ``source``, a folder as a rule."""
    if source is None:
        return set()
    files = {os.path.realpath(os.path.join(source, name)) for name in ids}
    return {
        index
        for index in range(len(part))
        if isinstance(path := part.source(index), Path) and os.path.realpath(path) in files
    }
