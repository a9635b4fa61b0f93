"""Predictions: anyone's table is read as it is, or refused with the row and the value."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.delimited import UNKNOWN
from thoraclip.errors import InputError, ManifestError
from thoraclip.labels import LabelSet
from thoraclip.spelling import tidy
from thoraclip.tables.predictions import Predictions, read_predictions, write_predictions
from thoraclip.tables.store import write_table


def table(scores: Any = ((0.7, 0.3), (0.2, 0.8), (0.5, 0.5)), **other: Any) -> Predictions:
    n = len(scores)
    values: dict[str, Any] = {
        "labels": LabelSet(("a", "b")),
        "image_id": tuple(f"i{k}" for k in range(n)),
        "target": np.array([0, 1, -1][:n], dtype=np.int64),
        "scores": np.array(scores, dtype=np.float64),
        "split": (None,) * n,
        "fold": (None,) * n,
        "patient": (None,) * n,
    }
    return Predictions(**(values | other))


def equal(a: Predictions, b: Predictions) -> bool:
    same = all(getattr(a, n) == getattr(b, n) for n in ("labels", "image_id", "split", "fold", "patient"))
    return same and np.array_equal(a.target, b.target) and np.array_equal(a.scores, b.scores)


words = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=8).filter(
    lambda w: w == tidy(w) and w.lower() not in UNKNOWN
)
"""Names; CSV cannot tell the name 'NA' from an unknown value, and its cells are tidied."""


@st.composite
def predictions(draw: st.DrawFn) -> Predictions:
    names = draw(st.lists(words, min_size=2, max_size=4, unique=True))
    ids = draw(st.lists(words, min_size=1, max_size=6, unique=True))
    n, c = len(ids), len(names)
    raw = np.array(draw(st.lists(st.lists(st.floats(0.01, 1), min_size=c, max_size=c), min_size=n, max_size=n)))

    def column(values: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(st.lists(st.none() | values, min_size=n, max_size=n)))

    return Predictions(
        labels=LabelSet(tuple(names)),
        image_id=tuple(ids),
        target=np.array(draw(st.lists(st.integers(-1, c - 1), min_size=n, max_size=n)), dtype=np.int64),
        scores=raw / raw.sum(axis=1, keepdims=True),
        split=column(st.sampled_from(["train", "val", "test"])),
        fold=column(st.integers(0, 9)),
        patient=column(words),
    )


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=predictions())
def test_what_is_written_is_read_exactly(tmp_path: Path, ending: str, written: Predictions) -> None:
    path = tmp_path / f"p{ending}"
    write_predictions(path, written)
    assert equal(read_predictions(path), written)


def test_the_file_has_the_promised_columns_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        write_predictions(tmp_path / name, table())
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pq.read_table(tmp_path / "a.parquet").column_names == [
        "image_id", "split", "fold", "label", "score_a", "score_b", "patient",
    ]  # fmt: skip


def test_a_folder_stands_for_its_predictions(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.parquet", table())
    assert equal(read_predictions(tmp_path), table())


def from_csv(folder: Path, text: str) -> Predictions:
    (folder / "p.csv").write_text(text, encoding="utf-8")
    return read_predictions(folder / "p.csv")


def test_anyones_csv_in_any_column_order(tmp_path: Path) -> None:
    text = "\ufeffscore_Normal,model,label,score_COVID-19,image_id,patient\n0.25,x,Normal,0.75,001,007\n1,x,,0,1e5,\n"
    found = from_csv(tmp_path, text)
    assert found.labels.names == ("Normal", "COVID-19")
    assert found.image_id == ("001", "1e5") and found.patient == ("007", None)
    assert found.target.tolist() == [0, -1] and found.split == found.fold == (None, None)
    np.testing.assert_array_equal(found.scores, [[0.25, 0.75], [1, 0]])


def test_a_class_may_have_the_name_of_an_unknown_value(tmp_path: Path) -> None:
    text = "image_id,label,score_NA,score_-,patient\n1,NA,1,0,-\n2,-,0,1,p\n3,nan,0,1,NA\n"
    found = from_csv(tmp_path, text)
    assert found.target.tolist() == [0, 1, -1] and found.patient == (None, "p", None)


def test_splits_have_the_words_of_tables(tmp_path: Path) -> None:
    rows = "".join(f"{i},a,{word},0,1\n" for i, word in enumerate(["Train", "valid", "TEST", "holdout", ""]))
    found = from_csv(tmp_path, f"image_id,label,split,score_a,score_b\n{rows}")
    assert found.split == ("train", "val", "test", "holdout", None)


def test_scores_with_four_decimals_pass(tmp_path: Path) -> None:
    assert len(from_csv(tmp_path, "image_id,label,score_a,score_b,score_c\n1,a,0.333,0.333,0.3335\n")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,score_a,score_b\na,0.5,0.5\n", "column 'image_id' is missing; found: label, score_a, score_b"),
        ("image_id,score_a,score_b\n1,0.5,0.5\n", "column 'label' is missing"),
        (
            "image_id,label\n1,a\n",
            "needs a column score_<class> for two classes or more; found: image_id, label",
        ),
        ("image_id,label,score_a\n1,a,1\n", "needs a column score_<class>"),
        ("image_id,label,score_a,score_b\n1,c,0.5,0.5\n", "class 'c' stands in 'label' but has no column 'score_c'"),
        ("image_id,label,score_a,score_b\n1,a,0,1\n2,a,0.5,0.4\n", "image '2': scores sum to 0.9, not 1 (1 such rows)"),
        ("image_id,label,score_a,score_b\n1,a,0.5,0.5012\n", "image '1': scores sum to 1.001, not 1 (1 such rows)"),
        ("image_id,label,score_a,score_b\n1,a,0,1\n2,a,2.5,-1.5\n", "image '2': a score is negative (1 such rows)"),
        ("image_id,label,score_a,score_b\n1,a,0.5,0.5\n2,a,,1\n", "image '2': a score is missing or not finite"),
        ("image_id,label,score_a,score_b\n1,a,nan,0.5\n", "image '1': a score is missing or not finite"),
        ("image_id,label,score_a,score_b\n1,a,inf,0.5\n", "image '1': a score is missing or not finite"),
        ("image_id,label,score_a,score_b\n1,a,high,0.5\n", "column 'score_a' holds a value that is not a number"),
        ("image_id,label,score_a,score_b\n7,a,0.5,0.5\n7,b,0.5,0.5\n", ":3: image_id '7' is repeated from line 2"),
        ("image_id,label,score_a,score_b\n1,a,0.5,0.5\n,b,0.5,0.5\n", "row 2 has no image_id"),
        (
            "image_id,label,fold,score_a,score_b\n1,a,x,0.5,0.5\n",
            "column 'fold' holds string, not whole numbers ('x' is no number)",
        ),
        (
            "image_id,label,fold,score_a,score_b\n1,a,0.7,0.5,0.5\n",
            "column 'fold' holds string, not whole numbers (Float value 0.7",
        ),
        ("image_id,image_id,label,score_a,score_b\n1,1,a,0.5,0.5\n", "column 'image_id' stands there twice"),
        ("image_id,label,score_a,score_a\n1,a,0.5,0.5\n", "column 'score_a' stands there twice"),
        ("image_id,label,score_a,score_b\n", "no rows"),
        ("", "the file is empty"),
        ("image_id,label,score_a,score_b\n1,a,0.5\n", ":2: the row ends before column 'score_b'"),
        ("image_id,label,score_a,score_b\n1,A,0,1\n", "has no column 'score_A'; write 'a' there, or add it"),
    ],
)
def test_a_wrong_csv_is_refused_with_the_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        from_csv(tmp_path, text)
    assert re.match(rf"{re.escape(str(tmp_path / 'p.csv'))}(:\d+)?: ", str(caught.value))
    assert message in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: no such predictions file"):
        read_predictions(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"none\.parquet: no such predictions file"):
        read_predictions(tmp_path / "none.parquet")
    with pytest.raises(InputError, match="none: no such predictions file; name an existing one .*, or a run folder"):
        read_predictions(tmp_path / "none")
    (tmp_path / "p.xlsx").touch()
    with pytest.raises(InputError, match=r"p\.xlsx: predictions end in \.parquet or \.csv"):
        read_predictions(tmp_path / "p.xlsx")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(ManifestError, match=r"text\.parquet: not a readable Parquet file"):
        read_predictions(tmp_path / "text.parquet")


def test_another_kind_of_table_and_a_newer_schema_are_refused(tmp_path: Path) -> None:
    plain = pa.table({"image_id": ["1"]})
    write_table(tmp_path / "m.parquet", plain, kind="manifest", schema=1)
    with pytest.raises(ManifestError, match="holds manifest, not predictions"):
        read_predictions(tmp_path / "m.parquet")
    write_table(tmp_path / "n.parquet", plain, kind="predictions", schema=99)
    with pytest.raises(ManifestError, match="schema 99 is newer than 1; upgrade thoraclip"):
        read_predictions(tmp_path / "n.parquet")
    pq.write_table(plain, tmp_path / "o.parquet")
    with pytest.raises(ManifestError, match="column 'label' is missing"):
        read_predictions(tmp_path / "o.parquet")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"split": (None,)}, "1 values of 'split' for 3 images"),
        ({"target": np.zeros(2, np.int64)}, "2 values of 'target' for 3 images"),
        ({"scores": np.ones((3, 1))}, r"scores of shape \(3, 1\), expected \(3, 2\)"),
        ({"image_id": ("i", "i", "j")}, "image_id 'i' is repeated"),
    ],
)
def test_a_table_in_memory_passes_the_same_gate(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        table(**other)


def test_judged_are_the_labelled_rows_of_the_test_split() -> None:
    scores = [[0.5, 0.5]] * 4
    rows = table(scores, target=np.array([0, 1, -1, 1]), split=("test", "train", "test", "test"))
    assert rows.judged().image_id == ("i0", "i3")
    assert replace(rows, split=(None,) * 4).judged().image_id == ("i0", "i1", "i3")
    assert replace(rows, split=("test", None, None, None)).judged().image_id == ("i0",)
    with pytest.raises(ManifestError, match="no labelled row in split 'test'"):
        replace(rows, split=("train", "val", "test", None)).judged()


def test_take_keeps_rows_together() -> None:
    rows = table(patient=("p", "q", "r"), fold=(0, 1, 2), split=("train", "val", "test"))
    taken = rows.take(np.array([2, 0]))
    assert (taken.image_id, taken.patient, taken.fold, taken.split) == (
        ("i2", "i0"),
        ("r", "p"),
        (2, 0),
        ("test", "train"),
    )
    np.testing.assert_array_equal(taken.scores, rows.scores[[2, 0]])
    np.testing.assert_array_equal(taken.target, [-1, 0])


def test_an_unknown_patient_is_a_group_of_its_own() -> None:
    scores = [[0.5, 0.5]] * 5
    rows = table(scores, target=np.zeros(5, np.int64), patient=("x", None, "x", None, "i1"))
    assert rows.groups().tolist() == [0, 1, 0, 2, 3]


def test_unknown_patients_are_filled_in_by_id_and_known_ones_kept() -> None:
    filled = table(patient=("x", None, None)).with_patients({"i2": "z", "i0": "other", "i9": "q"})
    assert filled.patient == ("x", None, "z")


def test_a_run_that_has_not_ended_is_no_table(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.parquet", table())
    assert len(read_predictions(tmp_path)) == len(table())
    (tmp_path / "provenance.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="its run has not ended; run the same command again"):
        read_predictions(tmp_path)
    (tmp_path / "runs").mkdir()  # of a study, which has no such mark
    assert len(read_predictions(tmp_path)) == len(table())
    (tmp_path / "runs").rmdir()
    (tmp_path / "done.json").write_text("{}", encoding="utf-8")
    assert len(read_predictions(tmp_path)) == len(table())
