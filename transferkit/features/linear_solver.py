"""A linear classifier on features, fitted to convergence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.checks import check_between, check_choice, check_int, check_positive, require
from transferkit.errors import DataError
from transferkit.features.labelled import check_labelled
from transferkit.features.newton import WeightedSamples, minimize
from transferkit.features.regularization import (
    Choice,
    HeldOut,
    choose_strength,
    nearest_to_usual,
    penalty_of,
    stratified_folds,
)
from transferkit.features.scaling import SCALINGS, FeatureScaling, span_basis
from transferkit.runtime import whole_factors

# Inverse strengths that are tried, two in each decade.
STRENGTHS = tuple(float(f"{value:.3g}") for value in np.logspace(-5, 1, 13))
# The logits of the other classes have mean 0, so that a class with this logit never wins, and its
# probability is below 1e-13.
ABSENT_LOGIT = -30.0


@dataclass(frozen=True, eq=False)
class LinearFit:
    """A linear classifier, and how its regularization was chosen.

    Attributes:
        weight: float32 ``[C, D]``, for features as they were given.
        bias: float32 ``[C]``.
        c: Inverse strength of the regularization.
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
@whole_factors()  # products of shortened ones leave second moments that have no Cholesky factor
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

    What is minimized is what scikit-learn's ``LogisticRegression`` minimizes: ``c`` times the sum
    of the cross entropies, each times the weight of its class, plus half the squared weights. The
    bias is not penalized, and two classes share one row of weights. There is one optimum, which
    does not depend on chance; the seed is that of the folds.

    A class without samples, or of weight 0, takes no part: its weights are 0 and its bias is -30,
    so that it never wins.

    Args:
        x: Features, shape ``[N, D]``, of any floating-point type.
        y: Class indices, shape ``[N]``.
        num_classes: Number of classes ``C``.
        c: Inverse strength of the regularization, or several to choose from; ``None`` takes
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
        scaling: ``"pareto"`` or ``"standard"``: the scale on which weights are penalized; see
            ``FeatureScaling``.

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
    y = check_labelled(owner, x, y, num_classes)
    weights = _checked_weights(class_weights, num_classes).to(x.device)
    members = _checked_groups(groups, len(x))
    kept = weights[y] > 0
    require(bool(kept.any()), owner, "class_weights", "above 0 for a class of 'y'", class_weights)
    if not kept.all():
        x, y, members = x[kept], y[kept], members[kept.cpu().numpy()]
    present, y = torch.unique(y, return_inverse=True)
    weights = weights[present]

    scale = FeatureScaling(x, scaling)
    features = scale.apply(x)
    basis = span_basis(features)
    samples = WeightedSamples(_in_basis(features, basis), _soft_targets(y, weights, label_smoothing))
    gram = samples.gram()
    held_out: list[HeldOut] = []
    reason = "as given" if len(strengths) == 1 else "a class has a single sample"
    if len(strengths) > 1 and val is not None:
        wanted, width = f"features of {x.shape[1]} columns, as 'x' has", val[0].shape[-1]
        require(width == x.shape[1], owner, "val", wanted, f"{width} columns")
        val_x, val_y = _known_samples(*val, num_classes, present)
        val_x = _in_basis(scale.apply(val_x), basis)
        scored = WeightedSamples(val_x, _soft_targets(val_y, weights, label_smoothing))
        held_out, reason = [HeldOut(samples, scored, val_y)], "loss on the validation part"
    elif len(strengths) > 1:
        held_out = stratified_folds(samples, y, members, folds, seed)
        reason = f"loss over {len(held_out)} folds" if held_out else reason

    zero = torch.zeros(len(present), samples.x.shape[1] + 1, dtype=torch.float64, device=x.device)
    usual = nearest_to_usual(strengths)
    choice = choose_strength(strengths, held_out, zero, gram) if held_out else Choice(usual, zero, {}, {})
    penalty = penalty_of(choice.c, samples)
    near, rough_steps, _ = minimize(samples, penalty, choice.start, gram, exact=False)
    fitted, exact_steps, converged = minimize(samples, penalty, near, gram, exact=True)
    inner = fitted[:, :-1] if basis is None else fitted[:, :-1] @ basis.T
    weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float32, device=x.device)
    bias = torch.full((num_classes,), ABSENT_LOGIT, dtype=torch.float32, device=x.device)
    weight[present], bias[present] = scale.undo(inner, fitted[:, -1])
    steps = rough_steps + exact_steps
    return LinearFit(weight, bias, choice.c, reason, choice.losses, choice.accuracies, steps, converged)


def _in_basis(x: Tensor, basis: Tensor | None) -> Tensor:
    return x if basis is None else (x.double() @ basis).float()


def _soft_targets(y: Tensor, class_weights: Tensor, smoothing: float) -> Tensor:
    """Return what each class counts for in the loss of a sample, as torch's cross entropy has it."""
    targets = (class_weights * (smoothing / len(class_weights)))[:, None].repeat(1, len(y))
    targets[y, torch.arange(len(y), device=y.device)] += (1 - smoothing) * class_weights[y]
    return targets


def _known_samples(x: Tensor, y: Tensor, num_classes: int, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return the validation samples of classes that are fitted, with their positions among these."""
    x = x.to(present.device)
    y = check_labelled("fit_linear", x, y, num_classes, ("val", "val"))
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
