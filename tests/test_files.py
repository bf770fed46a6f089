"""A file is written whole or not at all, and JSON of unknown origin holds plain finite numbers."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from transferkit import files
from transferkit.errors import OutputError
from transferkit.files import parse_json, sync_folder, write_json, write_text, write_whole


def test_a_file_takes_the_place_of_the_old_one(tmp_path):
    write_text(tmp_path / "new folder" / "a.txt", "old")
    write_text(tmp_path / "new folder" / "a.txt", "new")
    assert (tmp_path / "new folder" / "a.txt").read_text() == "new"
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["a.txt"]


def test_the_file_is_on_the_disk_before_its_name_and_its_name_before_the_end(tmp_path, monkeypatch):
    order = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor):
        order.append("folder" if os.path.sameopenfile(descriptor, folder) else "file")
        sync(descriptor)

    def replaced(self, target):
        order.append("replace")
        return replace(self, target)

    folder = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_text(tmp_path / "a.txt", "text")
    os.close(folder)
    assert order == ["file", "replace", "folder"]


@pytest.mark.parametrize("step", ["touch", "chmod", "replace", "write_bytes"])
def test_a_failure_at_any_step_keeps_the_old_file_and_leaves_nothing(step, tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")

    def fail(*arguments, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, step, fail)
    with pytest.raises(OutputError, match=r"a\.txt cannot be written: No space left on device\.$"):
        write_text(tmp_path / "a.txt", "new")
    monkeypatch.undo()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_interruption_leaves_nothing_either(tmp_path):
    def interrupted(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a.txt", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path):
    def nested(path):
        write_text(tmp_path / "a.txt", "inner")
        path.write_text("outer")

    write_whole(tmp_path / "a.txt", nested)
    assert (tmp_path / "a.txt").read_text() == "outer"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_file_system_that_cannot_sync_folders_is_written_to_all_the_same(number, tmp_path, monkeypatch):
    def refuse(folder, flags):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "open", refuse)
    sync_folder(tmp_path)


def test_a_folder_that_is_gone_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "gone")


def test_json_keeps_letters_and_refuses_what_is_no_number(tmp_path):
    write_json(tmp_path / "a.json", {"classes": ["蟻", "bee"]})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "classes": [\n    "蟻",\n    "bee"\n  ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert "bee" in (tmp_path / "a.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-1", -1),
        ("1.50", 1.5),
        ("9223372036854775807", 2**63 - 1),
        ('{"a": [1e3, true, null]}', {"a": [1000.0, True, None]}),
        (b'"\xe8\x9f\xbb"', "蟻"),
    ],
)
def test_plain_values_are_read(text, value):
    assert parse_json(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NaN", "it holds the number NaN"),
        ("[-Infinity]", "it holds the number -Infinity"),
        ("1e999", "it holds the number 1e999"),
        ("9223372036854775808", "it holds the number 9223372036854775808"),
        ("1" * 10**6, "it holds the number 11111111111111111111$"),
        ("0." + "1" * 10**6, "it holds the number 0.111111111111111111$"),
        ("[" * 10**6, "it is nested too deeply"),
        ("{", "Expecting property name"),
        (b"\xff\xfe\xfd", "decode"),
    ],
)
def test_what_is_no_plain_value_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)
