"""The quick probes say what scikit-learn's classifiers say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier

from transferkit.errors import ArgumentError, DataError
from transferkit.features.quick_probes import nearest_neighbours, ridge


def samples(count, width, classes, *, distance=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    x = torch.randn(count, width, generator=generator)
    return x + distance * torch.randn(classes, width, generator=generator)[y], y


@pytest.mark.parametrize(("count", "k"), [(60, 1), (60, 7), (5, 20)])
def test_neighbours_vote_as_in_scikit_learn(count, k, device):
    x, y = samples(count + 1500, 6, 3)
    known, new = x[:count], x[count:]
    probe = nearest_neighbours(known.to(device), y[:count], new, y[count:], 3, k=k, temperature=0.5)
    reference = KNeighborsClassifier(
        min(k, count), metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.5)
    ).fit(known.double().numpy(), y[:count].numpy())
    np.testing.assert_allclose(probe.scores.cpu(), reference.predict_proba(new.double().numpy()), atol=1e-5)
    assert probe.accuracy == pytest.approx(reference.score(new.double().numpy(), y[count:].numpy()), abs=1e-9)
    assert probe.setting == f"k {min(k, count)}"


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("count", "width"), [(200, 8), (40, 100), (80, 100)])
def test_ridge_is_scikit_learns_with_its_penalty(count, width, classes, device):
    x, y = samples(count + 50, width, classes, distance=0.5)
    probe = ridge(x[:count].to(device), y[:count], x[count:], y[count:], classes)
    array = x.double().numpy()
    mean, deviation = array[:count].mean(axis=0), array[:count].std(axis=0)
    array = (array - mean) / np.sqrt(deviation * deviation.mean())
    reference = RidgeClassifierCV(alphas=np.logspace(-1, 6, 15)).fit(array[:count], y[:count].numpy())
    expected = reference.decision_function(array[count:])
    scores = probe.scores.cpu().numpy()
    np.testing.assert_allclose(scores[:, 1] if classes == 2 else scores, expected, atol=1e-5)
    assert probe.setting == f"penalty {reference.alpha_:.3g}"
    assert probe.accuracy == reference.score(array[count:], y[count:].numpy())


def test_ridge_bears_more_samples_than_it_takes_at_once():
    x, y = samples(2500, 5, 3)
    array = x.double().numpy()
    deviation = array.std(axis=0)
    array = (array - array.mean(axis=0)) / np.sqrt(deviation * deviation.mean())
    reference = RidgeClassifierCV(alphas=np.logspace(-1, 6, 15)).fit(array, y.numpy())
    scores = ridge(x, y, x, y, 3).scores
    np.testing.assert_allclose(scores, reference.decision_function(array), atol=1e-5)


@pytest.mark.parametrize("probe", [nearest_neighbours, ridge])
def test_an_absent_class_never_wins(probe, device):
    x, y = samples(40, 5, 2)
    y = torch.tensor([1, 3])[y]
    found = probe(x.to(device), y, 1000 * x, y, 5)
    assert set(found.scores.argmax(dim=1).tolist()) <= {1, 3}


@pytest.mark.parametrize("probe", [nearest_neighbours, ridge])
def test_constant_features_say_nothing_but_do_no_harm(probe):
    x, y = samples(40, 5, 2, distance=3.0)
    x = torch.cat([x, torch.zeros(40, 2)], dim=1)
    assert probe(x, y, x, y, 2).accuracy > 0.9
    assert (
        probe(torch.zeros(6, 2), torch.arange(6) % 2, torch.zeros(6, 2), torch.arange(6) % 2, 2).accuracy
        == 0.5
    )


@pytest.mark.parametrize("probe", [nearest_neighbours, ridge])
def test_wrong_features_are_named(probe):
    x, y = samples(12, 5, 2)
    broken = x.clone()
    broken[4, 1] = torch.nan
    with pytest.raises(DataError, match=f"'x_test' parameter of {probe.__name__} must have finite .* row 4"):
        probe(x, y, broken, y, 2)
    with pytest.raises(ArgumentError, match=r"'x_test' .* must be of 5 columns, as 'x' is. Got '4 columns'"):
        probe(x, y, x[:, :4], y, 2)
    with pytest.raises(ArgumentError, match=r"'y' .* must be class indices from 0 to 0. Got 1 instead"):
        probe(x, y, x, y, 1)
