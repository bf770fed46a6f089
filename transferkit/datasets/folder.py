"""Folders and archives of photos: what lies in them, what its label is, and what is left out.

A class is a folder, or what ``label_from`` finds in a file name. Only names are read, neither
files nor their status, so that 100,000 photos take a second or two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from transferkit.checks import require
from transferkit.datasets.base import PART_NAMES, Contents, Part, listed
from transferkit.datasets.scan import EXTENSIONS, Scan, Tree, images_below
from transferkit.datasets.zipped import ZipTree
from transferkit.errors import DataError

# Tried in this order to suggest a label_from: cat.0.jpg, cat-photo.jpg, 0001_cat.jpg.
_COMMON_NAMES = (r"^(.+?)[._ -]*\d+\.", r"^([^\W\d_]+)[._ -]", r"[._ -]([^\W\d_]+)\.[^.]+$")

Labels = dict[str, list[str]]
"""The images of each class, by their ids: paths below the data set's root, with slashes."""


def read_folder(root: Path, label_from: str | None = None) -> Contents:
    """Read a folder with ``train/ val/ test/``, a folder of class folders, or a flat folder.

    A class is a folder directly below the part, or below the root where there are no parts;
    images that lie deeper in it belong to it too.

    Args:
        root: The folder, or a zip archive of such a folder.
        label_from: A regular expression that is searched in each file name; the label is its
            group ``label``, or else its first. Without it, labels are the names of folders.

    Returns:
        The parts, each in the order of its ids, with the classes that it has itself.

    Raises:
        ArgumentError: ``label_from`` is no regular expression, or has no group.
        ArchiveError: The archive is damaged, or holds what must not be unpacked.
        DataError: There are no images, or their labels cannot be told.
    """
    pattern = None if label_from is None else _compile(label_from)
    is_archive = root.suffix.lower() == ".zip" and not root.is_dir()
    if not is_archive and not root.is_dir():
        raise DataError(
            f"'{root}' is a file; load_dataset takes a folder of images. "
            "Of files it takes a .zip of such a folder, and a .csv or .tsv table of paths and labels."
        )
    scan: Tree = ZipTree(root) if is_archive else Scan(root)
    folders = _part_folders(scan, flat=pattern is not None)
    layout = "parts" if folders else "classes" if pattern is None else "flat"
    remarks: list[str] = []
    if pattern is None:
        labels = {name: _by_folder(scan, below) for name, below in (folders or {"train": ""}).items()}
        _refuse_empty_classes(root, labels, folders)
    else:
        labels = {}
        unmatched: list[str] = []
        for name, below in (folders or {"train": ""}).items():
            labels[name] = _by_name(images_below(scan, below), pattern, unmatched)
        _refuse_no_match(root, labels, unmatched, label_from)
        if unmatched:
            remarks.append(f"left out {listed(unmatched, 'image')} whose name label_from does not match")
    if layout == "classes":
        _refuse_data_sets(scan, labels["train"], remarks)
    parts = {}
    for name, found in labels.items():
        if any(found.values()):
            parts[name] = _part(scan, found, name)
        elif name == "train":
            raise DataError(f"'{root / folders.get(name, '')}' holds no images{_accepted()}.")
        else:
            remarks.append(f"took no {name!r} part, since '{folders[name]}' holds no labelled images")
    bare = [name for name, found in labels["train"].items() if not found]
    if bare:
        remarks.append(f"found no training images of {listed(bare, 'class', 'classes')}")
    if scan.left_out:
        remarks.insert(0, _left_out(scan.left_out))
    hint = ""
    if layout == "classes" and scan.listing(f"{min(labels['train'])}/")[1]:
        hint = f"; if '{root / min(labels['train'])}' is the folder that holds the classes, name that"
    return Contents(str(root), layout, parts, tuple(scan.left_out), tuple(remarks), hint)


def _left_out(entries: Mapping[str, str]) -> str:
    """Count what was left out, and name up to three examples for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in entries.items():
        names.setdefault(reason, []).append(name)
    groups = []
    for reason, found in names.items():
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        groups.append(f"{reason}: {', '.join(map(repr, found[:3]))}{more}")
    return f"left out {len(entries)} {'entry' if len(entries) == 1 else 'entries'} ({'; '.join(groups)})"


def _compile(label_from: str) -> re.Pattern[str]:
    form = r"a regular expression with a group that is the label, such as '^(\w+)\.'"
    require(isinstance(label_from, str), "load_dataset", "label_from", form, label_from)
    try:
        pattern = re.compile(label_from)
    except re.error as error:
        require(False, "load_dataset", "label_from", f"{form} ({error})", label_from)
    require(pattern.groups > 0, "load_dataset", "label_from", form, label_from)
    return pattern


def _part_folders(scan: Tree, *, flat: bool) -> dict[str, str]:
    """Return the folder of each part, or nothing where the folders are classes."""
    loose, folders = scan.listing("")
    parts: dict[str, str] = {}
    for folder in folders:
        name = PART_NAMES.get(folder.rstrip("/").lower())
        if name in parts:
            raise DataError(f"'{scan.root}' has two {name!r} folders, '{parts[name]}' and '{folder}'.")
        if name is not None:
            parts[name] = folder
    others = [folder for folder in folders if folder not in parts.values()]
    # A folder of trains beside one of cars is a class: what makes it a part is folders in it.
    if "train" in parts and (flat or scan.listing(parts["train"])[1]):
        scan.left_out |= dict.fromkeys(loose + others, "beside the parts")
        return {name: parts[name] for name in ("train", "val", "test") if name in parts}
    if flat:
        return {}
    if others and parts.keys() & {"val", "test"}:
        beside = parts.get("test", parts.get("val"))
        raise DataError(
            f"'{scan.root}' holds '{beside}' beside class folders such as '{others[0]}'; "
            "move the class folders into 'train/'."
        )
    if others:
        return {}
    if "train" in parts:
        _suggest_label_from(scan.root, scan.listing(parts["train"])[0])
    if parts:
        only = next(iter(parts.values()))
        raise DataError(
            f"'{scan.root}' holds '{only}' but no 'train/'; to use that folder as a data set of its own, "
            f"name '{scan.root / only}'."
        )
    _suggest_label_from(scan.root, loose)


def _by_folder(scan: Tree, below: str) -> Labels:
    """Return the images of each class folder; what lies beside the folders has no label."""
    loose, folders = scan.listing(below)
    labels = {folder[len(below) : -1]: images_below(scan, folder) for folder in folders}
    if loose and not any(labels.values()):
        _suggest_label_from(scan.root, loose)
    scan.left_out |= dict.fromkeys(loose, "in no class folder")
    return labels


def _by_name(ids: Sequence[str], pattern: re.Pattern[str], unmatched: list[str]) -> Labels:
    """Return the images of each label that ``pattern`` finds in their file names."""
    group = "label" if "label" in pattern.groupindex else 1
    labels: Labels = {}
    for name in ids:
        found = pattern.search(name.rpartition("/")[2])
        if found is not None and found[group]:
            labels.setdefault(found[group], []).append(name)
        else:
            unmatched.append(name)
    return labels


def _part(scan: Tree, labels: Labels, name: str) -> Part:
    """Build a part; sorting by id makes it independent of the file system's order."""
    classes = sorted(labels)
    samples = sorted((image, index) for index, label in enumerate(classes) for image in labels[label])
    ids = [image for image, _ in samples]
    sources = [scan.source(image) for image in ids]
    return Part(sources, [index for _, index in samples], classes, name=name, ids=ids)


def _refuse_empty_classes(root: Path, labels: Mapping[str, Labels], folders: Mapping[str, str]) -> None:
    """Refuse class folders without images, unless another part has images of that class."""
    filled = {label for found in labels.values() for label, images in found.items() if images}
    empty = [
        f"{folders.get(name, '')}{label}/"
        for name, found in labels.items()
        for label in found
        if label not in filled
    ]
    if empty and filled:
        raise DataError(
            f"'{root}' has {listed(empty, 'class folder')} without any image{_accepted()}; "
            "remove what is not a class."
        )


def _refuse_data_sets(scan: Tree, classes: Iterable[str], remarks: list[str]) -> None:
    """Refuse a folder of data sets, one level too high; remark on it where only some folders look so."""
    inner = {label: scan.listing(f"{label}/")[1] for label in classes}
    parts = {
        label: [folder for folder in folders if folder[len(label) + 1 : -1].lower() in PART_NAMES]
        for label, folders in inner.items()
    }
    nested = [label for label, found in parts.items() if found]
    if not nested:
        return
    first = nested[0]
    held = f"'{scan.root / first}' holds '{parts[first][0].rpartition(first + '/')[2]}'"
    if len(nested) == len(parts) > 1:
        raise DataError(
            f"'{scan.root}' is a folder of data sets, not of classes: each folder in it has parts of its own "
            f"({held}). Name one of them, such as '{scan.root / first}'."
        )
    if len(parts) > 1:
        remarks.append(
            f"took {listed(nested, 'folder')} for {'a class' if len(nested) == 1 else 'classes'}, though "
            f"{held}, as a data set does; if it is one, name '{scan.root / first}'"
        )


def _refuse_no_match(
    root: Path, labels: Mapping[str, Labels], unmatched: Sequence[str], label_from: str | None
) -> None:
    if not labels["train"] and unmatched:
        raise DataError(
            f"label_from={label_from!r} matches no file name in '{root}', such as '{min(unmatched)}'; "
            f"{_suggestion(unmatched)}."
        )


def _suggest_label_from(root: Path, images: Sequence[str]) -> NoReturn:
    """Say that labels have to come from file names, or that there are no images at all."""
    if not images:
        raise DataError(f"'{root}' holds no images{_accepted()}.")
    raise DataError(
        f"'{root}' holds {len(images)} images and no class folders, so their labels have to come from file "
        f"names such as '{min(images)}'; {_suggestion(images)}."
    )


def _suggestion(images: Sequence[str]) -> str:
    """Say which ``label_from`` would do for these images."""
    names = sorted(name.rpartition("/")[2] for name in images)[:1000]
    for expression in _COMMON_NAMES:
        unmatched: list[str] = []
        found = _by_name(names, re.compile(expression), unmatched)
        classes = sorted(found)
        repeated = 2 <= len(classes) <= max(2, len(names) // 2)
        if not unmatched and repeated and not any(label.isdigit() for label in classes):
            shown = listed(classes, "class", "classes")
            return f"give label_from, for example label_from=r'{expression}' for {shown}"
    return "give label_from, a regular expression with a group that is the label, such as r'^([a-z]+)_'"


def _accepted() -> str:
    return f" (files that end in {', '.join(sorted(EXTENSIONS))})"
