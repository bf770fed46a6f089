"""The largest batch follows from memory, and looking for it changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import transferkit as tk
from transferkit.errors import ArgumentError
from transferkit.runtime import Execution
from transferkit.training import batch_size
from transferkit.training.batch_size import _go_through, largest_batch_size, largest_that_passes

SHAPE = (3, 2, 2)
FP32 = Execution("cpu", "fp32", channels_last=False)


def wide(units=1000):
    """Keeps the output of the ReLU for going backward: ``units`` numbers an image, and little else."""
    return nn.Sequential(nn.Flatten(), nn.Linear(12, units), nn.ReLU(), nn.Linear(units, 2))


@pytest.fixture
def memory(monkeypatch):
    """Sets the bytes that seem to be available."""

    def available(count):
        monkeypatch.setattr(batch_size, "available_memory", lambda: int(count))

    available(1e12)
    return available


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (1, 1),
        (3, 2),
        (8, 8),
        (63, 8),
        (127, 8),
        (128, 16),
        (1000, 64),
        (4095, 256),
        (4096, 512),
        (10**6, 512),
    ],
)
def test_an_epoch_keeps_eight_steps(memory, images, expected):
    assert largest_batch_size(wide(), SHAPE, FP32, images=images) == expected


@pytest.mark.parametrize(
    ("precision", "bytes_each", "size"), [("fp32", 4, 1), ("fp32", 4, 64), ("bf16", 2, 64), ("bf16", 2, 512)]
)
def test_twice_what_is_kept_fits_in_half_of_the_memory(memory, precision, bytes_each, size):
    execution = Execution("cpu", precision, channels_last=False)
    kept = 1000 * bytes_each * size
    memory(4 * kept * 1.1)
    assert largest_batch_size(wide(), SHAPE, execution, images=10**6) == size
    if size > 1:
        memory(4 * kept * 0.9)
        assert largest_batch_size(wide(), SHAPE, execution, images=10**6) == size // 2


def test_frozen_modules_keep_nothing(memory):
    body = [each for _ in range(8) for each in (nn.Conv2d(3, 3, 1), nn.ReLU())]
    model = nn.Sequential(*body, wide(10))
    memory(4 * 8 * 8 * (3 * 2 * 2 * 4))
    whole = largest_batch_size(model, SHAPE, FP32, images=10**6)
    for module in body:
        module.requires_grad_(False)
    assert largest_batch_size(model, SHAPE, FP32, images=10**6) > whole


def test_two_outputs_of_what_is_frozen_fit_in_half_of_the_memory(memory):
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(12, 1000), nn.Linear(1000, 4)).requires_grad_(False)
    memory(2 * 2 * 4 * 1000 * 8 * 1.1)
    assert largest_batch_size(nn.Sequential(frozen, nn.Linear(4, 2)), SHAPE, FP32, images=10**6) == 8


def test_not_even_one_image(memory):
    memory(1000)
    with pytest.raises(ArgumentError) as caught:
        largest_batch_size(wide(), SHAPE, FP32, images=100)
    assert str(caught.value) == (
        "Not even one image of 3 x 2 x 2 fits into the memory of cpu while this Sequential trains; "
        "take a smaller 'image_size' or another device, or freeze more."
    )


class Limited(nn.Module):
    """Exhausts the memory with more than so many images."""

    def __init__(self, most):
        super().__init__()
        self.most, self.tried = most, []
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(16, 2)
        )

    def forward(self, images):
        self.tried.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("the test says so")
        return self.layers(images)


@pytest.mark.parametrize(
    ("fits", "most", "expected", "tried"),
    [
        (100, 512, 64, [2, 4, 8, 16, 32, 64, 128]),
        (100, 20, 16, [2, 4, 8, 16]),
        (2, 512, 2, [2, 4]),
        (1, 512, 1, [2, 1]),
        (0, 512, 0, [2, 1]),
        (5, 1, 1, [1]),
        (0, 1, 0, [1]),
    ],
)
def test_batches_double_until_the_memory_is_exhausted(device, fits, most, expected, tried):
    model = Limited(fits).to(device)
    execution = Execution(str(device), "fp32", channels_last=True)
    assert largest_that_passes(lambda size: _go_through(model, SHAPE, size, execution), most) == expected
    assert model.tried == tried
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def broken(size):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        largest_that_passes(broken, 8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 4),
        ("GET was unable to find an engine to execute this computation", 4),
    ],
)
def test_nvidias_libraries_say_in_words_of_their_own_that_memory_is_exhausted(text, expected):
    def attempt(size, largest=4):
        if size > largest:
            raise RuntimeError(text)

    assert largest_that_passes(attempt, 512) == expected


def test_where_no_batch_has_a_kernel_memory_is_not_blamed():
    def attempt(size):
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    with pytest.raises(RuntimeError, match="unable to find an engine"):
        largest_that_passes(attempt, 512)


def test_a_model_whose_norm_refuses_a_single_image(memory, device):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(device)
    execution = Execution(str(device), "fp32", channels_last=False)
    assert largest_batch_size(model, SHAPE, execution, images=64) == 8


def test_nothing_is_changed(memory, device):
    model = Limited(10**6).to(device)
    tk.freeze(model, except_=("layers.1.*", "layers.4.*"))
    model.train()
    model.layers[2].eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model)
    gradients = [parameter.grad for parameter in model.parameters()]
    torch.manual_seed(7)
    expected = torch.rand(3, device=device)
    torch.manual_seed(7)
    execution = Execution(str(device), "fp32", channels_last=False)
    assert largest_batch_size(model, SHAPE, execution, images=128) == 16
    assert torch.equal(torch.rand(3, device=device), expected)
    assert model.tried
    for mine, other in zip(model.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    for parameter, other, gradient in zip(model.parameters(), before.parameters(), gradients, strict=True):
        assert parameter.requires_grad == other.requires_grad
        assert parameter.grad is gradient
        assert gradient is None or bool((gradient == 1).all())
    modes = [module.training for module in model.modules()]
    assert modes == [module.training for module in before.modules()]
