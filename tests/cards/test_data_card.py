"""Data card and Croissant record: counts against naive oracles, cautions on planted faults, hostile names, validity."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import Markup
from tests.conftest import examples

from thoraclip.cards import CardSettings, croissant_record, data_card, data_facts, write_card
from thoraclip.cards.cautions import percent
from thoraclip.cards.facts import accuracy_by_value, crossed, groups
from thoraclip.errors import ConfigError, InputError
from thoraclip.pages import environment, escape_markdown
from thoraclip.tables.manifest import COLUMNS, Manifest, read_manifest, write_manifest

HOSTILE = "a|b\n# <b>x</b> `c` [l](http://e) \u202eevil *d* ![i](j)"
STATED = CardSettings(
    name="Toy",
    description="A toy.",
    licence="https://creativecommons.org/licenses/by/4.0/",
    url="https://example.org/data",
    citation="Doe 2024",
    creator="Jane Doe",
    version="1.0.0",
    date_published="2024-05-01",
)


def made(rows: list[dict[str, Any]]) -> Manifest:
    """A manifest of made-up rows; ids, paths and contents are filled in."""
    filled = [
        {
            "image_id": f"i{n:03d}", "path": f"x/{n}.png", "sha256": f"{n:064x}", "format": "PNG", "mode": "L",
            "width": 64, "height": 64,
        } | row
        for n, row in enumerate(rows)
    ]  # fmt: skip
    return Manifest.from_rows(filled, Path("images"))


def texts(manifest: Manifest, kind: str | None = None) -> str:
    return "\n".join(c["text"] for c in data_facts(manifest)["cautions"] if kind in (None, c["kind"]))


@pytest.fixture
def rich() -> Manifest:
    """60 rows of random values, a third of them unknown, one hash repeated across labels."""
    rng = np.random.default_rng(3)

    def maybe(value: Any) -> Any:
        return None if rng.random() < 0.33 else value

    rows = [
        {
            "label": maybe("abc"[rng.integers(3)]), "split": maybe(("train", "val", "test")[n % 3]),
            "patient": maybe(f"p{3 * int(rng.integers(6)) + n % 3}"), "source": maybe(f"s{rng.integers(4)}"),
            "view": maybe(("PA", "AP")[rng.integers(2)]), "sex": maybe("FM"[rng.integers(2)]),
            "age_years": maybe(float(rng.integers(1, 90))), "lung_mask": maybe("m.png"),
            "width": int(rng.integers(40, 44)), "height": 40,
        }
        for n in range(60)
    ]  # fmt: skip
    rows[0] |= {"label": "a", "sha256": "f" * 64}
    rows[1] |= {"label": "b", "sha256": "f" * 64}
    return made(rows)


def test_counts_equal_a_naive_recount(rich: Manifest) -> None:
    facts, rows = data_facts(rich), rich.table.to_pylist()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts

    def count(**wanted: Any) -> int:
        return sum(all(row[name] == value for name, value in wanted.items()) for row in rows)

    assert facts["classes"] == [{"label": c, "images": count(label=c)} for c in "abc"]
    assert facts["unlabelled"] == count(label=None) and facts["folds"] is None
    splits = facts["splits"]["columns"]
    assert splits == ["train", "val", "test", None]
    assert facts["splits"]["rows"] == [
        {"label": c, "counts": [count(label=c, split=split) for split in splits]} for c in ("a", "b", "c", None)
    ]
    for key, column in (("sources", "source"), ("views", "view"), ("sexes", "sex"), ("modes", "mode")):
        assert facts[key]["unknown"] == count(**{column: None})
        for row in facts[key]["rows"]:
            assert row["counts"] == [count(**{column: row["value"], "label": c}) for c in facts[key]["columns"]]
            assert row["images"] == sum(row["counts"])
    for row in facts["masks"]:
        assert row["lung"] == count(label=row["label"], lung_mask="m.png") and row["infection"] == 0
    assert facts["duplicates"] == {
        "groups": 1, "images": 2, "across_labels": 1, "unknown": 0, "across_folds": 0,
        "across_splits": int(None not in (rows[0]["split"], rows[1]["split"])),
    }  # fmt: skip


def test_ages_sizes_and_patients_equal_a_naive_recount(rich: Manifest) -> None:
    facts, rows = data_facts(rich), rich.table.to_pylist()
    for entry in facts["ages"]:
        known = [r["age_years"] for r in rows if r["label"] == entry["label"] and r["age_years"] is not None]
        q1, median, q3 = statistics.quantiles(known, n=4, method="inclusive")
        assert (entry["known"], entry["minors"]) == (len(known), sum(age < 18 for age in known))
        found = [entry["years"][name] for name in ("min", "q1", "median", "q3", "max")]
        assert found == pytest.approx([min(known), q1, median, q3, max(known)], abs=0.005)
    for entry in facts["sizes"]:
        known = [r["width"] for r in rows if r["label"] == entry["label"]]
        assert entry["width"]["median"] == statistics.median(known) and entry["distinct"] == len(set(known))
    of: dict[str, list[str | None]] = {}
    for r in rows:
        if r["patient"] is not None:
            of.setdefault(r["patient"], []).append(r["label"])
    several = [p for p, labels in of.items() if len(set(labels) - {None}) > 1]
    patients = facts["patients"]
    assert (patients["patients"], patients["known"]) == (len(of), sum(map(len, of.values())))
    assert patients["several_labels"]["patients"] == len(several) > 0
    assert patients["several_labels"]["images"] == sum(len(of[p]) for p in several)
    sets = Counter(" and ".join(sorted(f"'{c}'" for c in set(of[p]) - {None})) for p in several)
    said = f"{len(several)} patients stand under more than one label ({patients['several_labels']['images']} images; "
    assert said + ", ".join(f"{names}: {n}" for names, n in sorted(sets.items())) + "): split by patient" in texts(rich)


def naive_told(values: Sequence[Any], labels: Sequence[str | None]) -> float | None:
    """`accuracy_by_value` image by image."""
    pairs = [(v, c) for v, c in zip(values, labels, strict=True) if c is not None]
    points: dict[str, list[float]] = {c: [] for c in sorted({c for _, c in pairs})}
    for i, (value, own) in enumerate(pairs):
        others = pairs[:i] + pairs[i + 1 :]
        share = {k: np.mean([v == value for v, c in others if c == k] or [0]) for k in points}
        best = [k for k in points if share[k] == max(share.values())]
        points[own].append((own in best) / len(best))
    if len(points) < 2 or min(map(len, points.values())) < 2:
        return None
    return max(1 / len(points), statistics.fmean(map(statistics.fmean, points.values())))


@examples(100)
@given(st.lists(st.tuples(st.none() | st.integers(1, 4), st.sampled_from("aaabbbc") | st.none()), max_size=40))
@example([(1, "a"), (1, "a"), (2, "b"), (2, "b")])
@example([(1, "a"), (1, "a"), (1, "b")])
def test_accuracy_by_value_equals_the_image_by_image_rule(pairs: list[tuple[int | None, str | None]]) -> None:
    values, labels = [value for value, _ in pairs], [label for _, label in pairs]
    assert accuracy_by_value(values, labels) == pytest.approx(naive_told(values, labels), abs=1e-4)


def test_long_lists_of_values_are_summed_up() -> None:
    found = crossed([f"v{n:02d}" for n in range(40)] + ["v35", None], ["a"] * 42)
    assert [row["value"] for row in found["rows"]] == ["v35", *(f"v{n:02d}" for n in range(29)), None]
    assert found["more"] == {"values": 10, "images": 10} and (found["values"], found["known"]) == (40, 41)


def test_a_planted_source_is_warned_of_and_a_balanced_one_is_not() -> None:
    balanced = [{"label": "ab"[n % 2], "source": f"s{n // 2 % 2}"} for n in range(40)]
    assert not texts(made(balanced), "bias")
    planted = [row | ({"source": "only-a"} if row["label"] == "a" else {}) for row in balanced]
    found = texts(made(planted), "bias")
    assert "Every image of class 'a' comes from one source that no other class has ('only-a')" in found
    assert "source 100.0 %" in found  # a is told by its own source, b by the two that only b has
    assert "class 'b' comes from 2 sources that no other class has ('s0', 's1')" in found
    partly = [row | ({"source": None} if n < 10 else {}) for n, row in enumerate(planted)]
    assert "Every image of known source (15 of 20) of class 'a'" in texts(made(partly), "bias")


def test_sources_of_one_image_each_seal_nothing_and_of_many_five_are_named() -> None:
    assert not data_facts(made([{"label": "ab"[n % 2], "source": f"s{n}"} for n in range(40)]))["sources"]["sealed"]
    many = [{"label": "ab"[n % 2], "source": f"s{n % 2}{n // 2 % 7}"} for n in range(28)]
    found = texts(made(many), "bias")
    assert "Every image of class 'a' comes from 7 sources that" in found
    assert "('s00', 's01', 's02', 's03', 's04' and 2 more)" in found


def test_every_other_fault_is_said_once_where_it_is_and_never_where_it_is_not() -> None:
    clean = [
        {"label": "ab"[n % 2], "source": f"s{n // 2 % 2}", "patient": f"p{n}", "split": ("train", "test")[n % 4 // 2]}
        for n in range(40)
    ]
    assert texts(made(clean)) == ""

    def said(**change: Any) -> str:
        return texts(made([row | change if n < 20 and n % 2 == 0 else row for n, row in enumerate(clean)]))

    assert said(lung_mask="m.png").startswith("Lung masks exist for 'a' (10 of 20 images) only")
    assert said(label=None).startswith("10 images without a label")
    assert "The patient of 10 images is unknown ('a' 50.0 %)" in said(patient=None)
    assert "The source of 10 images (25.0 %) is unknown" in said(source=None)
    assert "1 group of identical files, 10 images in all, 1 with different splits" in said(sha256="0" * 64)
    assert "drop the copies" in said(duplicate_cluster="c1")
    assert said(age_years=10.0).splitlines()[-1] == "All 10 images of known age are of patients under 18."
    assert "aspect ratio" in said(width=128, label="c")
    mixed = texts(
        made([row | {"age_years": 17.0 + n // 20, "lung_mask": "m.png" if n else None} for n, row in enumerate(clean)])
    )
    assert "Children and adults are mixed. Under 18, of those whose age is known: 'a' 50.0 %, 'b' 50.0 %." in mixed
    assert (
        "Lung masks of class 'a' are incomplete: 19 of 20 images." in mixed and "class 'b' are incomplete" not in mixed
    )
    assert said(split=None) == "10 images in no split, while others are in one."
    for first, is_said in ((10, True), (11, False)):
        thrice = texts(made([row | {"label": "b" if n >= first else "a"} for n, row in enumerate(clean)]))
        assert ("Class 'b' has 3.0 times as many images as class 'a'" in thrice) == is_said
    skewed = texts(made([row | {"label": "b" if n else "a"} for n, row in enumerate(clean)]))
    assert "Class 'b' has 39.0 times as many images" in skewed and "Class 'a' has no image in split test" in skewed
    one = [row | {"source": "s"} for row in clean]
    assert texts(made(one)).startswith("All images name one source ('s')")


def test_unknown_stays_unknown() -> None:
    bare = [{name: None for name in COLUMNS if name != "image_id"} | {"label": "ab"[n % 2]} for n in range(4)]
    facts = data_facts(made(bare))
    card = data_card(facts, CardSettings())
    assert facts["splits"] is None and facts["folds"] is None and facts["sources"]["sealed"] == []
    assert [entry["years"] for entry in facts["ages"]] == [None, None]
    assert card.count("unknown for every image") == 6
    assert "No image names its source" in card and "No image names its patient" in card
    assert "Not looked for: no image has the value that would tell." in card
    assert card.count("not stated") == 8  # name, and the seven lines of what only the user can say
    assert "None" not in card and "nan" not in card.lower()
    nan = data_facts(made([{"label": "a", "age_years": float("nan")}, {"label": "b"}]))
    assert [entry["known"] for entry in nan["ages"]] == [0, 0]
    facts = data_facts(made([{}, {}]))
    assert facts["classes"] == [] and "2 images without a label" in data_card(facts, CardSettings())


def test_edges_of_counting_and_escaping() -> None:
    ages = data_facts(made([{"label": "a", "age_years": age} for age in (17.9, 18.0)]))["ages"]
    assert [entry["minors"] for entry in ages] == [1]
    pairs = groups([1, 1, 2, 2, None, None], labels=["a", None, "a", "b", "a", "b"])
    assert pairs == {"groups": 2, "images": 4, "across_labels": 1}
    for labels in ("aab", (None, "a", "b"), ("a", None, "b")):
        assert groups([1, 1, 1], labels=labels)["across_labels"] == 1, "every copy counts"
    copies = [{"label": "ab"[n], "sha256": "0" * 64, "fold": n} for n in range(2)]
    assert "1 with different labels, 1 with different folds. A test image that was trained on" in texts(made(copies))
    shares = {0: "0.0 %", 4: "< 0.1 %", 5: "0.1 %", 5_000: "50.0 %", 9_995: "> 99.9 %", 10_000: "100.0 %"}
    assert {part: percent(part, 10_000) for part in shares} == shares
    shown = {"- a": "\\- a", "+ a": "\\+ a", "12. a": "12\\. a", "3) a": "3\\) a", "=": "\\=", "a - b": "a - b"}
    assert {text: escape_markdown(text) for text in shown} == shown


@pytest.mark.parametrize("package", ["thoraclip.cards", "thoraclip.data.check"])
def test_no_value_of_a_page_holds_a_control_character(package: str) -> None:
    page = environment(package, html=package != "thoraclip.cards").from_string("\x0b{{ a }}{{ b | safe }}{{ c + 1 }}")
    values = {"a": "\x1b[2J\tü\n\u202e\udcff", "b": Markup("<p>\x07</p>"), "c": 1}
    assert page.render(values) == "\x0b\\x1b[2J\tü\n\\u202e\\udcff<p>\\x07</p>2"


def test_what_the_user_and_a_check_say_is_shown(manifest: Manifest) -> None:
    facts = data_facts(manifest)
    card = data_card(facts, STATED, {"leaks": ["Picture x|y is on both sides."], "warnings": []})
    assert "not stated" not in card and "  |" not in card and "|  " not in card
    for shown in ("# Toy\n", "A toy.", "Jane Doe", "1.0.0", "2024-05-01", "<https://example.org/data>", "Doe 2024"):
        assert shown in card
    assert "- Picture x\\|y is on both sides." in card and "**Warnings**: none." in card
    assert "What the check found" not in data_card(facts, STATED)
    assert "Research use only, not for diagnosis." in card and "| fold 0 | fold 1 | fold 2 |" in card


def test_settings_that_cannot_be_are_refused() -> None:
    for change, message in (
        ({"url": "example.org"}, "url 'example.org' is not an absolute address"),
        ({"url": "https://x.org/>\n# y"}, "is not an absolute address"),
        ({"date_published": "1 May"}, "date_published '1 May' is not a date; write it as in 2024-05-01"),
    ):
        with pytest.raises(ConfigError, match=message):
            CardSettings(**change)


def test_hostile_names_stay_names(tmp_path: Path) -> None:
    import mlcroissant

    rows = [
        {"label": (HOSTILE, "- b", "")[n % 3], "source": HOSTILE + str(n % 2), "view": "</td>|", HOSTILE: HOSTILE}
        for n in range(12)
    ]
    manifest = made(rows)
    card = data_card(
        data_facts(manifest), CardSettings(name="1. " + HOSTILE, description="---\n> q"), {"leaks": [HOSTILE]}
    )
    assert "<b>" not in card and "</td>" not in card and "\u202e" not in card and "\n# <" not in card
    assert "- Description: \\--- &gt; q" in card and "*empty text*" in card
    table: list[str] = []
    for line in [*card.splitlines(), ""]:
        if line.startswith("|"):
            table.append(line)
        elif table:
            assert len({row.replace("\\|", "").count("|") for row in table}) == 1, table
            table = []
    write_manifest(tmp_path / "m.parquet", manifest)
    record = croissant_record(manifest, tmp_path / "m.parquet", CardSettings())
    dataset = mlcroissant.Dataset(jsonld=record, mapping={"manifest": tmp_path / "m.parquet"})
    assert next(iter(dataset.records("images")))["images/label"].decode() == HOSTILE
    assert [row["labels/name"] for row in dataset.records("labels")] == sorted({HOSTILE, "- b", ""})


@pytest.mark.parametrize(("out", "url"), [("", "m.parquet"), ("card", "../m.parquet"), ("far/away", "m.parquet")])
def test_only_the_address_of_the_manifest_depends_on_the_place(
    manifest: Manifest, tmp_path: Path, out: str, url: str
) -> None:
    write_manifest(tmp_path / "m.parquet", manifest)
    write_card(tmp_path / "m.parquet", manifest, STATED, tmp_path / out)
    record = croissant_record(manifest, tmp_path / "m.parquet", STATED, content_url=url)
    assert record["distribution"][0]["contentUrl"] == url
    assert json.loads((tmp_path / out / "croissant.json").read_text(encoding="utf-8")) == record
    assert (tmp_path / out / "data-card.md").read_text(encoding="utf-8") == data_card(data_facts(manifest), STATED)
    assert str(tmp_path) not in json.dumps(record)
    turned = data_facts(manifest.take(np.arange(len(manifest))[::-1])) | {"fingerprints": None}
    assert turned == data_facts(manifest) | {"fingerprints": None}, "nor does anything depend on the order"


def test_croissant_validates_and_yields_the_rows(rich: Manifest, tmp_path: Path) -> None:
    import mlcroissant

    rich = rich.with_columns(duplicate_cluster=["c"] * len(rich))
    write_manifest(tmp_path / "m.parquet", rich)
    write_card(tmp_path / "m.parquet", Manifest(rich.table, Path("elsewhere")), STATED, tmp_path)
    dataset = mlcroissant.Dataset(jsonld=str(tmp_path / "croissant.json"))
    issues = dataset.metadata.ctx.issues
    assert not issues.errors and not issues.warnings, issues.report()
    found = list(dataset.records("images"))
    expected = rich.table.to_pylist()
    assert len(found) == len(expected)
    for row, want in zip(found, expected, strict=True):
        plain = {k.removeprefix("images/"): v.decode() if isinstance(v, bytes) else v for k, v in row.items()}
        assert plain == pytest.approx(want)
    splits = {row["splits/name"]: row["splits/url"] for row in dataset.records("splits")}
    assert splits == {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}


def test_an_empty_settings_record_is_valid_and_invents_nothing(manifest: Manifest, tmp_path: Path) -> None:
    import mlcroissant

    write_manifest(tmp_path / "m.parquet", manifest)
    record = croissant_record(read_manifest(tmp_path / "m.parquet"), tmp_path / "m.parquet", CardSettings())
    dataset = mlcroissant.Dataset(jsonld=record)
    assert not dataset.metadata.ctx.issues.errors
    assert len(dataset.metadata.ctx.issues.warnings) == 3  # citation, date and version are recommended
    assert not {"url", "citeAs", "version", "datePublished"} & record.keys()
    assert record["license"] == record["creator"]["name"] == "not stated"
    assert record["description"].startswith("Description not stated. Counted from the manifest: 24 chest X-ray images")
    pictures = record["distribution"][1]
    assert pictures["encodingFormat"] == "image/png"
    assert pictures["includes"] == ["COVID-19/*.png", "Non-COVID/*.png", "Normal/*.png"]
    assert "Patient identifiers of 24 images" in record["rai:personalSensitiveInformation"]
    assert record["rai:dataCollectionMissingData"].startswith("Null, never guessed: source of 100.0 %, view of 100.0 %")
    assert record["rai:dataLimitations"] == [
        "No image names its source, so whether the classes come from different sources cannot be told."
    ]
    with pytest.raises(InputError, match=r"gone\.parquet: no such manifest file"):
        croissant_record(manifest, tmp_path / "gone.parquet", CardSettings())


def test_a_leaking_split_is_said_first(manifest: Manifest) -> None:
    leaky = Manifest(manifest.table, manifest.root, may_leak=True)
    leaky = leaky.with_columns(patient=["p"] * 4 + [None] * 20, split=["train", "test"] * 12, fold=[None] * 24)
    facts = data_facts(leaky)
    assert facts["patients"]["in_two_parts"] == 1
    assert facts["cautions"][0]["text"].startswith("1 patient stands in two splits or folds")
    assert "**In two splits or folds: 1.**" in data_card(facts, CardSettings())
    assert "No known patient stands in two splits" in data_card(data_facts(manifest), CardSettings())
