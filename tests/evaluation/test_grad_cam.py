"""Grad-CAM agrees with what is computed by hand, and leaves the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import TINY_MODELS
from torch import nn
from torch.nn import functional as F

import transferkit as tk
from transferkit.backbones.spec import set_spec
from transferkit.errors import ArgumentError
from transferkit.evaluation.grad_cam import grad_cam
from transferkit.modes import asked_mode


def tiny(name: str) -> tuple[nn.Module, torch.Tensor]:
    model = TINY_MODELS[name].build().eval()
    if name == "vit":
        nn.init.normal_(model.heads.head.weight)  # torchvision begins with zeros, which have no gradient
    return model, TINY_MODELS[name].batch(2)


def resized_and_scaled(heat: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    heat = F.interpolate(heat.relu()[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax(dim=(1, 2), keepdim=True)


def state_of(model: nn.Module) -> dict[str, object]:
    return {
        "modes": [module.training for module in model.modules()],
        "asked": [asked_mode(module) for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "trains": [each.requires_grad for each in model.parameters()],
        "grads": [None if each.grad is None else each.grad.clone() for each in model.parameters()],
        "values": copy.deepcopy(model.state_dict()),
    }


def test_of_a_cnn_it_is_the_class_activation_map() -> None:
    # With average pooling and one linear layer, the weights are those of the class, divided by the places.
    model, images = tiny("resnet")
    with torch.no_grad():
        maps = nn.Sequential(*list(model.children())[:-2])(images.repeat(1, 1, 4, 4))
        targets = torch.tensor([3, 7])
        by_hand = torch.einsum("nc,nchw->nhw", model.fc.weight[targets], maps)
    heat = grad_cam(model, images.repeat(1, 1, 4, 4), targets)
    torch.testing.assert_close(heat, resized_and_scaled(by_hand, (128, 128)))


def test_of_swin_it_is_the_class_activation_map_of_the_normed_maps() -> None:
    model, _ = tiny("swin")
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        maps = model.norm(model.features(images))
        by_hand = torch.einsum("nc,nhwc->nhw", model.head.weight[[5, 5]], maps)
    heat = grad_cam(model, images, 5)
    torch.testing.assert_close(heat, resized_and_scaled(by_hand, (32, 48)))


def test_of_vit_it_is_computed_on_the_tokens_of_the_last_input_norm() -> None:
    model, images = tiny("vit")
    kept = []
    norm = model.encoder.layers[-1].ln_1
    handle = norm.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(images)
    handle.remove()
    (slopes,) = torch.autograd.grad(logits.amax(dim=1).sum(), kept[0])
    weights, tokens = slopes[:, 1:].mean(dim=1), kept[0][:, 1:].detach()
    by_hand = torch.einsum("nc,ntc->nt", weights, tokens).view(2, 4, 4)
    torch.testing.assert_close(grad_cam(model, images), resized_and_scaled(by_hand, (32, 32)))


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_architecture_has_maps(name: str, device: torch.device) -> None:
    model, images = tiny(name)
    heat = grad_cam(model.to(device), images.to(device), layer=None)
    assert heat.shape == (2, *images.shape[2:])
    assert heat.dtype == torch.float32
    assert heat.device.type == device.type
    assert not heat.requires_grad
    assert float(heat.min()) >= 0
    # A random model may have nothing that speaks for a class; then all is 0.
    assert all(largest in (0.0, 1.0) for largest in heat.amax(dim=(1, 2)).tolist())


@pytest.mark.parametrize("name", ["resnet", "densenet", "vit", "swin"])
@pytest.mark.parametrize("frozen", ["nothing", "backbone", "everything"])
def test_it_leaves_the_model_as_it_was(name: str, frozen: str) -> None:
    model, images = tiny(name)
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    if frozen != "nothing":
        tk.freeze(model, except_="head" if frozen == "backbone" else None)
    before = state_of(model)
    heat = grad_cam(model, images)
    after = state_of(model)
    for what in ("modes", "asked", "hooks", "trains"):
        assert after[what] == before[what], what
    torch.testing.assert_close(after["grads"], before["grads"], rtol=0, atol=0)
    torch.testing.assert_close(after["values"], before["values"], rtol=0, atol=0)
    with torch.inference_mode():
        assert torch.equal(grad_cam(model, images.clone()), heat)
    with torch.no_grad():
        assert torch.equal(grad_cam(nn.DataParallel(model), images), heat)
    tk.unfreeze(model)  # torch computes attention in another way where nothing trains
    torch.testing.assert_close(grad_cam(model, images), heat)


def test_hooks_are_gone_after_an_error_too() -> None:
    model, images = tiny("resnet")
    before = state_of(model)
    for arguments in ({"target": 1000}, {"layer": "fc"}, {"target": [1, 2, 3]}):
        with pytest.raises(ArgumentError):
            grad_cam(model, images, **arguments)
    with pytest.raises(RuntimeError, match="channels"):
        grad_cam(model, torch.zeros(1, 4, 32, 32))
    assert state_of(model)["hooks"] == before["hooks"]
    assert state_of(model)["modes"] == before["modes"]


def test_each_image_has_its_own_target() -> None:
    model, images = tiny("squeezenet")
    both = grad_cam(model, images, torch.tensor([4, 9]))
    torch.testing.assert_close(both[:1], grad_cam(model, images[:1], 4))
    torch.testing.assert_close(both[1:], grad_cam(model, images[1:], [9]))
    best = model(images).argmax(dim=1)
    assert torch.equal(grad_cam(model, images), grad_cam(model, images, best))


def test_a_layer_can_be_named_by_stage_or_by_path() -> None:
    model = tk.load_backbone("mini")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(grad_cam(model, images, layer="layer2"), grad_cam(model, images, layer="layer2.1"))
    assert torch.equal(grad_cam(model, images), grad_cam(model, images, layer="expand"))
    assert not torch.equal(grad_cam(model, images), grad_cam(model, images, layer="layer2"))
    vit, images = tiny("vit")
    block = "encoder.layers.encoder_layer_1"
    assert torch.equal(grad_cam(vit, images), grad_cam(vit, images, layer=f"{block}.ln_1"))


@pytest.mark.parametrize(("side", "stage"), [(64, "layer4"), (32, "layer3"), (16, "layer2")])
def test_of_small_images_a_layer_with_more_than_one_place_is_taken(side: int, stage: str) -> None:
    model, _ = tiny("resnet")
    stages = tuple(tk.Stage(f"layer{number}", (f"layer{number}",)) for number in range(1, 5))
    set_spec(model, tk.BackboneSpec("custom", "fc", tk.Preprocessing(size=side), stages))
    images = torch.randn(1, 3, side, side)
    assert torch.equal(grad_cam(model, images), grad_cam(model, images, layer=stage))
    if stage != "layer4":
        with pytest.raises(
            ArgumentError, match="'layer' parameter of grad_cam must be a layer that gives maps"
        ):
            grad_cam(model, images, layer="layer4")


def test_it_finds_where_the_evidence_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(model, nn.Linear(2, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[0][0].weight[0, 0] = model[0][0].weight[1, 2] = 1.0  # one map of red, one of blue
        model[1].weight.copy_(torch.eye(2))
    image = torch.zeros(1, 3, 8, 8)
    image[0, 0, :4, :4] = 1.0
    image[0, 2, 4:, 4:] = 1.0
    red, blue = (grad_cam(model, image, target)[0] for target in (0, 1))
    assert red[1, 1] == blue[6, 6] == 1.0
    assert red[6, 6] == blue[1, 1] == 0.0


def test_wrong_arguments() -> None:
    model, images = tiny("resnet")
    with pytest.raises(
        ArgumentError, match="'target' parameter of grad_cam must be a class index below 1000"
    ):
        grad_cam(model, images, -1)
    with pytest.raises(
        ArgumentError, match=r"'images' parameter of grad_cam must be a float tensor \[N, 3, H"
    ):
        grad_cam(model, images.to(torch.uint8))
    with pytest.raises(ArgumentError, match=r"'layer' parameter of grad_cam must be a stage .* Got 'layer9'"):
        grad_cam(model, images, layer="layer9")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2))
    with pytest.raises(ArgumentError, match=r"'model' parameter of grad_cam must have a layer .* 2 x 2 px"):
        grad_cam(flat, torch.zeros(1, 3, 2, 2))
    unused = nn.ModuleDict({"body": nn.Conv2d(3, 2, 1), "fc": nn.Linear(2, 2)})
    unused.forward = lambda images: unused["fc"](unused["body"](images).detach().mean(dim=(2, 3)))
    with pytest.raises(ArgumentError, match=r"must be a layer that the logits depend on\. Got 'body'"):
        grad_cam(unused, torch.zeros(1, 3, 4, 4), layer="body")
