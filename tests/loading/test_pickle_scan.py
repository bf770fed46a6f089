"""What a pickle would do is told without loading it."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile

import pytest
import torch
from torch import nn

from transferkit.loading.pickle_scan import WastefulPickle, foreign_names


def names(data: bytes, pickles: int = 1) -> list[str]:
    return foreign_names(io.BytesIO(data), pickles=pickles)


def in_an_archive(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read("archive/data.pkl")


@pytest.mark.parametrize(
    "value",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict(),
        {
            "state_dict": {"a": nn.Parameter(torch.zeros(2))},
            "epoch": 3,
            "milestones": collections.Counter([1]),
        },
        {
            str(kind): torch.zeros(2, dtype=kind)
            for kind in (torch.half, torch.bfloat16, torch.int8, torch.bool)
        },
        {
            str(kind): torch.zeros(2, dtype=kind)
            for kind in (torch.uint16, torch.float8_e5m2, torch.complex64)
        },
        {"a": torch.zeros(2).to_sparse(), "b": torch.zeros(2, 3).T, "c": torch.empty(2, device="meta")},
        {"note": b"bytes", "names": {"a", "b"}, "dtype": torch.float32, "size": torch.Size([1, 2])},
        nn.Linear(400, 400).state_dict() | {f"layer{n}.weight": torch.zeros(1) for n in range(2000)},
    ],
)
def test_what_torch_writes_for_weights_is_let_through(value):
    assert names(in_an_archive(value)) == []


@pytest.mark.parametrize("protocol", range(6))
def test_names_are_told_for_every_protocol(protocol):
    assert names(pickle.dumps(print, protocol)) == ["builtins.print"]


def test_names_in_any_of_a_series_are_told():
    data = pickle.dumps({}, 2) + pickle.dumps([len], 2)
    assert names(data) == []
    assert names(data, pickles=2) == ["builtins.len"]


def test_names_that_the_user_has_allowed_are_let_through():
    data = pickle.dumps(collections.deque([1]), 2)
    assert names(data) == ["collections.deque"]
    with torch.serialization.safe_globals([collections.deque]):
        assert names(data) == []


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"text\n" * 10, b"\x80\x02}q", b"\x80\x02eee."])
def test_what_is_no_pickle_names_nothing(data):
    assert names(data) == []


def test_a_nest_is_refused_before_it_can_overflow_the_stack():
    with pytest.raises(WastefulPickle, match="nested too deeply"):
        names(b"\x80\x02)" + b"\x85" * 200 + b".")


def test_work_out_of_proportion_is_refused():
    doubled = b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(50))
    with pytest.raises(WastefulPickle, match="too much memory or time"):
        names(b"\x80\x02}" + doubled + b"K\x01s.")


def test_a_long_plain_list_is_no_work():
    assert (
        names(pickle.dumps({"history": [float(n) for n in range(200_000)], "t": tuple(range(200_000))}, 2))
        == []
    )
