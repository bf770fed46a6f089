"""Frozen batch norm whose statistics are foreign to the images is given theirs; other is left as it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.utils.data import Dataset, TensorDataset

import transferkit as tk
from transferkit.batch_norm import measured_norms
from transferkit.errors import ArgumentError, ImageDecodeError, ResumeMismatchError
from transferkit.loading.batches import Batch
from transferkit.runtime import resolve_execution
from transferkit.training import norm_statistics
from transferkit.training.norm_statistics import divergence

SPOILED = 500.0
# Factors on both sides of the limit.
BELOW, ABOVE = 20.0, 26.0


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


@pytest.mark.parametrize(("factor", "count"), [(ABOVE, 80), (SPOILED, 64)])
def test_the_limits(factor, count):
    assert "batch norm measured anew" in fit(net(factor), digits(count))[0]


@pytest.mark.parametrize(
    ("factor", "count", "given"),
    [
        (1.0, 80, {}),  # statistics of the weights, which are not foreign to digits
        (BELOW, 80, {}),
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
def test_a_run_that_trains_the_backbone_first_is_left_alone(freezes):
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
    assert fit(model, adapt_batch_norm=True)[0].endswith("; batch norm measured anew on 80 images")
    assert same(statistics(model), as_measured(net(factor=1.0)))


def test_true_measures_what_the_run_itself_computes(monkeypatch):
    """As it decodes, in its memory format and with its workers."""
    seen = []
    original = norm_statistics.image_batches

    def watched(part, preprocessing, execution, **given):
        seen.append((execution.decode, execution.channels_last, given["workers"]))
        return original(part, preprocessing, execution, **given)

    monkeypatch.setattr(norm_statistics, "image_batches", watched)
    execution = tk.Execution("cpu", "fp32", channels_last=False, decode="exact")
    trainer = tk.Trainer(
        net(), recipe="linear-probe", execution=execution, workers=1, adapt_batch_norm=True, progress=False
    )
    trainer.fit(digits())
    assert seen == [("exact", False, 1)]


def test_what_cannot_be_measured_is_left_alone_unless_it_was_asked_for(tiny_model):
    images = torch.rand(70, 3, 8, 8).mul(255).byte().permute(0, 2, 3, 1).numpy()
    part = tk.Part(images, [0, 1] * 35, ["a", "b"])
    ready = TensorDataset(torch.rand(70, 3, 32, 32), torch.arange(70) % 10)
    fit(tiny_model(norm=False), part)
    with pytest.raises(ArgumentError) as error:
        fit(tiny_model(norm=False), part, adapt_batch_norm=True)
    assert str(error.value) == (
        "The 'adapt_batch_norm' parameter of Trainer must be 'auto' or False for a model without batch norm, "
        "such as this TinyNet. Got True instead."
    )
    with pytest.raises(ArgumentError) as error, pytest.warns(UserWarning, match="ready for the model"):
        fit(net(), ready, adapt_batch_norm=True)
    assert str(error.value) == (
        "The 'adapt_batch_norm' parameter of Trainer must be 'auto' or False for data that is ready for the "
        "model. Got True instead."
    )


class Varying(Dataset):
    """Images that may be others each time, for all that is known."""

    def __init__(self):
        self.part = digits()

    def __len__(self):
        return len(self.part)

    def __getitem__(self, index):
        return self.part[index]


def test_images_that_vary_and_compiled_models_are_left_alone():
    model, phase = net(), tk.Phase(train="head", epochs=1)
    before = statistics(model)
    fit(model, Varying(), recipe=phase)
    compiled = torch.compile(model, backend="eager")
    fit(compiled, recipe=phase)
    assert same(statistics(model), before)


class Behind(nn.Module):
    """Batch norm before the head, behind it, called by keyword, and beside what is used."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm, self.unused = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.behind = nn.BatchNorm1d(10)
        self.head = nn.Linear(4, 10)
        for norm in (self.norm, self.unused, self.behind):
            norm.running_mean.fill_(100.0)

    def forward(self, images):
        maps = self.norm(input=self.conv(images))
        return self.behind(self.head(maps.mean(dim=(2, 3))))


def test_only_batch_norm_that_runs_before_the_head_is_measured():
    torch.manual_seed(0)
    model = tk.attach_spec(Behind(), head="head", preprocessing=tk.Preprocessing(size=32))
    before = statistics(model)
    assert "batch norm measured anew" in fit(model, recipe=tk.Phase(train="head", epochs=1))[0]
    after = statistics(model)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {f"norm.{each}" for each in ("running_mean", "running_var", "num_batches_tracked")}


def test_a_norm_that_no_image_reaches_keeps_what_it_has():
    model = tk.attach_spec(Behind(), head="head", preprocessing=tk.Preprocessing(size=32))
    tk.adapt_batch_norm(model, digits(), device="cpu", precision="fp32")
    assert model.unused.running_mean.tolist() == [100.0] * 4
    assert model.norm.running_mean.abs().max() < 100


@pytest.mark.parametrize("choice", ["auto", True])
def test_statistics_are_put_back_if_an_image_cannot_be_decoded(tmp_path, choice):
    for number in range(70):
        folder = tmp_path / f"{number % 2}"
        folder.mkdir(exist_ok=True)
        image = np.random.default_rng(number).integers(0, 40, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
    (tmp_path / "0" / "40.png").write_bytes(b"no image")
    part = tk.load_dataset(str(tmp_path), val=0).train
    model = net()
    tk.replace_head(model, 2)
    before = statistics(model)
    with pytest.raises(ImageDecodeError):
        fit(model, part, adapt_batch_norm=choice)
    assert same(statistics(model), before)


def test_random_weights_have_no_statistics_to_compare():
    model = tk.load_backbone("mini", weights=None, num_classes=10)
    for norm in measured_norms(model):
        norm.running_var.div_(SPOILED)
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
    assert found == {norm: pytest.approx(float(kl_divergence(now, before).median()), rel=1e-3)}


class Noisy(nn.Module):
    """Draws random numbers in inference mode too."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, images):
        return self.body(images + torch.rand_like(images))


def test_random_numbers_afterwards_are_the_same():
    draws = []
    for choice in ("auto", False):
        model = tk.attach_spec(Noisy(net()), head="body.fc", preprocessing=tk.Preprocessing(size=32))
        torch.manual_seed(7)
        tk.freeze(model, except_="head")
        if choice == "auto":
            execution = resolve_execution(model, device="cpu", precision="fp32")
            norm_statistics.suit_statistics(model, digits(), execution, seed=0)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


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
    larger = tk.load_backbone("mini", image_size=48, num_classes=10)
    larger.load_state_dict(net().state_dict())
    for model, part, given in (
        (net(), digits(79), {}),
        (net(), digits(), {"seed": 1}),
        (net(), digits(), {"precision": "bf16"}),
        (other, digits(), {}),
        (larger, digits(), {}),
    ):
        with pytest.raises(AssertionError, match="measured again"):
            fit(model, part, **given)


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
