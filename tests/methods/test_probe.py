"""Probe: nested choice, no test image ever used, folds pooled, splits obeyed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from tests.conftest import files

from thoraclip.config import build_config, read_toml
from thoraclip.data.splits import independent_groups
from thoraclip.errors import ConfigError, ManifestError
from thoraclip.labels import load_prompts
from thoraclip.methods.embed import cached_embeddings, load_encoder
from thoraclip.methods.probe import Config
from thoraclip.methods.running import is_done, parts, read_validation, run_method
from thoraclip.methods.zeroshot import class_vectors
from thoraclip.models.heads import fit_adamw, fit_lbfgs, log_loss, read_head
from thoraclip.tables.manifest import Manifest

pytestmark = pytest.mark.usefixtures("plain")


def test_each_fold_is_scored_by_the_head_that_never_saw_it(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    config = Config(l2_steps=5, l2_min=1e-3)
    predictions, details = run_method("probe", config, manifest, tmp_path / "run", cache=cache)
    assert predictions.image_id == tuple(manifest.column("image_id"))
    assert set(predictions.split) == {"test"}
    assert predictions.fold == tuple(manifest.column("fold"))
    assert [c["fold"] for c in details["chosen"]] == [0, 1, 2]
    assert (predictions.scores.argmax(axis=1) == predictions.target).mean() > 0.8, "three brightness patterns are easy"
    features = cached_embeddings(config, manifest, cache).pooled
    fold = np.array(manifest.column("fold"))
    for number in range(3):
        head = read_head(tmp_path / "run" / f"head-fold-{number}.safetensors")
        rows = np.flatnonzero(fold == number)
        np.testing.assert_allclose(predictions.scores[rows], head.predict(np.asarray(features[rows])), atol=1e-12)
        train = features[np.flatnonzero(fold != number)]
        np.testing.assert_allclose(head.standardiser.mean, train.mean(axis=0), atol=1e-5)
    run_method("probe", config, manifest, tmp_path / "again", cache=cache)
    assert files(tmp_path / "again") == files(tmp_path / "run")


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_validation_chooses_the_penalty_and_refit_says_what_the_head_is_fitted_on(
    refit: bool, class_weight: str, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    """Some labels are wrong, so that the penalty of the lowest training loss is not that of the lowest validation loss."""
    labels, split = list(manifest.column("label")), (["train"] * 4 + ["val", "test", "train", "val"]) * 3
    labels[0], labels[8], labels[2], labels[10] = labels[8], labels[0], labels[16], labels[17]
    images = manifest.with_columns(label=labels, split=split, fold=[None] * 24, patient=[None] * 24)
    config = Config(l2_min=1e-3, l2_max=10.0, l2_steps=4, refit=refit, class_weight=class_weight)
    predictions, details = run_method("probe", config, images, tmp_path / "run", cache=cache)
    names, y = images.label_set(), images.targets(images.label_set())
    x = np.asarray(cached_embeddings(config, images, cache).pooled)
    train, val, test = (np.flatnonzero(np.array(split) == part) for part in ("train", "val", "test"))
    grid = [10.0, 10**-1 * 10 ** (2 / 3), 10 ** (-5 / 3), 1e-3]
    heads = fit_lbfgs(x[train], y[train], names, l2=grid, weighting=class_weight)
    losses = {rows: [log_loss(h.predict(x[r]), y[r]) for h in heads] for rows, r in (("train", train), ("val", val))}
    best = int(np.argmin(losses["val"]))
    assert best != np.argmin(losses["train"])
    (chosen,) = details["chosen"]
    assert chosen["l2"] == pytest.approx(grid[best]) and chosen["val_log_loss"] == pytest.approx(losses["val"][best])
    rows = np.sort(np.concatenate([train, val])) if refit else train
    (expected,) = fit_lbfgs(x[rows], y[rows], names, l2=[grid[best]], weighting=class_weight)
    head = read_head(tmp_path / "run" / "head.safetensors")
    np.testing.assert_allclose(head.standardiser.mean, x[rows].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(head.weight, expected.weight, atol=1e-4)
    np.testing.assert_allclose(predictions.scores, expected.predict(x[test]), atol=1e-4)
    (kept,) = read_validation(tmp_path / "run")
    np.testing.assert_allclose(kept.scores, heads[best].predict(x[val]), atol=1e-6)


def test_the_seed_reaches_adamw_and_validation_chooses_its_epoch(
    split_manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    config = Config(solver="adamw", epochs=6, train_batch_size=4, learning_rate=0.3, seed=3, refit=False)
    predictions, details = run_method("probe", config, split_manifest, tmp_path / "run", cache=cache)
    names = split_manifest.label_set()
    x, y = np.asarray(cached_embeddings(config, split_manifest, cache).pooled), split_manifest.targets(names)
    train, val, test = (np.flatnonzero(np.array(split_manifest.column("split")) == p) for p in ("train", "val", "test"))
    heads = fit_adamw(
        x[train], y[train], names, epochs=6, batch_size=4, learning_rate=0.3, weighting="none", seed=3
    )  # fmt: skip
    best = int(np.argmin([log_loss(head.predict(x[val]), y[val]) for head in heads]))
    assert details["chosen"][0]["epoch"] == best + 1
    np.testing.assert_allclose(predictions.scores, heads[best].predict(x[test]), atol=1e-9)


def test_refit_head_is_scikit_learns_on_training_and_validation(manifest: Manifest, tmp_path: Path) -> None:
    config = Config(l2_min=0.1, l2_max=0.1, l2_steps=1)
    run_method("probe", config, manifest, tmp_path / "run")
    features = np.asarray(cached_embeddings(config, manifest, tmp_path / "run" / "embeddings").pooled, dtype=np.float64)
    labels, fold = manifest.label_set(), np.array(manifest.column("fold"))
    train, targets = fold != 0, manifest.targets(manifest.label_set())
    scale = features[train].std(axis=0)
    scale[scale < 1e-6] = 1
    z = (features - features[train].mean(axis=0)) / scale
    oracle = LogisticRegression(C=1 / (0.1 * train.sum()), max_iter=5000, tol=1e-10).fit(z[train], targets[train])
    head = read_head(tmp_path / "run" / "head-fold-0.safetensors")
    assert head.labels == labels
    np.testing.assert_allclose(
        head.predict(features[~train].astype(np.float32)), oracle.predict_proba(z[~train]), atol=2e-3
    )


def test_parts_never_overlap_and_keep_patients_whole(manifest: Manifest) -> None:
    labels, groups = manifest.label_set(), np.array(independent_groups(manifest))
    for part in parts(manifest, labels, val_fraction=0.3, seed=0):
        rows = [set(part.train.tolist()), set(part.val.tolist()), set(part.test.tolist())]
        assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])
        people = [set(groups[list(r)]) for r in rows]
        assert not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])


def test_labels_of_the_test_images_do_not_reach_the_scores(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    """Shuffle the labels of one fold: its own scores may not move."""
    labels, fold = manifest.column("label"), manifest.column("fold")
    held = [i for i, f in enumerate(fold) if f == 0]
    turned = list(labels)
    for a, b in zip(held, held[::-1], strict=True):
        turned[a] = labels[b]
    config = Config(l2_steps=3, l2_min=0.1)
    first, _ = run_method("probe", config, manifest, tmp_path / "a", cache=cache)
    second, _ = run_method("probe", config, manifest.with_columns(label=turned), tmp_path / "b", cache=cache)
    np.testing.assert_array_equal(first.scores[held], second.scores[held])
    assert np.abs(first.scores - second.scores).max() > 0, "the other folds train on them"


def test_a_manifest_without_parts_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    bare = manifest.with_columns(fold=[None] * len(manifest))
    with pytest.raises(ManifestError, match="no training image; split it first: thoraclip split"):
        run_method("probe", Config(), bare, tmp_path / "run")


def test_a_class_that_is_missing_from_training_is_named(manifest: Manifest, tmp_path: Path) -> None:
    labels = manifest.column("label")
    rare = labels[0]
    split = ["test" if label == rare else ("train" if i % 3 else "test") for i, label in enumerate(labels)]
    lopsided = manifest.with_columns(fold=[None] * len(manifest), patient=[None] * len(manifest)).with_columns(
        split=split
    )
    with pytest.raises(ManifestError, match=f"class '{rare}' has no training image"):
        run_method("probe", Config(), lopsided, tmp_path / "run")


def test_the_reference_recipe_runs_and_says_which_epoch(manifest: Manifest, tmp_path: Path) -> None:
    predictions, details = run_method(
        "probe", Config(solver="adamw", epochs=5, train_batch_size=4, l2_steps=1), manifest, tmp_path / "run"
    )
    assert all(1 <= c["epoch"] <= 5 for c in details["chosen"])
    assert len(predictions) == len(manifest)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["fold"] for line in lines] == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "lbfsg"}, "unknown solver 'lbfsg'; did you mean 'lbfgs'"),
        ({"features": "poled"}, "unknown features 'poled'; did you mean 'pooled'"),
        ({"class_weight": "balance"}, "unknown class_weight 'balance'; did you mean 'balanced'"),
        ({"l2_min": 2.0, "l2_max": 1.0}, "l2_min <= l2_max"),
        ({"val_fraction": 1.0}, "val_fraction = 1.0"),
        ({"epochs": 0}, "epochs = 0"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**settings)  # type: ignore[arg-type]


INFORMED: dict[str, Any] = {"solver": "lp++", "features": "projected", "l2_min": 1.0, "l2_max": 1e4, "l2_steps": 3}


@pytest.mark.parametrize("classes", [2])
def test_the_text_informed_probe_runs_from_prompts_to_predictions(
    classes: int, manifest: Manifest, tmp_path: Path
) -> None:
    names = manifest.label_set().names[:classes]
    kept = manifest.take(np.flatnonzero([label in names for label in manifest.column("label")]))
    config = Config(**INFORMED)
    predictions, details = run_method("probe", config, kept, tmp_path / "run")
    assert (predictions.scores.argmax(axis=1) == predictions.target).mean() > 0.7
    assert details["prompt_set"] == "chest-xray-ensemble"
    encoder = load_encoder(config)
    assert details["logit_scale"] == encoder.logit_scale
    prompts = load_prompts(config.prompts)
    texts = class_vectors([encoder.encode_texts(prompts.for_class(name)).astype(np.float64) for name in names])
    features = np.asarray(cached_embeddings(config, kept, tmp_path / "run" / "embeddings").projected)
    grid, fold = np.geomspace(1e4, 1.0, 3), np.array(kept.column("fold"))
    for chosen in details["chosen"]:
        head = read_head(tmp_path / "run" / f"head-fold-{chosen['fold']}.safetensors")
        alpha = (head.weight @ texts.T).diagonal() / encoder.logit_scale
        assert list(chosen["alpha"]) == list(names)
        np.testing.assert_allclose(list(chosen["alpha"].values()), alpha, rtol=1e-4, atol=1e-4)
        assert min(abs(grid - chosen["l2"])) < 1e-9
        rows = np.flatnonzero(fold == chosen["fold"])
        np.testing.assert_allclose(predictions.scores[rows], head.predict(features[rows]), atol=1e-12)


def test_the_text_informed_probe_needs_the_space_shared_with_text() -> None:
    with pytest.raises(
        ConfigError, match=r"features = 'pooled' are not in the space shared.*set features = 'projected'"
    ):
        Config(solver="lp++")


def test_prompts_count_where_they_are_read_and_nowhere_else(manifest: Manifest, tmp_path: Path) -> None:
    assert "prompts" not in Config().inputs()
    run_method("probe", Config(l2_steps=1, l2_min=1.0), manifest, tmp_path / "lbfgs")
    assert is_done("probe", Config(l2_steps=1, l2_min=1.0, prompts="reference"), manifest, tmp_path / "lbfgs")
    one = Config(**INFORMED | {"l2_steps": 1})
    run_method("probe", one, manifest, tmp_path / "lp")
    assert is_done("probe", one, manifest, tmp_path / "lp")
    assert not is_done("probe", dataclasses.replace(one, prompts="reference"), manifest, tmp_path / "lp")


def test_the_shipped_text_informed_config_can_be_fitted() -> None:
    file = Path(__file__).parents[2] / "configs" / "probe" / "text-informed.toml"
    config = build_config(Config, read_toml(file), where=str(file))
    assert (config.solver, config.features) == ("lp++", "projected")


def test_a_probe_keeps_what_flags_pictures_unlike_its_training_images(tmp_path: Path, manifest: Manifest) -> None:
    from thoraclip.methods.probe import _keep_novelty
    from thoraclip.methods.running import Context, Part
    from thoraclip.models.novelty import read_novelty
    from thoraclip.runs import RunFolder

    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 6)).astype(np.float32)
    features[280:] += 12.0
    targets = (np.arange(300) % 3).astype(np.int64)
    context = Context(manifest=manifest, folder=RunFolder(tmp_path), cache=tmp_path)
    rows = np.arange(300)
    part = Part(fold=2, train=rows[:130], val=rows[130:260], test=rows[260:])
    told = _keep_novelty(context, features, targets, part)
    assert told["test"] == 40 and 20 <= told["flagged"] <= 23 and told["promised"] == 0.01
    kept = read_novelty(tmp_path / "novelty-fold-2.safetensors")
    assert kept.is_flagged(kept.score(features[280:])).all()
    few = Part(fold=2, train=rows[:130], val=rows[130:140], test=rows[260:])
    assert "fewer than 20" in _keep_novelty(context, features, targets, few)["reason"]
    assert not (tmp_path / "novelty-fold-2.safetensors").exists(), "an earlier run's threshold is not this one's"
