"""What a reader must know first: each finding where it holds, none where it does not, and what coincides, simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluation.tables import method, predictions

from thoraclip.evaluation.align import align
from thoraclip.evaluation.external import ExternalResult
from thoraclip.evaluation.findings import MARGIN, REMEDIES, coincidences, findings, told
from thoraclip.evaluation.render import html_page, markdown_page
from thoraclip.evaluation.report import judge, with_audits
from thoraclip.evaluation.results import MethodResult
from thoraclip.tables.manifest import Manifest

STRONG, WEAK = 6.0, 0.3


def one(name: str, kind: str, signal: float, seed: int = 0, n: int = 240) -> MethodResult:
    table = predictions(n, signal=signal, seed=seed)
    return MethodResult(name=name, kind=kind, predictions=(table,))


def report(*methods: MethodResult, **more: Any) -> dict[str, Any]:
    return judge(methods, title="a study", resamples=100, **more)


def names(found: dict[str, Any]) -> list[str]:
    return [row["name"] for row in found["findings"]]


@pytest.mark.parametrize(
    ("trees", "network", "expected"),
    [(STRONG, WEAK, ["trivial"]), (STRONG, STRONG, ["trivial"]), (WEAK, STRONG, []), (0.0, WEAK, [])],
)
def test_trees_that_no_network_is_shown_to_beat(trees: float, network: float, expected: list[str]) -> None:
    found = report(one("net", "probe", network), one("trees", "trivial", trees, seed=1))
    assert names(found) == expected
    if expected:
        value = {m["name"]: f"{100 * m['metrics']['macro_f1']['value']:.1f}" for m in found["methods"]}
        says = found["findings"][0]["says"]
        assert value["trees"] in says and value["net"] in says and "thoraclip check" in found["findings"][0]["do"]


def test_a_network_that_is_ahead_of_the_trees_by_what_few_images_cannot_show_is_not_accused() -> None:
    said = 0
    for seed in range(12):
        network = MethodResult(name="net", kind="probe", predictions=(predictions(60, signal=3.0, seed=seed),))
        trees = MethodResult(name="trees", kind="trivial", predictions=(predictions(60, signal=1.5, seed=100 + seed),))
        found = report(network, trees)
        value = {m["name"]: m["metrics"]["macro_f1"]["value"] for m in found["methods"]}
        assert names(found) == [] or value["net"] <= value["trees"]
        said += bool(found["findings"])
    assert said <= 2


@pytest.mark.parametrize(
    ("column", "groups"), [("age", ("under 18", "18 to 39", "65 and over")), ("view", ("AP", "PA", "LL"))]
)
def test_the_remedy_fits_the_column(column: str, groups: tuple[str, ...]) -> None:
    table = predictions(480, signal=STRONG)
    by_id = {i: groups[int(t)] for i, t in zip(table.image_id, table.target, strict=True)}
    [row] = report(one("net", "probe", STRONG, n=480), groups={column: by_id})["findings"]
    assert row["says"].startswith(f"Class and {column} coincide") and "thoraclip select" in row["do"]
    condition = row["do"].split("'")[1]
    given = (("a", 30.0, "AP"), ("b", 40.0, "PA"), ("c", 5.0, "LL"))
    images = [{"image_id": name, "path": f"{name}.png", "age_years": age, "view": view} for name, age, view in given]
    assert Manifest.from_rows(images, Path()).select(condition).column("image_id") == ["a", "b"]


def test_without_trees_nothing_is_said_of_them() -> None:
    assert names(report(one("net", "probe", STRONG))) == []
    assert names(report(one("trees", "trivial", STRONG))) == []


@pytest.mark.parametrize(("signal", "expected"), [(WEAK, ["outside"]), (STRONG, [])])
def test_a_large_drop_outside(signal: float, expected: list[str]) -> None:
    there = MethodResult(name="net", kind="probe", predictions=(predictions(200, signal=signal, seed=5),))
    found = report(one("net", "probe", STRONG), external=[ExternalResult(name="elsewhere", methods=(there,))])
    assert names(found) == expected
    if expected:
        assert "elsewhere" in found["findings"][0]["says"] and "thoraclip join" in found["findings"][0]["do"]


def test_what_coincides_by_hand() -> None:
    table = predictions(60, signal=1.0)
    aligned = align([method("a", table)])
    rng = np.random.default_rng(0)
    source = {
        i: f"s{rng.integers(3)}" if rng.random() < 0.5 else f"s{t}"
        for i, t in zip(aligned.image_id, aligned.target, strict=True)
    }
    [row] = coincidences({"source": source}, aligned)
    right = []
    for n, image in enumerate(aligned.image_id):
        mates = [
            int(t) for t, g, i in zip(aligned.target, aligned.groups, aligned.image_id, strict=True)
            if source[i] == source[image] and g != aligned.groups[n]
        ]  # fmt: skip
        counts = np.bincount(mates, minlength=3)
        right.append(counts.argmax() == aligned.target[n])
    assert row["value"] == pytest.approx(np.mean(right)) and row["low"] < row["value"] < row["high"]
    assert row["commonest"] == np.bincount(aligned.target).max() / 60


@pytest.mark.parametrize("sources", [2, 15])
def test_independent_sources_are_not_accused(sources: int) -> None:
    table = predictions(120, signal=1.0)
    aligned, told_of = align([method("a", table)]), 0
    for seed in range(150):
        drawn = np.random.default_rng(seed).integers(sources, size=120)
        [row] = coincidences({"source": dict(zip(aligned.image_id, map(str, drawn), strict=True))}, aligned)
        told_of += row["low"] > row["commonest"] + MARGIN
    assert told_of == 0


def test_source_and_class_that_are_one() -> None:
    table = predictions(120, signal=STRONG)
    source = {i: f"s{t}" if n % 20 else "s0" for n, (i, t) in enumerate(zip(table.image_id, table.target, strict=True))}
    found = report(
        one("net", "probe", STRONG, n=120),
        groups={"source": source, "view": dict.fromkeys(table.image_id, "AP") | {table.image_id[0]: "PA"}},
    )
    assert names(found) == ["coincidence"]
    says = found["findings"][0]
    assert says["says"].startswith("Class and source coincide") and "--leave-out source" in says["do"]
    half = {i: (s if n < 50 else None) for n, (i, s) in enumerate(source.items())}
    assert names(report(one("net", "probe", STRONG, n=120), groups={"source": half})) == [], "too few are known"


def test_findings_come_first_on_every_page_and_the_audit_is_one_of_them() -> None:
    found = report(one("net", "probe", STRONG), one("trees", "trivial", STRONG, seed=1))
    audit = {
        "schema": 2,
        "run": "net",
        "classifier": "strong",
        "data": "none",
        "overall": "strong",
        "tests": [],
        "reading": ["It reads the border."],
    }
    audited = with_audits(found, {"net": audit})
    assert names(audited) == ["trivial", "audit"]
    first = told(audited)
    assert first[0].startswith(audited["findings"][0]["says"]) and first[1].startswith("The audit of net finds strong")
    assert first[2:] == audited["reading"]
    shown = html_page(found, None, None)
    assert shown.index("told apart without anatomy") < shown.index("has the highest macro F1")
    text = markdown_page(found)
    assert text.index("told apart without anatomy") < text.index("has the highest macro F1")
    del found["findings"]
    assert "told apart without anatomy" not in markdown_page(found), "a report of before"


def test_every_finding_has_a_remedy() -> None:
    assert findings({"verdict": None}) == []
    assert all("thoraclip" in text or "remedies" in text for text in REMEDIES.values())
