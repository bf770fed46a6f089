"""``python -m transferkit`` is the command ``transferkit``."""

from __future__ import annotations

import sys

from transferkit.cli import main

sys.exit(main())
