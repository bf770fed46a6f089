"""One model of each family does what its record says, against torchvision's own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models
from without_values import without_values

from transferkit.backbones.load import load_backbone
from transferkit.backbones.spec import spec_of
from transferkit.backbones.stages import stage_indices
from transferkit.errors import ArgumentError
from transferkit.heads import find_head, replace_head

# A model of each family, and the side of an image that it can take.
FAMILIES = {
    "alexnet": 63,
    "vgg11": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "wide_resnet50_2": 32,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "densenet121": 29,
    "inception_v3": 75,
    "googlenet": 15,
    "shufflenet_v2_x0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "mnasnet0_5": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "regnet_x_400mf": 32,
    "regnet_y_400mf": 32,
    "convnext_tiny": 32,
    "vit_b_32": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "maxvit_t": 224,
}


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def photo():
    """A picture with edges, gradients and noise, of odd sides."""
    rows, columns = np.mgrid[0:357, 0:481]
    waves = np.stack([np.sin(rows / 9), np.cos(columns / 13), np.sin((rows + columns) / 31)], axis=-1)
    noise = np.random.default_rng(0).normal(size=waves.shape)
    return Image.fromarray(np.clip(128 + 90 * waves + 20 * noise, 0, 255).astype(np.uint8))


def default_transforms(name):
    return models.get_model_weights(name).DEFAULT.transforms()


@pytest.fixture(scope="module", params=FAMILIES)
def built(request):
    """A model with random weights, and the side of the images that it was built for."""
    size = FAMILIES[request.param]
    return load_backbone(request.param, weights=None, image_size=size), size


def test_with_a_new_head_it_gives_logits_in_both_modes(built, device):
    model, size = built
    model = replace_head(copy.deepcopy(model).to(device), 7)
    images = torch.rand(2, 3, size, size, device=device)
    for mode in (True, False):
        logits = model.train(mode)(images)
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()


def test_sides_that_no_stride_divides_are_taken_too(built):
    model, size = built
    name = spec_of(model).name
    if "vit" in name:
        pytest.skip("the side of its images is fixed when it is built")
    odd = load_backbone(name, weights=None, num_classes=3, image_size=size + 14).eval()
    assert odd(torch.rand(1, 3, size + 14, size + 14)).shape == (1, 3)


def test_its_keys_are_those_of_torchvision(built):
    model, _ = built
    spec = spec_of(model)
    with without_values():
        reference = models.get_model(spec.name, weights=None, **spec.builder_kwargs)
    assert type(model) is type(reference)
    assert shapes_of(model) == shapes_of(reference)


def test_with_a_new_head_only_keys_below_the_head_differ(built):
    name = spec_of(built[0]).name
    with without_values():
        before = load_backbone(name, weights=None, image_size=FAMILIES[name])
        after = replace_head(copy.deepcopy(before), 7, head="mlp")
    head = spec_of(before).head
    changed = {key for key, _ in shapes_of(before).items() ^ shapes_of(after).items()}
    assert changed
    assert {key for key in changed if not key.startswith(f"{head}.")} == set()


def test_the_head_is_the_last_layer_with_parameters(built):
    model, _ = built
    spec = spec_of(model)
    head = model.get_submodule(spec.head)
    assert isinstance(head, (nn.Linear, nn.Conv2d))
    assert head.weight.shape[0] == spec.num_classes == 1000
    assert list(model.parameters())[-1] is list(head.parameters())[-1]
    assert find_head(model) == spec.head


def check_stages(model):
    spec = spec_of(model)
    indices = stage_indices(model)
    head = {name for name in indices if name.startswith(f"{spec.head}.")}
    assert indices.keys() == dict(model.named_parameters()).keys()
    assert {indices[name] for name in head} == {len(spec.stages)}
    assert {index for name, index in indices.items() if name not in head} == set(range(len(spec.stages)))
    members = [member for stage in spec.stages for member in stage.members]
    for member in members:
        model.get_submodule(member)
    assert len(set(members)) == len(members)
    assert len(spec.stages) >= 3
    assert len({stage.name for stage in spec.stages}) == len(spec.stages)
    # From input to output is the order in which torchvision registers, too.
    assert list(indices.values()) == sorted(indices.values())


def test_its_stages_hold_every_parameter_in_order(built):
    check_stages(built[0])


def test_all_models_of_torchvision_are_as_their_records_say():
    picture = photo()
    compared = set()
    for name in models.list_models(module=models):
        with without_values():
            model = load_backbone(name, weights=None)
            reference = models.get_model(name, weights=None, **spec_of(model).builder_kwargs)
        spec = spec_of(model)
        assert shapes_of(model) == shapes_of(reference), name
        assert model.get_submodule(spec.head).weight.shape[0] == 1000, name
        check_stages(model)
        transforms = default_transforms(name)
        if (spec.preprocessing, repr(transforms)) not in compared:
            assert torch.equal(spec.preprocessing(picture), transforms(picture)), name
            compared.add((spec.preprocessing, repr(transforms)))


@pytest.mark.parametrize("name", ["resnet18", "regnet_x_400mf", "swin_t"])
def test_without_values_it_has_the_shapes_that_it_has_with_them(name):
    with torch.device("meta"):
        without = load_backbone(name, weights=None, num_classes=3)
    assert {tensor.device.type for tensor in without.state_dict().values()} == {"meta"}
    assert shapes_of(without) == shapes_of(load_backbone(name, weights=None, num_classes=3))


@pytest.mark.parametrize(
    ("name", "stage", "parameter"),
    [
        ("resnet18", "layer3", "layer3.1.bn2.weight"),
        ("vgg11", "conv2", "features.3.weight"),
        ("vgg11_bn", "conv5", "features.26.bias"),
        ("squeezenet1_1", "stage4", "features.12.expand1x1.weight"),
        ("inception_v3", "mixed6", "Mixed_6e.branch1x1.conv.weight"),
        ("densenet121", "block2", "features.transition2.conv.weight"),
        ("mobilenet_v3_small", "stage4", "classifier.0.weight"),
        ("efficientnet_b0", "stage3", "features.2.1.block.0.0.weight"),
        ("convnext_tiny", "stage3", "features.4.1.weight"),
        ("vit_b_32", "stem", "class_token"),
        ("vit_b_32", "stem", "encoder.pos_embedding"),
        ("vit_b_32", "block12", "encoder.ln.weight"),
        ("swin_t", "block4", "features.4.reduction.weight"),
        ("maxvit_t", "block5", "blocks.2.layers.0.layers.MBconv.layers.pre_norm.weight"),
        ("maxvit_t", "block11", "classifier.3.weight"),
    ],
)
def test_a_parameter_is_in_the_stage_where_one_looks_for_it(name, stage, parameter):
    with without_values():
        model = load_backbone(name, weights=None)
    assert spec_of(model).stages[stage_indices(model)[parameter]].name == stage


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        ("alexnet", 63),
        ("vgg11", 32),
        ("squeezenet1_0", 21),
        ("squeezenet1_1", 17),
        ("densenet121", 29),
        ("inception_v3", 75),
        ("googlenet", 15),
        ("convnext_tiny", 32),
        ("swin_t", 4),
    ],
)
def test_the_smallest_size_is_refused_below_what_torchvision_can_run(name, smallest):
    with pytest.raises(
        ArgumentError, match=f"must be an int of at least {smallest} for '{name}'. Got {smallest - 1} instead"
    ):
        load_backbone(name, weights=None, image_size=smallest - 1)
    model = load_backbone(name, weights=None, num_classes=3, image_size=smallest).eval()
    assert model(torch.rand(1, 3, smallest, smallest)).shape == (1, 3)
    with pytest.raises(RuntimeError):
        model(torch.rand(1, 3, smallest - 1, smallest - 1))


@pytest.mark.parametrize(
    ("name", "size", "valid"),
    [
        ("vit_b_16", 100, "a multiple of 16, such as 96 or 112,"),
        ("vit_b_32", 16, "a multiple of 32, such as 32 or 64,"),
        ("vit_h_14", 16, "a multiple of 14, such as 14 or 28,"),
        ("maxvit_t", 256, "a multiple of 224, such as 224 or 448,"),
    ],
)
def test_a_size_that_does_not_divide_is_refused_with_sizes_that_do(name, size, valid):
    with (
        without_values(),
        pytest.raises(ArgumentError, match=f"must be {valid} for '{name}'. Got {size} instead"),
    ):
        load_backbone(name, weights=None, image_size=size)
    with without_values():
        right = int(valid.split(" or ")[1].rstrip(","))
        assert spec_of(load_backbone(name, weights=None, image_size=right)).preprocessing.size == right


def test_a_size_for_the_builder_must_agree_with_the_size_of_the_images():
    with without_values():
        model = load_backbone("maxvit_t", weights=None, image_size=448, input_size=(448, 448))
        assert spec_of(model).builder_kwargs["input_size"] == [448, 448]
        with pytest.raises(ArgumentError, match=r"'input_size' .* must be left out"):
            load_backbone("maxvit_t", weights=None, input_size=(448, 448))


def test_what_the_builder_refuses_is_said_in_one_sentence():
    with pytest.raises(ArgumentError, match=r"torchvision cannot build 'resnet18' as asked: .*'depth'"):
        load_backbone("resnet18", weights=None, depth=18)
    with pytest.raises(ArgumentError, match=r"torchvision cannot build 'resnet18' as asked: .*dilation"):
        load_backbone("resnet18", weights=None, replace_stride_with_dilation=[True])


def test_arguments_of_the_builder_change_the_architecture_and_are_kept_in_the_spec():
    with without_values():
        model = load_backbone("mobilenet_v2", weights=None, width_mult=0.25, dropout=0.5)
    assert model.classifier[0].p == 0.5
    assert model.features[0][0].out_channels == 8
    assert spec_of(model).builder_kwargs == {"width_mult": 0.25, "dropout": 0.5}
