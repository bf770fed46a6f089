"""How strongly to regularize a linear classifier, chosen on samples that it was not fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.features.newton import WeightedSamples, minimize
from transferkit.seeding import stream

# The inverse strength that is taken where held-out samples tell too little.
USUAL_C = 0.0316

_PATIENCE = 2  # clearly worse strengths in a row, after which the path ends


@dataclass(frozen=True)
class HeldOut:
    """Samples to fit to, samples to score on, and the class index of each of the latter."""

    fitted: WeightedSamples
    scored: WeightedSamples
    y: Tensor

    def score(self, weights: Tensor) -> tuple[Tensor, int]:
        """Return the loss of each scored sample times its weight, float64, and how many are right."""
        logits = torch.addmm(weights[:, -1:].float(), weights[:, :-1].float(), self.scored.x.T)
        losses = -(self.scored.targets * logits.double().log_softmax(dim=0)).sum(dim=0)
        return losses, int((logits.argmax(dim=0) == self.y).sum())


@dataclass(frozen=True)
class Choice:
    """A strength, weights to start the last fit from, and what was found on the way.

    Attributes:
        c: The inverse strength that was chosen.
        start: Weights of a fit at that strength, float64 ``[K, D + 1]``.
        losses: Mean loss on held-out samples at each strength that was tried.
        accuracies: Share of right held-out samples at each of them.
    """

    c: float
    start: Tensor
    losses: dict[float, float]
    accuracies: dict[float, float]


def penalty_of(c: float, samples: WeightedSamples) -> float:
    """Return the factor of half the squared weights beside the mean loss."""
    # In scikit-learn two classes share a row w; here they have -w/2 and w/2, whose squares are half of its.
    factor = 2.0 if len(samples.targets) == 2 else 1.0
    return factor / (c * samples.total)


def choose_strength(
    strengths: Sequence[float], held_out: Sequence[HeldOut], zero: Tensor, gram: Tensor
) -> Choice:
    """Choose among strengths by the loss on held-out samples.

    With few of them the lowest loss is chance. So of all strengths whose loss is within one
    standard error of it, the one nearest to ``USUAL_C`` is taken.

    Args:
        strengths: Inverse strengths, ascending. They are tried in this order, until two in a row
            are clearly worse than the best.
        held_out: The parts to fit to and to score on.
        zero: Weights to start from, float64 ``[K, D + 1]``.
        gram: Second moments of all samples.

    Source:
        Hastie, Tibshirani and Friedman (2009), The elements of statistical learning, section
        7.10, has the rule of one standard error; here it is that of the difference.
    """
    losses: dict[float, Tensor] = {}
    right: dict[float, int] = {}
    starts: dict[float, Tensor] = {}
    total = sum(each.scored.total for each in held_out)
    fits, moves = [zero] * len(held_out), [zero] * len(held_out)
    best, worse = strengths[0], 0
    for c in strengths:
        scores = []
        for number, each in enumerate(held_out):
            last = fits[number]
            # From the fit's own past alone: another fold's would know the samples held out of this one.
            penalty, start = penalty_of(c, each.fitted), last + moves[number]
            fits[number], _, _ = minimize(each.fitted, penalty, start, gram, exact=False)
            moves[number] = fits[number] - last
            scores.append(each.score(fits[number]))
        losses[c] = torch.cat([score[0] for score in scores])
        right[c] = sum(score[1] for score in scores)
        starts[c] = torch.stack(fits).mean(dim=0)
        if losses[c].sum() < losses[best].sum():
            best = c
        worse = worse + 1 if _clearly_more(losses[c], losses[best]) else 0
        if worse == _PATIENCE:
            break
    chosen = nearest_to_usual([c for c in losses if not _clearly_more(losses[c], losses[best])])
    return Choice(
        chosen,
        starts[chosen],
        {c: float(each.sum()) / total for c, each in losses.items()},
        {c: count / len(losses[c]) for c, count in right.items()},
    )


def nearest_to_usual(strengths: Sequence[float]) -> float:
    """Return the strength that is nearest to ``USUAL_C`` in proportion, the stronger of two.

    >>> nearest_to_usual([0.001, 0.01, 1.0])
    0.01
    """
    return min(sorted(strengths), key=lambda c: abs(math.log(c / USUAL_C)))


def _clearly_more(losses: Tensor, least: Tensor) -> bool:
    """Return whether losses are above others by more than the standard error of their difference."""
    differences = losses - least
    error = differences.std(correction=0) * math.sqrt(len(differences))
    return bool(differences.sum() > error)


def stratified_folds(
    samples: WeightedSamples, y: Tensor, members: npt.NDArray[np.int64], folds: int, seed: int
) -> list[HeldOut]:
    """Cut samples into stratified folds; into none where a class has a single member.

    Args:
        samples: What is cut.
        y: Class indices, int64 ``[N]``, in which every class is.
        members: A number for each sample; those with the same stay together.
        folds: Number of folds, or fewer where the smallest class has fewer members.
        seed: What the draw follows from.
    """
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
        HeldOut(
            # Targets of zeros leave samples out without a copy of the others.
            WeightedSamples(samples.x, samples.targets * (row_folds != number)),
            WeightedSamples(samples.x[row_folds == number], samples.targets[:, row_folds == number]),
            y[row_folds == number],
        )
        for number in range(folds)
    ]
