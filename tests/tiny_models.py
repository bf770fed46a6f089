"""Small models of torchvision's families, each with its batch norm, dropout or stochastic depth.

And small configs of transformers' families, for images of 32 px.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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

_TRANSFORMER = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "hidden_dropout_prob": 0.1,
}
_WINDOWS = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [2, 2],
    "window_size": 4,
    "drop_path_rate": 0.2,
}
_PYRAMID = {"hidden_sizes": [8, 16], "depths": [1, 2]}

TINY_HF: dict[str, dict[str, Any]] = {
    "beit": _TRANSFORMER | {"intermediate_size": 16},
    "convnext": _PYRAMID | {"num_stages": 2, "drop_path_rate": 0.2},
    "convnextv2": _PYRAMID | {"num_stages": 2, "drop_path_rate": 0.2},
    "deit": _TRANSFORMER | {"intermediate_size": 16},
    "dinov2": _TRANSFORMER | {"mlp_ratio": 2},
    "dinov2_with_registers": _TRANSFORMER | {"mlp_ratio": 2, "num_register_tokens": 2},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "image_size": 32, "hidden_dim": 128}
    | {"initializer_range": 0.5},
    "mobilenet_v1": {"depth_multiplier": 0.1, "min_depth": 8},
    "mobilenet_v2": {"depth_multiplier": 0.1, "min_depth": 8},
    "regnet": _PYRAMID | {"embedding_size": 8, "groups_width": 8},
    "resnet": _PYRAMID | {"embedding_size": 8, "layer_type": "basic"},
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "vit": _TRANSFORMER | {"intermediate_size": 16},
    "vit_msn": _TRANSFORMER | {"intermediate_size": 16},
}
"""The fields of a small config, by the ``model_type`` of transformers."""

HF_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
"""What ``preprocessor_config.json`` holds for images of 32 px."""


def tiny_hf(kind: str, labels: tuple[str, ...] = ("ant", "bee", "wasp"), **fields: Any) -> nn.Module:
    """Build a small classifier of transformers with random weights."""
    import transformers

    names = dict(enumerate(labels))
    config = transformers.AutoConfig.for_model(kind, **TINY_HF[kind] | fields, id2label=names)
    config.label2id = {label: number for number, label in names.items()}
    config.architectures = []
    return transformers.AutoModelForImageClassification.from_config(config)


def save_tiny_hf(folder: Path, kind: str = "vit", **fields: Any) -> nn.Module:
    """Save a small classifier of transformers with its image processor, and return it."""
    model = tiny_hf(kind, **fields)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:  # otherwise the logits would hardly depend on the images
        with torch.no_grad():
            model.train()(torch.randn(16, 3, 64, 64))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(HF_PROCESSOR))
    return model.eval()
