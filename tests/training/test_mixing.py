"""Mixed images and the loss that fits, against soft targets written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

import transferkit as tk
from transferkit.classification import CrossEntropy
from transferkit.errors import DataError
from transferkit.loading.batches import Batch, TensorBatches
from transferkit.runtime import Execution
from transferkit.training.loop import PhaseTools, run_epoch
from transferkit.training.mixing import Mixing
from transferkit.training.optimizers import build_optimizer
from transferkit.training.schedules import build_scheduler

TRANSFORMS = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


def batch_of(device, count=8):
    images = torch.randn(count, 3, 12, 10, device=device)
    return Batch(images, torch.arange(count, device=device) % 3, np.arange(count))


def mixed_and_expected(kind, device, seed):
    """Mix a batch, and give the images and soft targets of torchvision for the same random numbers."""
    batch = batch_of(device)
    transform = TRANSFORMS[kind](alpha=0.7, num_classes=3)
    torch.manual_seed(seed)
    images, soft = transform(batch.inputs, batch.targets)
    mixing = Mixing(kind, 0.7)
    torch.manual_seed(seed)
    return (lambda criterion: mixing(batch, criterion)), images, soft


def soft_loss(logits, soft, smoothing, weights):
    """The cross entropy of soft targets, as a mean that is weighted by the targets' weights."""
    smoothed = (1 - smoothing) * soft + smoothing / soft.shape[1]
    return -(smoothed * weights * logits.log_softmax(1)).sum() / (soft * weights).sum()


@pytest.mark.parametrize("kind", TRANSFORMS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("smoothing", "weights"), [(0.0, None), (0.2, None), (0.0, WEIGHTS), (0.2, WEIGHTS)])
def test_images_and_loss_are_those_of_soft_targets(kind, seed, smoothing, weights, device):
    mix, images, soft = mixed_and_expected(kind, device, seed)
    mixed, criterion = mix(CrossEntropy(smoothing, weights).to(device))
    assert torch.equal(mixed.inputs, images)
    logits = torch.randn(8, 3, device=device)
    expected = soft_loss(
        logits, soft, smoothing, torch.ones(3, device=device) if weights is None else weights.to(device)
    )
    torch.testing.assert_close(criterion(logits, mixed.targets), expected, rtol=1e-5, atol=1e-6)
    if weights is None:
        plain = F.cross_entropy(logits, soft, label_smoothing=smoothing)
        torch.testing.assert_close(expected, plain, rtol=1e-5, atol=1e-6)
    # The accuracy counts the class with the larger share.
    picked = soft.gather(1, mixed.targets[:, None])[:, 0]
    assert (picked >= 0.5 - 1e-6).all()


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_shares_differ_from_step_to_step_and_the_batch_stays_as_it_was(kind, device):
    batch = batch_of(device)
    before = batch.inputs.clone()
    mixing = Mixing(kind, 1.0)
    seen = {tuple(mixing(batch, F.cross_entropy)[0].inputs[0].flatten().tolist()) for _ in range(5)}
    assert len(seen) > 1
    assert torch.equal(batch.inputs, before)
    assert mixing(batch, F.cross_entropy)[0].indices is batch.indices


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_the_channels_stay_last(kind, device):
    batch = batch_of(device)
    batch = batch._replace(inputs=batch.inputs.contiguous(memory_format=torch.channels_last))
    mixed, _ = Mixing(kind)(batch, F.cross_entropy)
    assert mixed.inputs.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_of_one_is_itself(device):
    batch = batch_of(device, 1)
    mixed, criterion = Mixing("mixup", 1.0)(batch, F.cross_entropy)
    torch.testing.assert_close(mixed.inputs, batch.inputs)
    logits = torch.randn(1, 3, device=device)
    torch.testing.assert_close(criterion(logits, mixed.targets), F.cross_entropy(logits, batch.targets))


def test_what_is_no_image_is_refused(device):
    batch = Batch(torch.randn(4, 7, device=device), torch.zeros(4, dtype=torch.int64), np.arange(4))
    with pytest.raises(DataError) as error:
        Mixing("mixup")(batch, F.cross_entropy)
    assert str(error.value) == (
        "Mixing takes images of shape [N, 3, H, W]. Got inputs of shape [4, 7] instead; "
        "train them without 'mix'."
    )


class Keeps(nn.Module):
    """A linear model that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 4 * 4, 2)
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach().clone())
        return self.fc(images.flatten(1))


def seen_in(device, *epochs, seed=0):
    phase = tk.Phase(epochs=9, lr=0.1, optimizer="sgd", schedule="constant", mix="mixup", mix_alpha=1.0)
    model = Keeps().to(device)
    images = torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    optimizer = build_optimizer(phase, [{"params": list(model.parameters()), "lr": 0.1}])
    tools = PhaseTools(
        module=model,
        train=TensorBatches(images, np.arange(12) % 2, device=device, batch_size=4),
        val=None,
        optimizer=optimizer,
        scheduler=build_scheduler(optimizer, phase, 3),
        criterion=CrossEntropy(),
        execution=Execution(str(device), "fp32", channels_last=False),
        mixing=Mixing(phase.mix, phase.mix_alpha),
    )
    for epoch in epochs:
        model.seen.clear()
        run_epoch(phase, tools, epoch=epoch, seed=seed)
    return torch.stack(model.seen)


def test_how_images_mix_follows_from_seed_epoch_and_step_alone(device):
    expected = seen_in(device, 2)
    torch.manual_seed(99)
    assert torch.equal(seen_in(device, 1, 2), expected)
    assert not torch.equal(seen_in(device, 1), expected)
    assert not torch.equal(seen_in(device, 2, seed=1), expected)


def test_a_phase_that_mixes_sees_images_and_not_stored_outputs(tiny_model, tiny_part):
    notes = []

    class Watch(tk.Callback):
        def phase_start(self, number, phase, note):
            notes.append(note)

    phase = tk.Phase(train=["body.0", "head"], mix="cutmix")
    trainer = tk.Trainer(tiny_model(), recipe=phase, callbacks=[Watch()], progress=False, precision="fp32")
    history = trainer.fit(tiny_part(24))
    assert notes[0].endswith("on images, plain: the images are mixed in each step")
    assert 0 <= history[0]["train_accuracy"] <= 1
