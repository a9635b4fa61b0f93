"""What every method's run shares: the registry, parts, pooling and the run folder, with a method of three lines."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples, files

from thoraclip.cards import data_facts
from thoraclip.cards.model_card import TrainedRun
from thoraclip.data.splits import hold_out, independent_groups
from thoraclip.errors import ConfigError, ManifestError
from thoraclip.labels import LabelSet
from thoraclip.methods import METHODS, Method, find_method, require_shared_work, running
from thoraclip.methods.parts import Part, parts
from thoraclip.methods.running import MethodOutput, RunContext, is_done, pooled_predictions, run_method
from thoraclip.runs import RunFolder, digest
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest
from thoraclip.tables.predictions import read_predictions, read_validation, write_predictions

NAMES = ("a", "b")


def test_the_registry_says_what_a_method_is() -> None:
    flags = {kind: (m.is_seeded, m.trains_network, m.is_trained) for kind, m in METHODS.items()}
    assert flags == {
        "zeroshot": (False, False, False), "finetune": (True, True, True), "baseline": (True, True, True),
        "probe": (True, False, True), "trivial": (True, False, False),
    }  # fmt: skip
    for kind, method in METHODS.items():
        assert find_method(kind) is method and method.config_type.__module__ == method.module
    with pytest.raises(ConfigError, match="unknown method 'prob'; did you mean 'probe'"):
        find_method("prob")


@pytest.mark.parametrize("count", [1, 2])
def test_only_what_shares_its_work_may_be_started_in_several_processes(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(count))
    refused = []
    for what in ("embed", *METHODS, "audit"):
        try:
            require_shared_work(what)
        except ConfigError as error:
            refused.append(what)
            told = f"{what} runs in one process, and 2 were started; only embed, finetune and baseline share their work"
            assert str(error) == f"{told}: start it without a launcher"
    assert refused == ([] if count == 1 else ["zeroshot", "probe", "trivial", "audit"])


def drawn(seed: int, count: int, *, has_folds: bool) -> Manifest:
    """Labels that are not always known, three folds or a split, patients of two images in the same part."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        part = (
            [0, 1, 2, None][rng.integers(4)] if has_folds else ["train", "train", "val", "test", None][rng.integers(5)]
        )
        label = ["a", "a", "b", None][rng.integers(4)]
        rows.append({"image_id": f"i{number}", "path": f"{number}.png", "sha256": f"s{number}", "label": label,
                     "patient": f"{part}-{rng.integers(6)}", "fold" if has_folds else "split": part})  # fmt: skip
    return Manifest.from_rows(rows, Path("/nowhere"))


def slow_parts(
    manifest: Manifest, fraction: float, seed: int, only: tuple[int, ...]
) -> Iterator[tuple[int | None, list[int], list[int], list[int]]]:
    """Row by row."""
    label, fold, split = (manifest.column(name) for name in ("label", "fold", "split"))
    known = [row for row in range(len(manifest)) if label[row] is not None]
    numbers = sorted({f for f in fold if f is not None})
    if set(only) - set(numbers):
        raise ManifestError(f"no fold {min(set(only) - set(numbers))}, which only_folds names; its folds are {numbers}")
    groups = independent_groups(manifest)
    for one in (only or numbers) if numbers else [None]:
        if one is None:
            train, val, test = ([r for r in known if split[r] == name] for name in ("train", "val", "test"))
        else:
            train = [r for r in known if fold[r] is not None and fold[r] != one]
            val, test = [], [r for r in known if fold[r] == one]
        if not train or not test:
            raise ManifestError(f"no {'test' if train else 'training'} image; split it first")
        if not val:
            codes = np.array([NAMES.index(label[r]) for r in train])
            held = hold_out(codes, [groups[r] for r in train], fraction=fraction, seed=seed)
            val = [r for r, is_held in zip(train, held, strict=True) if is_held]
            train = [r for r in train if r not in val]
        for name in NAMES:
            for what, rows in (("training", train), ("validation", val)):
                if name not in {label[r] for r in rows}:
                    where = "" if one is None else f" of fold {one}"
                    raise ManifestError(f"class '{name}' has no {what} image{where}; add images or split again")
        yield one, train, val, test


@examples(200)
@given(
    seed=st.integers(0, 10_000), count=st.integers(12, 60), has_folds=st.booleans(),
    fraction=st.sampled_from([0.2, 0.4]), only=st.sampled_from([(), (), (), (1,), (2, 0), (0, 3)]),
)  # fmt: skip
def test_parts_are_those_of_a_slow_oracle(
    seed: int, count: int, has_folds: bool, fraction: float, only: tuple[int, ...]
) -> None:
    manifest, labels = drawn(seed, count, has_folds=has_folds), LabelSet(NAMES)
    people = np.array(independent_groups(manifest))
    found = parts(manifest, labels, val_fraction=fraction, seed=seed % 3, only=only)
    expected = slow_parts(manifest, fraction, seed % 3, only)
    while True:
        try:
            wanted = next(expected, None)
        except ManifestError as error:
            with pytest.raises(ManifestError) as refused:
                next(found)
            assert str(error) in str(refused.value)
            return
        part = next(found, None)
        if wanted is None or part is None:
            assert part is wanted is None
            return
        assert (part.fold, part.train.tolist(), part.val.tolist(), part.test.tolist()) == wanted
        assert not set(people[part.train]) & set(people[part.val]), "whole patients are held out"


@examples(40)
@given(seed=st.integers(0, 10_000), count=st.integers(4, 40), has_folds=st.booleans())
def test_pooled_rows_are_in_the_order_of_the_manifest_and_folds_are_the_test_split(
    seed: int, count: int, has_folds: bool
) -> None:
    manifest, rng = drawn(seed, count, has_folds=has_folds), np.random.default_rng(seed)
    rows = rng.permutation(count)[: rng.integers(2, count + 1)]
    scores = rng.dirichlet([1, 1], len(rows))
    pooled = pooled_predictions(manifest, LabelSet(NAMES), np.split(rows, [1]), np.split(scores, [1]))
    fold, split, label = (manifest.column(name) for name in ("fold", "split", "label"))
    by_row = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    for place, row in enumerate(sorted(by_row)):
        assert pooled.image_id[place] == f"i{row}" and pooled.scores[place].tolist() == by_row[row]
        assert pooled.target[place] == (NAMES.index(label[row]) if label[row] else -1)
        assert (pooled.fold[place], pooled.patient[place]) == (fold[row], manifest.column("patient")[row])
        assert pooled.split[place] == (split[row] if fold[row] is None else "test")
    assert len(pooled) == len(rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    """Settings of a method that scores every image alike."""

    share: float = 0.5
    words: str = "a file"
    shown: str = "x"
    only_folds: tuple[int, ...] = ()
    seed: int = 0

    NOT_IN_THE_RESULT: ClassVar[tuple[str, ...]] = ("shown",)

    def inputs(self) -> dict[str, str]:
        return {"words": digest(self.words.partition("/")[2])}


Ran = list[tuple[Toy, RunContext]]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """A method that is parallel and trained; (settings, context) of every time that it ran."""
    ran: Ran = []

    def run(config: Toy, context: RunContext) -> Any:
        ran.append((config, context))
        rows, labels = np.arange(len(context.manifest)), LabelSet(NAMES)
        scores = np.tile([config.share, 1 - config.share], (len(rows), 1))
        context.keep_validation(Part(None, rows[2:], rows[:2], rows), labels, scores[:2])
        predictions = pooled_predictions(context.manifest, labels, [rows], [scores])
        return MethodOutput(predictions, {"told": 1}, [{"fold": None}])

    monkeypatch.setitem(sys.modules, "toy_method", SimpleNamespace(run=run, Config=Toy))  # type: ignore[arg-type]
    monkeypatch.setitem(METHODS, "toy", Method("toy_method", "", True, trains_network=True))  # type: ignore[arg-type]
    monkeypatch.setattr(running, "write_model_card", lambda *_: None)
    return ran


IMAGES = drawn(0, 12, has_folds=False)


def test_a_run_is_given_all_that_it_was_asked_with_and_runs_once(
    toy: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards: list[tuple[Path, TrainedRun]] = []
    monkeypatch.setattr(running, "write_model_card", lambda out, trained: cards.append((out, trained)))
    out, config = tmp_path / "run", Toy(seed=7)
    (out / "below").mkdir(parents=True)
    others = {"validation-data.parquet", ".x.part", "below/.y.part"}
    for there in ("validation-fold-1.parquet", *others):
        (out / there).write_text("of before, or another's")
    given: dict[str, Any] = {"pixels": tmp_path / "px", "progress": lambda *_: None}
    result = run_method("toy", config, IMAGES, out, cache=tmp_path / "cache", announce=print, **given)
    assert result is not None
    ((_, context),) = toy
    assert (context.manifest, context.folder, context.cache) == (IMAGES, RunFolder(out), tmp_path / "cache")
    assert {name: getattr(context, name) for name in (*given, "log")} == given | {"log": print}
    assert set(files(out)) == others | {
        "config.toml", "provenance.json", "details.json", "metrics.jsonl", "predictions.parquet", "validation.parquet",
        "done.json",
    }  # fmt: skip
    assert (out / "config.toml").read_text().startswith('kind = "toy"\nshare = 0.5\n')
    facts = json.loads((out / "provenance.json").read_text())
    assert facts["seed"] == 7
    assert facts["inputs"] == {"manifest": IMAGES.fingerprint, **config.inputs()}
    assert (out / "metrics.jsonl").read_text() == '{"fold":null}\n'
    ((place, card),) = cards
    assert (place, card.kind, card.config, card.details) == (out, "toy", config, {"told": 1})
    assert "manifest_file" not in facts, "these images come from no file"
    assert (card.images, card.data, card.provenance) == (IMAGES.root, data_facts(IMAGES), facts)
    assert result[0].scores.tolist() == card.predictions.scores.tolist() == [[0.5, 0.5]] * 12
    again = run_method("toy", config, IMAGES, out)
    assert again is not None and again[0].image_id == result[0].image_id and again[1] == {"told": 1}
    assert len(toy) == len(cards) == 1
    (validation,) = read_validation(out)
    assert validation.image_id == ("i0", "i1") and validation.split == ("val", "val")
    assert validation.patient == tuple(IMAGES.column("patient")[:2])
    assert validation.target.tolist() == IMAGES.targets(LabelSet(NAMES))[:2].tolist()
    run_method("toy", config, IMAGES, tmp_path / "bare")
    bare = toy[-1][1]
    assert (bare.cache, bare.pixels, bare.progress) == (tmp_path / "bare" / "embeddings", None, None)
    bare.log("goes nowhere")


def test_where_the_manifest_lies_is_recorded_and_changes_nothing_else(toy: Ran, tmp_path: Path) -> None:
    """Relative to a run of the same study, so that both can be moved together."""
    write_manifest(near := tmp_path / "s" / "t" / "folds.parquet", IMAGES)
    write_manifest(far := tmp_path / "far.parquet", IMAGES)
    (tmp_path / "s" / "t" / IMAGES.column("path")[0]).write_bytes(b"")
    (tmp_path / IMAGES.column("path")[0]).write_bytes(b"")
    out = tmp_path / "s" / "t" / "runs" / "toy"
    for file, recorded in ((near, "../../folds.parquet"), (far, str(far))):
        run_method("toy", Toy(), read_manifest(file), out)
        assert json.loads((out / "provenance.json").read_text())["manifest_file"] == recorded
        assert is_done("toy", Toy(), IMAGES, out), "wherever it lies"
        (out / "done.json").unlink()
    assert read_manifest(near, where={"path": IMAGES.column("path")[0]}).file is None, "some of the rows"


def test_what_is_neither_trained_nor_parallel_gets_no_card_and_runs_in_one_process(
    toy: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setitem(METHODS, "toy", Method("toy_method", "", True))  # type: ignore[arg-type]
    monkeypatch.setattr(running, "write_model_card", refuse)
    assert run_method("toy", Toy(), IMAGES, tmp_path / "run") is not None
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="toy runs in one process, and 2 were started"):
        run_method("toy", Toy(), IMAGES, tmp_path / "run")


def test_only_the_first_process_writes(toy: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in (".x.part", "validation.parquet"):
        (out / name).write_text("of the first process")
    monkeypatch.setattr(sys.modules["toy_method"], "run", lambda *_: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run_method("toy", Toy(), IMAGES, out) is None
    assert set(files(out)) == {".x.part", "validation.parquet"}


BASE = Toy(words="here/same")
OTHER_LABELS = IMAGES.with_columns(label=IMAGES.column("label")[::-1])


@pytest.mark.parametrize(
    ("config", "images", "is_same_run", "is_same_fold"),
    [
        (BASE, IMAGES, True, True),
        (dataclasses.replace(BASE, shown="y"), IMAGES, True, True),
        (dataclasses.replace(BASE, words="moved/same"), IMAGES, True, True),
        (dataclasses.replace(BASE, words="here/other"), IMAGES, False, False),
        (dataclasses.replace(BASE, share=0.25), IMAGES, False, False),
        (dataclasses.replace(BASE, only_folds=(1,)), IMAGES, False, True),
        (BASE, OTHER_LABELS, False, False),
    ],
)
def test_a_run_is_known_by_what_its_result_depends_on(
    config: Toy, images: Manifest, is_same_run: bool, is_same_fold: bool, toy: Ran, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert not is_done("toy", BASE, IMAGES, out)
    run_method("toy", BASE, IMAGES, out)
    assert is_done("toy", BASE, IMAGES, out)
    assert is_done("toy", config, images, out) == is_same_run
    run_method("toy", config, images, out)
    assert len(toy) == (1 if is_same_run else 2)
    assert (toy[0][1].fingerprint == toy[-1][1].fingerprint) == is_same_fold
    assert is_done("toy", config, images, out)
    assert toy[0][1].fingerprint != json.loads((out / "done.json").read_text())["fingerprint"]


def test_other_versions_and_another_kind_are_another_run(
    toy: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_method("toy", BASE, IMAGES, tmp_path / "run")
    monkeypatch.setitem(METHODS, "tin", METHODS["toy"])  # type: ignore[arg-type]
    assert not is_done("tin", BASE, IMAGES, tmp_path / "run")
    real: Callable[..., dict[str, Any]] = running.provenance
    monkeypatch.setattr(running, "provenance", lambda **given: real(**given) | {"versions": {"torch": "0.1"}})
    assert not is_done("toy", BASE, IMAGES, tmp_path / "run")


def test_validation_tables_are_read_in_the_order_of_their_folds(tmp_path: Path) -> None:
    assert read_validation(tmp_path) == ()
    scores: npt.NDArray[np.float64] = np.full((12, 2), 0.5)
    table = pooled_predictions(IMAGES, LabelSet(NAMES), [np.arange(12)], [scores])
    for fold in (10, 2, 0):
        write_predictions(
            tmp_path / f"validation-fold-{fold}.parquet", dataclasses.replace(table, fold=(fold,) * len(table))
        )
    (tmp_path / "validation-fold-x.parquet").write_text("a copy by hand")
    assert [one.fold[0] for one in read_validation(tmp_path)] == [0, 2, 10]
    write_predictions(tmp_path / "validation.parquet", table)
    (whole,) = read_validation(tmp_path)
    assert whole.image_id == read_predictions(tmp_path / "validation.parquet").image_id and whole.fold[0] is None
