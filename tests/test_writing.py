"""Files, sets of files and folders are old or new whenever a process is killed; what is not ours stays."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

import filelock  # noqa: F401  once, and not in every fork
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples, files
from tests.sudden import is_killed

from thoraclip import writing
from thoraclip.errors import InputError
from thoraclip.runs import (
    end_sets,
    locked,
    remove_file,
    remove_leftovers,
    require_file,
    require_own,
    whole_folder,
    write_text,
    written_together,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
OURS = ".thoraclip-"
NAMES = ("a.json", "b.html", "sub/c.txt", os.fsdecode(b"[x]\xff.md"), "n" * 230)
STRANGERS = (".a.json.part", ".hidden.part", ".a.json.1234.thoraclip-part", ".z.0123456x.thoraclip-part", "sub/.c.part")
"""Names that are close to those of our temporary files, and are not ours."""


def put(folder: Path, content: Mapping[str, str]) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def state(folder: Path) -> dict[str, str]:
    return {name: content.decode() for name, content in files(folder).items()} if folder.is_dir() else {}


def theirs(folder: Path) -> dict[str, str]:
    """All but what lies there while we write."""
    return {name: text for name, text in state(folder).items() if OURS not in name or name in STRANGERS}


sets = st.dictionaries(
    st.sampled_from(NAMES), st.tuples(st.none() | st.just("old"), st.text("xyz", max_size=3)), min_size=1, max_size=3
)


@needs_fork
@examples(12)
@given(sets)
def test_a_set_is_old_or_new_wherever_its_writer_is_killed(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, tuple[str | None, str]]
) -> None:
    root = tmp_path_factory.mktemp("set")
    old = {name: before for name, (before, _) in content.items() if before is not None}
    strangers = dict.fromkeys(STRANGERS, "another's")
    new = strangers | {name: after for name, (_, after) in content.items()}

    def write(out: Path) -> None:
        with locked(out), written_together(out, "set"):
            for name, (_, text) in content.items():
                write_text(out / name, text)

    for number in itertools.count(1):
        out = root / f"{number}" / "out"
        put(out, old | strangers)
        was_killed = is_killed(number, lambda out=out: write(out))  # type: ignore[misc]
        seen = theirs(out)
        assert all(text in ((old | strangers).get(name), new[name]) for name, text in seen.items())
        if not any(file.name.endswith("-set") for file in out.rglob(".*")):
            assert seen in (old | strangers, new), "without the list of a set, it is whole"
        if not was_killed:
            break
        write(out)
        assert state(out.parent) == {f"out/{name}": text for name, text in new.items()}, (
            f"after the kill before call {number}"
        )
    assert number > 5 * len(content)


@needs_fork
@pytest.mark.parametrize("can_swap", [True, False])
@pytest.mark.parametrize("old", [{}, {"mark": "1", "gone": "1"}])
def test_a_folder_is_old_or_new_wherever_its_writer_is_killed(
    tmp_path: Path, old: dict[str, str], can_swap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_swap:
        monkeypatch.setattr(writing, "_swap", lambda *_: False)
    new = {"mark": "2", "sub/b": "2"}

    def write(out: Path) -> None:
        with locked(out), whole_folder(out, lambda folder: (folder / "mark").is_file()) as part:
            for name, text in new.items():
                write_text(part / name, text)

    for number in itertools.count(1):
        out = tmp_path / f"{number}" / "out"
        put(out, old)
        was_killed = is_killed(number, lambda out=out: write(out))  # type: ignore[misc]
        assert theirs(out) in ((old, new) if can_swap else (old, new, {})), "{}: between two renames"
        if not was_killed:
            break
        write(out)
        assert state(out.parent) == {f"out/{name}": text for name, text in new.items()}, (
            f"after the kill before call {number}"
        )


def test_an_error_in_a_set_leaves_the_old_files(tmp_path: Path) -> None:
    put(tmp_path, {"a": "old", "b": "old"})
    with pytest.raises(KeyError), written_together(tmp_path, "set"):
        write_text(tmp_path / "a", "new")
        write_text(tmp_path / "a", "newer")
        with written_together(tmp_path, "inner"):
            write_text(tmp_path / "c", "new")
        raise KeyError
    assert state(tmp_path) == {"a": "old", "b": "old"}


def test_a_file_that_is_written_twice_in_a_set_holds_the_second(tmp_path: Path) -> None:
    for lock in (nullcontext(), locked(tmp_path)):
        with lock, written_together(tmp_path, "set"):
            write_text(tmp_path / "a", "first")
            write_text(tmp_path / "a", "second")
            assert not (tmp_path / "a").exists() or lock is not None
        assert state(tmp_path) == {"a": "second"}


@pytest.mark.parametrize("text", ["", "{", "[]x", '[["a"]]', '[["../a", "b"]]', '[["b", "../b"]]', "[[1, 2]]", '[["a", "b"]]',
    '[["../.b.01234567.thoraclip-part", "../b"]]', '[["/etc/.b.01234567.thoraclip-part", "/etc/b"]]', "[" * 100_000,
    '[["up/.b.01234567.thoraclip-part", "up/b"]]', '[[".\\ud800.01234567.thoraclip-part", "\\ud800"]]',
    '[[".\\u0000.01234567.thoraclip-part", "\\u0000"]]', None], ids=lambda text: str(text)[:40])  # fmt: skip
def test_a_list_that_we_did_not_write_moves_nothing(tmp_path: Path, text: str | None) -> None:
    out = tmp_path / "out"
    put(tmp_path, {"a": "a", ".b.01234567.thoraclip-part": "b", "out/b": "b"})
    (out / "up").symlink_to(tmp_path)
    note = out / ".x.thoraclip-set"
    os.mkfifo(note) if text is None else note.write_text(text)
    before = state(tmp_path)
    with pytest.raises(InputError, match=r"\.x\.thoraclip-set: is not a list that thoraclip wrote; move it"):
        end_sets(out)
    assert state(tmp_path) == before


def test_leftovers_are_removed_only_under_a_lock_and_only_those_of_the_name(tmp_path: Path) -> None:
    ours = {".a.01234567.thoraclip-part": "", ".b.01234567.thoraclip-part": ""}
    put(tmp_path, ours)
    put(tmp_path, dict.fromkeys(STRANGERS, "another's"))
    before = state(tmp_path)
    write_text(tmp_path / "a", "x")
    remove_file(tmp_path / "a")
    assert state(tmp_path) == before, "another process may be writing it"
    with locked(tmp_path):
        write_text(tmp_path / "a", "x")
        assert set(ours) & {file.name for file in tmp_path.iterdir()} == {".b.01234567.thoraclip-part"}
        remove_file(tmp_path / "a")
        remove_leftovers(tmp_path)
    assert set(state(tmp_path)) == set(STRANGERS)


kinds = ["file", "folder", "link", "dangling", "loop", "fifo", "read-only"]


@pytest.mark.parametrize("kind", kinds)
def test_what_is_at_the_place_of_a_file(tmp_path: Path, kind: str) -> None:
    place, other = tmp_path / "place", tmp_path / "other"
    if kind in ("file", "read-only"):
        place.write_text("old")
        place.chmod(0o640 if kind == "file" else 0o444)
    elif kind == "folder":
        place.mkdir()
    elif kind in ("link", "dangling"):
        other.write_text("old") if kind == "link" else None
        place.symlink_to("other")
    elif kind == "loop":
        place.symlink_to("place")
    else:
        os.mkfifo(place)
    refusals = {
        "folder": "is a folder",
        "loop": "is not a regular",
        "fifo": "is not a regular",
        "read-only": "is read-only",
    }
    if said := refusals.get(kind):
        for refused in (require_file, lambda path: write_text(path, "new")):
            with pytest.raises(InputError, match=f"place: {said}"):
                refused(place)
        assert [file.name for file in tmp_path.iterdir()] == ["place"]
        return
    write_text(place, "new")
    assert place.read_text() == "new"
    assert place.is_symlink() == (kind != "file") and (other.exists() == (kind != "file"))
    assert kind != "file" or stat.S_IMODE(place.stat().st_mode) == 0o640, "permissions stay"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_is_readable_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a", "x")
        with whole_folder(tmp_path / "f", lambda _: False) as part:
            write_text(part / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o777 & ~umask


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    put(tmp_path, {"notes/diary.txt": "mine", "file": "mine"})
    for name, said in (("notes", "holds other things"), ("file", "is a file, and a folder")):
        with pytest.raises(InputError, match=said), whole_folder(tmp_path / name, lambda _: False):
            pytest.fail("refused first")
    assert state(tmp_path) == {"notes/diary.txt": "mine", "file": "mine"}
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with whole_folder(tmp_path / "link", lambda _: False) as part:
        write_text(part / "a", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "a").read_text() == "x"


@pytest.mark.parametrize(
    ("there", "named"),
    [
        ({}, None),
        ({"notes.txt": ""}, None),
        ({"r.json": '{"schema": 1}', "r.md": ""}, None),
        ({"r.json": '{"versions": {}}'}, None),
        ({"r.json": ""}, None),
        ({"r.md": "mine"}, "r.md"),
        ({"r.json": '{"mine": 1}'}, "r.json"),
        ({"r.json": '{"@context": {}, "@type": "sc:Dataset"}'}, "r.json"),
        ({"r.json": '{"schema": {"type": "object"}}'}, "r.json"),
        ({"r.json/x": "a folder"}, "r.json"),
    ],
)
def test_a_file_that_is_in_the_way_and_not_ours_is_named(
    tmp_path: Path, there: dict[str, str], named: str | None
) -> None:
    put(tmp_path, there)
    with nullcontext() if named is None else pytest.raises(InputError, match=rf"{named}: is in the way"):
        require_own(tmp_path, {"r.json": ("r.md",)})
    with pytest.raises(InputError, match="is a file"):
        write_text(tmp_path / "f", "")
        require_own(tmp_path / "f", {})


@pytest.mark.parametrize("mark", ["fifo", "loop", "link", "device"])
def test_no_link_leads_out_of_an_output_and_nothing_waits_for_a_pipe(tmp_path: Path, mark: str) -> None:
    """Neither what it leads to nor a device, which a superuser may remove, is touched."""
    out, other = tmp_path / "out", tmp_path / "other"
    put(tmp_path, {"other": '{"schema": 1}', "out/r.json": '{"schema": 1}'})
    place = out / "r.md"
    os.mkfifo(other.with_name("pipe"))
    if mark == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to({"loop": place, "link": other, "device": other.with_name("pipe")}[mark])
    with suppress(InputError):  # of a link the link alone goes
        remove_file(place)
    assert os.path.lexists(place) == (mark != "link")
    if mark == "link":
        place.symlink_to(other)
        with pytest.raises(InputError, match="r.md: is in the way"):
            require_own(out, {"r.json": ("r.md",)})
        with pytest.raises(InputError, match="a link in .* leads there"), written_together(out, "set"):
            write_text(place, "new")
    else:
        place.rename(out / "r.json")
        with pytest.raises(InputError, match="r.json: is in the way"):
            require_own(out, {"r.json": ("r.md",)})
    assert other.read_text() == '{"schema": 1}' and other.with_name("pipe").is_fifo()


CALLS = ("open", "fsync", "replace")


def failing(call: str, number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Let the `number`-th call of a function of `os` fail; counts the calls."""
    true, count = getattr(os, call), itertools.count(1)

    def run(*given: object, **named: object) -> object:
        if next(count) == number:
            raise OSError(code, os.strerror(code))
        return true(*given, **named)

    monkeypatch.setattr(os, call, run)
    return count


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_is_an_input_error_and_leaves_a_set_whole(tmp_path: Path, call: str, code: int) -> None:
    names = ("a", "b", "c")
    for number in itertools.count(1):
        out = tmp_path / str(number)
        put(out, dict.fromkeys(names, "old"))
        error = None
        with pytest.MonkeyPatch.context() as patch:
            failing(call, number, code, patch)
            try:
                with locked(out), written_together(out, "set"):
                    for name in names:
                        write_text(out / name, "new")
            except InputError as raised:
                error = raised
            except OSError:
                assert call == "fsync" and code != errno.ENOSPC, "a broken disk"
                error = InputError("cannot be written")
        if error is None and number > 1:
            break
        has_list = any(OURS in name for name in state(out))
        assert has_list or theirs(out) in (dict.fromkeys(names, "old"), dict.fromkeys(names, "new"))
        with locked(out):
            assert not any(name.endswith("-set") for name in state(out))
