"""As a user: from a folder to a page, killed on the way, and every mistake answered in one line."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import files

from thoraclip.cli.app import run
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest
from thoraclip.tables.predictions import read_predictions


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run what must fail; returns its one line."""
    code = run(arguments)
    captured = capsys.readouterr()
    work = ("indexing:", "embedding:", "images:", "[", "judging")
    lines = [line for line in captured.err.splitlines() if not line.startswith(work)]
    assert code == 2, captured.err
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.fixture
def manifest_file(manifest: Manifest, tmp_path: Path) -> Path:
    write_manifest(tmp_path / "m.parquet", manifest)
    return tmp_path / "m.parquet"


def test_from_a_folder_to_a_page(class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    for option, shown in (
        ("--thumbnails", True),
        ("--no-thumbnails", False),
    ):  # zero-shot alone: it is surely wrong somewhere
        arguments = ["report", runs[0], "--manifest", s, option, "--resamples", "200", "--out", str(tmp_path / option)]
        assert run(arguments) == 0
        assert ("data:image" in (tmp_path / option / "report.html").read_text()) is shown
    captured = capsys.readouterr()
    assert "macro F1" in captured.out
    assert "not for diagnosis" in captured.out


def test_a_manifest_knows_its_folds_after_split(manifest_file: Path, tmp_path: Path) -> None:
    assert run(["split", str(manifest_file), "--fractions", "0.6,0.2,0.2", "--out", str(tmp_path / "f.parquet")]) == 0
    manifest = read_manifest(tmp_path / "f.parquet")
    assert set(manifest.column("split")) == {"train", "val", "test"}
    assert set(manifest.column("fold")) == {None}


def test_the_demo_runs_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(["demo", "--images", "60", "--out", str(tmp_path / "demo")]) == 0
    assert {"report.json", "report.md", "report.html"} <= {f.name for f in (tmp_path / "demo").iterdir()}
    out = capsys.readouterr().out
    assert "linear probe" in out
    assert str(tmp_path / "demo" / "report.html") in out


def test_anyones_csv_is_judged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with (tmp_path / "mine.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "label", "score_sick", "score_well", "my own column"])
        for i in range(60):
            p = float(rng.uniform())
            writer.writerow([i, "sick" if rng.uniform() < p else "well", p, 1 - p, "x"])
    assert run(["report", str(tmp_path / "mine.csv"), "--resamples", "200", "--out", str(tmp_path / "r")]) == 0
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["classes"] == ["sick", "well"]
    assert report["methods"][0]["name"] == "mine"


def test_patients_are_looked_up_in_the_manifest(manifest: Manifest, manifest_file: Path, tmp_path: Path) -> None:
    rows = "".join(f"{i},{label},0.4,0.3,0.3\n" for i, label in manifest.by_id("label").items())
    header = "image_id,label," + ",".join(f"score_{name}" for name in manifest.label_set().names)
    (tmp_path / "p.csv").write_text(f"{header}\n{rows}")
    for extra, unit in (([], "image"), (["--manifest", str(manifest_file)], "patient")):
        assert (
            run(["report", str(tmp_path / "p.csv"), *extra, "--resamples", "100", "--out", str(tmp_path / unit)]) == 0
        )
        assert json.loads((tmp_path / unit / "report.json").read_text())["sample"]["unit"] == unit


def test_unreadable_pictures_are_set_aside_and_the_rest_goes_on(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sorted(f for f in class_folder.iterdir() if f.is_dir())[0]
    (first / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (first / "empty.jpg").write_bytes(b"")
    assert run(["index", str(class_folder), "--layout", "folders", "--out", str(tmp_path / "m.parquet")]) == 0
    err = capsys.readouterr().err
    assert "pictures set aside: 2" in err
    assert f"{first.name}/broken.png: damaged" in err or f"{first.name}/broken.png: not a PNG" in err
    report = json.loads((tmp_path / "m.index.json").read_text())
    assert [s["path"] for s in report["set_aside"]] == [f"{first.name}/broken.png", f"{first.name}/empty.jpg"]
    assert report["images"] == 24


def spawn(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "thoraclip", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))


def kill_when(process: subprocess.Popen[bytes], reached: object, *, seconds: float = 90) -> None:
    """SIGKILL the process as soon as `reached()` holds."""
    end = time.monotonic() + seconds
    while not reached() and process.poll() is None and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.005)
    assert process.poll() is None, "the process ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)


def test_embed_killed_twice_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Some seconds of work, which is written once a second."""
    assert run(["phantom", str(tmp_path / "phantoms"), "--images", "600", "--size", "48"]) == 0
    assert run(["index", str(tmp_path / "phantoms"), "--out", str(tmp_path / "m.parquet")]) == 0
    arguments = [
        "embed",
        str(tmp_path / "m.parquet"),
        "--model",
        "tiny-clip",
        "--batch-size",
        "1",
        "--precision",
        "fp32",
        "--out",
    ]
    assert run([*arguments, str(tmp_path / "whole")]) == 0
    progress = tmp_path / "broken" / "progress.json"

    def rows() -> int:
        try:
            return int(json.loads(progress.read_text())["rows"])
        except (OSError, ValueError, KeyError):
            return 0

    for reach in (1, 3):
        kill_when(spawn(*arguments, str(tmp_path / "broken")), lambda reach=reach: rows() >= reach)
    assert not (tmp_path / "broken" / "embeddings.json").exists()
    assert run([*arguments, str(tmp_path / "broken")]) == 0
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_study_killed_at_several_stages_ends_with_the_same_bytes(manifest_file: Path, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('manifest = "m.parquet"\nresamples = 200\nprecision = "fp32"\nbatch_size = 1\n')
    arguments = ["study", str(tmp_path / "s.toml"), "--out"]
    assert run([*arguments, str(tmp_path / "whole")]) == 0
    broken = tmp_path / "broken"
    stages = [
        lambda: any(broken.glob("embeddings/*/progress.json")),
        lambda: (broken / "runs" / "zero-shot-ensemble" / "done.json").exists(),
        lambda: (broken / "runs" / "linear-probe" / "head-fold-0.safetensors").exists(),
    ]
    for stage in stages:
        kill_when(spawn(*arguments, str(broken)), stage)
    assert not (broken / "report.html").exists()
    assert run([*arguments, str(broken)]) == 0
    assert files(broken) == files(tmp_path / "whole")


def test_index_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    root = write_phantoms(tmp_path / "p", PhantomConfig(images=300, size=128, infection_fraction=0.5)).root
    arguments = ["index", str(root), "--layout", "covid-qu-ex", "--out"]
    assert run([*arguments, str(tmp_path / "whole" / "m.parquet")]) == 0
    facts = tmp_path / "broken" / "m.facts.jsonl"

    def lines() -> int:
        return len(facts.read_bytes().splitlines()) if facts.exists() else 0

    for reach in (20, 120, 240):
        kill_when(spawn(*arguments, str(tmp_path / "broken" / "m.parquet")), lambda reach=reach: lines() >= reach)
    assert not (tmp_path / "broken" / "m.parquet").exists()
    assert run([*arguments, str(tmp_path / "broken" / "m.parquet")]) == 0
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_check_split_and_card(class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user finds a copy on both sides of the split, splits again with the copies together, and describes the data."""
    for split, labels in (("train", range(5)), ("test", range(5, 8))):
        for label in ("COVID-19", "Non-COVID", "Normal"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in labels:
                picture = Image.open(class_folder / label / f"{i}.png").resize((96, 96))
                picture.save(tmp_path / "data" / split / label / f"{i}.png")
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
    card = [
        "card",
        m,
        "--check",
        str(c),
        "--set",
        "name=Small set",
        "--set",
        "licence=CC0-1.0",
        "--out",
        str(tmp_path / "k"),
    ]
    assert run(card) == 0
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
    done = subprocess.run(
        [sys.executable, "-m", "thoraclip", "--version"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.startswith("thoraclip ")


class TestMistakes:
    """One clear line, exit code 2, nothing half-written."""

    def test_missing_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = str(tmp_path / "m.parquet")
        assert "no such folder" in refused(["index", str(tmp_path / "nowhere"), "--out", out], capsys)
        assert "no such settings file" in refused(["study", str(tmp_path / "nowhere"), "--out", out], capsys)
        assert not Path(out).exists()

    def test_folder_without_images(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "empty").mkdir()
        line = refused(
            ["index", str(tmp_path / "empty"), "--layout", "folders", "--out", str(tmp_path / "m.parquet")], capsys
        )
        assert "no PNG, JPEG or DICOM picture" in line
        assert not (tmp_path / "m.parquet").exists()

    def test_empty_class(self, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (class_folder / "rare").mkdir()
        assert "class 'rare' holds no" in refused(
            ["index", str(class_folder), "--out", str(tmp_path / "m.parquet")], capsys
        )

    def test_class_of_unreadable_pictures(
        self, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (class_folder / "rare").mkdir()
        (class_folder / "rare" / "a.png").write_bytes(b"no picture")
        line = refused(["index", str(class_folder), "--out", str(tmp_path / "m.parquet")], capsys)
        assert "class 'rare' holds no readable picture" in line

    def test_unknown_layout(self, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["index", str(class_folder), "--layout", "folder", "--out", str(tmp_path / "m.parquet")]
        assert "unknown layout 'folder'; did you mean 'folders'?" in refused(arguments, capsys)

    def test_unknown_setting(self, manifest_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = [
            "probe",
            str(manifest_file),
            "--out",
            str(tmp_path / "r"),
            "--set",
            "bacth_size=3",
            "--set",
            "sede=1",
        ]
        line = refused(arguments, capsys)
        assert "unknown setting 'bacth_size'; did you mean 'batch_size'?" in line
        assert "unknown setting 'sede'; did you mean 'seed'?" in line
        assert not (tmp_path / "r").exists()

    @pytest.mark.parametrize("command", ["probe", "audit", "card"])
    def test_setting_in_place_of_an_option(
        self, manifest_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
    ) -> None:
        arguments = [command, str(manifest_file), "--out", str(tmp_path / "r"), "--set", "out=elsewhere"]
        assert "--set: unknown setting 'out'; arguments and options are no settings" in refused(arguments, capsys)

    def test_unknown_model(self, manifest_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["embed", str(manifest_file), "--model", "tiny-clop", "--out", str(tmp_path / "e")]
        assert "did you mean 'tiny-clip'?" in refused(arguments, capsys)
        assert not (tmp_path / "e").exists()

    def test_hub_model_out_of_reach(
        self, manifest_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        arguments = ["embed", str(manifest_file), "--model", "nobody/no-such-model", "--out", str(tmp_path / "e")]
        assert "model 'nobody/no-such-model': neither a local folder" in refused(arguments, capsys)

    def test_missing_weights(self, manifest_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from safetensors.torch import load_file, save_file
        from tests.checkpoints import save_checkpoint

        folder = save_checkpoint("clip", tmp_path / "model")
        capsys.readouterr()
        weights = load_file(folder / "model.safetensors")
        del weights["text_projection.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        line = refused(
            ["zeroshot", str(manifest_file), "--out", str(tmp_path / "z"), "--set", f"model={folder}"], capsys
        )
        assert "1 weights are missing, first 'text_projection.weight'" in line

    def test_embeddings_of_another_data_set(
        self, manifest_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("one", "two"):
            (tmp_path / "other" / name).mkdir(parents=True)
            for i in range(4):
                grey = np.random.default_rng(i + len(name)).integers(0, 256, (40, 40), dtype=np.uint8)
                Image.fromarray(grey).save(tmp_path / "other" / name / f"{i}.png")
        assert run(["index", str(tmp_path / "other"), "--out", str(tmp_path / "o.parquet")]) == 0
        assert run(["embed", str(tmp_path / "o.parquet"), "--model", "tiny-clip", "--out", str(tmp_path / "e")]) == 0
        capsys.readouterr()
        arguments = ["probe", str(manifest_file), "--out", str(tmp_path / "p"), "--set", f"embeddings={tmp_path / 'e'}"]
        assert "they belong to another manifest" in refused(arguments, capsys)

    def test_changed_pictures(self, manifest_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = read_manifest(manifest_file).paths()[0]
        Image.fromarray(np.random.default_rng(9).integers(0, 256, (50, 50), dtype=np.uint8)).save(path)
        line = refused(["embed", str(manifest_file), "--model", "tiny-clip", "--out", str(tmp_path / "e")], capsys)
        assert "its content changed since it was indexed" in line

    def test_a_file_that_is_no_manifest(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "m.parquet").write_text("hello")
        line = refused(
            ["split", str(tmp_path / "m.parquet"), "--folds", "3", "--out", str(tmp_path / "o.parquet")], capsys
        )
        assert "not a readable Parquet file" in line

    def test_predictions_with_a_missing_class(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "p.csv").write_text("image_id,label,score_a,score_b\n1,a,0.5,0.5\n2,c,0.5,0.5\n")
        assert "class 'c' stands in 'label' but has no column 'score_c'" in refused(
            ["report", str(tmp_path / "p.csv"), "--out", str(tmp_path / "r")], capsys
        )
        assert not (tmp_path / "r").exists()

    def test_predictions_that_do_not_sum_to_one(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "p.csv").write_text("image_id,label,score_a,score_b\n1,a,0.5,0.5\n2,b,0.5,0.9\n")
        assert "image '2': scores sum to 1.4, not 1" in refused(
            ["report", str(tmp_path / "p.csv"), "--out", str(tmp_path / "r")], capsys
        )

    def test_predictions_of_other_images(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "p.csv").write_text("image_id,label,score_a,score_b\n1,a,0.5,0.5\n2,b,0.5,0.5\n")
        (tmp_path / "q.csv").write_text("image_id,label,score_a,score_b\n1,a,0.5,0.5\n3,b,0.5,0.5\n")
        line = refused(
            ["report", str(tmp_path / "p.csv"), str(tmp_path / "q.csv"), "--out", str(tmp_path / "r")], capsys
        )
        assert "'p'" in line or "'q'" in line

    def test_missing_extra(self, class_folder: Path, tmp_path: Path) -> None:
        code = "import sys; sys.modules['pyarrow'] = None; from thoraclip.cli.app import main; main()"
        command = [sys.executable, "-c", code, "index", str(class_folder), "--out", str(tmp_path / "m.parquet")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert done.stderr.strip() == "error: 'pyarrow' is not installed; mend it with: pip install 'thoraclip[study]'"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["indx"], "No such command 'indx'"),
            (["split", "m.parquet", "--flods", "3"], "No such option: --flods"),
            (["split", "m.parquet", "--out", "x.parquet"], "give either --folds 5 or --fractions"),
            (["split", "m.parquet", "--folds", "many", "--out", "x"], "Invalid value for '--folds'"),
            (["probe"], "give a manifest and a folder"),
            (["phantom", "x", "--shortcut", "boarder=0.9"], "did you mean 'border'"),
        ],
    )
    def test_usage(self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert message in refused(arguments, capsys)

    def test_unwritable_output(self, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").write_text("x")
        line = refused(["index", str(class_folder), "--out", str(tmp_path / "file" / "m.parquet")], capsys)
        assert "cannot be written" in line


def test_read_predictions_accepts_a_run_folder(manifest_file: Path, tmp_path: Path) -> None:
    assert run(["zeroshot", str(manifest_file), "--out", str(tmp_path / "z")]) == 0
    assert len(read_predictions(tmp_path / "z")) == 24
