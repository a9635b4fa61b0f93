"""`thoraclip predict` as a user: tables, lists, pipes, kills, and every mistake in one line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tests.bundle.fake_bundle import pretend
from tests.bundle.test_scoring import HEAD, change, fill, kept_rows
from tests.cli.test_cli import refused
from tests.conftest import Capture, files, write_class_folder
from tests.forked import wait_for
from tests.small_install import run_small

import thoraclip
from thoraclip.bundle import opening
from thoraclip.cli.app import run

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "open_bundle", pretend)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "in")


def child(*arguments: str, seconds: float = 0.0, **streams: object) -> subprocess.Popen[bytes]:
    """The command in a process of its own, with a bundle that takes its time."""
    code = (
        "import functools, signal, sys\nfrom tests.bundle.fake_bundle import pretend\nfrom thoraclip.bundle import opening\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs are born deaf to it
        f"opening.open_bundle = functools.partial(pretend, seconds={seconds})\n"
        "from thoraclip.bundle import rows\nrows._SECONDS_BETWEEN_COMMITS = 0\n"
        "from thoraclip.cli.app import main\nmain(['predict', 'bundle', *sys.argv[1:]])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, **streams)  # type: ignore[call-overload,no-any-return]


def test_rows_go_to_standard_output_and_all_else_to_the_error_stream(folder: Path, capsys: Capture) -> None:
    (folder / "notes.txt").write_text("text")
    assert run(["predict", "bundle", str(folder), str(folder / "00.png")]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert captured.out.splitlines()[0] == ",".join(HEAD)
    assert [row["path"] for row in rows] == [f"{folder}/{i:02d}.png" for i in range(12)]
    flagged = sum(row["ood"] == "true" for row in rows)
    told = captured.err.splitlines()
    assert told[0].startswith("images: 13/13")
    assert told[1:] == [
        f"12 images, 2 cannot be read, {flagged} unlike the training images, 1 named again and passed over",
        "cannot be read: 2, each with its reason in the column error",
        f"  {folder}/02.png: damaged picture (bad 2)",
        f"  {folder}/07.png: damaged picture (bad 7)",
        f"left out: files that are no pictures: 1, first {folder}/notes.txt",
        "Research use only, not for diagnosis.",
    ]


def test_a_terminal_shows_names_as_escapes_and_a_pipe_gets_their_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    name = os.fsencode(folder / "00.png").replace(b"00", b"a\x1b[2J\xff")
    (folder / "00.png").rename(os.fsdecode(name))
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal)
        assert run(["predict", "bundle", str(folder)]) == 0
        head, *rows = capfdbinary.readouterr().out.removesuffix(b"\n").split(b"\n")
        assert head == ",".join(HEAD).encode() and len(rows) == 12
        shown = name.replace(b"\x1b", b"\\x1b").replace(b"\xff", b"\\udcff") if is_terminal else name
        assert sum(row.startswith(shown + b",") for row in rows) == 1


def test_more_than_ten_failures_are_counted(tmp_path: Path, capsys: Capture) -> None:
    assert run(["predict", "bundle", str(fill(tmp_path / "in", 20, bad=tuple(range(13))))]) == 0
    told = capsys.readouterr().err.splitlines()
    assert sum(": damaged picture" in line for line in told) == 10
    assert "  ... and 3 more" in told


@pytest.mark.parametrize("named", ["csv", "jsonl"])
@pytest.mark.parametrize("asked", ["", "csv", "jsonl"])
def test_the_format_follows_the_option_or_the_name(
    named: str, asked: str, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    name, options = f"t.{named}", [f"--format={asked}"] if asked else []
    is_json = (asked or named) == "jsonl"
    assert run(["predict", "bundle", str(folder), "--out", str(tmp_path / name), "--threads", "2", *options]) == 0
    lines = (tmp_path / name).read_text().splitlines()
    assert list(json.loads(lines[0])) == HEAD if is_json else lines[0] == ",".join(HEAD)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"-> {tmp_path / name}" in captured.err


def test_the_function_gives_the_rows_back_in_silence(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    summary = thoraclip.predict("bundle", folder)
    assert [row["path"] for row in summary.rows or []] == [f"{folder}/{i:02d}.png" for i in range(12)]
    again = thoraclip.predict("bundle", [folder / "00.png", str(folder / "01.png")], out=str(tmp_path / "t.csv"))
    assert (again.rows, again.images) == (None, 2)
    assert capsys.readouterr() == ("", "")
    thoraclip.predict("bundle", folder, progress=True)
    assert capsys.readouterr().err.startswith("images: 12/12")


@pytest.mark.parametrize("separator", ["\n", "\0"])
def test_a_list_comes_through_a_pipe(separator: str, folder: Path) -> None:
    strange = os.fsdecode(bytes(folder) + b"/caf\xe9.png")
    Path(strange).write_bytes(b"x")
    names = [*(f"{folder}/{i:02d}.png" for i in (3, 1, 1)), f"{folder}/gone.png", strange]
    process = child("-", "--format", "jsonl", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(os.fsencode(separator.join(names)), timeout=60)
    assert process.returncode == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["path"] for row in rows] == [names[0], names[1], names[3], names[4]]
    assert rows[2]["error"] == "cannot be read (No such file or directory)"
    assert b"names that are not UTF-8: 1; a CSV holds their bytes" in err


def test_the_pictures_of_both_manifests(tmp_path: Path, capsys: Capture) -> None:
    found = thoraclip.index(write_class_folder(tmp_path / "images"), out=tmp_path / "m.parquet").manifest
    (tmp_path / "m.csv").write_text("\n".join(["path", *(f"images/{path}" for path in found.column("path"))]))
    for name in ("m.parquet", "m.csv"):
        assert run(["predict", "bundle", "--manifest", str(tmp_path / name)]) == 0
        rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert [row["path"] for row in rows] == [str(path) for path in found.paths()]


def test_not_one_readable_picture_is_an_error_with_a_table(tmp_path: Path, capsys: Capture) -> None:
    folder = fill(tmp_path / "in", 2, bad=(0, 1))
    line = refused(["predict", "bundle", str(folder), "--out", str(tmp_path / "t.csv")], capsys)
    assert "t.csv: not one of 2 pictures can be read, first " in line
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "give either pictures (files, folders, or - for a list on standard input) or --manifest FILE"),
        (["{in}", "--manifest", "{in}"], "give either pictures"),
        (["{in}/99.png"], "99.png: no such file or folder; name pictures, or folders that hold some"),
        (["{empty}"], "empty: no PNG, JPEG or DICOM picture in this folder; it holds nothing"),
        (["{in}", "--format", "xml"], "--format: unknown format 'xml'; known: csv, jsonl"),
        (["{in}", "--out", "{in}/t.parquet"], "t.parquet: the table is CSV or JSON lines; end its name in .csv or .jsonl"),
        (["{in}", "--out", "{in}"], "in: is a folder, and a file is to be written; choose another --out"),
        (["{in}", "--threads", "-1"], "threads = -1: a whole number from 0 to 4,096 is needed"),
        (["--manifest", "{in}/m.csv", "--out", "{in}/./m.csv"], "m.csv: is the manifest; choose another --out"),
        (["{in}", "--out", "{in}/old.csv"], "old.csv.partial: was begun by an earlier version of thoraclip; end it with that, or"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_one_line_and_writes_nothing(
    arguments: list[str], answer: str, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "empty").mkdir()
    (folder / "m.csv").write_text("path\n00.png\n")
    (folder / "old.csv.partial").write_text('{"partial":"thoraclip predict","schema":1,"bundle":"0123456789abcdef"}\n')
    before = files(tmp_path)
    places = {"in": str(folder), "empty": str(tmp_path / "empty")}
    assert answer in refused(["predict", "bundle", *(part.format(**places) for part in arguments)], capsys)
    assert files(tmp_path) == before


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="the system has no limits on the size of a file")

    def hold() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))

    folder = fill(tmp_path / "in", 200)
    process = child(str(folder), "--out", str(tmp_path / "t.csv"), stderr=subprocess.PIPE, preexec_fn=hold)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "t.csv.partial: cannot be written (disk I/O error); make room on that disk and run the same" in err.decode()
    assert (tmp_path / "t.csv.partial").stat().st_size <= 40_000
    for name in ("t.csv", "whole.csv"):
        assert run(["predict", "bundle", str(folder), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_the_same_command_goes_on_after_any_end(end: signal.Signals, tmp_path: Path, capsys: Capture) -> None:
    folder, out = fill(tmp_path / "in", 40), tmp_path / "t.csv"
    kept = tmp_path / "t.csv.partial"

    def count() -> int:
        try:
            return len(kept_rows(kept))
        except sqlite3.Error:  # not there yet, or in the midst of a commit
            return 0

    process = child(str(folder), "--out", str(out), "--threads", "2", seconds=0.05, stderr=subprocess.PIPE)
    wait_for(lambda: count() > 8)
    process.send_signal(end)
    _, err = process.communicate(timeout=30)
    if end == signal.SIGINT:
        assert process.returncode == 130
        assert err.decode().splitlines()[-1] == "interrupted; run the same command again to go on"
    else:
        assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not out.exists()
    change(kept, "DELETE FROM rows WHERE 0")  # takes back what a kill left half written
    done = kept_rows(kept)
    assert 0 < len(done) < 40
    assert run(["predict", "bundle", str(folder), "--out", str(out)]) == 0
    assert f"{out}: goes on; {len(done) - 2} pictures were scored by an earlier run" in capsys.readouterr().err
    assert run(["predict", "bundle", str(folder), "--out", str(tmp_path / "whole.csv")]) == 0
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"in", "whole.csv", "t.csv"}


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", 60, bad=())
    process = child(str(folder), "--threads", "1", seconds=0.01, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().decode() == ",".join(HEAD) + "\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 0


def test_a_list_without_end_is_scored_as_it_comes(tmp_path: Path) -> None:
    """Rows are there while the list is still open."""
    folder = fill(tmp_path / "in", 30, bad=())
    process = child("-", "--threads", "1", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("".join(f"{folder}/{i:02d}.png\n" for i in range(20)).encode())
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(10)]
    process.stdin.close()
    assert lines[9].startswith(f"{folder}/08.png,".encode())
    assert len(process.stdout.read().splitlines()) == 11
    assert process.wait(timeout=30) == 0


def test_a_small_install_predicts_and_names_the_extra_of_what_is_missing(folder: Path) -> None:
    command = f"from thoraclip.cli.app import run\nsys.exit(run(['predict', 'bundle', {str(folder)!r}]))"
    done = run_small(
        "from tests.bundle.fake_bundle import pretend\nfrom thoraclip.bundle import opening\nopening.open_bundle = pretend\n"
        + command
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 13
    facts, bundle = b"{}", folder.parent / "bundle"
    bundle.mkdir()
    (bundle / "bundle.json").write_bytes(facts)
    (bundle / "SHA256SUMS").write_text(f"{hashlib.sha256(facts).hexdigest()}  bundle.json\n", encoding="utf-8")
    command = command.replace("'bundle'", repr(str(bundle)))
    done = run_small(f"sys.modules['onnxruntime'] = None\n{command}")
    assert done.returncode == 2
    assert done.stderr == "error: 'onnxruntime' is not installed; mend it with: pip install 'thoraclip[predict]'\n"


def test_a_name_cannot_move_the_cursor(tmp_path: Path, capsys: Capture) -> None:
    fill(tmp_path)
    (tmp_path / "\x1b[2Ja\nb.png").write_bytes(b"bad")
    assert run(["predict", "bundle", str(tmp_path)]) == 0
    assert f"  {tmp_path}/\\x1b[2Ja\\nb.png: damaged picture" in capsys.readouterr().err
