"""Files of ``torch.save``, read without running anything that is in them."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from transferkit.errors import CheckpointCorruptError, UnsafeCheckpointError
from transferkit.loading.pickle_scan import WastefulPickle, foreign_names
from transferkit.loading.wording import first_line, printable

_ZIP = b"PK\x03\x04"
# What zipfile raises for archives that are damaged, cut short, encrypted or compressed in an unknown way.
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError)
# Parts of torch's messages where it met something that loading weights alone does not need.
_REFUSALS = ("allowed global", "is blocked", "allowlist", "call reduce", "must be imported", ".tar format")
_PICKLES = 5  # that the older format begins with
_SHOWN = 8


def read_torch_file(path: Path) -> Any:
    """Return what a file of ``torch.save`` holds: tensors on the CPU, in plain containers.

    Raises:
        CheckpointCorruptError: It is damaged, or would take memory out of all proportion.
        UnsafeCheckpointError: It would have to run code; nothing of it was run.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    if start == _ZIP:
        _check_archive(path)
    _check_pickles(path, zipped=start == _ZIP)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about old formats, which are read all the same
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        # A file of nothing but zeros, as a crash may leave it, passes for an archive of tar.
        if any(refusal in str(error) for refusal in _REFUSALS) and start[:1] != b"\0":
            raise _unsafe(path, "run code") from error
        raise CheckpointCorruptError(
            f"{path} is damaged, or was not written by torch.save: {first_line(error)}."
        ) from error


def _unsafe(path: Path, what: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"{path} was not loaded, because it would have to {what}; "
        "save the model's state_dict() and load that."
    )


def _check_pickles(path: Path, *, zipped: bool) -> None:
    """Refuse pickles that are no weights before torch sees them."""
    try:
        with path.open("rb") as file:
            if zipped:
                with zipfile.ZipFile(file) as archive:
                    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                    foreign = [each for name in names for each in foreign_names(archive.open(name))]
            else:
                foreign = foreign_names(file, pickles=_PICKLES)
    except WastefulPickle as error:
        raise CheckpointCorruptError(f"{path} was not loaded: {error}.") from error
    if foreign:
        raise _unsafe(path, f"run {', '.join(printable(name) for name in foreign[:_SHOWN])}")


def _check_archive(path: Path) -> None:
    """Refuse what torch.load would not notice: flipped bits, and archives that unpack to more."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise _unsafe(path, "run a TorchScript program")
            plain = all(_is_plain(entry) for entry in entries)
            # torch and Python need not agree on which of two entries of one name is meant.
            plain = plain and len({entry.filename.casefold() for entry in entries}) == len(entries)
            if not plain or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CheckpointCorruptError(
                    f"{path} is damaged, or was not written by torch.save: its parts and its size disagree."
                )
            wrong = archive.testzip()
    except _ZIP_ERRORS as error:
        raise CheckpointCorruptError(f"{path} is damaged: {error}.") from error
    if wrong is not None:
        raise CheckpointCorruptError(f"{path} is damaged: the checksum of {wrong!r} in it is wrong.")


def _is_plain(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry of an archive is as torch.save writes it.

    For others, such as one that is marked as a folder, torch.load returns numbers that nobody wrote.
    """
    marked_as_folder = entry.external_attr & 0x10
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
    return stored and not marked_as_folder
