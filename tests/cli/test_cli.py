"""As a user: from a folder to a page, killed on the way, and every mistake answered in one line."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image
from tests.cli.interrupted import killed_at
from tests.conftest import Capture, files
from tests.forked import finish

import thoraclip.study
from thoraclip.cli.app import run
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest


def refused(arguments: list[str], capsys: Capture) -> str:
    """Run what must fail; returns its one line."""
    code = run(arguments)
    captured = capsys.readouterr()
    work = ("indexing:", "embedding:", "images:", "row ", "judging")
    lines = [line for line in captured.err.splitlines() if not line.startswith(work)]
    assert code == 2, captured.err
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in captured.err
    return lines[0]


def test_from_a_folder_to_a_page(class_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    m, s, out = str(tmp_path / "m.parquet"), str(tmp_path / "s.parquet"), tmp_path / "report"
    assert run(["index", str(class_folder), "--layout", "folders", "--out", m]) == 0
    assert run(["split", m, "--folds", "3", "--seed", "1", "--out", s]) == 0
    assert run(["embed", s, "--model", "tiny-clip", "--out", str(tmp_path / "e")]) == 0
    embeddings = f"embeddings={tmp_path / 'e'}"
    assert run(["zeroshot", s, "--out", str(tmp_path / "zeroshot"), "--set", embeddings]) == 0
    assert run(["probe", s, "--out", str(tmp_path / "probe"), "--set", embeddings, "--set", "l2_steps=3"]) == 0
    runs = [str(tmp_path / "zeroshot"), str(tmp_path / "probe" / "predictions.parquet")]
    assert run(["report", *runs, "--manifest", s, "--resamples", "200", "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["schema"] == 1
    assert {m["name"] for m in report["methods"]} == {"zeroshot", "probe", "majority"}
    for option, shown in {"--thumbnails": True, "--no-thumbnails": False}.items():  # zero-shot alone is wrong somewhere
        arguments = ["report", runs[0], "--manifest", s, option, "--resamples", "200", "--out", str(tmp_path / option)]
        assert run(arguments) == 0
        assert ("data:image" in (tmp_path / option / "report.html").read_text()) is shown
    told = capsys.readouterr().out
    assert "macro F1" in told and "not for diagnosis" in told


def test_a_manifest_knows_its_folds_after_split(manifest_file: Path, tmp_path: Path) -> None:
    assert run(["split", str(manifest_file), "--fractions", "0.6,0.2,0.2", "--out", str(tmp_path / "f.parquet")]) == 0
    manifest = read_manifest(tmp_path / "f.parquet")
    assert set(manifest.column("split")) == {"train", "val", "test"}
    assert set(manifest.column("fold")) == {None}


def test_the_demo_runs_offline(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first method of two kinds alone; `make demo` runs them all."""
    whole = thoraclip.study.run_study

    def short(config: Any, methods: list[Any], *arguments: Any, **others: Any) -> Any:
        by_kind = {method.kind: method for method in reversed(methods)}
        assert set(by_kind) >= {"zeroshot", "probe", "finetune"}
        few = [dataclasses.replace(by_kind[kind], after=None) for kind in ("zeroshot", "probe")]
        return whole(dataclasses.replace(config, audit="none", resamples=100), few, *arguments, **others)

    monkeypatch.setattr(thoraclip.study, "run_study", short)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(["demo", "--images", "60", "--out", str(tmp_path / "demo")]) == 0
    assert {"report.json", "report.md", "report.html"} <= {f.name for f in (tmp_path / "demo").iterdir()}
    out = capsys.readouterr().out
    assert "linear probe" in out
    assert str(tmp_path / "demo" / "report.html") in out


def test_anyones_csv_is_judged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shares = rng.uniform(size=60)
    labels = np.where(rng.uniform(size=60) < shares, "sick", "well")
    rows = [f"{i},{label},{p},{1 - p},x" for i, (label, p) in enumerate(zip(labels, shares, strict=True))]
    (tmp_path / "mine.csv").write_text("\n".join(["image_id,label,score_sick,score_well,my own column", *rows]))
    assert run(["report", str(tmp_path / "mine.csv"), "--resamples", "200", "--out", str(tmp_path / "r")]) == 0
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["classes"] == ["sick", "well"]
    (row,) = (m for m in report["methods"] if m["name"] == "mine")
    assert row["metrics"]["accuracy"]["value"] == np.mean((labels == "sick") == (shares > 0.5))
    assert report["sample"]["unit"] == "image"


def test_patients_and_groups_are_looked_up_in_the_manifest(manifest: Manifest, tmp_path: Path, capsys: Capture) -> None:
    groups: dict[str, list[str]] = {"sex": ["F", "M"] * 12, "view": ["PA"] * 24}
    write_manifest(tmp_path / "m.parquet", manifest.with_columns(**groups))
    rows = "".join(f"{i},{label},0.4,0.3,0.3\n" for i, label in manifest.by_id("label").items())
    header = "image_id,label," + ",".join(f"score_{name}" for name in manifest.label_set().names)
    (tmp_path / "p.csv").write_text(f"{header}\n{rows}")
    arguments = ["report", str(tmp_path / "p.csv"), "--manifest", str(tmp_path / "m.parquet"), "--resamples", "100"]
    assert run([*arguments, "--out", str(tmp_path / "r"), "--prevalence", "Normal=0.9"]) == 0
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["sample"]["unit"] == "patient"
    entry = report["methods"][0]
    assert [column["column"] for column in entry["subgroups"]] == ["sex"]
    assert entry["predictive_values"]["Normal"]["stated"]["prevalence"] == 0.9
    assert "By sex" in (tmp_path / "r" / "report.html").read_text()
    capsys.readouterr()
    assert run([*arguments, "--out", str(tmp_path / "x"), "--prevalence", "Norml=0.9"]) == 2
    told = capsys.readouterr().err
    assert "error: prevalence of 'Norml': no such class; did you mean 'Normal'" in told and told.count("\n") == 1
    assert not (tmp_path / "x").exists()
    write_manifest(tmp_path / "m.parquet", manifest.take(np.arange(20)))
    assert run([*arguments, "--out", str(tmp_path / "part")]) == 0
    *_, unnamed, lost = json.loads((tmp_path / "part" / "report.json").read_text())["reading"]
    assert unnamed.startswith("Groups by sex, age, view and source were not compared: the manifest does not name two")
    assert lost == "The manifest does not have 4 of the 24 images of the predictions: their group is unknown."
    capsys.readouterr()
    foreign = manifest.with_columns(image_id=[f"other{row}" for row in range(len(manifest))])
    write_manifest(tmp_path / "m.parquet", foreign)
    assert run([*arguments, "--out", str(tmp_path / "x")]) == 2
    told = capsys.readouterr().err
    assert "error: manifest: it has none of the 24 images of the predictions" in told and told.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_unreadable_pictures_are_set_aside(class_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    whole = (class_folder / "COVID-19" / "0.png").read_bytes()
    (class_folder / "COVID-19" / "broken.png").write_bytes(whole[: len(whole) // 2])
    (class_folder / "COVID-19" / "empty.jpg").write_bytes(b"")
    assert run(["index", str(class_folder), "--layout", "folders", "--out", str(tmp_path / "m.parquet")]) == 0
    err = capsys.readouterr().err
    assert "pictures set aside: 2" in err and "COVID-19/broken.png: damaged" in err
    report = json.loads((tmp_path / "m.index.json").read_text())
    assert [s["path"] for s in report["set_aside"]] == ["COVID-19/broken.png", "COVID-19/empty.jpg"]
    assert report["images"] == 24


def test_embed_killed_again_and_again_goes_on_and_ends_with_the_same_bytes(manifest_file: Path, tmp_path: Path) -> None:
    options = ["--model", "tiny-clip", "--batch-size", "4", "--precision", "fp32"]
    arguments = ["embed", str(manifest_file), *options, "--out"]
    assert run([*arguments, str(tmp_path / "whole")]) == 0
    broken = tmp_path / "broken"
    for name, count, is_written, rows in (
        ("progress.json", 1, True, 4),
        ("progress.json", 3, False, 12),  # two of three written by this process
        ("pooled.npy", 1, True, 24),
        ("embeddings.json", 1, False, 24),
    ):
        killed = finish(killed_at, [*arguments, str(broken)], name, count, is_written)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert json.loads((broken / "progress.json").read_text())["rows"] == rows
        assert not (broken / "embeddings.json").exists()
    assert run([*arguments, str(broken)]) == 0
    assert files(broken) == files(tmp_path / "whole")


def test_check_split_and_card(class_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """A user finds a copy on both sides of the split, splits again with the copies together, and describes the data."""
    for picture in class_folder.rglob("*.png"):
        to = tmp_path / "data" / ("train" if int(picture.stem) < 5 else "test") / picture.relative_to(class_folder)
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.open(picture).resize((96, 96)).save(to)
    copy = Image.open(tmp_path / "data" / "train" / "Normal" / "0.png").resize((80, 80))
    copy.save(tmp_path / "data" / "test" / "Normal" / "copy.jpg")
    m, s, c = str(tmp_path / "m.parquet"), str(tmp_path / "s.parquet"), tmp_path / "check"
    assert run(["index", str(tmp_path / "data"), "--out", m]) == 0
    capsys.readouterr()
    assert run(["check", m]) == 0, "without --strict a leak is only told"
    told = capsys.readouterr().out
    assert "leak: 1 picture in two parts of the split (2 images), first test/Normal/copy.jpg = " in told
    assert run(["check", m, "--strict", "--out", str(c)]) == 1
    assert {f.name for f in c.iterdir()} == {"check.json", "check.md", "check.html", "inspection"}
    assert run(["split", m, "--folds", "3", "--duplicates", str(c), "--out", s]) == 0
    fold = read_manifest(Path(s)).by_id("fold")
    assert fold["test/Normal/copy.jpg"] == fold["train/Normal/0.png"]
    capsys.readouterr()
    assert run(["check", s, "--strict"]) == 0
    assert "no leak found" in capsys.readouterr().out
    other = refused(["card", s, "--check", str(c), "--out", str(tmp_path / "k")], capsys)
    assert "made on another split, or other labels or patients; run thoraclip check again" in other
    card = ["--set", "name=Small set", "--set", "licence=CC0-1.0", "--out", str(tmp_path / "k")]
    assert run(["card", m, "--check", str(c), *card]) == 0
    assert "Small set" in (tmp_path / "k" / "data-card.md").read_text()
    assert json.loads((tmp_path / "k" / "croissant.json").read_text())["name"] == "Small set"


def test_decoded_pictures_are_shared_between_commands(manifest_file: Path, tmp_path: Path) -> None:
    pixels = ["--pixels", str(tmp_path / "pixels")]
    assert run(["embed", str(manifest_file), "--model", "tiny-clip", "--out", str(tmp_path / "e"), *pixels]) == 0
    for path in read_manifest(manifest_file).paths()[1:]:
        path.unlink()
    assert run(["zeroshot", str(manifest_file), "--out", str(tmp_path / "z"), *pixels]) == 0
    assert run(["probe", str(manifest_file), "--out", str(tmp_path / "q"), "--set", "l2_steps=3", *pixels]) == 0
    assert len(list((tmp_path / "pixels").iterdir())) == 1


def test_python_dash_m_works() -> None:
    done = subprocess.check_output([sys.executable, "-m", "thoraclip", "--version"], text=True, timeout=60)
    assert done.startswith("thoraclip ")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


OUT = ["--out", "{out}.parquet"]
SET = ["--out", "{out}", "--set"]
MISTAKES: list[tuple[list[str], str]] = [
    (["index", "{nowhere}", *OUT], "no such folder"),
    (["index", "{empty}", "--layout", "folders", *OUT], "no PNG, JPEG or DICOM picture"),
    (["index", "{images}", "--layout", "folder", *OUT], "unknown layout 'folder'; did you mean 'folders'?"),
    (["index", "{images}", "--out", "{text}/m.parquet"], "cannot be written"),
    (["study", "{nowhere}", *OUT], "is missing; name a study file"),
    (["split", "{text}", "--folds", "3", *OUT], "not a readable Parquet file"),
    (["embed", "{manifest}", "--model", "tiny-clop", *OUT], "did you mean 'tiny-clip'?"),
    (
        ["embed", "{manifest}", "--model", "nobody/no-such-model", *OUT],
        "'nobody/no-such-model': neither a local folder",
    ),
    (["report", "{csv}", *OUT, "--prevalence", "a=1"], "prevalence of 'a' = 1.0: a number between 0 and 1 is needed"),
    (["report", "{csv}", *OUT], "class 'c' stands in 'label' but has no column 'score_c'"),
    (["probe", "{manifest}", *SET, "bacth_size=3"], "unknown setting 'bacth_size'; did you mean 'batch_size'?"),
    (["probe", "{manifest}", *SET, "bacth_size=3", "--set", "sede=1"], "unknown setting 'sede'; did you mean 'seed'?"),
    *(
        ([command, "{manifest}", *SET, "out=x"], "--set: unknown setting 'out'; arguments and options are no settings")
        for command in ("probe", "audit", "card")
    ),
    (["probe"], "Missing argument 'MANIFEST'"),
    (["indx"], "No such command 'indx'"),
    (["split", "m.parquet", "--flods", "3"], "No such option: --flods"),
    (["split", "m.parquet", *OUT], "give either --folds 5 or --fractions"),
    (["split", "m.parquet", "--folds", "many", *OUT], "Invalid value for '--folds'"),
    (["phantom", "{out}", "--shortcut", "boarder=0.9"], "did you mean 'border'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
@pytest.mark.usefixtures("manifest_file", "offline")
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("hello")
    (tmp_path / "p.csv").write_text("image_id,label,score_a,score_b\n1,a,0.5,0.5\n2,c,0.5,0.5\n")
    places = {name: name for name in ("images", "empty", "out")}
    places |= {"nowhere": "no", "text": "text.parquet", "csv": "p.csv", "manifest": "m.parquet"}
    before = files(tmp_path)
    words = [word.format(**{name: tmp_path / place for name, place in places.items()}) for word in arguments]
    assert message in refused(words, capsys)
    assert files(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_embeddings_and_predictions_of_other_images(
    manifest: Manifest, manifest_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    write_manifest(tmp_path / "o.parquet", manifest.take(np.arange(4)))
    e, p, q = tmp_path / "e", tmp_path / "p.csv", tmp_path / "q.csv"
    assert run(["embed", str(tmp_path / "o.parquet"), "--model", "tiny-clip", "--out", str(e)]) == 0
    capsys.readouterr()
    arguments = ["probe", str(manifest_file), "--out", str(tmp_path / "r"), "--set", f"embeddings={e}"]
    assert "they belong to another manifest" in refused(arguments, capsys)
    for path, second in ((p, 2), (q, 3)):
        path.write_text(f"image_id,label,score_a,score_b\n1,a,0.5,0.5\n{second},b,0.5,0.5\n")
    assert "'q'" in refused(["report", str(p), str(q), "--out", str(tmp_path / "r")], capsys)


def test_changed_pictures(manifest_file: Path, tmp_path: Path, capsys: Capture) -> None:
    path = read_manifest(manifest_file).paths()[0]
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (50, 50), dtype=np.uint8)).save(path)
    line = refused(["embed", str(manifest_file), "--model", "tiny-clip", "--out", str(tmp_path / "e")], capsys)
    assert "its content changed since it was indexed" in line
