"""The best weights so far: by validation accuracy, then lower log loss, then the earlier."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import nn


class BestWeights:
    """Keeps a copy of the weights that did best on the validation part.

    >>> model = nn.Linear(2, 2)
    >>> best = BestWeights()
    >>> best.consider(model, accuracy=0.8, loss=0.5), best.consider(model, accuracy=0.8, loss=0.6)
    (True, False)
    """

    def __init__(self) -> None:
        self._rank: tuple[float, float] | None = None
        self._state: dict[str, Any] = {}

    def consider(self, model: nn.Module, *, accuracy: float, loss: float) -> bool:
        """Keep the weights if they are better than all before. Returns whether they were."""
        if not math.isfinite(loss):
            return False
        rank = (accuracy, -loss)
        if self._rank is not None and not rank > self._rank:
            return False
        self._rank = rank
        # A deep copy keeps the state dict's metadata, without which MNASNet reads it as an older version.
        self._state = copy.deepcopy(model.state_dict())
        return True

    def restore(self, model: nn.Module) -> None:
        """Put the kept weights back; without any, the model stays as it is."""
        if self._state:
            model.load_state_dict(self._state)
