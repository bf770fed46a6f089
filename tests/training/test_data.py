"""The data of a run is decoded once for all its phases."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import transferkit as tk
from transferkit.augmentations import augmentation
from transferkit.loading import image_pixels
from transferkit.runtime import Execution
from transferkit.training.data import TrainingData

RECORD = tk.Preprocessing(size=8, resize=10)
EXECUTION = Execution("cpu", "bf16", channels_last=True)


@pytest.fixture
def part():
    images = np.random.default_rng(0).integers(0, 256, (10, 16, 20, 3), dtype=np.uint8)
    return tk.Part(images, np.arange(10) % 2, ["a", "b"])


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that were decoded, in order."""
    names = []
    original = image_pixels.decode_image

    def counted(source, *, name="", **options):
        names.append(name)
        return original(source, name=name, **options)

    monkeypatch.setattr(image_pixels, "decode_image", counted)
    return names


def run_through(source):
    return [batch for epoch in (1, 2) for batch in source.epoch(epoch)]


def test_phases_share_what_is_decoded(part, decoded):
    data = TrainingData(part, part.take([1, 2]), RECORD, execution=EXECUTION, batch_size=4)
    sources = [data.plain_batches(), data.training_batches(None), data.prefix_batches(part, 3, None)]
    for source in (*sources, data.training_batches(augmentation("light", RECORD))):
        run_through(source)
    assert len(decoded) == 10
    run_through(data.validation_batches())
    run_through(data.validation_batches())
    assert len(decoded) == 12
    # Crops are cut from a larger copy.
    run_through(data.training_batches(augmentation("standard", RECORD)))
    assert len(decoded) == 22


def test_a_single_pass_keeps_nothing(part, decoded):
    data = TrainingData(part, None, RECORD, execution=EXECUTION)
    data.keep = False
    run_through(data.prefix_batches(part, 4, None))
    assert len(decoded) == 20
    assert data.validation_batches() is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("decode", ["fast", "exact"])
def test_batches_have_the_form_in_which_the_model_runs(part, precision, channels_last, decode):
    execution = Execution("cpu", precision, channels_last, decode=decode)
    data = TrainingData(part, None, RECORD, execution=execution, batch_size=4)
    expected = torch.stack([RECORD(part[index][0]) for index in range(10)])
    batches = list(data.plain_batches().epoch(0))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for batch in batches:
        assert batch.inputs.dtype == execution.dtype
        assert batch.inputs.is_contiguous(memory_format=memory_format)
    inputs = torch.cat([batch.inputs for batch in batches])
    if decode == "exact":
        assert torch.equal(inputs, expected.to(execution.dtype))
    else:
        torch.testing.assert_close(inputs.float(), expected, atol=0.03, rtol=0)


def test_prefix_batches_stay_in_order(part):
    data = TrainingData(part, None, RECORD, execution=EXECUTION, batch_size=4)
    batches = list(data.prefix_batches(part, 7, augmentation("light", RECORD)).epoch(2))
    assert [batch.indices.tolist() for batch in batches] == [list(range(7)), [7, 8, 9]]


def test_only_crops_are_cut_from_a_reduced_scale():
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((96, 64)).save(stream, "JPEG")
    part = tk.Part([stream.getvalue()] * 2, [0, 1], ["a", "b"])
    execution = dataclasses.replace(EXECUTION, precision="fp32")

    def pixels(chosen, decode):
        data = TrainingData(part, None, RECORD, execution=dataclasses.replace(execution, decode=decode))
        return next(data.training_batches(chosen).epoch(1)).inputs

    # One grey level is 1/255 of the range before it is divided by the standard deviation.
    level = 1.0001 / 255 / min(RECORD.std)
    for name, limit in ((None, level), ("light", level), ("standard", np.inf)):
        chosen = None if name is None else augmentation(name, RECORD)
        difference = float((pixels(chosen, "fast") - pixels(chosen, "exact")).abs().max())
        assert difference <= limit
        assert name != "standard" or difference > level


def test_data_that_is_ready_goes_past_it_all():
    inputs = torch.randn(6, 3, 8, 8)
    data = TrainingData(TensorDataset(inputs, torch.arange(6) % 2), None, None, execution=EXECUTION)
    assert data.train_part is None
    assert torch.equal(torch.cat([batch.inputs for batch in data.plain_batches().epoch(0)]), inputs)


def test_stored_rows_come_in_batches(part):
    data = TrainingData(part, None, RECORD, execution=EXECUTION, batch_size=4)
    rows = torch.arange(20.0).view(10, 2)
    batches = list(data.row_batches(rows, part.targets, shuffle=False).epoch(1))
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), rows)
