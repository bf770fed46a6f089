"""Convolutions that are laid out beforehand, and what they take in, give what the modules give."""

from __future__ import annotations

import copy
import operator
import threading

import pytest
import torch
import torchvision
from torch import fx, nn
from torch.nn import functional as F

from transferkit.inference import FastForward, Form
from transferkit.packing import _PackedConvolution, can_pack, packed
from transferkit.runtime import Execution, bf16_unit

FP32 = Execution("cpu", "fp32", channels_last=True, compile=False)
IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))

pytestmark = pytest.mark.skipif(not can_pack(nn.Conv2d(3, 3, 1), "cpu"), reason="torch is without oneDNN")
PACKED = "PackedConvolution"
needs_bf16 = pytest.mark.skipif(
    bf16_unit(torch.device("cpu")) is None, reason="this processor does not compute bfloat16"
)


def distance(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def given(module, images=IMAGES, *, batch_size=4, dtype=torch.float32):
    """Return a packed graph of a module; the module itself stays as it is."""
    traced = fx.symbolic_trace(copy.deepcopy(module).eval().to(dtype))
    for node in traced.graph.nodes:
        if isinstance(module, Written) and module.in_place and node.target is operator.add:
            node.target = operator.iadd
    traced.recompile()
    with torch.no_grad():
        return packed(traced, images.to(dtype), batch_size)


def layers_of(graph):
    """Return the names of what a graph does."""
    modules = dict(graph.named_modules())
    names = []
    for node in graph.graph.nodes:
        if node.op == "call_module":
            names.append(type(modules[node.target]).__name__.strip("_"))
        elif node.op.startswith("call"):
            names.append(getattr(node.target, "__name__", node.target))
    return names


def assert_same(module, images=IMAGES):
    """Compare packed graphs with the module for several batches and layouts, and return the graph."""
    module.eval()
    graph = given(module, images)
    for batch in (images, images[:1], torch.cat([images, images[1:]])):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            inputs = batch.clone(memory_format=memory_format)
            with torch.no_grad():
                expected = module(batch.clone())
                found = graph(inputs.clone(memory_format=memory_format))
            assert found.shape == expected.shape
            assert distance(found, expected) < 1e-5
    return graph


class Residual(nn.Module):
    """Two convolutions and a sum, written in one of many ways."""

    def __init__(self, add, after=None, *, stride=1):
        super().__init__()
        self.start = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.act1 = nn.Conv2d(8, 8, 3, stride, 1), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.downsample = nn.Conv2d(8, 8, 1, stride) if stride > 1 else None
        self.add, self.after = add, after

    def forward(self, images):
        identity = images = self.start(images)
        out = self.conv2(self.act1(self.conv1(images)))
        if self.downsample is not None:
            identity = self.downsample(images)
        out = self.add(out, identity)
        return out if self.after is None else self.after(out)


class Written(nn.Module):
    """Two convolutions of 3 to 3 maps, a layer, and whatever a function does with them."""

    def __init__(self, forward, layer=None, *, in_place=False):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.in_place = in_place  # where torch.fx takes += for +, other tracers do not
        self.layer = layer
        self.written = forward

    def forward(self, images):
        return self.written(self, images)


class Own(nn.Module):
    """Applies a function as a layer of its own would."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "bias": False},
        {"kernel_size": 1},
        {"kernel_size": 3, "stride": (2, 1), "padding": (0, 2)},
        {"kernel_size": (3, 1), "dilation": (1, 2), "padding": (1, 0)},
        {"kernel_size": 3, "dilation": (3, 2)},
        {"kernel_size": 3, "groups": 3},
        {"kernel_size": 5, "groups": 3, "padding": 2, "stride": 2, "bias": False},
        {"kernel_size": 3, "padding": "valid"},
    ],
    ids=str,
)
def test_a_convolution_alone(options):
    graph = assert_same(nn.Sequential(nn.Conv2d(3, 24, **options)))
    assert layers_of(graph) == [
        "Conv2d" if "padding" in options and options["padding"] == "valid" else PACKED
    ]


ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.Hardtanh(-0.3, 0.4),
    nn.Hardswish(),
    nn.SiLU(inplace=True),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.Sigmoid(),
    nn.LeakyReLU(0.2),
    Own(F.relu),
    Own(torch.relu),
    Own(lambda images: F.relu(images, inplace=True)),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("options", [{}, {"groups": 3, "stride": 2, "bias": False}], ids=["plain", "grouped"])
def test_an_activation_goes_with_the_convolution_before_it(activation, options):
    graph = assert_same(nn.Sequential(nn.Conv2d(3, 12, 3, **options), activation))
    assert layers_of(graph) == [PACKED]


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ELU(), nn.Softplus(), nn.PReLU()], ids=str)
def test_an_unknown_activation_stays(activation):
    graph = assert_same(nn.Sequential(nn.Conv2d(3, 12, 3), activation))
    assert layers_of(graph) == [PACKED, type(activation).__name__]


SUMS = [
    operator.iadd,
    operator.add,
    torch.add,
    lambda out, identity: identity + out,
    lambda out, identity: torch.add(identity, out),
]


@pytest.mark.parametrize("add", SUMS)
@pytest.mark.parametrize("after", [None, nn.ReLU(), nn.ReLU(inplace=True), F.relu], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_residual_sum_goes_with_the_convolution_before_it(add, after, stride):
    graph = assert_same(Residual(add, after, stride=stride))
    assert layers_of(graph) == [PACKED] * (3 if stride == 1 else 4)


@pytest.mark.parametrize("activation", [each for each in ACTIVATIONS if type(each) is not Own], ids=str)
def test_any_activation_may_follow_a_sum(activation):
    graph = assert_same(Residual(operator.iadd, activation))
    relu = isinstance(activation, nn.ReLU)
    assert layers_of(graph) == [PACKED] * 3 + ([] if relu else [type(activation).__name__])


@needs_bf16
@pytest.mark.parametrize("after", [None, *ACTIVATIONS], ids=str)
def test_bfloat16_stays_within_its_rounding_of_float32(after):
    residual = Residual(operator.iadd, nn.ReLU(), stride=2)
    module = nn.Sequential(residual, nn.Conv2d(8, 16, 3), *([] if after is None else [after]))
    graph = given(module, dtype=torch.bfloat16)
    assert set(layers_of(graph)) == {PACKED}
    with torch.no_grad():
        for images in (IMAGES, IMAGES[:1]):
            found = graph(images.bfloat16())
            assert found.dtype is torch.bfloat16
            # Five results in a row, each rounded to 8 bits.
            assert distance(found, module(images)) < 5 * 2**-8


def two_users(self, images):
    out = self.conv(images)
    return F.relu(out) + self.other(out).sin()


def added_to_itself(self, images):
    out = self.conv(images)
    return out + out


def broadcast(self, images):
    means = self.other(images).mean((2, 3), keepdim=True)
    return self.conv(images) + means


def broadcast_over_the_batch(self, images):
    mean = self.other(images).mean(0, keepdim=True)
    return F.relu(self.conv(images) + mean)


def another_type(self, images):
    doubled = images.double()
    return self.conv(images) + doubled


def a_number(self, images):
    return self.conv(images) + 2


def with_a_factor(self, images):
    return torch.add(self.conv(images), images, alpha=3)


def into_the_identity(self, images):
    identity = self.other(images).sin()
    out = self.conv(images)
    identity += out
    return identity * 2


def into_an_identity_used_before(self, images):
    identity = images.sin()
    view = identity[:, :1]
    identity += self.conv(images)
    return F.relu(identity) + view


def written_between(self, images):
    images = images.sin()
    out = self.conv(images)
    images.mul_(2)
    return F.relu(out + images)


def written_between_by_a_layer(self, images):
    images = images.sin()
    out = self.conv(images)
    self.layer(images)
    return F.relu(out + images)


def written_through_a_view(self, images):
    images = self.layer(images.sin())
    out = self.conv(images)
    images[:, 1].zero_()
    return out + images


def output_written(self, images):
    out = self.conv(images)
    out.mul_(3)
    return F.relu(out) + images


def output_written_through_a_view(self, images):
    out = self.conv(images)
    out[:, 0].zero_()
    return F.relu(out)


@pytest.mark.parametrize(
    ("written", "layer", "kept"),
    [
        (two_users, None, "relu"),
        (added_to_itself, None, "add"),
        (broadcast, None, "add"),
        (broadcast_over_the_batch, None, "add"),
        (another_type, None, "add"),
        (a_number, None, "add"),
        (with_a_factor, None, "add"),
        (written_between, None, "add"),
        (written_between_by_a_layer, nn.ReLU(inplace=True), "add"),
        (written_through_a_view, nn.Identity(), "add"),
        (written_through_a_view, nn.Dropout(), "add"),
        (output_written, None, "relu"),
        (output_written_through_a_view, None, "relu"),
    ],
)
def test_what_something_else_depends_on_stays_apart(written, layer, kept):
    graph = assert_same(Written(written, layer))
    assert kept in layers_of(graph)
    assert PACKED in layers_of(graph)


@pytest.mark.parametrize("written", [into_the_identity, into_an_identity_used_before])
def test_a_sum_that_is_written_into_the_identity_stays_apart(written):
    graph = assert_same(Written(written, in_place=True))
    assert "iadd" in layers_of(graph)


def into_the_output(self, images):
    images = images.sin()
    out = self.conv(images)
    out += images
    return F.relu(out) * images


def test_a_sum_that_is_written_into_the_output_is_joined():
    graph = assert_same(Written(into_the_output, in_place=True))
    assert layers_of(graph) == ["sin", PACKED, "mul"]


def input_written_before_the_activation(self, images):
    images = images.sin()
    out = self.conv(images)
    images.mul_(2)
    return F.relu(out) + images


def identity_written_before_the_activation(self, images):
    identity = images.sin()
    out = self.conv(images) + identity
    identity.mul_(2)
    return F.relu(out) + identity


def identity_written_before_the_convolution(self, images):
    identity = images.sin()
    first = identity + 0
    identity.mul_(2)
    return F.relu(self.conv(first) + identity)


def input_is_the_identity(self, images):
    identity = self.layer(images)
    out = self.conv(images)
    out += identity
    return F.relu(out)


def identity_comes_later(self, images):
    out = self.conv(images)
    return F.relu(out + self.other(images))


def output_is_written_afterwards(self, images):
    images = images.sin()
    out = self.conv(images) + images
    out.mul_(2)
    return out + images


def called_twice(self, images):
    images = F.relu(self.conv(images))
    return F.relu(self.conv(images) + images)


def called_twice_at_two_sizes(self, images):
    return self.conv(images).mean() + F.relu(self.conv(images[:, :, ::2, 1:]))


@pytest.mark.parametrize(
    ("written", "layer"),
    [
        (input_written_before_the_activation, None),
        (identity_written_before_the_activation, None),
        (identity_written_before_the_convolution, None),
        (input_is_the_identity, nn.Identity()),
        (input_is_the_identity, nn.Dropout()),
        (identity_comes_later, None),
        (output_is_written_afterwards, None),
        (called_twice, None),
        (called_twice_at_two_sizes, None),
    ],
)
def test_what_is_joined_is_computed_from_what_was_there_then(written, layer):
    graph = assert_same(Written(written, layer))
    assert "relu" not in layers_of(graph)
    assert "Conv2d" not in layers_of(graph)


def test_maps_that_lie_otherwise_in_memory_are_added_rightly():
    def forward(self, images):
        shared = images[:1, :, :1, :1].expand(images.shape)
        return self.conv(images.transpose(2, 3)) + (
            self.other(images[:, ::2].repeat(1, 2, 1, 1)[:, :3]) + shared
        )

    assert layers_of(assert_same(Written(forward))).count(PACKED) == 2


def test_sums_of_a_single_channel():
    module = Written(identity_comes_later)
    module.conv, module.other = nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(3, 1, 1)
    assert layers_of(assert_same(module)) == [PACKED, PACKED, "add", "relu"]


def test_a_network_that_writes_into_its_images_does_so_once():
    module = Written(lambda self, images: F.relu(self.conv(images.mul_(2)))).eval()
    images = IMAGES.clone(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = module(IMAGES.clone())
    forward = FastForward(module, Form("fp32", False, False, 4, packed=True), FP32)
    assert distance(forward(images), expected) < 1e-5
    assert forward.notes == []


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
    module = varied(torchvision.models.resnet18(weights=None))
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
    module = varied(torchvision.models.resnet18(weights=None))
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


def varied(model):
    """Batch norm that has seen images, so that folding it wrongly would show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


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
    model = varied(torchvision.models.get_model(name, weights=None, num_classes=10, **options))
    images = torch.randn(3, 3, *([75] * 2 if name == "inception_v3" else [33] * 2))
    forward = FastForward(model, Form("fp32", True, False, 4, packed=True), FP32)
    with torch.no_grad():
        expected = model(images)
    for count in (3, 1):
        assert distance(forward(images[:count]), expected[:count]) < 1e-5
    assert forward.notes == []
    assert any(isinstance(each, _PackedConvolution) for each in forward._module.modules())
    assert not any(isinstance(each, nn.Conv2d) for each in forward._module.modules())
