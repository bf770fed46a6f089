"""Adapt a backbone to a data set."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.commands.common import (
    Options,
    check_backbones,
    run_options,
    show,
    skip_hinted,
    table_arguments,
    tell,
)
from transferkit.errors import ArgumentError
from transferkit.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from transferkit.augmentations import Augmentation
    from transferkit.datasets.base import Part, Splits
    from transferkit.evaluation.report import Report
    from transferkit.training.phases import Phase


def train(options: Options) -> None:
    """Adapt a backbone to a data set, evaluate it and leave a run directory."""
    import torch

    from transferkit.backbones.load import load_backbone
    from transferkit.backbones.spec import spec_of
    from transferkit.heads import replace_head
    from transferkit.run_outputs import write_figures, write_report
    from transferkit.trainer import Trainer
    from transferkit.training.keeping import Checkpoints
    from transferkit.training.tensorboard import TensorBoard

    if options.out is None and (options.resume or options.resume_from):
        raise ArgumentError("To resume a run, give its run directory with --out.")
    out = Path(options.out).expanduser() if options.out else _free_run_directory(options)
    resume = options.resume_from or options.resume
    if not resume:
        RunDirectory(out).check_unused()  # before any work is done
    phases = _phases(options)
    _check_early(options, phases)
    checkpoints = Checkpoints(seconds=options.checkpoint_seconds, steps=options.checkpoint_steps)
    if options.resume and not out.exists():
        tell(options, f"there is no run in {out} yet; it begins")
    if options.weights == "none" and all(phase.head_only for phase in phases):
        tell(options, "the weights are random, and no phase trains the backbone")
    splits = _load_data(options)
    tell(options, str(splits))
    weights = None if options.weights == "none" else options.weights
    torch.manual_seed(options.seed)
    model = load_backbone(options.backbone, weights=weights, image_size=options.image_size)
    replace_head(model, len(splits.classes), classes=splits.classes)
    how = run_options(options, model)
    board = TensorBoard(out / "tensorboard") if options.tensorboard else None
    trainer = Trainer(
        model,
        recipe=phases,
        lr=options.lr,
        augmentation=options.augmentation,
        callbacks=() if board is None else (board,),
        seed=options.seed,
        run_dir=out,
        checkpoints=checkpoints,
        progress=not options.quiet,
        adapt_batch_norm=options.adapt_batch_norm,
        on_error=options.on_error,
        **how,
    )
    trainer.recipe = options.recipe
    size = spec_of(model).preprocessing.size
    tell(options, f"runs on {trainer.execution}; images of {size} px")
    with skip_hinted(options):
        history = trainer.fit(splits, epochs=options.epochs, resume=resume)
        report, part = _evaluate(options, model, splits, how)
    notes = []
    if report is not None and part is not None:
        notes = write_report(report, part, out)
    if board is not None:
        if report is not None:
            board.add_report(report)
        board.close()
    notes += write_figures(
        out,
        model,
        splits.train,
        history,
        report=report,
        part=part,
        augmentation=_shown_augmentation(options, phases, model),
        seed=options.seed,
    )
    for note in dict.fromkeys(notes):
        tell(options, note)
    result: dict[str, Any] = {"run": str(out), "epochs": len(history), "best": history.best}
    text = f"run directory: {out}"
    if report is not None:
        result["report"] = report.to_dict()
        text = f"{report}\n\n{text}"
    show(options, text, result)


def _check_early(options: Options, phases: tuple[Phase, ...]) -> None:
    """Refuse what the trainer would refuse, before anything is read or drawn."""
    from torch import nn

    from transferkit.checks import check_int
    from transferkit.training.resolving import with_lr

    check_int("Trainer", "seed", options.seed)
    with_lr(phases, options.lr)
    if options.epochs is not None:
        check_int("Trainer.fit", "epochs", options.epochs, 1)
    if options.batch_size != "auto":
        check_int("Trainer", "batch_size", options.batch_size, 1)
    if options.workers is not None:
        check_int("Trainer", "workers", options.workers)
    check_backbones([(options.backbone, options.weights)])
    run_options(options, nn.Identity())  # for the device and the like; what it returns depends on the model


def _evaluate(
    options: Options, model: nn.Module, splits: Splits, how: dict[str, Any]
) -> tuple[Report | None, Part | None]:
    """Score a model on the test part or, without one, the validation part; return what was scored too."""
    from transferkit.evaluation.scoring import evaluate as score
    from transferkit.loading.checked import usable

    part = splits.val if splits.test is None else splits.test
    if part is None:
        return None, None
    if options.batch_size == "auto":
        how = how | {"batch_size": 64}
    part, skipped = usable(part, on_error=options.on_error, workers=options.workers)
    return dataclasses.replace(score(model, part, **how), skipped=skipped), part


def _shown_augmentation(options: Options, phases: Sequence[Phase], model: nn.Module) -> Augmentation | None:
    """Return the augmentation of the last phase that has one, for the figure of training images."""
    from transferkit.augmentations import augmentation
    from transferkit.backbones.spec import spec_of

    names = [options.augmentation or phase.augmentation for phase in phases if not phase.head_only]
    name = next((name for name in reversed(names) if name not in (None, "none")), None)
    return None if name is None else augmentation(name, spec_of(model).preprocessing)


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
    from transferkit.training.phases import epochs_of
    from transferkit.training.recipes import by_steps, recipe_phases

    if options.augmentation is not None:
        check_choice("train", "augmentation", options.augmentation, list_augmentations())
    steps = {
        "head_lr": options.head_lr,
        "layer_decay": options.layer_decay,
        "optimizer": options.optimizer,
        "schedule": options.schedule,
        "ema": options.ema,
        "sampling": options.sampling,
        "checkpoint_activations": options.checkpoint_activations or None,
    }
    steps = {name: value for name, value in steps.items() if value is not None}
    phases = recipe_phases(options.recipe)
    # What only matters to steps asks for steps.
    stepwise = {"epochs": options.epochs, "lr": options.lr, **steps}
    stepwise.pop("layer_decay", None)
    if (
        options.solver is None
        and not epochs_of(phases)
        and any(each is not None for each in stepwise.values())
    ):
        phases = by_steps(phases)
        given = ", ".join(
            f"--{name.replace('_', '-')}" for name, value in stepwise.items() if value is not None
        )
        tell(options, f"the head is trained by steps, because of {given}")
    phases = tuple(dataclasses.replace(phase, **steps) for phase in phases)
    if options.mix is not None:
        phases = tuple(
            phase if phase.head_only else dataclasses.replace(phase, mix=options.mix) for phase in phases
        )
    heads = {"solver": options.solver, "views": options.views}
    changes = {name: value for name, value in heads.items() if value is not None}
    phases = tuple(dataclasses.replace(phase, **changes) if phase.head_only else phase for phase in phases)
    _warn_of_unused(options, phases)
    return phases


def _warn_of_unused(options: Options, phases: tuple[Phase, ...]) -> None:
    """Say which options no phase makes use of."""
    heads = [phase.head_only for phase in phases]
    if all(heads):
        missing = "trains the backbone"
        names = [name for name in ("mix", "layer_decay", "checkpoint_activations") if getattr(options, name)]
        if options.augmentation not in (None, "none") and all(phase.views == 1 for phase in phases):
            names.append(f"augmentation {options.augmentation}")
    else:
        missing = "trains the head alone"
        names = [name for name in ("solver", "views") if getattr(options, name) and not any(heads)]
    if names:
        listed = " and ".join(f"--{name.replace('_', '-')}" for name in names)
        listed += " is" if len(names) == 1 else " are"
        warnings.warn(
            f"{listed} not used: no phase of the recipe {options.recipe!r} {missing}.",
            UserWarning,
            stacklevel=3,
        )


def _load_data(options: Options) -> Splits:
    from transferkit.datasets.load import load_dataset

    return load_dataset(
        options.data,
        val=options.val,
        label_from=options.label_from or None,
        subset=options.subset,
        shots=options.shots,
        seed=options.seed,
        **table_arguments(options),
    )
