"""The folder of a run: every decision, every epoch, the model, and what was made of it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transferkit.errors import CheckpointCorruptError, OutputError, RunDirectoryError
from transferkit.files import is_leftover, parse_json, write_text
from transferkit.loading.checked import Skipped, skipped_csv


def versions() -> dict[str, str]:
    """Return the versions on which the numbers of a run depend."""
    import numpy
    import torch
    import torchvision

    from transferkit import __version__

    found = {
        "transferkit": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }
    for name in ("timm", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class RunDirectory:
    """Where a run keeps what it decided, measured and learned.

    Args:
        path: The folder; it is made when something is first written.

    Attributes:
        path: As given, with ``~`` expanded.
        model: Where the trained model is put.
        checkpoints: Where a run that is not over can be resumed from.

    Raises:
        RunDirectoryError: The folder holds something, and it is no run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.expanduser(path))
        self.model = self.path / "model"
        self.checkpoints = self.path / "checkpoints"
        self._config = self.path / "config.json"
        self._skipped = self.path / "skipped.csv"
        begun = (self._config, self.checkpoints, self._skipped)
        if self._is_used() and not any(each.exists() for each in begun):
            raise RunDirectoryError(f"The run directory {self.path} is already in use; choose a new one.")

    def check_unused(self) -> None:
        """Raise ``RunDirectoryError`` if a run began here."""
        if self._is_used():
            raise RunDirectoryError(
                f"The run directory {self.path} is already in use; resume the run in it, or choose a new one."
            )

    def check_writable(self) -> None:
        """Make the folder, and raise ``OutputError`` if no file can be made in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}.") from error

    def _is_used(self) -> bool:
        """Whether something is there besides what a writer that was killed has left."""
        try:
            if not self.path.is_dir():
                return self.path.exists()
            return any(not is_leftover(each) for each in self.path.iterdir())
        except OSError as error:
            raise OutputError(f"{self.path} cannot be read: {error.strerror or error}.") from error

    def sweep(self) -> None:
        """Remove what writers that were killed have left."""
        for each in self.path.glob(".*.tmp"):
            if is_leftover(each):
                each.unlink(missing_ok=True)

    def recorded(self) -> dict[str, Any] | None:
        """Return the configuration of the run that began here, or ``None`` if none did.

        Raises:
            CheckpointCorruptError: The configuration is damaged.
        """
        if not self._config.exists():
            return None
        try:
            config = parse_json(self._config.read_bytes())
            fits = isinstance(config["settings"], dict) and isinstance(config["execution"], dict)
            fits = fits and isinstance(config["phases"], list) and isinstance(config["decisions"], list)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointCorruptError(f"{self._config} is damaged: {error!r}.") from error
        if not fits:
            raise CheckpointCorruptError(f"{self._config} is damaged: it is not what a run writes.")
        return dict(config)

    def write_config(self, config: dict[str, Any]) -> None:
        """Write ``config.json``."""
        write_text(self._config, json.dumps(config, indent=2, default=str) + "\n")

    def write_skipped(self, skipped: Sequence[Skipped]) -> None:
        """Write ``skipped.csv``, the images that were left out because they cannot be decoded."""
        write_text(self._skipped, skipped_csv(skipped))

    def write_history(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write ``history.jsonl``, in the place of one that may have come further."""
        write_text(self._history, "".join(_line(row) for row in rows))

    def append_history(self, row: dict[str, Any]) -> None:
        """Add a line to ``history.jsonl``."""
        try:
            with self._history.open("a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            raise OutputError(f"{self._history} cannot be written: {error.strerror or error}.") from error

    def has_history(self) -> bool:
        """Whether an epoch of a run was recorded."""
        return self._history.exists() and self._history.stat().st_size > 0

    def read_history(self) -> list[dict[str, Any]]:
        """Return the rows of ``history.jsonl``.

        Raises:
            CheckpointCorruptError: It is missing or damaged.
        """
        try:
            return [parse_json(line) for line in self._history.read_text("utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise CheckpointCorruptError(f"{self._history} is damaged: {error}.") from error

    @property
    def _history(self) -> Path:
        return self.path / "history.jsonl"


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
