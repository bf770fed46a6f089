"""Damaged checkpoints of training: named, or passed over with a warning, never loaded as they are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from disks import small_disk
from mutations import mutated

import transferkit as tk
from transferkit.errors import CheckpointCorruptError, CheckpointError, CheckpointWriteError, OutputError
from transferkit.training.checkpoint_files import Checkpoint, CheckpointFolder, read_checkpoint

pytestmark = pytest.mark.torture

WHOLE = os.environ.get("TRANSFERKIT_TORTURE") == "1"
MUTANTS = 2000 if WHOLE else 120
SEED = int(os.environ.get("TRANSFERKIT_TORTURE_SEED", "0"))


class Stop(Exception):
    """Ends a run where a process might have ended."""


class StopAt(tk.Callback):
    def __init__(self, batch: int) -> None:
        self.left = batch

    def step_end(self, result: object) -> None:
        self.left -= 1
        if not self.left:
            raise Stop


def part(count: int = 20) -> tk.Part:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return tk.Part(pixels, np.arange(count) % 2, ["a", "b"])


def trainer(run: Path, *callbacks: tk.Callback) -> tk.Trainer:
    torch.manual_seed(0)
    return tk.Trainer(
        tk.load_backbone("mini", num_classes=2),
        recipe=[tk.Phase(train="head", epochs=1), tk.Phase(epochs=2)],
        batch_size=5,
        run_dir=run,
        checkpoints=tk.Checkpoints(seconds=None, steps=1),
        callbacks=callbacks,
        progress=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended early, with two checkpoints."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.raises(Stop):
        trainer(folder, StopAt(8)).fit(part(), part(8))
    assert len(list((folder / "checkpoints").iterdir())) == 2
    return folder


def same(one: Checkpoint, other: Checkpoint) -> bool:
    tensors = all(
        mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)
        for mine, its in ((one.tensors, other.tensors), (one.best, other.best))
    )
    return tensors and one.state == other.state and one.number == other.number


def test_row_4_a_damaged_checkpoint_is_named_or_passed_over(run, tmp_path):
    before, newest = sorted((run / "checkpoints").iterdir())
    whole, earlier = read_checkpoint(newest), read_checkpoint(before)
    files = sorted(path.name for path in newest.iterdir())
    outcomes = {"refused": 0, "the same": 0}
    for number in range(MUTANTS):
        rng = np.random.default_rng([SEED, number])
        replay = f"TRANSFERKIT_TORTURE_SEED={SEED}, mutant {number}"
        folder = CheckpointFolder(tmp_path / "checkpoints")
        shutil.copytree(newest, folder.path / newest.name)
        shutil.copytree(before, folder.path / before.name)
        damaged = folder.path / newest.name / files[rng.integers(len(files))]
        content = mutated(damaged.read_bytes(), rng)
        damaged.write_bytes(content)
        refusal = ""
        try:
            checkpoint = read_checkpoint(damaged.parent)
        except CheckpointCorruptError as error:
            refusal = str(error)
        if refusal:
            outcomes["refused"] += 1
            assert str(damaged.parent) in refusal, replay
            assert refusal.endswith("."), replay
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                found = folder.newest()
            assert found is not None, replay
            assert same(found, earlier), replay
            assert any("goes on from the one before it" in str(each.message) for each in told), replay
        else:
            outcomes["the same"] += 1
            assert same(checkpoint, whole), f"{replay} was loaded with other content"
        shutil.rmtree(folder.path)
    print(f"{MUTANTS} mutated checkpoints: {outcomes}")
    assert outcomes["refused"] > MUTANTS // 2


@pytest.mark.parametrize("name", ["config.json", "history.jsonl"])
def test_row_4_a_damaged_record_of_a_run_resumes_rightly_or_ends_in_one_sentence(name, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    trainer(copy).fit(part(), part(8), resume=True)
    weights = (copy / "model" / "weights.safetensors").read_bytes()
    for number in range(MUTANTS // 20):
        rng = np.random.default_rng([SEED, 1, number])
        shutil.rmtree(copy)
        shutil.copytree(run, copy)
        (copy / name).write_bytes(mutated((run / name).read_bytes(), rng))
        refusal = ""
        try:
            trainer(copy).fit(part(), part(8), resume=True)
        except tk.TransferkitError as error:
            refusal = str(error)
        if refusal:
            assert refusal.endswith("."), number
        else:
            assert (copy / "model" / "weights.safetensors").read_bytes() == weights, number


def test_row_6_a_checkpoint_that_claims_to_be_huge_is_refused_at_once(run, tmp_path):
    newest = tmp_path / "checkpoint"
    shutil.copytree(sorted((run / "checkpoints").iterdir())[-1], newest)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"]["tensors.safetensors"]["size"] = 2**62
    (newest / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointCorruptError, match=r"tensors\.safetensors has changed"):
        read_checkpoint(newest)


def test_row_7_a_full_disk_leaves_the_checkpoints_before(tmp_path):
    with small_disk(tmp_path / "disk", 128) as disk:
        run = disk / "run"
        ballast = disk / "ballast"

        class Fill(StopAt):
            def step_end(self, result: object) -> None:
                self.left -= 1
                if self.left == 0:
                    ballast.write_bytes(b"\0" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))

        with pytest.raises(
            CheckpointWriteError, match=r"cannot be written: No space left on device \(error 28\)"
        ):
            trainer(run, Fill(7)).fit(part(), part(8))
        newest = CheckpointFolder(run / "checkpoints").newest()
        assert newest is not None
        assert not list((run / "checkpoints").glob(".*"))
        ballast.unlink()
        trainer(run).fit(part(), part(8), resume=True)
        ended = tk.load_model(run).state_dict()
    trainer(tmp_path / "whole").fit(part(), part(8))
    whole = tk.load_model(tmp_path / "whole").state_dict()
    assert all(torch.equal(whole[name], ended[name]) for name in whole)


def test_row_7_a_folder_that_takes_no_files_is_named(tmp_path):
    # Root may write into any folder, but no one below a file.
    (tmp_path / "file").touch()
    with pytest.raises((OutputError, CheckpointError), match="file"):
        trainer(tmp_path / "file" / "run").fit(part())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_row_14_the_command_line_ends_as_the_signal_says_and_goes_on(number, code, tmp_path):
    command = [
        sys.executable,
        "-m",
        "transferkit",
        "train",
        "digits",
        "--backbone",
        "mini",
        "--device",
        "cpu",
    ]
    command += ["--recipe", "fine-tune", "--epochs", "12", "--shots", "5", "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 1/"):
            break
    process.send_signal(number)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == code
    assert "Traceback" not in rest
    newest = CheckpointFolder(tmp_path / "run" / "checkpoints").newest()
    assert newest is not None
    saved = Path("run") / "checkpoints" / newest.path.name
    how = "interrupted" if number == signal.SIGINT else "terminated"
    assert f"transferkit: {how}. The run was saved in {saved}; --resume, or resume=True, goes on" in rest
    epochs = len(newest.state["history"])
    process = subprocess.Popen([*command, "--resume"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = [line for line in process.stderr if line.startswith("epoch ")]
    process.stderr.close()
    assert process.wait(120) == 0
    assert lines[0].startswith(f"epoch {epochs + 1}/12")
    assert len(lines) == 12 - epochs
