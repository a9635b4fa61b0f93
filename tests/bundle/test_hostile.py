"""A bundle that is damaged, or was written to do harm, is refused in one line before any image is read."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.bundle.hostile import GOOD, HARMLESS, UNSEALED, VALUES, WRONG, changed, make, places
from tests.conftest import CLASSES, examples

from thoraclip.bundle.format import read_bundle
from thoraclip.bundle.opening import open_bundle
from thoraclip.bundle.seal import seal
from thoraclip.errors import InputError, MismatchError, ParityError, ThoraclipError

FACTS = json.loads((GOOD / "bundle.json").read_text()) | {"bits": 12, "weights": "u8"}  # all that a bundle may say
PLACES = sorted(places(FACTS), key=repr)


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    """These files need not outlive the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def refuse(folder: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((MismatchError, InputError, ParityError)) as caught:
            _ = open_bundle(folder).bundle.thumbnails
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message and len(message) < 800 + 2 * len(str(folder))
    assert "; " in message, "no remedy"
    assert peak < 150 << 20


@pytest.mark.parametrize("name", WRONG)
def test_wrong_content_with_the_right_checksums_is_refused(name: str, tmp_path: Path) -> None:
    refuse(make(WRONG[name], tmp_path / "bundle"))


@pytest.mark.parametrize("name", UNSEALED)
def test_files_and_checksums_that_do_not_belong_together_are_refused(name: str, tmp_path: Path) -> None:
    refuse(make(UNSEALED[name], tmp_path / "bundle", sealed=False))


@given(
    st.sampled_from(PLACES),
    st.sampled_from(VALUES)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    ),
)
@examples(300)
def test_any_value_anywhere_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: tuple[Any, ...], value: Any
) -> None:
    """What passes keeps the promises of the attributes."""
    folder = tmp_path_factory.getbasetemp() / "any"
    if not folder.is_dir():
        shutil.copytree(GOOD, folder)
    (folder / "bundle.json").write_text(json.dumps(changed(FACTS, at, value)))
    seal(folder)
    try:
        found = read_bundle(folder)
        assert found.title and 1 <= found.preprocess.size <= 4096 and min(found.preprocess.std) > 0
        assert found.bits is None or 8 <= found.bits <= 16
        assert found.scaling is None or 0 < found.scaling.temperature < 1e4
        assert all(isinstance(name, str) and name for name in found.labels.names)
        assert isinstance(found.facts["provenance"]["inputs"].get("manifest"), str | None)
        _ = found.ood, found.thumbnails, found.self_test()
    except ThoraclipError as error:
        assert ("\n" not in str(error) and str(error).endswith("export the run again")) or "upgrade" in str(error)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_is_read(name: str, tmp_path: Path) -> None:
    assert open_bundle(make(HARMLESS[name], tmp_path / "bundle")).self_test() < 1e-3


def test_links_inside_and_outside_serve_where_the_content_is_the_sealed_one(tmp_path: Path) -> None:
    """As in the cache of huggingface_hub, whose files are links to others."""
    (tmp_path / "bundle").mkdir()
    for file in GOOD.iterdir():
        (tmp_path / "bundle" / file.name).symlink_to(file)
    assert open_bundle(tmp_path / "bundle").self_test() < 1e-3


@pytest.fixture
def folder_of_images(tmp_path: Path) -> Path:
    """An image of each class."""
    for label in CLASSES:
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("L", (40, 40), 99).save(tmp_path / "images" / label / "a.png")
    return tmp_path / "images"


@pytest.mark.parametrize(
    "name",
    [
        "temperature 0",
        "self-test claims 10^12",
        "model of an unknown op",
        "seal of bundle.json alone",
        "trained-on.npz cut",
    ],
)
@pytest.mark.parametrize("command", ["predict", "serve", "explain", "audit"])
def test_every_command_ends_with_one_line_and_exit_code_2(
    command: str, name: str, folder_of_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from thoraclip.cli.app import run

    change, sealed = (WRONG[name], True) if name in WRONG else (UNSEALED[name], False)
    bundle, image = make(change, tmp_path / "bundle", sealed=sealed), folder_of_images / CLASSES[0] / "a.png"
    manifest = tmp_path / "m.parquet"
    if command == "audit":
        assert run(["index", str(folder_of_images), "--layout", "folders", "--out", str(manifest)]) == 0
    line = {
        "predict": ["predict", str(bundle), str(image), "--out", str(tmp_path / "p.csv")],
        "serve": ["serve", str(bundle), "--port", "0"],
        "explain": ["explain", str(bundle), str(image), "--out", str(tmp_path / "e.png")],
        "audit": ["audit", str(bundle), "--manifest", str(manifest), "--out", str(tmp_path / "a")],
    }[command]
    capsys.readouterr()
    assert run(line) == 2
    told = capsys.readouterr().err.strip()
    assert str(bundle) in told.replace("\n", "") and "Traceback" not in told
    assert not (tmp_path / "p.csv").exists() and not (tmp_path / "e.png").exists()
