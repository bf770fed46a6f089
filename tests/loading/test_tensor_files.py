"""Tensors in safetensors files: written with plain errors, and looked at before memory is taken."""

from __future__ import annotations

import errno

import pytest
import torch

from transferkit.errors import CheckpointCorruptError
from transferkit.loading.tensor_files import read_tensors, tensors_in, write_tensors

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool]


def test_what_is_in_a_file_is_told_without_its_values(tmp_path):
    tensors = {str(kind): torch.ones(2, 3, dtype=kind) for kind in KINDS} | {"count": torch.tensor(7)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    found = tensors_in(tmp_path / "a.safetensors")
    read = read_tensors(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        assert found[name].is_meta
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name], tensor)


@pytest.mark.parametrize("read", [tensors_in, read_tensors])
def test_a_damaged_file_is_named(read, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    with pytest.raises(
        CheckpointCorruptError, match=r"a\.safetensors is damaged, or is no safetensors file: "
    ):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("read", [tensors_in, read_tensors])
def test_a_missing_file_is_an_error_of_the_system(read, tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "a.safetensors")


def test_an_error_of_the_system_is_told_as_such(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory") as caught:
        write_tensors(tmp_path / "folder", {"a": torch.zeros(1)})
    assert caught.value.errno == errno.EISDIR
