"""How many classes weights are for."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def outputs_in(state: Mapping[str, Tensor], model: nn.Module, head: str) -> int | None:
    """Return how many outputs the head in a state dict has, if it is such a layer as the model's.

    Args:
        state: What a file of weights holds.
        model: Its head may have another number of outputs.
        head: Path of the head.

    >>> outputs_in({"1.weight": nn.Linear(4, 7).weight}, nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), "1")
    7
    """
    own, found = getattr(model.get_submodule(head), "weight", None), state.get(f"{head}.weight")
    if own is None or found is None or found.ndim == 0 or found.shape[1:] != own.shape[1:]:
        return None
    return found.shape[0]
