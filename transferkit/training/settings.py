"""What a run was asked for, as plain values, and whether a run that is resumed is asked for the same."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from torch import nn

from transferkit.augmentations import Augmentation
from transferkit.backbones.spec import find_spec
from transferkit.datasets.base import Part
from transferkit.errors import CheckpointCorruptError, ResumeMismatchError
from transferkit.runtime import Execution
from transferkit.training.data import TrainingData
from transferkit.training.phases import Phase

# What else a record of how a model runs has may differ on another machine; the run's own is used there.
_EXECUTION = ("device", "precision", "compile", "decode")
# What a checkpoint has of its run's configuration: all that a resumed run takes from it.
RESUMED = ("settings", "phases", "batch_size", "execution", "decisions")
# Values longer than this are cut in messages.
_SHOWN = 80


def settings_of(
    model: nn.Module,
    phases: Sequence[Phase],
    data: TrainingData,
    execution: Execution,
    *,
    augmentation: Augmentation | None,
    batch_size: int | str,
    epochs: int | None,
    seed: int,
) -> dict[str, Any]:
    """Return everything on which the result of a run depends, by the name that a message gives it."""
    settings: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "epochs": epochs}
    settings["augmentation"] = None if augmentation is None else augmentation.name
    settings |= {name: getattr(execution, name) for name in _EXECUTION}
    spec = find_spec(model)
    if spec is not None:
        settings |= {
            "backbone": spec.name,
            "weights": spec.weights,
            "builder arguments": dict(spec.builder_kwargs),
            "head": [spec.head, spec.head_kind, spec.head_dropout],
            "preprocessing": spec.preprocessing.to_dict(),
        }
    for name, source, part in (
        ("training data", data.train, data.train_part),
        ("validation data", data.val, data.val_part),
    ):
        if part is not None:
            settings[f"classes of the {name}"] = list(part.classes)
            settings[name] = f"{len(part)} images with fingerprint {part.fingerprint()}"
            settings[f"size of the {name}"] = _bytes_of(part)
        else:
            settings[name] = None if source is None else _described(source)
    settings["phases"] = len(phases)
    for number, phase in enumerate(phases, 1):
        settings |= {f"{name} of phase {number}": value for name, value in phase.to_dict().items()}
    # As JSON gives them back.
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def _bytes_of(part: Part) -> int | None:
    """Return how large the files of a part are; pixels in memory are in its fingerprint."""
    sources = [part.source(index) for index in range(len(part))] if part.fixed else []
    files = [source for source in sources if isinstance(source, str | os.PathLike)]
    return sum(os.stat(file).st_size for file in files if os.path.exists(file)) if files else None


def _described(loader: object) -> str:
    """Return what a loader tells of itself; its images it does not."""
    dataset = getattr(loader, "dataset", None)
    samples = f" of {len(dataset)} samples" if isinstance(dataset, Sized) else ""
    batches = f" in {len(loader)} batches" if isinstance(loader, Sized) else ""
    return f"a {type(loader).__name__}{samples}{batches}"


def check_same(recorded: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> None:
    """Make sure that a run goes on with what it began with.

    Args:
        recorded: Its configuration.
        settings: What it is asked for now.
        path: Its run directory.

    Raises:
        ResumeMismatchError: Something differs; the message has both values.
    """
    before = recorded["settings"]
    names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if names:
        shown = "; ".join(
            f"{name} was {_shown(before.get(name))} and is {_shown(settings.get(name))} now" for name in names
        )
        raise ResumeMismatchError(
            f"The run in {path} can only be resumed with the settings it began with: {shown}. "
            "Give it those, or choose a new run directory."
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def recorded_phases(recorded: Mapping[str, Any], asked: Sequence[Phase]) -> list[Phase]:
    """Return the phases of a run with all that it filled in.

    Args:
        recorded: Its configuration.
        asked: The phases as they were asked for, which hold what JSON cannot: callables.

    Raises:
        CheckpointCorruptError: The configuration is damaged.
    """
    try:
        return [
            Phase.from_dict(fields | {"train": phase.train})
            for fields, phase in zip(recorded["phases"], asked, strict=True)
        ]
    except (TypeError, ValueError) as error:
        raise CheckpointCorruptError(f"The phases in config.json are damaged: {error}.") from error


def recorded_execution(recorded: Mapping[str, Any]) -> Execution:
    """Return how a run ran, which is how it goes on.

    Raises:
        CheckpointCorruptError: The configuration is damaged.
    """
    try:
        return Execution(**recorded["execution"])
    except (TypeError, ValueError) as error:
        raise CheckpointCorruptError(f"The execution in config.json is damaged: {error}.") from error
