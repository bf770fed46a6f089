"""Every exception that transferkit raises on purpose, in one tree.

Each class carries the exit code with which the command line ends when it meets it.
"""

from __future__ import annotations

from typing import ClassVar


class TransferkitError(Exception):
    """The root of the tree. Its text is one sentence that says what would be right."""

    exit_code: ClassVar[int] = 1


class ArgumentError(TransferkitError, ValueError, TypeError):
    """An argument has a value or a type that the function cannot take."""

    exit_code: ClassVar[int] = 2


class UnknownNameError(ArgumentError, KeyError):
    """A registry was asked for a name that it does not hold."""

    # KeyError shows the repr of its argument; a sentence should be shown as it is.
    __str__ = Exception.__str__


class SelectorError(ArgumentError):
    """A selector matches nothing, or a head cannot be told from several candidates."""


class RunDirectoryError(ArgumentError):
    """A run directory is already in use, or is not one."""


class ResumeMismatchError(RunDirectoryError):
    """A run cannot go on, because it began with other settings or other data."""


class DataError(TransferkitError):
    """A data set cannot be used as it is."""

    exit_code: ClassVar[int] = 3


class ImageDecodeError(DataError):
    """An image cannot be decoded."""


class ClassMismatchError(DataError):
    """The classes of a model and of a data set differ."""


class DownloadError(DataError):
    """A file that has to come from the network could not be fetched."""


class ArchiveError(DataError):
    """An archive holds what must not be unpacked, or is damaged."""


class LoaderError(DataError):
    """A ``DataLoader`` of the user's own gave up, or gave nothing for too long."""


class CheckpointError(TransferkitError):
    """A file of weights or a model directory cannot be used."""

    exit_code: ClassVar[int] = 4


class CheckpointCorruptError(CheckpointError):
    """A file is damaged, or is not of the format that its name promises."""


class UnsafeCheckpointError(CheckpointError):
    """A file would have to run code to be loaded; nothing of it was run."""


class WeightsMismatchError(CheckpointError):
    """Weights and the model that should take them have different keys or shapes."""


class NonFiniteError(TransferkitError, ArithmeticError):
    """Training met a loss that is NaN or infinite."""

    exit_code: ClassVar[int] = 5


class OutputError(TransferkitError, OSError):
    """A file could not be written or read."""

    exit_code: ClassVar[int] = 6


class CheckpointWriteError(OutputError):
    """A checkpoint could not be written; those before it are as they were."""


class DeviceMemoryError(TransferkitError, RuntimeError):
    """A batch does not fit in the memory of the device."""


class MissingExtraError(TransferkitError, ImportError):
    """An optional package is not installed."""

    exit_code: ClassVar[int] = 2
