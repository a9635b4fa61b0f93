"""A dry run: what it counts is what happens, its arithmetic is exact, it writes nothing, and nothing makes it fail."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import save_blip
from tests.conftest import files

from thoraclip.cli import start
from thoraclip.cli.app import run
from thoraclip.data.views import VIEWS
from thoraclip.methods import baseline, supervised
from thoraclip.methods.baseline import Config as BaselineConfig
from thoraclip.methods.contrast import Contrast
from thoraclip.methods.finetune import Config as FinetuneConfig
from thoraclip.methods.supervised import Supervised
from thoraclip.methods.tuning import Tuning
from thoraclip.models.captioner import Captioner
from thoraclip.models.dual_encoder import DualEncoder
from thoraclip.study import plan_study, read_study, run_study
from thoraclip.study.estimate import Law, Measured, draw_plan, make_plan
from thoraclip.study.measuring import Bench
from thoraclip.study.settings import MethodEntry, StudyConfig
from thoraclip.study.tasks import Task, Unit, Work, training_unit
from thoraclip.study.timing import few_pictures
from thoraclip.tables.manifest import Manifest, read_manifest

STUDY = """
manifest = "m.parquet"
resamples = 100
audit = "none"
seeds = [0, 1]
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


CAPTIONED = """
[[methods]]
name = "LoRA, captions"
kind = "finetune"
captions = "captions.csv"
batch_size = 5
chunk_size = 5
steps = 1
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
        for module in (supervised, baseline):
            self._spy(patch, module, "scores_of", lambda *a: self.encoded.update({self.name: len(a[2])}))
        for trainee in (Contrast, Supervised):
            self._spy(patch, trainee, "backward", lambda _, batch: self.trained.update({self.name: len(batch.rows)}))

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
        names = [*self.encoded, *self.trained]
        return {name: (self.encoded[name], self.trained[name]) for name in names}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("has_pixel_cache", "folds"), [(True, [0, 1, 2]), (False, [2, 0])])
def test_what_is_counted_is_what_happens(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_pixel_cache: bool, folds: list[int]
) -> None:
    config, methods = read_study(study_file, {"pixel_cache": has_pixel_cache, "only_folds": folds})
    out = tmp_path / "out"
    plan = plan_study(config, methods, out)
    assert not out.exists()
    with monkeypatch.context() as patch:
        # the last weights are kept: those of step 0 would be the base's, whose embeddings are there
        patch.setattr(Tuning, "criterion", lambda *_: None)
        spy = Spy(patch)
        report = run_study(config, methods, out, announce=spy.announce)
    assert not report["failed"]
    assert summed([*plan["runs"], *plan["stages"]]) == spy.seen
    assert {"zero-shot", "LoRA", "network", "other geometry", "captions"} == set(spy.seen), "who comes first pays"
    shared = {r["name"]: r["shared"] for r in plan["runs"] if r["shared"]}
    assert shared["probe"] == shared["zero-shot, tuned"] == ["embeddings"]
    assert plan["totals"]["images_trained"] == sum(spy.trained.values())
    passes = next(r for r in plan["runs"] if r["name"] == "LoRA")["passes"]
    assert [p["what"] for p in passes] == ["validate", "train", "embed"]
    assert next(p for p in passes if p["what"] == "train")["images"] == len(folds) * 3 * 5, "folds x steps x batch"

    again = plan_study(config, methods, out)
    assert all(r["done"] and r["cached"] == ["run"] and not r["passes"] for r in again["runs"])
    assert summed([*again["runs"], *again["stages"]]) == {}
    assert next(s for s in again["stages"] if s["name"] == "captions")["done"]
    if has_pixel_cache:
        what_is_lost_is_counted_alone(config, methods, out, monkeypatch)


def what_is_lost_is_counted_alone(
    config: StudyConfig, methods: list[MethodEntry], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("probe/seed-0", "lora-then-probe/seed-1", "network"):
        shutil.rmtree(out / "runs" / name)
    before = files(out)
    plan = plan_study(config, methods, out)
    assert files(out) == before
    to_do = {(r["name"], r["seed"]): r["cached"] for r in plan["runs"] if not r["done"]}
    assert to_do == {
        ("probe", 0): ["embeddings"], ("LoRA, then probe", 1): ["embeddings"], ("network", 0): ["pixels"],
        ("network", 1): ["pixels"],
    }  # fmt: skip
    assert not any(r["shared"] for r in plan["runs"])
    with monkeypatch.context() as patch:
        spy = Spy(patch)
        run_study(config, methods, out, announce=spy.announce)
    assert summed(plan["runs"]) == spy.seen


def test_an_audit_is_counted_until_it_is_there(study_file: Path, tmp_path: Path) -> None:
    """Every view of every audited image is a pass; which method will be the best is not known, so the last one stands for it."""
    settings = {"audit": "all", "audit_images": 5, "group_duplicates": False}
    config, methods = read_study(study_file, settings)
    out = tmp_path / "out"
    stage = next(s for s in plan_study(config, methods, out)["stages"] if s["name"] == "audit")
    able = [m for m in methods if m.kind != "trivial"]
    assert sum(p["images"] for p in stage["passes"]) >= len(able) * 5 * len(VIEWS)
    best, _ = read_study(study_file, settings | {"audit": "best"})
    one = next(s for s in plan_study(best, methods, out)["stages"] if s["name"] == "audit")
    assert sum(p["images"] for p in one["passes"]) * len(able) == sum(p["images"] for p in stage["passes"])
    (out / "audits" / "probe").mkdir(parents=True)
    (out / "audits" / "probe" / "audit.json").write_text("{}")
    done = next(s for s in plan_study(best, methods, out)["stages"] if s["name"] == "audit")
    assert done["done"] and done["cached"] == ["audit"] and not done["passes"]
    assert not next(s for s in plan_study(config, methods, out)["stages"] if s["name"] == "audit")["done"]
    nothing, _ = read_study(study_file, {"audit": "none"})
    assert not next(s for s in plan_study(nothing, methods, out)["stages"] if s["name"] == "audit")["passes"]


def test_a_plan_is_sums_of_counts_and_costs() -> None:
    load, encode, step = Unit("load"), Unit("encode"), Unit("step")
    first = Work("a", "zeroshot", tasks=[Task(load), Task(encode, size=100, encoded=100, what="embed")], seconds=0.5)
    second = Work("b", "finetune", 1, tasks=[
        Task(step, size=32, times=10, trained=320, what="train"), Task(encode, 20, 3, encoded=60, what="validate"),
    ])  # fmt: skip
    done = Work("c", "probe", 0, done=True, cached=["run"])
    judge = Work("judge", "stage", tasks=[Task(load)])
    laws = {load: Law(2.0, memory_mb=300), encode: Law(0.0, 0.1, 400, 0.5), step: Law(1.0, 0.25, 900)}
    machine = {"device": "cpu", "threads": 2, "precision": "fp32"}
    measured = Measured(laws, 4.0, machine, 50)
    plan = draw_plan([first, second, done], [judge], measured, images=100, source="m.parquet", seconds=3.0)
    rows = {row["name"]: row for row in plan["runs"]}
    assert [rows[name]["seconds"] for name in "abc"] == [0.5 + 2 + 10, 10 * (1 + 8) + 3 * 2, 0]
    assert [rows[name]["memory_mb"] for name in "abc"] == [400 + 50, 900, 0]
    assert (rows["b"]["images_encoded"], rows["b"]["images_trained"]) == (60, 320)
    assert rows["a"]["passes"] == [{"what": "embed", "model": "", "images": 100}]
    assert plan["stages"][0]["seconds"] == 2
    assert plan["totals"] == {
        "images_encoded": 160, "images_trained": 320, "seconds": 12.5 + 96 + 2, "memory_mb": 900, "complete": True,
    }  # fmt: skip
    assert plan["machine"] == machine
    assert plan["measured"] == {"pictures": 50, "seconds": 3.0, "factor": 2}


def test_what_cannot_be_measured_has_no_time_and_says_why() -> None:
    load, broken = Unit("load"), Unit("step")
    laws: dict[Unit, Law | str] = {load: Law(2.0), broken: "out of memory"}
    works = [Work("a", "zeroshot", tasks=[Task(load)]), Work("b", "finetune", 0, tasks=[Task(load), Task(broken)])]
    plan = draw_plan(works, [], Measured(laws, 0.0, {}, 0), images=9, source="", seconds=0.0)
    assert [(r["seconds"], r["error"]) for r in plan["runs"]] == [(2.0, None), (None, "out of memory")]
    assert plan["totals"]["seconds"] == 2.0
    assert plan["totals"]["complete"] is False
    assert draw_plan(works, [], None, images=9, source="", seconds=0.0)["totals"]["seconds"] is None


def test_who_fails_costs_nothing_and_loses_only_its_followers(study_file: Path, tmp_path: Path) -> None:
    text = STUDY.replace("steps = 3", "batch_size = 500\nsteps = 3").replace("batch_size = 5\n", "")
    (tmp_path / "captions.csv").write_text("image_id,caption\nCOVID-19/0.png,a chest film")
    broken = '[[methods]]\nname = "broken"\nkind = "probe"\nmodel = "./nowhere"\n'
    study_file.write_text(text + broken + CAPTIONED)
    plan = plan_study(*read_study(study_file, {}), tmp_path / "out")
    errors = {r["name"]: r["error"] for r in plan["runs"] if r["error"]}
    assert "larger than the training set" in errors["LoRA"]
    assert errors["LoRA, then probe"] == errors["zero-shot, tuned"] == "its adapters are those of 'LoRA', which failed"
    assert "no such folder" in errors["broken"]
    assert "images have none" in errors["LoRA, captions"]
    assert set(errors) == {"LoRA", "LoRA, then probe", "zero-shot, tuned", "broken", "LoRA, captions"}
    assert plan["totals"]["complete"] is False


@pytest.mark.slow
def test_every_unit_of_a_study_is_measured_once_and_nothing_is_written(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thoraclip.study.measuring._PICTURES", 15)
    given = read_manifest(tmp_path / "m.parquet")
    rows = [f"{image},a chest film" for image in given.column("image_id")]
    (tmp_path / "captions.csv").write_text("\n".join(["image_id,caption", *rows]))
    study_file.write_text(STUDY + CAPTIONED)
    config, methods = read_study(study_file, {})
    out, told = tmp_path / "out", list[str]()
    bench = Bench(config, out, announce=told.append, patience=0.05)
    before = files(tmp_path)
    plan = make_plan(config, methods, out, manifest=given, given=given, describe=bench.describe, measure=bench)
    assert files(tmp_path) == before
    assert not [row["error"] for row in (*plan["runs"], *plan["stages"]) if row["error"]]
    assert all(row["seconds"] > 0 for row in plan["runs"])
    assert plan["totals"]["complete"] is True
    assert plan["totals"]["seconds"] == pytest.approx(sum(r["seconds"] for r in (*plan["runs"], *plan["stages"])))
    assert all(row["memory_mb"] > 0 for row in plan["runs"])
    assert sum("a step of" in line for line in told) == 3, "one for each training, whatever its seeds and folds"
    assert plan["measured"]["pictures"] == 15


SMALL = """
manifest = "m.parquet"
resamples = 100
[[methods]]
name = "zero-shot"
kind = "zeroshot"
[[methods]]
name = "broken"
kind = "zeroshot"
model = "./nowhere"
"""


def test_the_command_prints_the_plan(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.toml").write_text(SMALL.replace("m.parquet", str(images / "m.parquet")))
    command = ["study", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"), "--dry-run"]
    assert run([*command, "--json"]) == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out)
    assert "measuring tiny-clip: encoding" in captured.err
    assert not (tmp_path / "out").exists()
    assert set(plan) == {"schema", "images", "source", "runs", "stages", "totals", "machine", "measured"}
    keys = {
        "name", "kind", "seed", "done", "images_encoded", "images_trained", "seconds", "memory_mb", "cached", "shared",
        "passes", "error",
    }  # fmt: skip
    assert all(set(row) == keys for row in plan["runs"])
    assert all(set(row) == keys - {"kind", "seed"} for row in plan["stages"])
    assert set(plan["totals"]) == {"images_encoded", "images_trained", "seconds", "memory_mb", "complete"}
    assert set(plan["machine"]) == {"device", "threads", "precision"}
    fine, broken = plan["runs"]
    assert (fine["images_encoded"], fine["error"]) == (24, None)
    assert fine["seconds"] > 0 and fine["memory_mb"] > 0
    assert broken["seconds"] is None and "no such folder" in broken["error"]
    assert plan["schema"] == 1

    monkeypatch.setattr("thoraclip.study.plan_study", lambda *_, **__: plan)
    assert run(command) == 0
    page = capsys.readouterr().out
    assert "embed 24 (tiny-clip)" in page
    assert "cannot run: model './nowhere'" in " ".join(page.split())
    assert "What could be estimated: about" in page


def test_a_folder_that_is_not_there_is_said_of_every_run(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('folder = "nowhere"\n[[methods]]\nkind = "zeroshot"\n')
    config, methods = read_study(tmp_path / "s.toml", {})
    bench = Bench(config, tmp_path / "out")
    plan = make_plan(
        config, methods, tmp_path / "out", manifest=None, given=None, describe=bench.describe, measure=bench
    )
    assert plan["images"] is None and plan["measured"] is None
    assert [r["error"] for r in plan["runs"]] == ["nowhere: no such folder; name the folder that holds the images"]
    assert start._plan_total(plan).startswith("Nothing could be measured")


def test_a_step_costs_the_same_whatever_does_not_change_it() -> None:
    def unit(**settings: Any) -> Unit:
        return training_unit(FinetuneConfig(**settings))

    many = unit(batch_size=1024, chunk_size=32, seed=3, epochs=7, learning_rate=0.1, loss="siglip", only_folds=(1,))
    assert many == unit(batch_size=256, chunk_size=32)
    assert many != unit(batch_size=32, chunk_size=32), "one chunk is encoded once, the others twice"
    assert many != unit(batch_size=1024, chunk_size=16)
    assert many != unit(batch_size=1024, chunk_size=32, rank=16)
    assert training_unit(BaselineConfig(batch_size=64, label_smoothing=0.1)) == training_unit(BaselineConfig())
    assert training_unit(BaselineConfig(batch_size=64, mixup=0.1)) != training_unit(BaselineConfig())


@pytest.mark.parametrize("most", [3, 9, 1000])
def test_the_pictures_that_are_looked_at_are_of_all_classes(manifest: Manifest, most: int) -> None:
    few = few_pictures(manifest, most)
    counts = Counter(few.column("label"))
    assert set(counts) == set(manifest.column("label"))
    assert len(few) == len(set(few.column("image_id"))) == min(24, max(most, 5 * 3))
    assert np.ptp(list(counts.values())) <= 1
    assert set(few.column("label")[:3]) == set(counts), "in turn, so that the first ones are of all classes too"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "under 1 s"), (12.4, "12 s"), (89, "89 s"), (180, "3 min"), (7560, "2.1 h"), (302400, "3.5 days")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert start._duration(seconds) == text
