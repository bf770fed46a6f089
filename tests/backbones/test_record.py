"""A spec becomes JSON and comes back, and what is no spec is refused with the name of the field."""

from __future__ import annotations

import dataclasses
import json

import pytest

from transferkit.backbones import record
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.record import spec_from_dict, spec_to_dict
from transferkit.backbones.spec import BackboneSpec, Stage

SPEC = BackboneSpec(
    name="resnet18",
    head="fc",
    preprocessing=Preprocessing(size=64, resize=73),
    stages=(Stage("stem", ("conv1", "bn1")), Stage("layer1", ("layer1",))),
    classes=("蟻", "bee"),
    num_classes=2,
    weights="IMAGENET1K_V1",
    builder_kwargs={"width_per_group": 32, "replace_stride_with_dilation": [False, True, True]},
    head_kind="mlp",
    head_dropout=0.25,
    selected_on="0123",
    auxiliary_heads=("aux.fc",),
)


def test_every_field_comes_back():
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(SPEC)))) == SPEC


def test_every_field_is_checked():
    assert set(record._FIELDS) == {field.name for field in dataclasses.fields(BackboneSpec)}


def test_fields_that_have_a_default_may_be_missing():
    fields = spec_to_dict(SPEC)
    needed = {name: fields[name] for name in ("name", "head", "preprocessing")}
    assert spec_from_dict(needed) == BackboneSpec("resnet18", "fc", SPEC.preprocessing)


@pytest.mark.parametrize("name", ["name", "head", "preprocessing"])
def test_fields_without_a_default_may_not(name):
    fields = spec_to_dict(SPEC)
    del fields[name]
    with pytest.raises(ValueError, match=f"'{name}' is missing in its spec"):
        spec_from_dict(fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", 3),
        ("head", None),
        ("preprocessing", []),
        ("preprocessing", {"size": 0}),
        ("preprocessing", {"size": "224"}),
        ("preprocessing", {"size": 2**20}),
        ("preprocessing", {"depth": 3}),
        ("preprocessing", {"mean": [0.5]}),
        ("stages", {"stem": ["conv1"]}),
        ("stages", [["stem", "conv1"]]),
        ("stages", [["stem", ["conv1"], 1]]),
        ("classes", "ab"),
        ("classes", ["ant", "ant"]),
        ("classes", ["ant", "bee", "wasp"]),
        ("classes", [["ant"], ["bee"]]),
        ("num_classes", 0),
        ("num_classes", 2.0),
        ("num_classes", True),
        ("weights", 1),
        ("builder_kwargs", None),
        ("builder_kwargs", {"weights": "weights.pth"}),
        ("builder_kwargs", {"device": "cuda"}),
        ("head_kind", ["linear"]),
        ("head_kind", "os.system"),
        ("head_dropout", 1),
        ("head_dropout", "0"),
        ("selected_on", 7),
        ("auxiliary_heads", "fc"),
    ],
)
def test_what_is_no_spec_is_refused_with_the_name_of_the_field(name, value):
    with pytest.raises(ValueError, match=rf"'{name}'.* in its spec"):
        spec_from_dict(spec_to_dict(SPEC) | {name: value})


@pytest.mark.parametrize("fields", [None, [], "spec", 3])
def test_what_is_no_record_is_refused(fields):
    with pytest.raises(ValueError, match="its spec is not a record"):
        spec_from_dict(fields)
