"""Files appear whole or not at all, and nothing in a run folder depends on the clock or the place."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples, files

import thoraclip
from thoraclip.errors import InputError
from thoraclip.runs import (
    RunFolder,
    atomic_open,
    canonical_json,
    digest,
    file_sha256,
    fold_file,
    folder_digest,
    locked,
    provenance,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*"))


class Killed(BaseException):
    """Not an Exception: what KeyboardInterrupt and SystemExit are."""


@pytest.mark.parametrize("kind", [ValueError, Killed])
@pytest.mark.parametrize("before", [None, b"old"])
def test_an_error_inside_leaves_what_was_there_before(
    tmp_path: Path, before: bytes | None, kind: type[BaseException]
) -> None:
    if before:
        (tmp_path / "a.bin").write_bytes(before)
    there = files(tmp_path)
    with pytest.raises(kind), atomic_open(tmp_path / "a.bin") as stream:
        stream.write(b"half")
        assert len(files(tmp_path)) == len(there) + 1
        raise kind
    assert files(tmp_path) == there


def test_a_finished_file_is_whole_readable_by_others_and_in_a_new_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "é\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "é\n".encode()
    assert stat.S_IMODE((tmp_path / "new" / "a.txt").stat().st_mode) == 0o644
    assert names(tmp_path / "new") == ["a.txt"]


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file/a\.txt: cannot be written \(.+\); choose another --out"):
        write_text(tmp_path / "file" / "a.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: is a folder, and a file is to be written"):
        write_text(tmp_path / "folder", "x")
    assert names(tmp_path) == ["file", "folder"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@examples(25)
@given(st.dictionaries(st.text(max_size=4), json_values, max_size=4))
def test_equal_values_have_equal_json_whatever_their_order(value: dict[str, object]) -> None:
    turned = dict(reversed(list(value.items())))
    assert canonical_json(turned) == canonical_json(value)
    assert json.loads(canonical_json(value)) == value


def test_digest_is_sha256_of_the_canonical_json() -> None:
    assert digest({"b": 1, "a": [None, "é"]}) == hashlib.sha256('{"a":[null,"é"],"b":1}'.encode()).hexdigest()
    assert digest([["a"], ["b"]]) != digest([["a", "b"], []])
    with pytest.raises(ValueError):
        digest(float("nan"))


def test_folder_digest_sees_names_and_contents_not_the_place(tmp_path: Path) -> None:
    for root in ("one", "two"):
        write_text(tmp_path / root / "sub" / "a.txt", "x")
        write_text(tmp_path / root / "b.txt", "y")
    one, two = tmp_path / "one" / "b.txt", tmp_path / "two" / "b.txt"
    assert file_sha256(one) == hashlib.sha256(b"y").hexdigest()
    assert folder_digest(one) == folder_digest(two)
    before = folder_digest(tmp_path / "one")
    assert before == folder_digest(tmp_path / "two")
    write_text(two, "z")
    changed = folder_digest(tmp_path / "two")
    one.rename(one.with_name("c.txt"))
    assert len({before, changed, folder_digest(tmp_path / "one")}) == 3


def test_provenance_has_no_clock_and_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = provenance(seed=3, inputs={"b": "2", "a": "1"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert provenance(seed=3, inputs={"a": "1", "b": "2"}) == first
    assert set(first) == {"python", "platform", "versions", "commit", "seed", "inputs"}
    assert list(first["inputs"]) == ["a", "b"]  # type: ignore[call-overload]
    assert first["seed"] == 3 and "numpy" in first["versions"]  # type: ignore[operator]
    text = json.dumps(first)
    assert str(Path.cwd()) not in text and str(Path(__file__).parents[1]) not in text


@pytest.mark.skipif(not (Path(thoraclip.__file__).parents[2] / ".git").exists(), reason="not a checkout")
def test_provenance_names_the_commit_of_a_checkout() -> None:
    assert re.fullmatch("[0-9a-f]{40}", str(provenance()["commit"]))


def test_a_run_is_done_only_with_its_own_fingerprint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert not folder.is_done("f1")
    folder.start("seed = 0\n", {"seed": 0})
    assert not folder.is_done("f1")
    folder.finish("f1")
    assert folder.is_done("f1") and not folder.is_done("f2")
    assert names(folder.path) == ["config.toml", "done.json", "provenance.json"]
    folder.start("", {})
    assert not folder.is_done("f1"), "a new start takes the end mark away"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', "null", "\udcff"])
def test_a_damaged_end_mark_is_no_end_mark(tmp_path: Path, content: str) -> None:
    (tmp_path / "done.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert not RunFolder(tmp_path).is_done("f1")


def test_a_start_removes_what_a_kill_left_of_weights(tmp_path: Path) -> None:
    parts = [tmp_path / "run" / name / ".adapter.0123abcd.thoraclip-part" for name in (".", "fold-0")]
    for part in parts:
        part.mkdir(parents=True)
        (part / "thoraclip.json").write_text("{}")
    with locked(tmp_path / "run"):
        RunFolder(tmp_path / "run").start("", {})
    assert not any(part.exists() for part in parts)


def test_metrics_are_one_object_a_line_and_never_nan(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_metrics([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
    assert folder.file("metrics.jsonl").read_text() == '{"loss":0.5,"step":1}\n{"loss":0.25,"step":2}\n'
    with pytest.raises(ValueError):
        folder.write_metrics([{"loss": float("nan")}])
    with pytest.raises(ValueError):
        write_json(folder.file("x.json"), float("inf"))
    assert names(tmp_path) == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("name", "fold", "expected"),
    [
        ("head.safetensors", None, "head.safetensors"),
        ("head.safetensors", 0, "head-fold-0.safetensors"),
        ("external-st. mary.parquet", 12, "external-st. mary-fold-12.parquet"),
    ],
)
def test_files_of_a_fold(name: str, fold: int | None, expected: str) -> None:
    assert fold_file(name, fold) == expected
