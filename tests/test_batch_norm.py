"""Statistics of batch norm, measured anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

import transferkit as tk
from transferkit.errors import ArgumentError


def dark_images(count: int = 12) -> tk.Part:
    pixels = np.random.default_rng(0).integers(0, 40, (count, 32, 32, 3), dtype=np.uint8)
    return tk.Part(pixels, np.arange(count) % 2, ["a", "b"])


def test_the_statistics_are_those_that_torch_measures(device):
    part = dark_images()
    model = tk.load_backbone("mini", num_classes=2)
    reference = tk.load_backbone("mini", num_classes=2)
    reference.load_state_dict(model.state_dict())
    inputs = tk.spec_of(model).preprocessing.normalize(torch.from_numpy(part.sources).permute(0, 3, 1, 2))
    update_bn(DataLoader(TensorDataset(inputs), batch_size=12), reference)
    tk.adapt_batch_norm(model, part, batch_size=12, device=device, precision="fp32")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value.cpu(), reference.state_dict()[name], rtol=1e-4, atol=1e-5)
    moved = model.state_dict()["stem.0.norm.running_mean"].cpu()
    assert not torch.equal(moved, tk.load_backbone("mini").state_dict()["stem.0.norm.running_mean"])


def test_weights_modes_and_what_is_frozen_stay_as_they_were():
    model = tk.freeze(tk.load_backbone("mini", num_classes=2), except_="fc").train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    momenta = [getattr(module, "momentum", None) for module in model.modules()]
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    tk.adapt_batch_norm(model, dark_images())
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert [module.training for module in model.modules()] == modes
    assert [getattr(module, "momentum", None) for module in model.modules()] == momenta
    assert [value.requires_grad for value in model.parameters()] == [n.startswith("fc.") for n in before]
    assert any(not torch.equal(value, statistics[name]) for name, value in model.named_buffers())
    # Frozen modules still stay in inference mode.
    after = {name: value.clone() for name, value in model.named_buffers()}
    model.train()(torch.randn(4, 3, 32, 32))
    assert all(torch.equal(value, after[name]) for name, value in model.named_buffers())


def test_what_is_unfrozen_afterwards_has_the_mode_that_was_asked_for():
    model = tk.freeze(tk.load_backbone("mini", num_classes=2), except_="fc").train()
    tk.adapt_batch_norm(model, dark_images())
    assert all(module.training for module in tk.unfreeze(model).modules())


def test_images_are_drawn_by_the_seed():
    part = dark_images(40)

    def statistics(seed: int) -> torch.Tensor:
        model = tk.load_backbone("mini")
        tk.adapt_batch_norm(model, part, images=4, seed=seed, precision="fp32")
        return model.state_dict()["stem.0.norm.running_mean"]

    assert torch.equal(statistics(0), statistics(0))
    assert not torch.equal(statistics(0), statistics(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"images": 1},
            "The 'images' parameter of adapt_batch_norm must be an int of at least 2. Got 1 instead.",
        ),
        (
            {"data": torch.utils.data.TensorDataset(torch.zeros(4, 3, 32, 32), torch.zeros(4))},
            "The 'data' parameter of adapt_batch_norm must be images. Got tensors ready for a model instead.",
        ),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ArgumentError) as error:
        tk.adapt_batch_norm(**({"model": tk.load_backbone("mini"), "data": dark_images()} | arguments))
    assert str(error.value) == message


def test_a_model_without_batch_norm_is_refused(tiny_model):
    with pytest.raises(ArgumentError, match=r"must be a model with batch norm\. Got a TinyNet without any"):
        tk.adapt_batch_norm(tiny_model(norm=False), dark_images())
