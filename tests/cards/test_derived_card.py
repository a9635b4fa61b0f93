"""Cards of bundles and merged models: front matter by the Hub's own reader, hostile names, snippets that are Python."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tests.evaluation.cards import load_card, trained

from thoraclip.cards import model_card as module
from thoraclip.cards.derived_card import JudgedRun, folder_card
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet

HOSTILE = ('Pneumonia: "viral" | other', "- *x*: {y} # z ```", "a\n---\n'b' \\ </b>")
PARITY = {"images": 9, "largest_difference": 2e-6, "largest_logit": 31.0, "grey_difference": 0.25, "other_answers": 1}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESAMPLES", 100)


def judged(images: Path, **given: Any) -> JudgedRun:
    run = JudgedRun(
        name="lora", kind="finetune", model="openai/clip-vit-base-patch32", fold=None, has_learned=True,
        predictions=trained(HOSTILE, skill=0.3).predictions, images=images, count=90, fingerprint="f" * 64,
    )  # fmt: skip
    return replace(run, **given)


def given(**more: Any) -> dict[str, Any]:
    prompts = {name: [f"a chest X-ray of {name}."] for name in HOSTILE}
    encoder = SimpleNamespace(architecture=SimpleNamespace(padding="longest"), text_length=77)
    plain = SimpleNamespace(
        labels=LabelSet(HOSTILE), preprocess=Preprocess(), architecture="CLIPModel", encoder=encoder
    )
    facts = {"parity": PARITY, "plain": plain, "prompts": prompts, "adapter": "the adapter", "is_sigmoid": False}
    return facts | {"logit_tolerance": 1e-5, "grey_tolerance": 1.0} | more


def test_the_hub_reads_base_data_licence_and_metrics(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(folder_card(judged(tmp_path), given()), encoding="utf-8")
    data = load_card(tmp_path).data
    assert (data.base_model, data.to_dict()["base_model_relation"]) == ("openai/clip-vit-base-patch32", "finetune")
    assert (data.license, data.datasets, data.model_name) == ("unknown", None, "lora")
    record = {"name": "Set", "url": "https://huggingface.co/datasets/owner/set", "license": "Apache-2.0"}
    (tmp_path / "croissant.json").write_text(json.dumps(record))
    (tmp_path / "README.md").write_text(folder_card(judged(tmp_path, model="tiny-clip"), given(prompts=None)), "utf-8")
    data = load_card(tmp_path).data
    assert (data.base_model, data.datasets, data.license) == (None, ["owner/set"], "apache-2.0")
    assert data.pipeline_tag == "image-classification" and data.eval_results[0].dataset_name == "Set"
    unlearned = ModelCard(folder_card(judged(tmp_path, has_learned=False, kind="zeroshot"), given(adapter=""))).data
    assert "base_model_relation" not in unlearned.to_dict() and "lora" not in unlearned.tags


def test_hostile_classes_break_neither_the_front_matter_nor_the_snippets(tmp_path: Path) -> None:
    text = folder_card(judged(tmp_path), given())
    assert text.count("\n---\n") == 1 and "One of 9 get" not in text and "1 image of 9 gets another answer" in text
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.S | re.M)
    assert len(blocks) == 2
    values: dict[str, Any] = {}
    exec(blocks[0][blocks[0].index("prompts = {") : blocks[0].index("model, tokenizer")], values)
    assert values["prompts"] == {name: [f"a chest X-ray of {name}."] for name in HOSTILE}
    assert "The pipeline of Transformers gives the same scores:" in text
    several = {name: ["one", "two"] for name in HOSTILE}
    assert "takes one prompt a class, so its scores are others" in folder_card(judged(tmp_path), given(prompts=several))
    assert "with a sigmoid in place of the softmax" in folder_card(judged(tmp_path), given(is_sigmoid=True))
