"""A phase trains on stored outputs where that changes nothing, and says which it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import transferkit as tk
from transferkit.backbones.spec import Stage, set_spec
from transferkit.errors import DataError
from transferkit.features import stored
from transferkit.inference import small_execution
from transferkit.training import loop

QUIET = {"progress": False, "precision": "fp32"}


class Staged(nn.Module):
    """Two stages with batch norm and dropout, and a head."""

    def __init__(self, dropout=0.0):
        super().__init__()
        convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.first = nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Dropout(dropout),
        )  # fmt: skip
        self.fc = nn.Linear(8, 2)

    def forward(self, images):
        return self.fc(self.second(self.first(images)))


def staged(dropout=0.0):
    torch.manual_seed(0)
    model = Staged(dropout)
    model.train()(torch.randn(32, 3, 8, 8))  # statistics that are worth keeping
    return set_spec(model, tk.BackboneSpec("custom", "fc", tk.Preprocessing(size=8)))


@pytest.fixture(autouse=True)
def reading_always_pays(monkeypatch):
    """What these small networks give takes longer to read than to compute, or would by the rule."""
    monkeypatch.setattr(stored, "_OPERATIONS_PER_BYTE", {})
    monkeypatch.setattr(stored, "is_versioned", lambda module: True)


class Watch(tk.Callback):
    def __init__(self):
        self.notes = []

    def phase_start(self, number, phase, note):
        self.notes.append(note)


@pytest.fixture
def note_of(tiny_part):
    """Trains and returns how the phase ran."""

    def run(model, phase, part=None, **options):
        watch = Watch()
        trainer = tk.Trainer(model, recipe=phase, callbacks=[watch], batch_size=8, **(QUIET | options))
        trainer.fit(tiny_part() if part is None else part)
        return watch.notes[0]

    return run


def passes(monkeypatch):
    """Counts the rows that were computed to be stored or used."""
    counts = []
    original = stored.FrozenPrefix._blocks

    def counted(self, *arguments):
        for block in original(self, *arguments):
            counts.append(len(block))
            yield block

    monkeypatch.setattr(stored.FrozenPrefix, "_blocks", counted)
    return counts


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_training_a_stage_on_stored_outputs_is_training_it_through_the_model(
    dropout, tiny_part, device, monkeypatch
):
    part, val = tiny_part(30), tiny_part(12, seed=1, name="val")
    phase = tk.Phase(train=("second", "head"), epochs=3, optimizer="sgd", lr=0.05)
    on_stored, whole = staged(dropout), staged(dropout)
    counts = passes(monkeypatch)
    first = tk.Trainer(on_stored, recipe=phase, batch_size=8, device=device, **QUIET).fit(part, val)
    assert sum(counts) == 42
    monkeypatch.setattr(stored, "why_not_split", lambda *arguments: "the test forbids it")
    second = tk.Trainer(whole, recipe=phase, batch_size=8, device=device, **QUIET).fit(part, val)
    assert sum(counts) == 42
    for name, value in on_stored.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert [row["val_accuracy"] for row in first] == [row["val_accuracy"] for row in second]
    assert not torch.equal(on_stored.second[1].running_mean, staged().second[1].running_mean.to(device))
    assert torch.equal(on_stored.first[1].running_mean.cpu(), staged().first[1].running_mean)


STORED, SECOND = "on stored outputs of what is frozen", ("second", "head")


@pytest.mark.parametrize(("phase", "note"), [
    (tk.Phase(train="head"), f"{STORED}, before 'fc'"),
    (tk.Phase(train=SECOND), f"{STORED}, before 'second'"),
    (tk.Phase(train="all"), "on images, plain: nothing is frozen"),
    (tk.Phase(train=SECOND, augmentation="light"), "on images, light: the images vary in each epoch"),
    (tk.Phase(train=SECOND, augmentation="none"), STORED),
    (tk.Phase(train=SECOND, augmentation="light", views=2), STORED),
    (tk.Phase(train=("first", "head")), "on images, plain: nothing is frozen before what trains"),
])  # fmt: skip
def test_how_a_phase_runs_is_said(phase, note, note_of):
    assert note in note_of(staged(), phase)


def test_last_stages_train_on_stored_outputs_of_those_before(tiny_part):
    watch, trained = Watch(), []
    model = staged()
    spec = tk.BackboneSpec(
        "custom", "fc", tk.Preprocessing(size=8),
        (Stage("first", ("first",)), Stage("second", ("second",))),
    )  # fmt: skip
    set_spec(model, spec)

    class Names(tk.Callback):
        def phase_start(self, number, phase, note):
            trained.append(
                {name.split(".")[0] for name, each in model.named_parameters() if each.requires_grad}
            )

    phases = [tk.Phase(train=train) for train in ("head", "last:1", "last:2", "last:9")]
    tk.Trainer(model, recipe=phases, callbacks=[watch, Names()], batch_size=8, **QUIET).fit(tiny_part())
    assert trained == [{"fc"}, {"fc", "second"}, {"fc", "second", "first"}, {"fc", "second", "first"}]
    assert f"{STORED}, before 'fc'" in watch.notes[0]
    assert f"{STORED}, before 'second'" in watch.notes[1]
    assert "nothing is frozen" in watch.notes[2]
    assert watch.notes[1].startswith("train last:1 (")


def test_gradual_freezes_one_stage_less_in_each_phase(tiny_part):
    model = tk.replace_head(tk.load_backbone("mini", weights=None), 2)
    sizes = []

    class Sizes(tk.Callback):
        def phase_start(self, number, phase, note):
            sizes.append(sum(each.numel() for each in model.parameters() if each.requires_grad))

    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    part = tk.Part(images, np.arange(12) % 2, ["a", "b"])
    rows = tk.Trainer(model, recipe="gradual", callbacks=[Sizes()], **QUIET).fit(part, epochs=5)
    assert [row["train"] for row in rows] == ["head", "last:1", "last:2", "last:3", "all"]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) >= 4
    assert sizes[-1] == sum(each.numel() for each in model.parameters())


def test_images_and_stored_outputs_are_balanced_and_loaders_refused(tiny_part):
    part = tiny_part(24).take([*range(0, 24, 2), 1])
    for train in ("head", "all"):
        model = staged()
        targets = []
        phase = tk.Phase(train=train, sampling="balanced", epochs=2)

        def noting(module, batch, *arguments, targets=targets, **options):
            targets += batch.targets.tolist()
            return tk.train_step(module, batch, *arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train_step", noting)
            tk.Trainer(model, recipe=phase, batch_size=4, **QUIET).fit(part)
        for epoch in (targets[:13], targets[13:]):
            assert sorted(np.bincount(epoch).tolist()) == [6, 7]
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 2), batch_size=4)
    with pytest.raises(DataError) as error:
        tk.Trainer(staged(), recipe=tk.Phase(sampling="balanced"), **QUIET).fit(loader)
    assert str(error.value) == "Balanced sampling needs a part or data set whose targets are known."


def test_images_that_may_vary_are_not_stored(note_of, tiny_part):
    class Users:
        targets = [0, 1] * 12

        def __len__(self):
            return 24

        def __getitem__(self, index):
            return tiny_part()[index][0], self.targets[index]

    assert "on images, plain: the images may vary" in note_of(staged(), tk.Phase(train="head"), Users())


def test_batches_of_the_users_own_go_through_the_whole_model():
    images, targets = torch.randn(16, 3, 8, 8), torch.arange(16) % 2
    loader, watch = DataLoader(TensorDataset(images, targets), batch_size=8), Watch()
    trainer = tk.Trainer(staged(), recipe=tk.Phase(train="head"), callbacks=[watch], **QUIET)
    trainer.fit(loader, loader)
    assert "on images, plain: the images may vary" in watch.notes[0]


def test_views_are_the_augmentation_of_the_whole_run(tiny_part, monkeypatch, device):
    """Each epoch sees, for each image, one of the K views; over many epochs all of them."""
    part = tiny_part(6)
    model = staged().to(device)
    seen = set()

    class Collect(nn.Linear):
        def forward(self, features):
            if self.training:
                seen.update(tuple(row) for row in features.detach().cpu().tolist())
            return super().forward(features)

    model.fc = Collect(8, 2)
    phase = tk.Phase(train="head", views=3, augmentation="light", epochs=30)
    tk.Trainer(model, recipe=phase, seed=5, device=device, **QUIET).fit(part)
    preprocessing = tk.spec_of(model).preprocessing
    light = tk.augmentation("light", preprocessing)
    images = torch.stack([preprocessing.pixels(part[index][0]) for index in range(6)])
    expected = []
    model.eval()
    for view in range(3):
        pixels = light.apply(images, light.draw(5, view, np.arange(6)))
        with torch.no_grad():
            expected.append(model.second(model.first(preprocessing.normalize(pixels).to(device))).cpu())
    every = torch.cat(expected)
    rows = torch.tensor(sorted(seen))
    assert len(rows) <= 18 + 8  # beside the check on eight rows
    nearest = torch.cdist(every, rows).min(dim=1).values
    assert nearest.max() < 1e-4


def test_a_second_run_with_views_computes_nothing(tiny_part, monkeypatch):
    phase = tk.Phase(train="head", views=3, augmentation="light")
    tk.Trainer(staged(), recipe=phase, **QUIET).fit(tiny_part(6))
    counts = passes(monkeypatch)
    tk.Trainer(staged(), recipe=phase, **QUIET).fit(tiny_part(6))
    assert counts == []
    tk.Trainer(staged(), recipe=phase, seed=1, **QUIET).fit(tiny_part(6))
    assert sum(counts) == 18


def test_an_augmentation_of_the_users_own_is_stored_for_the_run_alone(tiny_part, monkeypatch):
    counts = passes(monkeypatch)
    for _ in range(2):
        phase = tk.Phase(train="head", views=2)
        trainer = tk.Trainer(staged(), recipe=phase, augmentation=lambda image: image.rotate(90), **QUIET)
        trainer.fit(tiny_part(6))
    assert sum(counts) == 2 * 2 * 6


def test_a_small_head_runs_on_one_thread_in_float32():
    execution = tk.resolve_execution(staged(), device="cpu", precision="bf16")
    small = small_execution(nn.Linear(512, 10), (512,), execution)
    assert (small.precision, small.threads) == ("fp32", 1)
    assert small_execution(nn.Linear(4096, 1000), (4096,), execution) is execution
    assert small_execution(nn.Conv2d(512, 10, 1), (512, 2, 2), execution).precision == "fp32"
    assert small_execution(nn.Conv2d(512, 100, 3), (512, 13, 13), execution) is execution


def test_a_model_in_evaluation_reuses_what_training_has_stored(tiny_part, monkeypatch):
    part, val = tiny_part(20), tiny_part(10, seed=1, name="val")
    model = staged()
    history = tk.Trainer(model, recipe=tk.Phase(train="head", epochs=2), **QUIET).fit(part, val)
    counts = passes(monkeypatch)
    report = tk.evaluate(model, val, precision="fp32")
    assert counts == []
    assert report.accuracy == history.best["val_accuracy"]
    assert report.log_loss == pytest.approx(history.best["val_loss"], rel=1e-5)
