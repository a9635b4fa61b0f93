"""What the functions that judge and train give back: objects that print well, in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thoraclip.documents import read_toml
from thoraclip.errors import MissingExtraError, ThoraclipError, printable

if TYPE_CHECKING:
    from pandas import DataFrame

    from thoraclip.tables.predictions import Predictions

__all__ = ["Figure", "Report", "Run", "is_trained"]

NOT_FOR_DIAGNOSIS = "Research use only, not for diagnosis."


class _Shown:
    """What prints as a table."""

    def _shown(self) -> tuple[str, list[list[str]], list[str]]:
        """(caption, table, lines below it)."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Columns set apart by two spaces, between the caption and the lines."""
        caption, rows, notes = self._shown()
        cells = [[printable(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        return "\n".join([printable(caption), *lines, *map(printable, notes)])

    def _repr_html_(self) -> str:
        """A table without colours of its own, which a notebook shows in its theme."""
        from thoraclip.pages import environment

        caption, (header, *rows), notes = self._shown()
        page = environment("thoraclip.pages", html=True).get_template("notebook.html.j2")
        return page.render(caption=caption, header=header, rows=rows, notes=notes)


@dataclass(frozen=True)
class Figure:
    """A figure of a report, drawn when it is shown or asked for its `svg`."""

    name: str
    draw: Callable[[], str] = field(repr=False)

    @cached_property
    def svg(self) -> str:
        """SVG text, as in `report.html`; may be written to a file."""
        return self.draw()

    def _repr_svg_(self) -> str:
        return self.svg


class Report(_Shown, dict[str, Any]):
    """A comparison of methods: the content of `report.json` as a mapping, with its table and its figures.

    Args:
        content: of `report.json`.
        folder: where the report was written.
    """

    def __init__(self, content: Mapping[str, Any], folder: Path) -> None:
        super().__init__(content)
        self.folder = folder

    @property
    def table(self) -> DataFrame:
        """A pandas table with a row for each method, the best macro F1 first, then those that failed, the majority row
        last: `kind`, `n` images, and for each metric its value and the ends of its 95 % interval, as in `macro_f1`,
        `macro_f1_low`, `macro_f1_high`: shares in [0, 1] but for the Brier score (0 to 2), the log loss (nats) and the
        Matthews correlation (-1 to 1); NaN where there is none.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError:
            raise MissingExtraError("pandas", "study") from None
        from thoraclip.evaluation.metrics import METRICS

        ends, rows = {"": "value", "_low": "low", "_high": "high"}, self._methods()
        about = {"kind": [row["kind"] for row in rows], "n": [row.get("n", 0) for row in rows]}
        values = {f"{m}{end}": [_number(row, m, key) for row in rows] for m in METRICS for end, key in ends.items()}
        return pd.DataFrame(about | values, index=pd.Index([row["name"] for row in rows], name="method"))

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The figures of `report.html` by name: `forest`, `confusion METHOD`, `roc CLASS`, ...; see
        `evaluation.report_figures`."""
        from thoraclip.evaluation.report_figures import report_figures

        return {name: Figure(name, draw) for name, draw in report_figures(self).items()}

    def rows(self) -> list[list[str]]:
        """The table of the page as text, in % with 95 % intervals; the first row is the header."""
        return [_header(), *([row["name"], *_cells(row.get("metrics"))] for row in self._methods())]

    def _methods(self) -> list[Mapping[str, Any]]:
        from thoraclip.evaluation.reading import ordered, ranked

        real = ranked(self["methods"])
        return [*real, *self["failed"], *ordered(self["methods"])[len(real) :]]

    def _shown(self) -> tuple[str, list[list[str]], list[str]]:
        from thoraclip.evaluation.findings import told

        images = self["sample"]["n"] if self["sample"] else 0
        caption = f"{self['title']}: {images:,} images; %, with 95 % intervals"
        foot = f"{NOT_FOR_DIAGNOSIS} Page: {self.folder / 'report.html'}"
        return caption, self.rows(), [told(self)[0], foot]


@dataclass(frozen=True, eq=False, repr=False)
class Run(_Shown):
    """A finished run of a method. Where a function takes the folder of a run, it takes the run as well.

    `predictions, details = run` takes two of its parts.
    """

    kind: str  # name of the method
    folder: Path
    predictions: Predictions  # of the images that were scored, all folds together
    details: Mapping[str, Any]  # of the method, JSON-able

    @cached_property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        """Metric -> `value`, `low` and `high` (95 % interval) on the test images, as in the report of this run.

        Computed when they are first asked for, or shown.

        Raises:
            ManifestError: no test image has a label.
        """
        from thoraclip.evaluation.report import MethodResult, method_metrics

        trained, tables = is_trained(self.folder / "config.toml"), (self.predictions,)
        return method_metrics(MethodResult(name=self.kind, kind=self.kind, predictions=tables, is_trained=trained))

    def __fspath__(self) -> str:
        return str(self.folder)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.predictions, self.details))

    def _shown(self) -> tuple[str, list[list[str]], list[str]]:
        """Without a labelled image the reason below the table, since an object must print."""
        metrics, reasons = dict[str, Any](), list[str]()
        try:
            metrics |= self.metrics
        except ThoraclipError as error:
            reasons.append(str(error))
        caption = f"{self.kind}: {len(self.predictions):,} images scored; %, with 95 % intervals"
        foot = f"{NOT_FOR_DIAGNOSIS} Folder: {self.folder}"
        return caption, [_header(), [self.kind, *_cells(metrics)]], [*reasons, foot]


def is_trained(config: Path) -> bool:
    """False for the predictions of a run that fitted nothing: it has neither a seed nor an adapter.

    Args:
        config: `config.toml` of the run, which need not be there.
    """
    values = read_toml(config) if config.is_file() else {"seed": None}
    return "seed" in values or bool(values.get("adapter"))


def _number(row: Mapping[str, Any], metric: str, key: str) -> float:
    value = (row.get("metrics") or {}).get(metric, {}).get(key)
    return float("nan") if value is None else value


def _header() -> list[str]:
    from thoraclip.evaluation.reading import COLUMNS

    return ["Method", *COLUMNS.values()]


def _cells(metrics: Mapping[str, Any] | None) -> list[str]:
    """The values below the header; `None` of a method that failed."""
    from thoraclip.evaluation.reading import COLUMNS, share_interval

    if metrics is None:
        return ["failed", *[""] * (len(COLUMNS) - 1)]
    return [share_interval(metrics.get(name)) for name in COLUMNS]
