"""A registry is a read-only dict that refuses a second value and names the nearest name."""

from __future__ import annotations

import re

import pytest
from example_counts import examples
from hypothesis import assume, given
from hypothesis import strategies as st

import transferkit as tk
from transferkit.augmentations import AUGMENTATIONS
from transferkit.backbones.registry import BACKBONES
from transferkit.datasets.registry import DATASETS
from transferkit.errors import ArgumentError, UnknownNameError
from transferkit.registry import Registry
from transferkit.training.recipes import RECIPES

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)
SHIPPED = {"backbone": BACKBONES, "data set": DATASETS, "augmentation": AUGMENTATIONS, "recipe": RECIPES}
LISTS = {
    "backbone": tk.list_backbones,
    "data set": tk.list_datasets,
    "augmentation": tk.list_augmentations,
    "recipe": tk.list_recipes,
}


def one_edit_apart(first: str, second: str) -> bool:
    """Whether one letter left out, put in or replaced makes one name of the other."""
    short, long = sorted((first, second), key=len)
    if len(long) - len(short) > 1:
        return False
    place = next((i for i, letter in enumerate(short) if letter != long[i]), len(short))
    return short[place + (len(short) == len(long)) :] == long[place + 1 :]


@examples(60)
@given(st.lists(st.tuples(NAMES, st.integers()), max_size=20))
def test_a_registry_is_a_dict_that_refuses_a_second_value(entries):
    registry, expected = Registry("fruit"), {}
    for name, number in entries:

        def factory(number=number):
            return number

        if name in expected:
            with pytest.raises(ArgumentError) as caught:
                registry.register(name)(factory)
            assert str(caught.value) == f"The fruit {name!r} is already registered; choose another name."
        else:
            assert registry.register(name)(factory) is factory
            expected[name] = factory
        assert dict(registry) == expected
        assert list(registry) == list(expected)
        assert len(registry) == len(expected)
    for name, factory in expected.items():
        assert registry[name] is factory
        assert registry.get(name) is factory
        assert name in registry


@examples(100)
@given(st.lists(NAMES, max_size=30, unique=True), st.text(max_size=300))
def test_an_unknown_name_is_one_sentence_that_suggests_what_there_is(names, wanted):
    assume(wanted not in names)
    registry = Registry("fruit")
    for name in names:
        registry.register(name)(lambda: None)
    with pytest.raises(UnknownNameError) as caught:
        registry[wanted]
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("There is no fruit ")
    hint = text.rpartition("Did you mean ")[2] if "Did you mean " in text else ""
    if hint.endswith("?"):
        found = [name for name in names if repr(name) in hint]
        assert found, text
    assert wanted not in registry
    assert registry.get(wanted) is None


@pytest.mark.parametrize("kind", SHIPPED)
def test_a_slip_of_the_finger_is_told_by_a_name_that_is_one_edit_away(kind):
    registry = SHIPPED[kind]
    for name in registry:
        for place in range(len(name)):
            slip = name[:place] + name[place + 1 :]
            if len(slip) < 4 or slip in registry:
                continue
            with pytest.raises(UnknownNameError) as caught:
                registry[slip]
            suggested = re.findall(r"'([^']+)'", str(caught.value).partition("Did you mean")[2])
            assert any(one_edit_apart(slip, each) for each in suggested), f"{name} -> {caught.value}"


@pytest.mark.parametrize("kind", SHIPPED)
@pytest.mark.parametrize("name", [None, 3, True, b"light", "", [], {}, object(), float("nan"), "x" * 100_000])
def test_what_is_no_name_is_unknown_in_one_short_sentence(kind, name):
    with pytest.raises(UnknownNameError) as caught:
        SHIPPED[kind][name]
    assert str(caught.value).startswith(f"There is no {kind} ")
    assert len(str(caught.value)) < 800
    assert name not in SHIPPED[kind]


@pytest.mark.parametrize("kind", SHIPPED)
def test_a_list_is_the_sorted_registry(kind):
    assert LISTS[kind]() == sorted(SHIPPED[kind])
    assert len(set(LISTS[kind]())) == len(SHIPPED[kind]) > 0


@pytest.mark.parametrize("factory", [None, 3, "light", []])
def test_only_functions_are_registered(factory):
    registry = Registry("fruit")
    with pytest.raises(ArgumentError, match=r"^The fruit 'apple' must be registered with a function\. Got "):
        registry.register("apple")(factory)
    assert len(registry) == 0
    with pytest.raises(UnknownNameError, match=r"^There is no fruit 'apple'\. There is none yet\.$"):
        registry["apple"]


def test_a_decorator_without_its_name_is_told():
    registry = Registry("fruit")
    with pytest.raises(
        ArgumentError, match=r"^The name of a fruit must be a non-empty string\. Got <function"
    ):

        @registry.register
        def apple():
            pass
