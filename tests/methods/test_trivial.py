"""Trivial: planted shortcuts are found and named, a clean set stays at chance, every number is what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.ensemble import HistGradientBoostingClassifier
from tests.conftest import files
from tests.small_install import run_without

from thoraclip.data.appearance import STATISTICS, describe
from thoraclip.data.batches import grey_batches
from thoraclip.data.check.inspection import inspect
from thoraclip.data.duplicates import squash
from thoraclip.data.index import index
from thoraclip.data.splits import split_folds
from thoraclip.errors import ImageError, ManifestError, ThoraclipError
from thoraclip.imaging import Preprocess, decode
from thoraclip.methods import trivial
from thoraclip.methods.parts import parts
from thoraclip.methods.running import run_method
from thoraclip.methods.trivial import GROUPS, Config, trivial_features
from thoraclip.methods.zeroshot import macro_f1
from thoraclip.models.heads import log_loss
from thoraclip.tables.manifest import Manifest, write_manifest
from thoraclip.tables.predictions import read_validation

Grey = npt.NDArray[np.uint8]
Draw = Callable[[int, np.random.Generator], tuple[Grey, int]]

pytestmark = pytest.mark.usefixtures("plain")

QUICK: dict[str, Any] = {"max_iter": 20, "min_samples_leaf": 5}


def noise(rng: np.random.Generator) -> Grey:
    """40 x 40: coarse noise of every brightness, so that no grey level tells anything."""
    coarse = rng.uniform(-30, 30, (10, 10)).repeat(4, axis=0).repeat(4, axis=1)
    return np.clip(rng.uniform(90, 160) + coarse + rng.normal(0, 12, (40, 40)), 0, 255).astype(np.uint8)


def clean(label: int, rng: np.random.Generator) -> tuple[Grey, int]:
    return noise(rng), int(rng.integers(0, 4000))


def border(label: int, rng: np.random.Generator) -> tuple[Grey, int]:
    """A frame of two pixels, 5 grey levels brighter in one class; at 16 x 16 it runs into what lies inside."""
    pixels, unused = clean(label, rng)
    ring = np.ones((40, 40), dtype=bool)
    ring[2:-2, 2:-2] = False
    pixels[ring] = 120 + 5 * label + int(rng.integers(0, 3))
    return pixels, unused


def size(label: int, rng: np.random.Generator) -> tuple[Grey, int]:
    """Files of one class carry 5 to 9 thousand bytes of text, of the other none to 4 thousand."""
    pixels, unused = clean(label, rng)
    return pixels, unused + 5000 * label


def place(label: int, rng: np.random.Generator) -> tuple[Grey, int]:
    """A bright patch on the left in one class and on the right in the other: the same greys at another place."""
    pixels, unused = clean(label, rng)
    at = slice(24, 36) if label else slice(4, 16)
    pixels[14:26, at] = np.clip(pixels[14:26, at].astype(int) + 60, 0, 255)
    return pixels, unused


def write_set(root: Path, draw: Draw, n: int = 150) -> Manifest:
    """Two classes of n / 2 pictures, in files of any size; three folds."""
    rng = np.random.default_rng(7)
    for i in range(n):
        label = i % 2
        pixels, padding = draw(label, rng)
        folder = root / ("left", "right")[label]
        folder.mkdir(parents=True, exist_ok=True)
        text = PngInfo()
        text.add_text("comment", "x" * padding)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png", pnginfo=text)
    return split_folds(index(root, layout="folders").manifest, folds=3, seed=0)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Draw], Manifest]:
    """One set for each way of drawing, made once."""
    made: dict[Draw, Manifest] = {}

    def get(draw: Draw) -> Manifest:
        if draw not in made:
            made[draw] = write_set(tmp_path_factory.mktemp(draw.__name__), draw)
        return made[draw]

    return get


@pytest.mark.parametrize(("draw", "group"), [(border, "appearance"), (size, "file"), (place, "thumbnail")])
def test_a_planted_shortcut_is_found_and_its_group_named(
    draw: Draw, group: str, planted: Callable[[Draw], Manifest], tmp_path: Path
) -> None:
    predictions, details = run_method("trivial", Config(**QUICK), planted(draw), tmp_path / "run")
    assert (predictions.scores.argmax(axis=1) == predictions.target).mean() > 0.95
    for measure in ("log_loss", "macro_f1"):
        told = {name: found[measure] for name, found in details["importance"].items()}
        assert max(told, key=lambda name: told[name]) == group, told
        assert told[group] > 0.1


def test_where_nothing_tells_the_classes_apart_it_stays_at_chance(
    planted: Callable[[Draw], Manifest], tmp_path: Path
) -> None:
    predictions, details = run_method("trivial", Config(**QUICK), planted(clean), tmp_path / "run")
    right = (predictions.scores.argmax(axis=1) == predictions.target).mean()
    assert abs(right - 0.5) < 3.5 * 0.5 / np.sqrt(len(predictions))
    assert all(chosen["rounds"] < 15 for chosen in details["chosen"]), "validation stops it"
    assert predictions.scores.max() < 0.9


def slow_features(path: Path) -> dict[str, list[float]]:
    """Every number again, one by one."""
    pixels = decode(path).pixels
    small, bytes_ = squash(pixels), path.stat().st_size
    said = describe(pixels)
    cells = [
        sum(float(small[6 * y + b, 6 * x + a]) for a in range(6) for b in range(6)) / 36
        for y in range(16)
        for x in range(16)
    ]
    levels = [int(level) for level in small.ravel()]
    return {
        "thumbnail": cells,
        "histogram": [sum(8 * b <= level < 8 * b + 8 for level in levels) / len(levels) for b in range(32)],
        "appearance": [said[name] for name in STATISTICS if name not in ("aspect_ratio", "megapixels")],
        "file": [bytes_ / 1000, 8 * bytes_ / pixels.size, pixels.shape[1] / pixels.shape[0], pixels.size / 1e6],
    }


@pytest.mark.parametrize("block", [256, 7])
def test_features_are_those_of_a_slow_oracle(
    block: int, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trivial, "_BLOCK", block)
    found = trivial_features(manifest, tmp_path / "inspection")
    assert list(found) == list(GROUPS)
    for row, path in enumerate(manifest.paths()):
        for name, values in slow_features(path).items():
            np.testing.assert_allclose(found[name][row], values, rtol=1e-5, atol=1e-6, err_msg=f"{path} {name}")
    named = sum(values.shape[1] for values in found.values())
    assert named == 256 + 32 + len(STATISTICS) + 2, "every statistic is in one group"


def test_killed_while_measuring_it_goes_on_and_ends_with_the_same_bytes(
    planted: Callable[[Draw], Manifest], tmp_path: Path
) -> None:
    manifest, config = planted(border), Config(max_iter=2, features=("file",))
    run_method("trivial", config, manifest, tmp_path / "whole")

    def kill(done: int, total: int) -> None:
        assert 0 < done < total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_method("trivial", config, manifest, tmp_path / "broken", progress=kill)
    assert not (tmp_path / "broken" / "predictions.parquet").exists()
    seen: list[int] = []
    run_method("trivial", config, manifest, tmp_path / "broken", progress=lambda done, _: seen.append(done))
    assert seen[0] > 64, "the first block is not measured again"
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_other_seeds_and_the_check_of_a_study_share_the_measurements(own_manifest: Manifest, tmp_path: Path) -> None:
    """What looking for near duplicates left beside the embeddings is used: no picture is opened again."""
    manifest = own_manifest
    inspect(manifest, tmp_path / "inspection")
    for path in manifest.paths():
        path.unlink()
    for seed in (0, 1):
        config = Config(seed=seed, max_iter=2, features=("file",))
        result = run_method("trivial", config, manifest, tmp_path / f"run-{seed}", cache=tmp_path / "embeddings")
        assert result is not None
        assert len(result[0]) == len(manifest)


GROUPED = {"thumbnail": 4, "histogram": 2, "appearance": 3, "file": 1}


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, dict[str, npt.NDArray[np.float32]]]:
    """120 images that nobody opens, in three folds and a split, with a few features of which each tells a little."""
    rng = np.random.default_rng(0)
    target = np.tile([0, 1, 0, 1, 2, 0], 20)
    found = {n: (rng.normal(size=(120, k)) + 0.6 * target[:, None]).astype(np.float32) for n, k in GROUPED.items()}
    monkeypatch.setattr(trivial, "trivial_features", lambda *_, **__: found)
    rows = [
        {"image_id": f"i{n}", "path": f"{n}.png", "sha256": f"s{n}", "label": "abc"[t], "fold": n // 6 % 3}
        for n, t in enumerate(target)
    ]
    return Manifest.from_rows(rows, Path("/nowhere")), found


def slow_importance(
    staged: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]],
    groups: dict[str, npt.NDArray[np.float32]], target: npt.NDArray[np.int64], val: npt.NDArray[np.int64], rng: np.random.Generator,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """The mean of five shuffles of a group's validation rows, group by group."""

    def measured(columns: list[npt.NDArray[np.float32]]) -> tuple[float, float]:
        scores = staged(np.concatenate(columns, axis=1))
        return log_loss(scores, target[val]), macro_f1(target[val], scores.argmax(axis=1), scores.shape[1])

    whole, found = measured([values[val] for values in groups.values()]), {}
    for name in groups:
        risen, fallen = [], []
        for _ in range(5):
            turned = rng.permutation(val)
            loss, f1 = measured([values[turned if one == name else val] for one, values in groups.items()])
            risen.append(loss - whole[0])
            fallen.append(whole[1] - f1)
        found[name] = {"log_loss": sum(risen) / 5, "macro_f1": sum(fallen) / 5}
    return found


@pytest.mark.parametrize("has_folds", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"max_iter": 12, "min_samples_leaf": 5},
        {
            "max_iter": 3,
            "refit": False,
            "class_weight": "balanced",
            "learning_rate": 0.05,
            "seed": 4,
            "val_fraction": 0.4,
        },
        {"max_iter": 8, "max_leaf_nodes": 3, "l2": 20.0, "features": ("file", "thumbnail"), "classes": ("c", "a", "b")},
    ],
)
def test_a_run_is_that_of_a_slow_oracle(
    settings: dict[str, Any],
    has_folds: bool,
    numbers: tuple[Manifest, dict[str, npt.NDArray[np.float32]]],
    tmp_path: Path,
) -> None:
    """Validation chooses the rounds; the test images decide nothing; only the folds that are asked for are scored."""
    manifest, given = numbers
    if not has_folds:
        split = ["train", "test", "train", "val", "train"] * 24
        manifest = manifest.with_columns(fold=[None] * 120, split=split)
    config = Config(**settings, only_folds=(2, 0) if has_folds and "seed" in settings else ())
    predictions, details = run_method("trivial", config, manifest, tmp_path / "run")
    names = ("c", "a", "b") if config.classes else ("a", "b", "c")
    target = np.array([names.index(label) for label in manifest.column("label")])
    groups = {name: given[name] for name in GROUPED if name in config.features}
    table = np.concatenate(list(groups.values()), axis=1)
    weight = None if config.class_weight == "none" else "balanced"

    def fitted(rows: npt.NDArray[np.int64], rounds: int) -> HistGradientBoostingClassifier:
        model = HistGradientBoostingClassifier(
            max_iter=rounds, learning_rate=config.learning_rate, max_leaf_nodes=config.max_leaf_nodes, class_weight=weight,
            min_samples_leaf=max(1, min(config.min_samples_leaf, len(rows) // 10)), l2_regularization=config.l2, early_stopping=False, random_state=config.seed,
        )  # fmt: skip
        return model.fit(table[rows], target[rows])

    assert predictions.labels.names == names
    wanted = parts(
        manifest, predictions.labels, val_fraction=config.val_fraction, seed=config.seed, only=config.only_folds
    )
    kept = {table.fold[0]: table for table in read_validation(tmp_path / "run")}
    importances, metrics, tested = [], [], []
    for part in wanted:
        model = fitted(part.train, config.max_iter)
        staged = list(model.staged_predict_proba(table[part.val]))
        losses = [log_loss(scores, target[part.val]) for scores in staged]
        best = int(np.argmin(losses))
        last = fitted(np.sort(np.concatenate([part.train, part.val])) if config.refit else part.train, best + 1)
        scored = np.isin(np.array(predictions.image_id), [f"i{row}" for row in part.test])
        np.testing.assert_allclose(predictions.scores[scored], last.predict_proba(table[part.test]), atol=1e-9)
        np.testing.assert_allclose(kept[part.fold].scores, staged[best], atol=1e-9)
        importances.append(
            slow_importance(
                lambda x, model=model, best=best: list(model.staged_predict_proba(x))[best], groups, target, part.val,
                np.random.default_rng([config.seed, part.fold or 0]),
            )
        )  # fmt: skip
        metrics.append(
            {"fold": part.fold, "rounds": best + 1, "train": len(part.train), "val": len(part.val), "test": len(part.test),
             "val_log_loss": pytest.approx(losses[best]), "at_edge_of_grid": best + 1 == config.max_iter}
        )  # fmt: skip
        tested += part.test.tolist()
    assert predictions.image_id == tuple(f"i{row}" for row in sorted(tested))
    assert details["chosen"] == metrics
    assert details["features"] == {n: {"columns": v.shape[1], "what": GROUPS[n]} for n, v in groups.items()}
    assert list(details["importance"]) == list(groups)
    for name in groups:
        for measure in ("log_loss", "macro_f1"):
            mean = np.mean([one[name][measure] for one in importances])
            assert details["importance"][name][measure] == pytest.approx(mean, abs=1e-9)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line.pop("importance") for line in lines] == [
        {name: pytest.approx(values, abs=1e-9) for name, values in one.items()} for one in importances
    ]
    assert lines == details["chosen"]


def test_the_same_seed_gives_the_same_bytes_and_no_model_is_kept(
    numbers: tuple[Manifest, dict[str, npt.NDArray[np.float32]]], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        run_method("trivial", Config(seed=3, **QUICK), numbers[0], tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert {name for name in files(tmp_path / "a") if "validation" not in name} == {
        "config.toml", "details.json", "done.json", "metrics.jsonl", "predictions.parquet", "provenance.json",
    }  # fmt: skip


@pytest.mark.parametrize("content", [b"no picture", None])
def test_a_picture_that_cannot_be_read_is_the_error_that_every_method_gives(
    content: bytes | None, own_manifest: Manifest, tmp_path: Path
) -> None:
    manifest = own_manifest
    path = manifest.paths()[3]
    path.write_bytes(content) if content else path.unlink()
    broken = manifest.with_columns(sha256=[None] * len(manifest))
    with pytest.raises(ThoraclipError) as usual:
        list(grey_batches(broken, Preprocess(), batch_size=8))
    with pytest.raises(ImageError) as ours:
        run_method("trivial", Config(), broken, tmp_path / "run")
    assert str(ours.value) == str(usual.value)


def test_a_manifest_without_parts_is_refused_before_any_picture_is_opened(manifest: Manifest, tmp_path: Path) -> None:
    bare = manifest.with_columns(fold=[None] * len(manifest))
    with pytest.raises(ManifestError, match="no training image; split it first: thoraclip split"):
        run_method("trivial", Config(), bare, tmp_path / "run")
    assert not (tmp_path / "run" / "inspection").exists()


def test_it_runs_where_torch_is_not_installed(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.parquet", manifest)
    given = ["trivial", str(tmp_path / "m.parquet"), "--out", str(tmp_path / "run"), "--set", "max_iter=2"]
    done = run_without((), f"from thoraclip.cli.app import run\nsys.exit(run({given!r}))")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "predictions.parquet").is_file()
