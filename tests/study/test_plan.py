"""A dry run: what it counts is what happens, it writes nothing, and what cannot run is an error of its row."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.checkpoints import save_blip
from tests.conftest import files

from thoraclip import disk
from thoraclip.cli import show
from thoraclip.cli.app import run
from thoraclip.data.views import VIEWS
from thoraclip.methods import baseline
from thoraclip.methods.baseline import SupervisedStep
from thoraclip.methods.contrastive import ContrastiveStep
from thoraclip.methods.training.steps import Steps
from thoraclip.models.captioner import Captioner
from thoraclip.models.dual_encoder import DualEncoder
from thoraclip.study import plan_study, read_study, run_study
from thoraclip.study.settings import study_notes
from thoraclip.tables.embeddings import read_embeddings
from thoraclip.tables.manifest import read_manifest

STUDY = """
manifest = "m.parquet"
resamples = 100
audit = "none"
seeds = [0, 1]
only_folds = [2, 0]
model = "clip"
batch_size = 10
captioner = "blip"
caption_model = "blip"
[[methods]]
name = "zero-shot"
kind = "zeroshot"
[[methods]]
name = "probe"
kind = "probe"
l2_steps = 2
[[methods]]
name = "LoRA"
kind = "finetune"
loss = "unicl"
batch_size = 5
chunk_size = 2
steps = 3
validate_every = 2
val_fraction = 0.3
select = "probe"
then = "probe"
[[methods]]
name = "zero-shot, tuned"
kind = "zeroshot"
after = "LoRA"
[[methods]]
name = "network"
kind = "baseline"
batch_size = 4
chunk_size = 4
epochs = 2
[[methods]]
name = "other geometry"
kind = "zeroshot"
geometry = "pad"
[[methods]]
name = "trivial"
kind = "trivial"
max_iter = 4
min_samples_leaf = 2
"""


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip(tmp_path_factory.mktemp("models") / "blip", seed=1)


@pytest.fixture
def study_file(images: Path, clip: Path, blip: Path, tmp_path: Path) -> Path:
    for name, place in {"m.parquet": images / "m.parquet", "clip": clip, "blip": blip}.items():
        (tmp_path / name).symlink_to(place)
    (tmp_path / "s.toml").write_text(STUDY)
    return tmp_path / "s.toml"


def summed(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Name -> (encoded, trained), over the seeds; without those that do neither."""
    encoded, trained = Counter[str](), Counter[str]()
    for row in rows:
        encoded[row["name"]] += row["images_encoded"]
        trained[row["name"]] += row["images_trained"]
    return {name: (encoded[name], trained[name]) for name in encoded if encoded[name] or trained[name]}


class Spy:
    """Counts the images that go through the networks, by the method that a study is at."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.name, self.encoded, self.trained = "captions", Counter[str](), Counter[str]()
        for owner, method in ((DualEncoder, "encode_greys"), (Captioner, "caption")):
            self._spy(patch, owner, method, lambda _, greys: self.encoded.update({self.name: len(greys)}))
        self._spy(patch, baseline, "scores_of", lambda *a: self.encoded.update({self.name: len(a[2])}))
        for step in (ContrastiveStep, SupervisedStep):
            self._spy(patch, step, "backward", lambda _, batch: self.trained.update({self.name: len(batch.rows)}))

    def _spy(self, patch: pytest.MonkeyPatch, owner: Any, name: str, count: Any) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            count(*args)
            return original(*args, **kwargs)

        patch.setattr(owner, name, counted)

    def announce(self, line: str) -> None:
        if line.startswith("row "):
            self.name = line.partition(": ")[2]

    @property
    def seen(self) -> dict[str, tuple[int, int]]:
        return {name: (self.encoded[name], self.trained[name]) for name in (*self.encoded, *self.trained)}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn", "untimed")
def test_what_is_counted_is_what_happens(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, methods = read_study(study_file, {})
    out = tmp_path / "out"
    first = plan_study(config, methods, out)
    assert not out.exists()
    with monkeypatch.context() as patch:
        # the last weights are kept: those of step 0 would be the base's, whose embeddings are there
        patch.setattr(Steps, "keep_best", lambda *_: None)
        spy = Spy(patch)
        assert not run_study(config, methods, out, announce=spy.announce)["failed"]
    assert summed([*first["runs"], *first["stages"]]) == spy.seen
    assert {"zero-shot", "LoRA", "network", "other geometry", "captions"} == set(spy.seen), "who comes first pays"
    assert first["totals"]["images_trained"] == sum(spy.trained.values())

    again = plan_study(config, methods, out)
    assert all(row["done"] and row["cached"] == ["run"] for row in again["runs"])
    assert all(row["done"] for row in again["stages"])
    assert summed([*again["runs"], *again["stages"]]) == {}
    for name in ("probe/seed-0", "lora-then-probe/seed-1", "network"):
        shutil.rmtree(out / "runs" / name)
    before = files(out)
    lost = plan_study(config, methods, out)
    assert files(out) == before
    assert {(row["name"], row["seed"]): row["cached"] for row in lost["runs"] if not row["done"]} == {
        ("probe", 0): ["embeddings"], ("LoRA, then probe", 1): ["embeddings"], ("network", 0): [], ("network", 1): [],
    }  # fmt: skip
    with monkeypatch.context() as patch:
        spy = Spy(patch)
        run_study(config, methods, out, announce=spy.announce)
    assert summed(lost["runs"]) == spy.seen


ALONE = """
manifest = "m.parquet"
resamples = 100
audit = "none"
only_folds = [2, 0]
model = "clip"
[[methods]]
name = "LoRA"
kind = "finetune"
batch_size = 5
chunk_size = 5
steps = 1
"""


@pytest.mark.parametrize("follower", ["", 'then = "probe"'])
@pytest.mark.usefixtures("undrawn", "untimed")
def test_a_training_that_none_follows_encodes_what_it_scores(
    follower: str, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_file.write_text(ALONE + follower)
    config, methods = read_study(study_file, {})
    planned = plan_study(config, methods, tmp_path / "out")
    monkeypatch.setattr(Steps, "keep_best", lambda *_: None)
    spy = Spy(monkeypatch)
    assert not run_study(config, methods, tmp_path / "out", announce=spy.announce)["failed"]
    assert summed(planned["runs"]) == spy.seen
    for folder in (tmp_path / "out" / "embeddings").iterdir():
        assert (len(read_embeddings(folder)) == 24) == bool(follower)


@pytest.mark.usefixtures("untimed")
def test_times_are_counts_times_what_a_batch_took(study_file: Path, tmp_path: Path) -> None:
    """A step costs three forward passes, of cached chunks four; nothing is written."""
    config, methods = read_study(
        study_file, {"audit": "all", "audit_images": 12, "seeds": [0], "group_duplicates": False}
    )
    before = files(tmp_path)
    found = plan_study(config, methods, tmp_path / "out")
    assert files(tmp_path) == before
    rows = {row["name"]: row for row in (*found["runs"], *found["stages"])}
    for name, passes in (("LoRA", 4), ("network", 3)):
        row = rows[name]
        assert row["images_trained"] > 0
        assert row["seconds"] == pytest.approx(0.5 * (passes * row["images_trained"] + row["images_encoded"]) + 2)
    assert rows["zero-shot"]["seconds"] == 0.5 * 24 + 2
    assert rows["probe"]["images_encoded"] == rows["LoRA, then probe"]["images_encoded"] == 0
    assert rows["probe"]["seconds"] == pytest.approx(2, abs=0.1)
    audited = [m for m in methods if m.kind != "trivial"]
    assert rows["audit"]["images_encoded"] == len(audited) * 12 * len(VIEWS)
    assert rows["audit"]["seconds"] == 0.5 * rows["audit"]["images_encoded"]
    assert rows["captions"]["seconds"] == 0.5 * 24
    assert found["totals"]["complete"] is True
    assert found["totals"]["seconds"] == pytest.approx(sum(row["seconds"] for row in rows.values()), abs=0.06)
    without, _ = read_study(study_file, {"audit": "none"})
    assert "audit" not in {row["name"] for row in plan_study(without, methods, tmp_path / "out")["stages"]}
    best, _ = read_study(study_file, {"audit": "best", "audit_images": 12})
    one = next(row for row in plan_study(best, methods, tmp_path / "out")["stages"] if row["name"] == "audit")
    assert one["images_encoded"] == 12 * len(VIEWS), "which one is the best is not known: the last one stands for it"


@pytest.mark.usefixtures("untimed")
def test_the_room_for_tokens_is_said_and_a_disk_without_it_is_an_error(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 images in two augmented views and as they are: 17 tokens of 16 fp32 numbers each."""
    rows = """manifest = "m.parquet"\nmodel = "clip"\nprecision = "fp32"\naudit = "none"
[[methods]]\nname = "some"\nkind = "finetune"\nlora_blocks = 1\nprefix_views = 2\nbatch_size = 4
[[methods]]\nname = "all"\nkind = "finetune"\nbatch_size = 4
[[methods]]\nname = "uncached"\nkind = "finetune"\nlora_blocks = 1\nprefix_views = 0\nbatch_size = 4
"""
    study_file.write_text(rows)

    def plan() -> list[dict[str, Any]]:
        return plan_study(*read_study(study_file, {}), tmp_path / "out")["runs"]

    some, every, uncached = plan()
    assert [row["token_bytes"] for row in (some, every, uncached)] == [24 * 3 * 17 * 16 * 4, 0, 0]
    assert some["images_encoded"] == every["images_encoded"] + 3 * 24 and some["error"] is None
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=some["token_bytes"]))
    full, every, _ = plan()
    assert "the cache of tokens needs 0.0 GB and the disk has 0.0 GB left; lower prefix_views" in full["error"]
    assert every["error"] is None


@pytest.mark.usefixtures("untimed")
def test_what_fails_is_an_error_of_its_row_and_of_its_followers(study_file: Path, tmp_path: Path) -> None:
    text = STUDY.replace("steps = 3", "batch_size = 500\nsteps = 3").replace("batch_size = 5\n", "")
    (tmp_path / "captions.csv").write_text("image_id,caption\nCOVID-19/0.png,a chest film")
    text += '[[methods]]\nname = "captioned"\nkind = "finetune"\nloss = "unicl"\ncaptions = "captions.csv"\nbatch_size = 5\nchunk_size = 5\nsteps = 1\n'
    study_file.write_text(text + '[[methods]]\nname = "reads no prompts"\nkind = "probe"\nprompts = "nowhere.toml"\n')
    found = plan_study(*read_study(study_file, {}), tmp_path / "out")
    errors = {row["name"]: row["error"] for row in found["runs"] if row["error"]}
    assert "larger than the training set" in errors["LoRA"]
    assert errors["LoRA, then probe"] == errors["zero-shot, tuned"] == "its adapters are those of 'LoRA', which failed"
    assert "images have none" in errors["captioned"]
    assert set(errors) == {"LoRA", "LoRA, then probe", "zero-shot, tuned", "captioned"}
    assert found["totals"]["complete"] is False


SMALL = """
manifest = "m.parquet"
resamples = 100
audit = "none"
[[methods]]
name = "zero-shot"
kind = "zeroshot"
[[methods]]
name = "broken"
kind = "finetune"
batch_size = 600
[[methods]]
kind = "trivial"
"""


def test_the_command_prints_the_plan(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.toml").write_text(SMALL.replace("m.parquet", str(images / "m.parquet")))
    command = ["study", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"), "--dry-run"]
    assert run([*command, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert captured.err.count("timing tiny-clip") == 1
    assert not (tmp_path / "out").exists()
    keys = {"name", "kind", "seed", "done", "images_encoded", "images_trained", "seconds", "cached", "token_bytes",
            "error"}  # fmt: skip
    assert all(set(row) == keys for row in (*found["runs"], *found["stages"]))
    assert (found["schema"], found["images"], found["totals"]["factor"]) == (2, 24, 3)
    fine, broken, trivial = found["runs"]
    assert (fine["images_encoded"], fine["error"], broken["seconds"]) == (24, None, None)
    assert fine["seconds"] > 2 and trivial["seconds"] > 2 and found["stages"][0]["seconds"] > 0
    assert "larger than the training set" in broken["error"]

    assert run(command) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "24 images" in page and "cannot run: " in page
    assert "What can be estimated: about" in page


def test_a_study_that_trains_once_is_told_what_it_cannot_say(images: Path, tmp_path: Path) -> None:
    parts = read_manifest(images / "m.parquet").with_columns(patient=[None] * 24)
    split = parts.with_columns(split=["train", "val", "test", "test"] * 6, fold=[None] * 24)
    folds = parts.with_columns(split=[None] * 24, fold=[0, 1] * 12)
    (tmp_path / "s.toml").write_text('manifest = "m"\n[[methods]]\nkind = "trivial"\n')
    (tmp_path / "z.toml").write_text('manifest = "m"\n[[methods]]\nkind = "zeroshot"\n')
    for file, given, manifest, is_told in (
        ("s", {}, split, True), ("s", {"seeds": [0, 1]}, split, False), ("s", {}, folds, False), ("z", {}, split, False),
    ):  # fmt: skip
        config, methods = read_study(tmp_path / f"{file}.toml", given)
        assert ("between single trainings" in " ".join(study_notes(config, methods, manifest))) == is_told


def test_what_is_fitted_to_images_is_trained(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        'manifest = "m"\n[[methods]]\nkind = "zeroshot"\n[[methods]]\nkind = "trivial"\n[[methods]]\nkind = "probe"\n'
        '[[methods]]\nname = "LoRA"\nkind = "finetune"\n[[methods]]\nname = "tuned"\nkind = "zeroshot"\nafter = "LoRA"\n'
        '[[methods]]\nname = "given"\nkind = "zeroshot"\nadapter = "runs/lora"\n'
    )
    _, methods = read_study(tmp_path / "s.toml", {})
    assert [method.is_trained for method in methods] == [False, True, True, True, True, True]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "under 1 s"), (12.4, "12 s"), (89, "89 s"), (180, "3 min"), (7560, "2.1 h"), (302400, "3.5 days")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert show._duration(seconds) == text
