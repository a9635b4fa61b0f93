"""`zeroshot`: softmax over the cosine between an image and each class's mean prompt vector.

Radford et al. 2021 (arXiv:2103.00020), section 3.1.4: the prompts of a class are embedded, normalised, averaged and
normalised again; logits are the cosine times the model's logit scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thoraclip.dtypes import Floats, Ints
from thoraclip.errors import ManifestError
from thoraclip.labels import LabelSet, PromptSet, load_prompts
from thoraclip.methods.adapters import by_adapter, follow_adapter, with_adapter
from thoraclip.methods.encoders import EncoderConfig, load_text_encoder
from thoraclip.methods.parts import Part, parts
from thoraclip.methods.running import MethodOutput, RunContext, pooled_predictions
from thoraclip.models.heads import LinearHead, log_loss, softmax
from thoraclip.runs import digest
from thoraclip.tables.predictions import Predictions

if TYPE_CHECKING:
    from thoraclip.models.classifiers import EncoderClassifier
    from thoraclip.models.dual_encoder import DualEncoder

__all__ = ["Config", "Scored", "class_vectors", "macro_f1", "prompts_digest", "run", "score_images"]

_VAL_FRACTION = 0.2
"""Share of the other folds' images whose scores are kept for calibration: what a probe holds out."""


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """What one zero-shot run needs."""

    prompts: str = "chest-xray-ensemble"
    """A shipped prompt set, or a TOML file of your own."""

    @property
    def reads_texts(self) -> bool:
        """Always: the classes are texts."""
        return True

    def inputs(self) -> dict[str, str]:
        """The encoder's artefacts, and the prompts as they read."""
        return super().inputs() | {"prompts": prompts_digest(self.prompts)}


@dataclass(frozen=True)
class Scored:
    """Zero-shot scores of N images by one encoder."""

    scores: Floats  # f64[N, C], rows sum to 1
    images: Floats  # f64[N, P], unit vectors
    prompt_vectors: list[Floats]  # per class f64[K_c, P], unit vectors
    logit_scale: float  # of the encoder


def score_images(
    config: EncoderConfig, labels: LabelSet, prompts: PromptSet, context: RunContext, rows: Ints | None = None
) -> Scored:
    """Softmax over logit scale times cosine, for some rows of the context's manifest, or all."""
    encoder = load_text_encoder(config, "zeroshot")
    embedded = context.embeddings(config, encoder, rows)
    images = context.manifest if rows is None else context.manifest.take(rows)
    unit = np.asarray(embedded.projected[embedded.rows_for(images)], dtype=np.float64)
    vectors = prompt_vectors(encoder, prompts, labels)
    scores = softmax(encoder.logit_scale * unit @ class_vectors(vectors).T)
    return Scored(scores, unit, vectors, encoder.logit_scale)


def run(config: Config, context: RunContext) -> MethodOutput:
    """Score every image against the class prompts; nothing is trained here, so every row can be judged.

    With the adapters of a fine-tuning over folds, each fold is scored by the adapter that has not seen it. The scores
    of the validation images that a probe would have are kept, for calibration; a manifest without parts has none.
    """
    manifest = context.manifest
    labels, prompts = manifest.label_set(config.classes), load_prompts(config.prompts)
    texts = [prompts.for_class(name) for name in labels.names]
    validated, rows, scores, named = _validation_parts(config, labels, context), [], [], []
    for chosen, own in by_adapter(config, manifest):
        scored = score_images(chosen, labels, prompts, context)
        rows.append(own)
        scores.append(scored.scores[own])
        named.append(_per_prompt(texts, scored, own))
        for part in validated:
            if np.isin(part.test, own).all():
                part = follow_adapter(chosen, manifest, part)
                context.keep_validation(part, labels, scored.scores[part.val])
    predictions = pooled_predictions(manifest, labels, rows, scores)
    details = {
        "prompt_set": prompts.name,
        "prompts": {name: list(t) for name, t in zip(labels.names, texts, strict=True)},
        "logit_scale": scored.logit_scale,
        "per_prompt": _spread(labels, texts, np.concatenate(named)[np.argsort(np.concatenate(rows))], predictions),
    }
    judged = predictions.judged()
    metrics = [{"rows": len(judged), "log_loss": log_loss(judged.scores, judged.target)}]
    return MethodOutput(predictions, details, metrics)


def _validation_parts(config: Config, labels: LabelSet, context: RunContext) -> list[Part]:
    """The parts of a trained method at its defaults, for their validation images; none where none can be trained."""
    if not any(context.manifest.parts()):
        return []
    try:
        return list(parts(context.manifest, labels, val_fraction=_VAL_FRACTION, seed=0, only=config.only_folds))
    except ManifestError as error:
        context.log(f"zeroshot: no validation scores are kept, so nothing can be calibrated ({error})")
        return []


def prompt_vectors(encoder: DualEncoder, prompts: PromptSet, labels: LabelSet) -> list[Floats]:
    """Per class f64[K_c, P], the unit vectors of its prompts."""
    return [encoder.encode_texts(prompts.for_class(name)).astype(np.float64) for name in labels.names]


def class_vectors(vectors: list[Floats]) -> Floats:
    """Per class f64[K_c, P] unit vectors -> f64[C, P], the unit vector of their mean."""
    means = np.stack([prompts.mean(axis=0) for prompts in vectors])
    unit: Floats = means / np.linalg.norm(means, axis=1, keepdims=True)
    return unit


def _per_prompt(texts: list[tuple[str, ...]], scored: Scored, rows: Ints) -> Ints:
    """i64[len(rows), K]: the class that the k-th prompt of each class names; fewer prompts begin again."""
    singles = range(max(len(t) for t in texts))
    vectors = [np.stack([v[k % len(v)] for v in scored.prompt_vectors]) for k in singles]
    return np.stack([np.argmax(scored.images[rows] @ v.T, axis=1) for v in vectors], axis=1)


def _spread(
    labels: LabelSet, texts: list[tuple[str, ...]], named: Ints, predictions: Predictions
) -> list[dict[str, Any]]:
    """Accuracy and macro F1 of every single prompt on the judged rows."""
    position = {image: row for row, image in enumerate(predictions.image_id)}
    judged = predictions.judged()
    rows = np.array([position[image] for image in judged.image_id])
    return [
        {
            "prompts": {name: t[k % len(t)] for name, t in zip(labels.names, texts, strict=True)},
            "accuracy": float((judged.target == named[rows, k]).mean()),
            "macro_f1": macro_f1(judged.target, named[rows, k], len(labels)),
        }
        for k in range(named.shape[1])
    ]


def macro_f1(target: Ints, predicted: Ints, classes: int) -> float:
    """Mean F1 over all classes; a class that is never predicted counts 0."""
    from sklearn.metrics import f1_score

    return float(f1_score(target, predicted, labels=range(classes), average="macro", zero_division=0))


def prompts_digest(name: str) -> str:
    """SHA-256 over a prompt set as it reads now."""
    prompts = load_prompts(name)
    return digest([prompts.templates, dict(prompts.classes), dict(prompts.prompts)])


def load_classifier(config: EncoderConfig, folder: Path, fold: int | None, labels: LabelSet) -> EncoderClassifier:
    """The encoder with the class prompts as its head; `folder` holds nothing that it needs."""
    del folder
    return prompted_classifier(with_adapter(config, fold), config.prompts, labels)  # type: ignore[attr-defined]


def prompted_classifier(config: EncoderConfig, prompts: str, labels: LabelSet) -> EncoderClassifier:
    """An encoder with the mean vectors of each class's prompts as a linear head."""
    from thoraclip.models.classifiers import EncoderClassifier

    encoder = load_text_encoder(config, "zeroshot")
    vectors = class_vectors(prompt_vectors(encoder, load_prompts(prompts), labels))
    weight = (encoder.logit_scale * vectors).astype(np.float32)
    return EncoderClassifier(encoder, LinearHead.unscaled(labels, weight), "projected")
