"""Backbones are found by name, and modules of backbones are imported when first needed."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torchvision import models

from transferkit.backbones.load import load_backbone
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.registry import BACKBONES, list_backbones, register_backbone
from transferkit.backbones.spec import BackboneSpec, spec_of
from transferkit.errors import ArgumentError, UnknownNameError
from transferkit.registry import Registry


@pytest.fixture
def private_entries(monkeypatch):
    """What a test registers is gone after it."""
    len(BACKBONES)
    monkeypatch.setattr(BACKBONES, "_factories", dict(BACKBONES._factories))


def test_every_classification_model_of_torchvision_and_the_embedded_one_are_there():
    expected = {*models.list_models(module=models), "mini"}
    assert expected <= set(list_backbones())
    assert list_backbones() == sorted(list_backbones())


def test_a_pattern_selects():
    assert list_backbones("vit_?_16") == ["vit_b_16", "vit_l_16"]
    assert list_backbones("nothing*") == []


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"There is no backbone 'resnet81'. Did you mean 'resnet18'"):
        load_backbone("resnet81")


def test_a_name_of_a_hub_without_its_library_is_told_how_it_is_written():
    with pytest.raises(UnknownNameError, match=r"^There is no backbone 'google/vit-base'; names of .* 'hf/'"):
        load_backbone("google/vit-base")


def test_a_name_of_torchvision_cannot_be_taken(private_entries):
    with pytest.raises(ArgumentError, match="'resnet18' is already registered"):
        register_backbone("resnet18")(lambda: None)


def test_a_backbone_of_the_users_own_loads_like_any_other(private_entries):
    @register_backbone("one-pixel")
    def one_pixel(*, weights="default", num_classes=None, image_size=None):
        outputs = 10 if weights else num_classes or 10
        module = nn.Sequential(nn.Flatten(), nn.Linear(3, outputs))
        return module, BackboneSpec("one-pixel", "1", Preprocessing(size=1), num_classes=outputs)

    model = load_backbone("one-pixel", num_classes=4)
    assert model(torch.rand(2, 3, 1, 1)).shape == (2, 4)
    assert spec_of(model).num_classes == 4
    with pytest.raises(ArgumentError, match=r"'one-pixel' cannot be built with these arguments: .*'depth'"):
        load_backbone("one-pixel", depth=3)


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """Write the module ``plug_in`` with a registry of its own, which a test fills with code."""
    registry = Registry("fruit", sources=("plug_in",))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plug_in", raising=False)

    def write(code):
        (tmp_path / "plug_in.py").write_text(code)
        monkeypatch.setattr(sys, "fruits", registry, raising=False)
        return registry

    yield write
    sys.modules.pop("plug_in", None)


@pytest.mark.parametrize(
    "first_use",
    [len, list, lambda fruits: fruits["apple"], lambda fruits: "apple" in fruits],
    ids=["len", "list", "lookup", "in"],
)
def test_a_source_is_imported_on_the_first_use(plug_in, first_use):
    fruits = plug_in("import sys\nsys.fruits.register('apple')(lambda: 'red')")
    assert "plug_in" not in sys.modules
    first_use(fruits)
    assert fruits["apple"]() == "red"


def test_a_name_is_refused_even_before_its_source_is_imported(plug_in):
    fruits = plug_in("import sys\nsys.fruits.register('apple')(lambda: 'red')")
    with pytest.raises(ArgumentError, match="already registered"):
        fruits.register("apple")(lambda: "green")
    assert fruits["apple"]() == "red"


def test_a_source_that_cannot_be_imported_says_so_each_time(plug_in):
    fruits = plug_in("raise RuntimeError('rotten')")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="rotten"):
            fruits["apple"]
