"""`split --leave-out source` on the command line, and a study on its folds that goes on after it was ended."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from thoraclip.cli.app import run
from thoraclip.data.index import index
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.tables.manifest import read_manifest, write_manifest
from thoraclip.tables.predictions import read_predictions

STUDY = """manifest = "{manifest}"
model = "tiny-clip"
resamples = 100
audit = "none"
[[methods]]
name = "zero-shot"
kind = "zeroshot"
[[methods]]
name = "probe"
kind = "probe"
l2_steps = 2
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """36 phantoms from a, b and c, the last of which has no image of the first class; two of an unknown source."""
    write_phantoms(tmp_path / "images", PhantomConfig(images=36, size=32))
    manifest = index(tmp_path / "images", layout="covid-qu-ex").manifest
    first = manifest.label_set().names[0]
    sources: list[str | None] = []
    for label in manifest.column("label"):
        sources.append("ab"[len(sources) % 2] if label == first else "abc"[len(sources) % 3])
    sources[:2] = [None, None]
    write_manifest(tmp_path / "m.parquet", manifest.with_columns(source=pa.array(sources)))
    return tmp_path / "m.parquet"


def test_a_study_on_sources(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, folds = tmp_path / "out", tmp_path / "folds.parquet"
    assert run(["split", str(images), "--leave-out", "source", "--out", str(folds)]) == 0
    said = capsys.readouterr()
    table = " ".join(said.out.split())
    first = read_manifest(images).label_set().names[0]
    assert "fold source images patients classes absent" in table and "none" in table
    assert "2 images of unknown source are always trained on" in said.err
    assert f"source 'c' has no image of {first}" in said.err
    manifest = read_manifest(folds)
    assert set(manifest.column("fold")) == {0, 1, 2, None} and manifest.column("split").count("train") == 2

    (tmp_path / "study.toml").write_text(STUDY.format(manifest=folds.as_posix()))
    assert run(["study", str(tmp_path / "study.toml"), "--out", str(out)]) == 0
    judged = {row: fold for row, fold in manifest.by_id("fold").items() if fold is not None}
    predictions = read_predictions(out / "runs" / "probe")
    assert dict(zip(predictions.image_id, predictions.fold, strict=True)) == judged
    report = json.loads((out / "report.json").read_text())
    assert {row["n"] for row in report["methods"]} == {len(judged)}
    before = (out / "report.json").read_bytes()
    done, folder = next((out / "runs").glob("zero*/done.json")).stat().st_mtime_ns, out / "runs" / "probe"
    (folder / "done.json").unlink()
    assert run(["study", str(tmp_path / "study.toml"), "--out", str(out)]) == 0
    assert (out / "report.json").read_bytes() == before
    assert (folder / "done.json").exists()
    assert next((out / "runs").glob("zero*/done.json")).stat().st_mtime_ns == done


@pytest.mark.parametrize(("more", "message"), [
    (["--leave-out", "sourse"], "did you mean 'source'"),
    (["--leave-out", "source", "--folds", "3"], "give either --folds 5 or"),
    (["--folds", "3", "--merge", "a=b"], "--merge puts sources together"),
    (["--leave-out", "source", "--merge", "a"], "--merge 'a': expected OLD=NEW"),
    (["--leave-out", "source", "--merge", "a=d", "--merge", "b=d", "--merge", "c=d"], "0 of 1 values of 'source'"),
])  # fmt: skip
def test_a_split_by_source_that_cannot_be_is_refused_in_a_line(
    more: list[str], message: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["split", str(images), *more, "--out", str(tmp_path / "f.parquet")]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not (tmp_path / "f.parquet").exists()
