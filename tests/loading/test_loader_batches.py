"""A loader of the user's own is looked at, and when it fails, one sentence says why and no worker is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import transferkit as tk
from transferkit.errors import DataError, LoaderError
from transferkit.loading import loader_batches
from transferkit.loading.loader_batches import LoaderBatches, dead_workers_told

# Threads of torch are there when the workers are forked, and they run nothing of it.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Faulty(Dataset):
    """Ten samples, one of which may be at fault."""

    def __init__(self, fault=None, at=5):
        self.fault = fault
        self.at = at

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == self.at:
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "hangs":
                time.sleep(1000)
            if self.fault == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.fault == "raises":
                raise ValueError("sample 5 has no label")
        return torch.full((3, 4, 4), float(index)), index % 2


def loader_of(*batches):
    """A loader that yields what it is given."""

    class Given:
        def __len__(self):
            return len(batches)

        def __iter__(self):
            return iter(batches)

    return Given()


def workers():
    return [process for process in multiprocessing.active_children() if process.is_alive()]


def test_a_users_loader_is_taken_as_it_is(device):
    inputs = torch.randn(10, 3, 4, 4)
    loader = DataLoader(TensorDataset(inputs, torch.arange(10) % 2), batch_size=4)
    source = LoaderBatches(loader, device=device)
    batches = list(source.epoch(0))
    assert len(source) == 3
    assert source.samples() == 10
    torch.testing.assert_close(torch.cat([batch.inputs for batch in batches]).cpu(), inputs)
    assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(10))


@pytest.mark.parametrize("count", range(1, 34))
def test_every_sample_comes_once(count, device):
    data = TensorDataset(torch.arange(float(count))[:, None], torch.zeros(count, dtype=torch.int64))
    for batch_size in range(1, 9):
        source = LoaderBatches(DataLoader(data, batch_size=batch_size, shuffle=True), device=device)
        seen = torch.cat([batch.inputs for batch in source.epoch(1)])
        assert sorted(seen.flatten().tolist()) == list(range(count))


@pytest.mark.parametrize("start", [0, 1, 3])
def test_an_epoch_may_begin_later(start, device):
    source = LoaderBatches(DataLoader(Faulty(), batch_size=4), device=device)
    whole = [batch.inputs for batch in source.epoch(0)]
    later = [batch.inputs for batch in source.epoch(0, start)]
    assert len(later) == len(whole[start:])
    for batch, expected in zip(later, whole[start:], strict=True):
        assert torch.equal(batch, expected)


def test_a_loader_of_raw_pixels_is_refused(device):
    raw = TensorDataset(torch.zeros(4, 3, 4, 4, dtype=torch.uint8), torch.zeros(4))
    loader = DataLoader(raw, batch_size=2)
    with pytest.raises(DataError, match="must yield float images that are ready for the model"):
        next(LoaderBatches(loader, device=device).epoch(0))


def test_a_generator_without_length_is_refused(device):
    with pytest.raises(DataError, match="A loader must have a length"):
        len(LoaderBatches((pair for pair in []), device=device))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": 1, "label": 2}, "must yield pairs of float images and class indices. Got dict instead"),
        (torch.zeros(2, 3), "Got Tensor instead"),
        ((torch.zeros(2, 3),), "Got tuple instead"),
        ((torch.zeros(2, 3), ["ant", "bee"]), r"whole numbers of shape \[2\].*Got list instead"),
        ((torch.zeros(2, 3), torch.tensor([0.0, float("nan")])), r"Got torch.float32 of shape \[2\] instead"),
        ((torch.zeros(2, 3), torch.zeros(2, 2).long()), r"Got torch.int64 of shape \[2, 2\] instead"),
        ((torch.zeros(2, 3), torch.zeros(3).long()), r"shape \[2\].*Got torch.int64 of shape \[3\] instead"),
        ((torch.zeros(2, 3), torch.tensor([0, -1])), "at least 0 and below 3, the .* Got -1 for sample 3"),
        ((torch.zeros(2, 3), torch.tensor([3, 0])), "below 3, the number of the model's outputs. Got 3 for"),
    ],
)
def test_batches_that_make_no_sense(batch, message, device):
    good = (torch.zeros(2, 3), torch.tensor([0, 2]))
    source = LoaderBatches(loader_of(good, batch), device=device, num_classes=3)
    with pytest.raises(DataError, match=message):
        list(source.epoch(0))


def test_labels_from_1_are_found_before_the_model_sees_them(tiny_model):
    data = TensorDataset(torch.randn(6, 3, 8, 8), torch.tensor([1, 2, 1, 2, 1, 2]))
    trainer = tk.Trainer(tiny_model(2), recipe="fine-tune", device="cpu", progress=False)
    before = trainer.model.fc.weight.clone()
    with pytest.raises(DataError, match=r"below 2, the number of the model's outputs\. Got 2 for sample 1"):
        trainer.fit(DataLoader(data, batch_size=6), epochs=1)
    assert torch.equal(trainer.model.fc.weight, before)


def test_a_worker_that_raises_is_told_in_one_sentence(device):
    source = LoaderBatches(DataLoader(Faulty("raises"), batch_size=2, num_workers=2), device=device)
    with pytest.raises(LoaderError) as caught:
        list(source.epoch(0))
    message = "A worker of the DataLoader failed at batch 3: ValueError: sample 5 has no label."
    assert str(caught.value) == message
    assert isinstance(caught.value.__cause__, ValueError)
    assert not workers()


def test_an_error_without_workers_is_the_users_own(device):
    source = LoaderBatches(DataLoader(Faulty("raises"), batch_size=2), device=device)
    with pytest.raises(ValueError, match=r"^sample 5 has no label$"):
        list(source.epoch(0))


@pytest.mark.parametrize("persistent", [False, True])
def test_a_worker_that_is_killed(persistent, device):
    data = Faulty("killed")
    loader = DataLoader(data, batch_size=2, num_workers=2, persistent_workers=persistent)
    source = LoaderBatches(loader, device=device)
    with pytest.raises(LoaderError, match=r"^A worker of the DataLoader has died \("):
        list(source.epoch(0))
    assert not workers()
    # The loader can be used again.
    data.fault = None
    assert len(list(source.epoch(0))) == 5


def test_a_worker_that_dies_while_the_model_computes(device):
    source = LoaderBatches(DataLoader(Faulty(), batch_size=1, num_workers=1), device=device)

    def compute():
        for _ in source.epoch(0):
            (worker,) = workers()
            os.kill(worker.pid, signal.SIGKILL)
            while True:  # torch raises here, out of its handler of SIGCHLD
                time.sleep(0.01)

    with pytest.raises(LoaderError, match="A worker of the DataLoader has died"), dead_workers_told():
        compute()
    assert not workers()
    with pytest.raises(RuntimeError, match=r"^something else$"), dead_workers_told():
        raise RuntimeError("something else")


@pytest.mark.parametrize("fault", ["hangs", "stopped"])
def test_a_worker_that_hangs(fault, device, monkeypatch):
    monkeypatch.setattr(loader_batches, "HANGS_AFTER", 0.5)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    loader = DataLoader(Faulty(fault, at=0), batch_size=2, num_workers=2)
    with pytest.raises(LoaderError) as caught:
        list(LoaderBatches(loader, device=device).epoch(0))
    assert "gave nothing for 0.5 s, when batch 1 was due" in str(caught.value)
    assert "DataLoader(timeout=...)" in str(caught.value)
    assert loader.timeout == 0
    assert not workers()


def test_a_timeout_of_the_loaders_own_counts(device, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    loader = DataLoader(Faulty("hangs", at=0), batch_size=2, num_workers=1, timeout=0.25)
    with pytest.raises(LoaderError, match=r"gave nothing for 0.25 s"):
        list(LoaderBatches(loader, device=device).epoch(0))
    assert not workers()


def test_evaluation_tells_of_a_loader_that_fails(tiny_model):
    loader = DataLoader(Faulty("killed"), batch_size=2, num_workers=1)
    with pytest.raises(LoaderError, match="A worker of the DataLoader has died"):
        tk.evaluate(tiny_model(2), loader, device="cpu")
    assert not workers()


def test_a_loader_over_a_part_is_told_to_be_left_out(tiny_part):
    with pytest.raises(DataError) as error:
        LoaderBatches(DataLoader(tiny_part(4), batch_size=2), device="cpu")
    assert str(error.value) == (
        "A DataLoader over a part would have to make batches of PIL images, which torch cannot; "
        "give the part itself, whose images are decoded and prepared in batches."
    )
