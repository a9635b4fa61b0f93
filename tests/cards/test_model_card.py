"""Model card: parsed back by the Hub's own reader, numbers against the judge's, hostile names, unknowns, licences."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from tests.evaluation.cards import Config, card_of, trained

from thoraclip.cards import CardSettings, write_card
from thoraclip.cards import model_card as module
from thoraclip.cards.model_card import BASE_MODELS, TrainedRun, base_model, write_model_card
from thoraclip.evaluation.reading import share
from thoraclip.evaluation.report import judge
from thoraclip.evaluation.results import MethodResult
from thoraclip.tables.manifest import Manifest, write_manifest

REPOSITORY = Path(__file__).resolve().parents[2]
HOSTILE = ('Pneumonia: "viral" | other', "- *x*: {y} # z", "null", "a\n---\nb")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.RESAMPLES == 2000
    monkeypatch.setattr(module, "RESAMPLES", 100)


def results_of(card: ModelCard) -> dict[str, Any]:
    return {one.metric_type: one for one in card.data.eval_results or ()}


def tables(text: str) -> list[list[str]]:
    """The tables of a Markdown text, row by row."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def width(row: str) -> int:
    return len(re.findall(r"(?<!\\)\|", row)) - 1


def test_the_hub_reads_it_back_and_its_numbers_are_the_judges() -> None:
    run = trained(skill=0.3)
    card = ModelCard(card_of(run))
    report = judge([MethodResult(name="m", kind="x", predictions=(run.predictions,))], title="t", resamples=100)
    metrics = next(row for row in report["methods"] if row["name"] == "m")["metrics"]
    found = results_of(card)
    names = {
        "accuracy": "accuracy", "f1": "macro_f1", "precision": "macro_precision", "recall": "macro_recall",
        "roc_auc": "auroc", "ece": "ece",
    }  # fmt: skip
    assert found.keys() == names.keys()
    for theirs, ours in names.items():
        entry = metrics[ours]
        assert found[theirs].metric_value == pytest.approx(entry["value"], abs=5e-5)
        assert f"95 % interval {entry['low']:.4f} to {entry['high']:.4f}" in found[theirs].metric_name
        assert f"| {share(entry['value'])} [{share(entry['low'])}, {share(entry['high'])}] |" in card.text
    assert card.data.model_name == "ThoraCLIP other on tiny-clip"
    assert (card.data.library_name, card.data.pipeline_tag) == ("thoraclip", "image-classification")
    assert found["f1"].dataset_revision == run.data["fingerprints"]["manifest"]
    assert (found["f1"].dataset_split, found["f1"].metric_args) == ("test", {"average": "macro"})
    assert card.text.strip().startswith("# ThoraCLIP other on tiny-clip\n\n**Research use only, not for diagnosis.**\n")


def test_hostile_names_break_neither_the_front_matter_nor_a_table(tmp_path: Path) -> None:
    run = trained(HOSTILE, n=160)
    about = {"name": 'x: "y" # z\n--- - d', "url": "https://example.org/a b", "license": "any: thing", "citeAs": "A|B"}
    base = replace(base_model("tiny-clip"), name="- weird: {name}", hub_id=None)
    text = card_of(run, about=about, base=base)
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    found = metadata_load(tmp_path / "README.md")
    name, results = model_index_to_eval_results(found["model-index"])
    assert name == "ThoraCLIP other on - weird: {name}"
    assert {one.dataset_name for one in results} == {about["name"]}
    assert ModelCard(text).data.to_dict() == found
    assert [len({width(row) for row in table}) for table in tables(text)] == [1] * len(tables(text))
    assert 'Pneumonia: "viral" \\| other' in text
    assert text.count("\n---\n") == 1, "the front matter ends once"
    assert "](" not in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("owner/name", "owner/name"),
        ("runs/deep/lora", "lora"),
        ("./lora", "lora"),
        ("C:\\runs\\lora", "lora"),
        ("~/runs/lora/fold-0/adapter", "fold-0/adapter"),
    ],
)
def test_a_path_is_shown_by_its_last_part_and_a_hub_id_whole(value: str, shown: str) -> None:
    assert f"| `adapter` | {shown} |" in card_of(trained(config=Config(adapter=value)))


def test_the_settings_of_paths_that_look_like_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "lora").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "| `adapter` | lora |" in card_of(trained(config=Config(adapter="runs/lora")))
    assert base_model("tiny-clip").licence == "apache-2.0"
    (tmp_path / "tiny-clip").mkdir()
    assert base_model("tiny-clip").licence is None, "a folder of this name is something else"


def test_known_licences_are_those_of_the_docs() -> None:
    rows = [row for row in (REPOSITORY / "docs" / "licences.md").read_text(encoding="utf-8").splitlines() if "|" in row]
    for model, (licence, _) in BASE_MODELS.items():
        row = next(r for r in rows if model in r)
        assert licence is None or licence in row.lower(), model
    assert base_model("openai/clip-vit-base-patch32").licence is None
    assert "declares no licence" in base_model("openai/clip-vit-base-patch32").known_from


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# m\n", "mit"),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense: [mit, other]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("---\n- a\n---\n", None),
        ("no front matter", None),
        (None, None),
    ],
)
def test_a_local_models_licence_is_what_its_own_card_declares(card: str | None, licence: str | None, tmp_path: Path) -> None:  # fmt: skip
    folder = tmp_path / "owner" / "mine"
    folder.mkdir(parents=True)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    found = base_model(str(folder))
    assert (found.name, found.hub_id, found.licence, found.address) == ("mine", None, licence, "BASE")
    text = card_of(trained(), base=found)
    assert f"| mine | {licence or 'unknown'} |" in text
    assert licence or "ask its authors before you share" in text
    assert ModelCard(text).data.base_model is None


@pytest.mark.parametrize(
    ("model", "data", "licence"),
    [
        ("tiny-clip", None, "unknown"),
        ("tiny-clip", "Apache-2.0", "apache-2.0"),
        ("tiny-clip", "https://creativecommons.org/licenses/by/4.0/", "other"),
        ("openai/clip-vit-base-patch32", "MIT", "unknown"),
        ("owner/name", None, "unknown"),
    ],
)
def test_the_licence_of_the_weights_is_never_guessed(model: str, data: str | None, licence: str) -> None:
    text = card_of(trained(), base=base_model(model), about={"license": data} if data else {})
    found = ModelCard(text).data
    assert found.license == licence
    assert (found.license_name is not None) == (licence == "other")
    assert found.base_model == (model if "/" in model else None)
    assert ("do not pass them on" in text) == (licence == "unknown")


def written(tmp_path: Path, run: TrainedRun, prepare: Callable[[Path], None] = lambda _: None) -> str:
    images = tmp_path / "images"
    images.mkdir()
    prepare(images)
    write_model_card(tmp_path / "run", replace(run, images=images))
    return (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


def test_the_data_card_beside_the_images_names_data_and_licence(tmp_path: Path) -> None:
    def describe(images: Path) -> None:
        manifest = Manifest.from_rows([{"image_id": "i", "path": "i.png", "label": "a"}], images)
        write_manifest(tmp_path / "m.parquet", manifest)
        url = "https://huggingface.co/datasets/owner/xrays"
        settings = CardSettings(name="X-rays: all", licence="CC-BY-4.0", url=url, citation="Doe 2024")
        write_card(tmp_path / "m.parquet", manifest, settings, images)

    text = written(tmp_path, trained(), describe)
    found = ModelCard(text).data
    assert found.datasets == ["owner/xrays"]
    assert {(r.dataset_name, r.dataset_type) for r in found.eval_results} == {("X-rays: all", "owner/xrays")}
    assert "| images and labels | CC-BY-4.0 | stated in the record" in text
    assert "- Data: Doe 2024" in text


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ("{", "unknown | ask whoever gave them to you"),
        ("[]", "unknown | ask whoever gave them to you"),
        (
            '{"name": "x (name not stated)", "license": "not stated", "url": 3}',
            "unknown | ask whoever gave them to you",
        ),
        ('{"name": "x", "license": ["a", "b"], "citeAs": null}', "a, b"),
    ],
)
def test_a_record_that_tells_nothing_leaves_the_data_unknown(record: str, row: str, tmp_path: Path) -> None:
    text = written(tmp_path, trained(), lambda images: (images / "croissant.json").write_text(record) and None)
    assert f"| images and labels | {row} |" in text
    assert ("Data set: its name is unknown" in text) == ("unknown" in row)


def test_weights_are_found_and_those_of_other_runs_are_not(tmp_path: Path) -> None:
    for name in (
        "fold-0/adapter/adapter_model.safetensors", "fold-1/adapter/adapter_model.safetensors", "fold-0/last/x.safetensors",
        "fold-7/adapter/adapter_model.safetensors", "head.safetensors", "embeddings/k/e.safetensors",
        "fold-1/training.safetensors",
    ):  # fmt: skip
        file = tmp_path / "run" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    text = written(tmp_path, trained(folds=2))
    assert re.findall(r"^\| (`.*`|\*none.*\*) \| fold (\d) \|$", text, flags=re.M) == [
        ("`fold-0/adapter/`", "0"),
        ("`fold-1/adapter/`", "1"),
    ]


def test_the_card_says_over_what_its_intervals_are_and_whose_they_are() -> None:
    card = card_of(trained(n=90, present=2, skill=0.3))
    assert "95 % intervals over patients; the spread over patients is that of 100 bootstrap resamples" in card
    assert "Wilson 1927" in card and "Clopper" not in card and "Nadeau" not in card
    assert (
        "No test image is of class c: nothing is known of its sensitivity, and means over classes leave it out." in card
    )
    folds = card_of(trained(n=90, folds=3, skill=0.3))
    assert "95 % intervals over patients and folds; the spread over patients is that of" in folds
    assert "over folds after Nadeau & Bengio 2003" in folds
