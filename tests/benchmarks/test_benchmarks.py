"""The benchmarks' runner and what it writes; nothing is timed here."""

from __future__ import annotations

import inspect
import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
from benchmarks.measure import options
from benchmarks.results import BEGIN, END, Result, merge, put_between_markers, read_results, table, write_results

from benchmarks import run

FAST = Result("speed", 4.0, 3.0, "the plain way", 12345.6, "images/s")
BIG = Result("memory", 1.2, 1.1, "one chunk", 0.00012, "MiB", higher_is_better=False)
TOLD = Result("told", None, None, "", 7, "s")


def test_every_script_is_in_the_registry_and_has_a_bench():
    for module in run.BENCHMARKS.values():
        parameters = inspect.signature(import_module(module).bench).parameters
        assert len(parameters) == 2 and parameters["quick"].kind is inspect.Parameter.KEYWORD_ONLY, module
        assert parameters["quick"].default is False, module
    helpers = {"coverage", "groups", "measure", "ood_kinds", "plain", "results", "run", "saliency"}
    scripts = {file.stem for file in (run.ROOT / "benchmarks").glob("*.py")} - helpers
    assert scripts == {module.removeprefix("benchmarks.") for module in run.BENCHMARKS.values()}


@pytest.mark.parametrize(
    ("ratio", "goal", "higher", "met"),
    [
        (3.0, 3.0, True, True), (2.9, 3.0, True, False), (1.1, 1.1, False, True), (1.2, 1.1, False, False),
        (None, 1.0, True, None), (1.0, None, True, None),
    ],
)  # fmt: skip
def test_met_follows_the_direction(ratio, goal, higher, met):
    assert Result("a", ratio, goal, "b", 1.0, "s", higher_is_better=higher).met is met


def test_results_are_read_as_they_were_written(tmp_path):
    write_results(tmp_path / "results.json", [FAST, BIG, TOLD])
    assert read_results(tmp_path / "results.json") == [FAST, BIG, TOLD]
    rows = json.loads((tmp_path / "results.json").read_text())
    assert list(rows[0]) == ["name", "ratio", "goal", "against", "value", "unit"]
    assert rows[1]["higher_is_better"] is False and rows[2]["ratio"] is None


def test_the_table_says_what_is_met():
    lines = table([FAST, BIG, TOLD]).splitlines()
    assert lines[2:] == [
        "| speed | 12,346 images/s | 4 | the plain way | at least 3 | yes |",
        "| memory | 0.00012 MiB | 1.20 | one chunk | at most 1.1 | **no** |",
        "| told | 7 s |  |  |  |  |",
    ]


def row(name, value=1, **more):
    return Result(name, None, None, "", value, "s", **more)


def test_only_the_rows_of_what_ran_are_replaced_and_those_of_other_hardware_stay_in_a_table_of_their_own():
    earlier = [row("a: one", 1), row("a: two", 2), row("b: one", 3), row("gone: one", 4)]
    merged = merge(earlier, [row("b: new", 5)], order=["b", "a"])
    assert [(found.name, found.value) for found in merged] == [("b: new", 5), ("a: one", 1), ("a: two", 2)]

    earlier = [row("a: one", 1, hardware="big"), row("b: one", 2, hardware="big"), row("b: one", 3, hardware="small")]
    merged = merge(earlier, [row("b: new", 4, hardware="small")], order=["a", "b"])
    assert [(found.name, found.value) for found in merged] == [("b: new", 4), ("a: one", 1), ("b: one", 2)]
    small, big = run.page_text(merged).split("`make bench`, on ")[1:]
    assert small.startswith("small.") and small.count("\n| b: new |") == 1 and "| a: one |" not in small
    assert big.startswith("big.") and big.count("\n| a: one |") == 1 and big.count("\n| b: one |") == 1


def test_a_page_keeps_what_stands_around_the_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n{BEGIN}\nold\n{END}\nafter\n")
    put_between_markers(page, "new")
    assert page.read_text() == f"# Title\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match=f"has no lines {BEGIN} and {END}"):
        put_between_markers(page, "new")
    assert page.read_text() == "no markers"
    text = run.PAGE.read_text(encoding="utf-8")
    assert text.index(BEGIN) < text.index(END), "the docs have them"


def test_a_quick_run_writes_results_and_table(tmp_path, capfd):
    out, page = tmp_path / "results.json", tmp_path / "page.md"
    write_results(out, [row("start: other"), row("marks: old")])
    page.write_text(f"{BEGIN}\n{END}\n")
    assert run.main(["--quick", "--only", "marks", "--out", str(out), "--page", str(page)]) == 0
    told = capfd.readouterr()
    assert "[1/1] marks: 2 rows" in told.err
    new = ["marks: marked pictures found", "marks: reported pictures that are marked"]
    assert [found.name for found in read_results(out)] == [*new, "start: other", "marks: old"]
    assert "| marks: marked pictures found |" in page.read_text() and "`make bench`, on " in page.read_text()
    assert page.read_text() == f"{BEGIN}\n{told.out}{END}\n"


def test_one_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def run_one(name: str, work: Path, *, quick: bool) -> list[Result] | None:
        return None if name == "data" else [row(f"{name}: new")]

    monkeypatch.setattr(run, "run_one", run_one)
    out = tmp_path / "results.json"
    write_results(out, [row("data: old")])
    assert run.main(["--only", "data", "marks", "--out", str(out)]) == 1
    told = capsys.readouterr()
    assert "[1/2] data: FAILED" in told.err and "failed: data" in told.err
    assert [result.name for result in read_results(out)] == ["data: old", "marks: new"]
    assert "| marks: new |" in told.out


def test_a_process_that_fails_gives_nothing(tmp_path):
    assert run.run_one("unknown", tmp_path, quick=True) is None


def test_options_take_their_kinds_from_their_defaults(monkeypatch):
    defaults = {
        "images": 5,
        "rate": 0.5,
        "model": "tiny",
        "wrong_too": False,
        "folder": None,
        "extra": [],
        "out": Path("a"),
    }
    monkeypatch.setattr(sys, "argv", ["x"])
    assert vars(options("about", **defaults)) == defaults
    words = "x --images 7 --rate 2 --wrong-too --folder f --extra g h --out b"
    monkeypatch.setattr(sys, "argv", words.split())
    given = {"images": 7, "rate": 2.0, "wrong_too": True, "folder": Path("f"), "extra": [Path("g"), Path("h")]}
    assert vars(options("about", **defaults)) == {**given, "model": "tiny", "out": Path("b")}
