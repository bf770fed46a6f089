"""The best weights so far: by validation accuracy, then lower log loss, then the earlier."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

from torch import nn


class BestWeights:
    """Keeps a copy of the weights that did best on the validation part.

    Attributes:
        rank: Accuracy and negative log loss of what is kept; ``None`` while nothing is.
        state: The state dict that is kept.

    >>> model = nn.Linear(2, 2)
    >>> best = BestWeights()
    >>> best.consider(model, accuracy=0.8, loss=0.5), best.consider(model, accuracy=0.8, loss=0.6)
    (True, False)
    """

    def __init__(self) -> None:
        self.rank: tuple[float, float] | None = None
        self.state: dict[str, Any] = {}

    def consider(self, model: nn.Module, *, accuracy: float, loss: float) -> bool:
        """Keep the weights if they are better than all before. Returns whether they were."""
        if not math.isfinite(loss):
            return False
        rank = (accuracy, -loss)
        if self.rank is not None and not rank > self.rank:
            return False
        # A deep copy keeps the state dict's metadata, without which MNASNet reads it as an older version.
        self.put(rank, copy.deepcopy(model.state_dict()))
        return True

    def put(self, rank: Sequence[float], state: dict[str, Any]) -> None:
        """Keep a state dict that had a rank."""
        accuracy, negative_loss = rank
        self.rank, self.state = (float(accuracy), float(negative_loss)), state

    def restore(self, model: nn.Module) -> None:
        """Put the kept weights back; without any, the model stays as it is."""
        if self.state:
            model.load_state_dict(self.state)
