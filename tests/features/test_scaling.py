"""Features come to a common scale, and weights back from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from transferkit.features.scaling import SCALINGS, FeatureScaling, span_basis


def features(count=5000, width=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, width, generator=generator) * torch.logspace(-3, 3, width) + 2


def test_standard_is_scikit_learns(device):
    x = features()
    scaled = FeatureScaling(x.to(device), "standard").apply(x.to(device))
    expected = StandardScaler().fit_transform(x.double().numpy())
    np.testing.assert_allclose(scaled.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_pareto_keeps_half_of_the_difference_in_scale(device):
    x = features()
    deviations = FeatureScaling(x.to(device), "pareto").apply(x.to(device)).std(dim=0, correction=0).cpu()
    own = x.double().std(dim=0, correction=0)
    torch.testing.assert_close(deviations.double(), (own / own.mean()).sqrt(), rtol=1e-5, atol=0)
    assert float(deviations.square().mean()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("kind", SCALINGS)
def test_what_does_not_vary_becomes_zero_wherever_it_is_met(kind, device):
    x = torch.cat([features(50), torch.full((50, 1), 0.1), torch.zeros(50, 1)], dim=1).to(device)
    scaling = FeatureScaling(x, kind)
    assert (scaling.apply(1000 * x + 3)[:, -2:] == 0).all()
    weight, bias = scaling.undo(
        torch.ones(2, 8, dtype=torch.float64, device=device), torch.zeros(2).to(device)
    )
    assert (weight[:, -2:] == 0).all()
    assert bias.isfinite().all()
    assert FeatureScaling(x[:, -2:], kind).apply(x[:, -2:]).tolist() == [[0.0, 0.0]] * 50


@pytest.mark.parametrize("kind", SCALINGS)
def test_weights_that_come_back_give_the_same_scores(kind, device):
    x = features(40).to(device)
    scaling = FeatureScaling(x, kind)
    weight = torch.randn(3, 6, dtype=torch.float64).to(device)
    bias = torch.randn(3, dtype=torch.float64).to(device)
    plain_weight, plain_bias = scaling.undo(weight, bias)
    expected = scaling.apply(x).double() @ weight.T + bias
    torch.testing.assert_close((x @ plain_weight.T + plain_bias).double(), expected, rtol=1e-3, atol=1e-3)


def test_few_samples_lie_in_the_span_of_their_basis(device):
    x = features(10, 30).to(device)
    basis = span_basis(x)
    assert basis.shape == (30, 10)
    torch.testing.assert_close(x.double() @ basis @ basis.T, x.double())
    assert span_basis(features(16, 30)) is None
