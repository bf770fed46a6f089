"""A linear classifier on features, fitted to convergence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.checks import check_between, check_int, check_positive, require
from transferkit.errors import DataError
from transferkit.features.newton import WeightedSamples, minimise
from transferkit.seeding import stream

# Inverse strengths that are tried, two in each decade.
STRENGTHS = tuple(float(f"{value:.3g}") for value in np.logspace(-5, 1, 13))
# What it is where there is nothing to choose it on.
FALLBACK_C = 0.01
# The logits of the other classes have mean 0, so that a class with this logit never wins, and its
# probability is below 1e-13.
ABSENT_LOGIT = -30.0

_ROWS = 4096  # rows that are in double precision at a time
_PATH_TOLERANCE = 1e-2  # the losses that are compared then have four right digits
_FINAL_TOLERANCE = 1e-6
_SMALLEST_DEVIATION = 1e-30  # weights for less would not fit in single precision
_PATIENCE = 2  # strengths in a row without a lower loss, after which the path ends


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
    standardize: bool = True,
) -> LinearFit:
    """Fit multinomial logistic regression to convergence, on the device of the features.

    What is minimised is what scikit-learn's ``LogisticRegression`` minimises: ``c`` times the sum
    of the cross entropies, each times the weight of its class, plus half the squared weights. The
    bias is not penalised, and two classes share one row of weights. There is one optimum, so that
    the seed plays a role only for the folds.

    A class without samples, or of weight 0, takes no part: its weights are 0 and its bias is -30,
    so that it never wins.

    Args:
        x: Features, shape ``[N, D]``, of any floating-point type.
        y: Class indices, shape ``[N]``.
        num_classes: Number of classes ``C``.
        c: Inverse strength of the regularisation, or several to choose from; ``None`` takes
            13 from 1e-5 to 10. They are tried from the strongest on, until two in a row have not
            lowered the loss on held-out samples. Equal losses take the stronger.
        class_weights: Weight of each class, shape ``[C]``, in the loss on held-out samples too.
        label_smoothing: Share of the target's probability that is spread over the classes that
            take part.
        val: Features ``[M, D]`` and class indices ``[M]`` on which to choose ``c``; the weights
            are fitted to ``x`` alone. Samples of a class that ``x`` lacks do not count.
        folds: Number of stratified folds on which to choose ``c`` where there is no ``val``; not
            more than the smallest class has samples. If that is a single one, ``c`` is the one
            nearest to 0.01.
        groups: A number for each row, shape ``[N]``; rows with the same number, such as views of
            one image, stay in one fold.
        seed: What the folds follow from.
        standardize: Whether the penalty is that of features with standard deviation 1.

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
    y = _checked_targets(x, y, num_classes, "y")
    weights = _checked_weights(class_weights, num_classes).to(x.device)
    members = _checked_groups(groups, len(x))
    kept = weights[y] > 0
    require(bool(kept.any()), owner, "class_weights", "above 0 for a class of 'y'", class_weights)
    if not kept.all():
        x, y, members = x[kept], y[kept], members[kept.cpu().numpy()]
    present, y = torch.unique(y, return_inverse=True)
    weights = weights[present]

    scaling = _Scaling(x, standardize)
    samples = WeightedSamples(scaling.apply(x), _soft_targets(y, weights, label_smoothing))
    gram = samples.gram()
    held_out: list[_HeldOut] = []
    reason = "as given" if len(strengths) == 1 else "a class has a single sample"
    if len(strengths) > 1 and val is not None:
        val_x, val_y = _known_samples(*val, num_classes, present)
        scored = WeightedSamples(scaling.apply(val_x), _soft_targets(val_y, weights, label_smoothing))
        held_out, reason = [_HeldOut(samples, scored, val_y)], "lowest loss on the validation part"
    elif len(strengths) > 1:
        held_out = _folds(samples, y, members, folds, seed)
        reason = f"lowest loss over {len(held_out)} folds" if held_out else reason

    choice = _choose(strengths, held_out, samples, gram)
    fitted, iterations, converged = minimise(
        samples, _penalty(choice.c, samples), choice.start, gram, tolerance=_FINAL_TOLERANCE
    )
    weight = torch.zeros(num_classes, x.shape[1], device=x.device)
    bias = torch.full((num_classes,), ABSENT_LOGIT, device=x.device)
    inner_weight, inner_bias = scaling.undo(fitted - fitted.mean(dim=0))
    weight[present], bias[present] = inner_weight.float(), inner_bias.float()
    return LinearFit(weight, bias, choice.c, reason, choice.losses, choice.accuracies, iterations, converged)


class _Scaling:
    """Standardises features, and gives weights back for features as they were."""

    def __init__(self, x: Tensor, standardize: bool) -> None:
        lowest, highest = x.amin(dim=0).double(), x.amax(dim=0).double()
        total = torch.zeros_like(lowest)
        for rows in torch.split(x, _ROWS):
            total += rows.double().sum(dim=0)
        self.shift = total / len(x)
        squares = torch.zeros_like(lowest)
        for rows in torch.split(x, _ROWS):
            squares += (rows.double() - self.shift).square().sum(dim=0)
        deviation = (squares / len(x)).sqrt()
        scale = deviation if standardize else torch.ones_like(deviation)
        # A feature that tells nothing becomes 0, and so does its weight, whatever it is elsewhere.
        self.scale = torch.where((lowest == highest) | (deviation < _SMALLEST_DEVIATION), math.inf, scale)
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
    targets = (class_weights * (smoothing / len(class_weights))).repeat(len(y), 1)
    targets[torch.arange(len(y), device=y.device), y] += (1 - smoothing) * class_weights[y]
    return targets


@dataclass(frozen=True)
class _HeldOut:
    """Samples to fit to, samples to score on, and the classes of these."""

    fitted: WeightedSamples
    scored: WeightedSamples
    y: Tensor


@dataclass(frozen=True)
class _Choice:
    c: float
    start: Tensor
    losses: dict[float, float]
    accuracies: dict[float, float]


def _choose(
    strengths: Sequence[float], held_out: Sequence[_HeldOut], samples: WeightedSamples, gram: Tensor
) -> _Choice:
    """Follow the path from strong to weak regularisation, each fit starting from the one before."""
    classes, width = samples.targets.shape[1], samples.x.shape[1] + 1
    zero = torch.zeros(classes, width, dtype=torch.float64, device=samples.x.device)
    nearest = min(strengths, key=lambda c: abs(math.log(c / FALLBACK_C)))
    best, least, worse = _Choice(nearest, zero, {}, {}), math.inf, 0
    weights = [zero] * len(held_out)
    for c in strengths if held_out else ():
        loss = right = 0.0
        for number, each in enumerate(held_out):
            weights[number], _, _ = minimise(
                each.fitted, _penalty(c, each.fitted), weights[number], gram, tolerance=_PATH_TOLERANCE
            )
            value, _, probabilities = each.scored.evaluate(weights[number])
            loss += value * each.scored.total
            right += float((probabilities.argmax(dim=1) == each.y).sum())
        loss /= sum(each.scored.total for each in held_out)
        best.losses[c], best.accuracies[c] = loss, right / sum(len(each.y) for each in held_out)
        worse += 1
        if loss < least:
            start = torch.stack(weights).mean(dim=0)
            best, least, worse = dataclasses.replace(best, c=c, start=start), loss, 0
        if worse == _PATIENCE:
            break
    return best


def _penalty(c: float, samples: WeightedSamples) -> float:
    """Return the factor of half the squared weights beside the mean loss."""
    # In scikit-learn two classes share a row w; here they have -w/2 and w/2, whose squares are half of its.
    factor = 2.0 if samples.targets.shape[1] == 2 else 1.0
    return factor / (c * samples.total)


def _folds(
    samples: WeightedSamples, y: Tensor, members: npt.NDArray[np.int64], folds: int, seed: int
) -> list[_HeldOut]:
    """Cut the samples into stratified folds, none where a class has but one member."""
    from sklearn.model_selection import StratifiedKFold

    _, first, member_of = np.unique(members, return_index=True, return_inverse=True)
    labels = y.cpu().numpy()[first]
    folds = min(folds, int(np.bincount(labels).min()))
    if folds < 2:
        return []
    state = int(stream(seed, "folds").integers(2**32))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=state)
    fold_of = np.empty(len(labels), dtype=np.int64)
    for number, (_, held) in enumerate(splitter.split(np.zeros(len(labels)), labels)):
        fold_of[held] = number
    row_folds = torch.from_numpy(fold_of[member_of]).to(y.device)
    return [
        _HeldOut(
            # Rows of zeros leave samples out without a copy of the others.
            WeightedSamples(samples.x, samples.targets * (row_folds != number)[:, None]),
            WeightedSamples(samples.x[row_folds == number], samples.targets[row_folds == number]),
            y[row_folds == number],
        )
        for number in range(folds)
    ]


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
    require(valid, "fit_linear", "x" if parameter == "y" else parameter, wanted, shown)
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
            f"The features of fit_linear must be finite. Row {row} of {len(x)} has NaN or infinity."
        )
    return y.to(x.device, torch.int64)


def _checked_weights(class_weights: Tensor | None, num_classes: int) -> Tensor:
    if class_weights is None:
        return torch.ones(num_classes)
    valid = class_weights.shape == (num_classes,) and bool(
        ((class_weights >= 0) & class_weights.isfinite()).all()
    )
    wanted = f"{num_classes} finite floats of at least 0, one for each class"
    require(valid, "fit_linear", "class_weights", wanted, class_weights.tolist())
    return class_weights.float()


def _checked_groups(groups: Tensor | None, rows: int) -> npt.NDArray[np.int64]:
    if groups is None:
        return np.arange(rows)
    valid = groups.shape == (rows,) and not groups.is_floating_point()
    require(
        valid,
        "fit_linear",
        "groups",
        f"{rows} ints, one for each row of 'x'",
        f"{groups.dtype} of shape {list(groups.shape)}",
    )
    return groups.cpu().numpy().astype(np.int64)
