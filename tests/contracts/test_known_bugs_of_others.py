"""Bugs that other libraries had, each of which must not be here. The name says where it was reported."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils import check_random_state
from torch import nn
from torchvision.transforms import v2

import transferkit as tk
from transferkit.errors import ClassMismatchError, DataError, UnsafeCheckpointError
from transferkit.loading.sources import image_batches

EXECUTION = tk.Execution("cpu", "fp32", channels_last=False)
QUIET = {"progress": False, "precision": "fp32", "device": "cpu"}


def write_photos(folder: Path, counts: dict[str, int], side: int = 12) -> Path:
    """Write small photos that all differ."""
    generator = np.random.default_rng(len(counts))
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (side, side + index % 3, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: each.numpy().tobytes() for name, each in model.state_dict().items()}


class Frozen(nn.Module):
    """All that moves in training though its parameters do not: batch norm of each kind, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout2d(0.5),
            nn.Conv2d(6, 6, 1),
            nn.BatchNorm2d(6, momentum=None),
            nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
            nn.Flatten(),
        )
        self.fc = nn.Linear(6 * 9, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images))


def users_own_loop(model: nn.Module, steps: int, seed: int = 0) -> None:
    """In train mode, with an optimizer that holds every parameter and would decay them all."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        images = torch.randn(4, 3, 8, 8, generator=generator) * 3 + 1
        nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()


def test_row_16_a_frozen_backbone_is_bitwise_unchanged_after_500_steps_in_train_mode():
    """Also pytorch#86590 and lightly#1438: frozen batch norm moves."""
    model = tk.freeze(Frozen())
    head = model.fc.weight.detach().clone()
    body = bits(model.body)
    users_own_loop(model, 500)
    assert bits(model.body) == body
    assert not torch.equal(model.fc.weight, head)


def test_row_16_the_embedded_backbone_too():
    model = tk.freeze(tk.load_backbone("mini", num_classes=2, image_size=8))
    before = bits(model)
    users_own_loop(model, 100)
    moved = {name for name, value in bits(model).items() if value != before[name]}
    assert moved == {"fc.weight", "fc.bias"}


def test_row_16_the_trainer_too(tiny_model, tiny_part):
    model = tiny_model()
    body = bits(model.body)
    phase = tk.Phase(train="head", epochs=20)
    tk.Trainer(model, recipe=phase, batch_size=4, **QUIET).fit(tiny_part(100), tiny_part(8, name="val"))
    assert bits(model.body) == body


def test_pytorch_86590_a_whole_model_that_is_frozen_gives_the_same_in_train_mode():
    model = tk.freeze(Frozen(), except_=None)
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(model.train()(images), model.eval()(images))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), {"ant": 14, "bee": 11})


def batches(
    photos: Path, workers: int, augmentation: tk.Augmentation, epochs: tuple[int, ...]
) -> list[tuple]:
    splits = tk.load_dataset(photos, val=0)
    source = image_batches(
        splits.train,
        tk.Preprocessing(size=16),
        EXECUTION,
        batch_size=4,
        augmentation=augmentation,
        shuffle=True,
        seed=3,
        workers=workers,
    )
    return [
        (batch.inputs.numpy().tobytes(), batch.targets.tolist(), batch.indices.tolist())
        for epoch in epochs
        for batch in source.epoch(epoch)
    ]


def noisy(image: Image.Image) -> Image.Image:
    """A user's own function, which draws from numpy's and torch's global generators."""
    pixels = np.asarray(image) // check_random_state(None).randint(1, 5)
    return v2.RandomHorizontalFlip()(Image.fromarray(pixels))


AUGMENTATIONS = {
    **{
        name: lambda record, name=name: tk.augmentation(name, record)
        for name in ("none", "light", "standard", "strong")
    },
    "a user's own": lambda record: tk.per_sample(noisy, record),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_row_17_any_number_of_workers_gives_the_same_batches(name, photos):
    augmentation = AUGMENTATIONS[name](tk.Preprocessing(size=16))
    first = batches(photos, 0, augmentation, (1, 2))
    for workers in (1, 2, 4):
        assert batches(photos, workers, augmentation, (1, 2)) == first
    assert sorted(index for _, _, indices in first[: len(first) // 2] for index in indices) == list(range(25))


def test_row_17_any_number_of_workers_trains_the_same_weights(photos, tiny_model):
    def trained(number: int) -> dict[str, bytes]:
        model = tiny_model()
        recipe = tk.Phase(epochs=2, augmentation="strong", lr=1e-3)
        tk.Trainer(model, recipe=recipe, batch_size=4, workers=number, seed=5, **QUIET).fit(
            tk.load_dataset(photos, val=0)
        )
        return bits(model)

    alone = trained(0)
    for workers in (0, 1, 2, 4):
        assert trained(workers) == alone, workers


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
@pytest.mark.parametrize("workers", [0, 4])
def test_pytorch_5059_no_two_images_and_no_two_epochs_get_the_same_draw(name, workers):
    """There numpy's generator was copied into every worker, so that all drew the same numbers."""
    record = tk.Preprocessing(size=64)
    augmentation = AUGMENTATIONS[name](record)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    same = tk.Part([image] * 32, [0] * 32, ["only"])
    source = image_batches(
        same, record, EXECUTION, batch_size=8, augmentation=augmentation, seed=1, workers=workers
    )
    drawn = [augmentation.draw(1, epoch, np.arange(32)) for epoch in (1, 2)]
    assert len(torch.cat(drawn).unique(dim=0)) > 50
    # Images of one content show it in the pixels, as far as the augmentation can make differences.
    seen = {
        each.numpy().tobytes() for epoch in (1, 2) for batch in source.epoch(epoch) for each in batch.inputs
    }
    assert len(seen) >= (8 if name == "a user's own" else 16)
    first, second = ([batch.inputs for batch in source.epoch(epoch)] for epoch in (1, 2))
    assert not all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_ultralytics_13936_a_class_folder_that_is_missing_shifts_no_label(tmp_path):
    write_photos(tmp_path / "train", {"ant": 4, "bee": 4, "cat": 4})
    write_photos(tmp_path / "val", {"ant": 2, "cat": 3})
    write_photos(tmp_path / "test", {"cat": 2})
    splits = tk.load_dataset(tmp_path)
    for part in (splits.train, splits.val, splits.test):
        assert part.classes == ("ant", "bee", "cat")
        for name, target in zip(part.ids, part.targets, strict=True):
            assert f"/{part.classes[target]}/" in name


def test_ultralytics_13936_a_class_that_training_lacks_is_an_error(tmp_path):
    write_photos(tmp_path / "train", {"ant": 4, "cat": 4})
    write_photos(tmp_path / "val", {"ant": 2, "bee": 2, "cat": 2})
    with pytest.raises(
        ClassMismatchError, match=r"The 'val' part has 1 class \('bee'\) besides the expected 2"
    ):
        tk.load_dataset(tmp_path)


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir"])
def test_vision_2831_a_hidden_folder_is_no_class(hidden, tmp_path):
    write_photos(tmp_path, {"ant": 4, "bee": 4, hidden: 2})
    with pytest.warns(UserWarning, match=f"left out 1 entry .*{hidden}"):
        splits = tk.load_dataset(tmp_path)
    assert splits.classes == ("ant", "bee")
    assert not any(hidden in name for part in (splits.train, splits.val) for name in part.ids)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_pytorch_25162_padding_falsifies_no_figure(batch_size, tiny_model, tiny_part):
    """There the last batch was filled up with samples that had been counted already."""
    model = tiny_model(3).eval()
    for count in range(1, 34):
        part = tiny_part(count, classes=3, seed=count)
        report = tk.evaluate(model, part, batch_size=batch_size, device="cpu", precision="fp32")
        record = tk.spec_of(model).preprocessing
        with torch.no_grad():
            one_by_one = [int(model(record(part[index][0])[None]).argmax()) for index in range(count)]
        assert report.n == count
        assert report.ids == part.ids
        assert report.predictions.tolist() == one_by_one
        assert report.accuracy == np.mean(np.array(one_by_one) == part.targets)
        assert int(report.confusion_matrix.sum()) == count


def test_lightning_21901_what_a_later_phase_unfreezes_trains(tiny_model, tiny_part):
    """There a plan that was restored froze again what had been unfrozen since."""
    phases = [tk.Phase(train="head", epochs=1), tk.Phase(train="all", epochs=1, lr=1e-2)]
    model = tiny_model()
    body = model.body[0].weight.detach().clone()
    moved = []

    class Watch(tk.Callback):
        def epoch_end(self, row):
            moved.append(not torch.equal(model.body[0].weight, body))

    tk.Trainer(model, recipe=phases, callbacks=[Watch()], batch_size=8, **QUIET).fit(tiny_part())
    assert moved == [False, True]
    assert all(each.requires_grad for each in model.parameters())
    # The same model again: the first phase freezes, the second thaws, whatever came before.
    tk.Trainer(model, recipe=phases, batch_size=8, **QUIET).fit(tiny_part())
    assert all(each.requires_grad for each in model.parameters())


def test_lightning_6891_groups_after_unfreezing_hold_each_parameter_once():
    model = tk.load_backbone("mini", weights=None, num_classes=2, image_size=8)
    tk.freeze(model)
    for stage in ("layer3", "layer2", "layer1", None):
        tk.unfreeze(model, only=stage)
        groups = tk.parameter_groups(model, lr=0.1, head_lr=1.0, layer_decay=0.5, weight_decay=0.1)
        held = [id(each) for group in groups for each in group["params"]]
        assert len(held) == len(set(held))
        assert set(held) == {id(each) for each in model.parameters() if each.requires_grad}
        # The state of an optimizer over the same plan fits, group by group.
        first, second = (torch.optim.AdamW(groups), torch.optim.AdamW(tk.parameter_groups(model, lr=0.1)))
        assert len(first.state_dict()["param_groups"]) == len(groups)
        assert second.state_dict()["param_groups"]


class Evil:
    """What a stranger may put into a file of weights."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def test_cve_2025_32434_weights_run_no_code(tmp_path):
    canary = tmp_path / "canary"
    for name, write in {
        "plain.pth": lambda file: pickle.dump({"fc.weight": Evil(canary)}, file),
        "zipped.pth": lambda file: torch.save({"fc.weight": Evil(canary)}, file),
        "legacy.pth": lambda file: torch.save(
            {"fc.weight": Evil(canary)}, file, _use_new_zipfile_serialization=False
        ),
    }.items():
        with (tmp_path / name).open("wb") as file:
            write(file)
        with pytest.raises(UnsafeCheckpointError, match=name):
            tk.load_backbone("mini", weights=tmp_path / name)
        assert not canary.exists()


def test_an_ignored_index_is_no_class(tiny_model):
    """pytorch's cross entropy leaves out targets of -100 without a word."""
    with pytest.raises(DataError, match="Every target must be at least 0"):
        tk.Part(np.zeros((2, 8, 8, 3), np.uint8), [0, -100], ["ant", "bee"])
