"""What each command of the command line does. A command is imported when it is run."""

from __future__ import annotations

COMMANDS = {
    "augmentations": "transferkit.commands.listings:augmentations",
    "backbones": "transferkit.commands.listings:backbones",
    "cache": "transferkit.commands.cache:cache",
    "datasets": "transferkit.commands.listings:datasets",
    "evaluate": "transferkit.commands.evaluate:evaluate",
    "predict": "transferkit.commands.predict:predict",
    "probe": "transferkit.commands.probe:probe",
    "quickstart": "transferkit.commands.quickstart:quickstart",
    "recipes": "transferkit.commands.listings:recipes",
    "train": "transferkit.commands.train:train",
}
"""A command, and the function that runs it, as ``module:function``."""
