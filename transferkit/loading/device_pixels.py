"""Batches of uint8 pixels on a device: decoded ahead, copied ahead, or kept there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.loading.pixels import Group, Pixels
from transferkit.loading.prefetch import prefetched
from transferkit.loading.resample import enlarged

Indices = npt.NDArray[np.int64]


class Staged(NamedTuple):
    """A batch on its way to a device.

    Attributes:
        indices: Positions of its images in their part, shape ``[N]``.
        groups: The images, on the device.
        ready: What the device waits for before it uses them, if they are still being copied.
    """

    indices: Indices
    groups: Sequence[Group]
    ready: torch.cuda.Event | None = None


def batches_on_device(
    pixels: Pixels, chosen: Iterable[Indices], device: torch.device
) -> Iterator[tuple[Indices, Tensor]]:
    """Yield the positions of the images of each batch, and their pixels on a device.

    On a CPU a batch is decoded when it is asked for: decoding ahead would take the processors
    from the model. For another device the next two batches are decoded and copied meanwhile, and
    once all images are in memory they are kept on the device, if they fit there.

    Args:
        pixels: The images.
        chosen: Positions of the images of each batch, each of shape ``[N]``.
        device: Where the batches go.

    Yields:
        The positions, and uint8 pixels of shape ``[N, 3, size, size]``.
    """
    if device.type == "cpu":
        for indices in chosen:
            yield indices, pixels[indices]
        return
    groups = pixels.kept_on(device)
    if groups is not None:
        batches = picked(groups, chosen)
    # A data set of the user's own may draw random numbers, which must come from the calling thread.
    elif pixels.fixed:
        batches = prefetched(staged(pixels, chosen, device))
    else:
        batches = staged(pixels, chosen, device)
    for batch in batches:
        if batch.ready is not None:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(batch.ready)
            for group in batch.groups:
                group.images.record_stream(stream)
        yield batch.indices, assembled(batch.groups, pixels.preprocessing)


def staged(pixels: Pixels, chosen: Iterable[Indices], device: torch.device) -> Iterator[Staged]:
    """Decode batches and start copying them to a device, beside what the device computes."""
    stream = _copy_stream(device) if device.type == "cuda" else None
    for indices in chosen:
        groups = pixels.groups(indices)
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            groups = [group._replace(images=to_device(group.images, device)) for group in groups]
            ready = None if stream is None else stream.record_event()
        yield Staged(indices, groups, ready)


# One for all epochs: what is freed on a stream is used again on that stream alone.
@lru_cache(maxsize=64)
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # reason: torch gives it no types


def picked(groups: Sequence[Group], chosen: Iterable[Indices]) -> Iterator[Staged]:
    """Pick batches from images that are all on a device.

    Args:
        groups: All images of a part, by size.
        chosen: Positions of the images of each batch, each of shape ``[N]``.
    """
    count = sum(len(group.positions) for group in groups)
    numbers, rows = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    for number, group in enumerate(groups):
        numbers[group.positions] = number
        rows[group.positions] = np.arange(len(group.positions))
    for indices in chosen:
        batch = []
        for number in np.unique(numbers[indices]):
            positions = np.flatnonzero(numbers[indices] == number)
            images = groups[number].images
            wanted = to_device(torch.from_numpy(rows[indices[positions]]), images.device)
            batch.append(Group(positions, images.index_select(0, wanted)))
        yield Staged(indices, batch)


def assembled(groups: Sequence[Group], preprocessing: Preprocessing) -> Tensor:
    """Put the images of a batch together, small ones enlarged.

    Args:
        groups: Each position of the batch in one of them.
        preprocessing: Says to what size, and how.

    Returns:
        uint8, shape ``[N, 3, size, size]``, the channels last in memory.
    """
    size = preprocessing.size
    parts = [
        group.images if group.images.shape[1] == size else enlarged(group.images, preprocessing)
        for group in groups
    ]
    whole = parts[0]
    if len(parts) > 1:
        whole = whole.new_empty((sum(map(len, parts)), size, size, 3))
        for group, part in zip(groups, parts, strict=True):
            whole[to_device(torch.from_numpy(group.positions), whole.device)] = part
    return whole.permute(0, 3, 1, 2)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; to a CUDA device without waiting for the copy to end."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
