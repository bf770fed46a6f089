"""Score the model of a run on the images that it was not trained on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.commands.common import Options, run_options, show, skip_hinted, table_arguments
from transferkit.errors import CheckpointError, DataError, ImageDecodeError
from transferkit.files import write_text

if TYPE_CHECKING:
    from transferkit.datasets.base import Part


def evaluate(options: Options) -> None:
    """Score the model of a run on a data set."""
    from transferkit.backbones.spec import find_spec
    from transferkit.evaluation.scoring import evaluate as score
    from transferkit.heads import class_names
    from transferkit.run_outputs import check_writable
    from transferkit.saved_model import load_model

    if options.out:
        check_writable(Path(options.out))
    config = read_config(options.run)
    model = load_model(options.run)
    how = run_options(options, model)
    label_from = _label_from(options, config, class_names(model))
    try:
        part, kept = _part_to_evaluate(options, config, label_from)
        with skip_hinted(options):
            report = score(model, part, on_error=options.on_error, **how)
    except DataError as error:
        if options.label_from is not None or label_from is None or isinstance(error, ImageDecodeError):
            raise
        hint = f"The label_from {label_from!r} of the run was used; --label-from gives another, or '' none."
        raise type(error)(f"{error} {hint}") from error
    if kept and (spec := find_spec(model)) is not None and spec.selected_on is not None:
        report = dataclasses.replace(report, selected=True)
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
    if not isinstance(record.get("kwargs", {}), dict):
        return False
    lists = [*drawn.values(), *(part.get("ids", []) for part in parts.values())]
    return all(isinstance(record.get(key), str | None) for key in ("source", "label_from")) and all(
        isinstance(ids, list) and all(isinstance(name, str) for name in ids) for ids in lists
    )


def _label_from(options: Options, config: Mapping[str, Any], classes: Sequence[str] | None) -> str | None:
    """Return where labels come from: what the user says, or the folders if they are classes, or the run's."""
    from transferkit.datasets.folder import read_folder

    if options.label_from is not None:
        return options.label_from or None
    record, path = config["data"], Path(options.data).expanduser()
    given: str | None = record.get("label_from")
    # A table or a data set by name says itself what its labels are.
    if given is None or not (path.is_dir() or (path.suffix.lower() == ".zip" and path.is_file())):
        return None
    if os.path.realpath(path) == os.path.realpath(record.get("source") or ""):
        return given
    try:
        parts = read_folder(path).parts.values()
    except DataError:
        return given
    return None if {label for part in parts for label in part.classes} <= set(classes or ()) else given


def _table_of(options: Options, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``load_dataset`` is told of a table; of that of the run, it is told what the run was."""
    from transferkit.datasets.table import DELIMITERS

    path = Path(options.data).expanduser()
    is_table = path.suffix.lower() in DELIMITERS and path.is_file()
    same = is_table and os.path.realpath(path) == os.path.realpath(record.get("source") or "")
    return {**(record.get("kwargs", {}) if same else {}), **table_arguments(options)}


def _part_to_evaluate(
    options: Options, config: Mapping[str, Any], label_from: str | None
) -> tuple[Part, bool]:
    """Choose the images that the run did not train on, and say whether it kept them for validation.

    A data set's own test part comes first, then its own validation part. A folder without
    parts that the run trained on gives what the run kept for validation, or else the rest;
    another gives all.
    """
    from transferkit.datasets.load import load_dataset

    record = config["data"]
    splits = load_dataset(options.data, val=0, label_from=label_from, **_table_of(options, record))
    own = splits.val if splits.test is None else splits.test
    if own is not None:
        return own, _was_kept(own, config)
    part = splits.train
    trained, kept = (_recorded_ids(config, name) for name in ("train", "val"))
    seen = _places(part, trained, record.get("source"))
    held = _places(part, kept, record.get("source"))
    if not seen and not held:
        shared = _shared_folders([*trained, *kept])
        trained, kept = ({_below(name, shared) for name in ids} for ids in (trained, kept))
        shared = _shared_folders(part.ids)
        names = [_below(name, shared) for name in part.ids]
        # Names such as cat/0.jpg say little: a copy of the data has most of them, other data a few.
        seen = {index for index, name in enumerate(names) if name in trained}
        if 0 < 2 * len(seen) < len(trained):
            warnings.warn(
                f"{len(seen)} of {len(part)} images in {options.data} have the file name of a training image "
                "of the run; they are taken for others and evaluated too.",
                UserWarning,
                stacklevel=2,
            )
            seen = set()
        held = {index for index, name in enumerate(names) if seen and name in kept}
    if held:
        return part.take(sorted(held), name="val"), True
    if not seen:
        return part.take(range(len(part)), name="all"), False
    rest = sorted(set(range(len(part))) - seen)
    if not rest:
        raise DataError(f"The run was trained on every image in {options.data}; evaluate it on others.")
    return part.take(rest, name="rest"), False


def _was_kept(part: Part, config: Mapping[str, Any]) -> bool:
    """Whether a part of the data set's own is what the run kept for validation, wherever it lies now."""
    kept = _recorded_ids(config, "val")
    if 2 * len(_places(part, kept, config["data"].get("source"))) >= len(part):
        return True
    # The last folder that all have is that of the part; what is above it may have another name now.
    tails = {_below(name, max(0, _shared_folders(kept) - 1)) for name in kept}
    found = (_ends_with_one(tails, part, index) for index in range(len(part)))
    return 2 * len(part) >= len(kept) and all(found)


def _ends_with_one(tails: set[str], part: Part, index: int) -> bool:
    """Whether the place of an image, on the disk or in an archive, ends with one of some names."""
    source = part.sources[index]
    folders = (source.as_posix() if isinstance(source, Path) else part.ids[index]).split("/")
    return any("/".join(folders[-depth:]) in tails for depth in {tail.count("/") + 1 for tail in tails})


def _shared_folders(names: Iterable[str]) -> int:
    """Return how many folders all names begin with: a table counts from its place, an archive from inside."""
    levels = zip(*(name.split("/")[:-1] for name in names), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, levels))


def _below(name: str, folders: int) -> str:
    return "/".join(name.split("/")[folders:])


def _recorded_ids(config: Mapping[str, Any], name: str) -> set[str]:
    """Return the ids of the images that a run trained on or kept for validation."""
    ids = config.get("parts", {}).get(name, {}).get("ids")
    return set((config["data"].get("ids") or {}).get(name) or () if ids is None else ids)


def _places(part: Part, ids: set[str], source: str | None) -> set[int]:
    """Return where a part has the very images that ``ids`` name in ``source``, a folder as a rule."""
    if source is None or source.lower().endswith(".zip"):
        return set()
    folder = os.path.dirname(source) if os.path.isfile(source) else source
    files = {os.path.realpath(os.path.join(folder, name)) for name in ids}
    return {
        index
        for index in range(len(part))
        if isinstance(path := part.sources[index], Path) and os.path.realpath(path) in files
    }
