"""Mixup and CutMix: images of a batch mixed in pairs, and the loss that fits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from transferkit.errors import DataError
from transferkit.loading.batches import Batch

Criterion = Callable[[Tensor, Tensor], Tensor]

# Of the papers, for the data sets that are nearest to photos.
_ALPHA = {"mixup": 0.2, "cutmix": 1.0}


class Mixing:
    """Mixes each image of a batch with the one before it, by one share for the whole batch.

    The share, and for CutMix the place, are drawn from torch's global generator of the CPU, which a
    training loop seeds for each step. The loss of a mixed image is that of each of its two
    classes, by its share. That is the cross entropy against soft targets; where classes have
    weights, it stays a weighted mean, which torch's own with soft targets is not.

    Args:
        kind: ``"mixup"`` or ``"cutmix"``.
        alpha: Shares are drawn from Beta(alpha, alpha); ``None`` takes 0.2 for mixup, 1 for CutMix.

    Source:
        Zhang et al. (2018), https://arxiv.org/abs/1710.09412 (mixup); Yun et al. (2019),
        https://arxiv.org/abs/1905.04899 (CutMix); torchvision's ``MixUp`` and ``CutMix`` do the mixing.
    """

    def __init__(self, kind: str, alpha: float | None = None) -> None:
        from torchvision.transforms import v2

        transform = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[kind]
        self._transform = transform(alpha=_ALPHA[kind] if alpha is None else alpha)

    def __call__(self, batch: Batch, criterion: Criterion) -> tuple[Batch, Criterion]:
        """Return a mixed batch, and the criterion for logits of its inputs.

        Args:
            batch: Images ``[N, 3, H, W]`` and class indices ``[N]``.
            criterion: From logits and class indices to the mean loss.

        Returns:
            The batch, its targets those of the larger share, and the criterion, which takes these.

        Raises:
            DataError: The inputs are no images.
        """
        inputs, targets = batch.inputs, batch.targets
        if inputs.ndim != 4:
            raise DataError(
                "Mixing takes images of shape [N, 3, H, W]. "
                f"Got inputs of shape {list(inputs.shape)} instead; train them without 'mix'."
            )
        # torchvision tells the share only through the targets that it mixes: here, a mark on the first image.
        mark = torch.zeros(len(inputs), 1)
        mark[0] = 1
        mixed, marks = self._transform(inputs, mark)
        if inputs.is_contiguous(memory_format=torch.channels_last):
            mixed = mixed.contiguous(memory_format=torch.channels_last)
        share, others = float(marks[0, 0]), targets.roll(1)
        if share < 0.5:
            share, targets, others = 1 - share, others, targets

        def mixed_criterion(logits: Tensor, targets: Tensor) -> Tensor:
            return share * criterion(logits, targets) + (1 - share) * criterion(logits, others)

        return Batch(mixed, targets, batch.indices), mixed_criterion
