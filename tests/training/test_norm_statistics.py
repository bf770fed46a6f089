"""Frozen batch norm whose statistics are foreign to the images is given theirs; other is left as it is."""

from __future__ import annotations

import json

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import transferkit as tk
from transferkit.batch_norm import measured_norms
from transferkit.errors import ArgumentError, ResumeMismatchError
from transferkit.loading.batches import Batch
from transferkit.runtime import resolve_execution
from transferkit.training import norm_statistics
from transferkit.training.norm_statistics import divergence

SPOILED = 500.0


class Notes(tk.Callback):
    def __init__(self):
        self.lines = []

    def phase_start(self, number, phase, note):
        self.lines.append(note)


def digits(count=80):
    return tk.load_dataset("digits").train.take(range(count))


def net(factor=SPOILED, head="linear"):
    """A backbone whose first block was trained on what varies less than digits do."""
    model = tk.load_backbone("mini")
    tk.replace_head(model, 10, head=head)
    with torch.no_grad():
        model.layer1[0].first.norm.running_var /= factor
    return model


def fit(model, part=None, *, recipe="linear-probe", epochs=None, **given):
    """Train, and return what was told of each phase."""
    notes = Notes()
    given = {"device": "cpu", "precision": "fp32", "progress": False} | given
    tk.Trainer(model, recipe=recipe, callbacks=[notes], **given).fit(part or digits(), epochs=epochs)
    return notes.lines


def statistics(model):
    """All that batch norm keeps, but of the head."""
    return {
        name: value.detach().cpu().clone()
        for name, value in model.named_buffers()
        if not name.startswith("fc.")
    }


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def as_measured(model, part=None, **given):
    given = {"device": "cpu", "precision": "fp32", "batch_size": 32} | given
    tk.adapt_batch_norm(model, part or digits(), **given)
    return statistics(model)


@pytest.mark.parametrize("recipe", ["linear-probe", "lp-ft"])
def test_foreign_statistics_become_those_of_the_images(recipe):
    model = net()
    notes = fit(model, recipe=recipe, epochs=None if recipe == "linear-probe" else 2, seed=3)
    assert same(statistics(model), as_measured(net(), seed=3))
    assert "; batch norm measured anew on 80 images, to which it was foreign (divergence " in notes[0]
    assert all("batch norm" not in note for note in notes[1:])


@pytest.mark.parametrize(
    ("factor", "count", "given"),
    [
        (1.0, 80, {}),  # statistics of the weights, which are not foreign to digits
        (SPOILED, 63, {}),  # too few images to measure on
        (SPOILED, 80, {"adapt_batch_norm": False}),
    ],
)
def test_statistics_stay_otherwise(factor, count, given):
    model = net(factor)
    before = statistics(model)
    notes = fit(model, digits(count), **given)
    assert same(statistics(model), before)
    assert "batch norm" not in notes[0]


@pytest.mark.parametrize("freezes", [True, False])
def test_a_run_that_trains_the_backbone_first_mends_it_by_itself(freezes):
    phase = tk.Phase(train="all", epochs=1, freeze_batch_norm=freezes)
    found = []
    for adapts in ("auto", False):
        model = net()
        torch.manual_seed(0)
        assert "batch norm" not in fit(model, recipe=phase, adapt_batch_norm=adapts)[0]
        found.append(statistics(model))
    assert same(*found)


def test_true_measures_whatever_the_statistics_are():
    model = net(factor=1.0)
    assert fit(model, adapt_batch_norm=True)[0].endswith("; batch norm measured anew")
    assert same(statistics(model), as_measured(net(factor=1.0), batch_size=64))


def test_a_model_without_batch_norm_is_left_alone_unless_it_was_asked_for(tiny_model):
    images = torch.rand(70, 3, 8, 8).mul(255).byte().permute(0, 2, 3, 1).numpy()
    part = tk.Part(images, [0, 1] * 35, ["a", "b"])
    fit(tiny_model(norm=False), part)
    with pytest.raises(ArgumentError, match="must be a model with batch norm"):
        fit(tiny_model(norm=False), part, adapt_batch_norm=True)


def test_random_weights_have_no_statistics_to_compare():
    model = tk.load_backbone("mini", weights=None, num_classes=10)
    before = statistics(model)
    fit(model)
    assert same(statistics(model), before)


def test_hooks_and_modes_are_as_before():
    model = tk.freeze(net(), except_="head").train()
    modes = [module.training for module in model.modules()]
    execution = resolve_execution(model, device="cpu", precision="fp32")
    norm_statistics.suit_statistics(model, digits(), execution, seed=0)
    assert not same(statistics(model), statistics(net()))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_divergence_is_that_of_normal_distributions(device):
    model = tk.load_backbone("mini").to(device)
    norms, images = measured_norms(model)[:1], torch.randn(4, 3, 32, 32, device=device)
    execution = resolve_execution(model, device=device, precision="fp32")
    found = divergence(model, norms, Batch(images, torch.zeros(4), range(4)), execution)
    with torch.no_grad():
        given = model.eval().stem[0].conv(images).double()
    norm = norms[0]
    now = Normal(given.mean((0, 2, 3)), (given.var((0, 2, 3), correction=0) + norm.eps).sqrt())
    before = Normal(norm.running_mean.double(), (norm.running_var.double() + norm.eps).sqrt())
    # From the statistics to the inputs: what the weights expect is the reference.
    assert found == pytest.approx(float(kl_divergence(now, before).mean()), rel=1e-3)


def test_a_second_run_reads_them_from_the_cache(monkeypatch):
    first = net()
    told = fit(first)

    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(norm_statistics, "measure", never)
    monkeypatch.setattr(norm_statistics, "divergence", never)
    second = net(head="mlp")
    assert told[0].rpartition("; ")[2] in fit(second)[0]
    assert same(statistics(second), statistics(first))
    # Other images, another draw and other weights are not taken for these.
    other = net()
    with torch.no_grad():
        other.stem[0].conv.weight.mul_(0.9)
    for model, part, seed in ((net(), digits(79), 0), (net(), digits(), 1), (other, digits(), 0)):
        with pytest.raises(AssertionError, match="measured again"):
            fit(model, part, seed=seed)


class Stop(tk.Callback):
    """Ends a run as Ctrl-C does."""

    def epoch_end(self, row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt


def trainer(model, run, *callbacks, **given):
    phase = tk.Phase(train="head", epochs=3, lr=0.01)
    how = {"device": "cpu", "precision": "fp32", "progress": False} | given
    checkpoints = tk.Checkpoints(seconds=None, steps=1)
    return tk.Trainer(model, recipe=phase, run_dir=run, callbacks=callbacks, checkpoints=checkpoints, **how)


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path):
    torch.manual_seed(1)
    start = {name: value.clone() for name, value in net().state_dict().items()}
    models = {name: net() for name in ("whole", "first", "second")}
    for model in models.values():
        model.load_state_dict(start)
    trainer(models["whole"], tmp_path / "whole").fit(digits())
    with pytest.raises(KeyboardInterrupt):
        trainer(models["first"], tmp_path / "run", Stop()).fit(digits())
    trainer(models["second"], tmp_path / "run").fit(digits(), resume=True)
    whole, second = models["whole"].state_dict(), models["second"].state_dict()
    assert all(torch.equal(value, second[name]) for name, value in whole.items())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "batch norm measured anew on 80 images" in config["decisions"][0]


def test_a_run_is_not_resumed_with_another_choice(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(net(), tmp_path / "run", Stop()).fit(digits())
    with pytest.raises(ResumeMismatchError, match="adapt_batch_norm was 'auto' and is False now"):
        trainer(net(), tmp_path / "run", adapt_batch_norm=False).fit(digits(), resume=True)


def test_a_choice_that_makes_no_sense():
    with pytest.raises(ArgumentError) as error:
        tk.Trainer(net(), adapt_batch_norm="yes")
    assert str(error.value) == (
        "The 'adapt_batch_norm' parameter of Trainer must be True, False or 'auto'. Got 'yes' instead."
    )
