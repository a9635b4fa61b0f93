"""Phantoms: the same bytes for ever, no shortcut unless planted, lesions where the class says."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import files

from thoraclip.data.phantom import (
    CLASSES,
    PhantomConfig,
    describe,
    draw_phantom,
    parse_shortcut,
    plan_phantoms,
    write_phantoms,
)
from thoraclip.data.phantom.attributes import PLANTED, SHORTCUTS, choose_attributes, shape_body
from thoraclip.errors import ConfigError, InputError

SMALL = PhantomConfig(images=18, size=64, seed=3, infection_fraction=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms") / "set"
    return root, write_phantoms(root, SMALL, workers=1)


@pytest.fixture(scope="module")
def rows(folder):
    with (folder[0] / "phantoms.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def pool():
    """400 attributes of each class, nothing planted."""
    rng = np.random.default_rng(5)
    return {c: [choose_attributes(c, shape_body(rng), rng=rng, difficulty=0.5) for _ in range(400)] for c in CLASSES}


@pytest.fixture(scope="module")
def drawn():
    return {
        c: [draw_phantom(c, rng=np.random.default_rng([k, i]), size=96) for i in range(12)]
        for k, c in enumerate(CLASSES)
    }


SCRIPT = "import sys, thoraclip\nprint('started')\nthoraclip.phantom(sys.argv[1], images=64, size=64)\n"


@pytest.mark.parametrize("how", ["file", "module", "input", "command"])
def test_a_script_without_a_guard_draws_in_processes_and_runs_once(how: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    arguments = {"file": ["script.py"], "module": ["-m", "script"], "input": ["-"], "command": ["-c", SCRIPT]}[how]
    two = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *arguments, "set"]
    done = subprocess.run(command, cwd=tmp_path, input=SCRIPT, capture_output=True, text=True, env=two, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "started\n" and (tmp_path / "set" / "phantoms.csv").is_file()


def test_bytes_do_not_depend_on_the_workers_and_resume_restores_them(folder, tmp_path):
    root, before = tmp_path / "again", files(folder[0])
    write_phantoms(root, SMALL, workers=2)
    assert files(root) == before
    drawn = sorted(root.rglob("*.png"))
    lost, times = drawn[::7], {path: path.stat().st_mtime_ns for path in drawn}
    for path in lost:
        path.unlink()
    seen: list[tuple[int, int]] = []
    write_phantoms(root, SMALL, workers=1, progress=lambda *at: seen.append(at))
    assert seen[-1] == (18, 18)
    assert [path for path in drawn if path.stat().st_mtime_ns != times[path]] == lost, "only these are drawn again"
    assert files(root) == before


def test_layout_counts_and_twins(folder, rows):
    root, summary = folder
    assert len(rows) == summary.images == 18
    assert [r["path"] for r in rows] == sorted(r["path"] for r in rows)
    assert {c: sum(r["label"] == c for r in rows) for c in CLASSES} == dict.fromkeys(CLASSES, 6)
    names = {"COVID-19": r"covid_\d+\.png", "Non-COVID": r"non_COVID \(\d+\)\.png", "Normal": r"Normal \(\d+\)\.png"}
    infected = [r for r in rows if r["infection_mask"]]
    assert 0 < len(infected) < 18
    for row in rows:
        assert re.fullmatch(names[row["label"]], Path(row["path"]).name)
        assert row["path"].split("/")[2:4] == [row["split"], row["label"]]
        assert (root / row["path"]).is_file() and (root / row["lung_mask"]).is_file()
    for row in infected:
        twin = root / row["infection_mask"].replace("/infection masks/", "/images/")
        assert twin.read_bytes() == (root / row["path"]).read_bytes()
        mask = np.asarray(Image.open(root / row["infection_mask"]))
        assert set(np.unique(mask)) <= {0, 255}
        assert mask.any() == (row["label"] != "Normal")


def test_every_png_says_that_it_is_synthetic(folder):
    root, _ = folder
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            assert image.mode == "L" and image.size == (64, 64)
            assert image.text["Synthetic"] == "yes" and image.text["Software"] == "thoraclip phantom"
            assert image.text["Seed"] == "3" and "research" in image.text["Comment"]
    assert "SYNTHETIC" in (root / "README.txt").read_text(encoding="utf-8")


def test_patients_never_cross_splits_and_share_a_class():
    tasks = plan_phantoms(PhantomConfig(images=301, images_per_patient=2.0))
    split, label, held = {}, {}, {}
    for task in tasks:
        assert split.setdefault(task.patient, task.split) == task.split
        assert label.setdefault(task.patient, task.label) == task.label
        held[task.patient] = held.get(task.patient, 0) + 1
    assert set(held.values()) == {1, 2, 3}
    assert len({(t.label, t.stem) for t in tasks}) == len(tasks) == 301


MEASURED = {
    "COVID-19": (107.8, 64.8, 8.21, 27.34, 8.37),
    "Non-COVID": (111.6, 68.9, 8.52, 29.34, 5.31),
    "Normal": (101.8, 69.6, 8.13, 29.32, 0.0),
}
"""Of twelve phantoms, means of: grey level, its spread, step to the next pixel; lung and lesion, % of the area."""


@pytest.mark.parametrize("label", CLASSES)
def test_lesions_stay_in_the_lungs_on_the_right_sides(drawn, label):
    pixels = np.stack([phantom.pixels for phantom in drawn[label]])
    lungs, infections = (
        np.stack([getattr(p, name) > 0 for p in drawn[label]]) for name in ("lung_mask", "infection_mask")
    )
    assert pixels.dtype == np.uint8 and pixels.shape == lungs.shape == infections.shape == (12, 96, 96)
    grey = (pixels.mean(), pixels.std(axis=(1, 2)).mean(), np.abs(np.diff(pixels.astype(float), axis=2)).mean())
    assert (*grey, 100 * lungs.mean(), 100 * infections.mean()) == pytest.approx(MEASURED[label], abs=0.06)
    assert not (infections & ~lungs).any()
    for phantom, lung, infection in zip(drawn[label], lungs, infections, strict=True):
        assert infection.any() == (label != "Normal")
        if label == "Normal":
            continue
        columns = np.flatnonzero(infection.any(axis=0))
        middle = np.flatnonzero(lung.any(axis=0)).mean()
        left, right = columns.min() < middle, columns.max() > middle
        assert (left and right) if label == "COVID-19" else (left != right)
        if label == "Non-COVID":  # the patient's right is at the viewer's left
            assert phantom.attributes["finding_side"] == ("right" if left else "left")


def test_a_lesion_attenuates_and_difficulty_one_hides_it():
    lesions = (0.0, 0.5, 0.9, 1.0)
    phantoms = [draw_phantom("COVID-19", rng=np.random.default_rng(4), size=96, difficulty=d) for d in lesions]
    mask, pixels = phantoms[0].infection_mask > 0, [phantom.pixels.astype(float) for phantom in phantoms]
    gain = [(lesion - pixels[-1])[mask].mean() for lesion in pixels]
    assert gain[0] > gain[1] > gain[2] > 0 == gain[3]
    assert gain[1] > 8


def test_a_clean_set_is_independent_of_the_class():
    """Equal chance gives equal attributes, the finding's apart."""
    for seed in range(40):
        seen = []
        for label in CLASSES:
            rng = np.random.default_rng(seed)
            attributes = choose_attributes(label, shape_body(rng), rng=rng, difficulty=0.5)
            seen.append({k: v for k, v in attributes.items() if not k.startswith("finding")})
        assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("kind", SHORTCUTS)
def test_a_planted_shortcut_has_its_strength(kind, pool):
    name, rng = {"device": "devices"}.get(kind, kind), np.random.default_rng(11)
    planted = {"rng": rng, "difficulty": 0.5, "shortcut": kind, "shortcut_strength": 0.8}
    for label in CLASSES:
        chosen = [choose_attributes(label, shape_body(rng), **planted) for _ in range(400)]
        blind = pool[label]
        if kind == "date":  # which no other image has
            blind = [
                choose_attributes(label, shape_body(rng), **planted | {"shortcut_strength": 0.0}) for _ in range(400)
            ]
        free = np.mean([a[name] == PLANTED[kind][label] for a in blind])
        assert np.mean([a["shortcut_planted"] for a in chosen]) == pytest.approx(0.8, abs=0.06)
        agree = np.mean([a[name] == PLANTED[kind][label] for a in chosen])
        assert agree == pytest.approx(0.8 + 0.2 * free, abs=0.06)


def test_a_planted_border_is_in_the_pixels():
    for seed in range(5):
        drawn = [
            draw_phantom(c, rng=np.random.default_rng(seed), size=96, shortcut="border", shortcut_strength=1.0).pixels
            for c in CLASSES
        ]
        black = [int((p.max(axis=1) < 8).sum()) for p in drawn]  # rows without a lit pixel; no marker lies in the last
        assert [int(p[-1].max()) < 8 for p in drawn] == [True, True, False]
        assert black[0] > black[1] > black[2] == 0


def test_captions_vary_and_never_name_the_disease(pool):
    rng = np.random.default_rng(0)
    captions = [describe(a, rng) for label in CLASSES for a in pool[label][:150]]
    told = re.compile(
        r"covid|pneumon|infect|opaci|consolid|ground|lesion|disease|healthy|\bnormal\b|patch|finding", re.I
    )
    assert not [c for c in captions if told.search(c)]
    assert len(set(captions)) > 400
    assert max(len(c.split()) for c in captions) < 60


def test_bad_folders_are_refused(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_phantoms(tmp_path, SMALL)
    with pytest.raises(InputError, match="is a file"):
        write_phantoms(tmp_path / "notes.txt", SMALL)
    with pytest.raises(InputError, match=r"another config \(seed 3, now 4\)"):
        write_phantoms(folder[0], PhantomConfig(images=18, size=64, seed=4, infection_fraction=0.5))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 2}, "images = 2: a whole number from 3 to"),
        ({"size": 8}, "size = 8"),
        ({"difficulty": 1.5}, "difficulty = 1.5"),
        ({"shortcut": "boarder", "shortcut_strength": 0.5}, "did you mean 'border'"),
        ({"shortcut_strength": 0.5}, "needs a shortcut"),
        ({"fractions": (0.6, 0.2, 0.3)}, "their sum must be 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PhantomConfig(**settings)


def test_shortcut_texts():
    assert parse_shortcut("border=0.9") == ("border", 0.9)
    assert parse_shortcut("") == ("", 0.0)
    for text, message in [
        ("border", "KIND=STRENGTH"),
        ("bordr=1", "did you mean 'border'"),
        ("border=high", "not a number"),
        ("border=2", "from 0 to 1"),
        ("border=nan", "from 0 to 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            kind, strength = parse_shortcut(text)
            PhantomConfig(shortcut=kind, shortcut_strength=strength)
    with pytest.raises(ConfigError, match="did you mean 'Normal'"):
        draw_phantom("normal", rng=np.random.default_rng(0))
