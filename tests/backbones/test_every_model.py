"""One contract for every classification model of torchvision.

By default a small model of each family goes through it, but for VGG and MaxViT, of which there is no
small one. All 80 do with

    TRANSFERKIT_TORTURE=1 python -m pytest tests/backbones/test_every_model.py

one at a time, in about eight minutes of one core, the largest of which takes 12 GB of memory.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import StochasticDepth
from without_values import without_values

import transferkit as tk
from transferkit.backbones.stages import stage_indices
from transferkit.backbones.torchvision_families import FAMILIES
from transferkit.features.extract import head_inputs
from transferkit.features.split import split_model
from transferkit.loading.image_pixels import pixels_of

EVERY = models.list_models(module=models)
SMALL = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vit_b_32",
)
ALL_OF_THEM = os.environ.get("TRANSFERKIT_TORTURE") == "1"
NAMES = [
    pytest.param(name, marks=() if name in SMALL else pytest.mark.slow)
    for name in (EVERY if ALL_OF_THEM else SMALL)
]
CLASSES = ("ant", "bee", "cat", "dog", "elk")
PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """The next model begins when the last one is gone, from memory and from the disk."""
    yield
    shutil.rmtree(tmp_path)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def side_of(name: str) -> int:
    """The smallest side that a model takes, but not below 32 px, where batch norm has little to go by."""
    family = FAMILIES[name]
    return -(-max(32, family.smallest) // family.multiple) * family.multiple


def digests(model: nn.Module) -> dict[str, int]:
    """A checksum of each tensor, so that the values of a large model are not held twice."""
    state = model.state_dict().items()
    return {name: zlib.crc32(tensor.cpu().contiguous().numpy()) for name, tensor in state}


def changed(model: nn.Module, before: dict[str, int]) -> set[str]:
    after = digests(model)
    assert after.keys() == before.keys()
    return {name for name, digest in after.items() if digest != before[name]}


@contextlib.contextmanager
def every_block_runs(model: nn.Module) -> Iterator[None]:
    """Keep stochastic depth from leaving out a block for a whole batch."""
    depths = [(module, module.p) for module in model.modules() if isinstance(module, StochasticDepth)]
    for module, _ in depths:
        module.p = 0.0
    yield
    for module, p in depths:
        module.p = p


def step(model: nn.Module, images: Tensor, targets: Tensor) -> set[str]:
    """Train for one step, each stage slower than the one after it; return the names of what changed."""
    before = digests(model)
    groups = tk.parameter_groups(model, lr=1e-3, head_lr=1e-2, layer_decay=0.9)
    # Adam moves whatever has a gradient, however small, by about the learning rate; it goes from one
    # parameter to the next, since taking them together takes their memory once more.
    optimizer = torch.optim.Adam(groups, eps=1e-16, foreach=False)
    with every_block_runs(model):
        result = tk.train_step(model.train(), (images, targets), optimizer)
    assert result.loss.isfinite()
    return changed(model, before)


def check_spec(model: nn.Module, name: str, images: Tensor) -> None:
    """The head gives the logits, and stages hold all parameters, in the order in which they run."""
    spec = tk.spec_of(model)
    assert (spec.name, spec.num_classes) == (name, 3)
    order: list[int] = []
    handles = [
        model.get_submodule(path).register_forward_hook(lambda *_, number=number: order.append(number))
        for number, stage in enumerate(spec.stages)
        for path in stage.members
    ]
    with torch.no_grad():
        assert model.eval()(images).shape == (len(images), 3)
    for handle in handles:
        handle.remove()
    assert order == sorted(order)
    assert set(order) == set(range(len(spec.stages)))
    indices = stage_indices(model)
    assert indices.keys() == dict(model.named_parameters()).keys()
    head = {key for key in indices if key.startswith(f"{spec.head}.")}
    assert {key for key, number in indices.items() if number == len(spec.stages)} == head
    groups = tk.parameter_groups(model, lr=1.0, head_lr=10.0, layer_decay=0.5)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for key, parameter in model.named_parameters():
        assert rates[id(parameter)] == (10.0 if key in head else 0.5 ** (len(spec.stages) - 1 - indices[key]))


def check_features(model: nn.Module, images: Tensor) -> None:
    """What is computed once and stored gives the logits that the whole model gives."""
    spec = tk.spec_of(model)
    split = split_model(model)
    with torch.no_grad():
        features = split.prefix(images)
        assert torch.equal(split.suffix.eval()(features), model.eval()(images))
    shape = (len(images), spec.preprocessing.size, 40, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    part = tk.Part(pixels, range(len(pixels)), CLASSES)
    prepared = torch.stack([spec.preprocessing(Image.fromarray(each)) for each in pixels])
    execution = tk.Execution(
        str(images.device),
        "fp32",
        channels_last=False,
        fold=False,
        compile=False,
        threads=torch.get_num_threads(),
        decode="exact",
    )
    with torch.no_grad(), execution.arithmetic():
        stored = head_inputs(model, part, execution, workers=0)
        rows = stored.rows if isinstance(stored.rows, Tensor) else stored.rows.whole()
        logits = stored.suffix.eval()(rows.to(images.device))
        assert torch.equal(logits, model.eval()(prepared.to(images.device)))


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("name", NAMES)
def test_it_is_adapted_trained_saved_and_loaded(name, device, tmp_path):
    side = side_of(name)
    model = tk.load_backbone(name, weights=None, num_classes=3, image_size=side, device=device)
    count = 4 if side < 100 else 2  # images; batch norm wants several where they are small
    images = torch.randn(count, 3, side, side).to(device)
    targets = torch.arange(count, device=device)
    check_spec(model, name, images)

    tk.replace_head(model, 5, classes=CLASSES)
    head = tk.spec_of(model).head
    assert model.get_submodule(head).weight.shape[0] == 5
    tk.freeze(model, except_="head")
    check_features(model, images)
    trains = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {f"{head}.weight", f"{head}.bias"}
    assert step(model, images, targets) == trains

    tk.unfreeze(model)
    parameters = {key for key, _ in model.named_parameters()}
    moved = step(model, images, targets)
    assert parameters - moved == set()
    buffers = {key for key, _ in model.named_buffers()}
    assert moved - parameters <= {key for key in buffers if "running_" in key or "num_batches" in key}

    model.zero_grad(set_to_none=True)
    model.cpu().eval()
    images = images.cpu()
    with torch.no_grad():
        expected = model(images)
    tk.save_model(model, tmp_path)
    spec = tk.spec_of(model)
    del model
    again = tk.load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(images), expected)
    assert tk.spec_of(again) == spec
    assert tk.class_names(again) == CLASSES


@pytest.mark.real_data
def test_preprocessing_is_to_the_bit_that_of_the_default_weights(real_data):
    photos = sorted((real_data / "data" / "hymenoptera" / "val").glob("*/*.jpg"))[::15][:10]
    assert len(photos) == 10
    opened = [Image.open(path).convert("RGB") for path in photos]
    references: dict[str, list[Tensor]] = {}
    for name in EVERY:
        with without_values():
            record = tk.spec_of(tk.load_backbone(name, weights=None)).preprocessing
        transforms = models.get_model_weights(name).DEFAULT.transforms()
        if repr(transforms) not in references:
            references[repr(transforms)] = [transforms(photo) for photo in opened]
        for path, photo, expected in zip(photos, opened, references[repr(transforms)], strict=True):
            assert torch.equal(record(photo), expected), (name, path)
            # The data path of training and prediction, in its exact mode.
            pixels = pixels_of(path, record, decode="exact")
            assert torch.equal(record.normalize(pixels), expected), (name, path)


def test_the_page_on_models_tells_their_heads_and_sizes():
    rows = re.findall(r"^\| (`.+`) \| `(\S+)` \| (.+) \| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    told: dict[str, tuple[str, str]] = {}
    for patterns, head, _, sizes in rows:
        for pattern in re.findall(r"`(\S+)`", patterns):
            for name in EVERY:
                if fnmatchcase(name, pattern):
                    assert name not in told, name
                    told[name] = head, sizes
    assert sorted(told) == EVERY
    for name, (head, sizes) in told.items():
        family = FAMILIES[name]
        expected = f"{family.smallest} or more" if family.smallest > 1 else "any"
        if family.multiple > 1:
            expected = f"multiples of {family.multiple}"
        assert (head, sizes) == (family.head, expected), name
