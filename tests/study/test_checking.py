"""What stops a study stops its dry run, before a file is written and an image goes through a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from PIL import Image
from tests.conftest import draw_picture, files
from tests.study.conftest import method, without_pages, write_study

from thoraclip.data.index import index
from thoraclip.data.splits import split_fractions
from thoraclip.errors import ThoraclipError
from thoraclip.models.dual_encoder import DualEncoder
from thoraclip.study import plan_study, read_study, run_study
from thoraclip.tables.manifest import read_manifest, write_manifest

Change = Callable[[Path], Any]


def spoil(name: str, content: bytes | None) -> Change:
    """Take a file of the model away, or write something else into it."""

    def change(folder: Path) -> None:
        path = folder / "model" / name
        path.unlink() if content is None else path.write_bytes(content)

    return change


def resplit(**columns: Any) -> Change:
    def change(folder: Path) -> None:
        manifest = read_manifest(folder / "m.parquet")
        given = {
            name: value(manifest) if callable(value) else [value] * len(manifest) for name, value in columns.items()
        }
        write_manifest(folder / "m.parquet", manifest.with_columns(**given))

    return change


def without_test(folder: Path) -> None:
    manifest = read_manifest(folder / "m.parquet")
    nothing = [None] * len(manifest)
    parts = ["val" if row % 4 == 0 else "train" for row in range(len(manifest))]
    write_manifest(folder / "m.parquet", manifest.with_columns(fold=nothing, patient=nothing, split=parts))


def put(name: str, text: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")

    return change


def nothing(_: Path) -> None:
    """The study file alone is wrong."""


ZERO = method("zeroshot", "zero-shot")
OTHER = '[external.b]\nmanifest = "m.parquet"\n'
CASES: dict[str, tuple[str, Change, str]] = {
    "model unknown": (ZERO + method("probe", "late", model="./nowhere"), nothing, "'late': model './nowhere': no such"),
    "model misspelt": (ZERO + method("probe", "late", model="tiny-clop"), nothing, "did you mean 'tiny-clip'"),
    "captioner's model": ('captioner = "blip"\ncaption_model = "./nowhere"\n' + ZERO, nothing, "'./nowhere': no such"),
    "model on the Hub": (ZERO + method("probe", "late", model="nobody/none"), nothing, "(which cannot be reached: no route"),
    "captioner on the Hub": ('captioner = "blip"\n' + ZERO, nothing, "model 'Salesforce/blip-image-captioning-base': neither"),
    **{
        f"model's {name} {'gone' if content is None else 'spoilt'}": (ZERO, spoil(name, content), message)
        for name, message in (
            ("config.json", "config.json: "),
            ("preprocessor_config.json", "preprocessor_config.json"),
            ("model.safetensors", "safetensors"),
        )
        for content in (None, b"", b"{", b"[]")
    },
    "model without tokenizer": (ZERO, spoil("tokenizer.json", None), "tokenizer.json is needed"),
    "precision": (ZERO + method("probe", "late", precision="fp8"), nothing, "unknown precision 'fp8'"),
    "adapter": (ZERO + method("probe", "late", adapter="nowhere"), nothing, "'nowhere': no adapter there"),
    "adapter without weights": (
        ZERO + method("probe", "late", adapter="tuned"), put("tuned/adapter_config.json", "{}"), "adapter_model",
    ),
    "captions": (ZERO + method("finetune", "late", loss="unicl", captions="nowhere.csv"), nothing, "nowhere.csv"),
    "captions of others": (
        ZERO + method("finetune", "late", loss="unicl", captions="c.csv"), put("c.csv", "image_id,caption\nx,film\n"), "none of the images",
    ),
    "caption column": ('captioner = "column"\ncaption_column = "text"\n' + ZERO, nothing, "caption_column = 'text'"),
    "embeddings": (ZERO + method("probe", "late", embeddings="nowhere"), nothing, "nowhere: no finished embeddings"),
    "prompts": (ZERO + method("zeroshot", "late", prompts="chest"), nothing, "unknown prompts 'chest'"),
    "prompts' file": (ZERO + method("zeroshot", "late", prompts="no.toml"), nothing, "no.toml: is missing; name a TOML file"),
    "processes": (ZERO + method("finetune", "late", processes=3), nothing, "processes = 3"),
    "prevalence": ('prevalence = ["flu=0.1"]\n' + ZERO, nothing, "flu"),
    "class": ('classes = ["flu", "cold"]\n' + ZERO, nothing, "class 'flu' has no image"),
    "fold": ("only_folds = [7]\n" + ZERO, nothing, "no fold 7"),
    "no test image": (ZERO, without_test, "no test image"),
    "no label": (ZERO, resplit(label=None), "no labelled image"),
    "external set": (ZERO + OTHER.replace("m.parquet", "b.parquet"), nothing, "'b': b.parquet: no such manifest"),
    "external folder": (ZERO + '[external.b]\nfolder = "nowhere"\n', nothing, "'b': nowhere: no such folder"),
    "external labels": (ZERO + OTHER + 'labels = { "flu" = "Normal" }\n', nothing, "no image has the label 'flu'"),
    "external class": (ZERO + OTHER + 'labels = { "Normal" = "flu" }\n', nothing, "no class of the study"),
    "external split": (ZERO + OTHER + 'split = "test"\n', nothing, "its images name no split"),
    "external set of the study's images": (ZERO + OTHER, nothing, "'b': no image is left to judge (24 identical"),
    "manifest": (ZERO, lambda folder: (folder / "m.parquet").unlink(), "no such manifest"),
    "out is a file": (ZERO, put("out", ""), "out: cannot be written"),
    "out is below a file": (ZERO, put("file", ""), "out: cannot be written"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_stops_a_study_stops_its_dry_run_before_any_work(
    name: str, images: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(url: str) -> None:
        raise ConnectionError("no route")

    def forward(*_: object, **__: object) -> None:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(DualEncoder, "image_features", forward)
    monkeypatch.setattr(DualEncoder, "text_features", forward)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clip, tmp_path / "model")
    shutil.copy(images / "m.parquet", tmp_path / "m.parquet")
    text, change, message = CASES[name]
    write_study(tmp_path, tmp_path / "model", text)
    change(tmp_path)
    before, said = files(tmp_path), []
    out = Path("file/out") if name == "out is below a file" else Path("out")
    for work in (plan_study, run_study):
        with pytest.raises(ThoraclipError) as caught:
            work(*read_study(Path("s.toml"), {}), out)
        said.append(str(caught.value))
        assert files(tmp_path) == before
    assert message in said[0] and said[0] == said[1] and "\n" not in said[0]


@pytest.mark.parametrize("kind", ["manifest", "folder"])
def test_an_external_set_of_one_class_is_judged_by_what_is_defined(
    kind: str, images: Path, clip: Path, tmp_path: Path
) -> None:
    study = read_manifest(images / "m.parquet")
    label = study.label_set().names[0]
    folder = tmp_path / "outside" / label
    folder.mkdir(parents=True)
    for number in range(6):
        Image.fromarray(draw_picture(60, 64, seed=700 + number)).save(folder / f"new{number}.png")
    found = index(tmp_path / "outside", layout="folders", one_class=True).manifest
    write_manifest(tmp_path / "b.parquet", found)
    place = 'manifest = "b.parquet"' if kind == "manifest" else 'folder = "outside"'
    text = f'resamples = 100\naudit = "none"\n{ZERO}[external.b]\n{place}\n'
    file = write_study(tmp_path, clip, text, manifest=images / "m.parquet")
    plan_study(*read_study(file, {}), tmp_path / "out")
    with without_pages():
        report = run_study(*read_study(file, {}), tmp_path / "out")
    (outside,) = report["external"]
    (row,) = outside["methods"]
    assert set(row["per_class"]) == {label} and outside["n"] == 6
    assert row["per_class"][label]["recall"]["value"] == row["metrics"]["accuracy"]["value"]
    for name in ("auroc", "macro_auprc"):
        assert not row["metrics"].get(name) or row["metrics"][name]["value"] is None, name
    assert all(np.isfinite(value) for value in _numbers(row["metrics"]))


def _numbers(content: Any) -> list[float]:
    if isinstance(content, dict):
        return [number for value in content.values() for number in _numbers(value)]
    return [content] if isinstance(content, float) else []


def test_a_folder_and_a_manifest_replace_each_other_and_a_table_lists_a_folder(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_manifest(images / "m.parquet")
    table = zip(rows.column("path"), rows.column("label"), rows.column("patient"), strict=True)
    lines = ["file,finding,pid", *(",".join(row) for row in table)]
    (tmp_path / "patients.csv").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {"csv": "patients.csv", "path_column": "file", "label_column": "finding", "patient_column": "pid"}
    root = str(rows.root)
    listed = read_study(root, names)[0].list_images()
    for name in ("image_id", "label", "patient"):
        assert listed.column(name) == rows.column(name)
    (tmp_path / "f.toml").write_text(f'folder = {json.dumps(root)}\ncsv = "patients.csv"\n', encoding="utf-8")
    (tmp_path / "m.toml").write_text('manifest = "gone.parquet"\n', encoding="utf-8")
    file = str(images / "m.parquet")
    for source, settings in (("f.toml", {"manifest": file}), ("m.toml", {"manifest": file}), (file, {})):
        config = read_study(source, settings)[0]
        assert (config.manifest, config.folder, config.csv) == (file, "", "")
    config = read_study("m.toml", {"folder": root, **names})[0]
    assert (config.manifest, config.folder, config.folder_layout()) == ("", root, "csv")
    assert read_study("f.toml", {})[0].csv == "patients.csv"
    with pytest.raises(ThoraclipError, match="give either 'manifest' or 'folder'"):
        read_study("m.toml", {"manifest": file, "folder": root})
    for bad, message in (({"csv": "t.csv", "layout": "folders"}, "leave one out"), ({"layout": "csv"}, "csv = FILE")):
        with pytest.raises(ThoraclipError, match=message):
            read_study("f.toml" if "csv" in bad else root, bad)


def test_a_split_that_the_study_has_is_kept(images: Path, clip: Path, tmp_path: Path) -> None:
    """The check refuses nothing that runs."""
    rows = read_manifest(images / "m.parquet")
    split = split_fractions(rows.with_columns(fold=[None] * len(rows)), fractions=(0.5, 0.25, 0.25), seed=0)
    write_manifest(tmp_path / "m.parquet", split)
    file = write_study(tmp_path, clip, ZERO)
    assert plan_study(*read_study(file, {}), tmp_path / "out")["images"] == len(rows)
