"""Files of weights that others wrote: read right, or refused without running anything."""

from __future__ import annotations

import collections
import io
import json
import pickle
import struct
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from transferkit.errors import (
    CheckpointCorruptError,
    CheckpointError,
    UnsafeCheckpointError,
    WeightsMismatchError,
)
from transferkit.loading.weights import is_path, load_weights, read_weights


class Net(nn.Module):
    def __init__(self, outputs=2):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, outputs)


class Evil:
    """Unpickling this touches a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- what is read


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".PTH"])
def test_a_state_dict_is_read_whatever_its_format(tmp_path, suffix):
    state = Net().state_dict()
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    assert same(read_weights(path), state)


def test_the_format_of_old_versions_of_torch_is_read(tmp_path):
    state = Net().state_dict()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_weights(tmp_path / "old.pth"), state)


def test_versions_of_modules_are_kept_below_a_prefix(tmp_path):
    state = nn.DataParallel(Net()).state_dict()
    torch.save({"state_dict": {"model": state}}, tmp_path / "wrapped.pth")
    read = read_weights(tmp_path / "wrapped.pth")
    assert same(read, Net.state_dict(nn.DataParallel(Net()).module) | read)
    assert read._metadata["body.1"] == {"version": 2}


def test_a_prefix_that_only_some_keys_have_is_part_of_their_names(tmp_path):
    state = {"module.weight": torch.zeros(2), "weight": torch.ones(2)}
    torch.save(state, tmp_path / "both.pth")
    assert same(read_weights(tmp_path / "both.pth"), state)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("default", False),
        ("IMAGENET1K_V1", False),
        ("resnet18.pth", True),
        ("Model.SafeTensors", True),
        ("folder/weights", True),
    ],
)
def test_paths_are_told_from_names(weights, expected):
    assert is_path(weights) is expected


# --- what is refused


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"There is no file {tmp_path / 'a.pth'}"):
        read_weights(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"{tmp_path} is a folder"):
        read_weights(tmp_path)
    (tmp_path / "weights.zip").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"weights.zip must have a name that ends in one of .safetensors, .pth"
    ):
        read_weights(tmp_path / "weights.zip")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({}, "an empty dict"),
        ([torch.zeros(2)], "a list"),
        (torch.zeros(2), "a Tensor"),
        ({"a": torch.zeros(2), "epoch": 3}, "entry 'epoch' is a int"),
        ({3: torch.zeros(2)}, "entry 3 is a Tensor"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path, content, found):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=f"other.pth holds no state dict.*{found}"):
        read_weights(tmp_path / "other.pth")


def in_the_zip_format(evil):
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "evil": evil}, buffer)
    return buffer.getvalue()


def nested(evil):
    buffer = io.BytesIO()
    torch.save({"state_dict": collections.OrderedDict(a=[{"b": (evil,)}])}, buffer)
    return buffer.getvalue()


def in_the_old_format(evil):
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "evil": evil}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def in_the_oldest_format(evil):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(evil)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def as_a_whole_module(evil):
    buffer = io.BytesIO()
    torch.save(nn.Sequential(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def as_torchscript(evil):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (("data.pkl", pickle.dumps(evil, 2)), ("constants.pkl", b"."), ("version", b"3")):
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "write",
    [
        in_the_zip_format,
        nested,
        in_the_old_format,
        in_the_oldest_format,
        as_a_whole_module,
        as_torchscript,
        *(lambda evil, protocol=protocol: pickle.dumps(evil, protocol) for protocol in range(6)),
    ],
)
@pytest.mark.parametrize("forced", [False, True])
def test_what_would_run_code_is_refused_and_runs_nothing(tmp_path, monkeypatch, write, forced):
    trace = tmp_path / "trace"
    path = tmp_path / "evil.pth"
    path.write_bytes(write(Evil(trace)))
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(
        UnsafeCheckpointError, match=r"evil.pth was not loaded.*state_dict\(\) and load that\.$"
    ):
        read_weights(path)
    assert not trace.exists()


def test_what_would_have_run_is_named(tmp_path):
    torch.save({"a": Evil(tmp_path / "trace")}, tmp_path / "evil.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"would have to run .*\bopen"):
        read_weights(tmp_path / "evil.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 4, 8, 100, 0.5, 0.9, -1])
def test_a_truncated_file_is_corrupt(tmp_path, suffix, kept):
    path = tmp_path / f"half{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(Net().state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointCorruptError, match=f"half{suffix} is damaged"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"not weights at all\n" * 20, b"<html>404</html>"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_something_else_under_the_name_of_weights_is_corrupt(tmp_path, suffix, content):
    path = tmp_path / f"other{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointCorruptError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_flipped_bit_among_the_numbers_is_noticed(tmp_path):
    path = tmp_path / "flipped.pth"
    torch.save({"weight": torch.arange(1000.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(1000.0).numpy().tobytes()) + 1234] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointCorruptError, match=r"the checksum of '.*' in it is wrong"):
        read_weights(path)


def test_no_byte_of_a_file_can_make_it_fail_in_another_way(tmp_path):
    """Whatever byte is changed: the error of a damaged file, or exactly the right numbers.

    torch.load alone returns memory that nobody wrote for some of them.
    """
    state = {"weight": torch.arange(3.0), "bias": torch.ones(2)}
    for old in (False, True):
        path = tmp_path / "mutated.pth"
        torch.save(state, path, _use_new_zipfile_serialization=not old)
        data = path.read_bytes()
        for position in range(0, len(data), 3):
            mutated = bytearray(data)
            mutated[position] ^= 0x55
            path.write_bytes(mutated)
            try:
                read = read_weights(path)
            except CheckpointError:
                continue
            # The older format has no checksum, and a name may change in it.
            assert old or same(read, state), position


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(300_000)}, path)
    entries = {}
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(CheckpointCorruptError, match="its parts and its size disagree"):
        read_weights(path)


def test_a_tensor_without_the_numbers_that_its_shape_promises_is_refused(tmp_path):
    for number, tensor in enumerate([torch.zeros(1).expand(10**9, 512), torch.empty(10**9, device="meta")]):
        path = tmp_path / f"huge{number}.pth"
        torch.save({"fc.weight": tensor}, path)
        with pytest.raises(CheckpointCorruptError, match=r"does not hold the numbers of 'fc.weight'"):
            read_weights(path)


def test_a_safetensors_header_that_promises_too_much_is_refused(tmp_path):
    path = tmp_path / "huge.safetensors"
    for shape, end in [([10**12], 4 * 10**12), ([1], 4 * 10**12), ([10**12], 4)]:
        header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
        with pytest.raises(CheckpointCorruptError, match=r"huge.safetensors is damaged"):
            read_weights(path)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(CheckpointCorruptError, match=r"huge.safetensors is damaged"):
        read_weights(path)


# --- into a model


def test_weights_go_into_a_model_whatever_its_type(device):
    source, target = Net(), Net().to(device, torch.float64)
    load_weights(target, source.state_dict(), source="a")
    assert target.fc.weight.dtype == torch.float64
    assert torch.equal(target.fc.weight.cpu(), source.fc.weight.double())


def test_what_does_not_fit_is_listed(tmp_path):
    state = Net(outputs=5).state_dict()
    state["extra"] = state.pop("body.0.bias")
    with pytest.raises(WeightsMismatchError) as caught:
        load_weights(Net(), state, source=tmp_path / "a.pth")
    assert str(caught.value) == (
        f"{tmp_path / 'a.pth'} does not fit this Net; missing: body.0.bias; unexpected: extra; "
        "of another shape: fc.weight ([5, 4] in the file, [2, 4] in the model), "
        "fc.bias ([5] in the file, [2] in the model)."
    )


def test_a_long_list_is_cut_and_counted():
    state = {f"key{number}": torch.zeros(1) for number in range(100)}
    with pytest.raises(WeightsMismatchError, match="key2 and 97 more"):
        load_weights(Net(), state, source="a")


@pytest.mark.parametrize(
    ("asked", "of"),
    [("resnet18", "resnet34"), ("squeezenet1_0", "squeezenet1_1"), ("resnet18", "mobilenet_v3_small")],
)
def test_weights_of_another_network_are_known(asked, of, tmp_path):
    state, model = models.get_model(of, num_classes=7).state_dict(), models.get_model(asked, num_classes=7)
    with pytest.raises(WeightsMismatchError) as caught:
        load_weights(model, state, source=tmp_path / "a.pth")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'a.pth'} does not fit this ")
    assert text.endswith(f" more. The file looks like the weights of '{of}'.")
    # Wherever the file lies.
    assert len(text.removeprefix(str(tmp_path))) < 600


def test_the_same_network_with_another_head_is_no_other_network():
    state, model = models.resnet18(num_classes=5).state_dict(), models.resnet18(num_classes=3)
    with pytest.raises(WeightsMismatchError, match=r"fc.bias \(\[5\] in the file, \[3\] in the model\)\.$"):
        load_weights(model, state, source="a")


def test_whole_numbers_are_no_weights():
    state = Net().state_dict()
    state["fc.weight"] = state["fc.weight"].to(torch.int8)
    with pytest.raises(WeightsMismatchError, match=r"fc.weight \(torch.int8 in the file, torch.float32"):
        load_weights(Net(), state, source="a")


def test_one_module_can_keep_its_own_weights():
    model, state = Net(), Net(outputs=5).state_dict()
    before = model.fc.weight.clone()
    load_weights(model, state, source="a", without="fc")
    assert torch.equal(model.fc.weight, before)
    assert torch.equal(model.body[0].weight, state["body.0.weight"])


@pytest.mark.parametrize("plain", [True, False])
def test_old_weights_without_counted_batches_load(plain):
    state = Net().state_dict()
    del state["body.1.num_batches_tracked"]
    if plain:
        state = dict(state)
    else:
        state._metadata["body.1"] = {}
    model = Net()
    load_weights(model, state, source="a")
    assert torch.equal(model.body[0].weight, state["body.0.weight"])
