"""Loss and batch metrics of classification, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.checks import require
from transferkit.errors import ArgumentError


def logits_of(output: Any) -> Tensor:
    """Return the logits in what a model's forward gave.

    A tensor is taken as it is; of a record, such as Inception's in train mode or a
    Hugging Face model's, the field ``logits`` is taken.

    Raises:
        ArgumentError: There is neither.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = f" of shape {list(logits.shape)}" if isinstance(logits, Tensor) else ""
        raise ArgumentError(
            "A classifier must return logits of shape [N, C], or a record with such a field 'logits'. "
            f"Got {type(output).__name__}{shape} instead."
        )
    return logits


def class_weights_of(
    value: str | Sequence[float] | None, targets: npt.NDArray[np.int64], num_classes: int
) -> Tensor | None:
    """Return the weight of each class in the loss: float32, shape ``[num_classes]``.

    Args:
        value: ``None``, ``"balanced"`` (inverse frequency, as in scikit-learn), or the weights.
        targets: Class index of each training image, shape ``[N]``.
        num_classes: Number of classes; one that has no image gets weight 0 when balanced.

    >>> class_weights_of("balanced", np.array([0, 0, 0, 1]), 2)
    tensor([0.6667, 2.0000])
    """
    if value is None:
        return None
    if isinstance(value, str):
        require(value == "balanced", "Phase", "class_weights", "None, 'balanced' or a list of floats", value)
        counts = np.bincount(targets, minlength=num_classes)
        present = np.count_nonzero(counts)
        weights = np.divide(len(targets), present * counts, out=np.zeros(num_classes), where=counts > 0)
        return torch.as_tensor(weights, dtype=torch.float32)
    valid = len(value) == num_classes and all(weight >= 0 for weight in value)
    require(valid, "Phase", "class_weights", f"{num_classes} floats of at least 0, one for each class", value)
    return torch.tensor(value, dtype=torch.float32)


class CrossEntropy(nn.Module):
    """Cross entropy in float32, whatever precision the logits have.

    Args:
        label_smoothing: Share of the target's probability that is spread over all classes.
        class_weights: Weight of each class, shape ``[C]``.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits ``[N, C]`` against class indices ``[N]``."""
        return F.cross_entropy(
            logits.float(), targets, weight=self.class_weights, label_smoothing=self.label_smoothing
        )


def count_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Return how many of the highest logits are the targets' (a scalar on the device)."""
    return (logits.argmax(dim=1) == targets).sum()
