"""Trivial: planted shortcuts are found and named, a clean set stays at chance, every number is what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.conftest import files

from thoraclip.data.appearance import STATISTICS, describe
from thoraclip.data.batches import grey_batches
from thoraclip.data.check.inspection import inspect
from thoraclip.data.duplicates import thumbnail
from thoraclip.data.index import index
from thoraclip.data.splits import split_folds, split_fractions
from thoraclip.errors import ConfigError, ImageError, ManifestError, ThoraclipError
from thoraclip.imaging import Preprocess, decode
from thoraclip.methods.running import run_method
from thoraclip.methods.trivial import GROUPS, Config, trivial_features
from thoraclip.tables.manifest import Manifest, write_manifest

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
    """Two classes of n / 2 pictures, one in 100 files of any size; three folds."""
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
    only = run_method("trivial", Config(features=(group,), **QUICK), planted(draw), tmp_path / "only")
    assert only is not None
    assert (only[0].scores.argmax(axis=1) == only[0].target).mean() > 0.95
    assert list(only[1]["importance"]) == [group]


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
    small, bytes_ = thumbnail(pixels), path.stat().st_size
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


def test_features_are_those_of_a_slow_oracle(manifest: Manifest, tmp_path: Path) -> None:
    found = trivial_features(manifest, tmp_path / "inspection")
    assert list(found) == list(GROUPS)
    for row, path in enumerate(manifest.paths()):
        for name, values in slow_features(path).items():
            np.testing.assert_allclose(found[name][row], values, rtol=1e-5, atol=1e-6, err_msg=f"{path} {name}")
    named = sum(values.shape[1] for values in found.values())
    assert named == 256 + 32 + len(STATISTICS) + 2, "every statistic is in one group"


def test_blocks_of_pictures_change_nothing(
    planted: Callable[[Draw], Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trivial_features(planted(clean), tmp_path / "inspection")
    monkeypatch.setattr("thoraclip.methods.trivial._BLOCK", 7)
    for name, values in trivial_features(planted(clean), tmp_path / "inspection").items():
        np.testing.assert_array_equal(values, whole[name])


def test_killed_while_measuring_it_goes_on_and_ends_with_the_same_bytes(
    planted: Callable[[Draw], Manifest], tmp_path: Path
) -> None:
    manifest, config = planted(border), Config(**QUICK)
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
        config = Config(seed=seed, min_samples_leaf=1, max_iter=5)
        result = run_method("trivial", config, manifest, tmp_path / f"run-{seed}", cache=tmp_path / "embeddings")
        assert result is not None
        assert len(result[0]) == len(manifest)


def test_folds_are_pooled_and_no_test_label_is_used(manifest: Manifest, tmp_path: Path) -> None:
    config = Config(min_samples_leaf=2, max_iter=20)
    predictions, details = run_method("trivial", config, manifest, tmp_path / "a")
    assert predictions.image_id == tuple(manifest.column("image_id"))
    assert [chosen["fold"] for chosen in details["chosen"]] == [0, 1, 2]
    labels, fold = manifest.column("label"), manifest.column("fold")
    held = [row for row, number in enumerate(fold) if number == 0]
    turned = list(labels)
    for a, b in zip(held, held[::-1], strict=True):
        turned[a] = labels[b]
    second, again = run_method("trivial", config, manifest.with_columns(label=turned), tmp_path / "b")
    assert again["chosen"][0] == details["chosen"][0]
    np.testing.assert_array_equal(predictions.scores[held], second.scores[held])
    assert np.abs(predictions.scores - second.scores).max() > 0, "the other folds train on them"
    part, _ = run_method("trivial", Config(only_folds=(1,), min_samples_leaf=2, max_iter=20), manifest, tmp_path / "c")
    rows = np.flatnonzero(np.array(fold) == 1)
    np.testing.assert_array_equal(part.scores, predictions.scores[rows])


def test_a_split_is_obeyed_and_three_classes_in_any_order(manifest: Manifest, tmp_path: Path) -> None:
    split = split_fractions(manifest, fractions=(0.5, 0.25, 0.25), seed=0)
    config = Config(classes=("Normal", "COVID-19", "Non-COVID"), class_weight="balanced", min_samples_leaf=1)
    predictions, details = run_method("trivial", config, split, tmp_path / "run")
    wanted = {i for i, s in zip(split.column("image_id"), split.column("split"), strict=True) if s == "test"}
    assert set(predictions.image_id) == wanted
    assert predictions.labels.names == config.classes
    assert details["chosen"][0]["val"] == split.column("split").count("val")
    assert (predictions.scores.argmax(axis=1) == predictions.target).mean() > 0.6, "the lungs' grey tells the class"


def test_refitting_uses_the_validation_images_as_well(planted: Callable[[Draw], Manifest], tmp_path: Path) -> None:
    runs = {
        refit: run_method("trivial", Config(refit=refit, **QUICK), planted(place), tmp_path / str(refit))
        for refit in (True, False)
    }
    chosen = {refit: [row["rounds"] for row in details["chosen"]] for refit, (_, details) in runs.items()}
    assert chosen[True] == chosen[False]
    assert np.abs(runs[True][0].scores - runs[False][0].scores).max() > 0


def test_the_same_seed_gives_the_same_bytes(planted: Callable[[Draw], Manifest], tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_method("trivial", Config(seed=3, **QUICK), planted(place), tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    names = {path.split("/")[-1] for path in files(tmp_path / "a")}
    assert {"predictions.parquet", "details.json", "metrics.jsonl"} < names
    assert not any(name.endswith((".pkl", ".joblib", ".pickle")) for name in names)
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["fold"] for line in lines] == [0, 1, 2]


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": ("thumbnial",)}, "unknown features 'thumbnial'; did you mean 'thumbnail'"),
        ({"features": ()}, "one or more different of thumbnail"),
        ({"features": ("file", "file")}, "one or more different of thumbnail"),
        ({"class_weight": "balance"}, "unknown class_weight 'balance'; did you mean 'balanced'"),
        ({"val_fraction": 0.0}, "val_fraction = 0.0"),
        ({"max_iter": 0}, "max_iter = 0: 1 or more"),
        ({"max_leaf_nodes": 1}, "max_leaf_nodes = 1: 2 or more"),
        ({"min_samples_leaf": 0}, "min_samples_leaf = 0: 1 or more"),
        ({"l2": -1.0}, "l2 = -1.0: 0 or more"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0: must be positive"),
        ({"seed": -1}, "seed = -1: 0 or more"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_runs_where_torch_is_not_installed(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.parquet", manifest)
    code = (
        "import sys, importlib.abc\n"
        "class Wall(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'peft', 'accelerate'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Wall())\n"
        "from thoraclip.cli.app import run\n"
        f"sys.exit(run(['trivial', {str(tmp_path / 'm.parquet')!r}, '--out', {str(tmp_path / 'run')!r}, "
        "'--set', 'max_iter=3', '--set', 'min_samples_leaf=2']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "predictions.parquet").is_file()
