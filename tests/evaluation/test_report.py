"""Every number of a report against scikit-learn, scipy or a loop written by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn import metrics as reference

from transferkit.errors import (
    ArgumentError,
    CheckpointCorruptError,
    DataError,
    NonFiniteError,
    OutputError,
)
from transferkit.evaluation.metrics import expected_calibration_error, wilson_interval
from transferkit.evaluation.report import Report
from transferkit.loading.checked import Skipped


def scored(count: int, classes: int, *, absent: tuple[int, ...] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are right more often than not, and targets without the absent classes."""
    present = [index for index in range(classes) if index not in absent]
    targets = torch.tensor(present)[torch.randint(0, len(present), (count,))]
    logits = torch.randn(count, classes)
    logits[torch.arange(count), targets] += 2
    return logits, targets


def names(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]


@pytest.mark.parametrize(
    ("count", "classes", "absent"),
    [(1, 2, ()), (1, 7, ()), (33, 2, ()), (200, 5, (1, 4)), (300, 12, (0, 11)), (50, 2, (0,))],
)
def test_every_number_is_scikit_learns(
    count: int, classes: int, absent: tuple[int, ...], device: torch.device
) -> None:
    logits, targets = scored(count, classes, absent=absent)
    report = Report.from_logits(logits.to(device), targets.to(device), names(classes))
    truth, guesses, labels = targets.numpy(), logits.argmax(1).numpy(), list(range(classes))
    probabilities = torch.softmax(logits.double(), 1).numpy()

    assert report.n == count
    assert report.accuracy == pytest.approx(reference.accuracy_score(truth, guesses))
    interval = binomtest(int((truth == guesses).sum()), count).proportion_ci(method="wilson")
    assert report.accuracy_interval == pytest.approx((interval.low, interval.high))
    assert report.log_loss == pytest.approx(reference.log_loss(truth, probabilities, labels=labels))
    assert np.array_equal(report.confusion_matrix, reference.confusion_matrix(truth, guesses, labels=labels))
    if classes <= 5:
        assert report.top5_accuracy is None
    else:
        expected = reference.top_k_accuracy_score(truth, logits.numpy(), k=5, labels=labels)
        assert report.top5_accuracy == pytest.approx(expected)
    for average, got in (
        (None, report.per_class),
        ("macro", report.macro_average),
        ("weighted", report.weighted_average),
    ):
        expected = reference.precision_recall_fscore_support(
            truth, guesses, labels=labels, average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1", "support"), expected, strict=True):
            if value is not None:
                np.testing.assert_allclose(got[name], value)
    table = reference.classification_report(
        truth, guesses, labels=labels, target_names=names(classes), zero_division=0
    )
    assert str(report).endswith(table.rstrip())
    assert np.array_equal(report.predictions, guesses)
    assert np.array_equal(report.targets, truth)
    np.testing.assert_allclose(report.probabilities, probabilities, rtol=1e-5, atol=1e-7)


def test_calibration_error_is_that_of_a_loop_over_bins() -> None:
    confidences = np.concatenate([np.random.default_rng(0).random(500), [1.0, 0.0, 1 / 15, 1 / 3]])
    correct = np.random.default_rng(1).random(504) < confidences**2
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = (confidences > low) & (confidences <= high) | ((number == 0) & (confidences == 0))
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidences[inside].mean())
    assert expected_calibration_error(confidences, correct) == pytest.approx(expected)
    assert expected_calibration_error(np.ones(4), np.ones(4, dtype=bool)) == 0
    assert expected_calibration_error(np.ones(4), np.zeros(4, dtype=bool)) == 1


def test_the_calibration_error_of_a_report_is_that_of_its_highest_probabilities() -> None:
    logits, targets = scored(200, 4)
    report = Report.from_logits(logits, targets, names(4))
    probabilities = logits.double().softmax(1).numpy()
    expected = expected_calibration_error(probabilities.max(1), probabilities.argmax(1) == targets.numpy())
    assert report.calibration_error == pytest.approx(expected)
    assert 0 < report.calibration_error < 1


@pytest.mark.parametrize("n", [1, 2, 10, 153, 10_000])
def test_wilson_interval_is_scipys(n: int) -> None:
    for correct in {0, 1, n // 2, n - 1, n}:
        expected = binomtest(correct, n).proportion_ci(method="wilson")
        low, high = wilson_interval(correct, n)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert 0 <= low <= correct / n <= high <= 1


def test_a_sure_mistake_is_not_cut_off() -> None:
    report = Report.from_logits(torch.tensor([[100.0, 0.0]]), torch.tensor([1]), ["a", "b"])
    assert report.log_loss == pytest.approx(100)


def test_logits_of_half_precision_lists_and_a_single_class() -> None:
    report = Report.from_logits([[1.0, 2.0], [3.0, 0.0]], [1, 1], ["a", "b"])
    assert report.accuracy == 0.5
    half = torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    assert Report.from_logits(half, torch.tensor([1, 1]), ["a", "b"]).log_loss == pytest.approx(
        report.log_loss
    )
    single = Report.from_logits(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), ["only"])
    assert (single.accuracy, single.log_loss, single.calibration_error) == (1.0, 0.0, 0.0)
    assert "accuracy 100.0%" in str(single)


def test_the_text_says_split_interval_selection_and_what_was_left_out() -> None:
    logits, targets = scored(20, 7)
    skipped = [Skipped("x.jpg", "photos/x.jpg", "it is empty")]
    text = str(Report.from_logits(logits, targets, names(7), split="val", selected=True, skipped=skipped))
    head = text.splitlines()
    assert head[0] == "val: 20 images, 7 classes"
    assert "95% interval" in head[1]
    assert "top-5" in head[1]
    assert "calibration error" in head[2]
    assert "Weights were selected on this split, so its accuracy is optimistic." in head
    assert "Left out, because they cannot be decoded: 1 image ('x.jpg')." in head
    for selected in (False, None):
        text = str(Report.from_logits(logits, targets, names(7), selected=selected))
        assert "optimistic" not in text
        assert "Left out" not in text


def test_json_round_trip(tmp_path: Path) -> None:
    logits, targets = scored(40, 6, absent=(2,))
    report = Report.from_logits(
        logits,
        targets,
        ["蟻", 'a "quoted" one', *names(4)],
        split="val",
        selected=False,
        ids=[f"{index}.jpg" for index in range(40)],
        skipped=[Skipped("broken.jpg", "photos/broken.jpg", "it is empty")],
    )
    path = tmp_path / "new folder" / "report.json"
    text = report.to_json(path)
    assert path.read_text(encoding="utf-8") == text
    assert json.loads(text) == report.to_dict()
    assert "predictions" not in json.loads(text)
    again = Report.from_json(path)
    assert again.to_dict() == report.to_dict()
    assert str(again) == str(report)
    assert again.skipped == (Skipped("broken.jpg", "photos/broken.jpg", "it is empty"),)
    assert again.predictions is None
    assert again.probabilities is None
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]

    report.to_json(path, samples=True)
    full = Report.from_json(path)
    assert full.ids == report.ids
    for name in ("targets", "predictions", "probabilities"):
        assert np.array_equal(getattr(full, name), getattr(report, name))
        assert getattr(full, name).dtype == getattr(report, name).dtype


def test_json_holds_what_a_reader_looks_for() -> None:
    report = Report.from_logits(torch.eye(2), torch.tensor([0, 1]), ["ant", "bee"])
    fields = json.loads(report.to_json())
    assert fields["accuracy"] == 1.0
    assert fields["accuracy_interval"] == pytest.approx(list(wilson_interval(2, 2)))
    assert fields["per_class"][1] == {
        "class": "bee",
        "precision": 1.0,
        "recall": 1.0,
        "f1": 1.0,
        "support": 1,
    }
    assert fields["confusion_matrix"] == [[1, 0], [0, 1]]


def test_what_was_left_out_is_read_in_its_own_form_alone(tmp_path: Path) -> None:
    report = Report.from_logits(torch.eye(2), torch.tensor([0, 1]), ["ant", "bee"])
    path = tmp_path / "report.json"
    for wrong in (["x.jpg"], [{"id": "x.jpg"}], 3):
        path.write_text(json.dumps(report.to_dict() | {"skipped": wrong}))
        with pytest.raises(CheckpointCorruptError, match=r"report\.json does not hold a report"):
            Report.from_json(path)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"split": 3', "null"])
def test_a_file_that_is_no_report(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(CheckpointCorruptError, match=r"report\.json does not hold a report"):
        Report.from_json(path)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"missing\.json cannot be read"):
        Report.from_json(tmp_path / "missing.json")
    report = Report.from_logits(torch.eye(2), torch.tensor([0, 1]), ["a", "b"])
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OutputError, match=r"report\.json cannot be written"):
        report.to_json(tmp_path / "report.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_an_empty_part() -> None:
    with pytest.raises(DataError, match="the part 'val' has no images"):
        Report.from_logits(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), names(3), split="val")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_name_the_image(value: float) -> None:
    logits, targets = scored(5, 3)
    logits[3, 1] = value
    with pytest.raises(NonFiniteError, match=r"1 of the 5 images in 'test'.*'d\.jpg'"):
        Report.from_logits(logits, targets, names(3), ids=[f"{letter}.jpg" for letter in "abcde"])


@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_that_is_no_class(target: int) -> None:
    logits, targets = scored(5, 3)
    targets[2] = target
    with pytest.raises(DataError, match=f"below 3.*Got {target} for image 2, and 1 such"):
        Report.from_logits(logits, targets, names(3))


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"logits": torch.zeros(5)}, "logits"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, "targets"),
        ({"targets": torch.zeros(5)}, "targets"),
        ({"classes": ["a", "b"]}, "classes"),
        ({"classes": "abc"}, "classes"),
        ({"ids": ["one"]}, "ids"),
    ],
)
def test_arguments_that_do_not_fit_together(changes: dict[str, object], parameter: str) -> None:
    logits, targets = scored(5, 3)
    arguments = {"logits": logits, "targets": targets, "classes": names(3)} | changes
    with pytest.raises(ArgumentError, match=f"The '{parameter}' parameter of Report.from_logits must be"):
        Report.from_logits(**arguments)
