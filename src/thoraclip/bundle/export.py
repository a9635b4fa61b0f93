"""`export`: a run's classifier becomes a bundle, once it has been shown to be the same one.

original --onnx--> model.onnx --parity--> equal to 1e-4, or no file
                      |
                      +--int8--> model.onnx of eight bits --parity--> alike on the test images, or no file
                      +--> validation images --> temperature, prediction sets, operating points
                      +--> training images --> the out-of-distribution reference
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from thoraclip.bundle import format as layout
from thoraclip.bundle import parity as proof
from thoraclip.bundle.calibration import calibrate, fit_reference, measure
from thoraclip.bundle.onnx import grey_classifier, quantise, write_onnx
from thoraclip.bundle.parity import ModelSession
from thoraclip.bundle.runtime import UNSIGNED, BundleClassifier
from thoraclip.bundle.seal import FACTS, others_in, seal
from thoraclip.cards.derived_card import JudgedRun, bundle_card
from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.data.splits import independent_groups
from thoraclip.errors import ConfigError, InputError
from thoraclip.imaging import DECODING, fit
from thoraclip.models.classifiers import Original
from thoraclip.ranges import SampleSize, Thumbnails, conform
from thoraclip.runs import Progress, provenance, whole_folder, write_json, write_text

__all__ = ["export_bundle", "require_place"]


def export_bundle(
    original: Original,
    out: Path,
    *,
    int8: bool = False,
    images: int = 2000,
    thumbnails: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write a bundle; it appears whole, or not at all. The other arguments, the result and errors: see
    `api.deployment`.

    Args:
        original: what it is made of.
        out: folder; a bundle that is there is replaced once the new one is whole.

    Raises InputError where there is something else at `out`, ModelError where the network cannot be exported.
    """
    conform("images", images, SampleSize)
    conform("thumbnails", thumbnails, Thumbnails)
    if thumbnails and not original.has_learned:
        why = f"the run '{original.name}' has learned from no picture"
        raise ConfigError(f"thumbnails = {thumbnails}: {why}; leave it out")
    session = ModelSession(original, images=images, seed=seed, progress=progress, is_int8=int8)
    with whole_folder(out, lambda folder: not others_in(folder)) as part:
        announce("writing the model")
        module = grey_classifier(original.classifier)
        write_onnx(module, part / layout.MODEL)
        announce("comparing it with the original")
        runtime = _open_unfinished(part, original)
        fp32 = session.equality(runtime)
        proof.require_equal(fp32, original.name)
        parity: dict[str, Any] = {"schema": 1, "precision": "fp32", "grey_folded": module.is_folded, "fp32": fp32}
        parity["int8"] = None
        if int8:
            announce("the same in eight bits")
            way, share = quantise(part / layout.MODEL, session.for_scales())
            runtime = _open_unfinished(part, original, quantisation=way)
            found = {"quantisation": way, "size": share, **session.alikeness(runtime)}
            proof.require_alike(found, original.name)
            parity |= {"precision": "int8", "int8": found}
        announce("calibrating")
        _finish(part, session, runtime, parity, thumbnails=thumbnails)
    return parity


def _open_unfinished(folder: Path, original: Original, *, quantisation: str | None = None) -> BundleClassifier:
    """The model that lies in an unfinished bundle, with the facts that are known before it is calibrated."""
    facts = {
        "schema": layout.SCHEMA,
        "name": f"{original.kind} on {Path(original.model).name}",
        "kind": original.kind,
        "precision": "int8" if quantisation else "fp32",
        "quantisation": quantisation,
        "weights": UNSIGNED if quantisation else None,
        "labels": list(original.predictions.labels.names),
        "preprocess": original.classifier.preprocess.as_dict(),
        "decoding": DECODING,
        "bits": original.manifest.usual_bits,
        "temperature": None,
        "sets": None,
    }
    return BundleClassifier(layout.Bundle(folder, facts))


def _finish(
    part: Path, session: ModelSession, runtime: BundleClassifier, parity: dict[str, Any], *, thumbnails: int
) -> None:
    """Everything beside the model."""
    original, kept = session.original, session.original.validation
    labels = original.predictions.labels
    features, scores = session.look(runtime.look, session.val)
    target, owners = session.targets[session.val], independent_groups(original.manifest)[session.val]
    patients = owners
    if kept is not None:
        scores, target, patients = kept.scores, kept.target, kept.groups()
    facts: dict[str, Any] = {**runtime.bundle.facts, **calibrate(scores, target, patients, labels.names)}
    asked = "the bundle's own" if kept is None else "kept by the run"
    facts["calibrated_on"] = {"images": len(target), "patients": len(np.unique(patients)), "scores": asked}
    of_training = session.look(runtime.look, session.train)[0]
    reference = fit_reference(of_training, session.targets[session.train], features, owners)
    ood, why = (None, reference) if isinstance(reference, str) else (reference, None)
    facts["novelty"], facts["no_novelty"] = None if ood is None else layout.write_ood_arrays(part, ood), why
    facts["thumbnails"] = None
    if thumbnails:
        facts["thumbnails"] = layout.write_thumbnails(part, session.thumbnails(of_training, thumbnails), labels)
    facts["run"] = {name: getattr(original, name) for name in ("name", "fold", "model", "has_learned")}
    facts["run"]["model"] = Path(original.model).name
    facts["provenance"] = provenance(seed=session.seed, inputs=dict(original.inputs))
    facts["provenance"]["versions"] |= {name: metadata.version(name) for name in ("onnx", "onnxruntime")}
    drawn = draw_phantom(CLASSES[0], rng=np.random.default_rng(session.seed)).pixels
    greys = fit(drawn, runtime.preprocess)[None]
    layout.write_self_test(part, greys, runtime.look(greys)[1])
    learned = np.concatenate([original.train, original.val]) if original.has_learned else original.val[:0]
    hashes = original.manifest.column("sha256")
    layout.write_trained_on(part, [hashes[row] for row in learned])
    test_features, test_scores = session.look(runtime.look, session.test)
    sets = layout.Bundle(part, facts).sets
    assert sets is not None, "calibrate always fits sets"
    own, images = original.predictions, original.manifest.column("image_id")
    row = {image: number for number, image in enumerate(own.image_id)}
    rows = [row[images[number]] for number in session.test]
    targets, patients = session.targets[session.test], own.groups()[rows]
    parity["test"] = measure(test_scores, test_features, targets, patients, sets=sets, ood=ood)
    parity["run"] = proof.compare_scores(own.scores[rows], test_scores)  # in whatever precision the run was
    write_json(part / FACTS, facts)
    write_json(part / layout.PARITY, parity)
    run = JudgedRun(
        name=original.name,
        kind=original.kind,
        model=original.model,
        fold=original.fold,
        has_learned=original.has_learned,
        predictions=original.predictions,
        images=original.manifest.root,
        count=len(original.manifest),
        fingerprint=original.manifest.fingerprint,
    )
    card = bundle_card(
        facts,
        parity,
        run,
        limits={
            "fp32_tolerance": proof.FP32_TOLERANCE,
            "int8_flips": proof.INT8_FLIPS,
            "int8_accuracy": proof.INT8_ACCURACY,
        },
        counts={"train": len(original.train), "val": len(original.val), "alike": len(original.alike)},
    )
    write_text(part / layout.CARD, card)
    seal(part)


def require_place(out: Path) -> None:
    """Raise InputError unless a bundle may be written at `out`: nothing else may be there, nor in a bundle there."""
    if out.is_file():
        raise InputError(f"{out}: is a file, and a bundle is a folder; name another --out")
    if out.is_dir() and (others := others_in(out)):
        raise InputError(f"{others[0]}: is not of a bundle; move it, or name a new folder with --out")
