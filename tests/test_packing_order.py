"""What is packed is computed from what was there at its place, and nothing else is taken in."""

from __future__ import annotations

import pytest
import torch
from packed_nets import FP32, IMAGES, PACKED, Written, assert_same, distance, layers_of
from torch import nn
from torch.nn import functional as F

from transferkit.inference import FastForward, Form
from transferkit.packing import can_pack

pytestmark = pytest.mark.skipif(not can_pack(nn.Conv2d(3, 3, 1), "cpu"), reason="torch is without oneDNN")


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
