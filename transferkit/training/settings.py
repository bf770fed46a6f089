"""What a run was asked for, as plain values, and whether a run that is resumed is asked for the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence, Sized
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
RESUMED = ("settings", "phases", "batch_size", "execution", "batch_norm", "decisions")
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
    adapt_batch_norm: bool | str,
) -> dict[str, Any]:
    """Return everything on which the result of a run depends, by the name that a message gives it."""
    settings: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "epochs": epochs}
    settings["adapt_batch_norm"] = adapt_batch_norm
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
    differences = _differences(recorded["settings"], settings)
    if differences:
        raise ResumeMismatchError(
            f"The run in {path} can only be resumed with the settings it began with: "
            f"{'; '.join(differences)}. Give it those, or choose a new run directory."
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what each setting that differs was and is, without what follows from another that does."""
    found: list[str] = []
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if old == new or _follows(name, before, now):
            continue
        if name in ("training data", "validation data"):
            found.append(_other_data(name.removesuffix(" data"), old, new))
        elif name.startswith("classes of the "):
            found.append(f"the {name} were {_shown(old)} and are {_shown(new)} now")
        else:
            found += [
                f"{each} was {_shown(was)} and is {_shown(value)} now"
                for each, was, value in _settings_in(name, old, new)
            ]
    return found


def _follows(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether another setting that differs says it already."""
    in_one = (name in before) != (name in now)
    if " of phase " in name:
        return in_one and before.get("phases") != now.get("phases")
    # Other images have other sizes; where there are none, there are no classes either.
    kind, _, data = name.partition(" of the ")
    if name in ("training data", "validation data") and before.get("seed") != now.get("seed"):
        return True  # images are drawn by it
    differs = before.get(data) != now.get(data)
    return differs and (kind == "size" or (kind == "classes" and in_one))


def _other_data(kind: str, old: object, new: object) -> str:
    (was, _, first), (now, _, second) = (
        f"{each or 'none'}".partition(" with fingerprint ") for each in (old, new)
    )
    if not (first and second):
        return f"the {kind} data was {was} and is {now} now"
    # A fingerprint is of names and labels, and of pixels that have no file.
    counts = f"{was} then and {now} now" if was != now else f"{was}, with other names, labels or pixels"
    return f"the {kind} images are others than when it began: {counts}"


def _settings_in(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield what differs in a setting, by names that a user knows."""
    if name == "head" and isinstance(old, list) and isinstance(new, list):
        old, new = (dict(zip(("place", "kind", "dropout"), each, strict=False)) for each in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if (key in old, old.get(key)) != (key in new, new.get(key)):
                yield f"{key} of the {name}", old.get(key), new.get(key)
    elif name.startswith("size of the "):
        yield f"{name} in bytes", old, new
    else:
        yield "number of phases" if name == "phases" else name, old, new


def _shown(value: object) -> str:
    if value is None:
        return "not given"
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
