"""Study files that hold anything: refused in one line, or methods whose folders are safe on every file system."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.config import toml_value
from thoraclip.errors import ConfigError, ThoraclipError
from thoraclip.study import read_study
from thoraclip.study.reading import folder_name, require_name

NAMES = [
    "../x",
    "con",
    "COM1",
    "a/b",
    "x" * 200,
    "\U0001f600",
    "..",
    ".",
    " x ",
    "A",
    "a",
    "é",
    "aux.txt",
    "-",
    "~",
    "C:\\x",
    "[/b]",
    "{0}",
]
any_name = st.text(min_size=1, max_size=200) | st.sampled_from(NAMES)


@examples(100)
@given(st.lists(any_name, min_size=1, max_size=12, unique=True))
def test_folders_are_different_and_safe_everywhere(names: list[str]) -> None:
    taken: list[str] = []
    for name in names:
        folder = folder_name(name, taken)
        assert re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", folder) and len(folder) < 110
        assert not re.fullmatch(r"con|prn|aux|nul|com\d|lpt\d", folder)
        taken.append(folder)
    assert len({folder.casefold() for folder in taken}) == len(names)


@examples(100)
@given(any_name)
def test_a_name_is_taken_or_refused_with_the_rule(name: str) -> None:
    try:
        require_name(name, "s.toml, method 1")
    except ConfigError as error:
        assert str(error).startswith("s.toml, method 1: name = ") and (not name.isprintable() or not name.strip())
    else:
        assert name.strip() and "\n" not in name and "\x1b" not in name


HEAD = 'manifest = "m.parquet"\n'


def method(**values: Any) -> str:
    return "[[methods]]\n" + "".join(f"{name} = {toml_value(value)}\n" for name, value in values.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "rank = 8", "'rank' is a setting of finetune; write it in the [[methods]] table of one"),
        (HEAD + method(kind="probe", folds=3), "method 'probe': unknown setting 'folds'"),
        (HEAD + "[seeds]\na = 1", "seeds = {'a': 1}: a list is needed"),
        (HEAD + "[model]\nname = 'x'", "model = {'name': 'x'}: text is needed"),
        (HEAD + "folds = '5'", "folds = '5': a whole number from 2 to 1,000 is needed"),
        (HEAD + "seeds = [[1]]", "seeds = [1]: a whole number"),
        (HEAD + "seeds = [0, 1.5]", "seeds = 1.5: a whole number"),
        (HEAD + "methods = []", "'methods' must be one [[methods]] table or more"),
        (HEAD + "methods = [1]", "'methods' must be one [[methods]] table or more"),
        (HEAD + "[methods]\nkind = 'probe'", "'methods' must be one [[methods]] table or more"),
        (HEAD + method(kind=["probe"]), "method 1 has no 'kind'"),
        (HEAD + method(kind="probe", name=["x"]), "method 1: name = ['x']: one line"),
        (HEAD + method(kind="probe", name=""), "method 1: name = '': one line"),
        (HEAD + method(kind="probe", name="majority"), "name = 'majority': the report adds a row of this name"),
        (HEAD + method(kind="probe", name="a\nb"), r"name = 'a\nb': one line"),
        (HEAD + method(kind="probe", name="x" * 201), "one line of 1 to 200 letters"),
        (HEAD + 2 * method(kind="probe", name="x"), "method name 'x' stands twice"),
        (HEAD + method(kind="probe", after=["x"]), "after = ['x'] must be the name of a finetune"),
        (HEAD + method(kind="finetune", then=["probe"]), "then = ['probe'] must be the kind"),
        (HEAD + "".join(method(kind="trivial", name=f"m{i}") for i in range(1_001)), "1,001 methods: at most 1,000"),
        (HEAD + "title = '" + "x" * 100_000 + "'", "at most 10,000 letters"),
        (HEAD + "external = 3", "'external' must be [external.NAME] tables"),
        (HEAD + "[external.'a/b']\nfolder = 'x'", "the name becomes a folder"),
        (HEAD + "[external.b]\nfolder = 'x'\nlabels = [1]", "labels = [1] must name a class"),
        (HEAD + "published = 'x'", "must be"),
    ],
)
def test_a_study_file_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ThoraclipError) as refused:
        read_study(tmp_path / "s.toml", {})
    assert message in str(refused.value) and str(refused.value).startswith(str(tmp_path / "s.toml"))


def test_any_name_that_is_one_line_has_its_folder(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(HEAD + "".join(method(kind="trivial", name=name) for name in NAMES))
    _, methods = read_study(tmp_path / "s.toml", {})
    assert [m.name for m in methods] == NAMES
    assert len({m.folder.casefold() for m in methods}) == len(NAMES)
