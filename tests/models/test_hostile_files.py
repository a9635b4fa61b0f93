"""A model's or an adapter's files are refused in one line before any weight is loaded."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.errors import ModelError
from thoraclip.models.backbones import read_trained_note
from thoraclip.models.checkpoint import find_checkpoint
from thoraclip.models.files import SHIPPED, Checkpoint, locate, read_note
from thoraclip.models.image_processor import read_preprocess

TINY = Path(locate(SHIPPED[0])[0])
HOSTILE = {
    "a list": "[]", "a text": '"x"', "null": "null", "a number": "1", "empty": "", "deep": "[" * 100_000, "deep table": '{"a":' * 5000 + "1" + "}" * 5000,
    "NaN": '{"size": NaN}', "digits": '{"size": ' + "1" * 5000 + "}", "twice": '{"size": 1, "size": 2}', "surrogate": '{"size": "\\ud800"}', "NUL": '{"size": "\\u0000"}',
    "UTF-16": "{}".encode("utf-16"), "latin-1": '{"é": 1}'.encode("latin-1"), "a picture": b"\x89PNG\r\n\x1a\n",
}  # fmt: skip


def _written(folder: Path, name: str, content: str | bytes) -> Path:
    shutil.copytree(TINY, folder)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def _processor(folder: Path) -> Any:
    return read_preprocess(Checkpoint(str(folder), str(folder), True, None), geometry="squash")


READ = {
    "config.json": lambda folder: find_checkpoint(str(folder)),
    "preprocessor_config.json": _processor,
    "thoraclip.json": read_trained_note,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("name", READ)
def test_a_file_that_is_no_such_document(name: str, content: str | bytes, tmp_path: Path) -> None:
    folder = _written(tmp_path / "model", name, content)
    with pytest.raises(ModelError, match=name) as caught:
        READ[name](folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    folder = _written(tmp_path / "model", "config.json", "{}")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(ModelError, match=r"config.json: cannot be read \(it is no file\)"):
        find_checkpoint(str(folder))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["height", "width", "shortest_edge"]), v),
)


@given(
    st.dictionaries(
        st.sampled_from(["size", "crop_size", "image_mean", "image_std", "resample", "crop_pct", "do_center_crop"]),
        values,
    )
)
@examples(200)
def test_any_processor_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, change: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-processor"
    if not folder.is_dir():
        shutil.copytree(TINY, folder)
    content = json.loads((TINY / "preprocessor_config.json").read_text()) | change
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    try:
        spec = _processor(folder)
    except ModelError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert 1 <= spec.size <= 4096 and min(spec.std) > 0


NOTES = {
    "base": "ab", "log_scale": 2.5, "bias": -1, "facts": {}, "labels": ["a", "b"], "preprocess": {"size": 8}, "schema": 1,
}  # fmt: skip


@given(st.sampled_from([*NOTES]), values)
@examples(100)
def test_any_note_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str, value: Any) -> None:
    """Of an adapter, and of a trained network."""
    folder = tmp_path_factory.getbasetemp() / "any-note"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    for read, own in (
        (read_note, ("base", "log_scale", "bias", "facts")),
        (read_trained_note, ("labels", "preprocess", "facts")),
    ):
        note = {key: NOTES[key] for key in (*own, "schema")}
        (folder / "thoraclip.json").write_text(json.dumps(note))
        assert read(folder) is not None
        (folder / "thoraclip.json").write_text(json.dumps(note | ({name: value} if name in note else {})))
        try:
            found: Any = read(folder)
        except ModelError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert read is read_trained_note or (isinstance(found.base, str) and abs(found.log_scale) <= 20)
