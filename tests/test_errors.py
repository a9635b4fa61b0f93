"""The exception tree is the one drawn on top of the module, and near names are found."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thoraclip import errors
from thoraclip.errors import MissingExtraError, ThoraclipError, did_you_mean, printable


def drawn_tree() -> dict[str, str]:
    """Class name -> parent's name, read off the drawing in the docstring."""
    tree, path = {}, {0: "ThoraclipError"}
    for line in str(errors.__doc__).splitlines():
        match = re.match(r"^ +((?:\|   )*)\s*\+- (\w+)", line)
        if match:
            depth = line.index("+-") // 4
            path[depth] = match[2]
            tree[match[2]] = path[max(d for d in path if d < depth)]
    return tree


def test_the_drawn_tree_is_the_tree() -> None:
    tree = drawn_tree()
    exported = {n for n in errors.__all__ if n.endswith("Error")} - {"ThoraclipError"}
    assert set(tree) == exported
    for name, parent in tree.items():
        assert getattr(errors, name).__bases__ == (getattr(errors, parent),)
    assert tree["LeakError"] == "ManifestError"
    assert ThoraclipError.__bases__ == (Exception,)
    assert errors.__all__ == sorted(errors.__all__)


def test_missing_extra_names_the_package_and_the_pip_line() -> None:
    message = "'onnx' is not installed; mend it with: pip install 'thoraclip[export]'"
    assert str(MissingExtraError("onnx", "export")) == message


@pytest.mark.parametrize(
    ("name", "known", "answer"),
    [
        ("bacth_size", ["batch_size", "seed"], "; did you mean 'batch_size'?"),
        ("SEED", ["batch_size", "Seed"], "; did you mean 'Seed'?"),
        ("zzz", ["seed", "batch_size"], "; known: batch_size, seed"),
        ("x", [], ""),
    ],
)
def test_did_you_mean(name: str, known: list[str], answer: str) -> None:
    assert did_you_mean(name, iter(known)) == answer


@given(st.text(st.characters(codec=None, exclude_categories=())) | st.binary().map(os.fsdecode))
def test_no_name_moves_the_cursor_turns_the_writing_or_breaks_the_line(name: str) -> None:
    shown = printable(name)
    assert len(shown.splitlines()) <= 1 and not re.search(
        "[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", shown
    )
    shown.encode()


def test_what_can_be_printed_stays() -> None:
    for name in ("Lunge\xa0é 肺.png", "a\\b", "it's", "C:/\U0001f600 [1]"):
        assert printable(name) == name
    assert printable("a\n\x1b[2J\u202e\udcff\t") == r"a\n\x1b[2J\u202e\udcff\t"
