"""Evaluation sees each sample exactly once and matches classes by name."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from torch.utils.data import DataLoader, TensorDataset

import transferkit as tk
from transferkit.errors import ClassMismatchError, DataError

EXACT = {"precision": "fp32"}


@pytest.fixture
def model(tiny_model):
    model = tiny_model(3)
    with torch.no_grad():
        model.fc.weight.mul_(5)
    return tk.replace_head(model, 3, head=model.fc, classes=["class0", "class1", "class2"])


def probabilities(model, part, device):
    preprocessing = tk.spec_of(model).preprocessing
    images = torch.stack([preprocessing(part[index][0]) for index in range(len(part))])
    with torch.no_grad():
        return model.to(device).eval()(images.to(device)).double().softmax(1).cpu().numpy()


def test_figures_are_scikit_learns(model, tiny_part, device):
    part = tiny_part(30, classes=3)
    expected = probabilities(model, part, device)
    report = tk.evaluate(model, part, device=device, **EXACT)
    assert report.n == 30
    assert report.accuracy == pytest.approx(accuracy_score(part.targets, expected.argmax(1)))
    assert report.log_loss == pytest.approx(log_loss(part.targets, expected, labels=[0, 1, 2]), rel=1e-4)
    np.testing.assert_array_equal(report.confusion_matrix, confusion_matrix(part.targets, expected.argmax(1)))
    assert report.split == "train"


@pytest.mark.parametrize("count", range(1, 34))
def test_each_sample_is_counted_once_for_any_batch_size(model, tiny_part, count):
    part = tiny_part(count, classes=3)
    matrices = [
        tk.evaluate(model, part, batch_size=size, device="cpu", **EXACT).confusion_matrix
        for size in range(1, 9)
    ]
    for matrix in matrices:
        assert matrix.sum() == count
        np.testing.assert_array_equal(matrix, matrices[0])


def test_classes_in_another_order_are_matched_by_name(model, tiny_part, device):
    part = tiny_part(30, classes=3)
    expected = tk.evaluate(model, part, device=device, **EXACT)
    for order in itertools.permutations(range(3)):
        classes = [part.classes[index] for index in order]
        renumbered = np.argsort(order)[part.targets]
        moved = tk.Part(part.sources, renumbered, classes)
        report = tk.evaluate(model, moved, device=device, **EXACT)
        np.testing.assert_array_equal(report.confusion_matrix, expected.confusion_matrix)
        assert report.classes == expected.classes


def test_unknown_classes_are_listed(model, tiny_part):
    part = tiny_part(6, classes=3)
    other = tk.Part(part.sources, part.targets, ["class0", "zebra", "class2"])
    with pytest.raises(ClassMismatchError) as caught:
        tk.evaluate(model, other)
    assert "'zebra'" in str(caught.value)
    assert "'class0', 'class1', 'class2'" in str(caught.value)


def test_an_unknown_class_without_images_does_no_harm(model, tiny_part):
    part = tiny_part(6, classes=3)
    more = tk.Part(part.sources, part.targets, [*part.classes, "zebra"])
    assert tk.evaluate(model, more).n == 6


def test_classes_may_be_missing(model, tiny_part, device):
    part = tiny_part(30, classes=3)
    expected = tk.evaluate(model, part, device=device, **EXACT).confusion_matrix
    for missing in range(3):
        kept = [name for number, name in enumerate(part.classes) if number != missing]
        fewer = part.take(np.flatnonzero(part.targets != missing)).with_classes(kept)
        matrix = tk.evaluate(model, fewer, device=device, **EXACT).confusion_matrix
        np.testing.assert_array_equal(np.delete(matrix, missing, 0), np.delete(expected, missing, 0))
        assert not matrix[missing].any()


def test_splits_give_the_test_part_else_the_validation_part(model, tiny_part):
    parts = {
        name: tiny_part(count, classes=3, name=name)
        for name, count in (("train", 9), ("val", 6), ("test", 3))
    }
    splits = tk.Splits(parts["train"], parts["val"], parts["test"], {})
    assert tk.evaluate(model, splits).split == "test"
    assert tk.evaluate(model, tk.Splits(parts["train"], parts["val"], None, {})).split == "val"
    with pytest.raises(DataError, match="neither a test nor a validation part"):
        tk.evaluate(model, tk.Splits(parts["train"], None, None, {}))


def test_more_classes_than_outputs_are_refused(tiny_model):
    data = DataLoader(TensorDataset(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 5])), batch_size=2)
    with pytest.raises(ClassMismatchError, match="The model has 2 outputs, but a target is 5"):
        tk.evaluate(tiny_model(2), data)


def test_the_models_mode_is_left_as_it_was(model, tiny_part):
    model.train()
    tk.evaluate(model, tiny_part(4, classes=3))
    assert model.training
    assert model.body[1].training


class Pairs:
    """A map-style data set of the user's own."""

    def __init__(self, part, classes):
        self.items = [part[index] for index in range(len(part))]
        if classes:
            self.classes = part.classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def selected_on(model, data, *others):
    """Train on data with a validation part, and return what reports on others say of the selection."""
    trainer = tk.Trainer(model, recipe="linear-probe", progress=False, device="cpu", precision="fp32")
    trainer.fit(*data, epochs=1)
    return [tk.evaluate(model, other, device="cpu", **EXACT).selected for other in others]


@pytest.fixture
def photos(tmp_path):
    for part in ("train", "valid"):
        for name, value in (("ant", 40), ("bee", 200)):
            for index in range(3):
                path = tmp_path / "photos" / part / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), value + index).save(path)
    return tmp_path / "photos"


def test_the_images_of_the_selection_are_known_however_they_are_loaded(photos, tmp_path, tiny_model):
    copied = shutil.copytree(photos, tmp_path / "copied")
    again, alone = tk.load_dataset(photos), tk.load_dataset(photos / "valid", val=0).train
    others = [again, again.val, again.val.take([5, 4, 3, 2, 1, 0]), tk.load_dataset(copied), alone]
    model = tiny_model()
    assert selected_on(model, [tk.load_dataset(photos)], *others) == [True] * 5
    # In a part of it, the images were selected on too, but a fingerprint of all cannot tell that.
    assert selected_on(model, [again], again.train, again.val.take([0, 1, 5])) == [False, False]


def test_another_part_with_the_same_file_names_was_not_selected_on(photos, tiny_model):
    # 0.png of ant is in each part, and is another image in each.
    for index, path in enumerate(sorted((photos / "train").rglob("*.png"))):
        place = photos / "test" / path.relative_to(photos / "train")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 100 + index).save(place)
    splits = tk.load_dataset(photos)
    alone = [tk.load_dataset(photos / part, val=0).train for part in ("train", "valid", "test")]
    assert selected_on(tiny_model(), [splits], splits.test, *alone) == [False, False, True, False]


def test_a_part_that_is_drawn_is_known_when_it_is_drawn_again(photos, tiny_model):
    def load(**options):
        return tk.load_dataset(photos / "train", val=0.34, **options)

    assert selected_on(tiny_model(), [load()], load(), load(seed=1)) == [True, False]


@pytest.mark.parametrize("classes", [True, False])
def test_a_data_set_of_the_users_own_is_known(classes, tiny_model, tiny_part):
    train, val = (Pairs(tiny_part(8, seed=seed), classes) for seed in (0, 1))
    again = Pairs(tiny_part(8, seed=1), classes)
    loaded = tk.load_dataset({"train": train, "val": again})
    assert selected_on(tiny_model(), [train, val], val, again, loaded, loaded.val) == [True] * 4
