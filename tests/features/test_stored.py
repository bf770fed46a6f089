"""What is frozen runs once for each image, in this process and the next ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import transferkit as tk
from transferkit.features import stored
from transferkit.features.fingerprint import is_versioned
from transferkit.features.split import split_model
from transferkit.features.stored import FrozenPrefix
from transferkit.loading import decode as decode_module
from transferkit.runtime import resolve_execution

FP32 = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(autouse=True)
def code_that_a_version_stands_for(monkeypatch):
    """The tests' own networks count as torchvision's, whose rows are used without a look."""
    monkeypatch.setattr(stored, "is_versioned", lambda module: True)


@pytest.fixture
def computed(monkeypatch):
    """Counts the rows that were computed to be stored or used."""
    counts = []
    original = FrozenPrefix._blocks

    def counted(self, *arguments):
        for block in original(self, *arguments):
            counts.append(len(block))
            yield block

    monkeypatch.setattr(FrozenPrefix, "_blocks", counted)
    return counts


def features(model, part, **options):
    return tk.extract_features(model, part, **(options if "execution" in options else FP32 | options))


def test_a_second_time_nothing_is_computed_and_nothing_decoded(tiny_model, tiny_part, computed, monkeypatch):
    first = features(tiny_model(), tiny_part(40))
    assert sum(computed) == 40
    computed.clear()

    def refuse(*arguments, **options):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(decode_module, "decode", refuse)
    monkeypatch.setattr("transferkit.loading.pixels.decode", refuse, raising=False)
    again = features(tiny_model(), tiny_part(40))
    assert computed == []
    assert again.note == "read from the cache"
    assert np.array_equal(first.x, again.x)


def test_folds_and_other_orders_reuse_what_is_there(tiny_model, tiny_part, computed):
    model, part = tiny_model(), tiny_part(40)
    everything = features(model, part)
    computed.clear()
    order = np.random.default_rng(0).permutation(40)
    shuffled = features(model, part.take(order))
    fold = features(model, part.take(order[:10]))
    assert computed == []
    assert np.array_equal(shuffled.x, everything.x[order])
    assert np.array_equal(fold.x, everything.x[order[:10]])


def test_only_what_is_missing_is_computed(tiny_model, tiny_part, computed):
    model, part = tiny_model(), tiny_part(40)
    features(model, part.take(range(10, 30)))
    computed.clear()
    some = features(model, part)
    assert sum(computed) == 20
    assert "20 from the cache" in some.note
    computed.clear()
    assert np.array_equal(features(model, part).x, some.x)


@pytest.mark.parametrize("change", ["weights", "buffers", "preprocessing", "precision", "images", "channels"])
def test_whatever_changes_bits_is_computed_anew(change, tiny_model, tiny_part, computed):
    model, part, options = tiny_model(), tiny_part(8), {}
    features(model, part)
    computed.clear()
    if change == "weights":
        with torch.no_grad():
            model.body[0].weight[0, 0, 0, 0] += 1e-3
    elif change == "buffers":
        model.body[1].running_var.mul_(1.5)
    elif change == "preprocessing":
        model = tiny_model()
        spec = tk.spec_of(model)
        tk.attach_spec(model, head="fc", preprocessing=tk.Preprocessing(size=8, mean=(0.5, 0.5, 0.5)))
        assert tk.spec_of(model) != spec
    elif change == "precision":
        options = {"precision": "bf16"}
    elif change == "images":
        part.sources[3] = 255 - part.sources[3]
    else:
        execution = resolve_execution(model, **FP32)
        options = {"execution": dataclasses.replace(execution, channels_last=False)}
    features(model, part, **options)
    assert sum(computed) == (1 if change == "images" else 8)


def test_the_head_and_what_trains_play_no_role(tiny_model, tiny_part, computed):
    model, part = tiny_model(), tiny_part(8)
    features(model, part)
    computed.clear()
    tk.replace_head(model, 5)
    features(tk.freeze(model, except_=None), part)
    features(tk.unfreeze(model).train(), part)
    assert computed == []


def test_without_a_cache_features_are_the_same_and_leave_nothing(
    tiny_model, tiny_part, tmp_path, monkeypatch
):
    expected = features(tiny_model(), tiny_part(40)).x
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("TRANSFERKIT_CACHE_SIZE", "0")
    again = features(tiny_model(), tiny_part(40))
    assert np.array_equal(again.x, expected)
    assert again.note == "fp32, folded, packed; kept for this run alone"
    assert not (tmp_path / "none").exists()


def test_a_cache_that_cannot_be_written_is_done_without_and_said(
    tiny_model, tiny_part, tmp_path, monkeypatch
):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(blocked / "cache"))
    with pytest.warns(UserWarning, match=r"^Features are not kept for later runs: .*file.* cannot be"):
        found = features(tiny_model(), tiny_part(40))
    assert found.x.shape == (40, 32)


def prefix_of(model, images, **options):
    model = tk.freeze(model, except_="fc")
    execution = resolve_execution(model, **(FP32 | options))
    return FrozenPrefix(split_model(model), tk.spec_of(model).preprocessing, execution, images=images)


def test_what_would_not_fit_is_not_stored_and_the_size_is_said(tiny_model, monkeypatch):
    prefix = prefix_of(tiny_model(), 1_000_000)
    assert prefix.bytes_per_image == 32 * 4
    monkeypatch.setattr(stored, "available_memory", lambda: 2**20)
    monkeypatch.setenv("TRANSFERKIT_CACHE_SIZE", "100MB")
    reason = prefix.why_not()
    assert reason == "the outputs of the frozen part take 0.1 GB, which fit in neither memory nor cache"
    monkeypatch.setenv("TRANSFERKIT_CACHE_SIZE", "1GB")
    assert prefix.why_not() is None


def test_what_is_computed_faster_than_it_is_read_is_not_stored(tiny_model, monkeypatch):
    model = tiny_model()
    model.body = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 1), torch.nn.Flatten())
    model.fc = torch.nn.Linear(64 * 64, 2)
    assert (
        prefix_of(model, 10).why_not()
        == "computing the frozen part again takes less than reading its outputs"
    )
    monkeypatch.setattr(stored, "_OPERATIONS_PER_BYTE", {"cpu": 1})
    assert prefix_of(model, 10).why_not() is None


def test_a_broken_fast_form_gives_way_to_the_model_and_is_not_kept(
    tiny_model, tiny_part, monkeypatch, computed
):
    expected = features(tiny_model(), tiny_part(8)).x
    again = dataclasses.replace(resolve_execution(tiny_model(), **FP32), threads=3)
    monkeypatch.setattr("transferkit.inference._graph_of", lambda module, *, folded: torch.nn.Flatten())
    with pytest.warns(UserWarning, match="^The frozen part runs more slowly than it could: its fast form"):
        found = features(tiny_model(), tiny_part(8), execution=again)
    np.testing.assert_allclose(found.x, expected, rtol=1e-5, atol=1e-6)
    computed.clear()
    with pytest.warns(UserWarning, match="runs more slowly"):
        features(tiny_model(), tiny_part(8), execution=again)
    assert sum(computed) == 8


def test_two_frozen_stages_are_stored_as_they_are(tiny_part, computed, device, monkeypatch):
    monkeypatch.setattr(stored, "_OPERATIONS_PER_BYTE", {})  # a GPU would rather compute them again
    torch.manual_seed(0)
    model = tk.load_backbone("mini", weights=None, num_classes=2, image_size=32)
    part, phase = tiny_part(40), tk.Phase(train=("layer3", "head"), epochs=1)
    trainer = tk.Trainer(model, recipe=phase, progress=False, device=device, precision="fp32")
    trainer.fit(part)
    assert sum(computed) == 40


class Scaled(torch.nn.Linear):
    """Depends on a global, of which nothing in the module tells."""

    factor = 1.0

    def forward(self, images):
        return super().forward(images.flatten(1)) * Scaled.factor


def test_code_that_no_version_stands_for_is_looked_at_before_its_rows_are_used(tiny_part, monkeypatch):
    monkeypatch.setattr(stored, "is_versioned", is_versioned)
    torch.manual_seed(0)
    model = torch.nn.Sequential(Scaled(192, 6), torch.nn.Linear(6, 2))
    tk.attach_spec(model, head="1", preprocessing=tk.Preprocessing(size=8))
    first = features(model, tiny_part(20)).x
    again = features(model, tiny_part(20))
    assert again.note == "read from the cache"
    monkeypatch.setattr(Scaled, "factor", 3.0)
    with pytest.warns(UserWarning, match="^Stored features are not what the model gives now"):
        changed = features(model, tiny_part(20))
    np.testing.assert_allclose(changed.x, 3 * first, rtol=1e-5)


@pytest.mark.parametrize("change", ["attribute", "nested", "hook", "forward"])
def test_settings_and_hooks_of_a_module_count(change, tiny_model, tiny_part):
    def networks():
        model = tiny_model()
        model.body[2] = torch.nn.LeakyReLU(0.1)
        return model

    part, model = tiny_part(8), networks()
    before = features(model, part).x
    if change == "attribute":
        model.body[2].negative_slope = 0.9
    elif change == "nested":
        model.body[0].stride = (1, 1)
    elif change == "hook":
        model.body[2].register_forward_hook(lambda module, inputs, output: output * 2)
    else:
        model.body[2].forward = lambda inputs: inputs * 2
    after = features(model, part).x
    expected = given(model, part)
    assert not np.allclose(before, after)
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)


def given(model, part):
    preprocessing, rows = tk.spec_of(model).preprocessing, []
    handle = model.fc.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].detach()))
    with torch.no_grad():
        for image, _ in part:
            model.eval()(preprocessing(image)[None])
    handle.remove()
    return torch.cat(rows).numpy()


def test_only_the_packages_own_augmentations_are_known_by_name(tiny_model, tiny_part, computed):
    preprocessing = tk.spec_of(tiny_model()).preprocessing
    light = tk.augmentation("light", preprocessing)
    inverted = dataclasses.replace(light, apply=lambda images, drawn: 255 - images)
    phase, part = tk.Phase(train="head", views=2), tiny_part(8)
    for augmentation, fresh in ((light, 16), (light, 0), (inverted, 16), ("light", 0)):
        computed.clear()
        tk.Trainer(tiny_model(), recipe=phase, augmentation=augmentation, progress=False, **FP32).fit(part)
        assert sum(computed) == fresh
