"""Tables of paths and labels, as CSV or TSV files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from transferkit.checks import require
from transferkit.datasets.base import PART_NAMES, Contents, Part, listed
from transferkit.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
"""What separates the columns of a file, by its suffix."""

# What columns are called where the caller does not say.
_NAMES = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img"),
    "label": ("label", "class", "target", "class_name", "category"),
    "split": ("split", "part", "subset"),
}

_SNIFFED = 2**16


class _Row(NamedTuple):
    line: int
    name: str
    file: str
    label: str
    part: str


def read_table(
    table: Path,
    *,
    path: str | None = None,
    label: str | None = None,
    split: str | None = None,
    delimiter: str | None = None,
) -> Contents:
    """Read a table whose first line names its columns, and whose others name one image each.

    Args:
        table: A file in UTF-8. Paths in it are absolute, or relative to its folder.
        path: The column of paths. By default the one that is called path, file, filename,
            file_name, filepath, image, image_path or img, in capital or small letters.
        label: The column of labels: label, class, target, class_name or category.
        split: The column of parts: split, part or subset. It may be missing, and holds train,
            val (or valid, validation) and test.
        delimiter: What separates columns; ``"auto"`` finds out. By default a comma in a ``.csv``
            file, and a tab in a ``.tsv`` or ``.tab`` file.

    Returns:
        The parts, in the order of the ids, which are the paths below the table's folder.

    Raises:
        ArgumentError: There is no column of that name.
        DataError: A file is missing or named twice, a label is empty or a part unknown, or the
            table cannot be read; the message names the line.
    """
    form = "a single character that neither quotes nor ends a line, or 'auto'"
    fits = delimiter in (None, "auto") or (isinstance(delimiter, str) and len(delimiter) == 1)
    fits = fits and delimiter not in ('"', "\r", "\n")
    require(fits, "load_dataset", "delimiter", form, delimiter)
    lines = _lines(table, delimiter)
    header = next(lines, (0, []))[1]
    given = {"path": path, "label": label, "split": split}
    columns = {role: _column(table, header, role, name) for role, name in given.items()}
    rows: list[_Row] = []
    wrong: list[str] = []
    seen: dict[str, _Row] = {}
    for line, values in lines:
        row, problem = _row(table, header, columns, line, values)
        earlier = None if row is None else seen.get(row.file)
        if row is not None and earlier is not None:
            problem = f"names {row.name!r} again after line {earlier.line}"
            if row.label != earlier.label:
                problem += f", as {row.label!r} instead of {earlier.label!r}"
            elif row.part != earlier.part:
                problem += f", in {row.part!r} instead of {earlier.part!r}"
        elif row is not None:
            seen[row.file] = row
            rows.append(row)
        if problem:
            wrong.append(f"line {line} {problem}")
    if wrong:
        more = f"; {len(wrong) - 1} more lines are wrong" if len(wrong) > 1 else ""
        raise DataError(f"'{table}' cannot be used: {wrong[0]}{more}.")
    if not any(row.part == "train" for row in rows):
        found = listed(sorted({row.part for row in rows}), "part")
        raise DataError(f"'{table}' names no training images{f', only {found}' if rows else ''}.")
    names = ("train", "val", "test")
    parts = {name: [row for row in rows if row.part == name] for name in names}
    return Contents(str(table), "table", {name: _part(found, name) for name, found in parts.items() if found})


def _lines(table: Path, delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, with the number of the line where each ends."""
    try:
        # "utf-8-sig" takes away the mark with which spreadsheets begin a file.
        with table.open(encoding="utf-8-sig", newline="") as file:
            if delimiter == "auto":
                delimiter = csv.Sniffer().sniff(file.read(_SNIFFED), ",;\t|").delimiter
                file.seek(0)
            reader = csv.reader(
                file, delimiter=delimiter or DELIMITERS.get(table.suffix.lower(), ","), strict=True
            )
            try:
                yield from ((reader.line_num, values) for values in reader if any(values))
            except csv.Error as error:
                raise DataError(f"Line {reader.line_num} of '{table}' cannot be read: {error}.") from error
    except (OSError, UnicodeError, csv.Error) as error:
        reason = "it is no text in UTF-8" if isinstance(error, UnicodeError) else error
        raise DataError(f"The table '{table}' cannot be read: {reason}.") from error


def _column(table: Path, header: Sequence[str], role: str, given: str | None) -> int | None:
    """Return the position of a column, or ``None`` where there is no column of parts."""
    names = [name.strip() for name in header]
    if given is not None:
        require(
            names.count(given) == 1, "load_dataset", role, f"one of the columns {names} of '{table}'", given
        )
        return names.index(given)
    found = [position for position, name in enumerate(names) if name.lower() in _NAMES[role]]
    if len(found) == 1:
        return found[0]
    if not found and role == "split":
        return None
    _refuse_header(table, names, role, [names[position] for position in found])


def _refuse_header(table: Path, names: Sequence[str], role: str, found: Sequence[str]) -> NoReturn:
    other = [mark for mark in (";", "\t", "|", ",") if len(names) == 1 and mark in names[0]]
    if other:
        raise DataError(
            f"The first line of '{table}' is a single column, {names[0]!r:.200}; if its columns are "
            f"separated by {other[0]!r}, give delimiter={other[0]!r}."
        )
    state = f"has several: {list(found)}" if found else f"has none among its columns, {list(names)}"
    raise DataError(
        f"'{table}' needs one column of {role}s, called {', '.join(_NAMES[role])}, and {state}; "
        f"name it with {role}=..., or from the command line give it one of these names."
    )


def _row(
    table: Path, header: Sequence[str], columns: dict[str, int | None], line: int, values: Sequence[str]
) -> tuple[_Row | None, str]:
    """Return what a line says, or what is wrong with it."""
    if len(values) != len(header):
        return None, f"has {len(values)} columns, and the first line has {len(header)}"
    texts = {role: None if at is None else values[at].strip() for role, at in columns.items()}
    path, label, split = texts["path"], texts["label"], texts["split"]
    if not path:
        return None, "has no path"
    if not label:
        return None, f"has no label for {path!r}"
    part = "train" if split is None else PART_NAMES.get(split.lower(), "")
    if not part:
        return None, f"puts {path!r} into the part {split!r}, and parts are {', '.join(PART_NAMES)}"
    file = os.path.normpath(table.parent / path)
    if not os.path.isfile(file):
        return None, f"names {path!r}, but there is no file '{file}'"
    outside = os.path.isabs(path)
    name = file if outside else os.path.normpath(path)
    return _Row(line, Path(name).as_posix(), file, label, part), ""


def _part(rows: Sequence[_Row], name: str) -> Part:
    """Build a part; sorting by id makes it independent of the order of the lines."""
    ordered = sorted(rows, key=lambda row: row.name)
    classes = sorted({row.label for row in rows})
    positions = {label: index for index, label in enumerate(classes)}
    targets = [positions[row.label] for row in ordered]
    ids = [row.name for row in ordered]
    return Part([Path(row.file) for row in ordered], targets, classes, name=name, ids=ids)
