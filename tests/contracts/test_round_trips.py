"""What is saved and loaded gives the same logits to the bit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from example_counts import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import transferkit as tk


class Builder(NamedTuple):
    """A small backbone, with arguments of its builder."""

    name: str
    size: int
    arguments: dict[str, object]


BUILDERS = {
    "mini": Builder("mini", 16, {}),
    "squeezenet": Builder("squeezenet1_1", 32, {}),
    "shufflenet": Builder("shufflenet_v2_x0_5", 32, {}),
    "mobilenet": Builder("mobilenet_v3_small", 32, {"width_mult": 0.25}),
    "mnasnet": Builder("mnasnet0_5", 32, {"dropout": 0.1}),
}
HEADS = st.sampled_from([None, ("linear", 0.0), ("linear", 0.25), ("mlp", 0.0), ("mlp", 0.5)])
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CLASSES = st.lists(st.text(max_size=20), min_size=1, max_size=4, unique=True)
SEEDS = st.integers(0, 2**31)


def scrambled(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and buffer a value that no initialization gives."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, each in model.state_dict().items():
            if not each.is_floating_point():
                each.fill_(seed % 1000)
            else:
                noise = torch.rand(each.shape, generator=generator)
                each.copy_(0.1 + noise if "running_var" in name else (noise - 0.5) / 4)
    return model


def logits(model: nn.Module, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        return model.eval()(images)


def through_files(model: nn.Module, **options: object) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        return tk.load_model(tk.save_model(model, Path(folder) / "model"), **options)


def same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second) and bool(first.isfinite().all())


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
@examples(5)
@given(head=HEADS, layout=st.sampled_from(sorted(FORMATS)), classes=CLASSES, seed=SEEDS)
def test_a_backbone_with_any_head_comes_back(builder, head, layout, classes, seed):
    model = tk.load_backbone(
        builder.name,
        weights=None,
        image_size=builder.size,
        num_classes=len(classes) if head is None else None,
        **builder.arguments,
    )
    if head is not None:
        tk.replace_head(model, len(classes), head=head[0], dropout=head[1], classes=classes)
    model = scrambled(model, seed).to(memory_format=FORMATS[layout])
    again = through_files(model)
    assert same_bits(logits(again, builder.size), logits(model, builder.size))
    assert tk.spec_of(again) == tk.spec_of(model)
    assert tk.class_names(again) == (None if head is None else tuple(classes))
    assert list(again.state_dict()) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert not again.training


def small() -> nn.Module:
    return scrambled(tk.load_backbone("mini", weights=None, image_size=16, num_classes=3), 1)


def test_what_was_loaded_can_be_saved_again():
    model = small()
    again = through_files(through_files(model))
    assert same_bits(logits(again, 16), logits(model, 16))
    assert tk.spec_of(again) == tk.spec_of(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_no_floating_point_type_loses_anything(dtype):
    """A short type comes back as float32, which holds all of its numbers."""
    model = small().to(dtype)
    again = through_files(model)
    wide = torch.promote_types(dtype, torch.float32)
    assert {each.dtype for each in again.parameters()} == {wide}
    assert same_bits(logits(again, 16, wide), logits(model.to(wide), 16, wide))


@pytest.mark.parametrize("layout", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("own", FORMATS.values(), ids=FORMATS)
def test_the_memory_format_comes_back(layout, own):
    model = small().to(memory_format=layout)
    for again in (through_files(model), through_files(model, into=small().to(memory_format=own))):
        strides = {name: each.stride() for name, each in model.state_dict().items()}
        assert {name: each.stride() for name, each in again.state_dict().items()} == strides
        assert same_bits(logits(again, 16), logits(model, 16))


class Net(nn.Module):
    """A module of the user's own, in which layers may share a weight or be one layer."""

    def __init__(self, ties: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.Linear(4 * 16, 8)
        self.second = nn.Linear(8, 8)
        self.third = self.second if ties == "module" else nn.Linear(8, 8)
        if ties == "weight":
            self.third.weight = self.second.weight
        if ties == "both":
            self.third.weight, self.third.bias = self.second.weight, self.second.bias
        self.fc = nn.Linear(8, 2)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("empty", torch.zeros(0))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.conv(images)).relu().flatten(1)
        return self.fc(self.third(self.second(self.first(maps)))) * self.scale


def net(ties: str, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        return tk.attach_spec(Net(ties, seed), head="fc", preprocessing=tk.Preprocessing(size=4))


@examples(30)
@given(
    ties=st.sampled_from(["none", "weight", "both", "module"]),
    layout=st.sampled_from(sorted(FORMATS)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=SEEDS,
)
def test_a_users_own_module_with_tied_weights_comes_back(ties, layout, dtype, seed):
    model = scrambled(net(ties, 0), seed).to(dtype).to(memory_format=FORMATS[layout])
    fresh = net(ties, 1).to(dtype)
    again = through_files(model, into=fresh)
    assert again is fresh
    assert same_bits(logits(again, 4, dtype), logits(model, 4, dtype))
    shared = again.third.weight is again.second.weight
    assert shared == (ties != "none")


@examples(20)
@given(classes=st.lists(st.text(st.characters(), max_size=6), min_size=2, max_size=4, unique=True))
def test_class_names_of_any_letters_come_back(classes):
    model = net("none", 0)
    tk.replace_head(model, len(classes), classes=classes)
    again = through_files(model, into=tk.replace_head(net("none", 1), len(classes)))
    assert tk.class_names(again) == tuple(classes)
