"""Data sets: folders, arrays and registered names, and how they are split."""

import transferkit.datasets.builtin  # noqa: F401 (registers the data sets that come along)
from transferkit.datasets.base import Part, Splits
from transferkit.datasets.load import load_dataset, restore_splits
from transferkit.datasets.registry import DATASETS, list_datasets, register_dataset

__all__ = [
    "DATASETS",
    "Part",
    "Splits",
    "list_datasets",
    "load_dataset",
    "register_dataset",
    "restore_splits",
]
