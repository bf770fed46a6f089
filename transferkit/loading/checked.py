"""Which images of a part can be decoded, found out before anything depends on how many there are."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from transferkit.checks import check_choice, check_int, warn_caller
from transferkit.datasets.base import Part, listed
from transferkit.errors import ArgumentError, DataError, ImageDecodeError
from transferkit.loading.decode import decode, reason_of
from transferkit.runtime import available_processors

ON_ERROR = ("raise", "skip")

# What the machine lacks, which says nothing about the image.
_MACHINES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True)
class Skipped:
    """An image that was left out, because it cannot be decoded.

    Attributes:
        id: Its name in its part.
        path: Its file; empty if it has none.
        reason: Why it cannot be decoded, in a few words.
    """

    id: str
    path: str
    reason: str


def check_on_error(owner: str, on_error: str, part: Part | None) -> None:
    """Raise unless ``on_error`` is a choice, and one that the data can have.

    Args:
        owner: The function that was given it, for messages.
        on_error: ``"raise"`` or ``"skip"``.
        part: The images; ``None`` stands for data that is ready for the model.

    Raises:
        ArgumentError: It is none of the two, or ``"skip"`` for data that opens its images itself.
    """
    check_choice(owner, "on_error", on_error, ON_ERROR)
    if on_error == "skip" and (part is None or not part.fixed):
        raise ArgumentError(
            f"The 'on_error' parameter of {owner} must be 'raise' for a data set or loader of your own, "
            "because it opens its images itself. Got 'skip' instead."
        )


def usable(part: Part, *, on_error: str, workers: int | None = None) -> tuple[Part, tuple[Skipped, ...]]:
    """Return a part without the images that cannot be decoded, and these.

    Order, folds, class counts and targets then all follow from what is left. No image takes the
    place of another, and no file is changed. One warning counts what is left out.

    Args:
        part: Images that are the same each time.
        on_error: ``"raise"`` returns the part as it is, and decodes nothing; ``"skip"`` decodes every
            image once, and keeps none in memory.
        workers: Number of decoding threads; ``None`` stands for one for each processor.

    Raises:
        DataError: No image of the part, or of one of its classes, is left.
        ImageDecodeError: The machine has too little memory, or too many files are open, to tell.

    >>> images = [np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 4, 3), dtype=np.uint8)]
    >>> part, skipped = usable(Part(images, [0, 1], ["ant", "bee"]), on_error="skip")
    >>> len(part), skipped
    (2, ())
    """
    check_choice("usable", "on_error", on_error, ON_ERROR)
    if on_error == "raise":
        return part, ()
    count = available_processors() if workers is None else check_int("usable", "workers", workers)
    if count > 1:
        with ThreadPoolExecutor(count, thread_name_prefix="check") as pool:
            found = list(pool.map(lambda index: _fault(part, index), range(len(part))))
    else:
        found = [_fault(part, index) for index in range(len(part))]
    skipped = tuple(each for each in found if each is not None)
    if not skipped:
        return part, ()
    kept = part.take([index for index, each in enumerate(found) if each is None])
    _refuse_losses(part, kept, skipped)
    warn_caller(
        f"Left out {listed([each.id for each in skipped], 'image')} of the {part.name!r} part that cannot "
        f"be decoded (the first: {skipped[0].reason})."
    )
    return kept, skipped


def is_the_machines(error: ImageDecodeError) -> bool:
    """Whether the machine lacks what it takes to tell if an image can be decoded."""
    cause = error.__cause__
    return isinstance(cause, MemoryError) or getattr(cause, "errno", None) in _MACHINES


def skipped_csv(skipped: Sequence[Skipped]) -> str:
    """Return what was left out as a CSV table with the columns ``path,reason``.

    An image without a path is called by its name.

    >>> print(skipped_csv([Skipped("ants/1.jpg", "photos/ants/1.jpg", "it is empty")]), end="")
    path,reason
    photos/ants/1.jpg,it is empty
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason"])
    writer.writerows([each.path or each.id, each.reason] for each in skipped)
    return text.getvalue()


def _fault(part: Part, index: int) -> Skipped | None:
    """Say what keeps an image from being decoded, if anything does."""
    name, where = part.ids[index], part.name_of(index)
    try:
        source = part.source(index)
        if isinstance(source, str | os.PathLike):
            where = os.fspath(source)
        # A JPEG is read to its end at an eighth of its size, which is faster and finds the same faults.
        decode(source, name=where, least=1)
    except ImageDecodeError as error:
        if is_the_machines(error):
            raise
        return Skipped(name, where if where != name else "", reason_of(error.__cause__ or error))
    return None


def _refuse_losses(part: Part, kept: Part, skipped: Sequence[Skipped]) -> None:
    """Raise where a part, or one of its classes, had images and has none any more."""
    example = f"'{skipped[0].path or skipped[0].id}': {skipped[0].reason}"
    if not len(kept):
        raise DataError(f"No image of the {part.name!r} part can be decoded, such as {example}.")
    count = len(part.classes)
    before, after = (np.bincount(each.targets, minlength=count) for each in (part, kept))
    lost = [part.classes[index] for index in np.flatnonzero((before > 0) & (after == 0))]
    if lost:
        raise DataError(
            f"No image of {listed(lost, 'class', 'classes')} in the {part.name!r} part can be decoded; "
            f"mend the images or remove the class. Left out were {len(skipped)}, such as {example}."
        )
