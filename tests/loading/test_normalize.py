"""Normalizing batches, against ``Preprocessing.normalize``."""

from __future__ import annotations

import pytest
import torch

import transferkit as tk
from transferkit.loading.normalize import normalized

FORMATS = {True: torch.channels_last, False: torch.contiguous_format}


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("shape", [(5, 3, 7, 6), (1, 3, 224, 230), (3, 3, 1, 1), (2, 3, 1, 9), (0, 3, 4, 4)])
def test_it_is_what_the_preprocessing_gives_to_the_bit(shape, given, wanted, device):
    record = tk.Preprocessing(size=4, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.7))
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    pixels = pixels.contiguous(memory_format=FORMATS[given])
    before = pixels.clone()
    expected = record.normalize(pixels.cpu()).to(device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        batch = normalized(pixels, record, dtype=dtype, channels_last=wanted)
        assert batch.is_contiguous(memory_format=FORMATS[wanted])
        assert torch.equal(batch, expected.to(dtype))
    assert torch.equal(pixels, before)


def test_part_of_a_larger_batch_will_do(device):
    record = tk.Preprocessing(size=4)
    pixels = torch.randint(0, 256, (6, 3, 9, 9), dtype=torch.uint8, device=device)
    window = pixels[1::2, :, 2:6, 3:7]
    assert torch.equal(normalized(window, record).cpu(), record.normalize(window.cpu()))
