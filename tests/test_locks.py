"""One process at a time writes an output; the lock ends with the process and leaves nothing."""

from __future__ import annotations

import contextvars
import errno
import fcntl
import inspect
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock  # noqa: F401  once, and not in every fork
import pytest
from tests.conftest import files

import thoraclip
from thoraclip.api.methods import method_function
from thoraclip.cli.app import COMMANDS
from thoraclip.errors import InputError
from thoraclip.methods import METHODS
from thoraclip.runs import is_empty, locked, write_text, writes

BUSY = "another process is writing it; wait for its end, or choose another --out"


class Holder:
    """Another process that holds a lock until it is told to end."""

    def __init__(self, out: Path) -> None:
        told, self._tell = os.pipe()
        ready, is_ready = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self._tell)
                with locked(out):
                    os.write(is_ready, b"x")
                    os.read(told, 1)
            finally:
                os._exit(0)
        os.close(told)
        assert os.read(ready, 1) == b"x"

    def end(self, number: int | None = None) -> None:
        os.kill(self.pid, number) if number else os.close(self._tell)
        os.waitpid(self.pid, 0)


@pytest.mark.parametrize("place", ["file.txt", "folder", "new/sub/out", "link"])
@pytest.mark.parametrize("killed", [None, signal.SIGKILL, signal.SIGTERM])
def test_another_process_waits_for_the_end_of_the_first(tmp_path: Path, place: str, killed: int | None) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    before = sorted(tmp_path.rglob("*"))
    out, names = tmp_path / place, {"link": "folder", "folder": "link"}
    holder = Holder(out)
    for same in (out, Path(os.path.relpath(out)), tmp_path / names.get(place, place)):
        with pytest.raises(InputError, match=BUSY), locked(same):
            pytest.fail("locked twice")
    with locked(tmp_path / "another"):
        pass
    holder.end(killed)
    with locked(out), locked(out), locked(out / "within"):
        pass
    left = set(tmp_path.rglob("*")) - set(before)
    assert left == ({tmp_path / "new", tmp_path / "new" / "sub"} if killed and place.startswith("new") else set())


def test_the_lock_ends_with_an_error_and_keeps_what_was_written(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), locked(tmp_path / "new" / "out"):
            write_text(tmp_path / "new" / "out" / "a", "x")
            raise KeyboardInterrupt
    assert set(files(tmp_path)) == {"new/out/a"}


def test_only_the_first_of_several_processes_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Holder(tmp_path / "out")
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path / "out"):
        pass
    holder.end()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_remark(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said: list[str] = []
    with locked(tmp_path / "out", remark=said.append):
        write_text(tmp_path / "out", "x")
    assert len(said) == 1 and "out: cannot be locked (" in said[0] and "no other process" in said[0]
    assert set(files(tmp_path)) == {"out"}


@pytest.fixture
def protected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which nothing can be made, for root neither."""
    true, folder = os.open, tmp_path / "protected"
    (folder / "run").mkdir(parents=True)

    def refuse(path: Any, flags: int, *given: Any, **named: Any) -> int:
        if flags & os.O_CREAT and Path(os.fsdecode(path)).parent in places:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return true(path, flags, *given, **named)

    places = [folder]
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("tests.test_locks.PLACES", places)
    return folder


PLACES: list[Path] = []


def test_a_folder_whose_parent_is_protected_is_locked_from_within(protected: Path) -> None:
    with locked(protected / "run"):
        assert [file.name for file in (protected / "run").iterdir()] == [".thoraclip-lock"]
        assert is_empty(protected / "run")
    assert not list((protected / "run").iterdir())


def test_a_protected_place_is_refused_or_only_read(protected: Path) -> None:
    PLACES.append(protected / "run")
    for place in ("run", "new"):
        with (
            pytest.raises(InputError, match=rf"{place}: cannot be written \(Permission denied\); choose"),
            locked(protected / place),
        ):
            pytest.fail("refused first")
    said: list[str] = []
    with locked(protected / "run", may_only_read=True, remark=said.append):
        pass
    assert "run: cannot be locked (Permission denied)" in said[0]
    with pytest.raises(InputError), locked(protected / "new", may_only_read=True):
        pytest.fail("there is nothing to read")


OWN_LOCK = {"predict"}
"""Its table is a database, which has a lock of its own."""


def public_functions() -> dict[str, Callable[..., Any]]:
    named = {name: getattr(thoraclip, name) for name in thoraclip.__all__}
    commands = {command.title: command.function for command in COMMANDS if command.title not in METHODS}
    return {
        **{n: f for n, f in named.items() if inspect.isfunction(f)},
        **commands,
        **{k: method_function(k) for k in METHODS},
    }


def unlocked(functions: dict[str, Callable[..., Any]]) -> set[str]:
    """Those with an `out` that no lock guards."""
    return {
        name
        for name, function in functions.items()
        if "out" in inspect.signature(function).parameters and not hasattr(function, "writes")
    }


def test_every_function_with_an_out_is_locked() -> None:
    def dummy(source: Path, *, out: Path) -> None:
        """A new command that forgot it."""

    functions = public_functions()
    assert len(functions) > 20 and unlocked(functions) == OWN_LOCK
    assert unlocked({**functions, "dummy": dummy}) == OWN_LOCK | {"dummy"}
    assert unlocked({"dummy": writes(file=True)(dummy)}) == set()
    assert getattr(functions["phantom"], "writes", "") == "folder"


@pytest.mark.parametrize("is_file", [True, False])
def test_a_marked_function_holds_the_lock_and_refuses_what_is_in_the_way(tmp_path: Path, is_file: bool) -> None:
    ran: list[Path] = []

    @writes(file=is_file, own={"a.json": ("a.md",)}, unless="dry_run")
    def dummy(source: str, *, out: Path | None = None, dry_run: bool = False) -> None:
        if out and not dry_run:
            other = contextvars.Context()  # in which nothing is held yet
            with pytest.raises(InputError, match=BUSY):
                other.run(lambda: locked(out).__enter__())
        ran.append(Path(source))

    dummy("1", out=tmp_path / "out")
    dummy("2")
    holder = Holder(tmp_path / "out")
    dummy("3", out=tmp_path / "out", dry_run=True)
    with pytest.raises(InputError, match=BUSY):
        dummy("4", out=tmp_path / "out")
    holder.end()
    assert ran == [Path("1"), Path("2"), Path("3")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.md").write_text("mine")
    with pytest.raises(InputError, match="is a folder" if is_file else r"a\.md: is in the way"):
        dummy("5", out=tmp_path / "out")
    with pytest.raises(TypeError, match="dummy"):
        dummy(out=tmp_path / "out")  # type: ignore[call-arg]
