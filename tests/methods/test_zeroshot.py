"""Zero-shot against a slow oracle, written with loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from thoraclip.methods.embed import load_encoder
from thoraclip.methods.running import run_method
from thoraclip.methods.zeroshot import Config, class_vectors
from thoraclip.tables.manifest import Manifest

PROMPTS = """
templates = ["an X-ray with {}.", "{} on a film."]
[prompts]
"bright" = ["a bright picture", "pale", "white everywhere"]
"""


def test_scores_are_the_softmax_of_scaled_cosines(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(PROMPTS)
    config = Config(prompts=str(tmp_path / "p.toml"), precision="fp32")
    predictions, details = run_method("zeroshot", config, manifest, tmp_path / "run")
    encoder = load_encoder(config)
    from thoraclip.imaging import decode, preprocess

    names = predictions.labels.names
    texts = {
        n: ["a bright picture", "pale", "white everywhere"]
        if n == "bright"
        else [f"an X-ray with {n}.", f"{n} on a film."]
        for n in names
    }
    assert details["prompts"] == texts
    for row in (0, 7, len(predictions) - 1):
        image = encoder.encode_images(preprocess(decode(manifest.paths()[row]), encoder.preprocess)[None])[1][0]
        logits = []
        for name in names:
            total = [0.0] * len(image)
            for text in texts[name]:
                total = [t + float(v) for t, v in zip(total, encoder.encode_texts([text])[0], strict=True)]
            length = math.sqrt(sum(t * t for t in total))
            logits.append(encoder.logit_scale * sum(t / length * float(i) for t, i in zip(total, image, strict=True)))
        top = max(logits)
        odds = [math.exp(value - top) for value in logits]
        np.testing.assert_allclose(predictions.scores[row], [o / sum(odds) for o in odds], atol=1e-4)


def test_every_row_is_predicted_and_the_spread_over_prompts_is_reported(manifest: Manifest, tmp_path: Path) -> None:
    predictions, details = run_method("zeroshot", Config(), manifest, tmp_path / "run")
    assert predictions.image_id == tuple(manifest.column("image_id"))
    assert set(predictions.split) == {"test"}
    assert len(details["per_prompt"]) == 12, "six templates, two names a class"
    for row in details["per_prompt"]:
        assert set(row) == {"prompts", "accuracy", "macro_f1"}
        assert 0 <= row["accuracy"] <= 1


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
    from thoraclip.errors import ConfigError

    with pytest.raises(ConfigError, match="unknown prompts 'pears'; did you mean 'pairs'"):
        run_method("zeroshot", Config(prompts="pears"), manifest, tmp_path / "run")
