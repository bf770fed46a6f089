"""What a run measured, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from transferkit.checks import import_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = (
    ("epoch", "epoch", "{:d}"),
    ("train", "trains", "{}"),
    ("lr", "lr", "{:.1e}"),
    ("c", "C", "{:.3g}"),
    ("train_loss", "train loss", "{:.4f}"),
    ("train_accuracy", "train acc", "{:.1%}"),
    ("val_loss", "val loss", "{:.4f}"),
    ("val_accuracy", "val acc", "{:.1%}"),
    ("images_per_second", "img/s", "{:.0f}"),
    ("seconds", "seconds", "{:.1f}"),
)


class History(Sequence[dict[str, Any]]):
    """The rows of a run, one for each epoch; it prints as a table.

    A row has the keys ``epoch`` (from 1, over the whole run), ``phase`` (from 0), ``train``,
    ``lr`` (of the fastest group), ``train_loss``, ``train_accuracy``, ``val_loss``,
    ``val_accuracy`` (both ``None`` without a validation part), ``images_per_second``,
    ``seconds`` and ``best`` (whether the epoch gave the best weights so far). A head that a
    solver has fitted has one row, whose ``epoch`` is that of the row before it, or 0; its ``lr``
    and ``images_per_second`` are ``None``, and it has two keys more: ``c`` (the inverse
    regularisation that was chosen) and ``iterations``.

    >>> history = History([{"epoch": 1, "train": "head", "train_loss": 0.5, "best": True}])
    >>> len(history), history[-1]["train_loss"]
    (1, 0.5)
    """

    def __init__(self, rows: Sequence[dict[str, Any]] = ()) -> None:
        self._rows = list(rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def append(self, row: dict[str, Any]) -> None:
        """Add the row of an epoch."""
        self._rows.append(row)

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the epoch whose weights ``fit`` kept; ``None`` before the first epoch."""
        chosen = [row for row in self._rows if row.get("best")]
        return chosen[-1] if chosen else self._rows[-1] if self._rows else None

    def __str__(self) -> str:
        columns = [column for column in _COLUMNS if any(row.get(column[0]) is not None for row in self._rows)]
        table = [[title for _, title, _ in columns]]
        for row in self._rows:
            values = [row.get(key) for key, _, _ in columns]
            shown = [
                "" if value is None else column[2].format(value)
                for column, value in zip(columns, values, strict=True)
            ]
            table.append(shown)
        widths = [max(len(line[place]) for line in table) for place in range(len(columns))]
        marks = [" ", *("*" if row.get("best") else " " for row in self._rows)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + f" {mark}"
            for line, mark in zip(table, marks, strict=True)
        ]
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__

    def plot(self) -> Figure:
        """Return a figure of loss and accuracy by epoch, with the phases marked.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure_module = import_extra("matplotlib.figure", "plot", "History.plot")
        figure: Figure = figure_module.Figure(figsize=(9, 3.6), layout="constrained")
        epochs = [row["epoch"] for row in self._rows]
        axes = figure.subplots(1, 2)
        for ax, key, title in zip(axes, ("loss", "accuracy"), ("Loss", "Accuracy"), strict=True):
            for part, style in (("train", "o--"), ("val", "s-")):
                values = [row.get(f"{part}_{key}") for row in self._rows]
                if any(value is not None for value in values):
                    ax.plot(epochs, values, style, label=part, markersize=4)
            for before, row in zip(self._rows, self._rows[1:], strict=False):
                if before["phase"] != row["phase"]:
                    ax.axvline(row["epoch"] - 0.5, color="grey", linestyle=":")
            best = self.best
            if best is not None and best.get(f"val_{key}") is not None:
                ax.plot(best["epoch"], best[f"val_{key}"], "*", color="black", markersize=11, label="kept")
            ax.set_title(title)
            ax.set_xlabel("epoch")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.legend()
        return figure
