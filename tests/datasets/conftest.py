from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def lay_out(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of empty files: nothing that lists a data set may open an image."""

    def make(*files: str, folder: str = "photos") -> Path:
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        for name in files:
            path = root / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.touch()
        return root

    return make
