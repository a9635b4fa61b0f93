"""`overlap`: pairs across two manifests, identical and near, and where their labels contradict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import Capture, draw_picture, examples

from thoraclip.cli.app import run
from thoraclip.data import overlap as module
from thoraclip.data.check.inspection import Inspection
from thoraclip.data.duplicates import DuplicatePair, clusters
from thoraclip.data.index import index
from thoraclip.data.overlap import IDENTICAL, NEAR
from thoraclip.tables.manifest import Manifest, write_manifest


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a.parquet` (normal, non_covid) and `b.parquet` (Normal, pneumonia): six shared pictures of twelve each."""
    root = tmp_path_factory.mktemp("overlap")
    for k in range(12):
        for name, label in (("a", ("normal", "non_covid")[k % 2]), ("b", ("Normal", "pneumonia")[k % 2])):
            (root / name / label).mkdir(parents=True, exist_ok=True)
            seed = k if name == "a" or k < 4 else 100 + k
            image = Image.fromarray(draw_picture(96, 96, seed=seed, patch=0.3))
            if name == "b" and k in (2, 3):  # a near copy
                image = image.resize((150, 150), Image.Resampling.BICUBIC)
            image.save(root / name / label / f"{k}.png")
    contradiction = Image.open(root / "a" / "normal" / "6.png").resize((130, 130), Image.Resampling.BICUBIC)
    contradiction.save(root / "b" / "pneumonia" / "six.jpg", quality=92)
    shutil.copy(root / "a" / "non_covid" / "7.png", root / "b" / "Normal" / "seven.png")
    shutil.copy(root / "b" / "Normal" / "seven.png", root / "b" / "Normal" / "seven-too.png")
    (root / "b" / "Normal" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("a", "b"):
        write_manifest(root / f"{name}.parquet", index(root / name, layout="folders").manifest)
    return root


def test_pairs_kinds_and_contradictions(sets: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    arguments = ["overlap", str(sets / "a.parquet"), str(sets / "b.parquet"), "--out", str(out)]
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    content = json.loads((out / "overlap.json").read_text(encoding="utf-8"))
    assert content["schema"] == 1 and content["shared"] == {"a": 6, "b": 7}
    pairs = {(p["a"], p["b"]): (p["kind"], p["contradicts"]) for p in content["pairs"]}
    assert pairs == {
        ("normal/0.png", "Normal/0.png"): (IDENTICAL, False),
        ("non_covid/1.png", "pneumonia/1.png"): (IDENTICAL, False),
        ("normal/2.png", "Normal/2.png"): (NEAR, False),
        ("non_covid/3.png", "pneumonia/3.png"): (NEAR, False),
        ("normal/6.png", "pneumonia/six.jpg"): (NEAR, True),
        ("non_covid/7.png", "Normal/seven.png"): (IDENTICAL, True),
        ("non_covid/7.png", "Normal/seven-too.png"): (IDENTICAL, True),
    }
    assert all(p["contradicts"] for p in content["pairs"][:3]), "contradictions first"
    assert "6 images of A (12) are in B (15): 3 as identical files, 3 as near copies." in shown
    assert "The labels in A and B contradict each other for 2 images of A." in shown
    assert '--label-map "non_covid=pneumonia" says that they do' in shown
    assert {row["relation"] for row in content["labels"]} == {"same", "contradiction", "open"}
    page = (out / "overlap.html").read_text(encoding="utf-8")
    assert page.count("<img") == 14 and "Research use only" in page
    assert run([*arguments, "--label-map", "non_covid=pneumonia"]) == 0
    assert "is not known" not in capsys.readouterr().out
    content = json.loads((out / "overlap.json").read_text(encoding="utf-8"))
    assert {row["relation"] for row in content["labels"]} == {"same", "contradiction"}


@pytest.mark.parametrize(
    ("entry", "rule"),
    [("x", "expected OLD=NEW"), ("=y", "expected OLD=NEW"), ("nromal=x", "no image has the label 'nromal'; did you")],
)
def test_a_wrong_label_map_is_refused_before_an_image_is_read(
    sets: Path, tmp_path: Path, capsys: Capture, entry: str, rule: str
) -> None:
    arguments = [str(sets / "a.parquet"), str(sets / "b.parquet"), "--out", str(tmp_path / "o"), "--label-map", entry]
    assert run(["overlap", *arguments]) == 2
    assert rule in capsys.readouterr().err and not (tmp_path / "o").exists()


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=9),
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.floats(0.9, 1.0))),
)
@examples(300)
def test_every_image_with_a_copy_in_the_other_manifest_is_paired(
    contents: list[int], first: int, near: list[tuple[int, int, float]]
) -> None:
    """Against an oracle: an image is paired where any chain of pairs leads to the other manifest, directly linked ones
    where there are some, and files of equal content always."""
    count, total = min(first, len(contents) - 1), len(contents)
    names = [f"{c}" for c in contents]
    stars = {c: names.index(c) for c in names}
    pairs = [DuplicatePair(stars[c], k, IDENTICAL) for k, c in enumerate(names) if stars[c] != k]
    for one, other, value in near:
        ends = sorted({stars[names[k]] for k in (one, other) if k < total})
        if len(ends) == 2:
            pairs.append(DuplicatePair(ends[0], ends[1], NEAR, correlation=value))
    rows = [{"image_id": f"i{k}", "path": f"{k}.png", "sha256": name} for k, name in enumerate(names)]
    both = [Manifest.from_rows(part, Path("/x")) for part in (rows[:count], rows[count:])]
    with pytest.MonkeyPatch.context() as patch:
        empty = Inspection(None, None, None, {})  # type: ignore[arg-type]
        patch.setattr(module, "inspect", lambda *_, **__: empty)
        patch.setattr(module, "duplicate_pairs", lambda *_, **__: sorted(pairs, key=lambda p: (p.first, p.second)))
        shared = module._overlap(*both, (Path(), Path()), Path(), None)
    group = clusters(total, pairs)
    linked = {k for k in range(count) if any(group[k] == group[other] for other in range(count, total))}
    assert set(shared.crossing) == linked
    for row, copies in shared.crossing.items():
        equal = {other for other in range(count, total) if names[other] == names[row]}
        direct = {
            other
            for other in range(count, total)
            for p in pairs
            if p.kind == NEAR and {names[p.first], names[p.second]} == {names[row], names[other]}
        }
        assert {other for other, _ in copies} == (
            equal | direct or {o for o in range(count, total) if group[o] == group[row]}
        )
        assert {other for other, value in copies if value is None} == (
            set() if equal | direct else {o for o, _ in copies}
        )


def test_signs_at_the_end_make_another_label(tmp_path: Path) -> None:
    for name, labels in (("a", ("COVID+", "COVID-")), ("b", ("COVID-", "COVID+"))):
        for seed, label in enumerate(labels):
            (tmp_path / name / label).mkdir(parents=True)
            Image.fromarray(draw_picture(64, 64, seed=seed)).save(tmp_path / name / label / f"{seed}.png")
    manifests = [index(tmp_path / name, layout="folders").manifest for name in "ab"]
    content = module.compare_manifests(*manifests, tmp_path / "out")
    assert [pair["contradicts"] for pair in content["pairs"]] == [True, True]
