"""A module that does not train gives the same outputs in its fastest form."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torchvision
from packed_nets import FP32, random_statistics
from torch import nn

from transferkit import inference
from transferkit.inference import (
    FastForward,
    Form,
    choose_form,
    fast_model,
    pays_to_compile,
    why_not_fast,
    work_of,
)
from transferkit.runtime import resolve_execution, why_not_compile


def small_network():
    return random_statistics(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(512, 5),
        )
    )


def test_operations_are_those_of_the_formulas():
    # 2 * inputs * kernel * outputs at each place of a convolution, 2 * inputs * outputs of a linear layer.
    assert work_of(small_network(), 8).operations == 2 * 3 * 9 * 8 * 64 + 2 * 512 * 5
    assert work_of(small_network(), 8).shape == (5,)


def test_counting_operations_changes_nothing():
    model = random_statistics(torchvision.models.resnet18(weights=None)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert work_of(model, 64).shape == (1000,)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5"])
def test_folding_gives_the_same_outputs_to_a_hundred_thousandth(name):
    model = random_statistics(torchvision.models.get_model(name, weights=None))
    images = torch.randn(3, 3, 64, 64)
    forward = FastForward(model, Form("fp32", True, False, 4), FP32)
    norms = [type(module) for module in forward._module.modules()].count(nn.BatchNorm2d)
    assert norms < [type(module) for module in model.modules()].count(nn.BatchNorm2d)
    with torch.no_grad():
        expected = model(images)
    assert (forward(images) - expected).norm() / expected.norm() < 1e-5


def test_the_module_itself_stays_as_it_is():
    model = small_network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    FastForward(model, Form("bf16", True, False, 4), dataclasses.replace(FP32, precision="bf16"))
    assert model.training
    assert all(
        parameter.requires_grad and parameter.dtype is torch.float32 for parameter in model.parameters()
    )
    assert before.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_unchanged_form_is_the_module_to_the_bit():
    model, images = small_network(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(FastForward(model, Form("fp32", False, False, 4), FP32)(images), model(images))


@pytest.mark.slow
@pytest.mark.skipif(why_not_compile(torch.device("cpu")) is not None, reason="there is no C++ compiler")
@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own internals
def test_a_compiled_form_pads_the_last_batch_and_gives_the_same_outputs():
    model, images = small_network(), torch.randn(7, 3, 8, 8)
    forward = FastForward(model, Form("fp32", True, True, 4), FP32)
    outputs = torch.cat([forward(images[:4]), forward(images[4:])])
    assert forward.notes == []
    with torch.no_grad():
        torch.testing.assert_close(outputs, model(images), rtol=1e-4, atol=1e-5)


def test_where_compiling_fails_the_outputs_come_uncompiled_and_the_reason_is_told(monkeypatch):
    def broken(module, **options):
        def call(images):
            raise RuntimeError("no such kernel\nand more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    model, images = small_network(), torch.randn(2, 3, 8, 8)
    forward = FastForward(model, Form("fp32", False, True, 4), FP32)
    with torch.no_grad():
        torch.testing.assert_close(forward(images), model(images), rtol=1e-5, atol=1e-6)
    assert forward.notes == ["compiling failed (no such kernel), so it runs without that"]
    assert str(forward.form) == "fp32"


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        return self.norm(images) if images.sum() > 0 else images


@pytest.mark.parametrize(("folded", "packed"), [(True, False), (False, True), (True, True)])
def test_what_has_no_graph_runs_as_it_is_and_the_reason_is_told(folded, packed):
    model, images = Untraceable().eval(), torch.rand(2, 3, 4, 4)
    forward = FastForward(model, Form("fp32", folded, False, 4, packed), FP32)
    with torch.no_grad():
        assert torch.equal(forward(images), model(images))
    assert len(forward.notes) == 1
    assert forward.notes[0].startswith("it could be neither folded nor packed (")
    assert str(forward.form) == "fp32"


def broken_operation(*_):
    raise RuntimeError("no such kernel\nand more")


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("step", ["packed", "packing._PackedConvolution.forward"])
def test_where_packing_fails_the_outputs_come_unpacked_and_the_reason_is_told(step, folded, monkeypatch):
    name = "transferkit.inference.packed" if step == "packed" else f"transferkit.{step}"
    monkeypatch.setattr(name, broken_operation)
    model, images = small_network(), torch.randn(2, 3, 8, 8)
    forward = FastForward(model, Form("fp32", folded, False, 4, packed=True), FP32)
    with torch.no_grad():
        expected = model(images)
    for _ in range(2):
        torch.testing.assert_close(forward(images), expected, rtol=1e-5, atol=1e-6)
    assert forward.notes == ["packing failed (no such kernel), so it runs without that"]
    assert str(forward.form) == ("fp32, folded" if folded else "fp32")


def test_a_form_that_gives_something_else_is_found_out():
    model, images = small_network(), torch.randn(2, 3, 8, 8)
    forward = FastForward(model, Form("bf16", True, False, 4), dataclasses.replace(FP32, precision="bf16"))
    assert why_not_fast(forward, model, images) is None
    with torch.no_grad():
        model[5].weight.mul_(4)
        model[5].bias.mul_(4)
    assert why_not_fast(forward, model, images).startswith("its fast form differs by 7")


@pytest.mark.parametrize(("device", "pays"), [("cuda:0", True), ("cpu", False)])
def test_compiling_pays_for_many_images_on_cuda_alone(device, pays):
    model = torchvision.models.resnet18(weights=None)
    execution = dataclasses.replace(FP32, device=device, compile="auto")
    operations = work_of(model, 224).operations
    assert not pays_to_compile(model, 244 * operations, execution)
    assert pays_to_compile(model, 10_000_000 * operations, execution) is pays


@pytest.mark.parametrize(("compile", "expected"), [(True, True), (False, False), ("auto", False)])
def test_the_form_follows_from_facts(compile, expected):
    execution = dataclasses.replace(FP32, compile=compile)
    # A network of one convolution and one linear layer is not packed.
    form = choose_form(small_network(), execution, operations=10**12, batch_size=32)
    assert form == Form("fp32", True, expected, 32)
    plain = dataclasses.replace(execution, fold=False)
    assert choose_form(small_network(), plain, operations=10**13, batch_size=32).folded is False


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "fp32, folded, packed"),
        ({"precision": "bf16"}, "bf16, folded, packed"),
        ({"precision": "fp16"}, "fp16, folded"),
        ({"compile": True}, "fp32, folded, compiled"),
        ({"compile": "auto"}, "fp32, folded, packed"),
        ({"fold": False}, "fp32"),
        ({"device": "cuda:0"}, "fp32, folded"),
    ],
)
def test_convolutions_are_packed_on_the_cpu_where_nothing_is_compiled(changes, text):
    model = torchvision.models.resnet18(weights=None).eval()
    execution = dataclasses.replace(FP32, **changes)
    assert str(choose_form(model, execution, operations=10**15, batch_size=32)) == text


def test_a_whole_model_falls_back_where_its_fast_form_goes_wrong(monkeypatch):
    model, images = small_network(), torch.randn(2, 3, 8, 8)
    monkeypatch.setattr(inference, "_FOLDING_PAYS", 0)
    monkeypatch.setattr(inference, "_graph_of", lambda module, *, folded: small_network())
    with pytest.warns(UserWarning, match="^The model runs more slowly than it could: its fast form differs"):
        forward = fast_model(model, 8, 100, 64, FP32)
    with torch.no_grad():
        assert torch.equal(forward(images), model(images))


def test_forms_run_on_every_device(device):
    model = small_network().to(device)
    execution = resolve_execution(model, device=device, precision="bf16", compile=False)
    execution.place(model)
    images = torch.randn(3, 3, 8, 8, device=device)
    forward = FastForward(model, Form("bf16", True, False, 4), execution)
    with torch.no_grad():
        torch.testing.assert_close(forward(images).float(), model(images), rtol=0.1, atol=0.1)
