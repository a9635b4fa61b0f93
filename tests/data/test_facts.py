"""An unchanged file is not read again; everything that could make a fact stale makes it read anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from thoraclip.data import facts as module
from thoraclip.data.facts import FactStore
from thoraclip.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    for name in "abc":
        (tmp_path / "root" / name).write_text(name * 10)
    return tmp_path / "root"


def look(store: FactStore, names: str = "abc") -> dict[str, Any]:
    """Ask for every file; the fact is its text."""
    return {
        name: store.get(name, lambda f: {"text": f.read_text()}, serves=lambda facts: "text" in facts)["text"]
        for name in names
    }


def passed(root: Path, file: Path, names: str = "abc", **options: Any) -> tuple[dict[str, Any], int]:
    store = FactStore(root, file, **options)
    found = look(store, names)
    store.settle()
    return found, store.read


def test_a_second_pass_reads_only_what_changed(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    first, read = passed(root, file)
    assert (first, read) == ({n: n * 10 for n in "abc"}, 3)
    before = file.read_bytes()
    assert passed(root, file) == (first, 0)
    assert file.read_bytes() == before
    (root / "b").write_text("B" * 10)
    assert passed(root, file) == ({**first, "b": "B" * 10}, 1)
    passed(root, file, names="a")
    assert [json.loads(line)[0] for line in file.read_text().splitlines()[1:]] == ["a"], "what is gone is forgotten"


def test_a_change_that_keeps_size_and_time_is_seen(root: Path, tmp_path: Path) -> None:
    """As a tool does that copies the time: the time of the last change of the entry itself tells."""
    passed(root, tmp_path / "f")
    stamp = (root / "a").stat()
    (root / "a").write_text("A" * 10)
    os.utime(root / "a", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert passed(root, tmp_path / "f")[0]["a"] == "A" * 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DECODING", 10_000),
        ("_SCHEMA", 9),
        ("_READERS", ("pillow",)),
        ("_version", lambda package, known=module._version: "9" if package == "python-gdcm" else known(package)),
    ],
)
def test_other_rules_read_everything_anew(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    passed(root, tmp_path / "f")
    monkeypatch.setattr(module, name, value)
    assert passed(root, tmp_path / "f")[1] == 3
    assert passed(root, tmp_path / "f")[1] == 0
    assert passed(root, tmp_path / "f", fresh=True)[1] == 3


def test_a_fact_that_is_missing_is_looked_up(root: Path, tmp_path: Path) -> None:
    store = FactStore(root, tmp_path / "f")
    assert store.sha256(root / "a") == store.sha256(root / "a")
    assert store.read == 1
    look(store, "a")
    assert store.read == 2, "the hash alone is not the text"


def test_files_that_cannot_be_read_are_no_copies_of_each_other(root: Path) -> None:
    os.mkfifo(root / "pipe")
    store = FactStore(root)
    texts = [store.sha256(root / name) for name in ("pipe", "gone", "a")]
    assert len(set(texts)) == 3 and "not a regular file" in texts[0], "and a pipe does not make it wait"


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_killed_pass_goes_on_and_ends_with_the_same_bytes(root: Path, tmp_path: Path, cut: int) -> None:
    passed(root, tmp_path / "whole")
    store = FactStore(root, tmp_path / "broken")
    look(store, "ca")
    torn = (tmp_path / "broken").read_bytes()
    (tmp_path / "broken").write_bytes(torn[:-cut])  # the kill came in the middle of a line
    again = FactStore(root, tmp_path / "broken")
    look(again, "abc")
    assert again.read == (1 if cut == 1 else 2), "what was never read, and what the torn line said"
    third = FactStore(root, tmp_path / "broken")
    look(third, "abc")
    assert third.read == 0, "lines behind a torn one count"
    third.settle()
    assert (tmp_path / "broken").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_missing_file_is_asked_for_each_time(root: Path, tmp_path: Path) -> None:
    store = FactStore(root, tmp_path / "f")
    for _ in range(2):
        assert store.get("gone", lambda _: {"text": "no such file"}, serves=lambda _: True)["text"] == "no such file"
    assert store.read == 2
    store.settle()
    assert "gone" not in (tmp_path / "f").read_text()


@pytest.mark.parametrize("text", ["[]\n", "\x00\xff garbage", "null\n3\n"])
def test_a_foreign_file_is_refused_and_stays(root: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="f: is in the way"):
        FactStore(root, tmp_path / "f")
    assert (tmp_path / "f").read_text(encoding="latin-1") == text


@pytest.mark.parametrize("text", ["", '{"schema":1}\n["a",1,2,3,{}]\n', '{"deco'])
def test_facts_of_another_version_are_no_help_and_no_harm(root: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text, encoding="latin-1")
    assert passed(root, tmp_path / "f")[1] == 3
    assert passed(root, tmp_path / "f")[1] == 0
