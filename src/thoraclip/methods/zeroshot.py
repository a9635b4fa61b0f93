"""`zeroshot`: softmax over the cosine between an image and each class's mean prompt vector.

Radford et al. 2021 (arXiv:2103.00020), section 3.1.4: the prompts of a class are embedded, normalised, averaged and
normalised again; logits are the cosine times the model's logit scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.labels import LabelSet, load_prompts
from thoraclip.methods.embed import EncoderConfig, cached_embeddings, load_encoder
from thoraclip.methods.running import Context, predictions_of
from thoraclip.models.heads import log_loss, softmax
from thoraclip.runs import digest
from thoraclip.tables.predictions import Predictions

__all__ = ["Config", "class_vectors", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """What one zero-shot run needs."""

    prompts: str = "chest-xray-ensemble"
    """A shipped prompt set, or a TOML file of your own."""

    def inputs(self) -> dict[str, str]:
        """The encoder's artefacts, and the prompts as they read."""
        prompts = load_prompts(self.prompts)
        return super().inputs() | {"prompts": digest([prompts.templates, dict(prompts.classes), dict(prompts.prompts)])}


def run(config: Config, context: Context) -> tuple[Predictions, dict[str, Any], list[Mapping[str, object]]]:
    """Score every image against the class prompts; nothing is trained, so every row can be judged."""
    manifest = context.manifest
    labels = manifest.label_set(config.classes)
    encoder = load_encoder(config)
    prompts = load_prompts(config.prompts)
    texts = [prompts.for_class(name) for name in labels.names]
    embedded = cached_embeddings(
        config, manifest, context.cache, encoder=encoder, pixels=context.pixels, progress=context.progress
    )
    images = np.asarray(embedded.projected[embedded.rows_for(manifest)], dtype=np.float64)
    prompt_vectors = [encoder.encode_texts(t).astype(np.float64) for t in texts]

    scores = softmax(encoder.logit_scale * images @ class_vectors(prompt_vectors).T)
    predictions = predictions_of(manifest, labels, np.arange(len(manifest)), scores)
    spread = _per_prompt(labels, texts, prompt_vectors, images, predictions)
    details = {
        "prompt_set": prompts.name,
        "prompts": {name: list(t) for name, t in zip(labels.names, texts, strict=True)},
        "logit_scale": encoder.logit_scale,
        "per_prompt": spread,
    }
    judged = predictions.judged()
    return predictions, details, [{"rows": len(judged), "log_loss": log_loss(judged.scores, judged.target)}]


def class_vectors(prompt_vectors: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Per class f64[K_c, P] unit vectors -> f64[C, P], the unit vector of their mean."""
    means = np.stack([vectors.mean(axis=0) for vectors in prompt_vectors])
    unit: npt.NDArray[np.float64] = means / np.linalg.norm(means, axis=1, keepdims=True)
    return unit


def _per_prompt(
    labels: LabelSet,
    texts: list[tuple[str, ...]],
    vectors: list[npt.NDArray[np.float64]],
    images: npt.NDArray[np.float64],
    predictions: Predictions,
) -> list[dict[str, Any]]:
    """Accuracy with one prompt per class: the k-th of each class; a class with fewer prompts begins again."""
    from sklearn.metrics import accuracy_score, f1_score

    position = {image: row for row, image in enumerate(predictions.image_id)}
    judged = predictions.judged()
    rows = np.array([position[image] for image in judged.image_id])
    spread = []
    for k in range(max(len(t) for t in texts)):
        single = np.stack([v[k % len(v)] for v in vectors])
        predicted = np.argmax(images[rows] @ single.T, axis=1)
        spread.append(
            {
                "prompts": {name: t[k % len(t)] for name, t in zip(labels.names, texts, strict=True)},
                "accuracy": float(accuracy_score(judged.target, predicted)),
                "macro_f1": float(
                    f1_score(judged.target, predicted, labels=range(len(labels)), average="macro", zero_division=0)
                ),
            }
        )
    return spread
