"""Adapt a pretrained vision model to your own images, on plain PyTorch.

Names resolve on first use, so that importing the package imports nothing heavy by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what type checkers and editors see; a test holds it equal to _HOMES
    from transferkit.augmentations import Augmentation as Augmentation
    from transferkit.augmentations import augmentation as augmentation
    from transferkit.augmentations import list_augmentations as list_augmentations
    from transferkit.augmentations import per_sample as per_sample
    from transferkit.augmentations import register_augmentation as register_augmentation
    from transferkit.backbones.attach import attach_spec as attach_spec
    from transferkit.backbones.load import load_backbone as load_backbone
    from transferkit.backbones.preprocessing import Preprocessing as Preprocessing
    from transferkit.backbones.registry import list_backbones as list_backbones
    from transferkit.backbones.registry import register_backbone as register_backbone
    from transferkit.backbones.spec import BackboneSpec as BackboneSpec
    from transferkit.backbones.spec import Stage as Stage
    from transferkit.backbones.spec import spec_of as spec_of
    from transferkit.batch_norm import adapt_batch_norm as adapt_batch_norm
    from transferkit.datasets.base import Part as Part
    from transferkit.datasets.base import Splits as Splits
    from transferkit.datasets.load import load_dataset as load_dataset
    from transferkit.datasets.registry import list_datasets as list_datasets
    from transferkit.datasets.registry import register_dataset as register_dataset
    from transferkit.errors import TransferkitError as TransferkitError
    from transferkit.evaluation.grad_cam import grad_cam as grad_cam
    from transferkit.evaluation.image_figures import plot_grad_cam as plot_grad_cam
    from transferkit.evaluation.image_figures import plot_images as plot_images
    from transferkit.evaluation.image_figures import plot_mistakes as plot_mistakes
    from transferkit.evaluation.image_figures import plot_predictions as plot_predictions
    from transferkit.evaluation.image_figures import plot_training_images as plot_training_images
    from transferkit.evaluation.plots import most_confused as most_confused
    from transferkit.evaluation.plots import plot_confusion_matrix as plot_confusion_matrix
    from transferkit.evaluation.plots import plot_reliability as plot_reliability
    from transferkit.evaluation.report import Report as Report
    from transferkit.evaluation.scoring import evaluate as evaluate
    from transferkit.features.extract import Features as Features
    from transferkit.features.extract import extract_features as extract_features
    from transferkit.features.probe import probe_backbones as probe_backbones
    from transferkit.freezing import freeze as freeze
    from transferkit.freezing import unfreeze as unfreeze
    from transferkit.heads import class_names as class_names
    from transferkit.heads import replace_head as replace_head
    from transferkit.model_summary import Summary as Summary
    from transferkit.model_summary import summary as summary
    from transferkit.param_groups import parameter_groups as parameter_groups
    from transferkit.predictor import Predictor as Predictor
    from transferkit.runtime import Execution as Execution
    from transferkit.runtime import resolve_execution as resolve_execution
    from transferkit.saved_model import load_model as load_model
    from transferkit.saved_model import save_model as save_model
    from transferkit.trainer import Trainer as Trainer
    from transferkit.training.callbacks import Callback as Callback
    from transferkit.training.history import History as History
    from transferkit.training.keeping import Checkpoints as Checkpoints
    from transferkit.training.loop import PhaseTools as PhaseTools
    from transferkit.training.loop import run_epoch as run_epoch
    from transferkit.training.loop import run_phase as run_phase
    from transferkit.training.phases import Phase as Phase
    from transferkit.training.recipes import list_recipes as list_recipes
    from transferkit.training.recipes import register_recipe as register_recipe
    from transferkit.training.steps import eval_step as eval_step
    from transferkit.training.steps import train_step as train_step
    from transferkit.training.tensorboard import TensorBoard as TensorBoard

# A public name, and the module that defines it.
_HOMES = {
    "Augmentation": "transferkit.augmentations",
    "BackboneSpec": "transferkit.backbones.spec",
    "Callback": "transferkit.training.callbacks",
    "Checkpoints": "transferkit.training.keeping",
    "Execution": "transferkit.runtime",
    "Features": "transferkit.features.extract",
    "History": "transferkit.training.history",
    "Part": "transferkit.datasets.base",
    "Phase": "transferkit.training.phases",
    "PhaseTools": "transferkit.training.loop",
    "Predictor": "transferkit.predictor",
    "Preprocessing": "transferkit.backbones.preprocessing",
    "Report": "transferkit.evaluation.report",
    "Splits": "transferkit.datasets.base",
    "Stage": "transferkit.backbones.spec",
    "Summary": "transferkit.model_summary",
    "TensorBoard": "transferkit.training.tensorboard",
    "Trainer": "transferkit.trainer",
    "TransferkitError": "transferkit.errors",
    "adapt_batch_norm": "transferkit.batch_norm",
    "attach_spec": "transferkit.backbones.attach",
    "augmentation": "transferkit.augmentations",
    "class_names": "transferkit.heads",
    "eval_step": "transferkit.training.steps",
    "evaluate": "transferkit.evaluation.scoring",
    "extract_features": "transferkit.features.extract",
    "freeze": "transferkit.freezing",
    "grad_cam": "transferkit.evaluation.grad_cam",
    "list_augmentations": "transferkit.augmentations",
    "list_backbones": "transferkit.backbones.registry",
    "list_datasets": "transferkit.datasets.registry",
    "list_recipes": "transferkit.training.recipes",
    "load_backbone": "transferkit.backbones.load",
    "load_dataset": "transferkit.datasets.load",
    "load_model": "transferkit.saved_model",
    "most_confused": "transferkit.evaluation.plots",
    "parameter_groups": "transferkit.param_groups",
    "per_sample": "transferkit.augmentations",
    "plot_confusion_matrix": "transferkit.evaluation.plots",
    "plot_grad_cam": "transferkit.evaluation.image_figures",
    "plot_images": "transferkit.evaluation.image_figures",
    "plot_mistakes": "transferkit.evaluation.image_figures",
    "plot_predictions": "transferkit.evaluation.image_figures",
    "plot_reliability": "transferkit.evaluation.plots",
    "plot_training_images": "transferkit.evaluation.image_figures",
    "probe_backbones": "transferkit.features.probe",
    "register_augmentation": "transferkit.augmentations",
    "register_backbone": "transferkit.backbones.registry",
    "register_dataset": "transferkit.datasets.registry",
    "register_recipe": "transferkit.training.recipes",
    "replace_head": "transferkit.heads",
    "resolve_execution": "transferkit.runtime",
    "run_epoch": "transferkit.training.loop",
    "run_phase": "transferkit.training.loop",
    "save_model": "transferkit.saved_model",
    "spec_of": "transferkit.backbones.spec",
    "summary": "transferkit.model_summary",
    "train_step": "transferkit.training.steps",
    "unfreeze": "transferkit.freezing",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'transferkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
