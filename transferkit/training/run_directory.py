"""The folder of a run: every decision, every epoch, the model, and what was made of it."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from transferkit.errors import OutputError, RunDirectoryError
from transferkit.files import write_text


def versions() -> dict[str, str]:
    """Return the versions on which the numbers of a run depend."""
    import numpy
    import torch
    import torchvision

    from transferkit import __version__

    return {
        "transferkit": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


class RunDirectory:
    """Where a run keeps what it decided, measured and learned.

    Args:
        path: The folder; it is made when something is first written.

    Raises:
        RunDirectoryError: The folder holds something already.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self.check_unused()

    def check_unused(self) -> None:
        """Raise ``RunDirectoryError`` if the folder holds something, from an earlier ``fit`` too."""
        try:
            used = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        except OSError as error:
            raise OutputError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        if used:
            raise RunDirectoryError(f"The run directory {self.path} is already in use; choose a new one.")

    def write_config(self, config: dict[str, Any]) -> None:
        """Write ``config.json``."""
        write_text(self.path / "config.json", json.dumps(config, indent=2, default=str) + "\n")

    def append_history(self, row: dict[str, Any]) -> None:
        """Add a line to ``history.jsonl``."""
        path = self.path / "history.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error
