"""The command that runs everything on one GPU goes on after a failure, and ends what takes too long."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT))
    return importlib.import_module("benchmarks.cuda")


def statistic(value):
    return {"median": value, "min": value, "max": value, "values": [value]}


def test_steps_fail_and_end_alone(cuda, tmp_path, monkeypatch, capsys):
    lines = ["FAILED tests/test_a.py::test_b", "1 failed, 3 passed in 2.0s"]
    scripts = {
        "tests": f"print({lines[0]!r}); print({lines[1]!r}); raise SystemExit(1)",
        "finetune": "while True: pass",
        "overhead": "print('nothing')",
        "probe": "print('never')",
    }
    limits = {"finetune": 1.0}

    def steps(options, data):
        for name, script in scripts.items():
            yield cuda.Step(name, ("-c", script), limits.get(name, 60.0))

    monkeypatch.setattr(cuda, "steps", steps)
    with pytest.raises(SystemExit):
        cuda.main([str(tmp_path / "out"), "--smoke", "--only", "tests", "finetune", "overhead"])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    outcomes = {step["step"]: step["outcome"] for step in summary["steps"]}
    assert outcomes == {"tests": "failed with 1", "finetune": "ended after 1 s", "overhead": "ok"}
    assert [step["findings"] for step in summary["steps"]] == [lines, [], []]
    assert "1 failed, 3 passed" in (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")
    assert "tests: failed with 1" in capsys.readouterr().out


def test_without_time_a_step_is_left_out(cuda, tmp_path):
    with (tmp_path / "log.txt").open("wb") as log:
        result = cuda.run(cuda.Step("tests", ("-c", "print('never')"), 60.0), 5.0, log)
    assert result["outcome"] == "left out, for lack of time"
    assert (tmp_path / "log.txt").read_bytes() == b""


def test_what_is_wanted_stands_beside_what_was_found(cuda, tmp_path):
    row = {
        "model": "resnet50",
        "input": "files",
        "variant": "transferkit",
        "images_per_second": statistic(2500.0),
        "first_epoch_images_per_second": statistic(1000.0),
        "ratio_to_plain": statistic(12.5),
        "ratio_to_ready": statistic(0.95),
        "ratio_to_handwritten": None,
        "share_of_bf16_peak": statistic(0.25),
    }
    path = tmp_path / "finetune.json"
    path.write_text(json.dumps({"rows": [row]}), encoding="utf-8")
    assert cuda.findings("finetune", path, "") == [
        "resnet50, files, transferkit: 2,500 images/s, first epoch 1,000, 25.0% of the bf16 matrix peak",
        "resnet50, files, transferkit: 95.0% of the rate on ready batches (wanted: 90%)",
        "resnet50, files, transferkit: 12.5 times the plain loop (wanted, from files: 10)",
    ]
    assert cuda.findings("finetune", tmp_path / "missing.json", "") == []


@pytest.mark.parametrize("smoke", [False, True])
def test_every_step_is_one_that_its_command_understands(cuda, smoke, tmp_path, monkeypatch):
    arguments = [str(tmp_path), "--device", "cpu", *(["--smoke"] if smoke else [])]
    options = cuda.build_parser().parse_args(arguments)
    steps = list(cuda.steps(options, tmp_path / "photos"))
    assert tuple(step.name for step in steps) == cuda.STEPS
    assert sum(step.limit for step in steps) < 12 * 60
    for step in steps[1:]:
        assert step.arguments[0] == "-m"
        module = importlib.import_module(step.arguments[1])
        parsed = []

        def parse(parser, given, parsed=parsed, **sizes):
            parsed.append(parser.parse_args(given))
            raise KeyboardInterrupt  # nothing is to be measured

        monkeypatch.setattr("benchmarks.common.parse", parse)
        with pytest.raises(KeyboardInterrupt):
            module.main(list(step.arguments[2:]))
        assert parsed[0].device == "cpu"
        assert parsed[0].json == tmp_path.resolve() / f"{step.name}.json"


def test_photos_may_be_made_by_several_processes(cuda, tmp_path):
    images = sys.modules["benchmarks.images"]
    for processes in (1, 2):
        images.make_data_set(tmp_path / str(processes), train=4, test=2, classes=2, processes=processes)
    photos = [images.find_photos(tmp_path / name) for name in ("1", "2")]
    assert len(photos[0]) == 6
    for one, other in zip(*photos, strict=True):
        assert one.read_bytes() == other.read_bytes()
