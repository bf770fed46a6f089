"""Packed models as users meet them: hooks, odd outputs, any batch, threads, whole families."""

from __future__ import annotations

import operator
import threading

import pytest
import torch
import torchvision
from packed_nets import (
    FP32,
    IMAGES,
    PACKED,
    Residual,
    Written,
    assert_same,
    distance,
    given,
    layers_of,
    random_statistics,
)
from torch import fx, nn
from torch.nn import functional as F

from transferkit.inference import FastForward, Form
from transferkit.packing import _PackedConvolution, can_pack, packed
from transferkit.runtime import Execution

pytestmark = pytest.mark.skipif(not can_pack(nn.Conv2d(3, 3, 1), "cpu"), reason="torch is without oneDNN")


def broadcast(self, images):
    means = self.other(images).mean((2, 3), keepdim=True)
    return self.conv(images) + means


def identity_comes_later(self, images):
    out = self.conv(images)
    return F.relu(out + self.other(images))


class OwnConvolution(nn.Conv2d):
    def forward(self, images):
        return super().forward(images) * 2


class OwnReLU(nn.ReLU):
    def forward(self, images):
        return super().forward(images) * 2


def with_hook(module):
    module.register_forward_hook(lambda module, inputs, output: output * 2)
    return module


def with_hook_before(module):
    module.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    return module


def with_own_forward(module):
    module.forward = Doubling(type(module).forward, module)
    return module


class Doubling:
    """Does twice what a function does; a copy of it keeps to the module of the original."""

    def __init__(self, function, module):
        self.function, self.module = function, module

    def __call__(self, images):
        return self.function(self.module, images) * 2


@pytest.mark.parametrize("change", [with_hook, with_hook_before, with_own_forward])
def test_hooks_and_own_forwards_are_kept(change):
    graph = assert_same(nn.Sequential(change(nn.Conv2d(3, 4, 3)), nn.ReLU()))
    assert layers_of(graph) == ["Conv2d", "ReLU"]
    graph = assert_same(nn.Sequential(nn.Conv2d(3, 4, 3), change(nn.ReLU())))
    assert layers_of(graph) == [PACKED, "ReLU"]


def test_a_hook_between_a_convolution_and_its_sum_is_kept():
    module = Written(identity_comes_later)
    module.other.register_forward_pre_hook(lambda module, inputs: (inputs[0].mul_(2),))
    images = IMAGES.clone()
    graph = given(module)
    with torch.no_grad():
        expected = module(IMAGES.clone())
        assert distance(graph(images), expected) < 1e-5


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(3, 4, 3, padding="same"),
        OwnConvolution(3, 4, 3),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        nn.ConvTranspose2d(3, 4, 3),
    ],
    ids=str,
)
def test_convolutions_of_other_kinds_stay(convolution):
    module = nn.Sequential(convolution, OwnReLU(), nn.Conv2d(4, 2, 1), OwnReLU()).eval()
    # Parametrizations and own classes stay whole.
    graph = fx.GraphModule(module, WholeLayers().trace(module))
    with torch.no_grad():
        expected = module(IMAGES)
        graph = packed(graph, IMAGES, 4)
        assert distance(graph(IMAGES), expected) < 1e-5
    assert layers_of(graph) == [type(convolution).__name__, "OwnReLU", PACKED, "OwnReLU"]


class WholeLayers(fx.Tracer):
    def is_leaf_module(self, module, name):
        return not isinstance(module, nn.Sequential)


def test_convolutions_that_take_their_input_by_name_or_alone_stay():
    assert "Conv2d" in layers_of(assert_same(Written(lambda self, images: self.conv(input=images))))
    graph = assert_same(Written(lambda self, images: self.conv(images[0]) + self.other(images).mean()))
    assert sorted(layers_of(graph))[:2] == ["Conv2d", PACKED]


def test_a_layer_with_two_names_is_found():
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    module.append(module[1])
    traced = fx.symbolic_trace(module)
    # As other tracers may write it.
    [*traced.graph.nodes][-2].target = "3"
    traced.add_module("3", traced.get_submodule("1"))
    traced.recompile()
    with torch.no_grad():
        expected = module(IMAGES)
        assert distance(packed(traced, IMAGES, 4)(IMAGES), expected) < 1e-5
    assert layers_of(traced) == [PACKED, PACKED]


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_outputs_of_several_parts(kind):
    def forward(self, images):
        parts = {"first": F.relu(self.conv(images)), "second": self.other(images)}
        return parts if kind is dict else kind(parts.values())

    module = Written(forward).eval()
    graph = given(module)
    with torch.no_grad():
        found, expected = graph(IMAGES), module(IMAGES)
    if kind is dict:
        assert found.keys() == expected.keys()
        found, expected = found.values(), expected.values()
    for one, other in zip(found, expected, strict=True):
        assert distance(one, other) < 1e-5


@pytest.mark.parametrize("first", [0, 1, 7])
def test_any_batch_may_come_first_and_any_later(first):
    module = Residual(operator.iadd, nn.ReLU(), stride=2).eval()
    forward = FastForward(module, Form("fp32", False, False, 4, packed=True), FP32)
    images = torch.randn(7, 3, 12, 12)
    with torch.no_grad():
        expected = module(images)
    for count in (first, 7, 4, 1, 0):
        found = forward(images[:count])
        assert found.shape == expected[:count].shape
        torch.testing.assert_close(found, expected[:count], rtol=1e-4, atol=1e-5)
    assert forward.notes == []
    assert forward.form.packed


def test_images_of_another_size_may_follow():
    module = Residual(operator.iadd, nn.ReLU(), stride=2).eval()
    graph, larger = given(module), torch.randn(2, 3, 30, 17)
    with torch.no_grad():
        assert distance(graph(larger), module(larger)) < 1e-5


@pytest.mark.parametrize("written", [broadcast, identity_comes_later])
def test_sums_at_a_single_place_stay_apart(written):
    module = Written(written).eval()
    module.conv.stride = module.other.stride = (12, 12)
    graph, larger = assert_same(module), torch.randn(2, 3, 30, 17)
    assert "add" in layers_of(graph)
    with torch.no_grad():
        assert distance(graph(larger), module(larger)) < 1e-5


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_module_and_the_images_stay_as_they_are_to_the_bit(channels_last):
    module = random_statistics(torchvision.models.resnet18(weights=None))
    state = {name: value.clone() for name, value in module.state_dict().items()}
    kinds = [type(each) for each in module.modules()]
    images = torch.randn(2, 3, 32, 32)
    before = images.clone()
    execution = Execution("cpu", "fp32", channels_last=channels_last)
    forward = FastForward(module, Form("fp32", True, False, 2, packed=True), execution)
    forward(images)
    assert forward.notes == []
    assert torch.equal(images, before)
    assert [type(each) for each in module.modules()] == kinds
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert state.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])
        assert value.is_contiguous()


def test_weights_are_not_kept_twice():
    graph = given(Residual(operator.iadd, nn.ReLU(), stride=2))
    assert not any(isinstance(each, nn.Conv2d) for each in graph.modules())


def test_a_graph_that_needs_its_maps_as_they_lie_runs_unpacked():
    def forward(self, images):
        return self.conv(images).view(images.shape[0], -1)

    module = Written(forward).eval()
    module.other = None
    execution = Execution("cpu", "fp32", channels_last=False)
    fast = FastForward(module, Form("fp32", False, False, 4, packed=True), execution)
    with torch.no_grad():
        assert torch.equal(fast(IMAGES), module(IMAGES))
    assert fast.notes[0].startswith("packing failed (view size is not compatible")
    assert str(fast.form) == "fp32"


def test_a_graph_that_looks_at_its_images_as_they_lie_is_packed():
    def forward(self, images):
        rows = images.permute(0, 2, 3, 1).view(images.shape[0], -1)
        return self.conv(images).mean((2, 3)) * rows.mean(1, keepdim=True)

    module = Written(forward).eval()
    fast = FastForward(module, Form("fp32", False, False, 4, packed=True), FP32)
    with torch.no_grad():
        expected = module(IMAGES.to(memory_format=torch.channels_last))
    assert distance(fast(IMAGES), expected) < 1e-5
    assert fast.notes == []


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_every_mode_of_autograd_will_do(first):
    module = Residual(operator.iadd, nn.ReLU(), stride=2).eval()
    forward = FastForward(module, Form("fp32", False, False, 4, packed=True), FP32)
    with torch.no_grad():
        expected = module(IMAGES)
    for mode in (first, torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            found = forward(IMAGES)
        assert not found.requires_grad
        assert distance(found, expected) < 1e-5


def test_threads_that_share_a_form_get_the_same():
    module = random_statistics(torchvision.models.resnet18(weights=None))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = module(images)
    for _ in range(3):
        forward = FastForward(module, Form("fp32", True, False, 2, packed=True), FP32)
        start, found = threading.Barrier(4), []

        def work(forward=forward, start=start, found=found):
            start.wait()
            found.extend(forward(images) for _ in range(3))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 12
        assert max(distance(each, expected) for each in found) < 1e-5
        assert forward.notes == []


@pytest.mark.parametrize(
    ("make", "device", "expected"),
    [
        (lambda: torchvision.models.resnet18(weights=None), "cpu", True),
        (lambda: torchvision.models.resnet18(weights=None).bfloat16(), torch.device("cpu"), True),
        (lambda: torchvision.models.resnet18(weights=None), "cuda:0", False),
        (lambda: torchvision.models.resnet18(weights=None).double(), "cpu", False),
        (lambda: torchvision.models.resnet18(weights=None).half(), "cpu", False),
        (lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 8, 16), "cpu", False),
        (lambda: nn.Linear(2, 2), "cpu", False),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(2, 2)), "cpu", False),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 1, padding="same")), "cpu", False),
    ],
)
def test_what_can_be_packed(make, device, expected):
    assert can_pack(make(), device) is expected


FAMILIES = [
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "densenet121",
    "googlenet",
    "inception_v3",
    "vgg11_bn",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "mnasnet0_5",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_same_to_a_hundred_thousandth(name):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3", "vgg11_bn") else {}
    model = random_statistics(torchvision.models.get_model(name, weights=None, num_classes=10, **options))
    images = torch.randn(3, 3, *([75] * 2 if name == "inception_v3" else [33] * 2))
    forward = FastForward(model, Form("fp32", True, False, 4, packed=True), FP32)
    with torch.no_grad():
        expected = model(images)
    for count in (3, 1):
        assert distance(forward(images[:count]), expected[:count]) < 1e-5
    assert forward.notes == []
    assert any(isinstance(each, _PackedConvolution) for each in forward._module.modules())
    assert not any(isinstance(each, nn.Conv2d) for each in forward._module.modules())
