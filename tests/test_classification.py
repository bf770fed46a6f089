"""Loss and metrics against torch and scikit-learn."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from torchvision.models import GoogLeNetOutputs, InceptionOutputs

from transferkit.classification import CrossEntropy, class_weights_of, count_correct, logits_of, loss_of
from transferkit.errors import ArgumentError, DataError


def test_balanced_weights_are_scikit_learns():
    targets = np.array([0] * 7 + [1] * 2 + [2] * 11)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    np.testing.assert_allclose(class_weights_of("balanced", targets, 3).numpy(), expected, rtol=1e-6)


def test_a_class_without_images_weighs_nothing():
    assert class_weights_of("balanced", np.array([0, 0, 2]), 3).tolist() == [0.75, 0.0, 1.5]


@pytest.mark.parametrize("bad", ["equal", [1.0], [1.0, -1.0], [1.0, 2.0, 3.0]])
def test_bad_weights_are_refused(bad):
    with pytest.raises(ArgumentError, match=r"^The 'class_weights' parameter of Phase must be"):
        class_weights_of(bad, np.array([0, 1]), 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_beyond_the_outputs_is_named(smoothing):
    with pytest.raises(DataError, match=r"below 3, the number .* Got 7 for sample 1 of a batch instead"):
        CrossEntropy(smoothing)(torch.randn(3, 3), torch.tensor([0, 7, 2]))


def test_the_loss_is_torchs_in_float32(device):
    logits, targets = torch.randn(5, 3, device=device), torch.tensor([0, 1, 2, 0, 1], device=device)
    weights = torch.tensor([1.0, 2.0, 0.5])
    loss = CrossEntropy(0.1, weights).to(device)(logits.bfloat16(), targets)
    expected = F.cross_entropy(logits.bfloat16().float(), targets, weights.to(device), label_smoothing=0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_correct_predictions_are_counted(device):
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]], device=device)
    assert int(count_correct(logits, torch.tensor([0, 1, 1], device=device))) == 2


def test_logits_come_as_a_tensor_or_in_a_record():
    logits = torch.zeros(2, 3)
    assert logits_of(logits) is logits
    assert logits_of(SimpleNamespace(logits=logits, aux=None)) is logits


@pytest.mark.parametrize(
    "bad", [torch.zeros(3), torch.zeros(2, 3, 4, 4), (torch.zeros(2, 3),), {"x": 1}, None]
)
def test_anything_else_is_refused(bad):
    with pytest.raises(ArgumentError, match=r"^A classifier must return logits of shape \[N, C\]"):
        logits_of(bad)


def test_the_losses_of_auxiliary_classifiers_are_added_by_their_weights():
    logits, first, second = (torch.randn(4, 3, requires_grad=True) for _ in range(3))
    targets = torch.tensor([0, 2, 1, 1])
    alone, one, two = (F.cross_entropy(each, targets) for each in (logits, first, second))
    inception = InceptionOutputs(logits, first)
    googlenet = GoogLeNetOutputs(logits, second, first)
    torch.testing.assert_close(loss_of(inception, targets, F.cross_entropy), alone + 0.4 * one)
    torch.testing.assert_close(loss_of(googlenet, targets, F.cross_entropy), alone + 0.3 * one + 0.3 * two)
    assert torch.equal(loss_of(logits, targets, F.cross_entropy), alone)


def test_an_auxiliary_classifier_that_cannot_train_anything_adds_nothing():
    logits, targets = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 2, 1, 1])
    output = InceptionOutputs(logits, torch.randn(4, 3))
    assert torch.equal(loss_of(output, targets, F.cross_entropy), F.cross_entropy(logits, targets))
    assert torch.equal(
        loss_of(InceptionOutputs(logits, None), targets, F.cross_entropy), F.cross_entropy(logits, targets)
    )


def test_the_loss_of_all_classifiers_is_computed_in_float32():
    logits, auxiliary = (torch.randn(4, 3, requires_grad=True).bfloat16() for _ in range(2))
    targets = torch.tensor([0, 2, 1, 1])
    expected = F.cross_entropy(logits.float(), targets) + 0.4 * F.cross_entropy(auxiliary.float(), targets)
    loss = loss_of(InceptionOutputs(logits, auxiliary), targets, F.cross_entropy)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
