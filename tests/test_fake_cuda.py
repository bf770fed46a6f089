"""What runs on CUDA mixes no devices and waits for the device as often in a long epoch as in a short one.

A fake device stands in for one: see ``fake_cuda.py``. Its numbers are the CPU's, so results are too.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, FakeCudaTensor, fake_cuda, forget
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import transferkit as tk
from transferkit.errors import NonFiniteError
from transferkit.features.linear_solver import fit_linear
from transferkit.features.quick_probes import nearest_neighbours, ridge
from transferkit.training.optimizers import build_optimizer

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real CUDA device")

QUIET = {"progress": False, "seed": 3, "batch_size": 8}


@pytest.fixture
def cuda():
    with fake_cuda() as mode:
        yield mode


class SmallNet(nn.Module):
    """Two blocks, with a full, a pointwise and a depthwise convolution, and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(
            nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        )
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(8, 3)

    def forward(self, images):
        return self.fc(self.dropout(self.second(self.first(images)).mean(dim=(2, 3))))


def small_net():
    torch.manual_seed(0)
    return tk.attach_spec(SmallNet(), head="fc", preprocessing=tk.Preprocessing(size=8))


def fitted(part, val, phase, *, device="cpu", precision="fp32", model=None, **options):
    """Train a small backbone, and return it with its history."""
    model = small_net() if model is None else model
    trainer = tk.Trainer(
        model, recipe=phase, device=device, precision=precision, compile=False, **QUIET | options
    )
    history = trainer.fit(part, val)
    return model, history


def on_cpu(state):
    return {name: value.cpu() for name, value in state.items()}


def pixels_of(count, *, side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def part_of(count, *, side=8, name="train"):
    return tk.Part(pixels_of(count, side=side), np.arange(count) % 3, ["ant", "bee", "cat"], name=name)


# What the fake device itself is good for.


def test_the_fake_device_refuses_to_be_mixed_and_notes_who_waits(cuda):
    there, here = torch.ones(3, device=CUDA), torch.ones(3)
    assert isinstance(there, FakeCudaTensor)
    assert there.device == CUDA
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        there + here
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()
    assert cuda.waits == []
    here.to(CUDA, non_blocking=True)
    assert (there + torch.tensor(1.0)).sum().add_(1).ndim == 0
    assert cuda.waits == []
    for number, wait in enumerate((lambda: there.cpu(), lambda: here.to(CUDA), lambda: bool(there.sum() > 0),
                                   lambda: there[there > 0], lambda: there.sum().item())):  # fmt: skip
        wait()
        assert len(cuda.waits) > number
        del cuda.waits[number + 1 :]


# Training.

PHASES = {
    "plain": {},
    "accumulated": {"accumulate": 2},
    "clipped": {"clip_norm": 0.1},
    "smoothed and weighted": {"label_smoothing": 0.1, "class_weights": "balanced"},
    "mixup": {"mix": "mixup"},
    "cutmix": {"mix": "cutmix"},
    "averaged": {"ema": 0.9},
    "computed again": {"checkpoint_activations": True},
    "sgd": {"optimizer": "sgd", "freeze_batch_norm": True},
    "light": {"augmentation": "light"},
    "standard": {"augmentation": "standard"},
    "balanced": {"sampling": "balanced", "augmentation": "light"},
    "last stages": {"train": ("second", "head")},
    "head": {"train": "head"},
    "views": {"train": "head", "views": 2, "augmentation": "light"},
    "plateau": {"schedule": "plateau"},
}


# What the device computes once for each image is read as it comes.
_READ_AS_IT_COMES = "aten._to_copy.default in stored.py:_blocks"


IN_LOW_PRECISION = ("plain", "clipped", "averaged", "light", "last stages", "views")


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, "fp32") for name in PHASES]
    + [(name, precision) for precision in ("bf16", "fp16") for name in IN_LOW_PRECISION],
)
def test_no_step_waits_for_the_device(name, precision, cuda):
    waits = []
    for count in (16, 40):
        forget()
        cuda.waits.clear()
        phase = tk.Phase(epochs=2, **PHASES[name])  # on their way to the device, then kept there
        model, history = fitted(
            part_of(count), part_of(9, name="val"), phase, device=CUDA, precision=precision
        )
        waits.append(Counter(cuda.waits))
        assert {value.device for value in model.state_dict().values()} == {CUDA}
        assert len(history) == 2
    reads = [each.pop(_READ_AS_IT_COMES, 0) for each in waits]
    assert waits[0] == waits[1]
    assert reads == [0, 0] or reads[0] < reads[1]


@pytest.mark.parametrize("name", PHASES)
def test_what_is_trained_is_what_a_cpu_trains(name):
    phase, part, val = tk.Phase(epochs=2, **PHASES[name]), part_of(20), part_of(9, name="val")
    expected, its_history = fitted(part, val, phase)
    with fake_cuda():
        model, history = fitted(part, val, phase, device=CUDA)
        state = on_cpu(model.state_dict())
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5)
    for row, other in zip(history, its_history, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert row["val_accuracy"] == other["val_accuracy"]


def test_a_loader_that_is_torchs_own_is_not_waited_for(cuda):
    waits = []
    for count in (16, 48):
        cuda.waits.clear()
        data = TensorDataset(torch.randn(count, 3, 8, 8), torch.arange(count) % 3)
        fitted_to(DataLoader(data, batch_size=8, shuffle=True))
        waits.append(Counter(cuda.waits))
    assert waits[0] == waits[1]


def test_batches_that_are_on_the_device_already_are_not_waited_for(cuda):
    waits = []
    for count in (2, 6):
        images, labels = torch.randn(8, 3, 8, 8).to(CUDA), (torch.arange(8) % 3).to(CUDA)
        cuda.waits.clear()
        fitted_to([(images, labels)] * count)
        waits.append(Counter(cuda.waits))
    assert waits[0] == waits[1]


class Given:
    """A loader of the user's own."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def fitted_to(loader):
    loader = Given(loader) if isinstance(loader, list) else loader
    options = {"device": CUDA, "precision": "fp32", "compile": False}
    model, phase = small_net(), tk.Phase(epochs=2)
    tk.Trainer(model, recipe=phase, **options | QUIET).fit(loader)
    return model


def test_a_value_that_is_not_finite_is_told_at_the_end_of_the_epoch(cuda):
    images = torch.randn(24, 3, 8, 8)
    images[13] = torch.nan
    loader = DataLoader(TensorDataset(images, torch.arange(24) % 3), batch_size=8)
    with pytest.raises(NonFiniteError, match="epoch 1, step 2, samples 8, 9, 10, 11, 12, 13, 14, 15"):
        fitted_to(loader)


def test_an_interrupted_run_goes_on(tmp_path):
    part, val, phase = part_of(24), part_of(9, name="val"), tk.Phase(epochs=4, ema=0.9, optimizer="adamw")

    class Stop(tk.Callback):
        def epoch_end(self, row):
            if row["epoch"] == 2:
                raise KeyboardInterrupt

    with fake_cuda():
        whole, _ = fitted(part, val, phase, device=CUDA)
        run = tmp_path / "run"
        options = {"device": CUDA, "run_dir": run, "checkpoints": tk.Checkpoints(steps=1)}
        with pytest.raises(KeyboardInterrupt):
            fitted(part, val, phase, callbacks=[Stop()], **options)
        model = small_net()
        trainer = tk.Trainer(model, recipe=phase, precision="fp32", compile=False, **QUIET | options)
        trainer.fit(part, val, resume=True)
        expected, state = on_cpu(whole.state_dict()), on_cpu(model.state_dict())
        for key, value in expected.items():
            assert torch.equal(state[key], value), key
    # What is written can be read where there is no such device.
    again = tk.load_model(run, into=small_net())
    for key, value in again.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("images", [40, 100])
def test_the_largest_batch_is_looked_for(images, cuda):
    model, _ = fitted(part_of(images), None, tk.Phase(), device=CUDA, batch_size="auto")
    assert next(model.parameters()).device == CUDA


def test_gradients_have_the_strides_that_fused_kernels_want(cuda):
    """Autograd leaves those of sides of length 1 open, and CUDA's fused optimizers refuse other ones."""
    weight = torch.randn(4, 6, 1, 1).to(CUDA)
    weight = nn.Parameter(torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight))
    optimizer = build_optimizer(tk.Phase(), [{"params": [weight], "lr": 0.1}])
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(weight.grad))
    given = torch.randn(4, 6, 1, 1)
    weight.grad = given.to(CUDA)
    assert weight.grad.stride() == (6, 1, 1, 1)
    optimizer.step()
    assert seen[0].stride() == weight.stride() == (6, 1, 6, 6)
    assert torch.equal(seen[0].cpu(), given)


# Heads on features.


@pytest.mark.parametrize("views", [1, 2])
def test_a_solver_fits_the_head_that_a_cpu_fits(views):
    options = {} if views == 1 else {"views": views, "augmentation": "light"}
    phase = tk.Phase(train="head", solver="lbfgs", **options)

    def net():
        model = small_net()
        model.dropout.p = 0.0
        return model

    part, val = part_of(30), part_of(12, name="val")
    expected, _ = fitted(part, val, phase, model=net())
    with fake_cuda():
        model, history = fitted(part, val, phase, device=CUDA, model=net())
        weight = model.fc.weight.cpu()
    assert history[0]["c"] > 0
    torch.testing.assert_close(weight, expected.fc.weight, rtol=1e-4, atol=1e-5)


def test_solvers_and_quick_probes_run_where_the_features_are(cuda):
    x, y = torch.randn(60, 12), torch.arange(60) % 3
    for options in ({}, {"val": (x[:20], y[:20])}, {"class_weights": torch.tensor([1.0, 2.0, 0.0])}):
        expected, fit = fit_linear(x, y, 3, **options), fit_linear(x.to(CUDA), y, 3, **options)
        assert fit.weight.device == CUDA
        torch.testing.assert_close(fit.weight.cpu(), expected.weight, rtol=1e-5, atol=1e-6)
    few = fit_linear(x[:5].to(CUDA), y[:5], 3, c=1.0)
    assert few.logits(x[:5].to(CUDA)).device == CUDA
    for probe in (nearest_neighbours, ridge):
        expected, found = probe(x, y, x, y, 3), probe(x.to(CUDA), y, x, y, 3)
        torch.testing.assert_close(found.scores.cpu(), expected.scores, rtol=1e-5, atol=1e-5)
        assert found.accuracy == expected.accuracy


# Use.


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_prediction_and_features_are_those_of_a_cpu(precision):
    part, small = part_of(40), part_of(40, side=3)  # the latter are enlarged on the device
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if precision == "fp32" else {"rtol": 0.05, "atol": 0.05}

    def results(device):
        options = {"device": device, "precision": precision, "compile": False}
        model = small_net()
        found = {
            "report": tk.evaluate(model, part, **options).probabilities,
            "small": tk.evaluate(model, small, **options).probabilities,
            "features": tk.extract_features(model, part, **options).x,
            "prediction": tk.Predictor(model, **options).probabilities([*pixels_of(9)]),
            "adapted": tk.adapt_batch_norm(model, part, device=device, precision=precision)
            .first[1]
            .running_mean,
        }
        return {name: torch.as_tensor(value).cpu() for name, value in found.items()}

    expected = results("cpu")
    with fake_cuda():
        found = results(CUDA)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, name=name: name + text)


def test_maps_of_what_speaks_for_a_class(cuda):
    images = torch.randn(2, 3, 8, 8)
    heat = tk.grad_cam(small_net().to(CUDA), images.to(CUDA), [0, 2])
    assert heat.device == CUDA
    torch.testing.assert_close(heat.cpu(), tk.grad_cam(small_net(), images, [0, 2]))


def test_backbones_are_compared(cuda):
    splits = tk.Splits(part_of(30, side=32), None, part_of(12, side=32, name="test"), {})
    table = tk.probe_backbones(splits, ["mini"], device=CUDA, precision="fp32")
    expected = tk.probe_backbones(splits, ["mini"], device="cpu", precision="fp32")
    assert table.rows[0].logistic == expected.rows[0].logistic
    assert table.rows[0].ridge == expected.rows[0].ridge


# Augmentation.


@pytest.mark.parametrize("name", ["none", "light", "standard"])
def test_augmentation_waits_for_nothing(name, cuda):
    preset = tk.augmentation(name, tk.Preprocessing(size=12))
    side = preset.stored.size
    images = torch.randint(0, 256, (9, 3, side, side), dtype=torch.uint8)
    drawn = preset.draw(0, 1, np.arange(9))
    on_device = images.to(CUDA), drawn.to(CUDA)
    cuda.waits.clear()
    result = preset.apply(*on_device)
    assert cuda.waits == []
    assert result.device == CUDA
    assert int((result.cpu().int() - preset.apply(images, drawn).int()).abs().max()) <= 1


def test_the_strong_augmentation_mixes_no_devices(cuda):
    preset = tk.augmentation("strong", tk.Preprocessing(size=12))
    side = preset.stored.size
    images = torch.randint(0, 256, (60, 3, side, side), dtype=torch.uint8)
    drawn = preset.draw(0, 1, np.arange(60))
    result = preset.apply(images.to(CUDA), drawn.to(CUDA))
    assert result.device == CUDA
    assert int((result.cpu().int() - preset.apply(images, drawn).int()).abs().max()) <= 1
