"""Compare backbones on a data set before any is trained."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from transferkit.commands.common import Options, check_backbones, show, table_arguments, tell

if TYPE_CHECKING:
    from transferkit.datasets.base import Splits


def probe(options: Options) -> None:
    """Score simple classifiers on the frozen features of each backbone."""
    from transferkit.features.probe import probe_backbones
    from transferkit.runtime import resolve_device

    backbones = options.backbone or ["mini"]
    named = (each.partition("=") for each in backbones)
    check_backbones((name, weights if own else options.weights) for name, own, weights in named)
    resolve_device(options.device)
    table = probe_backbones(
        _load_data(options),
        backbones,
        weights=options.weights,
        image_size=options.image_size,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        workers=options.workers,
        tell=lambda line: tell(options, line),
    )
    show(options, str(table), table.to_dict())


def _load_data(options: Options) -> Splits:
    """Load the data, with a validation part drawn only where there is no part to score on.

    What cannot be decoded is left out here, so that every backbone gets the same images.
    """
    from transferkit.datasets.load import load_dataset
    from transferkit.loading.checked import usable

    given: dict[str, Any] = {
        "label_from": options.label_from,
        "subset": options.subset,
        "shots": options.shots,
        "seed": options.seed,
        **table_arguments(options),
    }
    splits = load_dataset(options.data, val=0, **given)
    if splits.val is None and splits.test is None:
        splits = load_dataset(options.data, val=options.val, **given)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    left: dict[str, Any] = {
        name: usable(part, on_error=options.on_error, workers=options.workers)[0]
        for name, part in parts.items()
        if part is not None
    }
    return dataclasses.replace(splits, **left)
