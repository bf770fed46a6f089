"""Backbones are compared by classifiers on their features, and nothing is chosen on what is scored."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from sklearn.metrics import log_loss

import transferkit as tk
from transferkit.errors import ArgumentError, DataError, UnknownNameError
from transferkit.features.linear_solver import fit_linear
from transferkit.features.probe import probe_backbones
from transferkit.features.quick_probes import nearest_neighbours, ridge

EXACT = {"device": "cpu", "precision": "fp32"}


@pytest.fixture
def parts(tiny_part):
    return {
        name: tiny_part(count, seed=seed, name=name)
        for seed, (name, count) in enumerate({"train": 40, "val": 20, "test": 30}.items())
    }


def splits_of(parts, *names):
    return tk.Splits(*(parts[name] if name in names else None for name in ("train", "val", "test")), {})


def features(model, part):
    found = tk.extract_features(model, part, **EXACT)
    return torch.tensor(found.x), torch.tensor(found.y)


@pytest.mark.parametrize(
    ("names", "scored", "chosen_on"),
    [
        (("train", "val"), "val", None),
        (("train", "test"), "test", None),
        (("train", "val", "test"), "test", "val"),
    ],
)
def test_figures_are_those_of_the_classifiers(names, scored, chosen_on, parts, tiny_model):
    model = tiny_model()
    table = probe_backbones(splits_of(parts, *names), [model], seed=3, **EXACT)
    (row,) = table.rows
    fitted, test = features(model, parts["train"]), features(model, parts[scored])
    val = None if chosen_on is None else features(model, parts[chosen_on])
    fit = fit_linear(*fitted, 2, val=val, seed=3)
    probabilities = fit.logits(test[0]).double().softmax(dim=1).numpy()
    assert row.logistic == pytest.approx((probabilities.argmax(axis=1) == test[1].numpy()).mean())
    assert row.log_loss == pytest.approx(log_loss(test[1].numpy(), probabilities))
    assert row.c == fit.c
    assert row.neighbours == nearest_neighbours(*fitted, *test, 2).accuracy
    assert row.ridge == ridge(*fitted, *test, 2).accuracy
    assert (table.split, table.fitted, table.n) == (scored, 40, len(parts[scored]))
    assert row.features == 32


def test_the_table_has_a_line_for_each_backbone(parts):
    table = probe_backbones(splits_of(parts, "train", "test"), ["mini", "mini=none"], **EXACT)
    head, first, second, note = str(table).splitlines()
    assert head.split("  ")[0] == "backbone"
    assert first.startswith("mini ")
    assert second.startswith("mini=none ")
    row = table.rows[0]
    low, high = row.interval("logistic")
    assert f"{row.logistic:.1%} [{100 * low:.1f}, {100 * high:.1f}]" in first
    assert note == "accuracy with its 95% interval on 30 images (test), fitted to 40"
    assert {len(line) for line in (head, first, second)} == {len(head)}
    record = json.loads(json.dumps(table.to_dict()))
    assert record["backbones"][0]["logistic_interval"] == [low, high]
    assert [each["backbone"] for each in record["backbones"]] == ["mini", "mini=none"]


def test_each_backbone_may_have_weights_of_its_own(parts, tmp_path):
    tk.save_model(tk.load_backbone("mini"), tmp_path / "saved")
    path = tmp_path / "saved" / "weights.safetensors"
    told = []
    table = probe_backbones(
        splits_of(parts, "train", "test"),
        ["mini", f"mini={path}", "mini=default"],
        weights="none",
        tell=told.append,
        **EXACT,
    )
    own, file, default = (dataclasses.replace(row, backbone="", seconds=0.0) for row in table.rows)
    assert file == default
    assert own != default
    assert str(path) not in str(table)
    assert "mini=weights.safetensors" in str(table)
    assert [bool(re.fullmatch(r".*: logistic regression .*%, in .* s", line)) for line in told] == [True] * 3


def test_random_weights_follow_from_the_seed(parts):
    splits = splits_of(parts, "train", "test")
    state = torch.get_rng_state()
    rows = [probe_backbones(splits, ["mini=none"], seed=seed, **EXACT).rows[0] for seed in (0, 0, 1)]
    first, again, other = (dataclasses.replace(row, seconds=0.0) for row in rows)
    assert first == again
    assert first.log_loss != other.log_loss
    assert torch.equal(state, torch.get_rng_state())


def test_a_wrong_name_is_met_before_any_work(parts):
    told = []
    with pytest.raises(UnknownNameError, match="resnet18"):
        probe_backbones(splits_of(parts, "train", "test"), ["mini", "resnet81"], tell=told.append)
    assert told == []


def test_what_cannot_be_compared_is_said(parts):
    with pytest.raises(DataError, match="on a test or validation part, and the data has neither"):
        probe_backbones(splits_of(parts, "train"), ["mini"])
    for wrong in ("mini", []):
        with pytest.raises(ArgumentError, match="'backbones' parameter of probe_backbones must be a list"):
            probe_backbones(splits_of(parts, "train", "test"), wrong)
