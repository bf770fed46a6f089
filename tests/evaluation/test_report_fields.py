"""A report from a file: as it was written, or one sentence that names the field."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from transferkit.errors import CheckpointCorruptError
from transferkit.evaluation.report import Report


def report() -> Report:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    return Report.from_logits(
        logits, torch.tensor([0, 1, 0]), ["ant", "bee"], split="val", ids=["a", "b", "c"]
    )


@pytest.mark.parametrize("count", [1, 2, 7, 40, 1000])
def test_every_report_is_read_as_it_was_written(count, tmp_path):
    generator = torch.Generator().manual_seed(count)
    logits = torch.randn(count, 6, generator=generator)
    targets = torch.randint(6, (count,), generator=generator)
    written = Report.from_logits(logits, targets, list("abcdef"))
    written.to_json(tmp_path / "report.json", samples=True)
    again = Report.from_json(tmp_path / "report.json")
    assert again.to_dict(samples=True) == written.to_dict(samples=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("split", 5),
        ("classes", "ab"),
        ("classes", []),
        ("classes", ["ant", "bee", "wasp"]),
        ("n", 0),
        ("n", 3.0),
        ("n", 4),
        ("selected", "yes"),
        ("accuracy", 1.5),
        ("accuracy", "1"),
        ("accuracy", 0.9),
        ("accuracy_interval", [0.1]),
        ("accuracy_interval", [0.1, None]),
        ("top5_accuracy", 2),
        ("log_loss", -1),
        ("log_loss", None),
        ("calibration_error", True),
        ("confusion_matrix", [[1, 1]]),
        ("confusion_matrix", [[1, 1], [1]]),
        ("confusion_matrix", [[1.5, 0.5], [0, 1]]),
        ("confusion_matrix", [[2, -1], [1, 1]]),
        ("confusion_matrix", [["1", "1"], ["0", "1"]]),
        ("confusion_matrix", [[2**62, 2**62], [2**62, 2**62 + 3]]),
        ("confusion_matrix", 3),
        ("skipped", "a"),
        ("skipped", [{"id": "a"}]),
        ("ids", [1, 2, 3]),
        ("targets", [0, 1]),
        ("predictions", [0, 1, None]),
        ("probabilities", [[0.5, 0.5]]),
    ],
)
def test_what_is_no_report_is_refused_with_the_name_of_the_field(name, value, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report().to_dict(samples=True) | {name: value}))
    with pytest.raises(
        CheckpointCorruptError, match=r"report\.json does not hold a report: its field '.*\.$"
    ):
        Report.from_json(tmp_path / "report.json")


@pytest.mark.parametrize("text", ['{"n": NaN}', '{"n": 1e999}', "[" * 10**6, "1" * 10**5, '"text"'])
def test_json_that_holds_no_plain_values_is_refused(text, tmp_path):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(CheckpointCorruptError, match=r"report\.json does not hold a report: it "):
        Report.from_json(tmp_path / "report.json")


def test_samples_have_their_types():
    again = Report.from_dict(report().to_dict(samples=True))
    assert again.targets is not None
    assert again.probabilities is not None
    assert again.targets.dtype == np.int64
    assert again.probabilities.dtype == np.float32
