"""Model cards of real runs: there for what is trained, the same bytes for the same run, and what they tell to do works."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from tests.checkpoints import TINY
from tests.evaluation.cards import load_card

from thoraclip.methods import METHODS
from thoraclip.methods.embed import cached_embeddings
from thoraclip.methods.encoders import EncoderConfig
from thoraclip.methods.running import run_method
from thoraclip.methods.training import folds
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions

QUICK: dict[str, dict[str, Any]] = {
    "probe": {"l2_steps": 3},
    "finetune": {"batch_size": 6, "chunk_size": 3, "steps": 2, "val_fraction": 0.3, "select": "last"},
    "baseline": {"batch_size": 6, "chunk_size": 3, "steps": 2, "val_fraction": 0.3, "train": "head"},
}
"""Settings of a run of seconds, for every method that is trained."""


SMALL = {"finetune": "clip", "baseline": "vit"}
"""Of these, checkpoints of a few thousand weights stand in for the shipped encoder."""


@pytest.fixture
def run(cache: Path) -> Any:
    """`run(kind, manifest, folder, **settings)` -> (predictions, card); the runs share their embeddings."""

    def made(kind: str, manifest: Manifest, folder: Path, **settings: Any) -> tuple[Predictions, str]:
        config = METHODS[kind].config_type(precision="fp32", **(QUICK.get(kind, {}) | settings))
        result = run_method(kind, config, manifest, folder, cache=cache)
        assert result is not None
        card = folder / "README.md"
        return result[0], card.read_text(encoding="utf-8") if card.exists() else ""

    return made


def block(card: str, language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", card, flags=re.S)[number]


def test_there_is_a_quick_run_for_every_method_that_is_trained() -> None:
    assert set(QUICK) == {kind for kind, method in METHODS.items() if method.is_trained}


@pytest.mark.parametrize("kind", ["probe", "baseline", pytest.param("finetune", marks=pytest.mark.slow)])
def test_what_is_trained_gets_a_card_and_the_same_run_the_same_bytes(
    kind: str, run: Any, models: dict[str, str], manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folds, "training_figure", lambda *_, **__: "<svg/>")
    model: dict[str, Any] = {"only_folds": (0, 2)} | ({"model": models[SMALL[kind]]} if kind in SMALL else {})
    predictions, first = run(kind, manifest, tmp_path / "a", **model)
    _, second = run(kind, manifest, tmp_path / "elsewhere" / "b", **model)
    assert first == second
    assert str(tmp_path) not in first and "elsewhere" not in first
    card = load_card(tmp_path / "a")
    accuracy = next(one for one in card.data.eval_results if one.metric_type == "accuracy")
    judged = predictions.judged()
    assert accuracy.metric_value == pytest.approx((judged.scores.argmax(axis=1) == judged.target).mean(), abs=5e-5)
    assert manifest.fingerprint in first
    assert "2 held-out folds pooled" in first
    named = re.findall(r"^\| `(.*)` \| fold (\d) \|$", first, flags=re.M)
    assert [int(fold) for _, fold in named] == [0, 2]
    assert all((tmp_path / "a" / name).exists() for name, _ in named)


def test_zero_shot_trains_nothing_and_gets_no_card(run: Any, manifest: Manifest, tmp_path: Path) -> None:
    run("zeroshot", manifest, tmp_path / "run")
    assert not (tmp_path / "run" / "README.md").exists()


@pytest.mark.parametrize("kind", QUICK)
def test_its_commands_name_settings_that_are_there(
    kind: str, run: Any, models: dict[str, str], split_manifest: Manifest, tmp_path: Path
) -> None:
    _, card = run(kind, split_manifest, tmp_path / "run", **({"model": models[SMALL[kind]]} if kind in SMALL else {}))
    commands = [line for text in re.findall(r"```sh\n(.*?)```", card, flags=re.S) for line in text.splitlines()]
    assert commands[-1] == f"thoraclip {kind} MANIFEST.parquet --config RUN/config.toml --out AGAIN"
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["kind"] == kind
    for command in commands:
        verb = command.split()[1]
        for name in re.findall(r"--set (\w+)=", command):
            assert name in METHODS[verb].config_type.__dataclass_fields__, command
    for place in re.findall(r"RUN/([\w./-]+)", card):
        assert (tmp_path / "run" / place).exists(), place
    assert "| `" in card and "Never saw" not in card
    assert "the manifest's split `val`" in card


def test_the_code_of_a_probes_card_gives_its_scores(run: Any, split_manifest: Manifest, tmp_path: Path) -> None:
    predictions, card = run("probe", split_manifest, tmp_path / "run")
    cached_embeddings(EncoderConfig(precision="fp32"), split_manifest, tmp_path / "run" / "embeddings")
    (features,) = (tmp_path / "run" / "embeddings").iterdir()
    names: dict[str, Any] = {}
    exec(block(card, "python").replace("FEATURES", str(features)).replace("RUN", str(tmp_path / "run")), names)
    row_of = {image: row for row, image in enumerate(names["features"].image_id)}
    rows = [row_of[image] for image in predictions.image_id]
    # a product of other rows may sum in another order: the last digits of f64 are the processor's
    np.testing.assert_allclose(names["scores"][rows], predictions.scores, rtol=1e-12, atol=0)


def test_the_code_of_a_baselines_card_gives_its_scores(run: Any, split_manifest: Manifest, tmp_path: Path) -> None:
    predictions, card = run("baseline", split_manifest, tmp_path / "run")
    image = split_manifest.paths_by_id()[predictions.image_id[0]]
    names: dict[str, Any] = {}
    code = block(card, "python").replace("image.png", str(image)).replace("RUN", str(tmp_path / "run"))
    exec(code, names)
    np.testing.assert_allclose(names["scores"], predictions.scores[0], atol=2e-2)


def test_plain_peft_loads_an_adapter_as_its_card_says(run: Any, split_manifest: Manifest, tmp_path: Path) -> None:
    _, card = run("finetune", split_manifest, tmp_path / "run")
    names: dict[str, Any] = {}
    exec(block(card, "python").replace("BASE", str(TINY)).replace("RUN", str(tmp_path / "run")), names)
    assert any("lora" in name for name, _ in names["model"].named_parameters())
    assert "lora" in ModelCard(card).data.tags


def test_the_words_follow_the_settings(run: Any, split_manifest: Manifest, tmp_path: Path) -> None:
    _, lbfgs = run("probe", split_manifest, tmp_path / "a")
    assert "Of 3 penalties from 0.0001 to 10 (on the mean log-loss), the one with the lowest log-loss" in lbfgs
    assert "Liu & Nocedal" in lbfgs and "Loshchilov" not in lbfgs
    _, adamw = run("probe", split_manifest, tmp_path / "b", solver="adamw", epochs=2, features="projected", refit=False)
    assert "Of 2 epochs, the one with the lowest log-loss" in adamw and "fitted again" not in adamw
    assert "projected to the space that images share with text" in adamw and "features.projected" in adamw
    assert "Loshchilov" in adamw
    _, informed = run("probe", split_manifest, tmp_path / "e", solver="lp++", features="projected")
    assert "a text-informed probe (LP++)" in informed and "prompt set chest-xray-ensemble" in informed
    assert "| alpha of COVID-19 |" in informed and "arXiv:2404.02285" in informed
    _, tuned = run("finetune", split_manifest, tmp_path / "c", loss="siglip", towers="vision", rslora=False)
    assert "on the vision tower of tiny-clip, trained with a sigmoid loss for every pair" in tuned
    assert "The adapter after the last step was kept; nothing was chosen." in tuned
    assert "arXiv:2303.15343" in tuned and "rank-stabilised" not in tuned.split("## Intended use")[0]
    _, probed = run("probe", split_manifest, tmp_path / "d", adapter=str(tmp_path / "c"))
    assert "tuned by the adapter c." in probed and "--adapter ADAPTER" in probed
    assert "those that the adapter was chosen on" in probed


def test_a_local_models_own_card_tells_its_licence(run: Any, split_manifest: Manifest, tmp_path: Path) -> None:
    model = tmp_path / "place" / "my-clip"
    model.mkdir(parents=True)
    for file in TINY.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    _, card = run("probe", split_manifest, tmp_path / "run", model=str(model))
    assert "| my-clip | apache-2.0 | stated on the card beside its weights |" in card
    assert "--model BASE" in card and "`BASE` the folder of my-clip" in card
    assert "place" not in card.replace("places", "").replace("replace", "")


def test_odd_class_names_reach_the_card_whole(run: Any, manifest: Manifest, tmp_path: Path) -> None:
    names = {"COVID-19": 'Pneumonia: "viral" | other', "Non-COVID": "- yes: {no} #1", "Normal": "null"}
    renamed = manifest.with_columns(label=[names[label] for label in manifest.column("label")])
    _, card = run("probe", renamed, tmp_path / "run")
    assert ModelCard(card).data.eval_results
    assert 'Pneumonia: "viral" \\| other' in card and "\\- yes: {no} \\#1" in card
