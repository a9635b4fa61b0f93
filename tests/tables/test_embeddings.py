"""Embeddings join by id and content, and an unfinished folder is no embeddings."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.errors import InputError, ManifestError, MismatchError
from thoraclip.tables import store
from thoraclip.tables.arrays import ArrayWriter, ImageArrays, is_valid
from thoraclip.tables.embeddings import EMBEDDINGS, embeddings_fingerprint, read_embeddings
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.store import open_table, write_table

ENCODER, SPEC = {"weights": "tiny", "precision": "fp32"}, {"size": 32}


@pytest.fixture
def folder(manifest: Manifest, tmp_path: Path) -> Path:
    """A finished folder for `manifest`; row i of `pooled` is filled with i."""
    place = tmp_path / "embeddings"
    n = len(manifest)
    writer = ArrayWriter(place, EMBEDDINGS, total=n, token="")
    writer.append({"pooled": np.arange(n)[:, None].repeat(5, 1), "projected": np.ones((n, 3))})
    fingerprint = embeddings_fingerprint(manifest, ENCODER, SPEC)
    facts = {"encoder": ENCODER, "preprocess": SPEC}
    writer.finish(manifest, facts=facts, fingerprint=fingerprint)
    return place


def test_what_is_written_is_read(folder: Path, manifest: Manifest) -> None:
    found = read_embeddings(folder)
    assert list(found.image_id) == manifest.column("image_id")
    assert found.pooled.shape == (24, 5) and found.projected.shape == (24, 3)
    assert (found.encoder, found.preprocess) == (ENCODER, SPEC)
    assert found.fingerprint == embeddings_fingerprint(manifest, ENCODER, SPEC)
    assert isinstance(found.pooled.base, np.memmap)


def test_the_fingerprint_follows_pictures_encoder_and_preprocessing_not_labels(manifest: Manifest) -> None:
    base = embeddings_fingerprint(manifest, ENCODER, SPEC)
    assert embeddings_fingerprint(manifest.with_columns(label=["x"] * 24, fold=[None] * 24), ENCODER, SPEC) == base
    changed: list[tuple[Any, Any, Any]] = [
        (manifest.take(np.arange(23)), ENCODER, SPEC),
        (manifest.take(np.arange(24)[::-1].copy()), ENCODER, SPEC),
        (manifest, {"model": "other"}, SPEC),
        (manifest, ENCODER, {"size": 64}),
    ]
    assert len({base, *(embeddings_fingerprint(*c) for c in changed)}) == 5


def test_validity(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    fingerprint = embeddings_fingerprint(manifest, ENCODER, SPEC)
    assert (
        is_valid(folder, EMBEDDINGS, fingerprint)
        and not is_valid(folder, EMBEDDINGS, "other")
        and not is_valid(tmp_path, EMBEDDINGS, fingerprint)
    )
    (folder / "embeddings.json").write_text("{")
    assert not is_valid(folder, EMBEDDINGS, fingerprint)
    (folder / "embeddings.json").write_text(json.dumps({"schema": 0, "fingerprint": fingerprint}))
    assert not is_valid(folder, EMBEDDINGS, fingerprint)


def test_an_unfinished_folder_is_refused_with_the_command(folder: Path) -> None:
    (folder / "embeddings.json").unlink()
    with pytest.raises(InputError) as caught:
        read_embeddings(folder)
    assert f"{folder}: no finished embeddings; make them with: thoraclip embed" in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"encoder": {}}, {"encoder": None}, {"encoder": {"weights": [], "precision": "x"}}, {"preprocess": 1}]
)
def test_facts_that_are_none_are_refused(folder: Path, change: dict[str, Any]) -> None:
    note = json.loads((folder / "embeddings.json").read_text())
    (folder / "embeddings.json").write_text(json.dumps(note | change))
    with pytest.raises(ManifestError, match=r"embeddings\.json: (encoder|preprocess).* is needed; delete the folder"):
        read_embeddings(folder)


def test_a_newer_schema_is_refused(folder: Path) -> None:
    note = json.loads((folder / "embeddings.json").read_text())
    (folder / "embeddings.json").write_text(json.dumps(note | {"schema": 9}))
    with pytest.raises(ManifestError, match="schema 9 is newer than 1; upgrade thoraclip"):
        read_embeddings(folder)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((23, 5), np.float32), r"pooled\.npy: not the array float32\[24, D1\] .*pooled is float32\[23, 5\]"),
        (np.zeros((24, 5), np.float64), r"pooled\.npy: .*pooled is float64\[24, 5\]"),
        (np.zeros(24, np.float32), r"pooled\.npy: .*pooled is float32\[24\]"),
        (np.array([{}] * 24), r"pooled\.npy: not the array"),
    ],
)
def test_arrays_that_do_not_fit_the_index_are_refused(folder: Path, array: Any, message: str) -> None:
    np.save(folder / "pooled.npy", array, allow_pickle=True)
    with pytest.raises(ManifestError, match=message):
        read_embeddings(folder)


def test_a_missing_or_cut_array_is_refused(folder: Path) -> None:
    path = folder / "projected.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        ManifestError, match=r"projected\.npy: not the array .*delete the folder and run thoraclip embed"
    ):
        read_embeddings(folder)
    path.unlink()
    with pytest.raises(ManifestError, match=r"projected\.npy: not the array"):
        read_embeddings(folder)


@examples(100)
@given(st.data(), st.integers(1, 4))
def test_the_join_is_that_of_a_dictionary(data: st.DataObject, rows: int) -> None:
    """The index lies in the file in pieces of so many rows; images are left out, unknown or changed now and then."""
    known = data.draw(st.dictionaries(st.text("abc", max_size=2), st.sampled_from(["x", "y", None]), min_size=1))
    wanted = {name: known[name] for name in data.draw(st.permutations(sorted(known)))[: data.draw(st.integers(1, 9))]}
    for name in data.draw(st.lists(st.sampled_from([*wanted]), max_size=2)):
        wanted[name] = data.draw(st.sampled_from(["x", "y", "z", None]))
    if data.draw(st.integers(0, 3)) == 0:
        wanted |= {"d": None, "e": "x"}
    columns = zip(("image_id", "sha256"), zip(*known.items(), strict=True), strict=True)
    index = pa.table({name: pa.array(values, pa.string()) for name, values in columns})
    manifest = Manifest.from_rows([{"image_id": i, "sha256": sha} for i, sha in wanted.items()], Path())
    missing = [i for i in wanted if i not in known]
    changed = [i for i in wanted if i in known and known[i] != wanted[i]]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_ROWS", rows)
        file = Path(folder) / "index.parquet"
        write_table(file, index, kind="embeddings", schema=1)
        found = ImageArrays(EMBEDDINGS, open_table(file, kind="embeddings", newest_schema=1), {}, {}, "")
        assert len(found) == len(known)
        assert found.image_id == tuple(known) and found.index.read().equals(index)
        if not missing and not changed:
            assert found.rows_for(manifest).tolist() == [list(known).index(i) for i in wanted]
            return
        with pytest.raises(MismatchError) as caught:
            found.rows_for(manifest)
    assert str(caught.value).startswith(
        f"embeddings: {len(missing)} of {len(wanted)} images of the manifest are not in them, first '{missing[0]}'; "
        if missing
        else f"embeddings: {len(changed)} images differ in content from the manifest's, first '{changed[0]}'; "
    )
