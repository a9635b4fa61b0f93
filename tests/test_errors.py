"""The exception tree is the one drawn on top of the module, and near names are found."""

from __future__ import annotations

import re

import pytest

from thoraclip import errors
from thoraclip.errors import MissingExtraError, ThoraclipError, did_you_mean


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
        ("x", [], "; known: "),
    ],
)
def test_did_you_mean(name: str, known: list[str], answer: str) -> None:
    assert did_you_mean(name, iter(known)) == answer
