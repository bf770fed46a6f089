"""Batches of a loader of the user's own: checked before a model sees them, and its failures told."""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from collections.abc import Generator, Iterable, Iterator, Sized
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from transferkit.datasets.base import Part
from transferkit.errors import DataError, LoaderError
from transferkit.loading.batches import Batch

# Seconds without a batch after which a worker counts as hung, where the loader has no timeout of its own.
HANGS_AFTER = 30.0


class LoaderBatches:
    """Batches of a loader of the user's own: what it yields is what the model gets.

    Args:
        loader: Yields pairs of inputs ``[N, ...]`` and class indices ``[N]``; torch's
            ``DataLoader`` is one.
        device: Where the batches go.
        num_classes: Number of the model's outputs, which class indices must be below; ``None`` if
            that is unknown.

    Raises:
        DataError: It would yield images that nobody has prepared.
    """

    def __init__(
        self, loader: Iterable[Any], *, device: str | torch.device, num_classes: int | None = None
    ) -> None:
        whole = isinstance(loader, DataLoader) and loader.collate_fn is default_collate
        if whole and isinstance(getattr(loader, "dataset", None), Part):
            raise DataError(
                "A DataLoader over a part would have to make batches of PIL images, which torch cannot; "
                "give the part itself, whose images are decoded and prepared in batches."
            )
        self.targets: npt.NDArray[np.int64] | None = None
        self.replayed = True
        self.loader = loader
        self._device = torch.device(device)
        # torch's own loader writes to no batch that it has given; another may, while it is being copied.
        self._non_blocking = self._device.type == "cuda" and isinstance(loader, DataLoader)
        self._num_classes = num_classes

    def __len__(self) -> int:
        loader: Any = self.loader  # which may be without a length
        try:
            return len(loader)
        except TypeError:
            raise DataError(
                "A loader must have a length, from which schedules follow. "
                f"Got a {type(self.loader).__name__} without one instead."
            ) from None

    def samples(self) -> int | None:
        """Return the number of samples in an epoch, where the loader tells."""
        dataset = getattr(self.loader, "dataset", None)
        drops = bool(getattr(self.loader, "drop_last", False))
        return len(dataset) if isinstance(dataset, Sized) and not drops else None

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch; their order is the loader's own affair.

        The batches before ``start`` are asked for too, and dropped.

        Raises:
            DataError: A batch is none of float inputs and class indices.
            LoaderError: A worker was killed, raised an exception or gave nothing for too long.
        """
        seen = 0
        with contextlib.closing(_loaded(self.loader)) as batches:
            for place, batch in enumerate(batches):
                inputs, labels = _checked(batch, seen, self._num_classes)
                indices = np.arange(seen, seen + len(labels))
                seen += len(labels)
                if place >= start:
                    inputs = inputs.to(self._device, non_blocking=self._non_blocking)
                    yield Batch(inputs, labels.to(self._device, non_blocking=self._non_blocking), indices)


def _checked(batch: Any, seen: int, num_classes: int | None) -> tuple[Tensor, Tensor]:
    """Return the inputs and the class indices, int64, of what a loader has yielded."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise DataError(
            "A DataLoader must yield pairs of float images and class indices. "
            f"Got {type(batch).__name__} instead."
        )
    inputs, targets = batch[0], batch[1]
    if not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
        shown = getattr(inputs, "dtype", type(inputs).__name__)
        raise DataError(
            "A DataLoader must yield float images that are ready for the model, because "
            f"transferkit does not preprocess them again. Got {shown} instead."
        )
    try:
        labels = torch.as_tensor(targets)
        shown = f"{labels.dtype} of shape {list(labels.shape)}"
        valid = not labels.is_floating_point() and labels.ndim == 1 and labels.shape == inputs.shape[:1]
    except (TypeError, ValueError, RuntimeError):  # texts, None, ragged lists
        shown, valid = type(targets).__name__, False
    if not valid:
        raise DataError(
            f"A DataLoader must yield class indices, whole numbers of shape {list(inputs.shape[:1])}, beside "
            f"images of shape {list(inputs.shape)}. Got {shown} instead."
        )
    labels = labels.to(torch.int64)
    if labels.device.type == "cpu":  # an accelerator would have to be waited for
        _check_range(labels, seen, num_classes)
    return inputs, labels


def _check_range(labels: Tensor, seen: int, num_classes: int | None) -> None:
    """Refuse class indices that are none of the model's outputs."""
    wrong = labels < 0 if num_classes is None else (labels < 0) | (labels >= num_classes)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        below = "" if num_classes is None else f" and below {num_classes}, the number of the model's outputs"
        raise DataError(
            f"A DataLoader must yield class indices of at least 0{below}. "
            f"Got {int(labels[first])} for sample {seen + first} instead."
        )


def _loaded(loader: Iterable[Any]) -> Generator[Any, None, None]:
    """Yield what a loader gives; none of its workers outlives a failure."""
    if not isinstance(loader, DataLoader) or loader.num_workers == 0:
        yield from loader
        return
    place, batches = 0, None
    workers: set[BaseProcess] = set()
    others = set(multiprocessing.active_children())
    own = loader.timeout
    try:
        # Workers that persist would draw one seed less in each later epoch than those of a resumed run.
        loader._iterator = None
        # Read once, when the workers start; torch itself then notices that they give nothing.
        loader.timeout = own or HANGS_AFTER
        try:
            batches = iter(loader)
        finally:
            loader.timeout = own
            workers = set(multiprocessing.active_children()) - others
        for batch in batches:
            yield batch
            place += 1
    except Exception as error:
        died = _tells_of_death(error) or any(worker.exitcode for worker in workers)
        _end_workers(loader, batches, workers)
        raise LoaderError(
            _death(error) if died else _failure(error, place + 1, own or HANGS_AFTER)
        ) from error


def _end_workers(loader: DataLoader[Any], batches: Any, workers: set[BaseProcess]) -> None:
    """End the workers of a loader that has failed, those that persist and those that hang too."""
    # torch has no public way to do this; without it, the traceback keeps the workers alive.
    end = getattr(batches, "_shutdown_workers", None)
    if end is not None:
        end()
    # The next epoch would ask the workers that have just ended.
    loader._iterator = None
    for worker in workers:
        if worker.is_alive():  # it was stopped, or does not listen
            worker.kill()
            worker.join()


def _failure(error: Exception, batch: int, limit: float) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "timed out after" in lines[0]:
        return (
            f"The DataLoader gave nothing for {limit:g} s, when batch {batch} was due: a worker hangs, or "
            "is slow, in which case DataLoader(timeout=...) gives it more seconds."
        )
    # Of what a worker raised, torch gives the whole traceback as text.
    return f"A worker of the DataLoader failed at batch {batch}: {lines[-1].rstrip('. ')}."


def _tells_of_death(error: Exception) -> bool:
    """Whether torch, or a connection to a worker, says so; torch has no class of its own for this."""
    text = str(error)
    if isinstance(error, ConnectionError | EOFError):
        return not text.startswith("Caught")  # which is what a worker itself has met
    return isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid")


def _death(error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
    return (
        f"A worker of the DataLoader has died ({reason}); if memory was short, take fewer workers or "
        "smaller batches."
    )


@contextlib.contextmanager
def dead_workers_told() -> Iterator[None]:
    """Tell in a ``LoaderError`` of a worker that dies while the model computes.

    torch then raises in the middle of whatever the main thread does, out of a handler of SIGCHLD.

    Raises:
        LoaderError: A worker has died.
    """
    try:
        yield
    except RuntimeError as error:
        if not _tells_of_death(error):
            raise
        # The frames hold the batches, and so keep the other workers alive.
        traceback.clear_frames(error.__traceback__)
        raise LoaderError(_death(error)) from error
