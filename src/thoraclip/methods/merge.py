"""`merge`: the classifier of a run as a plain Transformers folder, once it has been shown to be the same one.

A run that classifies by prompts becomes its dual encoder, the adapter merged into it. A linear head on a tower, and a
network, become an image classifier of Transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thoraclip.cards.derived_card import JudgedRun, folder_card
from thoraclip.data.batches import read_pixels
from thoraclip.errors import InputError, ParityError
from thoraclip.imaging import preprocess
from thoraclip.imaging.remedies import NONE
from thoraclip.labels import LabelSet, load_prompts
from thoraclip.methods.original import chosen_fold
from thoraclip.methods.predictors import FinishedRun
from thoraclip.models.classifiers import Classifier, EncoderClassifier
from thoraclip.models.plain_folder import (
    OpenedPlain,
    PlainModel,
    image_classifier,
    is_plain_folder,
    plain_dual_encoder,
    write_plain,
)
from thoraclip.runs import Progress, is_empty, whole_folder, write_text
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import read_predictions

__all__ = ["GREY_TOLERANCE", "LOGIT_TOLERANCE", "merge_run", "require_mergeable"]

LOGIT_TOLERANCE = 1e-5
"""Largest difference of a logit on equal pixels, as a share of the largest logit, or of 1 where that is larger."""
GREY_TOLERANCE = 1.0
"""Largest mean difference, in grey levels, between an image as the folder's processor and as the run makes it."""
_BATCH = 16


def require_mergeable(run: FinishedRun, out: Path) -> None:
    """Raise InputError where the settings of a run alone show that no plain folder says it, or `out` is not free."""
    run.require_classifier()
    if out.is_dir() and not is_empty(out) and not is_plain_folder(out):
        raise InputError(f"{out}: holds other things than a merged model; move it, or name a new folder with --out")
    bundle = f"thoraclip export {run.folder} --out BUNDLE"
    if run.config.geometry == "pad":
        raise InputError(
            f"{run.folder}: geometry = 'pad' adds bars, and no image processor of Transformers does; use `{bundle}`, "
            "or repeat the run with geometry = 'squash'"
        )
    if run.config.remedy != NONE:
        raise InputError(
            f"{run.folder}: remedy = '{run.config.remedy}' does what no image processor of Transformers does; "
            f"use `{bundle}`, or repeat the run with remedy = '{NONE}'"
        )
    if getattr(run.config, "features", "pooled") == "projected":
        raise InputError(
            f"{run.folder}: features = 'projected' are unit vectors, and no image classifier of Transformers reads "
            f"those; use `{bundle}`, or repeat the probe with features = 'pooled'"
        )


def merge_run(
    run: FinishedRun,
    manifest: Manifest,
    out: Path,
    *,
    fold: int | None = None,
    images: int = 64,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write the folder; it appears whole, or not at all. Arguments, result and errors: see `api.deployment`."""
    run.require_manifest(manifest)
    chosen, predictions = chosen_fold(run, fold), read_predictions(run.folder / "predictions.parquet")
    labels = predictions.labels
    classifier = replace(run, config=replace(run.config, precision="fp32")).classifier(chosen, labels)
    plain = _plain(run, classifier, labels)
    rows = dict(run.parts(manifest))[chosen]
    chosen = None if run.distinct_folds == (None,) else chosen  # one frozen classifier is that of every fold
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(images, len(rows))).astype(np.int64))]
    judged = JudgedRun(
        name=run.folder.resolve().name,
        kind=run.kind,
        model=run.config.model,
        fold=chosen,
        has_learned=run.has_learned,
        predictions=predictions,
        images=manifest.root,
        count=len(manifest),
        fingerprint=manifest.fingerprint,
    )
    prompts = plain.encoder and {name: list(texts) for name, texts in plain.prompts.items()}
    source = {"run": judged.name, "kind": run.kind, "fold": chosen, "inputs": {"run": run.fingerprint}}
    with whole_folder(out, is_plain_folder) as part:
        announce(f"writing the model{'' if chosen is None else f' of fold {chosen}'}")
        write_plain(part, plain, prompts=prompts, **source)
        announce("comparing it with the original")
        parity = _compare(OpenedPlain(part, plain), classifier, manifest.take(rows), progress)
        _require_same(parity, judged.name)
        facts = {"parity": parity, "plain": plain, "prompts": prompts, "adapter": _adapter(run)}
        facts["is_sigmoid"] = "siglip" in plain.network.config.model_type
        limits = {"logit_tolerance": LOGIT_TOLERANCE, "grey_tolerance": GREY_TOLERANCE}
        write_text(part / "README.md", folder_card(judged, {**facts, **limits}))
    return {"schema": 1, "architecture": plain.architecture, "fold": chosen, **parity}


def _plain(run: FinishedRun, classifier: Classifier, labels: LabelSet) -> PlainModel:
    """A head on the tower becomes one of Transformers; one on the space shared with text is made of prompts."""
    if isinstance(classifier, EncoderClassifier) and classifier.features == "projected":
        prompts = load_prompts(run.config.prompts)
        return plain_dual_encoder(classifier, {name: prompts.for_class(name) for name in labels.names})
    return image_classifier(classifier)


def _adapter(run: FinishedRun) -> str:
    """What was merged into the base, in words; empty where nothing was."""
    return "the adapter of this run" if run.method.trains_adapters else getattr(run.config, "adapter", "")


def _compare(
    opened: OpenedPlain, classifier: Classifier, manifest: Manifest, progress: Progress | None
) -> dict[str, Any]:
    """How far the folder is from the run's own classifier, on images of its test split or fold.

    `largest_difference` is of logits on the pixels that the folder's processor makes, `largest_logit` the largest one.
    `grey_difference` is between these pixels and those that the run makes: the largest mean over an image, in grey
    levels. `other_answers` counts images that get another answer with each from its own pixels.
    """
    files = list(zip(manifest.paths(), manifest.column("sha256"), manifest.bits, strict=True))
    spec = classifier.preprocess
    level = 255 * np.asarray(spec.std)[:, None, None]  # grey levels of one unit of pixels
    device = classifier.expand(np.zeros((1, 1, 1), np.uint8)).device
    wanted, found, answers, apart = [], [], [], []
    for first in range(0, len(files), _BATCH):
        greys = [read_pixels(path, sha256, bits=bits) for path, sha256, bits in files[first : first + _BATCH]]
        own = np.stack([preprocess(grey, spec) for grey in greys])
        made = np.stack([opened.pixels(grey) for grey in greys])
        pixels = torch.from_numpy(made).to(device)
        with torch.inference_mode():
            wanted.append(classifier.logits(pixels).double().cpu().numpy())
        found.append(opened.logits(pixels).double().cpu().numpy())
        answers.append(classifier.predict(own).argmax(axis=1))
        apart.append((np.abs(own - made) * level).mean(axis=(1, 2, 3)))
        if progress:
            progress(min(first + _BATCH, len(files)), len(files))
    logits, expected = np.concatenate(found), np.concatenate(wanted)
    return {
        "images": len(files),
        "largest_difference": float(np.abs(logits - expected).max()),
        "largest_logit": float(np.abs(expected).max()),
        "grey_difference": float(np.concatenate(apart).max()),
        "other_answers": int((logits.argmax(axis=1) != np.concatenate(answers)).sum()),
    }


def _require_same(parity: Mapping[str, Any], name: str) -> None:
    """Raise ParityError where the folder is another classifier, or makes other pixels."""
    difference, allowed = parity["largest_difference"], LOGIT_TOLERANCE * max(1.0, parity["largest_logit"])
    if not difference <= allowed:  # NaN is no parity
        raise ParityError(
            f"{name}: on equal pixels the folder's logits differ by {difference:.3g} from the run's, and {allowed:.3g} "
            "is allowed; nothing was written"
        )
    if not parity["grey_difference"] <= GREY_TOLERANCE:
        raise ParityError(
            f"{name}: the folder's image processor makes other pixels than the run, by {parity['grey_difference']:.3g} "
            f"grey levels on average over an image, and {GREY_TOLERANCE} is allowed; nothing was written"
        )
