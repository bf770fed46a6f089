"""Score the model of a run on the images that it was not trained on."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.commands.common import Options, run_options, show
from transferkit.errors import CheckpointError, DataError
from transferkit.files import write_text

if TYPE_CHECKING:
    from transferkit.datasets.base import Part


def evaluate(options: Options) -> None:
    """Score the model of a run on a data set."""
    from transferkit.evaluation.scoring import evaluate as score
    from transferkit.saved_model import load_model

    config = read_config(options.run)
    model = load_model(options.run)
    part = _part_to_evaluate(options, config)
    report = score(model, part, on_error=options.on_error, **run_options(options, model))
    if options.out:
        write_text(Path(options.out), json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n")
    show(options, str(report), report.to_dict())


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
        if isinstance(path := part.sources[index], Path) and os.path.realpath(path) in files
    }
