"""Rows that can be relied on: each picture once, in order, the same however the work was cut, killed and gone on with."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sqlite3
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.bundle.conftest import Workshop
from tests.bundle.fake_bundle import LABELS, FakeClassifier, prediction
from tests.conftest import examples
from tests.imaging.files import LOSSLESS, data_set, dicom, encoded, waves

from thoraclip.bundle import rows as rows_module
from thoraclip.bundle.images import ImagePaths, find_images
from thoraclip.bundle.opening import open_bundle
from thoraclip.bundle.rows import (
    FORMATS,
    Table,
    columns,
    csv_line,
    failed_row,
    head_line,
    json_line,
    row_of,
    table_format,
)
from thoraclip.bundle.runtime import Prediction
from thoraclip.bundle.scoring import ScoringSummary, require_one, score
from thoraclip.errors import ConfigError, ImageError, InputError, MismatchError
from thoraclip.imaging import decode
from thoraclip.labels import LabelSet

HEAD = ["path", "label", "score_COVID-19", "score_Non-COVID", "score_Normal", "set", "ood", "error"]


def fill(folder: Path, count: int = 12, *, bad: tuple[int, ...] = (2, 7)) -> Path:
    """`folder/00.png`, ...: bytes for the fake classifier, some of them damaged."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        (folder / f"{i:02d}.png").write_bytes(b"bad %d" % i if i in bad else b"%d" % i)
    return folder


def run(
    out: Path | io.BytesIO | None,
    *paths: str | Path,
    classifier: Any = None,
    kind: str = "csv",
    threads: int = 2,
    **options: Any,
) -> ScoringSummary:
    classifier = classifier or FakeClassifier()
    pictures = find_images(paths, **options)
    with Table(out, classifier.labels, kind, fingerprint=classifier.bundle.fingerprint) as table:
        return score(classifier, pictures, table, threads=threads)


def read_csv(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")))


def test_the_columns_of_both_formats() -> None:
    scores = {"COVID-19": 2 / 3, "Non-COVID": 1 / 3 - 1e-7, "Normal": 1e-7}
    found = row_of("a,b.png", Prediction("COVID-19", scores, ("COVID-19", "Normal"), True, 0.4), LABELS)
    bare = row_of("c.png", Prediction("COVID-19", scores, None, None, None), LABELS)
    failed = failed_row("d.png", "damaged, it is", LABELS)
    assert list(columns(LABELS)) == HEAD == list(found) == list(bare) == list(failed)
    assert head_line("csv", LABELS).decode() == ",".join(HEAD) + "\n"
    assert head_line("jsonl", LABELS) == b""
    assert csv_line(found).decode() == '"a,b.png",COVID-19,0.666667,0.333333,0.000000,COVID-19|Normal,true,\n'
    assert csv_line(bare).decode() == "c.png,COVID-19,0.666667,0.333333,0.000000,,,\n"
    assert csv_line(failed).decode() == 'd.png,,,,,,,"damaged, it is"\n'
    assert json.loads(json_line(found)) == {
        "path": "a,b.png", "label": "COVID-19", "score_COVID-19": 0.666667, "score_Non-COVID": 0.333333, "score_Normal": 0.0,
        "set": ["COVID-19", "Normal"], "ood": True, "error": None,
    }  # fmt: skip
    assert json.loads(json_line(failed)) == dict.fromkeys(HEAD) | {"path": "d.png", "error": "damaged, it is"}
    empty = row_of("e.png", Prediction("COVID-19", scores, (), False, 0.1), LABELS)
    assert (json.loads(json_line(empty))["set"], json.loads(json_line(bare))["set"]) == ([], None)


@examples(100)
@given(
    name=st.binary(min_size=1).map(os.fsdecode) | st.text(alphabet="\r\n,\";é \t|'", min_size=1),
    label=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip),
)
def test_any_name_comes_back_from_either_format(name: str, label: str) -> None:
    labels = LabelSet((label, label + "2"))
    row = failed_row(name, "why", labels) | {"label": label}
    assert json.loads(json_line(row)) == row
    assert json_line(row).count(b"\n") == 1
    table = head_line("csv", labels) + csv_line(row)
    assert [(r["path"], r["label"], r["error"]) for r in read_csv(table)] == [(name, label, "why")]


@pytest.mark.parametrize(
    ("asked", "out", "answer"),
    [
        ("", None, "csv"),
        ("", "x.csv", "csv"),
        ("", Path("x.dat"), "csv"),
        ("", "x.JSONL", "jsonl"),
        ("jsonl", "x.csv", "jsonl"),
        ("jsonl", io.BytesIO(), "jsonl"),
        ("csv", "x.parquet", "csv"),
        ("jsnl", None, "--format: unknown format 'jsnl'; did you mean 'jsonl'?"),
        ("", "x.parquet", "x.parquet: the table is CSV or JSON lines; end its name in .csv or .jsonl"),
    ],
)
def test_the_format_is_what_was_asked_for_else_what_the_name_says(asked: str, out: Any, answer: str) -> None:
    try:
        assert table_format(asked, out) == answer
    except ConfigError as error:
        assert str(error) == answer


def test_every_picture_gets_its_row_in_order_however_many_threads_and_pictures_at_once(tmp_path: Path) -> None:
    folder, out = fill(tmp_path / "in", 40), tmp_path / "t.csv"
    found = {f"{folder}/{i:02d}.png": prediction(b"%d" % i) for i in range(40)}
    failed = {f"{folder}/{i:02d}.png": f"damaged picture (bad {i})" for i in (2, 7)}
    rows = [
        failed_row(path, failed[path], LABELS) if path in failed else row_of(path, one, LABELS)
        for path, one in found.items()
    ]
    for threads, together, kind in ((1, 1, "csv"), (3, 1, "jsonl"), (3, 4, "csv")):
        summary = run(out, folder, kind=kind, threads=threads, classifier=FakeClassifier(together=together))
        assert out.read_bytes() == head_line(kind, LABELS) + b"".join(map(FORMATS[kind], rows))
        assert (summary.images, summary.failed, summary.resumed, summary.repeated) == (40, 2, 0, 0)
        assert summary.flagged == sum(one.ood for path, one in found.items() if path not in failed) > 0  # type: ignore[misc]
        assert summary.first_failed == list(failed.items())
        assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "t.csv"]
        stream = io.BytesIO()
        assert summary.rows is run(stream, folder, kind=kind).rows is None
        assert stream.getvalue() == out.read_bytes()
    assert run(None, folder).rows == rows


def test_a_stream_is_written_row_by_row_and_progress_copes_with_what_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a list the number of pictures is known at its end."""
    folder = fill(tmp_path / "in", 5)
    (folder / "README").write_text("text")
    listed = io.BytesIO("".join(f"{folder}/{i:02d}.png\n" for i in range(5)).encode())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=listed))
    for pictures, totals, dones in (
        (find_images([folder, folder / "00.png"]), [7] * 5, None),
        (find_images(["-"]), [0] * 5 + [5], [1, 2, 3, 4, 5, 5]),
    ):
        stream, seen = io.BytesIO(), []

        def note(done: int, total: int, stream: io.BytesIO = stream, seen: list[Any] = seen) -> None:
            seen.append((done, total, stream.getvalue().count(b"\n")))

        with Table(stream, LABELS, "jsonl", fingerprint="f") as table:
            score(FakeClassifier(), pictures, table, threads=1, progress=note)
        done, total, rows = (list(one) for one in zip(*seen, strict=True))
        assert rows[:5] == [1, 2, 3, 4, 5] and total == totals
        assert done == (dones or sorted(done)) and done[-1] == total[-1]


def test_a_picture_that_is_named_twice_is_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "in", 3, bad=())
    (tmp_path / "link").symlink_to(folder)
    (folder / "03.png").symlink_to(folder / "00.png")
    monkeypatch.chdir(tmp_path)
    again = ["in", "./in/01.png", f"{folder}/02.png", "in/../in//00.png", "link/01.png"]
    for out in (tmp_path / "t.csv", io.BytesIO(), None):
        classifier = FakeClassifier()
        summary = run(out, *again, classifier=classifier)
        assert (summary.images, summary.repeated) == (4, 4)
        assert sorted(classifier.asked) == [f"in/0{i}.png" for i in range(4)], "two links are two pictures"
    assert [row["path"] for row in read_csv((tmp_path / "t.csv").read_bytes())] == [f"in/0{i}.png" for i in range(4)]


def test_what_cannot_be_read_is_a_row_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    whole, packed = encoded(Image.fromarray(grey)), LOSSLESS["RLE"](data_set(waves(12), bits=12))
    remedy = "is not installed; mend it with: pip install 'thoraclip[dicom]'"
    contents = {
        "good.png": (whole, None),
        "good.dcm": (dicom(grey), None),
        "text.png": (b"text", "not a PNG, JPEG or DICOM picture"),
        "empty.png": (b"", "the file is empty"),
        "torn.png": (whole[: len(whole) // 2], "damaged picture (image file is truncated)"),
        "rle.dcm": (packed, f"'a decoder for RLE Lossless' {remedy}"),
    }
    monkeypatch.setattr("thoraclip.imaging.dicom._PLUGINS", ())
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    expected = {name: told for name, (_, told) in contents.items()} | {
        "folder": "cannot be read (not a regular file)",
        "pipe.png": "cannot be read (not a regular file)",
        "gone.png": "cannot be read (No such file or directory)",
        "x" * 300: "cannot be read (File name too long)",
        "nul\0/byte": "no file's name holds a NUL byte",
    }
    decoder = FakeClassifier(read=lambda source: decode(source).pixels.tobytes())
    paths = [f"{tmp_path}/{name}" for name in expected]
    with Table(None, LABELS, "csv", fingerprint="f") as table:
        rows = score(decoder, ImagePaths([], table=paths), table, threads=2).rows or []
    assert [(row["path"], row["error"]) for row in rows] == list(zip(paths, expected.values(), strict=True))


def test_a_bundle_that_takes_some_at_once_says_the_same_picture_by_picture(workshop: Workshop, tmp_path: Path) -> None:
    """A damaged one among them moves no other."""
    opened, paths = open_bundle(workshop.bundle("probe", int8=True)), workshop.manifest.paths()[::5]
    (bad := tmp_path / "bad.png").write_bytes(b"text")
    rows = run(None, *paths[:5], bad, *paths[5:], classifier=opened, threads=4).rows or []
    assert opened.together > 1 and rows.pop(5)["error"] == "not a PNG, JPEG or DICOM picture"
    assert rows == [row_of(str(path), opened.classify(path), opened.labels) for path in paths]


def test_a_fault_of_ours_is_no_row(tmp_path: Path) -> None:
    folder, broken = fill(tmp_path / "in"), FakeClassifier(fails={"09.png": ZeroDivisionError()})
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "t.csv", folder, classifier=broken, threads=1)
    assert not (tmp_path / "t.csv").exists()
    assert len(kept_rows(tmp_path / "t.csv.partial")) == 9, "what was done is kept"


def test_only_ten_reasons_are_kept_and_not_one_picture_is_an_error_with_the_table_there(tmp_path: Path) -> None:
    summary = run(None, fill(tmp_path / "in", 13, bad=tuple(range(12))))
    assert (summary.failed, len(summary.first_failed)) == (12, 10)
    require_one(summary, None)
    summary = run(tmp_path / "t.csv", fill(tmp_path / "none", 3, bad=(0, 1, 2)))
    assert len(read_csv((tmp_path / "t.csv").read_bytes())) == 3
    assert summary.flagged is None
    message = r"t\.csv: not one of 3 pictures can be read, first .*00\.png: damaged picture \(bad 0\)"
    with pytest.raises(InputError, match=message):
        require_one(summary, tmp_path / "t.csv")
    with pytest.raises(ConfigError, match="threads = -1: 1 or more are needed, or 0"):
        run(None, tmp_path / "in", threads=-1)


class Killed(BaseException):
    """No handler of the package sees it coming."""


def killed(_: object) -> Any:
    raise Killed


def kept_rows(partial: Path) -> list[dict[str, Any]]:
    """The rows that are safe in a partial table, which another process may be writing."""
    with closing(sqlite3.connect(f"file:{partial}?immutable=1", uri=True)) as table:
        return [json.loads(row) for (row,) in table.execute("SELECT row FROM rows")]


@pytest.mark.parametrize("seconds", [0, 1e9])
def test_killed_anywhere_the_command_ends_with_the_same_bytes(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands on the disk at any row, with every row committed and with the first alone; again and again."""
    monkeypatch.setattr(rows_module, "_SECONDS_BETWEEN_COMMITS", seconds)
    folder = fill(tmp_path / "in")
    for name in ('comma, "quote"\n.png', os.fsdecode(b"caf\xe9.png")):
        (folder / name).write_bytes(b"more")
    for kind in ("csv", "jsonl"):
        assert run(tmp_path / kind, folder, kind=kind).not_utf8 == 1
    rows = [json.loads(line) for line in (tmp_path / "jsonl").read_bytes().splitlines()]
    assert [Path(row["path"]) for row in rows] == sorted(folder.iterdir()), "names of any bytes reach the table"
    good = {row["path"] for row in rows if row["error"] is None}
    snapshots, put = list[Path](), Table.put

    def noted(self: Table, place: int, row: Any) -> None:
        put(self, place, row)
        snapshots.append(tmp_path / f"killed-{len(snapshots)}")
        snapshots[-1].mkdir()
        for file in tmp_path.glob("t.partial*"):
            shutil.copy(file, snapshots[-1])

    with monkeypatch.context() as patch:
        patch.setattr(Table, "put", noted)
        run(tmp_path / "t", folder, threads=1)
    assert len(snapshots) == 14
    for number, snapshot in enumerate(snapshots):
        out, kind = snapshot / "t", ("csv", "jsonl")[number % 2]
        half_done(out, folder, until="07.png")  # killed once more, at one that is tried again
        safe = good & {row["path"] for row in rows[: max(7, number + 1 if seconds == 0 else 1)]}
        assert safe == {row["path"] for row in kept_rows(snapshot / "t.partial")} & good
        classifier = FakeClassifier()
        summary = run(out, folder, classifier=classifier, kind=kind)
        assert out.read_bytes() == (tmp_path / kind).read_bytes()
        assert set(classifier.asked) == {row["path"] for row in rows} - safe
        assert (summary.images, summary.failed, summary.resumed) == (14, 2, len(safe))
        assert summary.flagged == sum(row["ood"] or False for row in rows)
        assert [file.name for file in snapshot.iterdir()] == ["t"]


def half_done(out: Path, *paths: str | Path, until: str) -> None:
    """Leave a partial table as a kill at a picture does."""
    with pytest.raises(Killed):
        run(out, *paths, classifier=FakeClassifier(fails={until: Killed()}), threads=1)


@pytest.mark.parametrize("theirs", [b"\x89PNG\r\n\x1a\n", b"path,label\na.png,Normal\n", b'{"mine": 1}', b"old"])
def test_a_file_that_is_no_table_of_ours_is_refused_and_stays(tmp_path: Path, theirs: bytes) -> None:
    folder, out = fill(tmp_path / "in"), tmp_path / "t.csv"
    out.write_bytes(theirs)
    with pytest.raises(InputError, match=r"t.csv: is in the way"):
        run(out, folder)
    assert out.read_bytes() == theirs
    assert not [*tmp_path.glob("*.partial")]
    out.write_bytes(b"")
    run(out, folder)
    before = out.read_bytes()
    run(out, folder)
    assert out.read_bytes() == before


def test_a_kill_while_it_is_written_leaves_the_old_table_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "in")
    run(tmp_path / "whole.csv", folder)
    (tmp_path / "t[1].csv").write_text("path,label,score_old")
    (tmp_path / ".t[1].csv.0123abcd.thoraclip-part").write_text("half")
    (tmp_path / ".t1.csv.0123abcd.thoraclip-part").write_text("of another table")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(rows_module, "FORMATS", {"csv": killed})
        run(tmp_path / "t[1].csv", folder)
    assert (tmp_path / "t[1].csv").read_text() == "path,label,score_old"
    classifier = FakeClassifier()
    run(tmp_path / "t[1].csv", folder, classifier=classifier)
    assert len(classifier.asked) == 2, "those that could not be read"
    assert (tmp_path / "t[1].csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {
        "in",
        "whole.csv",
        "t[1].csv",
        ".t1.csv.0123abcd.thoraclip-part",
    }


def test_the_table_follows_the_pictures_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files came, went, were mended, and were named in another way; nothing of another folder gets into the table."""
    folder, other = fill(tmp_path / "in"), fill(tmp_path / "other", 5)
    half_done(tmp_path / "t.csv", other, folder, until="10.png")
    (folder / "00.png").unlink()
    (folder / "01b.png").write_bytes(b"new")
    (folder / "02.png").write_bytes(b"mended")
    classifier = FakeClassifier()
    summary = run(tmp_path / "t.csv", folder, classifier=classifier)
    assert sorted(Path(path).name for path in classifier.asked) == ["01b.png", "02.png", "07.png", "10.png", "11.png"]
    assert summary.first_failed == [(f"{folder}/07.png", "damaged picture (bad 7)")]
    run(tmp_path / "whole.csv", folder)
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    half_done(tmp_path / "u.csv", folder, until="10.png")
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "u.csv", "in/11.png", "in")
    named = ["in/11.png", *(f"in/{file.name}" for file in sorted(folder.iterdir()) if file.name != "11.png")]
    assert [row["path"] for row in read_csv(Path("u.csv").read_bytes())] == named


def change(partial: Path, statement: str) -> None:
    with closing(sqlite3.connect(partial)) as table, table:
        table.execute(statement)


def test_a_pipe_in_the_place_of_a_partial_table_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv.partial")
    with pytest.raises(InputError, match=r"t\.csv\.partial: is not a regular file"):
        Table(tmp_path / "t.csv", LABELS, "csv", fingerprint="f")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            f"UPDATE depends SET value = '{'e' * 64}' WHERE name = 'bundle'",
            r"was begun with another bundle \(e{12}, now f{12}\); remove it to begin anew, or choose",
        ),
        ("UPDATE depends SET value = 99 WHERE name = 'schema'", r"was begun with another schema \(99, now 2\)"),
        ("UPDATE depends SET value = 1 WHERE name = 'decoding'", r"was begun with another decoding \(1, now \d+\)"),
        ("INSERT INTO depends VALUES ('more', 1)", r"was begun with another more \(1, now None\); remove"),
        (
            "UPDATE depends SET value = 'x' WHERE name = 'partial'",
            "is in the way, and no partial table of `thoraclip predict`; move it away",
        ),
        ("DROP TABLE depends", "is in the way, and no partial table"),
        (b"some text", "is in the way, and no partial table"),
        (
            b'{"partial":"thoraclip predict","schema":1,"bundle":"' + b"f" * 64 + b'"}\n',
            "was begun by an earlier version of thoraclip; end it with that, or remove it to begin anew",
        ),
        (None, r"is damaged \(.*\); remove it to begin anew, or choose another --out"),
    ],
)
def test_another_partial_table_is_refused_and_kept(changed: str | bytes | None, message: str, tmp_path: Path) -> None:
    folder, partial = fill(tmp_path / "in"), tmp_path / "t.csv.partial"
    half_done(tmp_path / "t.csv", folder, until="05.png")
    if isinstance(changed, str):
        change(partial, changed)
    else:
        partial.write_bytes(partial.read_bytes()[:-4096] if changed is None else changed)
    before, classifier = partial.read_bytes(), FakeClassifier()
    with pytest.raises(MismatchError, match=rf"t\.csv\.partial: {message}"):
        run(tmp_path / "t.csv", folder, classifier=classifier)
    assert partial.read_bytes() == before
    assert classifier.asked == []


def test_two_at_once_do_not_write_the_same_table(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in")
    half_done(tmp_path / "t.csv", folder, until="05.png")
    message = r"t\.csv\.partial: another process is writing it; wait for its end, or choose"
    with Table(tmp_path / "t.csv", LABELS, "csv", fingerprint="f" * 64) as table:
        for path in ("other.png", "another.png"):  # the lock outlives a commit
            with pytest.raises(InputError, match=message):
                run(tmp_path / "t.csv", folder)
            table.put(table.admit(path), failed_row(path, "why", LABELS))
    run(tmp_path / "t.csv", folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "folder: is a folder, and a file is to be written; choose another --out"),
        ("file/t.csv", r"file: cannot be written \(.*file is a file, not a folder\)"),
        ("x" * 250, r"cannot be written \(File name too long\); choose another --out"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_any_work(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    classifier = FakeClassifier()
    with pytest.raises(InputError, match=message):
        run(tmp_path / name, fill(tmp_path / "in"), classifier=classifier)
    assert classifier.asked == []


def test_folders_above_the_table_are_made_and_a_run_without_a_row_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    with pytest.raises(InputError, match="no path in the list"):
        run(tmp_path / "a" / "b" / "t.csv", "-")
    assert list((tmp_path / "a" / "b").iterdir()) == []


class Archive:
    """3,000 paths that are nowhere."""

    def __len__(self) -> int:
        return 3_000

    def __iter__(self) -> Iterator[str]:
        return (f"/archive/patient-{i // 10:06d}/study-{i % 10}/image.dcm" for i in range(3_000))


class Instant(FakeClassifier):
    """Every tenth picture cannot be read; nothing is kept."""

    def classify_each(self, sources: Any, depths: object = None) -> list[Prediction | ImageError]:
        scores = {"COVID-19": 0.25, "Non-COVID": 0.25, "Normal": 0.5}
        good = Prediction("Normal", scores, ("Normal",), False, 0.1)
        return [ImageError(f"{one}: damaged") if one.parent.name.endswith("7") else good for one in sources]


@pytest.mark.parametrize("is_file", [True, False])
def test_memory_grows_by_a_few_bytes_a_picture(is_file: bool, tmp_path: Path) -> None:
    """A row held, or a path, or a reason, would be hundreds; the table of keys doubles at times."""
    sizes: dict[int, int] = {}

    def weigh(done: int, _: int) -> None:
        if done in (750, 3_000):
            sizes[done] = tracemalloc.get_traced_memory()[0]

    pictures = ImagePaths([], table=Archive())
    out: Any = tmp_path / "t.csv" if is_file else (tmp_path / "s").open("wb")
    tracemalloc.start()
    try:
        with Table(out, LABELS, "csv", fingerprint="f") as table:
            summary = score(Instant(), pictures, table, threads=2, progress=weigh)
    finally:
        tracemalloc.stop()
    assert (summary.images, summary.failed) == (3_000, 300)
    assert (sizes[3_000] - sizes[750]) / 2_250 < 90
