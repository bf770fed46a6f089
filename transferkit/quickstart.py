"""The quickstart: what pretraining is worth on a few labelled digits, without a network."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from transferkit.backbones.load import load_backbone
from transferkit.datasets.load import load_dataset
from transferkit.evaluation.comparison import PairedDifference, paired_difference
from transferkit.evaluation.report import Report
from transferkit.evaluation.scoring import evaluate
from transferkit.heads import replace_head
from transferkit.run_outputs import write_figures, write_report
from transferkit.trainer import Trainer
from transferkit.training.run_directory import RunDirectory

_SHOTS = 10
_DRAWS = 5


@dataclass(frozen=True)
class QuickstartResult:
    """What the quickstart found.

    Attributes:
        run: The run directory of the first pretrained model.
        pretrained: Reports of the pretrained network, one for each draw of labelled digits.
        random: Reports of the same network from random weights, on the same draws.
        difference: Accuracy of the first less that of the second, over the draws.
    """

    run: Path
    pretrained: tuple[Report, ...]
    random: tuple[Report, ...]
    difference: PairedDifference

    def __str__(self) -> str:
        lines = [f"test accuracy on {self.pretrained[0].n} digits after training on {_SHOTS} of each class:"]
        for draw, (first, second) in enumerate(zip(self.pretrained, self.random, strict=True), start=1):
            lines.append(f"  draw {draw}: pretrained {_shown(first)}, random weights {_shown(second)}")
        lines.append(f"pretrained less random: {self.difference}")
        lines.append(f"run directory: {self.run}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as values that JSON can hold."""
        return {
            "run": str(self.run),
            "pretrained": [report.accuracy for report in self.pretrained],
            "random": [report.accuracy for report in self.random],
            "difference": self.difference.mean,
            "difference_interval": list(self.difference.interval),
        }


def _shown(report: Report) -> str:
    low, high = report.accuracy_interval
    return f"{report.accuracy:.1%} [{low:.1%}, {high:.1%}]"


def run_quickstart(
    out: str | os.PathLike[str],
    *,
    device: str = "auto",
    tell: Callable[[str], None] = lambda line: None,
) -> QuickstartResult:
    """Fine-tune ``mini`` on 10 digits of each class, pretrained and from random weights, over 5 draws.

    Args:
        out: The run directory of the first pretrained model; it must not exist or be empty.
        device: Where to train.
        tell: Takes a line of progress.

    Raises:
        RunDirectoryError: The run directory is already in use.
    """
    directory = RunDirectory(out)
    directory.check_unused()
    run = directory.path
    reports: dict[str | None, list[Report]] = {"default": [], None: []}
    for draw in range(_DRAWS):
        splits = load_dataset("digits", val=0, shots=_SHOTS, seed=draw)
        assert splits.test is not None
        for weights in reports:
            torch.manual_seed(draw)
            model = load_backbone("mini", weights=weights)
            replace_head(model, len(splits.classes), classes=splits.classes)
            shown = draw == 0 and weights is not None
            trainer = Trainer(
                model,
                recipe="lp-ft",
                augmentation="none",  # a mirrored 2 is no 2
                batch_size=32,
                device=device,
                seed=draw,
                run_dir=run if shown else None,
                progress=False,
            )
            history = trainer.fit(splits)
            report = evaluate(model, splits.test, device=device)
            reports[weights].append(report)
            name = "random weights" if weights is None else "pretrained"
            tell(f"draw {draw + 1} of {_DRAWS}, {name}: {_shown(report)}")
            if shown:
                notes = write_report(report, splits.test, run)
                notes += write_figures(
                    run, model, splits.train, history, report=report, part=splits.test, seed=draw
                )
                for note in dict.fromkeys(notes):
                    tell(note)
    difference = paired_difference(
        [report.accuracy for report in reports["default"]], [report.accuracy for report in reports[None]]
    )
    return QuickstartResult(run, tuple(reports["default"]), tuple(reports[None]), difference)
