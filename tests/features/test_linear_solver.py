"""A linear head is fitted to the optimum that scikit-learn finds, and regularized by what was held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch.nn import functional as F

from transferkit.errors import ArgumentError, DataError
from transferkit.features.linear_solver import STRENGTHS, fit_linear

USUAL = 0.0316


def blobs(count, width, classes, *, distance=0.3, seed=0):
    """Correlated features whose classes lie some distance apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    x = torch.randn(count, width, generator=generator)
    x = x @ torch.randn(width, width, generator=generator) * 0.3
    return x + distance * torch.randn(classes, width, generator=generator)[y], y


def with_useless_features(x):
    """Each feature twice, some three times, and a constant one."""
    return torch.cat([x, x, x[:, :3], torch.full((len(x), 1), 7.3)], dim=1)


def of_all_scales(x):
    return x * torch.logspace(-20, 20, x.shape[1])


CASES = {
    "two classes": blobs(200, 10, 2),
    "five classes": blobs(300, 20, 5),
    "separable": blobs(300, 20, 5, distance=5.0),
    "two classes, more features than samples": blobs(40, 100, 2),
    "four classes, more features than samples": blobs(40, 100, 4),
    "slightly fewer samples than features": blobs(80, 100, 4),
    "duplicate and constant features": (with_useless_features(blobs(200, 10, 3)[0]), blobs(200, 10, 3)[1]),
    "huge and tiny features": (of_all_scales(blobs(200, 10, 3)[0]), blobs(200, 10, 3)[1]),
    "one sample of each class": blobs(5, 20, 5),
    "more samples than a chunk": blobs(5000, 4, 3, distance=1.0),
}


def common_scale(x, kind):
    """Return mean and divisor of each feature, in numpy's double precision."""
    array = x.double().numpy()
    deviation = array.std(axis=0)
    varies = array.max(axis=0) > array.min(axis=0)
    scale = deviation if kind == "standard" else np.sqrt(deviation * deviation[varies].mean())
    return array.mean(axis=0), np.where(varies, scale, 1.0)


def reference(x, y, *, kind="standard", **options):
    """Return scikit-learn's classifier on scaled features, the features, and their mean and scale."""
    mean, scale = common_scale(x, kind)
    scaled = (x.double().numpy() - mean) / scale
    scaled[:, scaled.std(axis=0) < 1e-6] = 0
    model = LogisticRegression(tol=1e-10, max_iter=100_000, **options).fit(scaled, y.numpy())
    return model, scaled, mean, scale


def assert_same_optimum(fit, model, scaled, mean, scale, x):
    weight, bias = fit.weight.double().cpu().numpy(), fit.bias.double().cpu().numpy()
    inner, intercept = weight * scale, bias + weight @ mean
    if len(inner) == 2:
        inner, intercept = inner[1:] - inner[:1], intercept[1:] - intercept[:1]
    assert np.linalg.norm(inner - model.coef_) < 1e-5 * np.linalg.norm(model.coef_)
    np.testing.assert_allclose(intercept, model.intercept_, atol=1e-5 * (1 + np.linalg.norm(model.coef_)))
    probabilities = fit.logits(x).double().softmax(dim=1).cpu().numpy()
    np.testing.assert_allclose(probabilities, model.predict_proba(scaled), atol=1e-5)


@pytest.mark.parametrize("c", [0.001, 0.1, 100.0])
@pytest.mark.parametrize("case", CASES)
def test_the_optimum_is_scikit_learns(case, c, device):
    x, y = CASES[case]
    fit = fit_linear(x.to(device), y, int(y.max()) + 1, c=c, scaling="standard")
    assert fit.converged
    assert_same_optimum(fit, *reference(x, y, C=c), x.to(device))


@pytest.mark.parametrize("case", ["two classes", "five classes", "duplicate and constant features"])
def test_pareto_scaling_divides_by_the_mean_of_own_and_average_deviation(case, device):
    x, y = CASES[case]
    x = x * torch.logspace(-1, 1, x.shape[1])
    fit = fit_linear(x.to(device), y, int(y.max()) + 1, c=0.1)
    assert_same_optimum(fit, *reference(x, y, kind="pareto", C=0.1), x.to(device))


@pytest.mark.parametrize("classes", [2, 4])
def test_class_weights_are_scikit_learns(classes, device):
    x, _ = CASES["five classes"]
    y = (torch.arange(len(x)) % 11).clamp_max(classes - 1).flip(0)
    weights = len(y) / (classes * torch.bincount(y).float())
    fit = fit_linear(x.to(device), y, classes, c=0.5, class_weights=weights, scaling="standard")
    assert_same_optimum(fit, *reference(x, y, C=0.5, class_weight="balanced"), x.to(device))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_label_smoothing_is_that_of_torchs_loss(smoothing, classes, device):
    x, y = blobs(120, 8, classes)
    weights = torch.linspace(0.5, 2, classes)
    given = fit_linear(
        x.to(device), y, classes, c=0.3, class_weights=weights, label_smoothing=smoothing, scaling="standard"
    )
    mean, scale = (torch.from_numpy(each) for each in common_scale(x, "standard"))
    weight = (given.weight.cpu().double() * scale).requires_grad_()
    bias = (given.bias.cpu().double() + given.weight.cpu().double() @ mean).requires_grad_()
    logits = ((x.double() - mean) / scale) @ weight.T + bias
    losses = F.cross_entropy(logits, y, weights.double(), reduction="sum", label_smoothing=smoothing)
    squares = weight.square().sum() if classes > 2 else (weight[1] - weight[0]).square().sum()
    (0.3 * losses + squares / 2).backward()
    assert weight.grad.abs().max() < 1e-3 * weight.detach().norm()
    assert bias.grad.abs().max() < 1e-4


@pytest.mark.parametrize("c", [None, 10.0])
def test_an_absent_class_never_wins_and_changes_nothing(c, device):
    x, y = blobs(60, 6, 3)
    renamed = torch.tensor([0, 2, 4])[y]
    fit = fit_linear(x.to(device), renamed, 6, c=c)
    far = torch.cat([x, 1e6 * x, torch.zeros(1, 6)]).to(device)
    logits = fit.logits(far)
    assert logits.isfinite().all()
    assert set(logits.argmax(dim=1).tolist()) == {0, 2, 4}
    assert logits.softmax(dim=1)[:, [1, 3, 5]].max() < 1e-12
    alone = fit_linear(x.to(device), y, 3, c=c)
    assert torch.equal(fit.weight[[0, 2, 4]], alone.weight)
    assert torch.equal(fit.bias[[0, 2, 4]], alone.bias)


def test_a_class_of_weight_zero_is_as_if_absent(device):
    x, y = blobs(60, 6, 3)
    fit = fit_linear(x.to(device), y, 3, c=1.0, class_weights=torch.tensor([1.0, 0.0, 1.0]))
    kept = y != 1
    alone = fit_linear(x[kept].to(device), y[kept], 3, c=1.0)
    assert torch.equal(fit.weight, alone.weight)
    assert torch.equal(fit.bias, alone.bias)


def test_a_single_class_always_wins(device):
    x, _ = blobs(10, 4, 2)
    fit = fit_linear(x.to(device), torch.ones(10, dtype=torch.int64), 3)
    assert fit.logits(x.to(device)).argmax(dim=1).unique().tolist() == [1]


def held_out_losses(x, y, val, c):
    """Return the loss of each validation sample, as scikit-learn has it."""
    model, _, mean, scale = reference(x, y, kind="pareto", C=c)
    scaled = (val[0].double().numpy() - mean) / scale
    return -model.predict_log_proba(scaled)[np.arange(len(val[1])), val[1].numpy()]


@pytest.mark.parametrize(("seed", "noisy"), [(1, 20), (2, 200), (3, 2000)])
def test_strength_is_the_usual_one_unless_the_validation_part_says_otherwise(seed, noisy, device):
    x, y = blobs(1500 + noisy, 12, 3, distance=0.15, seed=seed)
    val = x[1500:], y[1500:]
    fit = fit_linear(x[:1500].to(device), y[:1500], 3, val=val)
    assert fit.reason == "loss on the validation part"
    losses = {c: held_out_losses(x[:1500], y[:1500], val, c) for c in fit.losses}
    for c, found in fit.losses.items():
        assert found == pytest.approx(losses[c].mean(), rel=2e-3)
    best = min(losses, key=lambda c: losses[c].mean())

    def clearly_worse(c):
        difference = losses[c] - losses[best]
        return difference.mean() > difference.std() / np.sqrt(len(difference))

    as_good = [c for c in losses if not clearly_worse(c)]
    assert fit.c == min(as_good, key=lambda c: abs(np.log(c / USUAL)))


def test_the_path_ends_after_two_clearly_worse_strengths():
    x, y = blobs(60, 30, 2, distance=0.1)
    val = blobs(3000, 30, 2, distance=0.1)
    fit = fit_linear(x, y, 2, val=(val[0], torch.randperm(3000) % 2))
    assert len(fit.losses) < len(STRENGTHS)
    *others, one_before, last = fit.losses.values()
    assert min(one_before, last) > min(others)


def test_weights_are_those_of_the_training_part_alone(device):
    x, y = blobs(90, 6, 3)
    fit = fit_linear(x[:60].to(device), y[:60], 3, val=(x[60:], y[60:]))
    plain = fit_linear(x[:60].to(device), y[:60], 3, c=fit.c)
    torch.testing.assert_close(fit.weight, plain.weight, rtol=1e-4, atol=1e-6)
    assert (plain.reason, dict(plain.losses)) == ("as given", {})


def test_validation_samples_of_unknown_classes_do_not_count():
    x, y = blobs(80, 6, 4)
    known = y[:60] != 3
    val_x, val_y = x[60:], y[60:]
    seen = val_y != 3
    one = fit_linear(x[:60][known], y[:60][known], 4, val=(val_x, val_y))
    other = fit_linear(x[:60][known], y[:60][known], 4, val=(val_x[seen], val_y[seen]))
    assert (one.c, one.losses, one.accuracies) == (other.c, other.losses, other.accuracies)
    with pytest.raises(DataError, match="no sample of a class that the training part has"):
        fit_linear(x[:60][known], y[:60][known], 4, val=(val_x[~seen], val_y[~seen]))


def test_folds_score_every_sample_while_it_is_held_out(device):
    x, y = blobs(60, 5, 3)
    fit = fit_linear(x.to(device), y, 3, c=[0.01, 0.1, 1.0], folds=3, seed=7)
    assert fit.reason == "loss over 3 folds"
    # Held-out losses are not those of the samples that the weights were fitted to.
    fitted = {c: fit_linear(x, y, 3, c=c).logits(x).softmax(dim=1).numpy() for c in fit.losses}
    for c, loss in fit.losses.items():
        assert loss > log_loss(y.numpy(), fitted[c])
        assert (fit.accuracies[c] * 60) == pytest.approx(round(fit.accuracies[c] * 60))


def test_views_of_an_image_stay_in_one_fold():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 60, generator=generator)
    labels = torch.randperm(40, generator=generator) % 2
    x = images.repeat(4, 1) + 0.01 * torch.randn(160, 60, generator=generator)
    y, groups = labels.repeat(4), torch.arange(40).repeat(4)
    honest = fit_linear(x, y, 2, c=[1.0, 2.0], groups=groups)
    leaking = fit_linear(x, y, 2, c=[1.0, 2.0])
    assert leaking.accuracies[1.0] == 1
    assert honest.accuracies[1.0] < 0.75


def test_small_classes_have_fewer_folds():
    x, y = blobs(40, 5, 2)
    y[:] = 0
    y[:3] = 1
    assert fit_linear(x, y, 2).reason == "loss over 3 folds"


@pytest.mark.parametrize(("strengths", "expected"), [(None, USUAL), ([0.001, 0.5, 8.0], 0.5)])
def test_a_class_of_one_sample_leaves_nothing_to_choose_on(strengths, expected):
    x, y = blobs(41, 5, 2)
    y[:] = 0
    y[5] = 1
    fit = fit_linear(x, y, 2, c=strengths)
    assert (fit.c, fit.reason, dict(fit.losses)) == (expected, "a class has a single sample", {})


def test_equal_losses_take_the_stronger():
    x, y = torch.zeros(20, 3), torch.arange(20) % 2
    fit = fit_linear(x, y, 2, c=[0.00316, 0.316])
    assert fit.losses[0.00316] == fit.losses[0.316]
    assert (fit.c, fit.converged) == (0.00316, True)
    assert torch.equal(fit.weight, torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_two_fits_are_the_same_to_the_bit_in_any_precision(dtype, device):
    x, y = blobs(60, 8, 3)
    first, second = (fit_linear(x.to(device, dtype), y, 3) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert first.weight.dtype == torch.float32
    assert first.weight.device == x.to(device).device
    assert first.c == second.c


def test_no_strength_gives_anything_but_finite_weights():
    x, y = blobs(60, 8, 3, distance=5.0)
    fit = fit_linear(x, y, 3, c=1e12)
    assert not fit.converged
    assert fit.weight.isfinite().all()
    assert (fit.logits(x).argmax(dim=1) == y).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["x", "val"])
def test_a_feature_that_is_not_finite_is_found(where, bad):
    x, y = blobs(20, 4, 2)
    broken = x.clone()
    broken[13, 2] = bad
    x, val = (broken, (x, y)) if where == "x" else (x, (broken, y))
    with pytest.raises(DataError) as caught:
        fit_linear(x, y, 2, val=val)
    expected = f"The '{where}' parameter of fit_linear must have finite features. "
    assert str(caught.value) == expected + "Got NaN or infinity in row 13 instead."


X, Y = blobs(20, 4, 2)
WRONG = {
    "x": ({"x": X[0]}, "'x' .* must be features: floats of shape .* Got 'torch.float32 of shape .4.'"),
    "no rows": ({"x": X[:0], "y": Y[:0]}, "'x' .* both at least 1"),
    "int features": ({"x": X.long()}, "'x' .* must be features: floats"),
    "y": ({"y": Y[:-1]}, "'y' .* must be class indices: ints, one for each row of features"),
    "float y": ({"y": Y.float()}, "'y' .* must be class indices: ints"),
    "high y": ({"y": Y + 1}, "'y' .* must be class indices from 0 to 1. Got 2 instead"),
    "low y": ({"y": Y - 1}, "'y' .* must be class indices from 0 to 1. Got -1 instead"),
    "c": ({"c": 0}, "'c' .* must be a positive float. Got 0 instead"),
    "no c": ({"c": []}, "'c' .* must be a positive float or several. Got .. instead"),
    "label_smoothing": ({"label_smoothing": 1}, "'label_smoothing' .* at least 0 and below 1"),
    "class_weights": ({"class_weights": torch.ones(3)}, "'class_weights' .* must be 2 finite floats"),
    "negative weight": ({"class_weights": torch.tensor([1.0, -1.0])}, "'class_weights' .* at least 0"),
    "no weight": (
        {"class_weights": torch.zeros(2)},
        "'class_weights' .* must be above 0 for a class of 'y'",
    ),
    "val": ({"val": (X[:, :3], Y)}, "'val' .* must be features of 4 columns, as 'x' has. Got '3 columns'"),
    "groups": ({"groups": Y[:3]}, "'groups' .* must be 20 ints, one for each row of 'x'"),
    "scaling": ({"scaling": "parato"}, "'scaling' .* one of 'pareto', 'standard'.*mean 'pareto'"),
    "folds": ({"folds": 1}, "'folds' .* must be an int of at least 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name):
    changes, message = WRONG[name]
    with pytest.raises(ArgumentError, match=message):
        fit_linear(**{"x": X, "y": Y, "num_classes": 2} | changes)
