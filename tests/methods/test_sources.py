"""Settings that balance sources: every method uses them, they are part of a run's identity, and need sources."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from thoraclip.data.splits import split_fractions
from thoraclip.errors import ConfigError, ManifestError
from thoraclip.methods import METHODS, trivial
from thoraclip.methods.checking import check_method
from thoraclip.methods.parts import Part
from thoraclip.methods.running import is_done, run_method
from thoraclip.models.heads import read_head
from thoraclip.tables.embeddings import read_embeddings
from thoraclip.tables.manifest import Manifest

SHORT: dict[str, Any] = {
    "model": "tiny-clip", "steps": 2, "batch_size": 8, "augmentation": "none", "precision": "fp32", "val_fraction": 0.3,
}  # fmt: skip
CASES: list[tuple[str, dict[str, Any]]] = [
    ("probe", {"model": "tiny-clip", "l2_steps": 1, "refit": False}),
    ("trivial", {"max_iter": 4, "min_samples_leaf": 2, "refit": False}),
    ("baseline", {**SHORT, "train": "head", "learning_rate": 0.05, "label_smoothing": 0.0}),
    ("finetune", {**SHORT, "learning_rate": 0.01}),
    ("finetune", {**SHORT, "learning_rate": 0.01, "loss": "cross_entropy"}),
]


def scores(kind: str, manifest: Manifest, out: Path, **settings: Any) -> Any:
    config = METHODS[kind].config_type(**settings)
    result = run_method(kind, config, manifest, out)
    assert result is not None and is_done(kind, config, manifest, out)
    return result[0].scores


@pytest.fixture
def images(manifest: Manifest) -> Manifest:
    """Of one source; the classes are of unequal sizes."""
    few = manifest.take(
        np.array([row for row in range(len(manifest)) if manifest.column("label")[row] != "Normal" or row % 2])
    )
    split = split_fractions(few, fractions=[0.5, 0.25, 0.25], seed=0)
    return split.with_columns(source=pa.array(["a"] * len(split)))


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_one_source_is_balanced_and_two_are_not(
    kind: str, settings: dict[str, Any], images: Manifest, tmp_path: Path
) -> None:
    balanced = scores(kind, images, tmp_path / "b", class_weight="balanced", **settings)
    alike = scores(kind, images, tmp_path / "s", class_weight="source", **settings)
    np.testing.assert_allclose(alike, balanced, atol=1e-3)
    two = images.with_columns(source=pa.array(["a" if n % 5 else "b" for n in range(len(images))]))
    assert two.fingerprint == images.fingerprint
    assert not is_done(kind, METHODS[kind].config_type(class_weight="source", **settings), two, tmp_path / "s")
    assert is_done(kind, METHODS[kind].config_type(class_weight="balanced", **settings), two, tmp_path / "b")
    changed = scores(kind, two, tmp_path / "s", class_weight="source", **settings)
    if kind != "trivial":  # so few images make no branch; see below
        assert np.abs(changed - balanced).max() > 1e-4


def test_trees_hear_a_rare_source_of_a_class() -> None:
    """The second source, a twentieth of each class, has the classes the other way round."""
    source, target = np.arange(400) % 20 // 19, np.arange(400) // 20 % 2
    tells = np.where(source == 1, 1 - target, target).astype(np.float32)[:, None]
    rows = np.arange(400)
    part = Part(None, train=rows, val=rows, test=rows)
    wrong = {}
    for kind in ("balanced", "source"):
        config = trivial.Config(class_weight=kind, max_iter=3, refit=False)
        own = source if kind == "source" else None
        found = trivial._fit_and_score(config, {"thumbnail": tells}, target, part, own)[0]
        wrong[kind] = float(found[np.arange(400), target][source == 1].mean())
    assert wrong["source"] > wrong["balanced"] + 0.05


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((k, "class_weight") for k in ("probe", "trivial", "baseline", "finetune")),
        ("finetune", "sampling"),
        ("probe", "erase"),
    ],
)
def test_a_manifest_without_sources_is_refused_before_any_work(kind: str, name: str, images: Manifest) -> None:
    without = images.with_columns(source=pa.nulls(len(images), pa.string()))
    assert import_module(METHODS[kind].module)
    config = METHODS[kind].config_type(**{name: "source"})
    message = rf"manifest: {name} = source, and no image has a source; index again with --source-column, or set {name}"
    with pytest.raises(ManifestError, match=message):
        check_method(kind, config, without)
    check_method(kind, config, images)


def test_sources_can_be_drawn_alike(images: Manifest, tmp_path: Path) -> None:
    two = images.with_columns(source=pa.array(["a" if n % 5 else "b" for n in range(len(images))]))
    given = {**SHORT, "learning_rate": 0.05, "train": "head"}
    shuffled = scores("baseline", two, tmp_path / "s", **given)
    assert np.abs(scores("baseline", two, tmp_path / "o", sampling="source", **given) - shuffled).max() > 1e-5


@pytest.mark.parametrize("solver", ["lbfgs", "adamw"])
def test_what_tells_the_source_is_erased_from_what_the_head_reads(
    solver: str, images: Manifest, tmp_path: Path
) -> None:
    settings = {"model": "tiny-clip", "l2_steps": 1, "refit": False, "solver": solver, "precision": "fp32"}
    plain = scores("probe", images, tmp_path / "p", **settings)
    same = scores("probe", images, tmp_path / "o", erase="source", **settings)
    np.testing.assert_allclose(same, plain, atol=1e-4, err_msg="of one source there is nothing to erase")
    two = images.with_columns(source=pa.array(["a" if n % 3 else "b" for n in range(len(images))]))
    erased = scores("probe", two, tmp_path / "e", erase="source", **settings)
    assert np.abs(erased - plain).max() > 1e-3
    head = read_head(tmp_path / "e" / "head.safetensors")
    embedded = read_embeddings(next((tmp_path / "e" / "embeddings").iterdir()))
    features = np.asarray(embedded.pooled)[embedded.rows_for(two)].astype(np.float64)
    weight = head.weight / head.scale
    rows = np.array([row for row, split in enumerate(two.column("split")) if split == "train"])
    target = two.targets(two.label_set())[rows]
    source = np.array([value == "a" for value in two.column("source")], dtype=float)[rows]
    for one in np.unique(target):
        source[target == one] -= source[target == one].mean()
    direction = features[rows].T @ source
    within = np.abs(weight @ direction) / (np.linalg.norm(weight, axis=1) * np.linalg.norm(direction))
    assert within.max() < 0.02, "the logits do not covary with the source within a class"


def test_a_text_informed_probe_erases_nothing() -> None:
    with pytest.raises(ConfigError, match=r"erase = 'source' moves features out of the space shared with text"):
        METHODS["probe"].config_type(solver="lp++", features="projected", erase="source")
