"""Which classifier of a finished run explains an image: one that held it out, or none without being asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples
from tests.methods.test_predictors import FOLDS, SPLIT, drawn, study, write_run

from thoraclip.errors import ConfigError, ImageError, InputError, LeakError, ManifestError, MismatchError
from thoraclip.methods import explaining
from thoraclip.methods.explaining import Chosen, choose_classifier
from thoraclip.methods.predictors import FinishedRun, read_run
from thoraclip.methods.probe import Config
from thoraclip.tables.manifest import Manifest, write_manifest

__all__ = ["study"]  # a fixture

CONTENT = hashlib.sha256(b"a picture").hexdigest()
Made = Callable[..., tuple[FinishedRun, Path]]


@pytest.fixture
def made(study: Path) -> Made:
    """Writes the manifest of a study anew, in which the image stands at some rows; returns (run, image)."""

    def make(manifest: Manifest, *rows: int, kind: str = "probe", **settings: Any) -> tuple[FinishedRun, Path]:
        changed = [CONTENT if n in rows else sha for n, sha in enumerate(manifest.column("sha256"))]
        masks = [None if n == 5 else f"m{n}.png" for n in range(9)]
        manifest = manifest.with_columns(sha256=changed, lung_mask=masks)
        write_manifest(study / "manifest.parquet", manifest)
        return read_run(write_run(study / "runs" / "run", manifest, kind, **settings)), study / "0.png"

    return make


SOME = FOLDS.with_columns(fold=[0, 0, 1, 1, None, None, 2, 2, 2])
UNLABELLED = FOLDS.with_columns(label=["a", "b", "a", "b", "a", None, "a", "b", "a"])
UNKNOWN = SPLIT.with_columns(label=[None, *SPLIT.column("label")[1:]])
FOREIGN = "fold 0, the first: the image is in no fold of the run's manifest"


@pytest.mark.parametrize(
    ("manifest", "rows", "asked", "fold", "note"),
    [
        (FOLDS, [4], None, 1, "fold 1, which held this image out"),
        (FOLDS, [4], 1, 1, "fold 1, which held this image out"),
        (FOLDS, [4], 2, 2, "fold 2, which was trained or tuned on this image"),
        (FOLDS, [], None, 0, FOREIGN),
        (FOLDS, [], 2, 2, "fold 2, as asked"),
        (FOLDS, [4, 7], None, 1, "fold 1, which held this image out"),
        (FOLDS, [4, 8], 1, 1, "fold 1, which was trained or tuned on this image"),
        (UNLABELLED, [4, 5], None, 1, "fold 1, which held this image out"),
        (SOME, [4], None, 0, FOREIGN),
        (SOME, [4, 6], None, 2, "fold 2, which held this image out"),
        (SPLIT, [5], None, None, "the run's classifier, which held this image out"),
        (SPLIT, [2, 5], None, None, "the run's classifier, which held this image out"),
        (UNKNOWN, [0], None, None, "the run's classifier"),
        (SPLIT, [], None, None, "the run's classifier"),
    ],
)  # fmt: skip
def test_an_image_is_explained_by_who_did_not_see_it(
    manifest: Manifest, rows: list[int], asked: int | None, fold: int | None, note: str, made: Made
) -> None:
    run, image = made(manifest, *rows)
    mask = next((image.with_name(f"m{row}.png") for row in rows if row != 5), None)
    assert choose_classifier(run, image, fold=asked) == Chosen(fold, note, mask)
    assert choose_classifier(run, image, fold=asked, seen=True) == Chosen(fold, note, mask)


@pytest.mark.parametrize(
    ("manifest", "rows", "fold", "used", "where"),
    [
        (SPLIT, [3], None, "trained on", "train"),
        (SPLIT, [4], None, "tuned on", "val"),
        (SPLIT, [5, 0], None, "trained on", "test, train"),
        (FOLDS, [4, 8], 0, "trained or tuned on", "fold 1, fold 2"),
        (FOLDS, [0, 4, 8], 0, "trained or tuned on", "fold 0, fold 1, fold 2"),
    ],
)
def test_where_every_classifier_saw_the_image_the_user_must_say_so(
    manifest: Manifest, rows: list[int], fold: int | None, used: str, where: str, made: Made
) -> None:
    run, image = made(manifest, *rows)
    with pytest.raises(LeakError, match=rf"0.png: .*/run was {used} this image \({where}\); .* with --seen$"):
        choose_classifier(run, image)
    name = "the run's classifier" if fold is None else "fold 0"
    assert choose_classifier(run, image, seen=True).note == f"{name}, which was {used} this image"


def test_the_folds_that_were_not_run_were_trained_on(made: Made, study: Path) -> None:
    run, image = made(FOLDS, 4)
    only = FinishedRun(run.folder, "probe", Config(), run.manifest, "", (0, 2))
    with pytest.raises(LeakError, match="was trained or tuned on this image .fold 1.; explain one"):
        choose_classifier(only, image)


@examples(150)
@given(
    seed=st.integers(0, 10_000), has_folds=st.booleans(), folds=st.sampled_from([(0, 1, 2), (1,), (2, 0)]),
    number=st.integers(0, 13),
)  # fmt: skip
def test_no_classifier_explains_what_it_was_trained_on(
    seed: int, has_folds: bool, folds: tuple[int, ...], number: int
) -> None:
    """Against what `parts.parts` trains on, image by image."""
    own = drawn(seed, has_folds=has_folds)
    content = f"s{max(number, 1)}"
    run = FinishedRun(Path("/run"), "probe", Config(), own.fingerprint, "", folds if has_folds else (None,))
    rows = list(zip(*(own.column(name) for name in ("sha256", "label", "fold", "split")), strict=True))
    clean = []
    for fold in run.folds:
        used = {sha for sha, label, other, split in rows if label is not None
                and (other not in (None, fold) if has_folds else split in ("train", "val"))}  # fmt: skip
        clean += [fold] if content not in used else []
    with (
        patch.object(explaining, "find_manifest", lambda _: own),
        patch.object(explaining, "read_bytes", lambda _: b""),
        patch.object(explaining.hashlib, "sha256", lambda _: type("", (), {"hexdigest": lambda _: content})()),
    ):
        if not clean:
            with pytest.raises(LeakError):
                choose_classifier(run, Path("x.png"))
            return
        chosen = choose_classifier(run, Path("x.png"))
    assert chosen.fold in clean
    holding = {other if has_folds else None for sha, _, other, split in rows
               if sha == content and (other in clean if has_folds else split == "test")}  # fmt: skip
    assert ("held this image out" in chosen.note) == bool(holding) == (chosen.fold in holding)


def test_what_is_not_trained_explains_every_image(made: Made, study: Path) -> None:
    run, image = made(SPLIT, 3, kind="zeroshot")
    assert choose_classifier(run, image).note == "the run's classifier, which is not trained"
    run, image = made(FOLDS, 4, 8, kind="zeroshot")
    assert choose_classifier(run, image).note == "fold 1, which held this image out"
    (study / "manifest.parquet").unlink()
    assert choose_classifier(run, image) == Chosen(0, "fold 0, which is not trained")
    run, image = made(SPLIT, 3, kind="zeroshot", adapter=str(study))
    with pytest.raises(LeakError, match="was trained on this image"):
        choose_classifier(run, image)


@pytest.mark.parametrize(("manifest", "name"), [(FOLDS, "fold 0"), (SPLIT, "the run's classifier")])
def test_without_the_manifest_nobody_knows_what_was_trained_on(
    manifest: Manifest, name: str, made: Made, study: Path
) -> None:
    run, image = made(manifest, 4)
    (study / "manifest.parquet").unlink()
    with pytest.raises(InputError, match="its manifest is not beside it; name it with --manifest"):
        choose_classifier(run, image)
    unknown = "which may have been trained on this image"
    assert choose_classifier(run, image, seen=True) == Chosen(run.folds[0], f"{name}, {unknown}")
    if manifest is FOLDS:
        assert choose_classifier(run, image, fold=2) == Chosen(2, f"fold 2, {unknown}")
    write_manifest(study / "other.parquet", manifest)
    with pytest.raises(MismatchError, match="other.parquet: not the manifest that .* name that one with --manifest"):
        choose_classifier(run, image)


def test_the_manifest_that_is_given_must_be_the_run_s(made: Made, study: Path, tmp_path: Path) -> None:
    run, image = made(FOLDS, 4)
    own = explaining.find_manifest(run)
    (study / "manifest.parquet").unlink()
    assert choose_classifier(run, image, manifest=own).note == "fold 1, which held this image out"
    for options in ({}, {"fold": 1}, {"seen": True}):
        with pytest.raises(MismatchError, match="/run: ran on another manifest than this one"):
            choose_classifier(run, image, manifest=FOLDS, **options)


def test_an_image_is_not_foreign_where_others_have_no_hash(made: Made, study: Path) -> None:
    run, image = made(FOLDS.with_columns(sha256=[None, *FOLDS.column("sha256")[1:]]), 4)
    assert choose_classifier(run, image).fold == 1
    (foreign := image.with_name("foreign.png")).write_bytes(b"another picture")
    with pytest.raises(
        ManifestError, match="manifest.parquet: 1 images have no sha256, by which an image is known; index"
    ):
        choose_classifier(run, foreign)


def test_what_cannot_be_asked_is_refused(made: Made, study: Path) -> None:
    for manifest, names in ((FOLDS, "0, 1, 2"), (SPLIT, "none")):
        run, image = made(manifest)
        with pytest.raises(ConfigError, match=f"--fold 7: .* has no such fold; its folds: {names}"):
            choose_classifier(run, image, fold=7)
    with pytest.raises(ImageError, match="gone.png: cannot be read"):
        choose_classifier(run, study / "gone.png")
