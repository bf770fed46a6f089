"""What a run measured, epoch by epoch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from transferkit.evaluation.drawing import BLUE, GREY, VERMILION, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What the width of a plot has room for: epochs that are named, and letters of the names of phases.
_MOST_TICKS, _LETTERS = 12, 56
_STEPS = [digit * 10**power for power in range(9) for digit in (1, 2, 5)]

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
        """Return a figure of loss and accuracy by epoch, with what trains in each phase marked.

        A head that a solver has fitted takes no epoch; it is drawn as a point of its own, "fit".

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure = new_figure(9, 4.0, "History.plot")
        from matplotlib.ticker import PercentFormatter

        places = self._places()
        for axes, key, label in zip(
            figure.subplots(1, 2), ("loss", "accuracy"), ("mean loss", "accuracy"), strict=True
        ):
            for part, color, style in (("train", BLUE, "o--"), ("val", VERMILION, "s-")):
                values = [row.get(f"{part}_{key}") for row in self._rows]
                if any(value is not None for value in values):
                    axes.plot(
                        places, values, style, label=part, color=color, markersize=4 if len(self) <= 40 else 0
                    )
            best = self.best
            if best is not None and best.get(f"val_{key}") is not None:
                place = places[next(number for number, row in enumerate(self._rows) if row is best)]
                axes.plot(
                    place,
                    best[f"val_{key}"],
                    "o",
                    color="black",
                    fillstyle="none",
                    markersize=11,
                    label="kept",
                )
            axes.set_title(label.capitalize(), fontsize=11, pad=18)
            axes.set(xlabel="epoch", ylabel=label)
            self._mark_phases(axes, places)
        # It shows as many decimals as its ticks need.
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
        figure.suptitle("Training history", fontsize=12)
        return figure

    def _places(self) -> list[int]:
        """Return where each row stands: at its epoch, moved on where a solver's fit took none."""
        first = self._rows[0]["epoch"] if self._rows else 0
        return [first + number for number in range(len(self._rows))]

    def _mark_phases(self, axes: Axes, places: Sequence[int]) -> None:
        """Name the epochs, and shade every other phase under the name of what trains in it."""
        names = {
            place: "fit" if row.get("c") is not None else str(row["epoch"])
            for place, row in zip(places, self._rows, strict=True)
        }
        step = next(step for step in _STEPS if len(places) <= _MOST_TICKS * step)
        shown = [place for place in places if place % step == 0]
        axes.set_xticks(shown, [names[place] for place in shown])
        if not places:
            return
        axes.set_xlim(places[0] - 0.5, places[-1] + 0.5)
        starts = [
            number
            for number, row in enumerate(self._rows)
            if number == 0 or row.get("phase") != self._rows[number - 1].get("phase")
        ]
        for order, (start, stop) in enumerate(zip(starts, [*starts[1:], len(places)], strict=True)):
            left, right = places[start] - 0.5, places[stop - 1] + 0.5
            if order % 2:
                axes.axvspan(left, right, color="0.92", zorder=0)
            room = max(3, int(_LETTERS * (stop - start) / len(places)))
            trains = re.sub(r"[\[\]'\"]", "", str(self._rows[start].get("train", "")))
            axes.annotate(
                shortened(trains, room),
                ((left + right) / 2, 1), (0, 3), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", fontsize=8, color=GREY, parse_math=False,
            )  # fmt: skip
