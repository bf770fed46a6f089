"""The benchmarks run from end to end on tiny sizes, and what they compute from timings is right."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import get_model, get_model_weights

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of the benchmarks, which are found in the clone and not installed."""
    monkeypatch.syspath_prepend(str(PROJECT))

    def module(name):
        return importlib.import_module(f"benchmarks.{name}")

    return module


@pytest.fixture
def in_this_process(benchmark, monkeypatch):
    """Runs the scripts of variants here instead of in processes of their own, which all import torch."""
    common = benchmark("common")

    def run(name, options, *, env=None):
        arguments = [
            f"--{key.replace('_', '-')}={value}" for key, value in options.items() if value is not None
        ]
        with monkeypatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
            for key, value in (env or {}).items():
                patch.setenv(key, value)
            patch.setattr(sys, "argv", [name, *arguments])
            runpy.run_module(f"benchmarks.variants.{name}", run_name="__main__")
        return common.ChildRun(1.0, json.loads(printed.getvalue().splitlines()[-1]))

    monkeypatch.setattr(common, "run_variant", run)


@pytest.fixture
def smoke(benchmark, tmp_path, monkeypatch, capsys):
    """Runs a command on tiny sizes, and returns what it printed and the JSON that it wrote."""

    def run(name, *arguments):
        out = tmp_path / f"{name}.json"
        monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
        threads = torch.get_num_threads()
        try:
            benchmark(name).main(["--smoke", "--json", str(out), *map(str, arguments)])
        finally:
            torch.set_num_threads(threads)
        record = json.loads(out.read_text(encoding="utf-8"))
        assert record["benchmark"] == name
        assert record["smoke"] is True
        assert record["machine"]["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
        assert record["machine"]["cores"] >= 1
        return capsys.readouterr().out, record

    return run


def is_statistic(value):
    ordered = value["min"] <= value["median"] <= value["max"]
    return ordered and value["min"] == min(value["values"]) and value["max"] == max(value["values"])


@pytest.mark.slow
def test_probe_runs_whole_processes_from_a_clone(tmp_path):
    out = tmp_path / "probe.json"
    command = [sys.executable, "-m", "benchmarks.probe", "--smoke", "--json", str(out), "--plain-epochs", "1"]
    done = subprocess.run(
        [*command, "--only", "plain", "transferkit-cold"],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    plain, ours = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert (plain["variant"], ours["variant"]) == ("plain", "transferkit-cold")
    assert plain["train_images"] == ours["train_images"] == 20
    assert plain["test_images"] == ours["test_images"] == 10
    assert plain["extrapolated"]
    assert plain["measured_epochs"] == 1
    assert plain["seconds"]["median"] > plain["measured_seconds"]["median"]
    assert not ours["extrapolated"]
    assert set(ours["parts"]) == {"start", "load", "fit", "evaluate"}
    assert sum(part["median"] for part in ours["parts"].values()) == pytest.approx(ours["seconds"]["median"])
    assert "~ extrapolated to 2 epochs from the 1 that were run" in done.stdout
    assert "after 1" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "packages"), [("fastai", ["fastai"]), ("huggingface", ["transformers", "accelerate"])]
)
def test_a_peer_trains_where_it_is_installed(variant, packages, tmp_path):
    if any(find_spec(package) is None for package in packages):
        pytest.skip(f"{', '.join(packages)} not installed")
    out = tmp_path / "probe.json"
    command = [sys.executable, "-m", "benchmarks.probe", "--smoke", "--json", str(out), "--only", variant]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert row["measured_epochs"] == 2
    assert row["train_images"] == 20


def test_probe_with_another_head_uses_the_caches_of_the_run_before(in_this_process, smoke):
    printed, record = smoke("probe", "--only", "plain", "transferkit-cold", "transferkit-warm")
    assert [row["variant"] for row in record["rows"]] == ["plain", "transferkit-cold", "transferkit-warm"]
    assert set(record["speed_up_over_plain"]) == {"plain", "transferkit-cold", "transferkit-warm"}
    assert "transferkit-warm: start" in printed
    assert "read from the cache" not in " ".join(record["rows"][1]["notes"])
    assert "read from the cache" in " ".join(record["rows"][2]["notes"])


def test_finetune(in_this_process, smoke):
    printed, record = smoke("finetune")
    rows = {(row["input"], row["variant"]): row for row in record["rows"]}
    assert set(rows) == {
        ("ready", "plain"), ("ready", "handwritten"), ("ready", "transferkit"),
        ("files", "plain"), ("files", "transferkit"),
    }  # fmt: skip
    for row in rows.values():
        assert is_statistic(row["images_per_second"])
        assert row["share_of_bf16_peak"]["median"] > 0
    assert rows["ready", "plain"]["ratio_to_plain"]["values"] == [1.0]
    assert rows["files", "transferkit"]["ratio_to_ready"]["median"] > 0
    assert "by hand" in printed


def test_features(smoke):
    printed, record = smoke("features")
    rows = {row["form"]: row for row in record["rows"]}
    assert {
        "plain fp32",
        "folded fp32",
        "transferkit",
        "transferkit fp32",
        "transferkit, from images",
    } <= set(rows)
    assert rows["plain fp32"]["relative_error"] == 0
    assert rows["folded fp32"]["relative_error"] < 1e-5
    assert rows["transferkit fp32"]["relative_error"] < 1e-5
    assert rows["transferkit, from images"]["relative_error"] is None
    best = rows["transferkit"]["fastest_by_hand"]
    assert rows[best]["share_of_fastest_by_hand"]["values"] == [1.0]
    assert "the fastest by hand" in printed


def test_predict(in_this_process, smoke):
    _, record = smoke("predict")
    rows = {row["variant"]: row for row in record["rows"]}
    assert set(rows) == {"one-by-one", "batches", "transferkit"}
    assert all(row["images"] == 6 for row in rows.values())
    assert rows["batches"]["same_label_as_one_by_one"] == 1


def test_decode(smoke, tmp_path):
    _, record = smoke("decode")
    assert {row["photos"] for row in record["rows"]} == {"32 x 32", "320 x 240", "500 x 400", "1600 x 1200"}
    for row in record["rows"]:
        assert is_statistic(row["images_per_second"])
        if row["way"] != "reduced":
            assert row["difference_in_levels"]["largest"] <= (1.05 if row["way"] == "fast" else 1e-3)


def test_imports(smoke):
    printed, record = smoke("imports")
    assert [row["case"] for row in record["rows"]] == ["python alone", "transferkit --help"]
    assert "transferkit --help" in printed


def test_overhead_compares_the_same_step(smoke):
    _, record = smoke("overhead")
    (row,) = record["rows"]
    assert is_statistic(row["transferkit_step_seconds"])
    ratio = row["transferkit_step_seconds"]["median"] / row["handwritten_step_seconds"]["median"]
    assert row["ratio"]["median"] == pytest.approx(ratio)


def test_memory(in_this_process, smoke):
    printed, record = smoke("memory")
    assert [row["images"] for row in record["rows"]] == [8, 16]
    assert all(row["peak_bytes"]["median"] > 1e7 for row in record["rows"])
    assert "from 8 to 16 images" in printed


def test_scale(in_this_process, smoke):
    _, record = smoke("scale")
    assert [(row["images"], row["image_size"], row["epochs"]) for row in record["rows"]] == [
        (12, 32, 1), (12, 32, 2)
    ]  # fmt: skip


def test_a_shortened_run_is_extrapolated_from_its_later_epochs(benchmark):
    probe, common = benchmark("probe"), benchmark("common")
    report = {
        "epoch_seconds": [9.0, 4.0, 6.0],
        "images_per_second": 100.0,
        "accuracy": 0.5,
        "train_images": 500,
        "test_images": 100,
    }
    row = probe.describe("plain", [common.ChildRun(25.0, report)], 10)
    assert row["extrapolated"]
    assert row["measured_epochs"] == 3
    assert row["measured_seconds"]["median"] == 25.0
    assert row["seconds"]["median"] == 25.0 + 7 * 5.0
    assert not probe.describe("plain", [common.ChildRun(25.0, report)], 3)["extrapolated"]


def test_what_is_not_installed_is_skipped_by_name(benchmark, monkeypatch, capsys):
    probe = benchmark("probe")
    monkeypatch.setattr(probe, "find_spec", lambda name: None if name == "accelerate" else object())
    assert probe.available(["plain", "fastai", "huggingface"]) == ["plain", "fastai"]
    assert "huggingface is skipped: accelerate not installed" in capsys.readouterr().err


def test_variants_take_turns_and_ratios_are_formed_within_a_round(benchmark):
    common = benchmark("common")
    called = []
    results = common.alternate(
        {name: lambda number, name=name: called.append((number, name)) for name in "ab"}, 2
    )
    assert called == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert set(results) == {"a", "b"}
    # The second round was twice as slow for both.
    assert common.paired_ratio([10.0, 20.0], [5.0, 10.0])["values"] == [2.0, 2.0]


def test_a_process_that_fails_is_shown_with_its_error(benchmark):
    with pytest.raises(SystemExit, match=r"exited with 1:\n(.|\n)*ZeroDivisionError"):
        benchmark("common").run_child(["-c", "1 / 0"])


def test_the_middle_rate_leaves_out_start_and_end(benchmark):
    middle_rate = benchmark("variants.arguments").middle_rate
    stamps = [0.0, 10.0, *(10.0 + step for step in range(1, 6)), 100.0]
    assert middle_rate(stamps, 64) == 64
    assert middle_rate([1.0, 2.0], 64) == 64
    assert middle_rate([1.0], 64) is None


def test_made_photos_tell_their_classes_apart(benchmark, tmp_path):
    images = benchmark("images")
    images.make_data_set(tmp_path, train=6, test=2, classes=2, size=(48, 40))
    assert images.read_all(tmp_path) == 8
    red = [
        np.mean(
            [images.as_array(path)[..., 0].mean() for path in images.find_photos(tmp_path / "train" / name)]
        )
        for name in ("class0", "class1")
    ]
    assert red[1] - red[0] > 30


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_operations_are_those_that_torchvision_states(name, benchmark):
    counted = benchmark("measure").operations(get_model(name), 224)
    stated = get_model_weights(name).IMAGENET1K_V1.meta["_ops"]  # billions of multiply-adds
    assert counted == pytest.approx(2e9 * stated, rel=0.01)


def test_the_matrix_peak_is_within_reason(benchmark):
    assert 1e8 < benchmark("measure").matrix_peak("cpu", torch.float32, side=256) < 1e14
