"""Features on a common scale, on which a penalty of large weights is fair."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALINGS = ("pareto", "standard")

_ROWS = 4096  # rows that are in double precision at a time
_SMALLEST_DEVIATION = 1e-30  # weights for less would not fit in single precision


class FeatureScaling:
    """Centers features, divides them, and gives weights back for features as they were.

    ``"pareto"`` divides each feature by the geometric mean of its own standard deviation and the
    average one, ``"standard"`` by its own. With few samples the latter makes features large that
    hardly vary, which is what many features of a backbone are. One that does not vary becomes 0.

    Args:
        x: The features from which mean and deviation are taken, ``[N, D]``, finite.
        kind: ``"pareto"`` or ``"standard"``.

    Source:
        Van den Berg et al. (2006), Centering, scaling, and transformations,
        https://doi.org/10.1186/1471-2164-7-142, compares the two.

    >>> scaling = FeatureScaling(torch.tensor([[0.0, 5.0], [2.0, 5.0]]), "standard")
    >>> scaling.apply(torch.tensor([[4.0, 9.0]]))
    tensor([[3., 0.]])
    """

    def __init__(self, x: Tensor, kind: str) -> None:
        lowest, highest = x.amin(dim=0).double(), x.amax(dim=0).double()
        total = torch.zeros_like(lowest)
        for rows in torch.split(x, _ROWS):
            total += rows.double().sum(dim=0)
        self.shift = total / len(x)
        squares = torch.zeros_like(lowest)
        for rows in torch.split(x, _ROWS):
            squares += (rows.double() - self.shift).square().sum(dim=0)
        deviation = (squares / len(x)).sqrt()
        varies = (lowest < highest) & (deviation > _SMALLEST_DEVIATION)
        scale = deviation if kind == "standard" else (deviation * deviation[varies].mean()).sqrt()
        # Infinity makes a feature 0, and so its weight, whatever values it has elsewhere.
        self.scale = scale.where(varies, math.inf)

    def apply(self, x: Tensor) -> Tensor:
        """Return features ``[N, D]`` on the common scale, float32."""
        parts = [((rows.double() - self.shift) / self.scale).float() for rows in torch.split(x, _ROWS)]
        return torch.cat(parts)

    def undo(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight ``[C, D]`` and bias ``[C]`` for features as they were, float32.

        Args:
            weight: That for features on the common scale, float64 ``[C, D]``.
            bias: The bias that goes with it, float64 ``[C]``.
        """
        weight = weight / self.scale
        return weight.float(), (bias - weight @ self.shift).float()


def span_basis(x: Tensor) -> Tensor | None:
    """Return an orthonormal basis of what few samples span, float64 ``[D, N]``.

    A penalized linear classifier lies in the span of its samples: with few of them, ``x @ basis`` says
    as much as ``x``, in fewer dimensions.

    Args:
        x: Centered features, ``[N, D]``.

    Returns:
        The basis, or ``None`` where ``N`` is above half of ``D``.
    """
    return torch.linalg.qr(x.double().T).Q if 2 * len(x) <= x.shape[1] else None
