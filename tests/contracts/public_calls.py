"""A valid call of every public function, the bad values that it takes all the same, and what still leaks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import transferkit as tk

BAD: dict[str, Any] = {
    "None": None,
    "object": object(),
    "True": True,
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "nan": math.nan,
    "inf": math.inf,
    "10**30": 10**30,
    "1e300": 1e300,
    "empty": "",
    "text": "nonsense",
    "bytes": b"nonsense",
    "[]": [],
    "[None]": [None],
    "{}": {},
    "array": np.array([math.nan, -1.0]),
}

Fixtures = dict[str, Any]


class Call(NamedTuple):
    """A valid call, and the bad values that it takes all the same."""

    function: Callable[..., Any]
    arguments: Callable[[Fixtures], dict[str, Any]]
    takes: dict[str, str]


# What is no function to be called by a user with arguments that need a check.
EXEMPT = {
    "BackboneSpec": "a record that load_backbone and attach_spec make",
    "Callback": "takes no argument",
    "Features": "a record that extract_features makes",
    "History": "a record that fit makes",
    "PhaseTools": "a record of objects that were checked when they were made",
    "Report": "a record that evaluate makes",
    "Splits": "a record that load_dataset makes",
    "Stage": "a record that load_backbone and attach_spec make",
    "Summary": "a record that summary makes",
    "TensorBoard": "needs an optional package",
    "TransferkitError": "an exception",
    "run_epoch": "takes the records Phase and PhaseTools, once an epoch",
    "run_phase": "takes the records Phase and PhaseTools, once a phase",
    "eval_step": "calls the model that it is given, at every step",
    "train_step": "calls the model and optimizer that it is given, at every step",
}


def own_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def net() -> nn.Module:
    return tk.attach_spec(own_net(), head="3", preprocessing=tk.Preprocessing(size=8))


def pixels(count: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def part() -> tk.Part:
    return tk.Part(pixels(), [0, 1] * 4, ["ant", "bee"])


def report() -> tk.Report:
    # Every image is taken for an ant, so that half of them are mistakes.
    return tk.Report.from_logits([[1.0, 0.0]] * 8, [0, 1] * 4, ["ant", "bee"])


PREDICTED = {"labels": ["ant", "bee"], "scores": [0.9, 0.6], "truths": ["ant", None], "most": 2}
HOW = {"device": "cpu", "precision": "fp32", "compile": False, "execution": None, "workers": 0}
RUNS = {"compile": "True", "execution": "None", "workers": "None 0"}
REGISTERED = {"name": "text"}
POSITIVE, OR_NONE = "1.5 10**30 1e300", "None 1.5 10**30 1e300"

CALLS: dict[str, Call] = {
    "Augmentation": Call(
        tk.Augmentation,
        lambda _: {
            "name": "mine",
            "stored": tk.Preprocessing(size=8),
            "draw": lambda seed, epoch, indices: torch.zeros(len(indices), 0),
            "apply": lambda images, parameters: images,
        },
        {"name": "text", "reduced": "True"},
    ),
    "Checkpoints": Call(tk.Checkpoints, lambda _: {}, {"seconds": OR_NONE, "steps": "None"}),
    "Execution": Call(
        tk.Execution,
        lambda _: {"device": "cpu", "precision": "fp32", "channels_last": False},
        {"channels_last": "True", "reason": "empty text", "fold": "True", "compile": "True"},
    ),
    "Part": Call(
        tk.Part,
        lambda _: {
            "sources": [np.zeros((4, 4, 3), np.uint8)] * 2,
            "targets": [0, 1],
            "classes": ["ant", "bee"],
            "name": "all",
            "ids": ["a", "b"],
        },
        {"name": "empty text", "ids": "None"},
    ),
    "Phase": Call(
        tk.Phase,
        lambda _: {},
        {
            "train": "text",
            "freeze_batch_norm": "True",
            "lr": OR_NONE,
            "head_lr": OR_NONE,
            "layer_decay": POSITIVE,
            "weight_decay": f"0 {POSITIVE}",
            "warmup": "None 0",
            "step_size": "None",
            "gamma": POSITIVE,
            "cycles": "None",
            "augmentation": "None empty text",
            "mix": "None",
            "mix_alpha": OR_NONE,
            "label_smoothing": "0",
            "class_weights": "None",
            "clip_norm": OR_NONE,
            "ema": "0",
            "checkpoint_activations": "True",
            "patience": "None",
        },
    ),
    "Predictor": Call(tk.Predictor, lambda _: {"model": net(), **HOW, "batch_size": 2}, RUNS),
    "Preprocessing": Call(tk.Preprocessing, lambda _: {"size": 8}, {"resize": "None"}),
    "Trainer": Call(
        tk.Trainer,
        lambda _: {"model": net(), "batch_size": 2, **HOW, "progress": False},
        RUNS
        | {"lr": OR_NONE, "augmentation": "None", "callbacks": "empty [] {}", "seed": "0"}
        | {"run_dir": "None text", "progress": "True", "checkpoints": "None", "adapt_batch_norm": "True"},
    ),
    "attach_spec": Call(
        tk.attach_spec,
        lambda _: {"model": own_net(), "head": "3", "preprocessing": "cifar10"},
        {"stages": "None", "classes": "None"},
    ),
    "augmentation": Call(tk.augmentation, lambda _: {"name": "light", "preprocessing": "cifar10"}, {}),
    "class_names": Call(tk.class_names, lambda _: {"model": net()}, {}),
    "evaluate": Call(tk.evaluate, lambda _: {"model": net(), "data": part(), "batch_size": 4, **HOW}, RUNS),
    "adapt_batch_norm": Call(
        tk.adapt_batch_norm,
        lambda _: {
            "model": tk.load_backbone("mini", image_size=8),
            "data": part(),
            "images": 2,
            "batch_size": 2,
            "device": "cpu",
            "precision": "fp32",
            "seed": 0,
        },
        {"seed": "0"},
    ),
    "extract_features": Call(tk.extract_features, lambda _: {"model": net(), "data": part(), **HOW}, RUNS),
    "freeze": Call(tk.freeze, lambda _: {"model": net(), "except_": "head"}, {"except_": "None"}),
    "grad_cam": Call(
        tk.grad_cam,
        lambda _: {"model": net(), "images": torch.rand(2, 3, 8, 8), "target": 0, "layer": "0"},
        {"target": "None 0", "layer": "None"},
    ),
    "list_augmentations": Call(tk.list_augmentations, lambda _: {}, {}),
    "list_backbones": Call(tk.list_backbones, lambda _: {"pattern": "mini"}, {"pattern": "empty text"}),
    "list_datasets": Call(tk.list_datasets, lambda _: {}, {}),
    "list_recipes": Call(tk.list_recipes, lambda _: {}, {}),
    "load_backbone": Call(
        tk.load_backbone,
        lambda _: {"name": "mini", "weights": None, "image_size": 16},
        dict.fromkeys(("weights", "num_classes", "image_size", "preprocessing", "device"), "None"),
    ),
    "load_dataset": Call(
        tk.load_dataset,
        lambda _: {"name_or_path": (pixels(), [0, 1] * 4), "val": 0.5},
        {"val": "None 0", "label_from": "None", "subset": "None", "shots": "None", "seed": "0"},
    ),
    "load_model": Call(tk.load_model, lambda files: {"folder": files["saved"], "into": net()}, {}),
    "most_confused": Call(tk.most_confused, lambda _: {"report": report(), "most": 2}, {}),
    "parameter_groups": Call(
        tk.parameter_groups,
        lambda _: {"model": net(), "lr": 0.1},
        {"lr": POSITIVE, "head_lr": OR_NONE, "layer_decay": POSITIVE, "weight_decay": f"0 {POSITIVE}"},
    ),
    "per_sample": Call(
        tk.per_sample,
        lambda _: {"function": lambda image: image, "preprocessing": "cifar10"},
        {"name": "text", "stored": "None"},
    ),
    "plot_confusion_matrix": Call(tk.plot_confusion_matrix, lambda _: {"report": report()}, {}),
    "plot_grad_cam": Call(
        tk.plot_grad_cam,
        lambda _: {"images": list(pixels(2)), "maps": torch.rand(2, 8, 8), **PREDICTED},
        {"truths": "None", "title": "empty text"},
    ),
    "plot_images": Call(
        tk.plot_images,
        lambda _: {"images": list(pixels(2)), "labels": ["ant", "bee"], "most": 2},
        {"title": "empty text", "columns": "None"},
    ),
    "plot_mistakes": Call(tk.plot_mistakes, lambda _: {"report": report(), "part": part(), "most": 2}, {}),
    "plot_predictions": Call(
        tk.plot_predictions,
        lambda _: {"images": list(pixels(2)), **PREDICTED, "columns": 2},
        {"truths": "None", "title": "empty text", "columns": "None"},
    ),
    "plot_reliability": Call(tk.plot_reliability, lambda _: {"report": report()}, {}),
    "plot_training_images": Call(
        tk.plot_training_images,
        lambda _: {"part": part(), "preprocessing": tk.Preprocessing(size=8), "seed": 0, "most": 2},
        {"augmentation": "None", "seed": "0"},
    ),
    "probe_backbones": Call(
        tk.probe_backbones,
        lambda files: {
            "data": files["splits"],
            "backbones": ["mini"],
            "weights": None,
            "image_size": 8,
            "device": "cpu",
            "precision": "fp32",
            "workers": 0,
        },
        {"weights": "None", "image_size": "None", "seed": "0", "workers": "None 0", "tell": "None"},
    ),
    "register_augmentation": Call(tk.register_augmentation, lambda _: {"name": "mine"}, REGISTERED),
    "register_backbone": Call(tk.register_backbone, lambda _: {"name": "mine"}, REGISTERED),
    "register_dataset": Call(tk.register_dataset, lambda _: {"name": "mine"}, REGISTERED),
    "register_recipe": Call(tk.register_recipe, lambda _: {"name": "mine"}, REGISTERED),
    "replace_head": Call(
        tk.replace_head, lambda _: {"model": net(), "num_classes": 2}, {"classes": "None", "dropout": "0"}
    ),
    "resolve_execution": Call(
        tk.resolve_execution, lambda _: {"model": net(), "device": "cpu"}, {"compile": "True"}
    ),
    "save_model": Call(
        tk.save_model, lambda files: {"model": net(), "folder": files["folder"] / "new"}, {"folder": "text"}
    ),
    "spec_of": Call(tk.spec_of, lambda _: {"model": net()}, {}),
    "summary": Call(tk.summary, lambda _: {"model": net()}, {}),
    "unfreeze": Call(tk.unfreeze, lambda _: {"model": net(), "only": "head"}, {"only": "None"}),
}

METHODS: dict[str, Call] = {
    "Predictor.__call__": Call(
        lambda images, top_k: tk.Predictor(net(), device="cpu", workers=0)(images, top_k=top_k),
        lambda _: {"images": pixels(2), "top_k": 1},
        {},
    ),
    "Predictor.load": Call(
        lambda source: tk.Predictor.load(source, device="cpu"), lambda _: {"source": net()}, {}
    ),
    "Preprocessing.with_size": Call(tk.Preprocessing(size=8).with_size, lambda _: {"size": 4}, {}),
    "Trainer.fit": Call(
        lambda train, val, epochs, resume: tk.Trainer(
            net(), recipe="linear-probe", device="cpu", workers=0, progress=False
        ).fit(train, val, epochs=epochs, resume=resume),
        lambda _: {"train": part(), "val": part(), "epochs": 1, "resume": False},
        {"val": "None", "epochs": "None"},
    ),
}

EVERY = CALLS | METHODS

# What a sentence may call an argument, besides by the name of the parameter.
CALLED = {"train": ["data", "sample"], "val": ["data", "sample"], "data": ["sample"], "images": ["image"]}
