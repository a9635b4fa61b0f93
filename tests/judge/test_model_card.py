"""Model card: parsed back by the Hub's own reader, numbers against the judge's, hostile names, unknowns, licences."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from thoraclip.data.card import CardSettings, data_facts, write_card
from thoraclip.judge.model_card import BASE_MODELS, CardFacts, TrainedRun, base_model, model_card, write_model_card
from thoraclip.judge.reading import share
from thoraclip.judge.report import judge
from thoraclip.judge.results import MethodResult
from thoraclip.labels import LabelSet
from thoraclip.tables.manifest import Manifest, write_manifest
from thoraclip.tables.predictions import Predictions

REPOSITORY = Path(__file__).resolve().parents[2]
HOSTILE = ('Pneumonia: "viral" | other', "- *x*: {y} # z", "null", "a\n---\nb")
PROVENANCE = {"python": "3.11", "seed": 0, "inputs": {"manifest": "abc"}}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a method that the card has no words for."""

    model: str = "tiny-clip"
    """Which model."""
    geometry: str = "squash"
    """How a picture becomes square."""
    adapter: str = ""
    """Where the adapter is."""
    rate: float = 0.1
    """How fast | how far."""
    workers: int = 1
    """Of no consequence."""

    NOT_IN_THE_RESULT = ("workers",)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thoraclip.judge.model_card._RESAMPLES", 100)


def trained(
    classes: Sequence[str] = ("a", "b", "c"), n: int = 90, *, folds: int = 0, patients: bool = True, skill: float = 1.0,
    present: int | None = None, config: Any = None, **details: Any,
) -> TrainedRun:  # fmt: skip
    """A run over n images, all of them test images; only the first `present` classes have any."""
    rng, labels = np.random.default_rng(0), LabelSet(tuple(classes))
    target = np.arange(n) % (present or len(classes))
    scores = rng.dirichlet(np.ones(len(classes)), n)
    scores[np.arange(n), target] += skill
    patient = tuple(f"p{row // 2}" if patients else None for row in range(n))
    fold = tuple((row // 2) % folds if folds else None for row in range(n))
    predictions = Predictions(
        labels, tuple(f"i{row}" for row in range(n)), target, scores / scores.sum(axis=1, keepdims=True),
        ("test",) * n, fold, patient,
    )  # fmt: skip
    rows = [
        {
            "image_id": f"i{row}", "path": f"{row}.png", "sha256": f"{row:064x}", "label": classes[target[row]],
            "fold": fold[row], "split": None if folds else "test", "patient": patient[row],
        }
        for row in range(n)
    ]  # fmt: skip
    return TrainedRun(
        kind="other", config=config or Config(), predictions=predictions, details=details,
        data=data_facts(Manifest.from_rows(rows, Path("nowhere"))), images=Path("nowhere"), provenance=PROVENANCE,
    )  # fmt: skip


def card_of(run: TrainedRun, **facts: Any) -> str:
    return model_card(CardFacts(run=run, base=facts.pop("base", base_model(run.config.model)), **facts))


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


def test_sensitivity_and_specificity_of_every_class_stand_beside_the_majority() -> None:
    run = trained(skill=0.3)
    text = card_of(run)
    report = judge([MethodResult(name="m", kind="x", predictions=(run.predictions,))], title="t", resamples=100)
    ours, majority = report["methods"]
    for label, row in ours["per_class"].items():
        cells = [f"{share(row[k]['value'])} [{share(row[k]['low'])}, {share(row[k]['high'])}]" for k in ("recall", "specificity")]  # fmt: skip
        assert f"| {label} | {row['support']} | {' | '.join(cells)} |" in text
    assert f"| *majority* | {share(majority['metrics']['accuracy']['value'])} [" in text
    assert "90 test images of 45 patients" in text
    lead = next(c for c in report["comparisons"] if c["metric"] == "accuracy")
    assert f"It beats the majority row by {100 * lead['difference']:.1f} points of accuracy [" in text


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


def test_unknown_patients_are_said_to_be_unknown() -> None:
    known, unknown = card_of(trained()), card_of(trained(patients=False))
    assert "45 patients, each kept on one side of the split" in known
    assert "Patients: unknown for every image, so it cannot be told" in unknown
    assert "patients are unknown: where one has several images, the intervals are too narrow" in unknown
    assert "On 90 test images its macro F1" in unknown
    run = trained()
    half = replace(run, data=run.data | {"patients": run.data["patients"] | {"unknown": 7, "patients": 40}})
    assert "40 patients known, each kept on one side of the split; the patient of 7 images is unknown" in card_of(half)


def test_small_and_absent_classes_are_warned_of() -> None:
    text = card_of(trained(n=60))
    assert "Few test images of a (20), b (20), c (20): what is said of these classes is rough." in text
    assert "Few test data" not in text
    assert "**Few test data.** Only 10 patients" in card_of(trained(n=20))
    assert "Few test images" not in card_of(trained(n=90))
    absent = card_of(trained(present=2))
    assert "No test image is of class c: nothing is known of its sensitivity" in absent
    assert not re.search(r"\bnan\b|\bNone\b", absent)


def test_a_single_class_has_no_auroc_and_the_card_says_so() -> None:
    text = card_of(trained(present=1))
    found = results_of(ModelCard(text))
    assert "roc_auc" not in found and "accuracy" in found
    assert "AUROC, macro one-vs-rest does not exist here: needs images of the class and of another one." in text


def test_without_a_labelled_test_row_there_is_a_card_without_numbers() -> None:
    run = trained()
    unlabelled = replace(run, predictions=replace(run.predictions, target=np.full(90, -1)))
    text = card_of(unlabelled)
    assert ModelCard(text).data.eval_results is None
    assert "It could not be judged: no labelled row in split 'test'" in text
    assert "95 %" not in text and "model-index" not in text


@pytest.mark.parametrize(("skill", "beats"), [(1.0, True), (0.0, False)])
def test_whether_it_beats_the_majority_is_said(skill: float, beats: bool) -> None:
    text = card_of(trained(skill=skill))
    assert ("It beats the majority row by" in text) == beats
    assert ("**It cannot be shown to beat the majority row**" in text) == (not beats)
    assert ("this model cannot be shown to do better" in text) == (not beats)


def test_each_fold_has_its_own_weights() -> None:
    files = {0: ["fold-0/adapter/"], 1: ["fold-1/adapter/"], 2: ["fold-2/adapter/"]}
    text = card_of(trained(folds=3), files=files)
    assert "It is not one model but 3, one per fold" in text
    assert "| `fold-2/adapter/` | fold 2 |" in text
    card = ModelCard(text)
    assert results_of(card)["accuracy"].dataset_split == "3 folds, pooled"
    assert {"lora", "peft"} <= set(card.data.tags)
    assert "base_model_relation" not in card.data.to_dict(), "the shipped model is not on the Hub"
    hub = ModelCard(card_of(trained(), base=base_model("owner/name"), files={None: ["adapter/"]})).data
    assert (hub.base_model, hub["base_model_relation"]) == ("owner/name", "adapter")
    assert "not one model" not in card_of(trained(), files={None: ["head.safetensors"]})


def test_settings_are_shown_with_their_meaning_and_without_places(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    config = Config(model=str(folder), adapter="/home/me/runs/lora/seed-1", rate=0.2, workers=9)
    text = card_of(trained(config=config))
    assert "| `model` | mine | Which model. |" in text
    assert "| `adapter` | lora/seed-1 | Where the adapter is. |" in text
    assert "| `rate` | 0.2 | How fast \\| how far. |" in text
    assert "`geometry` | squash" in text and "workers" not in text
    assert text.index("| `geometry`") < text.index("| `adapter`"), "what always matters comes first"
    assert str(tmp_path) not in text and "/home" not in text
    assert "`rate`" not in card_of(trained())
    assert "| adapter lora/seed-1 | unknown |" in text


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


def test_without_a_pretrained_model_none_is_named() -> None:
    text = card_of(trained(), base=None)
    assert ModelCard(text).data.model_name == "ThoraCLIP other"
    assert "begins from" not in text


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


def test_a_method_may_add_lines_and_what_it_chose() -> None:
    chosen = [{"fold": 0, "step": 0, "validation": {"step": 0, "val_macro_f1": 0.5}}, {"fold": 1, "step": 4, "validation": None}]  # fmt: skip
    card = {"what": "A *forest*.", "choice": ["One.", "Two."], "use": "Load it.", "sources": ["- Breiman 2001."]}
    text = card_of(trained(chosen=chosen, card=card))
    sections = {part.split("\n")[0]: part for part in text.split("\n## ")}
    assert "A *forest*." in sections["What it is"]
    assert "One.\n\nTwo." in sections["How it was chosen"]
    assert "Load it." in sections["Using it again"] and "- Breiman 2001." in sections["Sources"]
    assert "| fold | step | val macro f1 |" in text and "| 0 | 0 | 0.5 |" in text and "| 1 | 4 | \u2013 |" in text
    assert "In 1 of 2 trainings the best validation came before the first step" in text
