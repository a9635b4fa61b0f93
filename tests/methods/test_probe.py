"""Probe: nested choice, no test image ever used, folds pooled, splits obeyed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.conftest import files

from thoraclip.config import build_config
from thoraclip.documents import read_toml
from thoraclip.labels import load_prompts
from thoraclip.methods import embed, probe, zeroshot
from thoraclip.methods.embed import cached_embeddings
from thoraclip.methods.encoders import load_encoder
from thoraclip.methods.parts import Part, parts
from thoraclip.methods.probe import Config
from thoraclip.methods.running import RunContext, is_done, run_method
from thoraclip.methods.zeroshot import Config as ZeroshotConfig
from thoraclip.methods.zeroshot import class_vectors
from thoraclip.models import heads
from thoraclip.posthoc.ood import fit_ood, read_ood
from thoraclip.runs import RunFolder
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import read_validation

pytestmark = pytest.mark.usefixtures("plain")

COUNT = 180
NAMES = ("common", "less", "rare")
TARGET = np.array([0, 1, 0, 2, 0, 1] * 30)


def features_of(columns: int) -> npt.NDArray[np.float32]:
    """f32[180, columns] that tell a little of the class."""
    features = np.random.default_rng(columns).normal(size=(COUNT, columns)).astype(np.float32)
    features[np.arange(COUNT), TARGET] += 0.8
    return features


FEATURES = {"pooled": features_of(12), "projected": features_of(7)}
TEXTS = probe.Texts(np.eye(3, 7), 20.0)


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """180 images in three folds; their features are kept in another order, and no encoder is loaded."""
    order = np.random.default_rng(0).permutation(COUNT)
    kept = SimpleNamespace(**{n: v[order] for n, v in FEATURES.items()}, rows_for=lambda _: np.argsort(order))
    monkeypatch.setattr(probe, "_inputs", lambda c, *_: (kept, TEXTS if c.solver == "lp++" else None))
    return Manifest.from_rows(
        [{"image_id": f"i{n}", "path": f"{n}.png", "sha256": f"s{n}", "label": NAMES[t], "fold": n // 6 % 3,
          "patient": f"p{n // 2}"}
         for n, t in enumerate(TARGET)], Path("/nowhere"),
    )  # fmt: skip


GRID: dict[str, Any] = {"l2_min": 1e-3, "l2_max": 10.0, "l2_steps": 4}
ADAMW: dict[str, Any] = {"solver": "adamw", "epochs": 7, "train_batch_size": 16, "learning_rate": 0.1, "seed": 3}
INFORMED: dict[str, Any] = {"solver": "lp++", "features": "projected", "l2_min": 1.0, "l2_max": 1e4, "l2_steps": 3}


@pytest.mark.parametrize(
    ("settings", "edges"),
    [
        (GRID, {False}),
        (GRID | {"refit": False, "class_weight": "balanced", "features": "projected"}, {False}),
        ({"l2_min": 1e-4, "l2_max": 1e-3, "l2_steps": 3}, {True}),
        ({"l2_min": 10.0, "l2_max": 1e3, "l2_steps": 3, "val_fraction": 0.4, "only_folds": (2, 0)}, {True}),
        ({"l2_min": 0.5, "l2_max": 0.5, "l2_steps": 1}, {False}),
        (ADAMW, {False, True}),
        (ADAMW | {"refit": False, "class_weight": "balanced"}, {False, True}),
        (INFORMED, {False, True}),
        (INFORMED | {"refit": False, "class_weight": "balanced"}, {False, True}),
    ],
)
def test_a_run_is_that_of_a_slow_oracle(
    settings: dict[str, Any], edges: set[bool], noisy: Manifest, tmp_path: Path
) -> None:
    """Validation chooses the candidate, refit says what it is fitted on, and the test images decide nothing."""
    config = Config(**settings)
    predictions, details = run_method("probe", config, noisy, tmp_path)
    x, names = FEATURES[config.features], noisy.label_set()
    weighting = config.class_weight
    penalties = np.geomspace(config.l2_max, config.l2_min, config.l2_steps).tolist()
    rounds = list(parts(noisy, names, val_fraction=config.val_fraction, seed=config.seed, only=config.only_folds))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert details["chosen"] == lines and len(lines) == len(rounds)
    assert (details["features"], details["dimension"]) == (config.features, x.shape[1])
    assert details.get("logit_scale") == (20.0 if config.solver == "lp++" else None)
    assert details.get("prompt_set") == ("chest-xray-ensemble" if config.solver == "lp++" else None)
    assert {chosen["at_edge_of_grid"] for chosen in lines} <= edges
    for part, chosen, told, kept in zip(
        rounds,
        lines,
        details["out_of_distribution"],
        read_validation(tmp_path)[:: -1 if config.only_folds else 1],
        strict=True,
    ):

        def fitted(rows: Any) -> list[heads.LinearHead]:
            if config.solver == "adamw":
                return heads.fit_adamw(
                    x[rows], TARGET[rows], names, epochs=7, batch_size=16, learning_rate=0.1, weighting=weighting, seed=3
                )  # fmt: skip
            if config.solver == "lbfgs":
                return heads.fit_lbfgs(x[rows], TARGET[rows], names, l2=penalties, weighting=weighting)
            return heads.fit_text_informed(
                x[rows], TARGET[rows], names, texts=TEXTS.vectors, logit_scale=20.0, l2=penalties, weighting=weighting
            )  # fmt: skip

        candidates = fitted(part.train)
        losses = [heads.log_loss(head.predict(x[part.val]), TARGET[part.val]) for head in candidates]
        best = int(np.argmin(losses))
        rows = np.sort(np.concatenate([part.train, part.val])) if config.refit else part.train
        expected = fitted(rows)[best]
        facts = {"fold": part.fold, "train": len(part.train), "val": len(part.val), "test": len(part.test),
                 "at_edge_of_grid": best in (0, len(losses) - 1) and len(losses) > 1}  # fmt: skip
        assert facts.items() <= chosen.items()
        assert chosen["val_log_loss"] == pytest.approx(losses[best], rel=1e-5)
        if config.solver == "adamw":
            assert chosen["epoch"] == best + 1 and "l2" not in chosen
        else:
            assert chosen["l2"] == pytest.approx(penalties[best]) and "epoch" not in chosen
        head = heads.read_head(tmp_path / f"head-fold-{part.fold}.safetensors")
        if config.solver == "lp++":
            assert list(chosen["alpha"]) == list(NAMES)
            alpha = (head.weight @ TEXTS.vectors.T).diagonal() / 20
            np.testing.assert_allclose(list(chosen["alpha"].values()), alpha, rtol=1e-5)
        np.testing.assert_allclose(head.predict(x), expected.predict(x), atol=2e-4)
        scored = np.isin(np.array(predictions.image_id), [f"i{row}" for row in part.test])
        np.testing.assert_allclose(predictions.scores[scored], head.predict(x[part.test]), atol=1e-6)
        np.testing.assert_allclose(kept.scores, candidates[best].predict(x[part.val]), atol=1e-5)
        ood = fit_ood(x[part.train], targets=TARGET[part.train], held_out=x[part.val], patients=part.val // 2)
        assert ood.calibration_patients < len(part.val), "a patient's images count together"
        flags = ood.is_flagged(ood.score(x[part.test]))
        written = read_ood(tmp_path / f"novelty-fold-{part.fold}.safetensors")
        assert (written.threshold, written.facts) == (ood.threshold, ood.facts)
        np.testing.assert_array_equal(written.score(x), ood.score(x), "what is told is what is written")
        assert told == {"fold": part.fold, "promised": ood.guaranteed_rate, "flagged": int(flags.sum()),
                        "test": len(part.test), "share": flags.mean()}  # fmt: skip
    assert set(predictions.image_id) == {f"i{row}" for part in rounds for row in part.test}


@pytest.mark.parametrize(("train", "val"), [(20, 20), (19, 20), (20, 19)])
@pytest.mark.parametrize("fold", [2, None])
def test_with_too_few_images_there_is_no_threshold_and_none_of_before_stays(
    train: int, val: int, fold: int | None, noisy: Manifest, tmp_path: Path
) -> None:
    rows = np.arange(60)
    part = Part(fold=fold, train=rows[:train], val=rows[20 : 20 + val], test=rows[40:])
    file = tmp_path / ("novelty.safetensors" if fold is None else "novelty-fold-2.safetensors")
    file.write_text("of an earlier run")
    told = probe._keep_ood(RunContext(noisy, RunFolder(tmp_path), tmp_path), (part, FEATURES["pooled"], None), TARGET)
    few = train + val < 40
    assert file.exists() != few and ("fewer than 20" in str(told.get("reason"))) == few
    if few:
        probe._keep_ood(RunContext(noisy, RunFolder(tmp_path), tmp_path), (part, FEATURES["pooled"], None), TARGET)


@pytest.mark.parametrize("kind", ["probe", "zeroshot"])
def test_the_images_are_read_with_the_runs_folders_and_progress(
    kind: str, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class AskedError(Exception):
        pass

    def cached(*arguments: Any, **given: Any) -> Any:
        asked.append((arguments, given))
        raise AskedError

    module, name = {"probe": (probe, "load_encoder"), "zeroshot": (zeroshot, "load_text_encoder")}[kind]
    monkeypatch.setattr(module, name, lambda config, *_: ("the encoder of", config))
    monkeypatch.setattr(embed, "cached_embeddings", cached)
    config = Config() if kind == "probe" else ZeroshotConfig()
    given: dict[str, Any] = {"pixels": tmp_path / "px", "progress": lambda *_: None, "announce": print}
    with pytest.raises(AskedError):
        run_method(kind, config, manifest, tmp_path / "run", cache=tmp_path / "cache", **given)
    assert asked == [
        ((config, manifest, tmp_path / "cache"), given | {"rows": None, "encoder": ("the encoder of", config)})
    ]


def test_finished_features_need_no_encoder_but_for_texts(monkeypatch: pytest.MonkeyPatch, manifest: Manifest) -> None:
    def load(*_: object) -> None:
        raise LookupError("loaded")

    monkeypatch.setattr(probe, "load_text_encoder", load)
    monkeypatch.setattr(probe, "finished_embeddings", lambda config: config)
    context: Any = None
    assert probe._inputs(Config(), context, manifest.label_set()) == (Config(), None)
    with pytest.raises(LookupError, match="loaded"):
        probe._inputs(Config(**INFORMED), context, manifest.label_set())


def test_each_fold_is_scored_by_the_head_that_never_saw_it(manifest: Manifest, cache: Path, tmp_path: Path) -> None:
    config = Config(l2_steps=5, l2_min=1e-3)
    predictions, _ = run_method("probe", config, manifest, tmp_path / "run", cache=cache)
    assert (predictions.scores.argmax(axis=1) == predictions.target).mean() > 0.8, "three brightness patterns are easy"
    features = cached_embeddings(config, manifest, cache).pooled
    fold = np.array(manifest.column("fold"))
    for number in range(3):
        head = heads.read_head(tmp_path / "run" / f"head-fold-{number}.safetensors")
        rows = np.flatnonzero(fold == number)
        np.testing.assert_allclose(predictions.scores[rows], head.predict(np.asarray(features[rows])), atol=1e-12)
        train = features[np.flatnonzero(fold != number)]
        np.testing.assert_allclose(head.mean, train.mean(axis=0), atol=1e-5)
    run_method("probe", config, manifest, tmp_path / "again", cache=cache)
    assert files(tmp_path / "again") == files(tmp_path / "run")


def test_the_text_informed_probe_of_two_classes_runs_from_prompts_to_predictions(
    manifest: Manifest, tmp_path: Path
) -> None:
    names = manifest.label_set().names[:2]
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
    fold = np.array(kept.column("fold"))
    for chosen in details["chosen"]:
        head = heads.read_head(tmp_path / "run" / f"head-fold-{chosen['fold']}.safetensors")
        alpha = (head.weight @ texts.T).diagonal() / encoder.logit_scale
        np.testing.assert_allclose(list(chosen["alpha"].values()), alpha, rtol=1e-4, atol=1e-4)
        rows = np.flatnonzero(fold == chosen["fold"])
        np.testing.assert_allclose(predictions.scores[rows], head.predict(features[rows]), atol=1e-12)


def test_prompts_count_where_they_are_read_and_nowhere_else(noisy: Manifest, tmp_path: Path) -> None:
    assert "prompts" not in Config().inputs()
    run_method("probe", Config(l2_steps=1, l2_min=1.0), noisy, tmp_path / "lbfgs")
    assert is_done("probe", Config(l2_steps=1, l2_min=1.0, prompts="reference"), noisy, tmp_path / "lbfgs")
    one = Config(**INFORMED | {"l2_steps": 1})
    run_method("probe", one, noisy, tmp_path / "lp")
    assert is_done("probe", one, noisy, tmp_path / "lp")
    assert not is_done("probe", dataclasses.replace(one, prompts="reference"), noisy, tmp_path / "lp")


def test_the_shipped_text_informed_config_can_be_fitted() -> None:
    file = Path(__file__).parents[2] / "configs" / "probe" / "text-informed.toml"
    config = build_config(Config, read_toml(file), where=str(file))
    assert (config.solver, config.features) == ("lp++", "projected")
