"""Loss and batch metrics of classification, in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.checks import require
from transferkit.errors import ArgumentError, DataError

# What the losses of auxiliary classifiers count beside that of the head, by the fields in which
# torchvision's Inception (the first) and GoogLeNet (the others) return their logits in training mode.
AUXILIARY_WEIGHTS = {"aux_logits": 0.4, "aux_logits1": 0.3, "aux_logits2": 0.3}


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


def loss_of(output: Any, targets: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the loss of what a model's forward gave, auxiliary classifiers included.

    To the loss of the logits are added those of the auxiliary classifiers that Inception and
    GoogLeNet have with ``aux_logits=True``, by 0.4 and by 0.3 each. Where neither an auxiliary
    classifier nor anything before it trains, its loss would be a constant, and is left out.

    Args:
        output: As ``logits_of`` takes it.
        targets: Class indices, shape ``[N]``.
        criterion: From float32 logits ``[N, C]`` and targets to the mean loss.

    Raises:
        ArgumentError: There are no logits in the output.

    Source:
        Szegedy et al. (2015), https://arxiv.org/abs/1409.4842, section 5 (GoogLeNet); the weight for
        Inception is that of PyTorch's tutorial on fine-tuning torchvision models.

    >>> loss_of(torch.zeros(3, 4), torch.tensor([0, 1, 3]), F.cross_entropy)
    tensor(1.3863)
    """
    loss = criterion(logits_of(output).float(), targets)
    for field, weight in AUXILIARY_WEIGHTS.items():
        auxiliary = getattr(output, field, None)
        if isinstance(auxiliary, Tensor) and auxiliary.requires_grad:
            loss = loss + weight * criterion(auxiliary.float(), targets)
    return loss


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
        """Return the mean loss of logits ``[N, C]`` against class indices ``[N]``.

        Raises:
            DataError: A class index is not below ``C``. This is looked at on the CPU alone: an
                accelerator would have to be waited for.
        """
        if targets.device.type == "cpu" and len(targets) and int(targets.max()) >= logits.shape[1]:
            raise DataError(
                f"A class index must be below {logits.shape[1]}, the number of the model's outputs. "
                f"Got {int(targets.max())} for sample {int(targets.argmax())} of a batch instead."
            )
        return F.cross_entropy(
            logits.float(), targets, weight=self.class_weights, label_smoothing=self.label_smoothing
        )


def count_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Return how many of the highest logits are the targets' (a scalar on the device)."""
    return (logits.argmax(dim=1) == targets).sum()
