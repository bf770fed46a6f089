"""``load_dataset``: from a folder, a name or arrays to the parts of a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transferkit.checks import check_between, check_int, require, warn_caller
from transferkit.datasets.base import Contents, Part, Splits, listed
from transferkit.datasets.read import Data, read_data
from transferkit.datasets.splitting import draw_shots, stratified_draw, thin
from transferkit.errors import ClassMismatchError, DataError

# A record that named a hundred thousand stray files would help nobody.
_NAMES_KEPT = 100


def load_dataset(
    name_or_path: Data,
    *,
    val: float | None = 0.2,
    label_from: str | None = None,
    subset: float | None = None,
    shots: int | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Splits:
    r"""Load a data set and draw the parts that it lacks.

    A folder holds ``train/``, ``val/`` (or ``valid/``, ``validation/``) and ``test/`` with class
    folders in them, or class folders, or, with ``label_from``, images alone. Images may lie
    deeper in a class folder: the folder directly below the part is the class. A ``.zip`` file
    holds the same, and is read where it is. A ``.csv`` or ``.tsv`` file has columns of paths and
    labels and maybe of parts. What is hidden or no image file (a ``.gif`` is none) is left out,
    and one warning counts and names it. The draws depend on the seed and on the images' names
    below the folder, not on where it lies.

    Args:
        name_or_path: A folder, a zip file or a table; the name of a registered data set (a path
            of that name wins); a pair ``(images, targets)`` of arrays or tensors; a Hugging Face
            ``Dataset``; a map-style data set of (image, class index); or a dict of such pairs or
            data sets for ``"train"``, ``"val"`` and ``"test"``.
        val: Share of the training images that becomes the validation part where there is none.
            Classes are drawn in proportion; one of at least two images gives at least one, and
            keeps at least one. ``0`` or ``None``: no validation part.
        label_from: A regular expression searched in each file name; the label is its group
            ``label``, or else its first: ``r"^(\w+)\."`` finds ``cat`` in ``cat.0.jpg``.
        subset: Share of every part that is kept, classes in proportion.
        shots: Number of training images that are kept of each class, once the validation part
            has been drawn.
        seed: Same seed, same images: same draws.
        kwargs: For a registered data set, its own arguments, such as ``root``; for arrays,
            ``classes``; for a table, ``delimiter`` and the columns ``path``, ``label`` and
            ``split``; for a Hugging Face data set, the columns ``image`` and ``label``.

    Returns:
        The parts. Their record holds what was asked for and which images were drawn, and
        ``restore_splits`` makes the same parts from it.

    Raises:
        ArgumentError: An argument has a value that makes no sense.
        UnknownNameError: There is neither a folder nor a data set of that name.
        DownloadError: A registered data set is not there and cannot be fetched.
        ArchiveError: A zip file is damaged, or holds what must not be unpacked.
        ClassMismatchError: The validation or test part has a class that the training part lacks.
        DataError: There are no images, no labels, fewer than two classes, a class folder is
            empty, or a line of a table is wrong.

    >>> splits = load_dataset("digits", val=0.25, shots=10)
    >>> len(splits.train), len(splits.val), len(splits.test)
    (100, 314, 539)
    """
    val_share = 0.0 if val is None else check_between("load_dataset", "val", val, 0, 1)
    kept = 1.0
    if subset is not None:
        is_share = isinstance(subset, int | float) and not isinstance(subset, bool) and 0 < subset <= 1
        require(is_share, "load_dataset", "subset", "a float above 0 and at most 1, or None", subset)
        kept = float(subset)
    if shots is not None:
        check_int("load_dataset", "shots", shots, 1)
    check_int("load_dataset", "seed", seed)
    contents = read_data(name_or_path, label_from, kwargs)
    parts = _aligned(contents.parts, contents.parts["train"].classes, contents.source)
    _check_classes(parts["train"], contents)

    remarks = list(contents.remarks)
    drawn: set[str] = set()
    val_drawn = "val" not in parts and val_share > 0
    if val_drawn:
        parts |= _draw_val(parts["train"], val_share, seed, remarks)
        drawn |= {"train", "val"}
    if kept < 1:
        for name, part in parts.items():
            parts[name] = part.take(thin(part.targets, kept, seed, "subset", name))
        drawn |= parts.keys()
    if shots is not None:
        parts["train"] = _draw_shots(parts["train"], shots, seed, remarks)
        drawn.add("train")
    if remarks:
        warn_caller(f"{contents.source!r}: {'; '.join(remarks)}.")
    record = {
        "source": contents.source,
        "layout": contents.layout,
        "label_from": label_from,
        "kwargs": {key: _plain(value) for key, value in kwargs.items()},
        "val": val,
        "val_drawn": val_drawn,
        "subset": subset,
        "shots": shots,
        "seed": seed,
        "classes": list(parts["train"].classes),
        "counts": {name: len(part) for name, part in parts.items()},
        "fingerprints": {name: part.fingerprint() for name, part in parts.items()},
        "ids": {name: list(part.ids) for name, part in parts.items() if name in drawn},
        "left_out": {"count": len(contents.left_out), "names": list(contents.left_out[:_NAMES_KEPT])},
        "remarks": remarks,
    }
    return Splits(parts["train"], parts.get("val"), parts.get("test"), record)


def restore_splits(name_or_path: Data, record: Mapping[str, Any], **kwargs: Any) -> Splits:
    """Make the parts that ``load_dataset`` once made, image by image, from their record.

    Args:
        name_or_path: The same data set, which may have moved.
        record: The record of the splits.
        kwargs: Arguments of the data set that differ from the recorded ones, such as ``root``.

    Raises:
        DataError: Images of the record are missing or have other labels, or a part that was
            taken whole has changed.
        ClassMismatchError: The data set has classes that the record lacks.

    >>> once = load_dataset("digits", shots=5, seed=3)
    >>> restore_splits("digits", once.record).train.ids == once.train.ids
    True
    """
    contents = read_data(name_or_path, record["label_from"], {**record["kwargs"], **kwargs})
    found = _aligned(contents.parts, record["classes"], contents.source)
    parts = {}
    for name, fingerprint in record["fingerprints"].items():
        pool = found.get("train" if name == "val" and record["val_drawn"] else name)
        if pool is None:
            raise DataError(f"{contents.source!r} has no {name!r} part, though one is recorded.")
        ids = record["ids"].get(name)
        part = pool if ids is None else _select(pool, ids, name, contents.source)
        if part.fingerprint() != fingerprint:
            raise DataError(
                f"The {name!r} part of {contents.source!r} has changed since it was recorded: "
                f"it holds {len(part)} images (recorded: {record['counts'][name]}), or their labels differ."
            )
        parts[name] = part
    restored = {**record, "source": contents.source}
    return Splits(parts["train"], parts.get("val"), parts.get("test"), restored)


def _aligned(parts: Mapping[str, Part], classes: Sequence[str], source: str) -> dict[str, Part]:
    """Return the parts with targets that count through ``classes``, matched by name."""
    try:
        return {name: part.with_classes(classes, name=name) for name, part in parts.items()}
    except ClassMismatchError as error:
        raise ClassMismatchError(f"{source!r}: {error}") from None


def _check_classes(train: Part, contents: Contents) -> None:
    if not len(train):
        raise DataError(f"{contents.source!r} holds no training images.")
    if len(train.classes) < 2:
        raise DataError(
            f"{contents.source!r} has only one class, {train.classes[0]!r}, and a classifier needs at least "
            f"two: use a folder with a folder for each class{contents.hint}."
        )


def _draw_val(train: Part, share: float, seed: int, remarks: list[str]) -> dict[str, Part]:
    """Split a training part in two."""
    drawn = stratified_draw(train.targets, share, seed, "val")
    kept = np.setdiff1d(np.arange(len(train)), drawn)
    absent = np.setdiff1d(train.targets, train.targets[drawn])
    if absent.size:
        names = [train.classes[index] for index in absent]
        remarks.append(
            f"kept the only image of {listed(names, 'class', 'classes')} for training, not for validation"
        )
    parts = {"train": train.take(kept), "val": train.take(drawn, name="val")}
    return parts if drawn.size else {"train": train}


def _draw_shots(train: Part, shots: int, seed: int, remarks: list[str]) -> Part:
    counts = np.bincount(train.targets, minlength=len(train.classes))
    short = [f"{train.classes[index]}: {counts[index]}" for index in np.flatnonzero(counts < shots)]
    if short:
        remarks.append(f"kept all images of {listed(short, 'class', 'classes')} with fewer than {shots}")
    return train.take(draw_shots(train.targets, train.classes, shots, seed))


def _select(pool: Part, ids: Sequence[str], name: str, source: str) -> Part:
    positions = {sample: index for index, sample in enumerate(pool.ids)}
    missing = [sample for sample in ids if sample not in positions]
    if missing:
        raise DataError(f"The {name!r} part of {source!r} lacks {listed(missing, 'recorded image')}.")
    return pool.take([positions[sample] for sample in ids], name=name)


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: itself, or its text."""
    try:
        json.dumps(value)
    except TypeError:
        return str(value)
    return value
