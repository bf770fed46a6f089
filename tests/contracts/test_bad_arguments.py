"""Every public function, called with what makes no sense.

Each has one valid call. Each of its parameters in turn is replaced by each of the bad values; what comes
of it is either in the table as taken, or one sentence of transferkit's own that names the parameter.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from example_counts import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from public_calls import BAD, CALLED, CALLS, EVERY, EXEMPT, Call, Fixtures, net, part, pixels

import transferkit as tk
from transferkit.errors import TransferkitError
from transferkit.registry import shown


def parameters_of(call: Call) -> list[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        name for name, each in inspect.signature(call.function).parameters.items() if each.kind not in kinds
    ]


CASES = [(name, parameter) for name, call in EVERY.items() for parameter in parameters_of(call)]


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


@pytest.mark.parametrize(("name", "parameter"), CASES)
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


@pytest.mark.parametrize(("name", "parameter"), CASES)
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


NAN, INFINITY = math.nan, math.inf


@pytest.mark.parametrize(
    "values",
    [
        ("0", 1.0, 1.0),
        (0.5, 0.5),
        5,
        (0.5, NAN, 0.5),
        (INFINITY, 1, 1),
        (True, 0.5, 0.5),
    ],
)
@pytest.mark.parametrize("field", ["mean", "std"])
def test_the_channels_of_a_preprocessing_are_numbers(field, values):
    with pytest.raises(TransferkitError, match=f"^The '{field}' parameter of Preprocessing must be three "):
        tk.Preprocessing(size=8, **{field: values})


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


@pytest.mark.parametrize("folder", [None, 5, "", b"folder", "a\0b"])
def test_tensorboard_looks_at_its_folder_before_it_needs_the_package(folder):
    with pytest.raises(TransferkitError, match=r"^The 'folder' parameter of TensorBoard must be a path\."):
        tk.TensorBoard(folder)


@pytest.mark.parametrize("resume", [None, 1, b"path"])
def test_what_a_run_is_resumed_from(resume, tmp_path):
    trainer = tk.Trainer(net(), run_dir=tmp_path / "run", device="cpu", workers=0, progress=False)
    expected = r"^The 'resume' parameter of Trainer\.fit must be True, False or a path\. Got "
    with pytest.raises(TransferkitError, match=expected):
        trainer.fit(part(), resume=resume)
