"""Newton's method for multinomial logistic regression, in torch, on the device of the features."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 4096  # samples that are in double precision at a time, so that the features as a whole never are
_MOST_STEPS = 100
_MOST_PRODUCTS = 1000
_LAST_ROUNDS = 3  # rounds of conjugate gradients by whose gain the rest is judged
_SHORTEST = 1e-6  # share of a Newton step
_TOLERANCE = 1e-6  # error of exact weights, relative to them
_NOISE = 1e-15  # what rounding leaves of a gradient in double precision
_ROUGH = 1e-4  # share of the loss that rough weights may be above the least


class WeightedSamples:
    """Features with soft targets, and the mean cross entropy of a linear classifier on them.

    Weights are ``[K, D + 1]``; the last column is the bias. Where classes and samples meet, classes
    come first, in which order the products are faster.

    Args:
        x: Features, float32 ``[N, D]``, best of mean 0 and a standard deviation near 1.
        targets: Probability of each class times the weight of the sample, float32 ``[K, N]``.
            A column of zeros leaves the sample out.
    """

    def __init__(self, x: Tensor, targets: Tensor) -> None:
        self.x = x
        self.targets = targets
        self.sample_weights = targets.sum(dim=0, dtype=torch.float64)
        self.total = float(self.sample_weights.sum())
        self.shares = (self.sample_weights / self.total).float()

    def evaluate(
        self, weights: Tensor, penalty: float, dtype: torch.dtype = torch.float64
    ) -> tuple[float, Tensor, Tensor]:
        """Return what is minimized, the mean loss plus ``penalty / 2`` times the squared weights.

        Args:
            weights: float64 ``[K, D + 1]``.
            penalty: Factor of the squared weights; the bias is not penalized.
            dtype: What products with the features are computed in.

        Returns:
            The value, its gradient, float64 ``[K, D + 1]``, and the probabilities, float32 ``[K, N]``.
        """
        value = torch.zeros((), dtype=torch.float64, device=self.x.device)
        gradient = torch.zeros_like(weights)
        probabilities = torch.empty_like(self.targets)
        rounded = weights.to(dtype)
        for start in range(0, len(self.x), _ROWS):
            part = slice(start, start + _ROWS)
            x, targets = self.x[part].to(dtype), self.targets[:, part]
            logits = torch.addmm(rounded[:, -1:], rounded[:, :-1], x.T)
            log_probabilities = logits.log_softmax(dim=0)
            value -= (targets * log_probabilities).sum(dtype=torch.float64)
            exact = log_probabilities.exp_()
            probabilities[:, part] = exact
            residuals = exact.mul_(self.sample_weights[part].to(dtype)).sub_(targets)
            gradient[:, :-1] += residuals @ x
            gradient[:, -1] += residuals.sum(dim=1)
        gradient /= self.total
        gradient[:, :-1] += penalty * weights[:, :-1]
        value = value / self.total + penalty / 2 * weights[:, :-1].square().sum()
        return float(value), gradient, probabilities

    def hessian_times(self, v: Tensor, probabilities: Tensor, penalty: float) -> Tensor:
        """Return the product of the Hessian and ``v``, both float32 ``[K, D + 1]``."""
        u = torch.addmm(v[:, -1:], v[:, :-1], self.x.T).mul_(probabilities)
        u = torch.addcmul(u, probabilities, u.sum(dim=0), value=-1).mul_(self.shares)
        return torch.cat([torch.addmm(v[:, :-1], u, self.x, beta=penalty), u.sum(dim=1)[:, None]], dim=1)

    def gram(self) -> Tensor:
        """Return the second moments of the features, float32 ``[D, D]``."""
        return (self.x * self.shares[:, None]).T @ self.x


class _Preconditioner:
    """An approximation of the Hessian that is cheap to invert: every class and sample alike.

    Source:
        Böhning (1992), Multinomial logistic regression algorithm,
        https://doi.org/10.1007/BF00048682: a multiple of the second moments bounds the Hessian.
    """

    def __init__(self, gram: Tensor, samples: WeightedSamples, probabilities: Tensor, penalty: float) -> None:
        variances = (probabilities * (1 - probabilities)) @ samples.shares
        self.curvature = max(float(variances.sum()) / max(len(variances) - 1, 1), 1e-6)
        bound = self.curvature * gram
        # The second term outweighs the rounding of the second moments, which must stay positive definite.
        bound.diagonal().add_(penalty + 1e-6 * float(bound.trace()))
        self.factor = torch.linalg.cholesky(bound)

    def solve(self, residual: Tensor) -> Tensor:
        weights = torch.cholesky_solve(residual[:, :-1].T, self.factor).T
        return torch.cat([weights, residual[:, -1:] / self.curvature], dim=1)


def _newton_step(
    samples: WeightedSamples,
    gradient: Tensor,
    probabilities: Tensor,
    penalty: float,
    preconditioner: _Preconditioner,
    error: float,
) -> Tensor:
    """Solve Hessian times step = -gradient by preconditioned conjugate gradients.

    ``error`` is how far the step may be from the exact one, relative to it, in the norm of the Hessian.
    """
    step = torch.zeros_like(gradient, dtype=torch.float32)
    # To add the same to every class changes no probability; there the Hessian has no curvature.
    gradient = gradient - gradient.mean(dim=0)
    scale = gradient.norm()
    if not scale > 0:
        return step.double()
    # Near the optimum the gradient itself would be too small for single precision.
    residual = (-gradient / scale).float()
    solved = preconditioner.solve(residual)
    direction, product = solved, (residual * solved).sum()
    gains: list[float] = []
    for _ in range(_MOST_PRODUCTS):
        curved = samples.hessian_times(direction, probabilities, penalty)
        curvature = (direction * curved).sum()
        length = product / curvature
        gains.append(float(length * product))
        if not gains[-1] > 0:  # rounding has the better of it
            break
        step += length * direction
        # What the last rounds have gained estimates what is still to be gained.
        if sum(gains[-_LAST_ROUNDS:]) <= error**2 * sum(gains):
            break
        residual -= length * curved
        solved = preconditioner.solve(residual)
        last, product = product, (residual * solved).sum()
        direction = solved + product / last * direction
    step = step.double() * scale
    return torch.sub(step, step.mean(dim=0))


@torch.no_grad()
def minimize(
    samples: WeightedSamples, penalty: float, start: Tensor, gram: Tensor, *, exact: bool
) -> tuple[Tensor, int, bool]:
    """Find the weights that minimize the penalized loss.

    Products with the Hessian are in single precision: they decide the way there, not where it ends.

    Args:
        samples: What the classifier is fitted to.
        penalty: Factor of half the squared weights beside the mean loss.
        start: Weights to start from, float64 ``[K, D + 1]``.
        gram: Second moments of the features or of similar ones, for speed alone.
        exact: Whether the weights must be right to six digits. Otherwise the gradient is in single
            precision too, and the way ends where a step would lower the loss by less than 0.01%.

    Returns:
        The weights, float64 ``[K, D + 1]``, how many steps were taken, and whether that is enough.
    """
    dtype, error = (torch.float64, 0.01) if exact else (torch.float32, 0.3)
    weights = start
    value, gradient, probabilities = samples.evaluate(weights, penalty, dtype)
    preconditioner = _Preconditioner(gram, samples, probabilities, penalty)
    for number in range(_MOST_STEPS):
        # The curvature is at least the penalty, which bounds how far the optimum can be.
        if exact and float(gradient.norm()) <= _TOLERANCE * penalty * float(weights.norm()) + _NOISE:
            return weights, number, True
        step = _newton_step(samples, gradient, probabilities, penalty, preconditioner, error)
        slope, length = float((gradient * step).sum()), 1.0
        if not exact and -slope <= _ROUGH * value:
            return weights + step, number + 1, True
        slack = torch.finfo(dtype).eps * (1 + abs(value))  # differences below it are rounding
        while True:
            trial = weights + length * step
            new_value, gradient, probabilities = samples.evaluate(trial, penalty, dtype)
            if new_value <= value + 1e-4 * length * slope + slack:
                break
            length /= 2
            if length < _SHORTEST:
                return weights, number, False
        weights, value = trial, new_value
    return weights, _MOST_STEPS, False
