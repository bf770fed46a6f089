"""Small models of torchvision's families, each with its batch norm, dropout or stochastic depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock


class TinyModel(NamedTuple):
    build: Callable[[], nn.Module]
    size: int
    head: str
    features: int

    def batch(self, count: int = 2, device: torch.device | str = "cpu") -> Tensor:
        return torch.randn(count, 3, self.size, self.size).to(device)


TINY_MODELS = {
    "resnet": TinyModel(lambda: models.ResNet(BasicBlock, [1, 1, 1, 1]), 32, "fc", 512),
    "squeezenet": TinyModel(lambda: models.squeezenet1_1(weights=None), 32, "classifier.1", 512),
    "densenet": TinyModel(
        lambda: models.DenseNet(4, (2, 2), num_init_features=8, drop_rate=0.2), 32, "classifier", 16
    ),
    "googlenet": TinyModel(
        lambda: models.googlenet(weights=None, aux_logits=False, init_weights=False), 32, "fc", 1024
    ),
    "inception": TinyModel(
        lambda: models.inception_v3(weights=None, aux_logits=False, init_weights=False), 75, "fc", 2048
    ),
    "mobilenet_v3": TinyModel(
        lambda: models.mobilenet_v3_small(weights=None, width_mult=0.25), 32, "classifier.3", 256
    ),
    "efficientnet": TinyModel(
        lambda: models.efficientnet_b0(weights=None, stochastic_depth_prob=0.5), 32, "classifier.1", 1280
    ),
    "convnext": TinyModel(
        lambda: models.ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)], 0.5),
        32,
        "classifier.2",
        16,
    ),
    "vit": TinyModel(
        lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, dropout=0.1, attention_dropout=0.1),
        32,
        "heads.head",
        16,
    ),
    "swin": TinyModel(
        lambda: models.SwinTransformer(
            [4, 4], 8, [1, 1], [2, 2], [4, 4], dropout=0.1, stochastic_depth_prob=0.5
        ),
        32,
        "head",
        16,
    ),
    "maxvit": TinyModel(
        lambda: models.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 4, stochastic_depth_prob=0.5),
        32,
        "classifier.5",
        16,
    ),
}
