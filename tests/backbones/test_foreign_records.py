"""The record of another library's model asks for an architecture, and for nothing else."""

from __future__ import annotations

import pytest

from transferkit.backbones.foreign_records import check_library_record
from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.record import spec_from_dict, spec_to_dict
from transferkit.backbones.spec import BackboneSpec

VIT = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 2, "hidden_act": "gelu"}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"anything": 2**40}),
        ("timm/resnet10t", {}),
        ("timm/resnet10t.c3_in1k", {"drop_rate": 0.1}),
        ("hf/google/vit-base-patch16-224", {"config": VIT}),
        ("hf/./folder", {"config": VIT}),
    ],
)
def test_an_architecture_passes(name, arguments):
    check_library_record(name, arguments)


@pytest.mark.parametrize(
    "name",
    [
        *("timm/hf-hub:someone/something", "timm/hf_hub:someone/something", "timm/local-dir:/tmp/x"),
        *("timm/someone/something", "timm/../x", "timm/", "timm/resnet18@main", "timm/resnet18\n"),
    ],
)
def test_names_with_which_timm_goes_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match="is not the name of an architecture of timm"):
        check_library_record(name, {})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"pretrained": True}, "pretrained"),
        ({"checkpoint_path": "/etc/passwd"}, "checkpoint_path"),
        ({"pretrained_cfg": {"url": "https://example.org/x.pth"}}, "pretrained_cfg"),
        ({"pretrained_cfg_overlay": {"file": "x.pth"}}, "pretrained_cfg_overlay"),
        ({"depths": [1, 2**40]}, str(2**40)),
        ({"depths": [2**19] * 3}, str(3 * 2**19)),
        ({"block": {"depth": 1e30}}, "1e\\+30"),
    ],
)
def test_arguments_with_which_timm_reads_or_fetches_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        check_library_record("timm/resnet18", arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "are its 'config' and no others"),
        ({"config": "vit"}, "are its 'config' and no others"),
        ({"config": VIT, "trust_remote_code": True}, "are its 'config' and no others"),
        ({"config": VIT | {"auto_map": {"AutoConfig": "code.Config"}}}, "'auto_map'"),
        ({"config": VIT | {"attn_implementation": "someone/kernels"}}, "'attn_implementation'"),
        ({"config": VIT | {"_attn_implementation_internal": "x"}}, "'_attn_implementation_internal'"),
        ({"config": VIT | {"quantization_config": {}}}, "'quantization_config'"),
        ({"config": VIT | {"model_type": "timm_wrapper"}}, "'timm_wrapper' is none of"),
        ({"config": {"hidden_size": 8}}, "None is none of"),
        ({"config": VIT | {"depths": [2**40]}}, str(2**40)),
    ],
)
def test_what_is_more_than_an_architecture_of_transformers_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_library_record("hf/someone/something", arguments)


@pytest.mark.parametrize(
    ("name", "arguments"), [("hf/someone/something", {}), ("timm/hf-hub:someone/something", {})]
)
def test_a_record_is_checked_where_it_is_read(name, arguments):
    spec = BackboneSpec(name, "head", Preprocessing(size=32), builder_kwargs=arguments)
    with pytest.raises(ValueError, match=r"no others|architecture of timm"):
        spec_from_dict(spec_to_dict(spec))
