"""The backbone that ships inside the package: a small residual network for 32 px images."""

from __future__ import annotations

import json
from collections import OrderedDict
from importlib import resources
from typing import Any

from torch import Tensor, nn

from transferkit.backbones.preprocessing import Preprocessing
from transferkit.backbones.registry import register_backbone
from transferkit.backbones.spec import BackboneSpec, Stage
from transferkit.checks import check_choice, check_int, require

_WEIGHTS = "imagenet200"
_STAGES = (
    Stage("stem", ("stem",)),
    Stage("layer1", ("layer1",)),
    Stage("layer2", ("layer2",)),
    Stage("layer3", ("layer3", "expand")),
)


def _conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
            norm=nn.BatchNorm2d(out_channels),
        )
    )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut that averages where it shrinks.

    Source:
        He et al. (2016), https://arxiv.org/abs/1512.03385; the averaging shortcut is
        ResNet-D of He et al. (2019), https://arxiv.org/abs/1812.01187.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(in_channels, out_channels, 3, stride)
        self.second = _conv_norm(out_channels, out_channels, 3)
        self.activation = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True), _conv_norm(in_channels, out_channels, 1)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, in, H, W]`` to ``[N, out, H / stride, W / stride]``."""
        inner = self.second(self.activation(self.first(images)))
        outer: Tensor = self.activation(inner + self.shortcut(images))
        return outer


class MiniResNet(nn.Module):
    """A residual network of 1.3 million parameters below its head, for images of 32 px.

    Args:
        num_classes: Number of outputs.
    """

    widths = (48, 96, 160)
    features = 512

    def __init__(self, num_classes: int = 200) -> None:
        super().__init__()
        check_int("MiniResNet", "num_classes", num_classes, 1)
        first, second, third = self.widths
        self.stem = nn.Sequential(_conv_norm(3, 32, 3), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(ResidualBlock(32, first, 2), ResidualBlock(first, first, 1))
        self.layer2 = nn.Sequential(ResidualBlock(first, second, 2), ResidualBlock(second, second, 1))
        self.layer3 = nn.Sequential(ResidualBlock(second, third, 2), ResidualBlock(third, third, 1))
        self.expand = nn.Sequential(_conv_norm(third, self.features, 1), nn.ReLU(inplace=True))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(self.features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[N, 3, H, W]`` to logits ``[N, num_classes]``."""
        maps = self.layer3(self.layer2(self.layer1(self.stem(images))))
        logits: Tensor = self.fc(self.pool(self.expand(maps)))
        return logits


def embedded_record() -> dict[str, Any]:
    """Return how the shipped weights came to be: data, licence note, command and figures."""
    text = resources.files("transferkit.backbones").joinpath("weights/mini.json").read_text("utf-8")
    record: dict[str, Any] = json.loads(text)
    return record


def _embedded_state() -> dict[str, Tensor]:
    from safetensors.torch import load

    data = resources.files("transferkit.backbones").joinpath("weights/mini.safetensors").read_bytes()
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load(data).items()
    }


@register_backbone("mini")
def mini(
    *, weights: str | None = "default", num_classes: int | None = None, image_size: int | None = None
) -> tuple[nn.Module, BackboneSpec]:
    """Build the embedded backbone; its weights (``"imagenet200"``) come with the package."""
    preprocessing = Preprocessing(size=32)
    if image_size is not None:
        smallest = 8  # three stages halve the side
        valid = isinstance(image_size, int) and image_size >= smallest
        require(valid, "load_backbone", "image_size", f"an int of at least {smallest} for 'mini'", image_size)
        preprocessing = preprocessing.with_size(image_size)
    if weights is None:
        module = MiniResNet(200 if num_classes is None else num_classes)
        return module, BackboneSpec("mini", "fc", preprocessing, _STAGES, num_classes=module.fc.out_features)
    check_choice("load_backbone('mini')", "weights", weights, ("default", _WEIGHTS))
    classes = tuple(embedded_record()["classes"])
    module = MiniResNet(len(classes))
    module.load_state_dict(_embedded_state())
    spec = BackboneSpec("mini", "fc", preprocessing, _STAGES, classes, len(classes), weights=_WEIGHTS)
    return module, spec
