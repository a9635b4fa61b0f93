"""Tables of text in any dialect and encoding are read back as they were written, or refused in one line."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.delimited import Row, TablePaths, number, read_delimited
from thoraclip.errors import ManifestError, ThoraclipError
from thoraclip.spelling import tidy

FAST = examples(100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
TABLE = [["path", "label", "age"], ["a/1.png", "COVID-19", "40"], ["b/2.png", "Normal", ""]]
WESTERN = "abcXYZ019 _-./éàöÖßñçÅ"


def write(folder: Path, content: bytes | str, encoding: str = "utf-8") -> Path:
    path = folder / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def read(path: Path) -> list[list[str]]:
    table = read_delimited(path)
    return [list(table.header), *([cell or "" for cell in row.cells.values()] for row in table)]


def refusal(path: Path) -> str:
    """What is said of a table that cannot be read: one line that begins with the file."""
    with pytest.raises(ThoraclipError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:") and len(message.splitlines()) == 1
    return message


# random tables


@st.composite
def tables(draw: st.DrawFn, alphabet: st.SearchStrategy[str] | str) -> list[list[str]]:
    """A header of different names and 1..5 rows that are not empty; no white space around any cell."""
    cell = st.text(alphabet, max_size=8).map(lambda text: tidy(text).strip("\ufeff\u200b\u2060"))
    header = draw(st.lists(cell.filter(bool), min_size=2, max_size=4, unique=True))
    row = st.lists(cell, min_size=len(header), max_size=len(header)).filter(any)
    return [header, *draw(st.lists(row, min_size=1, max_size=5))]


def written(rows: list[list[str]], **dialect: Any) -> str:
    stream = io.StringIO()
    csv.writer(stream, **dialect).writerows(rows)
    return stream.getvalue()


def by_hand(rows: list[list[str]], separator: str, end: str, seed: int) -> str:
    """As people's programs write: quotes at will, empty lines, empty cells after the last, no end of the last line."""
    rng = random.Random(seed)
    lines = []
    for row in rows:
        quoted = [
            f'"{cell.replace(chr(34), chr(34) * 2)}"' if set(cell) & {separator, '"', "\r", "\n"} or rng.random() < 0.3
            else rng.choice(["", " ", "\u00a0"]) * (separator not in " \u00a0") + cell + rng.choice(["", " ", "\u00a0"])
            for cell in row
        ]  # fmt: skip
        lines += [separator.join([*quoted, *[""] * rng.randrange(3)])] + [separator * rng.randrange(5)] * (
            rng.random() < 0.2
        )
    return end.join(lines) + end * rng.randrange(3)


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
SEPARATORS, ENDS = [",", ";", "\t", "|"], ["\n", "\r\n", "\r"]


@FAST
@given(st.data(), st.sampled_from(SEPARATORS), st.sampled_from(ENDS), st.sampled_from(ENCODINGS), st.integers(0, 999))
def test_any_text_is_read_as_it_was_written_or_refused(
    tmp_path: Path, data: st.DataObject, separator: str, end: str, encoding: str, seed: int
) -> None:
    """Cells may hold separators, quotes, line breaks and any letters; only two separators that fit are a question."""
    rows = data.draw(tables(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(",;|\t\"'\n\r =éa")))
    assume(not all(name.startswith("'") and name.endswith("'") for name in rows[0]))
    assume(not rows[0][0].lower().startswith("sep="))
    dialect = {"delimiter": separator, "lineterminator": end}
    quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    for text in (written(rows, **dialect, quoting=quoting), by_hand(rows, separator, end, seed)):
        path = write(tmp_path, text, encoding)
        try:
            assert read(path) == rows
        except ManifestError as error:
            assert "cells may be separated by" in str(error)
        named = write(tmp_path, f"sep={separator}{end}{text}", encoding)
        assert read(named) == rows


@FAST
@given(st.data(), st.sampled_from(SEPARATORS), st.sampled_from(ENDS), st.integers(0, 999))
def test_words_and_numbers_are_read_in_every_dialect(
    tmp_path: Path, data: st.DataObject, separator: str, end: str, seed: int
) -> None:
    """No question, no refusal: UTF-16 without a mark and Windows-1252 too."""
    encoding = data.draw(st.sampled_from([*ENCODINGS, "utf-16-le", "utf-16-be", "cp1252"]))
    letters = st.characters(codec="ascii", categories=["Lu", "Ll", "Nd"]) | st.sampled_from("_-./\\ ")
    rows = data.draw(tables(letters))
    if encoding == "cp1252":
        rows[1][0] = data.draw(st.sampled_from(["Pneumonie à virus", "Größe", "Señor"]))
    path = write(tmp_path, by_hand(rows, separator, end, seed).replace("\u00a0", " "), encoding)
    assert read(path) == rows
    assert bool(read_delimited(path).notes) == (encoding == "cp1252")


@FAST
@given(st.data(), st.integers(0, 2**32))
def test_damage_gives_one_line_and_never_another_error(tmp_path: Path, data: st.DataObject, seed: int) -> None:
    rng = random.Random(seed)
    encoding = data.draw(st.sampled_from([*ENCODINGS, "utf-16-le", "cp1252"]))
    content = bytearray(by_hand(TABLE * 3, data.draw(st.sampled_from(SEPARATORS)), "\r\n", seed).encode(encoding))
    for _ in range(data.draw(st.integers(1, 8))):
        place = rng.randrange(len(content) + 1)
        content[place : place + rng.randrange(5)] = rng.choice([b"", b'"', b"\0", b"\xff", b"\r", rng.randbytes(3)])
    path = write(tmp_path, bytes(content))
    try:
        read(path)
    except ThoraclipError as error:
        assert str(error).startswith(f"{path}:") and len(str(error).splitlines()) == 1


# what is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": the file is empty"),
        (b"\n\r\n,,\n", ": the file is empty"),
        (b"path,label\na,b\0\n", ":2: not text (control character 0x00)"),
        (b"path,label\r\na,b\r\rc,\x01\n", ":4: not text (control character 0x01)"),
        (b"path,label\na,\xe9\n" + "b,é\n".encode(), ":2: not UTF-8 (byte 0xe9), but other bytes are"),
        (b"path,label\na,\x81\n", ":2: not UTF-8 (byte 0x81); in Windows-1252, line 2: not Windows-1252 (byte 0x81)"),
        ("path,label\na,норма\n".encode("cp1251"), ":2: no Western text"),
        (b"\xef\xbb\xbfpath,label\na,\xe9\n", ":2: not UTF-8 (byte 0xe9); save"),
        ("path,label\na,b\n".encode("utf-16")[:-1], ":2: not UTF-16"),
        (b"PK\x03\x04rest", ": holds an Excel workbook or ZIP archive, not CSV"),
        (b'[\n {"path": "a", "label": "b"}\n]', ": holds JSON, not CSV; save the table again as CSV"),
        (b'\xef\xbb\xbf{"path": ["a"]}', ": holds JSON, not CSV"),
        (b"<!DOCTYPE html><table>", ": holds HTML or XML, not CSV"),
        ("path,label\na,Lungenentzündung\n".encode("mac_roman"), ":2: not UTF-8 (byte 0x9f); in Windows-1252, line 2: no Western"),
        ("path,label\na,größer\n".encode("cp850"), ":2: not UTF-8 (byte 0x94); in Windows-1252, line 2: no Western text"),
        (b'"path","label"\n"1","a","b"\n', "from 'b' on; put quotes around cells that hold the separator, and a name"),
        (b'path,label\n"a,b\nc,d\n', ":2: a quote is opened and never closed"),
        (b'path,label\n\n"a"x,b\n', ":3: text stands after a closed quote"),
        (b'path,label\n"' + b"a" * 200_000 + b'",b\n', ":2: a cell of more than 131072 characters"),
        (b'path,label\n"' + b"a" * 3_000_000 + b'",b\n', ":2: a line of more than 1048576 characters, '\"aaa"),
        (b"path" + b"," * 20_000 + b"x\n", ":1: 20001 columns; 16384 are the most"),
        (b"path,label,path \na,b,c\n", ":1: column 'path' stands there twice (columns 1 and 3)"),
        (b"path,label\na,b\nc,d,e\n", ":3: more cells than columns (3 in 2), from 'e' on"),
        (b"'path','label'\n'a','b'\n", ":1: cells are quoted by '"),
        (b"path;x,label;y\na;b,c;d\n", ":1: cells may be separated by commas or semicolons; say which by a first line"),
    ],
)  # fmt: skip
def test_what_is_not_certain_is_refused_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refusal(write(tmp_path, content)).removeprefix(str(tmp_path / "t.csv")).replace(
        ":2: not UTF-8 (byte 0xed); in Windows-1252, line 2", ":2"
    )


def test_headers_are_found_by_case_and_rows_that_end_early_are_noted(tmp_path: Path) -> None:
    table = read_delimited(write(tmp_path, "\u00a0PATH ,Label,,age\n\na,\u200bb\ufeff\nc,d,e,f,,\n"))
    assert table.header == ("PATH", "Label", "column 3", "age")
    assert [table.column(name) for name in ("path", "label", "split")] == ["PATH", "Label", None]
    rows = list(table)
    first = {"PATH": "a", "Label": "b", "column 3": None, "age": None}
    assert rows[0] == Row(table.path, 3, first) and rows[1].line == 4
    assert table.notes == [f"{table.path}: 1 rows end early, first line 3; their last cells are unknown"]
    with pytest.raises(ManifestError, match="no column 'split'; known: Label, PATH, age, column 3; name it so"):
        table.need("split")
    for no_names in ("# made in 2020\npath,label\n", "path^label\n", "covid/1.png,covid\n", "a,1.5\n"):
        with pytest.raises(ManifestError, match="no column 'label'; .*; the first line must hold the names of the col"):
            read_delimited(write(tmp_path, no_names)).need("label")
    twice = read_delimited(write(tmp_path, "Path,PATH\na,b\n"))
    with pytest.raises(ManifestError, match=r"columns \['Path', 'PATH'\] could all be 'path'"):
        twice.column("path")


def test_western_text_is_noted_with_an_example(tmp_path: Path) -> None:
    table = read_delimited(write(tmp_path, "path,label\na,b\nc,à\n", "cp1252"))
    assert table.notes == [f"{table.path}: not UTF-8; read as Windows-1252, first line 3: c,à"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("40.5", 40.5), ("40,5", 40.5), ("-1e-3", -0.001), (".5", 0.5), ("5.", 5.0), ("1.000,5", None), ("x", None),
     ("nan", None), ("1_0", None), ("", None), ("٣", None)],
)  # fmt: skip
def test_numbers_have_either_decimal_sign(text: str, value: float | None) -> None:
    assert number(text) == value


def test_paths_of_other_machines_are_found_below_the_folder(tmp_path: Path) -> None:
    for name in ("set/covid/1.png", "set/é.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    paths = TablePaths(tmp_path)
    for text, path in {
        "set\\covid\\1.png": "set/covid/1.png",
        "C:\\data\\set\\covid\\1.png": "set/covid/1.png",
        "C:\\data\\set\\gone.png": "set/gone.png",  # below what the first one told
        "d:/x/y/set/covid/1.png": "set/covid/1.png",
        "\\\\server\\share\\set\\covid\\1.png": "set/covid/1.png",
        "set/e\u0301.png": "set/é.png",
        "gone\\1.png": "gone/1.png",
        "/abs/1.png": "/abs/1.png",
    }.items():
        assert paths(text, "t.csv:2") == path
    with pytest.raises(ManifestError, match=r"t\.csv:2: path 'E:\\other\.png' is of another machine, and no end of it"):
        paths("E:\\other.png", "t.csv:2")
    with pytest.raises(ManifestError, match=r"t\.csv:2: path 'a\\nb' holds a line break and no such file"):
        paths("a\nb", "t.csv:2")
