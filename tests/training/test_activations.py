"""Blocks that are computed again going backward: the same numbers, less memory."""

from __future__ import annotations

import contextlib
import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import transferkit as tk
from transferkit.errors import ArgumentError
from transferkit.training.activations import blocks_of, computed_again


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Dropout(0.3), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width, momentum=None),
        )  # fmt: skip

    def forward(self, inputs, *, scale=1.0):
        return F.relu(inputs + scale * self.layers(inputs))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Sequential(Block(8), Block(8))
        self.second = Block(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, images):
        return self.fc(self.second(self.first(self.stem(images)), scale=0.5).mean((2, 3)))


def net():
    torch.manual_seed(0)
    return tk.attach_spec(
        Net(),
        head="fc",
        preprocessing=tk.Preprocessing(size=8),
        stages=[("stem", ["stem"]), ("first", ["first"]), ("second", ["second"])],
    )


def kept_bytes(model, images, blocks=()):
    """Return what autograd keeps for the backward pass, the inputs of the blocks included."""
    kept = {}

    def pack(value):
        storage = value.untyped_storage()
        kept[storage.data_ptr()] = storage  # which keeps its place from being used again
        return value

    def keep_input(_, given):
        pack(given[0])

    handles = [block.register_forward_pre_hook(keep_input) for block in blocks]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), computed_again(blocks):
        model(images).sum()
    for handle in handles:
        handle.remove()
    return sum(storage.nbytes() for storage in kept.values())


def test_blocks_are_modules_of_several_layers_in_order():
    model = net()
    assert blocks_of(model) == [model.first[0], model.first[1], model.second]
    assert blocks_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 2))) == []


def trained(model, blocks, device, steps=3):
    """Take some steps and return all gradients on the way, and what the model holds in the end."""
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gradients = []
    for step in range(steps):
        torch.manual_seed(step)
        images = torch.randn(4, 3, 8, 8).to(device)
        with computed_again(blocks):
            loss = F.cross_entropy(model(images), torch.tensor([0, 1, 2, 0], device=device))
            loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        optimizer.step()
        optimizer.zero_grad()
    return gradients, model.state_dict()


def test_gradients_statistics_and_random_numbers_are_the_same_to_the_bit():
    plain, again = net(), net()
    expected, state = trained(plain, [], "cpu")
    gradients, other = trained(again, blocks_of(again), "cpu")
    assert all(
        torch.equal(a, b)
        for one, two in zip(expected, gradients, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    assert other["second.layers.1.num_batches_tracked"] == 3


def test_gradients_are_the_same_under_autocast(device):
    with torch.autocast(device.type, torch.bfloat16):
        expected, _ = trained(net(), [], device, 1)
        again = net()
        gradients, _ = trained(again, blocks_of(again), device, 1)
    for one, two in zip(expected[0], gradients[0], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3)


def test_frozen_norms_within_a_block_stay(device):
    model = net()
    tk.freeze(model, except_=lambda name, parameter: parameter.ndim > 1)
    before = copy.deepcopy(model.state_dict())
    trained_model = model.to(device).train()
    with computed_again(blocks_of(model)):
        trained_model(torch.randn(4, 3, 8, 8, device=device)).sum().backward()
    assert all(torch.equal(value.cpu(), before[name]) for name, value in model.state_dict().items())
    assert model.first[0].layers[0].weight.grad is not None


def test_less_is_kept_for_the_backward_pass():
    model = net().train()
    images = torch.randn(8, 3, 32, 32)
    whole, less = kept_bytes(model, images), kept_bytes(model, images, blocks_of(model))
    assert less < whole / 3


def test_the_model_is_afterwards_as_it_was():
    model = net()
    with computed_again(blocks_of(model)):
        assert "forward" in vars(model.second)
    with contextlib.suppress(RuntimeError), computed_again(blocks_of(model)):
        raise RuntimeError
    assert all("forward" not in vars(module) for module in model.modules())
    assert copy.deepcopy(model)(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    pickle.dumps(model.second)


def test_a_forward_of_the_users_own_comes_back():
    model = net()
    own = model.second.forward = lambda inputs, scale: inputs * scale
    with computed_again(blocks_of(model)):
        model(torch.randn(1, 3, 8, 8)).sum().backward()
    assert model.second.forward is own


@pytest.mark.parametrize("train", ["all", "last:1"])
def test_a_run_gives_the_same_weights_with_and_without(train, tiny_part):
    def run(again):
        model = net()
        phase = tk.Phase(train=train, epochs=2, checkpoint_activations=again)
        part = tiny_part(20, classes=3)
        rows = tk.Trainer(
            model, recipe=phase, batch_size=8, device="cpu", precision="fp32", progress=False
        ).fit(part, tiny_part(9, classes=3, seed=1, name="val"))
        return model.state_dict(), [(row["train_loss"], row["val_loss"]) for row in rows]

    plain, again = run(False), run(True)
    assert plain[1] == again[1]
    assert all(torch.equal(value, again[0][name]) for name, value in plain[0].items())


def test_a_model_without_blocks_is_refused_before_any_work(tiny_part):
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    model = tk.attach_spec(layers, head="4", preprocessing=tk.Preprocessing(size=8))
    trainer = tk.Trainer(model, recipe=tk.Phase(checkpoint_activations=True), progress=False)
    with pytest.raises(ArgumentError) as error:
        trainer.fit(tiny_part())
    assert str(error.value) == (
        "The 'checkpoint_activations' parameter of Phase must be False for a model without blocks of several "
        "layers, such as this Sequential. Got True instead."
    )
