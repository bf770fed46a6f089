"""Damaged and absurd files of weights: the right numbers, or one sentence; never anything else.

``TRANSFERKIT_TORTURE=1`` reads 2,000 damaged files, and else 150. A failure names the seed of the damage,
which ``mutated(data, np.random.default_rng(seed))`` makes again.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("resource", reason="time and memory of a trial are watched with resource and signal")

from attacks import in_legacy, in_zip, text
from mutations import mutated
from safetensors.torch import save
from torch import nn
from watch import at_most, peak_memory

from transferkit.errors import CheckpointError, TransferkitError
from transferkit.loading.weights import load_weights, read_weights

pytestmark = pytest.mark.torture

WHOLE = os.environ.get("TRANSFERKIT_TORTURE") == "1"
SEED = 4
FILES = 2000 if WHOLE else 150
SECONDS = 20  # for one file, of a few kilobytes
GROWTH = 200 * 2**20  # bytes


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 2)


def state_of(kind: torch.dtype) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return Net().to(kind).state_dict()


def saved(state: dict[str, torch.Tensor], form: str) -> bytes:
    if form == "safetensors":
        return save(dict(state))
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=form == "zip")
    return buffer.getvalue()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts agree in every name, type, shape and bit."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and bytes_of(first[name]) == bytes_of(second[name])
        for name in first
    )


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def as_written(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Read a safetensors file by its published format alone: an independent reader."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length :]
    return {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def holds(data: bytes, state: dict[str, torch.Tensor], form: str) -> bool:
    """Whether what was read is what a damaged file holds, where its format has no checksum.

    A changed bit among the numbers, or in a name, makes another file that is as valid as the first.
    """
    if form == "safetensors":
        written = as_written(data)
        prefixes = ("", "module.", "_orig_mod.")  # taken off by read_weights
        return len(written) == len(state) and all(
            any(
                f"{prefix}{name}" in written
                and list(tensor.shape) == written[f"{prefix}{name}"][1]
                and bytes_of(tensor) == written[f"{prefix}{name}"][2]
                for prefix in prefixes
            )
            for name, tensor in state.items()
        )
    # torch's older format: every number comes from the file, none from memory that nobody wrote.
    return all(
        tensor.untyped_storage().nbytes() == 0 or storage_of(tensor) in data for tensor in state.values()
    )


def attempt(act: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, TransferkitError | None]:
    try:
        return act(*arguments, **named), None
    except TransferkitError as error:
        return None, error


def is_one_sentence(error: TransferkitError) -> bool:
    return isinstance(error, CheckpointError) and "\n" not in str(error) and str(error).endswith(".")


def storage_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.untyped_storage().tolist())


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_damaged_files_give_the_right_numbers_or_one_sentence(form, kind, tmp_path):
    state = state_of(kind)
    whole = saved(state, form)
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    outcomes = {"refused": 0, "the same": 0, "another valid file": 0}
    for number in range(-(-FILES // 9)):
        seed = [SEED, ["safetensors", "zip", "legacy"].index(form), number]
        data = mutated(whole, np.random.default_rng(seed))
        path.write_bytes(data)
        with at_most(SECONDS, f"seed {seed}"):
            read, error = attempt(read_weights, path)
        if error is not None:
            assert is_one_sentence(error), f"seed {seed}: {error!r}"
            outcomes["refused"] += 1
        elif same(read, state):
            outcomes["the same"] += 1
        else:
            assert form != "zip", f"seed {seed}: the checksums of the archive were not heeded"
            assert holds(data, read, form), f"seed {seed}: numbers that are not in the file"
            outcomes["another valid file"] += 1
            _, error = attempt(load_weights, Net(), read, source=path)
            assert error is None or is_one_sentence(error), f"seed {seed}: {error!r}"
    assert outcomes["refused"] > 0
    if WHOLE:
        print(form, kind, outcomes)


# --- files that ask for too much, or for what a loader must not do with them


def a_tensor(key: str = "0", count: int = 4, shape: bytes = b"K\x04\x85", offset: bytes = b"K\x00") -> bytes:
    """Return the operations that make one tensor of ``count`` floats."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += b"\x8a\x08" + struct.pack("<q", count) + b"tQ"
    strides = b"K\x01\x85"
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + strides + b"\x89" + hooks + b"tR"
    )


def a_state_dict(value: bytes, *, after: bytes = b"") -> bytes:
    return b"\x80\x02ccollections\nOrderedDict\n)R" + text("fc.weight") + value + b"s" + after + b"."


def zipped(pickled: bytes, numbers: bytes = b"\0" * 16) -> bytes:
    return in_zip(pickled, also=(("data/0", numbers),))


def deep(count: int) -> bytes:
    return b")" + b"\x85" * count


def doubled(count: int) -> bytes:
    """A tuple that holds the one before it twice, and so on: 2 ** count parts in a few bytes."""
    return b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(count))


INT64 = b"\x8a\x08" + struct.pack("<q", 2**40)

ABSURD = {
    "a storage that is longer than its part": zipped(
        a_state_dict(a_tensor(count=2**20, shape=b"J\0\0\x10\0\x85"))
    ),
    "a storage of terabytes": zipped(a_state_dict(a_tensor(count=2**42))),
    "a negative storage": zipped(a_state_dict(a_tensor(count=-1))),
    "a tensor outside of its storage": zipped(a_state_dict(a_tensor(offset=b"J\xff\xff\xff\x7f"))),
    "a tensor before its storage": zipped(a_state_dict(a_tensor(offset=b"J\xff\xff\xff\xff"))),
    "a shape of terabytes": zipped(a_state_dict(a_tensor(shape=INT64 + b"\x85"))),
    "a negative shape": zipped(a_state_dict(a_tensor(shape=b"J\xff\xff\xff\xff\x85"))),
    "a part that is not there": zipped(a_state_dict(a_tensor(key="7"))),
    "a part outside of the archive": zipped(a_state_dict(a_tensor(key="../../version"))),
    "a tensor made by its size": zipped(a_state_dict(b"ctorch\nFloatTensor\nJ\0\0\0\x10\x85R")),
    "an endless bytearray": zipped(a_state_dict(b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R")),
    "a storage made by its size": zipped(
        a_state_dict(b"ctorch.storage\nUntypedStorage\n" + INT64 + b"\x85R")
    ),
    "a key that overflows the stack": zipped(b"\x80\x02}" + deep(200_000) + b"K\x01s."),
    "a key that takes for ever to hash": zipped(b"\x80\x02}" + doubled(60) + b"K\x01s."),
    "a set that takes for ever": zipped(b"\x80\x02c__builtin__\nset\n]" + doubled(60) + b"a\x85R."),
    "a text that is encoded again and again": zipped(
        b"\x80\x02](" + text("x" * 2**16) + b"q\x000" + (b"c_codecs\nencode\nh\x00\x85R" * 50_000) + b"e."
    ),
    "a dict in itself": zipped(b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s."),
    "two dicts in one another": zipped(
        b"\x80\x02}q\x00" + text("model") + b"}q\x01" + text("state_dict") + b"h\x00s" + b"s."
    ),
    "a name of a thousand prefixes": zipped(b"\x80\x02}" + text("module." * 100_000) + a_tensor() + b"s."),
    "versions that are no versions": zipped(
        a_state_dict(a_tensor(), after=b"}" + text("_metadata") + b"K\x05sb")
    ),
    "versions of another kind": zipped(
        a_state_dict(
            a_tensor(),
            after=b"}" + text("_metadata") + b"}" + text("") + b"}" + text("version") + text("9") + b"sssb",
        )
    ),
    "a method that is no method": zipped(
        a_state_dict(
            a_tensor(),
            after=b"}" + text("items") + b"K\x05s" + text("get") + b"K\x05s" + text("keys") + b"K\x05sb",
        )
    ),
    "a nested tensor with wild offsets": zipped(
        a_state_dict(
            b"ctorch._utils\n_rebuild_nested_tensor\n(" + a_tensor() + b"".join([a_tensor()] * 3) + b"tR"
        )
    ),
    "a tensor without a storage": zipped(
        a_state_dict(
            b"ctorch._utils\n_rebuild_wrapper_subclass\n(ctorch\nTensor\nctorch\nfloat32\nK\x04\x85K\x01\x85K\x00"
            b"ctorch.serialization\n_get_layout\n"
            + text("torch.strided")
            + b"\x85Rctorch\ndevice\n"
            + text("cpu")
            + b"\x85R\x89tR"
        )
    ),
    "a sparse tensor": zipped(
        a_state_dict(
            b"ctorch._utils\n_rebuild_sparse_tensor\nctorch.serialization\n_get_layout\n"
            + text("torch.sparse_coo")
            + b"\x85R("
            + a_tensor()
            + a_tensor()
            + b"K\x04\x85t\x86R"
        )
    ),
    "a whole number of 255 bytes as a name": zipped(
        b"\x80\x02}\x8a\xff" + b"\x7f" * 255 + a_tensor() + b"s."
    ),
    "a tensor as a name": zipped(b"\x80\x02}" + a_tensor() + a_tensor() + b"s."),
    "no end": zipped(b"\x80\x02}" + text("fc.weight")),
    "nothing": zipped(b""),
    "a storage of terabytes in the older format": in_legacy(a_state_dict(a_tensor(count=2**42))),
    "a key that overflows the stack in the older format": in_legacy(
        b"\x80\x02}" + deep(200_000) + b"K\x01s."
    ),
}
HARMLESS = {"a method that is no method", "a name of a thousand prefixes"}


@pytest.mark.parametrize("what", ABSURD)
def test_what_asks_for_too_much_is_refused_at_once(what, tmp_path):
    path = tmp_path / "absurd.pth"
    path.write_bytes(ABSURD[what])
    before = peak_memory()
    with at_most(SECONDS, what):
        if what in HARMLESS:
            read = read_weights(path)
            with pytest.raises(CheckpointError):
                load_weights(Net(), read, source=path)
        else:
            with pytest.raises(CheckpointError) as caught:
                read_weights(path)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 1000
    assert peak_memory() - before < GROWTH


def header(**tensors: object) -> bytes:
    data = json.dumps(tensors).encode()
    return struct.pack("<Q", len(data)) + data


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


ABSURD_HEADERS = {
    "a length of exabytes": struct.pack("<Q", 2**63) + b"{}",
    "a length of gigabytes": struct.pack("<Q", 2**32) + b"{}",
    "a shape of terabytes": header(a=entry([10**12], [0, 4 * 10**12])) + b"\0" * 4,
    "a shape beyond all numbers": header(a=entry([2**62, 2**62, 2**62], [0, 4])) + b"\0" * 4,
    "an endless shape without numbers": header(a=entry([0, 2**62, 2**62], [0, 0])),
    "a thousand dimensions": header(a=entry([1] * 1000, [0, 4])) + b"\0" * 4,
    "a negative shape": header(a=entry([-1], [0, 4])) + b"\0" * 4,
    "offsets that end before they begin": header(a=entry([1], [4, 0])) + b"\0" * 4,
    "offsets that overlap": header(a=entry([1], [0, 4]), b=entry([1], [0, 4])) + b"\0" * 4,
    "an unknown type": header(a=entry([1], [0, 4], "F31")) + b"\0" * 4,
    "a type of half a byte": header(a=entry([8], [0, 4], "F4")) + b"\0" * 4,
    "a nest": struct.pack("<Q", 2 * 10**5) + b"[" * 2 * 10**5,
    "numbers that nobody has named": header(a=entry([1], [0, 4])) + b"\0" * 400,
    "an entry that is none": header(a=7),
    "no tensors": header(),
}


@pytest.mark.parametrize("what", ABSURD_HEADERS)
def test_an_absurd_header_is_refused_at_once(what, tmp_path):
    path = tmp_path / "absurd.safetensors"
    path.write_bytes(ABSURD_HEADERS[what])
    before = peak_memory()
    with at_most(SECONDS, what), pytest.raises(CheckpointError) as caught:
        load_weights(Net(), read_weights(path), source=path)
    assert "\n" not in str(caught.value)
    assert peak_memory() - before < GROWTH


def test_a_plain_file_is_still_read(tmp_path):
    """The attacks above differ from this file only in what makes them attacks."""
    path = tmp_path / "plain.pth"
    numbers = np.arange(4, dtype="<f4")
    path.write_bytes(zipped(a_state_dict(a_tensor()), numbers.tobytes()))
    assert read_weights(path)["fc.weight"].tolist() == numbers.tolist()
