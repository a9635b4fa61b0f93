"""Nothing in a table for spreadsheets is a formula to one, and what is read back is what was written."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from tests.bundle.fake_bundle import LABELS
from tests.conftest import examples

from thoraclip.bundle.images import PathTable
from thoraclip.bundle.rows import Table, failed_row, head_line, row_of, spreadsheet_line
from thoraclip.cli.app import run
from thoraclip.data.layouts.csv import find_csv
from thoraclip.delimited import NO_VALUE
from thoraclip.errors import InputError
from thoraclip.labels import LabelSet
from thoraclip.spelling import tidy
from thoraclip.spreadsheets import MARK, protect, restore
from thoraclip.tables.predictions import Predictions, read_predictions, write_predictions

TRIGGERS = "=+-@\t\r\n\0\uff1d\uff0b\uff0d\uff20"
ATTACKS = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\uff1d1",
    " =1",
    "'=1",
    "''=1",
    'a;"=1"',
    "a;=1",
    "a\n=1",
]
texts = st.one_of(
    st.sampled_from(ATTACKS), st.text("=+-@\t\r\n'\"; ,a|\uff1d\0\u3000", max_size=8), st.text(max_size=6)
)
tidy_texts = texts.filter(
    lambda t: t and tidy(t) == t and t.isprintable() and "\\" not in t and t.lower() not in NO_VALUE
)
"""What the reader of tables leaves as it is: it takes away outer spaces, refuses control characters, knows words for
unknown values, and reads paths of Windows."""
RARELY = [HealthCheck.function_scoped_fixture]


def cells(data: bytes) -> list[str]:
    """What spreadsheets of several languages read, whose cells are set apart by a comma, a semicolon or a tab."""
    text = data.decode("utf-8", "surrogateescape")
    return [
        cell for sign in ",;\t" for row in csv.reader(io.StringIO(text, newline=""), delimiter=sign) for cell in row
    ]


def is_formula(cell: str) -> bool:
    return cell.startswith(tuple(TRIGGERS)) or cell.lstrip().startswith(tuple("=+-@"))


def nothing_runs(data: bytes) -> None:
    found = [cell for cell in cells(data) if is_formula(cell)]
    assert not found, (found, data)


@examples(500)
@given(texts)
def test_what_was_protected_is_restored(text: str) -> None:
    assert restore(protect(text)) == text
    if text[:1] in TRIGGERS and text:
        assert protect(text).startswith("'" + text[0])


@pytest.mark.parametrize("text", ["", "a", "a=b", "a-b", "COVID-19", "it's", "'a", "images/a, b.png", "0.5"])
def test_other_texts_are_left_alone(text: str) -> None:
    assert protect(text) == restore(text) == text


@examples(300)
@given(path=texts | st.binary(max_size=5).map(os.fsdecode), label=texts, reason=texts)
def test_no_cell_of_predict_is_a_formula_and_each_comes_back(path: str, label: str, reason: str) -> None:
    labels = LabelSet((f"{label}a", f"{label}b"))
    scored = row_of(path, _prediction(labels), labels)
    data = head_line("csv", labels, spreadsheet_safe=True)
    data += spreadsheet_line(scored) + spreadsheet_line(failed_row(path, reason, labels))
    nothing_runs(data)
    read = list(csv.DictReader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")))
    assert [restore(row["path"]) for row in read] == [path, path]
    assert restore(read[0]["label"]) == labels.names[0] and restore(read[0]["set"]) == "|".join(labels.names)
    assert restore(read[1]["error"]) == reason
    assert list(map(restore, read[0])) == [*scored, MARK] and read[0][MARK] == "true"


def _prediction(labels: LabelSet) -> Any:
    from thoraclip.bundle.runtime import Prediction

    first, second = labels.names
    return Prediction(first, {first: 0.75, second: 0.25}, (first, second), True, 0.4)


@examples(100, suppress_health_check=RARELY)
@given(ids=st.lists(tidy_texts, min_size=1, max_size=3, unique=True), label=tidy_texts, safe=st.booleans())
def test_no_cell_of_predictions_is_a_formula_and_each_comes_back(
    tmp_path: Path, ids: list[str], label: str, safe: bool
) -> None:
    """Without the option, too, they come back as they were."""
    n, file = len(ids), tmp_path / "p.csv"
    table = Predictions(
        labels=LabelSet((f"{label}a", f"{label}b")),
        image_id=tuple(ids),
        target=np.zeros(n, dtype=np.int64),
        scores=np.full((n, 2), 0.5),
        split=("test",) * n,
        fold=(None,) * n,
        patient=tuple(ids),
    )
    write_predictions(file, table, spreadsheet_safe=safe)
    if safe:
        nothing_runs(file.read_bytes())
    read = read_predictions(file)
    assert (read.labels, read.image_id, read.patient) == (table.labels, table.image_id, table.patient)


def test_json_lines_are_no_table_for_a_spreadsheet(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "no-such", "a.png", "--spreadsheet-safe", "--out", "a.jsonl"]) == 2
    told = "--spreadsheet-safe: is for csv, not jsonl; leave it out, or use --format csv"
    assert capsys.readouterr().err == f"error: {told}\n"


def test_parquet_is_no_table_for_a_spreadsheet(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="spreadsheet_safe is for CSV; leave it out, or end the name in .csv"):
        write_predictions(tmp_path / "p.parquet", None, spreadsheet_safe=True)  # type: ignore[arg-type]


@examples(50, suppress_health_check=RARELY)
@given(paths=st.lists(tidy_texts, min_size=1, max_size=3, unique=True))
def test_a_table_of_predict_is_read_as_a_list_of_paths_and_by_index(tmp_path: Path, paths: list[str]) -> None:
    file = tmp_path / "scores.csv"
    with Table(file, LABELS, "csv", fingerprint="f", spreadsheet_safe=True) as table:
        for path in paths:
            place = table.admit(path)
            if isinstance(place, int):
                table.put(place, failed_row(path, "why", LABELS) | {"label": "=a"})
        table.finish()
    read = list(PathTable(file))
    assert read and set(read) <= {os.path.join(tmp_path, path) for path in paths}  # noqa: PTH118
    if not any(".." in Path(path).parts or path.startswith("/") or path != path.strip() for path in paths):
        listing = find_csv(tmp_path, csv_file=file)
        assert {row["label"] for row in listing.rows} == {"=a"} and MARK not in listing.rows[0]
