"""Data sets: folders, archives, tables, arrays and registered names, and how they are split."""

import transferkit.datasets.builtin
import transferkit.datasets.torchvision  # noqa: F401  # reason: both register the data sets that come along
from transferkit.datasets.base import Part, Splits
from transferkit.datasets.imbalance import class_counts, long_tailed
from transferkit.datasets.load import load_dataset, restore_splits
from transferkit.datasets.registry import DATASETS, list_datasets, register_dataset

__all__ = [
    "DATASETS",
    "Part",
    "Splits",
    "class_counts",
    "list_datasets",
    "load_dataset",
    "long_tailed",
    "register_dataset",
    "restore_splits",
]
