"""One row per picture, as CSV or as JSON lines: `path, label, score_<class>..., set, ood, error`.

JSON lines hold null where something is unknown, CSV nothing; there the classes of a set are joined by `|`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from thoraclip.errors import ConfigError, did_you_mean
from thoraclip.labels import LabelSet

if TYPE_CHECKING:
    from thoraclip.deploy.runtime import Prediction

__all__ = ["FORMATS", "Row", "columns", "csv_line", "failed_row", "head_line", "json_line", "row_of", "table_format"]

Row = Mapping[str, Any]

_DECIMALS = 6
_OTHER_TABLES = (".parquet", ".json", ".xlsx")


def columns(labels: LabelSet) -> tuple[str, ...]:
    """Names of the columns."""
    return ("path", "label", *(f"score_{name}" for name in labels.names), "set", "ood", "error")


def row_of(path: str, found: Prediction, labels: LabelSet) -> Row:
    """The row of a picture that was scored; scores have 6 decimals."""
    scores = {f"score_{name}": round(found.scores[name], _DECIMALS) for name in labels.names}
    inside = None if found.set is None else list(found.set)
    return {"path": path, "label": found.label, **scores, "set": inside, "ood": found.ood, "error": None}


def failed_row(path: str, reason: str, labels: LabelSet) -> Row:
    """The row of a picture that could not be scored."""
    return dict.fromkeys(columns(labels)) | {"path": path, "error": reason}


def json_line(row: Row) -> bytes:
    """JSON and a newline, in ASCII: whatever stands in a file's name comes back."""
    return (json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii")


def csv_line(row: Row) -> bytes:
    """CSV and a newline, in UTF-8; of a file's name that is not UTF-8 the bytes as they are."""
    return _csv([_cell(value) for value in row.values()])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.{_DECIMALS}f}"
    return "|".join(value) if isinstance(value, list) else str(value)


def _csv(cells: list[str]) -> bytes:
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # so that both characters are put in quotes
    return line.getvalue().removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n"


FORMATS: Mapping[str, Callable[[Row], bytes]] = {"csv": csv_line, "jsonl": json_line}


def head_line(kind: str, labels: LabelSet) -> bytes:
    """What stands before the first row."""
    return _csv(list(columns(labels))) if kind == "csv" else b""


def table_format(asked: str, out: str | Path | IO[bytes] | None) -> str:
    """`csv` or `jsonl`: what was asked for, else what the file's name says, else CSV.

    Raises:
        ConfigError: an unknown format, or a file's name that promises another one.
    """
    if asked and asked not in FORMATS:
        raise ConfigError(f"--format: unknown format '{asked}'{did_you_mean(asked, FORMATS)}")
    suffix = Path(out).suffix.lower() if isinstance(out, str | Path) else ""
    if not asked and suffix in _OTHER_TABLES:
        raise ConfigError(f"{out}: the table is CSV or JSON lines; end its name in .csv or .jsonl")
    return asked or ("jsonl" if suffix == ".jsonl" else "csv")
