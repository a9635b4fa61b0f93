"""A few labelled patients of each class: which are drawn, what validates, and what a method makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples, write_class_folder

from thoraclip.cli.app import run
from thoraclip.data.index import index
from thoraclip.data.splits import independent_groups, split_folds
from thoraclip.errors import ConfigError, ManifestError
from thoraclip.labels import LabelSet
from thoraclip.methods import probe, running
from thoraclip.methods.finetune import Config as FinetuneConfig
from thoraclip.methods.parts import Part, labelled_patients, parts
from thoraclip.methods.training.folds import sampler_of
from thoraclip.tables.manifest import Manifest, write_manifest

LABELS = LabelSet(("a", "b"))


def drawn(seed: int, *, has_folds: bool, mixed: bool) -> Manifest:
    """Nine patients of each class and part, of one to three images; of two classes where `mixed`."""
    rng, rows = np.random.default_rng(seed), list[dict[str, Any]]()
    for part in [0, 1, 2] if has_folds else ["train", "val", "test"]:
        for patient in range(18):
            for _ in range(rng.integers(1, 4)):
                label = "ab"[rng.integers(2) if mixed and patient % 3 == 0 else patient % 2]
                rows.append({"label": label, "patient": f"{part}-{patient}", "fold" if has_folds else "split": part})
    named = [{"image_id": f"i{n:03d}", "path": f"{n}.png", "sha256": f"s{n}", **row} for n, row in enumerate(rows)]
    return Manifest.from_rows([named[n] for n in rng.permutation(len(named))], Path("/nowhere"))


def slow_draw(manifest: Manifest, fold: int | None, shots: int, seed: int) -> set[str]:
    """Ids of the images that are drawn, patient by patient."""
    label, patient, name = (manifest.column(column) for column in ("label", "patient", "image_id"))
    part = manifest.column("split" if fold is None else "fold")
    pool = [row for row in range(len(manifest)) if (part[row] == "train" if fold is None else part[row] != fold)]
    groups = independent_groups(manifest)
    people = sorted({groups[row] for row in pool})
    order = np.random.default_rng([seed] if fold is None else [seed, fold]).permutation(len(people))
    shuffled = sorted(people, key=lambda group: order[people.index(group)])
    chosen = set[int]()
    for wanted in LABELS.names:
        having = [group for group in shuffled if any(groups[r] == group and label[r] == wanted for r in pool)]
        chosen |= set(having[:shots])
    assert len({patient[row] for row in pool if groups[row] in chosen}) == len(chosen)
    return {name[row] for row in pool if groups[row] in chosen}


@examples(40)
@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.sampled_from([0.1, 0.2, 0.5]))
def test_shots_are_those_of_a_slow_oracle_nested_and_of_whole_patients(
    seed: int, has_folds: bool, mixed: bool, fraction: float
) -> None:
    manifest = drawn(seed, has_folds=has_folds, mixed=mixed)
    ids, people, targets = np.array(manifest.column("image_id")), independent_groups(manifest), manifest.targets(LABELS)
    smaller: dict[int | None, set[str]] = {}
    for shots in (1, 2, 4, 7):
        for part in parts(manifest, LABELS, val_fraction=fraction, seed=seed, shots=shots):
            both = np.union1d(part.train, part.val)
            assert set(ids[both]) == slow_draw(manifest, part.fold, shots, seed)
            assert smaller.get(part.fold, set()) <= set(ids[both]), "a smaller draw lies inside a larger one"
            smaller[part.fold] = set(ids[both])
            counts = [len(set(people[both[targets[both] == c]])) for c in (0, 1)]
            assert all(count >= shots for count in counts) and (mixed or counts == [shots, shots])
            assert not set(people[both]) & set(people[part.test])
            if np.array_equal(part.train, part.val):
                assert shots == 1 or mixed, "two patients of each class are enough to hold one out"
            else:
                assert not set(people[part.train]) & set(people[part.val])
            assert all(set(targets[rows].tolist()) == {0, 1} for rows in (part.train, part.val))


def test_folds_and_seeds_draw_anew() -> None:
    manifest, people = drawn(1, has_folds=True, mixed=False), independent_groups(drawn(1, has_folds=True, mixed=False))
    found = {
        (seed, part.fold): tuple(sorted(set(people[np.union1d(part.train, part.val)])))
        for seed in (0, 1)
        for part in parts(manifest, LABELS, val_fraction=0.2, seed=seed, shots=3)
    }
    assert len(set(found.values())) == len(found) == 6


def test_no_more_than_a_class_has() -> None:
    manifest = drawn(2, has_folds=False, mixed=False)
    training, labelled = labelled_patients(manifest, LABELS)
    assert training.tolist() == [9, 9] and labelled.tolist() == [18, 18]
    assert labelled_patients(drawn(2, has_folds=True, mixed=False), LABELS)[1].tolist() == [18, 18]
    with pytest.raises(ManifestError, match=r"shots = 10: class 'a' has 9 training patients .* ask for 9 or fewer"):
        list(parts(manifest, LABELS, val_fraction=0.2, seed=0, shots=10))


def test_few_shots_are_one_batch() -> None:
    rows, config = np.arange(6), FinetuneConfig(batch_size=64, shots=3)
    part, targets = Part(None, rows, rows, rows), np.arange(6) % 2
    assert sampler_of(config, part, targets).steps_per_epoch == 1
    assert sorted(sampler_of(config, part, targets).batch(0).rows) == list(range(6))
    with pytest.raises(ConfigError, match="batch_size = 64: larger than the training set, 6 images"):
        sampler_of(FinetuneConfig(batch_size=64), part, targets)


def test_all_is_the_run_that_it_was_before_there_were_shots(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()
    monkeypatch.setattr(running, "digest", lambda about: seen.append(about["config"]) or "")
    for shots in ("all", 4):
        running._identity("probe", probe.Config(shots=shots), manifest)
    assert ["shots = 4" in text for text in seen] == [False, False, True, True]
    assert not any('"all"' in text for text in seen)


def test_a_single_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = index(write_class_folder(tmp_path / "images"), layout="folders").manifest
    patients = [f"p{row // 2:02d}" for row in range(len(found))]
    write_manifest(tmp_path / "m.parquet", split_folds(found.with_columns(patient=patients), folds=2, seed=0))
    command = [
        str(tmp_path / "m.parquet"),
        "--set",
        "seed=1",
        "--set",
        "l2_steps=2",
        "--set",
        "only_folds=[0]",
        "--set",
    ]
    for shots in (1, 2):
        assert run(["probe", *command, f"shots={shots}", "--out", str(tmp_path / f"{shots}")]) == 0
    chosen = [json.loads((tmp_path / f"{n}" / "details.json").read_text())["chosen"][0] for n in (1, 2)]
    classes = len(found.label_set())
    assert chosen[0]["train"] == chosen[0]["val"] == 2 * classes, "one patient of two images of each class"
    assert chosen[1]["train"] == chosen[1]["val"] == 2 * classes, "one of two patients is held out"
    kept = [any((tmp_path / f"{n}").glob("validation*.parquet")) for n in (1, 2)]
    assert kept == [False, True], "scores of images that the head was fitted on calibrate nothing"
    for shots, message in (
        ("0", "shots = 0"),
        ("some", "shots = 'some': all, or a whole number from 1"),
        ("99", "shots = 99: class"),
    ):
        assert run(["probe", *command, f"shots={shots}", "--out", str(tmp_path / "refused")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
