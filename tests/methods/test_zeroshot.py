"""Zero-shot against a slow oracle, written with loops."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from thoraclip.errors import ConfigError
from thoraclip.imaging import decode, preprocess
from thoraclip.labels import load_prompts
from thoraclip.methods.encoders import load_encoder
from thoraclip.methods.running import run_method
from thoraclip.methods.zeroshot import Config, class_vectors
from thoraclip.tables.manifest import Manifest

PROMPTS = """
templates = ["an X-ray with {}.", "{} on a film."]
[prompts]
"Normal" = ["a healthy chest", "clear", "nothing to be seen"]
"""


def test_scores_are_the_softmax_of_scaled_cosines(manifest: Manifest, tmp_path: Path) -> None:
    """And each prompt's own accuracy is counted, one image and one class at a time; a shorter list begins again."""
    (tmp_path / "p.toml").write_text(PROMPTS)
    config = Config(prompts=str(tmp_path / "p.toml"), precision="fp32")
    some = manifest.with_columns(label=[None, *manifest.column("label")[1:]])
    predictions, details = run_method("zeroshot", config, some, tmp_path / "run")
    encoder, names = load_encoder(config), predictions.labels.names
    texts = {n: [f"an X-ray with {n}.", f"{n} on a film."] for n in names}
    texts["Normal"] = ["a healthy chest", "clear", "nothing to be seen"]
    assert details["prompts"] == texts and details["logit_scale"] == encoder.logit_scale
    assert details["prompt_set"] == load_prompts(config.prompts).name
    assert predictions.image_id == tuple(manifest.column("image_id")) and set(predictions.split) == {"test"}
    vectors = {text: encoder.encode_texts([text])[0].tolist() for name in names for text in texts[name]}
    named, loss = [list[int]() for _ in range(3)], 0.0
    for row, path in enumerate(manifest.paths()):
        image = encoder.encode_images(preprocess(decode(path), encoder.preprocess)[None])[1][0].tolist()
        logits = []
        for name in names:
            total = [sum(values) for values in zip(*(vectors[text] for text in texts[name]), strict=True)]
            length = math.sqrt(sum(t * t for t in total))
            logits.append(encoder.logit_scale * sum(t / length * i for t, i in zip(total, image, strict=True)))
        odds = [math.exp(value - max(logits)) for value in logits]
        np.testing.assert_allclose(predictions.scores[row], [o / sum(odds) for o in odds], atol=1e-4)
        for k in range(3):
            cosines = [np.dot(vectors[texts[name][k % len(texts[name])]], image) for name in names]
            named[k].append(int(np.argmax(cosines)))
        if row:
            loss -= math.log(odds[predictions.target[row]] / sum(odds)) / 23
    assert len(details["per_prompt"]) == 3
    for k, told in enumerate(details["per_prompt"]):
        pairs = list(zip(predictions.target.tolist(), named[k], strict=True))[1:]
        hits = [sum(t == n == c for t, n in pairs) for c in range(3)]
        all_ = [sum((t == c) + (n == c) for t, n in pairs) for c in range(3)]
        assert told == {
            "prompts": {name: texts[name][k % len(texts[name])] for name in names},
            "accuracy": pytest.approx(sum(hits) / 23),
            "macro_f1": pytest.approx(sum(2 * h / max(a, 1) for h, a in zip(hits, all_, strict=True)) / 3),
        }
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"rows": 23, "log_loss": pytest.approx(loss, rel=1e-4)}


def test_the_order_of_the_classes_only_moves_columns(manifest: Manifest, tmp_path: Path) -> None:
    names = manifest.label_set().names
    first, _ = run_method("zeroshot", Config(), manifest, tmp_path / "a")
    turned, _ = run_method("zeroshot", Config(classes=names[::-1]), manifest, tmp_path / "b")
    assert turned.labels.names == names[::-1]
    np.testing.assert_allclose(turned.scores[:, ::-1], first.scores, atol=1e-12)


def test_class_vectors_are_unit_means() -> None:
    vectors = class_vectors([np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 1.0]])])
    np.testing.assert_allclose(vectors, [[math.sqrt(0.5)] * 2, [0, 1]])


def test_changed_prompts_make_a_new_run(manifest: Manifest, tmp_path: Path) -> None:
    prompts = tmp_path / "p.toml"
    prompts.write_text('templates = ["a film of {}."]')
    first, _ = run_method("zeroshot", Config(prompts=str(prompts)), manifest, tmp_path / "run")
    prompts.write_text('templates = ["{}, AP, with ECG leads."]')
    second, _ = run_method("zeroshot", Config(prompts=str(prompts)), manifest, tmp_path / "run")
    assert np.abs(first.scores - second.scores).max() > 0


def test_unknown_prompts_are_named(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown prompts 'pears'; did you mean 'pairs'"):
        run_method("zeroshot", Config(prompts="pears"), manifest, tmp_path / "run")
