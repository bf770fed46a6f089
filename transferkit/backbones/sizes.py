"""Find out before training whether a model takes images of a size."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.func import functional_call

from transferkit.errors import ArgumentError
from transferkit.loading.wording import first_line
from transferkit.modes import modes_kept


@torch.no_grad()
def check_size_works(model: nn.Module, size: int, name: str) -> None:
    """Run a model on one blank image, unless it holds no numbers.

    It is run on the device ``"meta"``, where any size takes hardly any time or memory; only if it fails
    there, which it may do for other reasons, it is run in earnest.

    Args:
        model: On the CPU; nothing of it changes.
        size: Side of the image, in pixels.
        name: What the model is called in the message.

    Raises:
        ArgumentError: It fails.

    >>> check_size_works(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), 2, "tiny")
    """
    if any(each.is_meta for each in model.parameters()):
        return
    try:
        with modes_kept(model):
            if not _works_without_numbers(model.eval(), size):
                model(torch.zeros(1, 3, size, size))
    except Exception as error:  # architectures refuse sizes in many ways
        raise ArgumentError(
            f"The 'image_size' parameter of load_backbone must be a side that {name!r} takes "
            f"({first_line(error)}). Got {size} instead."
        ) from error


def _works_without_numbers(model: nn.Module, size: int) -> bool:
    empty = {
        name: each.to("meta")
        for name, each in itertools.chain(model.named_parameters(), model.named_buffers())
    }
    try:
        with torch.device("meta"):
            functional_call(model, empty, torch.zeros(1, 3, size, size))
    except Exception:  # of a size that does not work, or of a model that reads values
        return False
    return True
