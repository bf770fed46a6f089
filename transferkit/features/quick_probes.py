"""How well simple classifiers tell the classes from features, without a choice to make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from transferkit.checks import check_int, check_positive, require
from transferkit.features.labelled import check_labelled
from transferkit.features.scaling import FeatureScaling, span_basis

# Penalties that ridge regression tries, two in each decade.
_PENALTIES = torch.logspace(-1, 6, 15, dtype=torch.float64)
_ROWS = 1024  # rows that are compared or are in double precision at a time


@dataclass(frozen=True, eq=False)
class QuickProbe:
    """What a simple classifier says of test samples.

    Attributes:
        scores: Score of each class for each sample, float32 ``[M, C]``.
        accuracy: Share of samples whose highest score is that of their class.
        setting: What was set or chosen, in a few words.
    """

    scores: Tensor
    accuracy: float
    setting: str


@torch.no_grad()
def nearest_neighbours(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    num_classes: int,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> QuickProbe:
    """Let the nearest samples vote, each with the exponential of its cosine similarity.

    Args:
        x: Features, shape ``[N, D]``.
        y: Class indices, shape ``[N]``.
        x_test: Features to classify, shape ``[M, D]``.
        y_test: Their class indices, shape ``[M]``.
        num_classes: Number of classes ``C``.
        k: How many samples vote, at most all.
        temperature: What similarities are divided by; the smaller it is, the more the nearest count.

    Returns:
        Shares of the vote as scores.

    Raises:
        DataError: A feature is NaN or infinite.
        ArgumentError: A shape or value makes no sense.

    Source:
        Wu et al. (2018), https://arxiv.org/abs/1805.01978, section 3.4; k and temperature are
        those with which Caron et al. (2021), https://arxiv.org/abs/2104.14294, evaluate.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> nearest_neighbours(x, torch.tensor([0, 1]), x, torch.tensor([0, 1]), 2).accuracy
    1.0
    """
    owner = "nearest_neighbours"
    k = min(check_int(owner, "k", k, 1), len(x))
    check_positive(owner, "temperature", temperature)
    y, y_test = _checked(owner, x, y, x_test, y_test, num_classes)
    known = F.normalize(x.float(), dim=1)
    scores = torch.zeros(len(x_test), num_classes, dtype=torch.float32, device=x.device)
    for start in range(0, len(x_test), _ROWS):
        rows = F.normalize(x_test[start : start + _ROWS].to(x.device).float(), dim=1)
        similarities, nearest = (rows @ known.T).topk(k, dim=1)
        votes = (similarities / temperature).softmax(dim=1)
        scores[start : start + _ROWS].scatter_add_(1, y[nearest], votes)
    return _scored(scores, y_test, f"k {k}")


@torch.no_grad()
def ridge(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, num_classes: int) -> QuickProbe:
    """Regress 1 for the class and -1 for the others on the features, with squared weights penalized.

    The penalty is the one of 15 with which each training sample is best predicted from the others
    (squared error), which takes no refitting. It is scikit-learn's ``RidgeClassifierCV`` on
    features that ``FeatureScaling`` has put on a common scale.

    Args:
        x: Features, shape ``[N, D]``.
        y: Class indices, shape ``[N]``.
        x_test: Features to classify, shape ``[M, D]``.
        y_test: Their class indices, shape ``[M]``.
        num_classes: Number of classes ``C``; one without samples never wins.

    Raises:
        DataError: A feature is NaN or infinite.
        ArgumentError: A shape or value makes no sense.

    Source:
        Golub, Heath and Wahba (1979), Generalized cross-validation as a method for choosing a good
        ridge parameter, https://doi.org/10.1080/00401706.1979.10489751, equation 1.3.

    >>> x = torch.tensor([[0.0], [1.0], [8.0], [9.0]])
    >>> ridge(x, torch.tensor([0, 0, 1, 1]), torch.tensor([[2.0]]), torch.tensor([0]), 2).accuracy
    1.0
    """
    y, y_test = _checked("ridge", x, y, x_test, y_test, num_classes)
    scaling = FeatureScaling(x, "pareto")
    features, test = scaling.apply(x), scaling.apply(x_test.to(x.device))
    basis = span_basis(features)
    if basis is not None:
        features, test = features.double() @ basis, test.double() @ basis
    penalties = _PENALTIES.to(x.device)
    signs = 2 * F.one_hot(y, num_classes).double() - 1
    offset = signs.mean(dim=0)
    centered = signs - offset
    width = features.shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64, device=x.device)
    moments = torch.zeros(width, num_classes, dtype=torch.float64, device=x.device)
    for part, target in _pieces(features, centered):
        gram += part.T @ part
        moments += part.T @ target
    values, vectors = torch.linalg.eigh(gram)
    inverse = 1 / (values.clamp_min(0)[:, None] + penalties)
    moments = vectors.T @ moments
    errors = torch.zeros_like(penalties)
    for part, target in _pieces(features, centered):
        rotated = part @ vectors
        leverage = rotated.square() @ inverse + 1 / len(x)
        for number in range(len(penalties)):
            residual = target - rotated @ (inverse[:, number, None] * moments)
            errors[number] += (residual / (1 - leverage[:, number, None])).square().sum()
    # Of equal errors the larger penalty.
    best = len(penalties) - 1 - int(errors.flip(0).argmin())
    coefficients = vectors @ (inverse[:, best, None] * moments)
    scores = (test.double() @ coefficients + offset).float()
    scores[:, torch.bincount(y, minlength=num_classes) == 0] = -torch.inf
    return _scored(scores, y_test, f"penalty {float(penalties[best]):.3g}")


def _checked(
    owner: str, x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    check_int(owner, "num_classes", num_classes, 1)
    y = check_labelled(owner, x, y, num_classes)
    y_test = check_labelled(owner, x_test, y_test, num_classes, ("x_test", "y_test")).to(x.device)
    wanted, width = f"of {x.shape[1]} columns, as 'x' is", x_test.shape[1]
    require(width == x.shape[1], owner, "x_test", wanted, f"{width} columns")
    return y, y_test


def _pieces(features: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Give features in double precision, some at a time, each with its targets."""
    for start in range(0, len(features), _ROWS):
        yield features[start : start + _ROWS].double(), targets[start : start + _ROWS]


def _scored(scores: Tensor, y: Tensor, setting: str) -> QuickProbe:
    return QuickProbe(scores, int((scores.argmax(dim=1) == y).sum()) / len(y), setting)
