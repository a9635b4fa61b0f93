"""`select --where`: against an oracle that reads one row at a time, and hostile text."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import Capture, examples

from thoraclip.cli.app import run
from thoraclip.errors import ConfigError, ManifestError, ThoraclipError
from thoraclip.tables.conditions import condition_truth
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest

VIEWS = ("PA", "AP", "left lateral")
Truth = bool | None
ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def tree() -> st.SearchStrategy[tuple[Any, ...]]:
    """Conditions as nested tuples."""
    views = st.lists(st.sampled_from(VIEWS), min_size=1, max_size=3)
    leaf = st.one_of(
        st.tuples(st.sampled_from(["in", "not in"]), views),
        st.tuples(st.sampled_from(["==", "=", "!="]), st.sampled_from(VIEWS)),
        st.tuples(st.sampled_from(["is null", "is not null"]), st.sampled_from(["view", "age_years"])),
        st.tuples(st.sampled_from(sorted(ORDER)), st.sampled_from([-1, 0, 17.5, 18, 80.1, 90]), st.booleans()),
    )
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.tuples(st.just("not"), inner), st.tuples(st.sampled_from(["and", "or"]), inner, inner)
        ),
        max_leaves=6,
    )


def text(node: tuple[Any, ...]) -> str:
    """The condition as a user types it."""
    kind, *rest = node
    if kind == "not":
        return f"not ({text(rest[0])})"
    if kind in ("and", "or"):
        return f"({text(rest[0])}) {kind} ({text(rest[1])})"
    if kind in ("in", "not in"):
        return f"view {kind} ({', '.join(map(quoted, rest[0]))},)"
    if kind in ("is null", "is not null"):
        return f"{rest[0]} {kind}"
    if kind in ORDER:
        number, is_turned = rest
        turned = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}[kind]
        return f"{number} {turned} age_years" if is_turned else f"age_years {kind} {number}"
    return f"view {kind} {quoted(rest[0])}"


def quoted(word: str) -> str:
    return word if word.isidentifier() else f'"{word}"'


def oracle(node: tuple[Any, ...], row: dict[str, Any]) -> Truth:
    """Three-valued logic, written out (Kleene 1952; SQL:1999, 8.12)."""
    kind, *rest = node
    if kind == "not":
        inner = oracle(rest[0], row)
        return None if inner is None else not inner
    if kind in ("and", "or"):
        both = [oracle(part, row) for part in rest]
        decides = kind == "or"
        if decides in both:
            return decides
        return None if None in both else not decides
    if kind in ("is null", "is not null"):
        return (row[rest[0]] is None) == (kind == "is null")
    if kind in ORDER:
        return None if row["age_years"] is None else ORDER[kind](row["age_years"], rest[0])
    if row["view"] is None:
        return None
    wanted = rest[0] if isinstance(rest[0], list) else [rest[0]]
    return (row["view"] in wanted) == (kind in ("in", "==", "="))


@given(tree(), st.lists(st.tuples(st.sampled_from([*VIEWS, None]), st.sampled_from([None, 0.0, 17.5, 18.0, 80.1]))))
@examples(400)
def test_a_condition_is_true_where_the_oracle_says_so(node: tuple[Any, ...], rows: list[tuple[Any, Any]]) -> None:
    rows = [*rows, *((view, 1.0) for view in VIEWS)]  # every value that may be named is held by some row
    table = pa.table(
        {"view": pa.array([r[0] for r in rows]), "age_years": pa.array([r[1] for r in rows], pa.float32())}
    )
    found = condition_truth(text(node), table).to_pylist()
    assert found == [oracle(node, {"view": view, "age_years": age}) for view, age in rows]


@given(st.text(max_size=80) | st.text("()[]{}'\"=<>!, \n#andorti1.-*:@PA", max_size=200))
@examples(400)
def test_any_other_text_is_refused_in_one_line(where: str) -> None:
    table = pa.table({"view": ["PA"], "age_years": pa.array([3.0], pa.float32())})
    try:
        condition_truth(where, table)
    except ThoraclipError as error:
        assert isinstance(error, ConfigError | ManifestError)
        assert len(str(error)) < 600


@pytest.mark.parametrize(
    ("where", "rule"),
    [
        ("", "0 characters"),
        ("not " * 497 + "view == PA", None),
        ("(" * 900 + "view == PA" + ")" * 900, "not a condition"),
        ("view == PA" * 300, "at most 2,000"),
        ("viwe == PA", "no column 'viwe'; did you mean 'view'"),
        ("view == XX", "no image whose view is 'XX'; known: AP, PA"),
        ("view in (PA, XX)", "no image whose view is 'XX'"),
        ("sex == M", "no image whose sex is 'M'; no image has a known sex"),
        ("view === PA", "--where 'view === PA': not a condition"),
        ("view > 3", "only numbers have an order"),
        ("age_years > PA", "only numbers have an order"),
        ("age_years == PA", "'PA' is not one"),
        ("fold == 1.5", "'1.5' is not one"),
        ("view != null", "write view is null"),
        ("view is PA", "write view is null, or view =="),
        ("label == COVID-19", "'COVID - 19' is not known there"),
        ("__import__('os').system('x')", "is not known there"),
        ("view == PA.upper()", "is not known there"),
        ("view == f'{1}'", "is not known there"),
        ("view", "is not known there"),
        ("1 < 2", "is not known there"),
        ("age_years < 1e999", None),
    ],
)
def test_what_does_not_fit_is_named(where: str, rule: str | None) -> None:
    table = pa.table(
        {
            "view": ["PA", "AP", None],
            "label": ["COVID-19", "a", "b"],
            "fold": pa.array([0, 1, 2], pa.int32()),
            "age_years": pa.array([3.0, None, 5.0], pa.float32()),
            "sex": pa.nulls(3, pa.string()),
        }
    )
    if rule is None:
        condition_truth(where, table)
    else:
        with pytest.raises(ThoraclipError, match="--where|manifest:") as caught:
            condition_truth(where, table)
        assert rule in str(caught.value)


def test_a_decimal_is_compared_as_the_column_holds_it() -> None:
    table = pa.table({"age_years": pa.array([80.1, 0.1, None], pa.float32())})
    assert condition_truth("age_years >= 80.1", table).to_pylist() == [True, False, None]
    assert condition_truth("age_years <= 0.1", table).to_pylist() == [False, True, None]


def test_text_that_holds_numbers_has_an_order() -> None:
    table = pa.table({"offset": ["3", None, "10"], "Finding Labels": ["a b", "c", "c"]})
    assert condition_truth("offset >= 3", table).to_pylist() == [True, None, True]
    assert condition_truth("offset >= 4 or 'Finding Labels' = \"a b\"", table).to_pylist() == [True, None, True]


def test_the_command_notes_what_was_asked(tmp_path: Path, capsys: Capture) -> None:
    rows = [
        {"image_id": f"i{k}", "path": f"{k}.png", "label": "ab"[k % 2], "age_years": a, "view": "PA"}
        for k, a in enumerate([10.0, 20.0, 30.0, None])
    ]
    (tmp_path / "1.png").write_bytes(b"")
    manifest = Manifest.from_rows(rows, tmp_path)
    write_manifest(tmp_path / "all.parquet", manifest)
    out = tmp_path / "adults.parquet"
    assert run(["select", str(tmp_path / "all.parquet"), "--where", "age_years >= 18", "--out", str(out)]) == 0
    assert "2 of 4 images left out, 1 of them since a value is unknown" in capsys.readouterr().err
    done = read_manifest(out)
    assert done.column("image_id") == ["i1", "i2"]
    first = {"where": "age_years >= 18", "images": 4, "unknown": 1, "kept": 2, "manifest": manifest.fingerprint}
    assert done.selections == (first,)
    again = done.select("view == PA").take(pa.array([0]).to_numpy())
    write_manifest(out, again.with_columns(source=["x"]))
    assert [done["where"] for done in read_manifest(out).selections] == ["age_years >= 18", "view == PA"]
    assert run(["card", str(out), "--out", str(tmp_path)]) == 0
    card = (tmp_path / "data-card.md").read_text(encoding="utf-8")
    assert "- Selected by: age\\_years &gt;= 18; 2 of 4 images, 1 left out since a value is unknown\n" in card
    assert run(["select", str(out), "--where", "age_years > 90", "--out", str(tmp_path / "none.parquet")]) == 2
    assert "no image is left by --where 'age_years > 90'" in capsys.readouterr().err
    assert not (tmp_path / "none.parquet").exists()
