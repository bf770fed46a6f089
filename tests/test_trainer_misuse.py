"""What users do by mistake, or with models and data that are unlike others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import transferkit as tk
from transferkit.backbones.spec import set_spec
from transferkit.errors import ArgumentError, DataError, NonFiniteError
from transferkit.features.split import NoSplit, split_model, why_not_split
from transferkit.runtime import resolve_execution

QUIET = {"progress": False, "precision": "fp32"}


class Photos(Dataset):
    """Images without class names, of the classes that are given."""

    def __init__(self, targets, *, as_floats=False):
        self.labels = targets
        self.as_floats = as_floats

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        array = np.full((8, 8, 3), 10 * index, dtype=np.uint8)
        image = torch.rand(3, 8, 8) if self.as_floats else Image.fromarray(array)
        return image, self.labels[index]


class Tied(nn.Module):
    """The head's weight is used before the head too."""

    def __init__(self):
        super().__init__()
        self.mid = nn.Linear(12, 12)
        self.fc = nn.Linear(12, 12)
        self.fc.weight = self.mid.weight

    def forward(self, images):
        return self.fc(self.mid(images.flatten(1)))


class OtherInTraining(nn.Module):
    """Does something else in training than in use, without any layer that tells."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(12, 4)
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.fc = nn.Linear(4, 2)

    def forward(self, images):
        return self.fc(self.norm(self.body(images.flatten(1))))


@pytest.mark.parametrize("model", [Tied(), OtherInTraining()])
def test_a_cut_changes_nothing_where_it_could(model, device):
    """What trains is used before the head too; something before the head differs in training."""
    model = tk.freeze(model.to(device), except_="fc").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(6, 3, 2, 2, device=device)
    execution = resolve_execution(model, device=device, precision="fp32")
    try:
        split = split_model(model)
        reason = why_not_split(split, images, execution)
    except NoSplit as error:
        reason = str(error)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    if reason is None:
        with torch.no_grad(), torch.random.fork_rng():
            features = split.prefix(images)
            assert torch.equal(split.suffix(features), model(images))


def test_modes_that_were_chosen_by_hand_stay(tiny_model, tiny_part):
    model = tiny_model().train()
    model.body[1].eval()
    tk.evaluate(model, tiny_part(4))
    assert model.training
    assert not model.body[1].training


def test_gradients_that_were_left_over_do_no_harm(tiny_model, tiny_part):
    def run(model):
        phase = tk.Phase(epochs=1, optimizer="sgd", lr=0.01)
        tk.Trainer(model, recipe=phase, batch_size=8, device="cpu", **QUIET).fit(tiny_part())
        return model.fc.weight

    clean, soiled = tiny_model(), tiny_model()
    for parameter in soiled.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    assert torch.equal(run(clean), run(soiled))


def test_patience_needs_a_validation_part(tiny_model, tiny_part):
    phase = tk.Phase(epochs=5, patience=1)
    assert len(tk.Trainer(tiny_model(), recipe=phase, **QUIET).fit(tiny_part())) == 5


def test_one_selector_in_a_list_is_that_selector():
    assert tk.Phase(train=["head"]).head_only
    assert tk.Phase(train=("head",)) == tk.Phase(train="head")


def test_numbers_of_other_libraries_reach_the_run_directory(tiny_model, tiny_part, tmp_path):
    phase = tk.Phase(epochs=np.int64(1), lr=np.float32(1e-3), class_weights=torch.tensor([1.0, 2.0]))
    trainer = tk.Trainer(tiny_model(), recipe=phase, run_dir=tmp_path / "run", **QUIET)
    trainer.fit(tiny_part())
    (saved,) = json.loads((tmp_path / "run" / "config.json").read_text())["phases"]
    assert saved["class_weights"] == [1.0, 2.0]
    assert saved["lr"] == pytest.approx(1e-3)


def test_the_run_records_which_images_it_trained_on(tiny_model, tiny_part, tmp_path):
    train, val = tiny_part(6), tiny_part(4, seed=1, name="val")
    tk.Trainer(tiny_model(), run_dir=tmp_path / "run", **QUIET).fit(train, val, epochs=2)
    parts = json.loads((tmp_path / "run" / "config.json").read_text())["parts"]
    assert parts["train"]["ids"] == list(train.ids)
    assert parts["val"]["ids"] == list(val.ids)


def test_other_pixels_under_the_same_names_are_other_images(tiny_model, tiny_part):
    first, second = tiny_part(10, name="val"), tiny_part(10, seed=1, name="val")
    second.ids = first.ids
    model = tiny_model()
    tk.Trainer(model, recipe="linear-probe", **QUIET).fit(tiny_part(), first, epochs=1)
    assert tk.evaluate(model, first).selected is True
    assert tk.evaluate(model, second).selected is False


def test_a_new_norm_in_the_head_trains(tiny_model, tiny_part):
    model = tiny_model()
    model.train()(torch.randn(16, 3, 8, 8))
    head = nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    tk.replace_head(model, 2, head=head)
    body = model.body[1].running_mean.clone()
    tk.Trainer(model, recipe="fine-tune", **QUIET).fit(tiny_part(), epochs=2)
    assert model.fc[1].num_batches_tracked > 0
    assert torch.equal(model.body[1].running_mean, body)


def test_an_augmentation_of_another_size_is_refused(tiny_model):
    with pytest.raises(ArgumentError, match="gives images of 32 px, but the model takes 8 px"):
        tk.Trainer(tiny_model(), augmentation=tk.augmentation("light", "cifar10"), **QUIET)


def test_float_data_sets_are_taken_as_ready_and_that_is_said(tiny_model):
    data = Photos([0, 1] * 4, as_floats=True)
    with pytest.warns(UserWarning, match="gives float tensors, which are taken as ready for the model"):
        tk.Trainer(tiny_model(), recipe="fine-tune", **QUIET).fit(data, epochs=1)
    with pytest.warns(UserWarning, match="gives float tensors"):
        assert tk.evaluate(tiny_model(), data).n == 8


def test_a_part_without_names_may_lack_the_last_class(tiny_model):
    history = tk.Trainer(tiny_model(3), recipe="linear-probe", **QUIET).fit(
        Photos([0, 1, 2] * 4), Photos([0, 1]), epochs=1
    )
    assert history[0]["val_accuracy"] is not None


def test_a_target_transform_of_the_data_set_counts(tiny_model):
    data = Photos([0, 0, 1, 1])
    data.targets, data.target_transform = [1, 1, 0, 0], lambda target: 1 - target
    model = tk.replace_head(tiny_model(), 2)
    report = tk.evaluate(model, data)
    assert report.targets.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "targets", [torch.tensor([0.9, 0.2]), torch.tensor([[0], [1]]), torch.tensor([0, -100])]
)
def test_a_loader_must_give_class_indices(tiny_model, targets):
    loader = DataLoader(TensorDataset(torch.randn(2, 3, 8, 8), targets), batch_size=2)
    with pytest.raises(DataError, match=r"^A DataLoader must yield class indices"):
        tk.Trainer(tiny_model(), recipe="fine-tune", **QUIET).fit(loader, epochs=1)


def test_empty_parts_are_named(tiny_model, tiny_part):
    empty = tiny_part(2).take([])
    with pytest.raises(DataError, match=r"^The 'train' part is empty; at least one image is needed\.$"):
        tk.Trainer(tiny_model(), **QUIET).fit(empty)


def test_a_validation_loss_that_is_not_finite_stops_the_run(tiny_model, tiny_part):
    phase = tk.Phase(optimizer="sgd", lr=1e30, warmup=0, epochs=3)
    with pytest.raises(NonFiniteError):
        tk.Trainer(tiny_model(), recipe=phase, **QUIET).fit(tiny_part(), tiny_part(4, name="val"))


@pytest.mark.parametrize(
    ("argument", "value"), [("recipe", 5), ("recipe", None), ("callbacks", tk.Callback()), ("seed", 2**64)]
)
def test_more_bad_arguments(tiny_model, argument, value):
    with pytest.raises(
        ArgumentError, match=rf"^The '{argument}' parameter of Trainer must be .+ Got .+ instead"
    ):
        tk.Trainer(tiny_model(), **{**QUIET, argument: value})


def test_a_run_directory_needs_a_spec_before_any_work(tmp_path):
    with pytest.raises(ArgumentError, match="A run directory needs a model with a spec"):
        tk.Trainer(nn.Linear(2, 2), run_dir=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_a_spec_survives_what_users_do_to_a_model(tiny_model):
    model = tiny_model()
    spec = tk.spec_of(model)
    assert tk.spec_of(set_spec(model, spec)) is spec
    assert tk.spec_of(torch.compile(model, backend="eager")) is spec
