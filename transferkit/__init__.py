"""Adapt a pretrained vision model to your own images, on plain PyTorch.

Names resolve on first use, so that importing the package imports nothing heavy by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# A public name, and the module that defines it.
_HOMES = {
    "Augmentation": "transferkit.augmentations",
    "BackboneSpec": "transferkit.backbones.spec",
    "Callback": "transferkit.training.callbacks",
    "Execution": "transferkit.runtime",
    "History": "transferkit.training.history",
    "Part": "transferkit.datasets.base",
    "Phase": "transferkit.training.phases",
    "Predictor": "transferkit.predictor",
    "Preprocessing": "transferkit.backbones.preprocessing",
    "Report": "transferkit.evaluation.report",
    "Splits": "transferkit.datasets.base",
    "Stage": "transferkit.backbones.spec",
    "Summary": "transferkit.model_summary",
    "Trainer": "transferkit.trainer",
    "TransferkitError": "transferkit.errors",
    "attach_spec": "transferkit.backbones.attach",
    "augmentation": "transferkit.augmentations",
    "class_names": "transferkit.heads",
    "eval_step": "transferkit.training.steps",
    "evaluate": "transferkit.evaluation.scoring",
    "freeze": "transferkit.freezing",
    "list_augmentations": "transferkit.augmentations",
    "list_backbones": "transferkit.backbones.registry",
    "list_datasets": "transferkit.datasets.registry",
    "list_recipes": "transferkit.training.recipes",
    "load_backbone": "transferkit.backbones.load",
    "load_dataset": "transferkit.datasets.load",
    "load_model": "transferkit.saved_model",
    "parameter_groups": "transferkit.param_groups",
    "register_augmentation": "transferkit.augmentations",
    "register_backbone": "transferkit.backbones.registry",
    "register_dataset": "transferkit.datasets.registry",
    "register_recipe": "transferkit.training.recipes",
    "replace_head": "transferkit.heads",
    "save_model": "transferkit.saved_model",
    "spec_of": "transferkit.backbones.spec",
    "summary": "transferkit.model_summary",
    "train_step": "transferkit.training.steps",
    "unfreeze": "transferkit.freezing",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'transferkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
