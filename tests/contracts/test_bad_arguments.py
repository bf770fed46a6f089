"""Every public function, called with what makes no sense.

Each has one valid call. Each of its parameters in turn is replaced by each of the bad values; what comes
of it is either in the table as taken, or one sentence of transferkit's own that names the parameter.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from example_counts import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import transferkit as tk
from transferkit.errors import TransferkitError
from transferkit.registry import shown

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
        | {"run_dir": "None text", "progress": "True", "checkpoints": "None"},
    ),
    "attach_spec": Call(
        tk.attach_spec,
        lambda _: {"model": own_net(), "head": "3", "preprocessing": "cifar10"},
        {"stages": "None", "classes": "None"},
    ),
    "augmentation": Call(tk.augmentation, lambda _: {"name": "light", "preprocessing": "cifar10"}, {}),
    "class_names": Call(tk.class_names, lambda _: {"model": net()}, {}),
    "evaluate": Call(tk.evaluate, lambda _: {"model": net(), "data": part(), "batch_size": 4, **HOW}, RUNS),
    "extract_features": Call(tk.extract_features, lambda _: {"model": net(), "data": part(), **HOW}, RUNS),
    "freeze": Call(tk.freeze, lambda _: {"model": net(), "except_": "head"}, {"except_": "None"}),
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
        lambda train, val, epochs: tk.Trainer(
            net(), recipe="linear-probe", device="cpu", workers=0, progress=False
        ).fit(train, val, epochs=epochs),
        lambda _: {"train": part(), "val": part(), "epochs": 1},
        {"val": "None", "epochs": "None"},
    ),
}

EVERY = CALLS | METHODS

_MODULE = "'model' must be a torch.nn.Module"
_PATH = "must be a path"
_NAME = "an unhashable value must be 'There is no preprocessing ...'"
_THREADS = "'workers' must be an int of at least 0"

# Leaks in files that are being mended by others: the function, the parameter, and what should be said.
LEAKS: dict[tuple[str, str], str] = {
    ("Phase", "train"): "must be 'head', 'all' or selectors, also where it is a number or an object",
    ("Phase", "class_weights"): "must be None, 'balanced' or finite floats of at least 0",
    ("Predictor", "model"): _MODULE,
    ("extract_features", "model"): _MODULE,
    ("save_model", "model"): _MODULE,
    ("spec_of", "model"): _MODULE,
    ("Trainer", "batch_size"): "an array is compared with 'auto'",
    ("Trainer", "run_dir"): _PATH,
    ("Trainer", "progress"): "must be True or False",
    ("attach_spec", "preprocessing"): _NAME,
    ("augmentation", "preprocessing"): _NAME,
    ("load_backbone", "preprocessing"): _NAME,
    ("per_sample", "preprocessing"): _NAME,
    ("attach_spec", "stages"): "must be names, each with a list of paths of modules",
    ("attach_spec", "classes"): "must be a list of different names",
    ("evaluate", "workers"): _THREADS,
    ("extract_features", "workers"): _THREADS,
    ("probe_backbones", "workers"): _THREADS,
    ("list_backbones", "pattern"): "must be a glob such as 'resnet*'",
    ("load_dataset", "label_from"): "a sentence begins with a capital, and arrays have labels of their own",
    ("load_model", "folder"): _PATH,
    ("load_model", "into"): "must be a torch.nn.Module or None",
    ("probe_backbones", "data"): "must be splits, such as load_dataset returns",
    ("probe_backbones", "backbones"): "must be a list of names or models, at least one",
    ("probe_backbones", "weights"): "an array is compared with 'none'",
    ("probe_backbones", "tell"): "must be a function that takes a line, or None",
    ("save_model", "folder"): _PATH,
    ("Predictor.load", "source"): "must be a model, or the path of one",
}

# What a sentence may call an argument, besides by the name of the parameter.
CALLED = {"train": ["data", "sample"], "val": ["data", "sample"], "data": ["sample"], "images": ["image"]}


def parameters_of(call: Call) -> list[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        name for name, each in inspect.signature(call.function).parameters.items() if each.kind not in kinds
    ]


CASES = [(name, parameter) for name, call in EVERY.items() for parameter in parameters_of(call)]


def marked(name: str, parameter: str) -> Any:
    leak = LEAKS.get((name, parameter))
    marks = () if leak is None else [pytest.mark.xfail(strict=True, reason=leak)]
    return pytest.param(name, parameter, id=f"{name}-{parameter}", marks=marks)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """What is read only, made once."""
    folder = tmp_path_factory.mktemp("kept")
    splits = tk.load_dataset((pixels(), [0, 1] * 4), val=0.5)
    return {"saved": tk.save_model(net(), folder / "saved"), "splits": splits}


@pytest.fixture
def fixtures(kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a text is taken as a relative path
    monkeypatch.setattr(
        torch, "compile", lambda module, **_: module
    )  # takes seconds, and nothing is run twice
    return kept | {"folder": tmp_path}


def outcome(call: Call, parameter: str, value: Any, fixtures: Fixtures) -> str | None:
    """Call with one argument replaced: ``None`` if that was taken, else the sentence, or what is wrong."""
    arguments = call.arguments(fixtures) | {parameter: value}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call.function(**arguments)
    except TransferkitError as error:
        return str(error)
    except Exception as error:
        return f"LEAK {type(error).__name__}: {error}"
    return None


def is_house_form(text: str, parameter: str, value: Any) -> bool:
    """Whether a text is one line that reads as a sentence and says what it is about."""
    sentence = re.fullmatch(r"[A-Z'/].*[.?]", text) is not None and not text.startswith("LEAK")
    words = [parameter.strip("_"), parameter.strip("_").replace("_", " "), shown(value), type(value).__name__]
    return sentence and any(word.lower() in text.lower() for word in words + CALLED.get(parameter, []))


@pytest.mark.parametrize(("name", "parameter"), [marked(*case) for case in CASES])
def test_a_bad_argument_is_refused_in_one_sentence(name, parameter, fixtures):
    call = EVERY[name]
    outcomes = {label: outcome(call, parameter, value, fixtures) for label, value in BAD.items()}
    wrong = {
        label: text
        for label, text in outcomes.items()
        if text is not None and not is_house_form(text, parameter, BAD[label])
    }
    assert not wrong
    taken = {label for label, text in outcomes.items() if text is None}
    assert taken == set(call.takes.get(parameter, "").split())


NUMBERS = (
    st.integers(max_value=-1) | st.integers(min_value=2**63) | st.floats(max_value=-1e-9) | st.just(math.nan)
)
TEXTS = st.text(st.characters(exclude_characters="/\\", exclude_categories=["Cs"]), max_size=30)
THINGS = (
    st.none() | st.booleans() | NUMBERS | TEXTS | st.binary(max_size=8) | st.complex_numbers() | st.tuples()
)


@pytest.mark.parametrize(("name", "parameter"), [case for case in CASES if case not in LEAKS])
@settings(examples(3), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=THINGS | st.lists(THINGS, max_size=3) | st.dictionaries(TEXTS, THINGS, max_size=2))
def test_generated_arguments_raise_nothing_but_sentences(name, parameter, fixtures, value):
    text = outcome(EVERY[name], parameter, value, fixtures)
    assert text is None or is_house_form(text, parameter, value), text


@pytest.mark.parametrize("name", EVERY)
def test_the_valid_call_is_valid(name, fixtures):
    call = EVERY[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call.function(**call.arguments(fixtures))
    assert set(call.takes) <= set(parameters_of(call))


def test_every_public_callable_is_tried():
    public = {name for name in tk.__all__ if callable(getattr(tk, name))}
    assert set(CALLS) | set(EXEMPT) == public
    assert not set(CALLS) & set(EXEMPT)
    assert LEAKS.keys() <= set(CASES)


NAN, INFINITY = math.nan, math.inf
LETS_THROUGH = pytest.mark.xfail(strict=True, reason="must be finite and no bool")


@pytest.mark.parametrize(
    "values",
    [
        ("0", 1.0, 1.0),
        (0.5, 0.5),
        5,
        *(
            pytest.param(values, marks=LETS_THROUGH)
            for values in ((0.5, NAN, 0.5), (INFINITY, 1, 1), (True, 0.5, 0.5))
        ),
    ],
)
@pytest.mark.parametrize("field", ["mean", "std"])
def test_the_channels_of_a_preprocessing_are_numbers(field, values):
    with pytest.raises(TransferkitError, match=f"^The '{field}' parameter of Preprocessing must be three "):
        tk.Preprocessing(size=8, **{field: values})


@pytest.mark.xfail(strict=True, reason="must be None, 'balanced' or finite floats of at least 0, not all 0")
@pytest.mark.parametrize(
    "values", [(NAN, 1.0), (-1.0, 1.0), (INFINITY, 1.0), ("1", 1.0), (True, False), (0.0, 0.0), "balance"]
)
def test_weights_of_classes_are_numbers_before_the_first_step(values):
    with pytest.raises(TransferkitError, match=r"^The 'class_weights' parameter of Phase must be "):
        tk.Phase(class_weights=values)


@pytest.mark.parametrize(
    "images", [np.full((4, 2, 2, 3), NAN), np.full((4, 2, 2, 3), 255.0), np.zeros((4, 2, 2, 3), int)]
)
def test_pixels_are_in_their_range(images):
    with pytest.raises(
        TransferkitError, match=r"^The 'images' parameter of load_dataset must be uint8, or floats in"
    ):
        tk.load_dataset((images, [0, 1, 0, 1]))


@pytest.mark.parametrize(
    "classes", [{"ant", "bee"}, ["ant", "ant"], ["ant"], ["ant", 2], "ab", {"ant": 0, "bee": 1}]
)
def test_names_of_outputs_are_different_and_in_order(classes):
    with pytest.raises(
        TransferkitError, match=r"^The 'classes' parameter of replace_head must be 2 different strings"
    ):
        tk.replace_head(net(), 2, classes=classes)
