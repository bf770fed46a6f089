"""Networks to pack, and what compares a packed graph with its module."""

from __future__ import annotations

import copy
import operator

import torch
from torch import fx, nn

from transferkit.packing import packed
from transferkit.runtime import Execution

IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
PACKED = "PackedConvolution"
FP32 = Execution("cpu", "fp32", channels_last=True, compile=False)


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


def random_statistics(model):
    """Batch norm that has seen images, so that folding it wrongly would show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return model.eval()
