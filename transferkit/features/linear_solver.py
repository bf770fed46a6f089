"""A linear classifier on features, fitted to convergence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.checks import check_between, check_choice, check_int, check_positive, require
from transferkit.errors import DataError
from transferkit.features.newton import WeightedSamples, minimise
from transferkit.features.regularisation import (
    PATH_TOLERANCE,
    Choice,
    HeldOut,
    choose_strength,
    nearest_to_usual,
    penalty_of,
    stratified_folds,
)

# Inverse strengths that are tried, two in each decade.
STRENGTHS = tuple(float(f"{value:.3g}") for value in np.logspace(-5, 1, 13))
# The logits of the other classes have mean 0, so that a class with this logit never wins, and its
# probability is below 1e-13.
ABSENT_LOGIT = -30.0
SCALINGS = ("pareto", "standard")

_ROWS = 4096  # rows that are in double precision at a time
_TOLERANCE = 1e-6
_SMALLEST_DEVIATION = 1e-30  # weights for less would not fit in single precision


@dataclass(frozen=True, eq=False)
class LinearFit:
    """A linear classifier, and how its regularisation was chosen.

    Attributes:
        weight: float32 ``[C, D]``, for features as they were given.
        bias: float32 ``[C]``.
        c: Inverse strength of the regularisation.
        reason: Why it is this one, in a few words.
        losses: Mean loss on held-out samples at each strength that was tried; empty where none was.
        accuracies: Share of right held-out samples at each of them.
        iterations: Newton steps of the last fit.
        converged: Whether the last fit reached the optimum.
    """

    weight: Tensor
    bias: Tensor
    c: float
    reason: str
    losses: Mapping[float, float]
    accuracies: Mapping[float, float]
    iterations: int
    converged: bool

    def logits(self, x: Tensor) -> Tensor:
        """Return the scores of features ``[N, D]``: float32 ``[N, C]``, on the device of the weights."""
        return torch.addmm(self.bias, x.to(self.weight), self.weight.T)


@torch.no_grad()
def fit_linear(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    *,
    c: float | Sequence[float] | None = None,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    val: tuple[Tensor, Tensor] | None = None,
    folds: int = 5,
    groups: Tensor | None = None,
    seed: int = 0,
    scaling: str = "pareto",
) -> LinearFit:
    """Fit multinomial logistic regression to convergence, on the device of the features.

    What is minimised is what scikit-learn's ``LogisticRegression`` minimises: ``c`` times the sum
    of the cross entropies, each times the weight of its class, plus half the squared weights. The
    bias is not penalised, and two classes share one row of weights. There is one optimum, which
    does not depend on chance; the seed is that of the folds.

    A class without samples, or of weight 0, takes no part: its weights are 0 and its bias is -30,
    so that it never wins.

    Args:
        x: Features, shape ``[N, D]``, of any floating-point type.
        y: Class indices, shape ``[N]``.
        num_classes: Number of classes ``C``.
        c: Inverse strength of the regularisation, or several to choose from; ``None`` takes
            13 from 1e-5 to 10. The lowest loss on held-out samples decides; among strengths
            within one standard error of it, the one nearest to 0.03.
        class_weights: Weight of each class, shape ``[C]``, in the loss on held-out samples too.
        label_smoothing: Share of the target's probability that is spread over the classes that
            take part.
        val: Features ``[M, D]`` and class indices ``[M]`` on which to choose ``c``; the weights
            are fitted to ``x`` alone. Samples of a class that ``x`` lacks do not count.
        folds: Number of stratified folds on which to choose ``c`` where there is no ``val``; not
            more than the smallest class has samples. If that is one, ``c`` is the one nearest to
            0.03.
        groups: A number for each row, shape ``[N]``; rows with the same number, such as views of
            one image, stay in one fold.
        seed: What the folds follow from.
        scaling: What the features are divided by, after centring, before their weights are
            penalised: ``"pareto"`` the geometric mean of the feature's own standard deviation and
            the average one, ``"standard"`` its own. With few samples the latter gives weight to
            features that hardly vary.

    Raises:
        DataError: A feature is NaN or infinite, or no sample of ``val`` has a class of ``x``.
        ArgumentError: A shape or value makes no sense.

    Source:
        Dembo and Steihaug (1983), Truncated-Newton algorithms for large-scale unconstrained
        optimization, https://doi.org/10.1007/BF02592055.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> fit = fit_linear(x, torch.tensor([0, 0, 1, 1]), 2, c=1.0)
    >>> fit.logits(x).argmax(dim=1).tolist()
    [0, 0, 1, 1]
    """
    owner = "fit_linear"
    strengths = _checked_strengths(c)
    check_int(owner, "num_classes", num_classes, 1)
    check_int(owner, "folds", folds, 2)
    check_int(owner, "seed", seed)
    check_between(owner, "label_smoothing", label_smoothing, 0, 1)
    check_choice(owner, "scaling", scaling, SCALINGS)
    y = _checked_targets(x, y, num_classes, "y")
    weights = _checked_weights(class_weights, num_classes).to(x.device)
    members = _checked_groups(groups, len(x))
    kept = weights[y] > 0
    require(bool(kept.any()), owner, "class_weights", "above 0 for a class of 'y'", class_weights)
    if not kept.all():
        x, y, members = x[kept], y[kept], members[kept.cpu().numpy()]
    present, y = torch.unique(y, return_inverse=True)
    weights = weights[present]

    scaled = _Scaling(x, scaling)
    samples = WeightedSamples(scaled.apply(x), _soft_targets(y, weights, label_smoothing))
    gram = samples.gram()
    held_out: list[HeldOut] = []
    reason = "as given" if len(strengths) == 1 else "a class has a single sample"
    if len(strengths) > 1 and val is not None:
        val_x, val_y = _known_samples(*val, num_classes, present)
        scored = WeightedSamples(scaled.apply(val_x), _soft_targets(val_y, weights, label_smoothing))
        held_out, reason = [HeldOut(samples, scored, val_y)], "loss on the validation part"
    elif len(strengths) > 1:
        held_out = stratified_folds(samples, y, members, folds, seed)
        reason = f"loss over {len(held_out)} folds" if held_out else reason

    zero = torch.zeros(len(present), samples.x.shape[1] + 1, dtype=torch.float64, device=x.device)
    usual = nearest_to_usual(strengths)
    choice = choose_strength(strengths, held_out, zero, gram) if held_out else Choice(usual, zero, {}, {})
    penalty = penalty_of(choice.c, samples)
    near, _, _ = minimise(samples, penalty, choice.start, gram, tolerance=PATH_TOLERANCE, dtype=torch.float32)
    fitted, iterations, converged = minimise(samples, penalty, near, gram, tolerance=_TOLERANCE)
    weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float32, device=x.device)
    bias = torch.full((num_classes,), ABSENT_LOGIT, dtype=torch.float32, device=x.device)
    inner_weight, inner_bias = scaled.undo(fitted - fitted.mean(dim=0))
    weight[present], bias[present] = inner_weight.float(), inner_bias.float()
    return LinearFit(weight, bias, choice.c, reason, choice.losses, choice.accuracies, iterations, converged)


class _Scaling:
    """Standardises features, and gives weights back for features as they were."""

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
        # A feature that tells nothing becomes 0, and so does its weight, whatever it is elsewhere.
        self.scale = scale.where(varies, math.inf)
        self.basis: Tensor | None = None
        if 2 * len(x) <= x.shape[1]:
            # The optimum lies in the span of the samples, which has fewer dimensions.
            self.basis = torch.linalg.qr(((x.double() - self.shift) / self.scale).T).Q

    def apply(self, x: Tensor) -> Tensor:
        """Return standardised features, float32 ``[N, D]``, or fewer in the basis of the span."""
        parts = ((rows.double() - self.shift) / self.scale for rows in torch.split(x, _ROWS))
        return torch.cat([(part if self.basis is None else part @ self.basis).float() for part in parts])

    def undo(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias for features as they were, from those for standardised ones."""
        inner = weights[:, :-1] if self.basis is None else weights[:, :-1] @ self.basis.T
        weight = inner / self.scale
        return weight, weights[:, -1] - weight @ self.shift


def _soft_targets(y: Tensor, class_weights: Tensor, smoothing: float) -> Tensor:
    """Return what each class counts for in the loss of a sample, as torch's cross entropy has it."""
    targets = (class_weights * (smoothing / len(class_weights)))[:, None].repeat(1, len(y))
    targets[y, torch.arange(len(y), device=y.device)] += (1 - smoothing) * class_weights[y]
    return targets


def _known_samples(x: Tensor, y: Tensor, num_classes: int, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return the validation samples of classes that are fitted, with their positions among these."""
    x = x.to(present.device)
    y = _checked_targets(x, y, num_classes, "val")
    position = torch.full((num_classes,), -1, device=present.device)
    position[present] = torch.arange(len(present), device=present.device)
    known = position[y] >= 0
    if not known.any():
        raise DataError("The validation part has no sample of a class that the training part has.")
    return x[known], position[y[known]]


def _checked_strengths(c: float | Sequence[float] | None) -> tuple[float, ...]:
    if c is None:
        return STRENGTHS
    given = list(c) if isinstance(c, Iterable) else [c]
    require(len(given) > 0, "fit_linear", "c", "a positive float or several", c)
    return tuple(sorted({check_positive("fit_linear", "c", each) for each in given}))


def _checked_targets(x: Tensor, y: Tensor, num_classes: int, parameter: str) -> Tensor:
    """Return class indices on the device of the features, both found to be in order."""
    valid = x.ndim == 2 and min(x.shape) > 0 and x.is_floating_point()
    shown = f"{x.dtype} of shape {list(x.shape)}"
    wanted = "features: floats of shape [N, D], both at least 1"
    features = "x" if parameter == "y" else parameter
    require(valid, "fit_linear", features, wanted, shown)
    valid = y.shape == x.shape[:1] and not y.is_floating_point()
    wanted = "class indices: ints, one for each row of features"
    require(valid, "fit_linear", parameter, wanted, f"{y.dtype} of shape {list(y.shape)}")
    low, high = int(y.min()), int(y.max())
    wanted = f"class indices from 0 to {num_classes - 1}"
    require(low >= 0 and high < num_classes, "fit_linear", parameter, wanted, low if low < 0 else high)
    finite = x.isfinite().all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise DataError(
            f"The {features!r} parameter of fit_linear must have finite features. "
            f"Got NaN or infinity in row {row} instead."
        )
    return y.to(x.device, torch.int64)


def _checked_weights(class_weights: Tensor | None, num_classes: int) -> Tensor:
    if class_weights is None:
        return torch.ones(num_classes)
    in_order = (class_weights >= 0) & class_weights.isfinite()
    valid = class_weights.shape == (num_classes,) and bool(in_order.all())
    wanted = f"{num_classes} finite floats of at least 0, one for each class"
    require(valid, "fit_linear", "class_weights", wanted, class_weights.tolist())
    return class_weights.float()


def _checked_groups(groups: Tensor | None, rows: int) -> npt.NDArray[np.int64]:
    if groups is None:
        return np.arange(rows)
    valid = groups.shape == (rows,) and not groups.is_floating_point()
    wanted, shown = f"{rows} ints, one for each row of 'x'", f"{groups.dtype} of shape {list(groups.shape)}"
    require(valid, "fit_linear", "groups", wanted, shown)
    return groups.cpu().numpy().astype(np.int64)
