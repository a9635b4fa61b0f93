"""A patient's id leaves the machine only under a secret that does not."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from pathlib import Path

import pytest

from thoraclip.data.index import local_salt, pseudonym, salt_file
from thoraclip.errors import InputError


def test_the_secret_is_made_once_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "one")
    salt = local_salt()
    assert len(salt) == 32 and local_salt() == salt == local_salt(tmp_path / "one" / ".thoraclip" / "patient-salt")
    assert stat.S_IMODE(salt_file().stat().st_mode) == 0o600
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "two")
    assert local_salt() != salt


def test_a_kill_leaves_no_half_secret_and_of_two_first_runs_one_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    link = os.link

    def killed(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    def second(source: str, target: Path) -> None:
        target.write_text("ab" * 32)
        link(source, target)

    monkeypatch.setattr(os, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        local_salt()
    assert list(salt_file().parent.iterdir()) == []
    monkeypatch.setattr(os, "link", second)
    assert local_salt() == b"\xab" * 32
    assert list(salt_file().parent.iterdir()) == [salt_file()]


def test_a_misspelt_file_makes_no_new_secret(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nosuch: no such salt file; name an existing one .*patient-salt"):
        local_salt(tmp_path / "nosuch")
    assert list(tmp_path.iterdir()) == []


def test_a_pseudonym_is_the_cut_hmac() -> None:
    expected = hmac.new(b"s" * 32, b"P 1", hashlib.sha256).hexdigest()
    assert pseudonym("P 1", b"s" * 32) == f"dicom-{expected[:16]}"
    assert len({pseudonym(f"{i}", b"s" * 32) for i in range(10_000)}) == 10_000
    assert pseudonym("P 1", b"t" * 32) != pseudonym("P 1", b"s" * 32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not hex", "holds no patient salt"),
        ("", "of 0 bytes is too short.*name another --salt"),
        ("abcd", "of 2 bytes is too short"),
    ],
)
def test_a_bad_secret_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "salt").write_text(text)
    with pytest.raises(InputError, match=message):
        local_salt(tmp_path / "salt")


def test_an_unwritable_home_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "file")
    with pytest.raises(InputError, match="cannot be kept .*name another --salt"):
        local_salt()
