"""Checkpoints on disk survive whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transferkit.errors import CheckpointCorruptError, CheckpointError, CheckpointWriteError
from transferkit.training import checkpoint_files
from transferkit.training.checkpoint_files import CheckpointFolder, read_checkpoint

TENSORS = {"model.weight": torch.arange(6.0).reshape(2, 3), "optimizer.0.step": torch.tensor(4.0)}
BEST = {"weight": torch.ones(2, 3)}


def write(folder: CheckpointFolder, step: int) -> Path:
    tensors = {**TENSORS, "model.weight": TENSORS["model.weight"] + step}
    return folder.write({"step": step}, tensors, BEST)


def names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


def test_what_was_written_is_read_back(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints")
    path = folder.write({"progress": {"loss": 0.1}}, TENSORS, BEST)
    for checkpoint in (read_checkpoint(path), folder.newest()):
        assert checkpoint is not None
        assert checkpoint.state == {"progress": {"loss": 0.1}}
        assert checkpoint.tensors.keys() == TENSORS.keys()
        assert all(torch.equal(checkpoint.tensors[name], value) for name, value in TENSORS.items())
        assert torch.equal(checkpoint.best["weight"], BEST["weight"])


def test_no_checkpoint_is_no_error(tmp_path):
    assert CheckpointFolder(tmp_path / "none").newest() is None
    with pytest.raises(CheckpointError, match=r"There is no checkpoint .*none\."):
        read_checkpoint(tmp_path / "none")


def test_the_newest_few_are_kept_whatever_their_times(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in range(12):
        path = write(folder, step)
        os.utime(path, (1e9 - step, 1e9 - step))  # the newer, the older by the clock
    assert names(folder) == ["000011", "000012"]
    newest = folder.newest()
    assert newest is not None
    assert newest.state == {"step": 11}


def test_checkpoints_share_no_file(tmp_path):
    folder = CheckpointFolder(tmp_path)
    files = [path for step in range(2) for path in write(folder, step).iterdir()]
    assert len({path.stat().st_ino for path in files}) == len(files) == 8


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "000001.jpg").touch()
    folder = CheckpointFolder(tmp_path, keep=1)
    for step in range(3):
        write(folder, step)
    assert names(folder) == ["000001.jpg", "000003", "mine"]
    newest = folder.newest()
    assert newest is not None
    assert newest.state == {"step": 2}


class FailingDisk:
    """Lets the operations of a writer pass, until the nth, which fails before or after it did its work."""

    def __init__(self, patch: pytest.MonkeyPatch, fails_at: int, *, after: bool) -> None:
        self.count = 0
        self.fails_at = fails_at
        self.after = after
        self.failed = ""
        for owner, name in (
            (Path, "open"),
            (Path, "mkdir"),
            (Path, "replace"),
            (checkpoint_files.os, "fsync"),
            (checkpoint_files, "sync_folder"),
            (checkpoint_files, "_write_tensors"),
        ):
            patch.setattr(owner, name, self._wrapped(getattr(owner, name), name))

    def _wrapped(self, work: Any, name: str) -> Any:
        def operation(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            fails = self.count == self.fails_at
            result = None if fails and not self.after else work(*arguments, **options)
            if fails:
                self.failed = name
                if hasattr(result, "close"):
                    result.close()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return result

        return operation


@pytest.mark.parametrize("after", [False, True])
def test_whatever_operation_of_the_writer_fails_a_valid_checkpoint_is_left(after, tmp_path):
    failures = []
    for number in range(1, 200):
        folder = CheckpointFolder(tmp_path / str(number), keep=1)
        write(folder, 0)
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, number, after=after)
            told = ""  # a failure that does no harm is not told
            try:
                write(folder, 1)
            except CheckpointWriteError as error:
                told = str(error)
        full, lost = f"No space left on device (error {errno.ENOSPC}).", "found whole after it was written"
        assert not told or (str(folder.path) in told and (full in told or lost in told))
        newest = CheckpointFolder(folder.path).newest()
        assert newest is not None, disk.failed
        assert newest.state in ({"step": 0}, {"step": 1})
        assert torch.equal(newest.tensors["model.weight"], TENSORS["model.weight"] + newest.state["step"])
        # And the next one is written as if nothing had been.
        write(folder, 2)
        assert len(names(folder)) == 1
        if not disk.failed:
            break
        failures.append(disk.failed)
    assert set(failures) >= {"open", "mkdir", "replace", "fsync", "sync_folder", "_write_tensors"}


def test_a_killed_writer_leaves_what_is_swept_and_never_read(tmp_path):
    folder = CheckpointFolder(tmp_path)
    path = write(folder, 0)
    shutil.copytree(path, tmp_path / ".000002.77.tmp")
    newest = folder.newest()
    assert newest is not None
    assert newest.path == path
    folder.sweep()
    assert names(folder) == ["000001"]


def test_an_interrupted_writer_takes_its_half_away(tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    folder = CheckpointFolder(tmp_path)
    write(folder, 0)
    monkeypatch.setattr(checkpoint_files, "_write_tensors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(folder, 1)
    assert names(folder) == ["000001"]


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "best.safetensors", "manifest.json"])
def test_no_change_of_a_file_is_read_unnoticed(name, tmp_path):
    rng = np.random.default_rng(0)
    folder = CheckpointFolder(tmp_path)
    write(folder, 0)
    path = write(folder, 1)
    original = (path / name).read_bytes()
    damaged = [original[:length] for length in range(0, len(original), max(1, len(original) // 20))]
    for _ in range(40):
        flipped = bytearray(original)
        flipped[rng.integers(len(flipped))] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    damaged.append(original + b"\0")
    silent = 0
    for content in damaged:
        (path / name).write_bytes(content)
        refusal = ""
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointCorruptError as error:
            refusal = str(error)
        if refusal:
            assert str(path) in refusal
            with pytest.warns(UserWarning, match="goes on from the one before it"):
                before = folder.newest()
            assert before is not None
            assert before.state == {"step": 0}
        else:
            silent += 1
            # Only what the manifest does not need, such as white space, may have changed.
            assert name == "manifest.json"
            assert checkpoint.state == {"step": 1}
            assert torch.equal(checkpoint.tensors["model.weight"], TENSORS["model.weight"] + 1)
    assert silent < len(damaged) / 2
    (path / name).unlink()
    with pytest.raises(CheckpointCorruptError, match=f"{name} (has changed or )?is missing"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"number": "2"},
        {"files": {}},
        {"files": {"state.json": {}, "tensors.safetensors": {}, "../../secret": {}}},
        {"files": {"state.json": {}, "tensors.safetensors": {}, "/etc/passwd": {}}},
        {"files": None},
        {"files": {"state.json": 3, "tensors.safetensors": None}},
    ],
)
def test_a_manifest_that_no_run_writes_is_refused(change, tmp_path):
    path = write(CheckpointFolder(tmp_path), 0)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(CheckpointCorruptError, match="is damaged"):
        read_checkpoint(path)


def test_damaged_ones_are_the_first_to_go(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    write(folder, 0)
    damaged = write(folder, 1)
    (damaged / "tensors.safetensors").write_bytes(b"")
    write(folder, 2)
    assert names(folder) == ["000001", "000003"]


def test_a_full_disk_of_a_real_process_is_an_error_that_says_so(tmp_path):
    resource = pytest.importorskip("resource", reason="limits of a process are known on POSIX alone")
    folder = CheckpointFolder(tmp_path)
    write(folder, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(CheckpointWriteError, match=rf"File too large \(error {errno.EFBIG}\)"):
            folder.write({"step": 1}, {"model.weight": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(folder) == ["000001"]
    newest = folder.newest()
    assert newest is not None
    assert newest.state == {"step": 0}
