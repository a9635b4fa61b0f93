"""Whatever is typed, and wherever the output goes: right, or one line and exit code 2; no raw escape on a terminal."""

from __future__ import annotations

import ast
import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import Capture, examples

import thoraclip.data.check
from thoraclip.api.results import Report
from thoraclip.cli import app, console, show
from thoraclip.cli.app import main, run

CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]")
any_text = st.text(st.characters(codec=None), max_size=40) | st.sampled_from(
    [
        "[/b]",
        "[red]x",
        "\x1b[2J\x1b]0;title\x07",
        "a\nb",
        "\u202egnp.exe",
        "\udcff",
        "\U0001f600",
        "{0} %s",
        "é",
        "x" * 500,
    ]
)

PATHS = ["x" * 300, "/".join(["d" * 200] * 30), "loop", "loop/x", "{file}/x", "", "a\0b"]
COMMANDS = [
    "index {path} --out {out}/m.parquet", "index {folder} --out {path}", "check {path}", "check {manifest} --out {path}",
    "split {path} --folds 3 --out {out}.parquet", "select {path} --where a=1 --out {out}.parquet", "overlap {manifest} {path} --out {out}",
    "card {manifest} --out {path}", "card {manifest} --config {path} --out {out}", "phantom {path}", "embed {path} --model tiny-clip --out {out}",
    "caption {path} --captioner template --out {out}.parquet", "probe {manifest} --out {path}", "probe {manifest} --config {path} --out {out}",
    "report {path} --out {out}", "audit {path} --out {out}", "explain {path} x.png --out {out}.png", "export {path} --out {out}",
    "predict {path} x.png", "study {path} --out {out}", "study {folder} --out {path}", "serve {path}",
]  # fmt: skip


def one_line(code: int, capsys: Capture) -> str:
    """The single line of a refusal."""
    captured = capsys.readouterr()
    assert code == 2, captured.err
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ") and not CONTROL.search(line)
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_cannot_be_is_one_line(
    command: str, manifest_file: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("file").write_text("x")
    for path in PATHS:
        words = {
            "path": path.format(file=tmp_path / "file"),
            "out": "out",
            "manifest": manifest_file,
            "folder": "images",
        }
        message = one_line(run([word.format(**words) for word in command.split()]), capsys)
        assert len(message) < 12_100
    assert not Path("out").exists()


SPLIT = ["split", "{manifest}", "--out", "out.parquet"]
NUMBERS = [
    *([*SPLIT, "--folds", text] for text in ("999999999999", "-1", "0", "nan", "1e3", "", "9" * 5000, "٣x", "\ud800")),
    *([*SPLIT, "--folds", "3", "--seed", text] for text in ("-1", str(2**70), "1.5", "{0}")),
    *([*SPLIT, "--fractions", text] for text in ("-1,1,1", "nan,0.5,0.5", "1,0.5,0.5", "inf,0,0", "", ",,", "1" * 4000, "a,b,c")),
    *(["phantom", "out", "--images", text] for text in (str(10**9), "-3", "0", "1e9")),
    *(["phantom", "out", "--size", text] for text in (str(10**6), "-1", "0")),
    *(["phantom", "out", "--difficulty", text] for text in ("nan", "inf", "-0.1", "2")),
    *(["phantom", "out", "--shortcut", text] for text in ("border=nan", "border=2", "[/b]=1", "a\nb=1", "=")),
    *(["report", "p.csv", "--out", "out", "--resamples", text] for text in (str(10**12), "-1", "99", "0")),
    *(["report", "p.csv", "--out", "out", "--prevalence", text] for text in ("a=nan", "a=inf", "=", "a", "\ud800=1", "x" * 100_000)),
    *(["predict", "b", "x.png", "--threads", text] for text in ("-5", "999999")),
    *(["export", "r", "--out", "out", option, "-1"] for option in ("--images", "--thumbnails", "--fold", "--seed")),
    *(["serve", "b", "--port", text] for text in ("70000", "-1", "http")),
    *(["serve", "b", "--host", text] for text in ("..", "", "a b")),
    *(["probe", "{manifest}", "--out", "out", "--set", f"{name}={text}"] for name, text in (
        ("l2_steps", "1e23"), ("l2_steps", "999999999999"), ("seed", "-1"), ("seed", str(2**70)), ("val_fraction", "nan"),
        ("l2_min", "-inf"), ("batch_size", "9" * 30), ("classes", "9" * 5000), ("model", "\0"), ("prompts", "\x1b[2J"),
        ("refit", "1"), ("epochs", "true"), ("epochs", "[1]"), ("solver", ""), ("solver", "x" * 100_000), ("[/b]", "1"), ("é\u202e", "1"),
    )),
    *(["finetune", "{manifest}", "--out", "out", "--set", s] for s in ("steps=100000000000000000000000", "batch_size=1000000000000000000")),
    ["--[/b]"], ["[/b]"], ["\udcff"], ["split", "--\x1b[2J"], ["split", "m.parquet", "--folds"], ["\u202e"],
]  # fmt: skip


@pytest.mark.parametrize("words", NUMBERS, ids=lambda words: ascii(" ".join(words))[:60])
def test_a_value_that_cannot_be_is_one_line(
    words: list[str], manifest_file: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(run([str(manifest_file) if word == "{manifest}" else word for word in words]), capsys)
    assert not Path("out").exists() and not Path("out.parquet").exists()


CODES = ("EACCES", "EPERM", "EROFS", "EMFILE", "ENAMETOOLONG", "ELOOP", "ENOSPC", "EIO", "ENOTDIR", "EISDIR")


@pytest.mark.parametrize("error", [
    *(OSError(getattr(errno, code), os.strerror(getattr(errno, code)), "dir/[a]\x1bb") for code in CODES),
    OSError(errno.ENOSPC, "full"), OSError("said so"), OSError(), UnicodeEncodeError("utf-8", "\udcff", 0, 1, "no"),
    MemoryError(), MemoryError("Unable to allocate 1 TiB"), RecursionError("deep"),
], ids=repr)  # fmt: skip
def test_what_the_system_refuses_is_one_line_with_a_remedy(
    error: Exception, manifest_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(thoraclip.data.check, "check", fail)
    line = one_line(run(["check", str(manifest_file)]), capsys)
    assert ";" in line and ("dir/[a]\\x1bb: cannot be" in line) == bool(getattr(error, "filename", None))


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (ZeroDivisionError("a\x1b[2Jb"), 1)])
def test_an_interruption_and_a_fault_of_our_own(
    error: BaseException, code: int, manifest_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(thoraclip.data.check, "check", fail)
    with pytest.raises(SystemExit) as left:
        main(["check", str(manifest_file)])
    told = capsys.readouterr().err
    assert left.value.code == code and not CONTROL.search(told)
    if code == 1:
        assert "Traceback" in told and told.splitlines()[-1].startswith(
            "this is a fault of thoraclip; please report it"
        )


def printed(do: Callable[[], None], encoding: str, width: int) -> str:
    """What is written to both streams of a terminal that has this encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", streams[0])
        patch.setattr("sys.stderr", streams[1])
        patch.setenv("COLUMNS", str(width))
        console.prepare_streams()
        do()
        return "".join(stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]


def contents(text: str) -> list[Callable[[], None]]:
    """Every function of `show` that prints text of others, with `text` in all places."""
    given_: dict[str, Any] = {"out": Path("out"), "strict": False, "dry_run": True}
    rows = {"name": text, "kind": text, "seed": 1, "images_encoded": 2, "images_trained": 0, "done": False, "seconds": 1.0,
            "cached": [text], "token_bytes": 1, "error": text}  # fmt: skip
    totals = {"seconds": 1.0, "factor": 2.0, "complete": True, "images_encoded": 1, "images_trained": 1}
    plan = {"source": text, "images": 3, "runs": [rows], "stages": [], "totals": totals, "notes": [text]}
    alone = {"value": 0.5, "low": 0.1, "high": 0.9}
    found = {"counts": {"parts": [text], "classes": {text: [1]}}, "leaks": [text], "warnings": [text],
             "differences": [{"name": text, "alone": alone, "description": text}]}  # fmt: skip
    test = {"name": text, "asks": text, "effect": 0.1, "low": 0.0, "high": 0.2, "p_holm": 0.5, "verdict": "none"}
    explained = {"class": text, "probability": 0.5, "predicted": text, "scores": {text: 0.5}, "method": text,
                 "evidence_in_lungs": None, "lung_area": 0.5, "lungs_from": text, "note": text}  # fmt: skip
    content = {"title": text, "methods": [], "reading": [text], "failed": [{"name": text, "error": text}]}
    report = Report(content, Path("out"))
    return [
        lambda: show._show_plan(plan),
        lambda: console.print_document({**plan, "notes": []}),
        lambda: show.check(found, given_),
        lambda: show.audit({"tests": [test], "reading": [text]}, given_),
        lambda: show.explanation(explained, given_),
        lambda: show.report(report, {**given_, "out": Path("a" + text.replace("\0", ""))}),
        lambda: show._list(text, [text]),
        lambda: console.announce(text),
        lambda: console.say(text),
        lambda: console.ShownRows().writelines([b"", text.encode("utf-8", "replace") + b"\xff\n"]),
    ]


@examples(60)
@given(any_text, st.sampled_from(["utf-8", "ascii", "latin-1", "cp1252", "utf-16"]), st.sampled_from([20, 80, 200]))
def test_no_text_moves_the_cursor_turns_the_writing_or_fails_on_any_terminal(
    text: str, encoding: str, width: int
) -> None:
    for do in contents(text):
        assert not CONTROL.search(printed(do, encoding, width))


@examples(30)
@given(any_text, st.sampled_from(["utf-8", "ascii"]))
def test_a_bar_has_only_its_own_escapes(text: str, encoding: str) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    terminal = Terminal(io.BytesIO(), encoding=encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        patch.setenv("TERM", "xterm")
        console.prepare_streams()
        with console.progress_bar() as progress:
            console.announce(text)
            progress(1, 2)
        terminal.flush()
    shown = terminal.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert not CONTROL.search(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", shown))


def test_text_goes_out_at_one_place() -> None:
    for file in Path(app.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and file.name != "console.py":
                assert ast.unparse(node.func) not in ("print", "typer.echo", "sys.stdout.write", "sys.stderr.write"), (
                    file
                )


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    words = f"{sys.executable} -m thoraclip {line}"
    usual = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(["sh", "-c", words], capture_output=True, text=True, env={**usual, **env}, timeout=120)


@pytest.mark.parametrize("output", [">&-", ">/dev/full", "2>&-", "2>/dev/full", ">&- 2>&-"])
def test_a_closed_or_full_output(output: str, tmp_path: Path) -> None:
    if "full" in output and not Path("/dev/full").exists():
        pytest.skip("the system has no /dev/full")
    done = shell(f"split nowhere.parquet --folds 3 --out {tmp_path}/x.parquet {output}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    told = shell(f"--version {output}")
    assert told.returncode == (2 if output == ">/dev/full" else 0)
    assert "Traceback" not in told.stderr and "Exception" not in told.stderr and told.stderr.count("\n") <= 1


def test_a_terminal_with_seven_bits(tmp_path: Path) -> None:
    ascii_ = {
        "PYTHONIOENCODING": "ascii",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "COLUMNS": "20",
    }
    for line in ("--help", "serve --help", "probe --settings", f"check '{tmp_path}/\U0001f600é.parquet'"):
        done = shell(line, **ascii_)
        assert done.returncode == (2 if "check" in line else 0), done.stderr
        assert (done.stdout + done.stderr).isascii() and "Traceback" not in done.stderr
    assert "no such manifest file" in done.stderr
