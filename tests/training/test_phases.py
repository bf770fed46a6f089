"""Phases are records that are validated once, and share a number of epochs."""

from __future__ import annotations

import dataclasses
import json

import pytest

import transferkit as tk
from transferkit.errors import ArgumentError, UnknownNameError
from transferkit.training.phases import share_epochs
from transferkit.training.recipes import recipe_phases


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("freeze_batch_norm", "yes"),
        ("lr", -1),
        ("lr", "fast"),
        ("head_lr", 0),
        ("layer_decay", 0),
        ("optimizer", "sdg"),
        ("schedule", "cos"),
        ("weight_decay", -0.1),
        ("warmup", 1.0),
        ("label_smoothing", 1),
        ("accumulate", 0),
        ("clip_norm", 0),
        ("patience", 0),
        ("step_size", 0),
        ("gamma", -1),
        ("augmentation", 3),
        ("train", ()),
        ("train", ""),
        ("train", "last:"),
        ("train", "last:0"),
        ("train", "last:two"),
        ("train", "last:-1"),
        ("cycles", 0),
        ("schedule", "plateu"),
        ("mix", "mixed"),
        ("mix_alpha", 0),
        ("sampling", "balance"),
        ("ema", 1),
        ("ema", -0.1),
        ("checkpoint_activations", 1),
    ],
)
def test_a_bad_field_is_refused_by_name(field, value):
    message = rf"^The '{field}' parameter of Phase must be .+ Got .+ instead\."
    with pytest.raises(ArgumentError, match=message):
        tk.Phase(**{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": "head"}, "None where the head alone trains, which sees plain images"),
        ({"views": 2}, "None where views of the images are stored"),
    ],
)
def test_images_are_mixed_only_where_images_are_seen(fields, message):
    with pytest.raises(ArgumentError) as error:
        tk.Phase(mix="mixup", **fields)
    assert str(error.value) == f"The 'mix' parameter of Phase must be {message}. Got 'mixup' instead."


def test_a_phase_cannot_be_changed_and_survives_json():
    phase = tk.Phase(train=("layer4", "head"), epochs=3, lr=1e-3, class_weights=[1.0, 2.0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        phase.epochs = 4
    again = tk.Phase.from_dict(json.loads(json.dumps(phase.to_dict())))
    assert again.to_dict() == phase.to_dict()


@pytest.mark.parametrize("name", tk.list_recipes())
def test_every_recipe_is_a_sequence_of_phases(name):
    phases = recipe_phases(name)
    assert phases
    assert all(isinstance(phase, tk.Phase) for phase in phases)


@pytest.mark.parametrize("total", range(2, 40))
def test_epochs_are_shared_in_proportion_and_none_goes_without(total):
    shared = [phase.epochs for phase in share_epochs([tk.Phase(epochs=1), tk.Phase(epochs=4)], total)]
    assert sum(shared) == total
    assert min(shared) >= 1
    assert abs(shared[0] - total / 5) <= 1


@pytest.mark.parametrize("own", [(1,), (10, 10), (1, 4), (1, 1, 91), (6, 2, 2, 2, 8), (3, 1, 7)])
def test_each_epoch_goes_to_the_phase_that_is_furthest_below_its_proportion(own):
    for total in range(len(own), 60):
        expected = [1] * len(own)
        while sum(expected) < total:
            short = [total * each / sum(own) - share for each, share in zip(own, expected, strict=True)]
            expected[short.index(max(short))] += 1
        shared = share_epochs([tk.Phase(epochs=each) for each in own], total)
        assert [phase.epochs for phase in shared] == expected


def test_a_huge_number_of_epochs_is_shared_at_once():
    shared = share_epochs([tk.Phase(epochs=1), tk.Phase(epochs=3)], 10**12)
    assert [phase.epochs for phase in shared] == [10**12 // 4, 3 * 10**12 // 4]


def test_fewer_epochs_than_phases_are_refused():
    with pytest.raises(ArgumentError, match=r"must be at least 2, one for each phase\. Got 1 instead\.$"):
        share_epochs(recipe_phases("lp-ft"), 1)
    fitted = [tk.Phase(train="head", solver="lbfgs"), tk.Phase(epochs=4)]
    assert share_epochs(fitted, 1)[1].epochs == 1


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'linear-probe'"):
        recipe_phases("linear-prob")


@pytest.mark.parametrize("bad", [[], [tk.Phase(), "lp-ft"], 3.0])
def test_a_recipe_is_a_name_or_phases(bad):
    with pytest.raises((ArgumentError, TypeError)):
        recipe_phases(bad)
