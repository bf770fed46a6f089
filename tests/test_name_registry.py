"""A registry is a read-only mapping with one way in and helpful refusals."""

from __future__ import annotations

import pytest

from transferkit.errors import ArgumentError, UnknownNameError
from transferkit.registry import Registry


@pytest.fixture
def fruits():
    registry = Registry("fruit")
    for name in ("apple", "pear"):
        registry.register(name)(lambda: None)
    return registry


def test_it_is_a_mapping(fruits):
    assert sorted(fruits) == ["apple", "pear"]
    assert len(fruits) == 2
    assert "apple" in fruits
    assert "plum" not in fruits


def test_a_duplicate_is_refused_and_changes_nothing(fruits):
    before = fruits["apple"]
    message = r"^The fruit 'apple' is already registered; choose another name\.$"
    with pytest.raises(ArgumentError, match=message):
        fruits.register("apple")(lambda: 1)
    assert fruits["apple"] is before


def test_an_unknown_name_suggests_the_nearest(fruits):
    with pytest.raises(UnknownNameError) as caught:
        fruits["aple"]
    assert str(caught.value) == "There is no fruit 'aple'. Did you mean 'apple'?"
    assert isinstance(caught.value, KeyError)


def test_a_name_that_resembles_nothing_lists_what_there_is(fruits):
    with pytest.raises(UnknownNameError, match=r"^There is no fruit 'zzz'\. There are: apple, pear\.$"):
        fruits["zzz"]


@pytest.mark.parametrize("name", ["", 3, None])
def test_a_name_is_a_non_empty_string(fruits, name):
    with pytest.raises(ArgumentError, match="must be a non-empty string"):
        fruits.register(name)
